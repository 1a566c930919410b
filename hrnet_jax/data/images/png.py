"""PNG files of 8-bit gray or RGB, decoded from the top as far as rows are needed.

Two thirds of a PNG decoder's time goes into inflating. ISA-L inflates three times as fast as zlib
and stops at a given length. The rows that it gives are wrapped up again as an uncompressed PNG, and
libspng undoes the filters. imagecodecs calls libspng without the interpreter lock, so threads run
in parallel. A street image of 1024x2048 takes less than half of the time that libpng needs, a crop
near the top half of that. The checksum of every chunk is verified, also behind the last row needed.
docs/data.md compares the libraries.
"""

import struct

import numpy as np
from imagecodecs import SpngError, spng_decode
from isal import isal_zlib

from hrnet_jax.data.images.headers import Header

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {"gray": 1, "rgb": 3}
_STORED = 65535  # bytes in an uncompressed deflate block, at most


def is_plain(data: bytes, header: Header) -> bool:
    """Whether `decode_rows` can read the file: 8 bits per channel, gray or RGB, not interlaced."""
    return header.format == "png" and header.bits == 8 and header.kind in _CHANNELS and not data[28]


def decode_rows(data: bytes, header: Header, name: str, rows: int) -> np.ndarray:
    """The first rows of a file: uint8 [rows, W] or [rows, W, 3].

    Args:
        data: the file's bytes; `is_plain` is true for them.
        header: of `parse_header`.
        name: what errors call it.
        rows: 1 .. height.

    Raises:
        ValueError: naming the file, if it is damaged.
    """
    try:
        raw = _inflate(_image_data(data), header, rows)
        return spng_decode(_wrap(data, raw, rows))
    except (ValueError, isal_zlib.error, SpngError) as error:
        raise ValueError(f"{name} is damaged: {error}") from error


def _image_data(data: bytes) -> bytes:
    """The compressed pixels; all chunks are checked."""
    view, position, parts, kind = memoryview(data), len(_SIGNATURE), [], b""
    while kind != b"IEND":
        if position + 12 > len(data):
            raise ValueError(f"it ends at byte {len(data)}, before its last chunk")
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            raise ValueError(f"it ends at byte {len(data)}, inside the chunk {kind!r}")
        if isal_zlib.crc32(view[position + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise ValueError(f"wrong checksum of the chunk {kind!r} at byte {position}")
        if kind == b"IDAT":
            parts.append(view[position + 8 : end])
        position = end + 4
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _inflate(compressed: bytes, header: Header, rows: int) -> bytes:
    """Filtered rows; each begins with the byte that names its filter."""
    stride = 1 + header.width * _CHANNELS[header.kind]
    inflater = isal_zlib.decompressobj()
    raw = inflater.decompress(compressed, rows * stride)
    if len(raw) < rows * stride:
        raise ValueError(f"its pixels end in row {len(raw) // stride} of {header.height}")
    if rows == header.height:
        # The checksum of all rows comes last.
        more = inflater.decompress(inflater.unconsumed_tail, 1)
        if more or not inflater.eof:
            raise ValueError("its pixels do not end with the last row")
    return raw


def _wrap(data: bytes, raw: bytes, rows: int) -> bytes:
    """A PNG file of `rows` rows that holds the filtered rows uncompressed."""
    view, parts = memoryview(raw), [b"\x78\x01"]
    for start in range(0, len(raw), _STORED):
        block = view[start : start + _STORED]
        last = start + _STORED >= len(raw)
        parts += [struct.pack("<BHH", last, len(block), len(block) ^ 0xFFFF), block]
    parts.append(struct.pack(">I", isal_zlib.adler32(raw)))
    header = data[16:20] + struct.pack(">I", rows) + data[24:29]
    chunks = [_SIGNATURE]
    for kind, body in ((b"IHDR", [header]), (b"IDAT", parts), (b"IEND", [])):
        checksum = isal_zlib.crc32(kind)
        for part in body:
            checksum = isal_zlib.crc32(part, checksum)
        chunks += [struct.pack(">I", sum(map(len, body))), kind, *body]
        chunks.append(struct.pack(">I", checksum))
    return b"".join(chunks)
