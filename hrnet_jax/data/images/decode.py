"""From the bytes of one image or label to its pixels; every error names the file.

Plain functions: the pipeline calls them from its threads, evaluation and the audit directly.
"""

import io

import numpy as np
from imagecodecs import PngError, png_decode
from PIL import Image

from hrnet_jax.data.images import png
from hrnet_jax.data.images.headers import Header, check_label_header, parse_header

# Without alpha.
_CHANNELS = {"grey": 1, "grey+alpha": 1, "rgb": 3, "rgba": 3}


def decode_image(data: bytes, name: str, rows: int | None = None) -> np.ndarray:
    """PNG or JPEG -> uint8 RGB [H, W, 3]; grey is repeated, alpha dropped.

    Args:
        data: the file's bytes.
        name: what errors call it.
        rows: how many are needed, from the top; more may come.

    Raises:
        ValueError: naming the file, if its header or content is damaged.
    """
    header = parse_header(data, name)
    if header.format == "jpeg":
        return _by_tensorflow("jpeg", data, 3, name)
    if png.is_plain(data, header):
        pixels = png.decode_rows(data, header, name, rows or header.height)
        return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, -1)
    return _by_tensorflow("png", data, 3, name)


def decode_label(
    data: bytes, name: str, rows: int | None = None, *, colors: bool = False
) -> np.ndarray:
    """PNG -> the raw ids, uint8 or uint16 [H, W]; or its colors, uint8 [H, W, 3].

    Ids are grey values of 1 to 16 bits, the indices of a palette, or the value of equal color
    channels. Alpha must be opaque.

    Args:
        data: the file's bytes.
        name: what errors call it.
        rows: how many are needed, from the top; more may come.
        colors: read colors: of RGB channels, of the palette, or grey as a color.

    Raises:
        ValueError: naming the file, if its pixels cannot be ids or the content is damaged.
    """
    header = parse_header(data, name)
    check_label_header(header, name)
    if header.kind == "palette":
        return _palette_label(data, name, colors)
    if png.is_plain(data, header):
        pixels = png.decode_rows(data, header, name, rows or header.height)
    else:
        pixels = _any_png(data, header, name)
    return _as_colors(pixels, header, name) if colors else _as_ids(pixels, header, name)


def _palette_label(data: bytes, name: str, colors: bool) -> np.ndarray:
    # Pillow gives the indices; other decoders give the palette's colors or their luminance.
    try:
        image = Image.open(io.BytesIO(data))
        return np.array(image.convert("RGB") if colors else image)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{name} is damaged: {error}") from error


def _any_png(data: bytes, header: Header, name: str) -> np.ndarray:
    """Values of a PNG without a palette, [H, W] or [H, W, C], without transparent pixels."""
    try:
        pixels = png_decode(data)
    except PngError as error:
        raise ValueError(f"{name} is damaged: {error}") from error
    # One grey value or color that is declared transparent comes as alpha, too; it is still a value.
    channels = _CHANNELS[header.kind]
    alpha = header.kind in ("grey+alpha", "rgba")
    if alpha and (pixels[..., -1] != (255 if header.bits == 8 else 65535)).any():
        raise ValueError(
            f"label {name} has transparent pixels, whose meaning is not clear: save it without "
            "alpha, with an id or color for pixels without a class"
        )
    if pixels.ndim == 3:
        pixels = pixels[..., :channels] if channels > 1 else pixels[..., 0]
    return pixels


def _as_ids(pixels: np.ndarray, header: Header, name: str) -> np.ndarray:
    if pixels.ndim == 3:
        if (pixels[..., :1] != pixels[..., 1:]).any():
            raise ValueError(
                f"label {name} is a color image ({header.kind}), not one id per pixel. If these "
                'are the colors of the classes, write "label_type": "colors" and "colors" into the '
                "class file"
            )
        pixels = np.ascontiguousarray(pixels[..., 0])
    # Decoders stretch fewer bits to 0..255.
    return pixels // (255 // (2**header.bits - 1)) if header.bits < 8 else pixels


def _as_colors(pixels: np.ndarray, header: Header, name: str) -> np.ndarray:
    if pixels.dtype != np.uint8:
        raise ValueError(
            f"label {name} has {header.bits} bits per channel, but the colors of classes have 8"
        )
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, -1)


def count_ids(label: np.ndarray) -> np.ndarray:
    """How many pixels of a label uint8 [H, W] have each raw id, int64 [256].

    With Pillow, which takes 3 ms for 2 Mpixels; `np.bincount` takes 15 ms.
    """
    return np.array(Image.fromarray(label).histogram(), np.int64)


def _by_tensorflow(format: str, data: bytes, channels: int, name: str) -> np.ndarray:
    # Imported late: it takes seconds, and reports and checkpoints import this package, too.
    import tensorflow as tf

    decode = {"jpeg": tf.io.decode_jpeg, "png": tf.io.decode_png}[format]
    try:
        return decode(data, channels=channels).numpy()
    except tf.errors.OpError as error:
        raise ValueError(f"{name} is damaged: {error.message}") from error
