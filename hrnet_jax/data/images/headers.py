"""Format and size of PNG and JPEG files from their first bytes, before anything is decoded.

A small file can decode to gigabytes, a JPEG may be named .png, and a palette PNG holds indices that
decoders turn into colors. The header shows all of this, and takes a few hundred bytes to read.
"""

import struct
from dataclasses import dataclass
from pathlib import PurePath

from hrnet_jax.runtime import storage

# 67 Mpixels: four times the largest street images in use, 200 MB as RGB.
MAX_PIXELS = 2**26
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_KINDS = {0: "grey", 2: "rgb", 3: "palette", 4: "grey+alpha", 6: "rgba"}
_JPEG_KINDS = {1: "grey", 3: "rgb", 4: "cmyk"}
# Start-of-frame markers; C4, C8 and CC share their range but are tables.
_JPEG_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SUFFIXES = {"png": (".png",), "jpeg": (".jpg", ".jpeg")}


@dataclass(frozen=True)
class Header:
    format: str  # "png" or "jpeg"
    height: int
    width: int
    kind: str  # grey, rgb, palette, grey+alpha, rgba, cmyk
    bits: int  # per channel

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width


def parse_header(data: bytes, name: str) -> Header:
    """Reads the header of an encoded image.

    Args:
        data: the file's bytes, or as many of its first ones as hold the header.
        name: what errors call it; if it has the suffix of an image file, the content must match.

    Raises:
        ValueError: naming the file, if it is empty, neither PNG nor JPEG, of another format than
            its name says, or larger than MAX_PIXELS.
    """
    if not data:
        raise ValueError(f"{name} is empty (0 bytes)")
    if data.startswith(_PNG_SIGNATURE):
        header = _parse_png(data, name)
    elif data.startswith(b"\xff\xd8"):
        header = _parse_jpeg(data, name)
    else:
        raise ValueError(f"{name} is neither a PNG nor a JPEG file (begins with {data[:8]!r})")
    suffix = PurePath(name).suffix.lower()
    if suffix in sum(_SUFFIXES.values(), ()) and suffix not in _SUFFIXES[header.format]:
        raise ValueError(
            f"{name} holds {header.format.upper()} data under the name {suffix}; rename it, or "
            "save it again as PNG if it must be lossless"
        )
    if header.height < 1 or header.width < 1:
        raise ValueError(f"{name} has no pixels: {header.height}x{header.width}")
    if header.height * header.width > MAX_PIXELS:
        raise ValueError(
            f"{name} is {header.height}x{header.width} by its header: more than {MAX_PIXELS} "
            "pixels are not decoded"
        )
    return header


def check_label_header(header: Header, name: str) -> None:
    """Rejects label files whose format cannot hold class ids.

    Raises:
        ValueError: naming the file and how to correct it.
    """
    if header.format != "png":
        raise ValueError(
            f"label {name} is a {header.format.upper()} file, whose compression changes values: "
            "labels must be PNG"
        )


def read_header(path: str) -> Header:
    """`parse_header` of a file, reading no more of it than needed.

    Raises:
        FileNotFoundError, ValueError: naming the file.
    """
    (data,) = storage.read_spans(path, [(0, 64)])
    if data.startswith(b"\xff\xd8"):
        # The frame header follows embedded profiles and previews of any length.
        data = storage.read_bytes(path)
    return parse_header(data, path)


def _parse_png(data: bytes, name: str) -> Header:
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise ValueError(f"{name} is a damaged PNG file: it has no header")
    width, height, bits, color = struct.unpack_from(">IIBB", data, 16)
    if color not in _PNG_KINDS:
        raise ValueError(f"{name} is a damaged PNG file: color type {color} does not exist")
    return Header("png", height, width, _PNG_KINDS[color], bits)


def _parse_jpeg(data: bytes, name: str) -> Header:
    position = 2
    while position + 9 < len(data):
        marker = data[position + 1]
        if data[position] != 0xFF:
            break
        if marker == 0xFF:
            position += 1
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:
            position += 2
        elif marker in _JPEG_FRAMES:
            bits, height, width, channels = struct.unpack_from(">BHHB", data, position + 4)
            return Header("jpeg", height, width, _JPEG_KINDS.get(channels, "other"), bits)
        else:
            position += 2 + struct.unpack_from(">H", data, position + 2)[0]
    raise ValueError(f"{name} is a damaged JPEG file: it has no frame header")
