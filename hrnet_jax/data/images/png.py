"""PNG files of 8-bit grey or RGB, decoded from the top as far as rows are needed.

Two thirds of a PNG decoder's time goes into inflating. ISA-L does that three times as fast as zlib
and stops where it is told to; the rows it gives are wrapped up again, uncompressed, for libspng to
undo the filters. A street of 1024x2048 takes less than half of the time that libpng needs, and a
crop near the top half of that. Every chunk's checksum is verified, also behind the last row needed.

libspng is called through its own C interface, which pyspng's library exports: pyspng's function
keeps Python's lock while it decodes, so that two threads are no faster than one.
"""

import ctypes
import struct

import numpy as np
from isal import isal_zlib
from pyspng import _pyspng_c

from hrnet_jax.data.images.headers import Header

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {"grey": 1, "rgb": 3}
_STORED = 65535  # the most that an uncompressed deflate block holds

_spng = ctypes.CDLL(_pyspng_c.__file__)
_spng.spng_ctx_new.argtypes = [ctypes.c_int]
_spng.spng_ctx_new.restype = ctypes.c_void_p
_spng.spng_ctx_free.argtypes = [ctypes.c_void_p]
_spng.spng_set_png_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
_spng.spng_decode_image.argtypes = [
    ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int
]  # fmt: skip
_spng.spng_strerror.restype = ctypes.c_char_p
_SPNG_FMT_PNG = 256  # as the file has it


def is_plain(data: bytes, header: Header) -> bool:
    """Whether `decode_rows` can read the file: 8 bits, grey or RGB, not interlaced."""
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
        shape = (rows, header.width, 3) if header.kind == "rgb" else (rows, header.width)
        return _unfilter(_wrap(data, raw, rows), shape)
    except (ValueError, isal_zlib.error) as error:
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
    """Filtered rows, each after the byte that names its filter."""
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
    """A PNG of so many rows that holds the filtered rows as they are."""
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


def _unfilter(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """The pixels of a whole PNG of 8 bits, which has this shape."""
    pixels = np.empty(shape, np.uint8)
    context = _spng.spng_ctx_new(0)
    try:
        failed = _spng.spng_set_png_buffer(context, data, len(data)) or _spng.spng_decode_image(
            context, pixels.ctypes.data, pixels.nbytes, _SPNG_FMT_PNG, 0
        )
    finally:
        _spng.spng_ctx_free(context)
    if failed:
        raise ValueError(_spng.spng_strerror(failed).decode())
    return pixels
