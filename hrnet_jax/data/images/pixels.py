"""Decoders of whole images: JPEG, more than 8 bits, and what Pillow reads.

`decode.decode_image` chooses among them; `png` is a faster one for plain PNG files.
"""

import io
import struct
import zlib

import numpy as np
from imagecodecs import Jpeg8Error, PngError, TiffError, jpeg8_decode, png_decode, tiff_decode
from PIL import Image

from hrnet_jax.data.images.containers import (
    JPEG_SCAN,
    Header,
    InMemory,
    jpeg_segments,
    ppm_head,
)

# What decoders raise for damaged files.
ERRORS = (
    *(Jpeg8Error, PngError, TiffError, OSError, SyntaxError, ValueError, struct.error, zlib.error),
    *(EOFError, IndexError, KeyError, OverflowError, TypeError, Image.DecompressionBombError),
)
# TIFF's tag, and its values that are or may be lossy: JPEG, JPEG 2000, WebP, JPEG XL.
_COMPRESSION = 259
_LOSSY = (6, 7, 33003, 33005, 34712, 50001, 50002, 52546)
# Kind of file -> channels without alpha.
CHANNELS = {"gray": 1, "gray+alpha": 1, "rgb": 3, "rgba": 3}


class Meaningless(ValueError):
    """The file is not damaged, but parts of it are no color."""


def jpeg(data: bytes) -> np.ndarray:
    """uint8 [H, W] or RGB [H, W, 3] of a JPEG file that is gray or in color, not CMYK.

    The pixels are those of libjpeg's accurate transform, as in Pillow and OpenCV. Decoding is twice
    as fast as with Pillow and releases the interpreter lock, but it does not notice a missing end.

    Raises:
        ValueError, Jpeg8Error: if the file is damaged.
    """
    scan = next((at for marker, at in jpeg_segments(InMemory(data)) if marker == JPEG_SCAN), None)
    # Between the beginning of the pixels and their end these two bytes cannot occur.
    if scan is None or not (data.endswith(b"\xff\xd9") or data.find(b"\xff\xd9", scan) >= 0):
        raise ValueError(f"it ends at byte {len(data)}, before the end of its pixels")
    return jpeg8_decode(data)


def deep(data: bytes, header: Header) -> np.ndarray:
    """Values of a PNG, TIFF or PPM file of more than 8 bits: [H, W] or [H, W, 3].

    Raises:
        ValueError, PngError, TiffError: if the file is damaged.
        Meaningless: if it has transparent pixels.
    """
    if header.format == "png":
        pixels = png_decode(data)
    elif header.format == "tiff":
        pixels = _tiff(data, header)
    else:
        pixels = _ppm(data, header)
    colors = CHANNELS[header.kind]
    if header.alpha and pixels.ndim == 3:
        # A PNG's transparent color comes as alpha as well.
        _refuse_transparent(pixels[..., -1])
        pixels = pixels[..., :colors]
    return pixels[..., 0] if pixels.ndim == 3 and colors == 1 else pixels


def _tiff(data: bytes, header: Header) -> np.ndarray:
    pixels = tiff_decode(data, index=0)
    size = header.height, header.width
    if pixels.ndim == 3 and pixels.shape[1:] == size and pixels.shape[:2] != size:
        pixels = np.moveaxis(pixels, 0, -1)  # one plane per channel
    if pixels.shape[:2] != size:
        raise ValueError(f"pixels of the shape {pixels.shape}")
    return pixels


def _ppm(data: bytes, header: Header) -> np.ndarray:
    if data[1:2] not in b"56":
        raise ValueError("numbers above 255 as text are not read")
    _, start = ppm_head(data)
    shape = (header.height, header.width, 3)[: 3 if header.kind == "rgb" else 2]
    count = int(np.prod(shape))
    if len(data) < start + 2 * count:
        raise ValueError(f"it ends at byte {len(data)}")
    return np.frombuffer(data, ">u2", count, start).reshape(shape)


def scaled(values: np.ndarray, image_range: tuple[float, float]) -> np.ndarray:
    """Values of any type -> uint8: low becomes 0, high 255, those outside the nearer of the two.

    Rounded to the nearest, halves to even.

    Raises:
        Meaningless: if a value is not a number.
    """
    if not np.isfinite(values).all():
        raise Meaningless("has values that are not numbers (NaN); replace them by numbers")
    low, high = image_range
    to_byte = lambda v: np.rint((np.clip(v, low, high) - low) * (255 / (high - low)))  # noqa: E731
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return to_byte(np.arange(65536.0)).astype(np.uint8)[values]
    return to_byte(values.astype(np.float64)).astype(np.uint8)


def by_pillow(data: bytes, header: Header) -> np.ndarray:
    """uint8 [H, W] or RGB [H, W, 3] of a file of up to 8 bits, as stored, TIFF upright.

    Raises:
        one of ERRORS: if the file is damaged.
        Meaningless: if it has transparent pixels.
    """
    with Image.open(io.BytesIO(data), formats=[header.format.upper()]) as image:
        image.load()
    if "transparency" in image.info or image.mode in ("LA", "RGBA", "PA", "La", "RGBa"):
        rgba = np.asarray(image.convert("RGBA"))
        _refuse_transparent(rgba[..., 3])
        return np.ascontiguousarray(rgba[..., :3])
    if image.mode in ("L", "1"):
        return np.asarray(image.convert("L"))
    return np.asarray(image.convert("RGB"))


def label_values(data: bytes, header: Header) -> np.ndarray:
    """Values of a TIFF or BMP file without a palette, as stored: [H, W] or [H, W, 3].

    Raises:
        one of ERRORS: if the file is damaged.
        Meaningless: if it is compressed with loss, has fewer than 8 bits, or transparent pixels.
    """
    if header.bits < 8:
        raise Meaningless(f"has {header.bits} bits per pixel; save it with 8, or as PNG")
    if header.kind not in CHANNELS:
        raise Meaningless(f"holds {header.kind}, not one value or color per pixel")
    if header.format == "bmp":
        return by_pillow(data, header)
    with Image.open(io.BytesIO(data), formats=["TIFF"]) as image:
        if image.tag_v2.get(_COMPRESSION, 1) in _LOSSY:
            raise Meaningless("is compressed with loss, which changes values; save it without")
    return deep(data, header)


def _refuse_transparent(alpha: np.ndarray) -> None:
    opaque = np.iinfo(alpha.dtype).max if alpha.dtype.kind == "u" else 1
    if (alpha < opaque).any():
        raise Meaningless("has transparent pixels; put it on a background, save it as RGB")
