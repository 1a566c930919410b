"""Headers of PNG, JPEG, WebP, TIFF, BMP and PPM files: size, kind of pixels, orientation.

A parser takes a `Bytes` and reads no more of it than it needs: of a large file some kilobytes at
its beginning and, where the format allows notes behind the pixels, at its end.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from hrnet_jax.data.images import orientation
from hrnet_jax.runtime import storage

# Bytes of a file that are read at a time.
_BLOCK = 2**14
# So many behind the pixels of a PNG are searched for an EXIF block.
_TAIL = 2**14
_MAX_EXIF = 2**20

_PNG_KINDS = {0: "gray", 2: "rgb", 3: "palette", 4: "gray+alpha", 6: "rgba"}
_JPEG_KINDS = {1: "gray", 3: "rgb", 4: "cmyk"}
# Start-of-frame markers; C4, C8 and CC share their range but are tables.
_JPEG_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_BARE = {0x00, 0x01, *range(0xD0, 0xD9)}  # no segment follows
JPEG_SCAN, _JPEG_APP1 = 0xDA, 0xE1
# TIFF's tags.
_SUBFILE, _WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC = 254, 256, 257, 258, 262
_SAMPLES, _EXTRA = 277, 338
# Pages that are smaller versions or masks of another one.
_NO_PAGE = 1 | 4
_MAX_PAGES = 100
# (photometric interpretation, samples per pixel) -> kind; 6 is YCbCr, 8 CIELab.
_TIFF_KINDS = {
    (0, 1): "gray",
    (1, 1): "gray",
    (2, 3): "rgb",
    (3, 1): "palette",
    (5, 4): "cmyk",
    (6, 3): "rgb",
    (8, 3): "rgb",
}
_TIFF_ALPHA = {(0, 2): "gray+alpha", (1, 2): "gray+alpha", (2, 4): "rgba"}


@dataclass(frozen=True)
class Header:
    """What the header of an image file says.

    Attributes:
        format: png, jpeg, webp, tiff, bmp or ppm.
        height: rows as stored.
        width: columns as stored.
        kind: gray, rgb, palette, gray+alpha, rgba, cmyk, or in words what else it is.
        bits: per channel, the most of them.
        orientation: 1..8, see the module `orientation`.
        alpha: there may be transparent pixels.
        pages: pages or frames; counted up to 2 in a TIFF file.
    """

    format: str
    height: int
    width: int
    kind: str
    bits: int
    orientation: int = 1
    alpha: bool = False
    pages: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the upright image."""
        if self.orientation >= 5:
            return self.width, self.height
        return self.height, self.width


class Bytes(Protocol):
    """The bytes of a file by position."""

    @property
    def size(self) -> int:
        """How many there are."""

    def read(self, start: int, length: int) -> bytes:
        """Fewer than `length` where the file ends."""


@dataclass(frozen=True)
class InMemory:
    """`Bytes` that have been read."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, start: int, length: int) -> bytes:
        return self.data[start : start + length]


class InFile:
    """`Bytes` of a file; the last block that was read is kept."""

    def __init__(self, path: str):
        self._path, self._start, self._block, self._at_end = path, 0, b"", False

    @cached_property
    def size(self) -> int:
        return storage.size(self._path)

    def read(self, start: int, length: int) -> bytes:
        first = start - self._start
        if first < 0 or (first + length > len(self._block) and not self._at_end):
            wanted = max(length, _BLOCK)
            (self._block,) = storage.read_spans(self._path, [(start, start + wanted)])
            self._start, self._at_end, first = start, len(self._block) < wanted, 0
        return self._block[first : first + length]


def parse(file: Bytes) -> Header | None:
    """The header of an image file; None if its first bytes are of none of these formats.

    Raises:
        ValueError: "damaged FORMAT file: ...", if the header cannot be read.
    """
    first = file.read(0, 16)
    for name, signature, parser in _PARSERS:
        if signature.match(first):
            try:
                return parser(file)
            except (ValueError, struct.error, IndexError) as error:
                why = error if isinstance(error, ValueError) else "it ends inside its header"
                raise ValueError(f"damaged {name} file: {why}") from error
    return None


def _png(file: Bytes) -> Header:
    head = file.read(0, 33)
    if len(head) < 33 or head[12:16] != b"IHDR":
        raise ValueError("it has no header")
    width, height, bits, color = struct.unpack_from(">IIBB", head, 16)
    if color not in _PNG_KINDS:
        raise ValueError(f"color type {color} does not exist")
    kind, turn, frames, position = _PNG_KINDS[color], 0, 1, 33
    alpha = kind in ("gray+alpha", "rgba")
    while len(chunk := file.read(position, 8)) == 8:
        length, name = struct.unpack(">I4s", chunk)
        if name in (b"IDAT", b"IEND"):
            break
        if name == b"eXIf" and length <= _MAX_EXIF:
            turn = orientation.of_exif(file.read(position + 8, length))
        elif name == b"acTL":  # of an animation
            frames = struct.unpack(">I", file.read(position + 8, 4))[0]
        alpha = alpha or name == b"tRNS"
        position += 12 + length
    turn = turn or _exif_behind_pixels(file)
    return Header("png", height, width, kind, bits, turn, alpha, frames)


def _exif_behind_pixels(file: Bytes) -> int:
    """The orientation in an EXIF chunk close to a PNG file's end; some programs put it there.

    The chunks in between are not looked at, which would mean to read all of a large file. A
    checksum shows that it is a chunk and not a part of the pixels.
    """
    tail = file.read(max(33, file.size - _TAIL), _TAIL)
    if (place := tail.rfind(b"eXIf")) < 4:
        return 1
    (length,) = struct.unpack_from(">I", tail, place - 4)
    body, checksum = tail[place : place + 4 + length], tail[place + 4 + length :][:4]
    return orientation.of_exif(body[4:]) if zlib.crc32(body).to_bytes(4) == checksum else 1


def _jpeg(file: Bytes) -> Header:
    turn = 0
    for marker, start in jpeg_segments(file):
        if marker in _JPEG_FRAMES:
            bits, height, width, channels = struct.unpack(">BHHB", file.read(start + 2, 6))
            kind = _JPEG_KINDS.get(channels, f"{channels} bands")
            return Header("jpeg", height, width, kind, bits, turn or 1)
        if marker == _JPEG_APP1 and not turn and file.read(start + 2, 6) == b"Exif\0\0":
            (length,) = struct.unpack(">H", file.read(start, 2))
            turn = orientation.of_exif(file.read(start + 2, length - 2))
    raise ValueError("it has no frame header")


def jpeg_segments(file: Bytes) -> Iterator[tuple[int, int]]:
    """(marker, where its segment begins) of a JPEG file, to the first scan.

    Bytes between segments are skipped, as decoders do.
    """
    position = 2
    while len(pair := file.read(position, 2)) == 2:
        if pair[0] != 0xFF:
            block = file.read(position, _BLOCK)
            found = block.find(b"\xff")
            position += found if found >= 0 else len(block)
        elif pair[1] == 0xFF:
            position += 1
        elif pair[1] in _JPEG_BARE:
            position += 2
        else:
            yield pair[1], position + 2
            if pair[1] == JPEG_SCAN:
                return
            length = struct.unpack(">H", file.read(position + 2, 2))[0]
            position += 2 + max(length, 2)


def _webp(file: Bytes) -> Header:
    if file.read(8, 4) != b"WEBP":
        raise ValueError("it is a RIFF file of another kind")
    name, data = file.read(12, 4), file.read(20, 10)
    if name == b"VP8 " and data[3:6] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", data[6:10])
        return Header("webp", height & 0x3FFF, width & 0x3FFF, "rgb", 8)
    if name == b"VP8L" and data[0] == 0x2F:
        (packed,) = struct.unpack("<I", data[1:5])
        width, height, alpha = (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1, packed >> 28 & 1
        return Header("webp", height, width, "rgba" if alpha else "rgb", 8, alpha=bool(alpha))
    if name != b"VP8X":
        raise ValueError(f"it begins with {name!r}")
    width, height = (int.from_bytes(data[k : k + 3], "little") + 1 for k in (4, 7))
    chunks = list(_webp_chunks(file)) if data[0] & (2 | 8) else []
    frames = sum(chunk == b"ANMF" for chunk, _, _ in chunks) or 1
    exif = [file.read(start, length) for chunk, start, length in chunks if chunk == b"EXIF"]
    turn = orientation.of_exif(exif[0]) if exif else 1
    alpha = bool(data[0] & 16)
    return Header("webp", height, width, "rgba" if alpha else "rgb", 8, turn, alpha, frames)


def _webp_chunks(file: Bytes) -> Iterator[tuple[bytes, int, int]]:
    """(name, begin, length) of the contents of each chunk."""
    position = 12
    while len(head := file.read(position, 8)) == 8:
        name, length = struct.unpack("<4sI", head)
        yield name, position + 8, min(length, _MAX_EXIF)
        position += 8 + length + length % 2


def _tiff(file: Bytes) -> Header:
    first: dict[int, tuple[int, ...]] = {}
    pages = 0
    for number, tags in enumerate(orientation.directories(file.read)):
        first = first or tags
        pages += not tags.get(_SUBFILE, (0,))[0] & _NO_PAGE
        if pages == 2 or number == _MAX_PAGES:
            break
    if not {_WIDTH, _HEIGHT} <= set(first):
        raise ValueError("its first page has no size")
    samples, extra = first.get(_SAMPLES, (1,))[0], first.get(_EXTRA, ())
    key = first.get(_PHOTOMETRIC, (1,))[0], samples
    kinds = _TIFF_ALPHA if extra in ((1,), (2,)) else {} if extra else _TIFF_KINDS
    kind = kinds.get(key, f"{samples} bands")
    if first.get(_SUBFILE, (0,))[0] & _NO_PAGE:
        kind = "a preview of another page"
    turn, bits = orientation.of_tags(first), max(first.get(_BITS, (1,)))
    height, width = first[_HEIGHT][0], first[_WIDTH][0]
    return Header("tiff", height, width, kind, bits, turn, kinds is _TIFF_ALPHA, max(pages, 1))


def _bmp(file: Bytes) -> Header:
    head = file.read(0, 54)
    if struct.unpack_from("<I", head, 14)[0] == 12:  # of OS/2
        width, height, _, depth = struct.unpack_from("<HHHH", head, 18)
    else:
        width, height, _, depth = struct.unpack_from("<iiHH", head, 18)
    kind = "palette" if depth <= 8 else "rgb"
    return Header("bmp", abs(height), width, kind, 8, alpha=depth == 32)


def _ppm(file: Bytes) -> Header:
    (width, height, top), _ = ppm_head(file.read(0, 4096))
    kind = "rgb" if file.read(1, 1) in b"36" else "gray"
    return Header("ppm", height, width, kind, 16 if top > 255 else 8)


def ppm_head(data: bytes) -> tuple[tuple[int, int, int], int]:
    """(width, height, largest value), and where the pixels of a PPM file begin.

    Raises:
        ValueError: if the numbers are not there.
    """
    if not (found := _PPM_HEAD.match(data)):
        raise ValueError("it has no size")
    numbers = [int(number) for number in found.groups() if number]
    return (numbers[0], numbers[1], numbers[2] if len(numbers) == 3 else 1), found.end()


_GAP = rb"(?:\s|#[^\n]*\n)+"
_PPM_HEAD = re.compile(
    rb"P(?:[14]" + _GAP + rb"(\d{1,9})" + _GAP + rb"(\d{1,9})\s"
    rb"|[2356]" + 3 * (_GAP + rb"(\d{1,9})") + rb"\s)"
)
_PARSERS = (
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n"), _png),
    ("JPEG", re.compile(rb"\xff\xd8"), _jpeg),
    ("WebP", re.compile(rb"RIFF"), _webp),
    ("TIFF", re.compile(rb"II[*+]\0|MM\0[*+]"), _tiff),
    ("BMP", re.compile(rb"BM"), _bmp),
    ("PPM", re.compile(rb"P[1-6]\s"), _ppm),
)
