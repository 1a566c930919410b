"""From the bytes of one image or label to its pixels; every error names the file.

Plain functions: the pipeline calls them from its threads, evaluation and the audit directly.
"""

import io
import os

import numpy as np
from imagecodecs import PngError, png_decode
from PIL import Image

from hrnet_jax.data.images import pixels, png
from hrnet_jax.data.images.headers import (
    IMAGE_SUFFIXES,
    Header,
    check_image_header,
    check_label_header,
    parse_header,
)
from hrnet_jax.data.images.notes import say_once
from hrnet_jax.data.images.orientation import upright

_SAID = {
    "gray": "is gray, which is repeated for red, green and blue",
    "palette": "has a palette, whose colors are taken",
    "gray+alpha": "is gray with alpha, which is opaque and dropped",
    "rgba": "has alpha, which is opaque and dropped",
    "cmyk": "is CMYK and converted to RGB, without a color profile",
}
# Names that each format usually has.
_SUFFIXES = {
    "png": (".png",),
    "jpeg": (".jpg", ".jpeg"),
    "webp": (".webp",),
    "tiff": (".tif", ".tiff"),
    "bmp": (".bmp",),
    "ppm": (".ppm",),
}


def decode_image(
    data: bytes,
    name: str,
    rows: int | None = None,
    *,
    image_range: tuple[float, float] | None = None,
) -> np.ndarray:
    """An image file -> upright RGB pixels, uint8 [H, W, 3]; docs/data.md has the rules.

    The only reader of images: training, evaluation and prediction get the same pixels.

    Args:
        data: the file's bytes.
        name: what errors call it.
        rows: how many are needed, from the top; more may come.
        image_range: `Classes.image_range`, for files of more than 8 bits per channel.

    Raises:
        ValueError: naming the file, if its header or content is damaged, or it is of a kind whose
            meaning is not clear.
    """
    header = parse_header(data, name)
    check_image_header(header, name, image_range)
    turn = header.orientation
    if png.is_plain(data, header) and not header.alpha:
        some = rows if rows and turn == 1 else header.height
        image = png.decode_rows(data, header, name, some)
    else:
        image = _any_image(data, header, name, image_range)
        turn = 1 if header.format == "tiff" and header.bits <= 8 else turn  # Pillow has done it
    _say_conversions(header, name, image_range)
    image = image if image.ndim == 3 else np.repeat(image[..., None], 3, -1)
    return image if turn == 1 else upright(image, turn)


def _any_image(
    data: bytes, header: Header, name: str, image_range: tuple[float, float] | None
) -> np.ndarray:
    """uint8 [H, W] or [H, W, 3], as stored; raises ValueError naming the file."""
    try:
        if header.bits > 8:
            return pixels.scaled(pixels.deep(data, header), image_range)
        if header.format == "jpeg" and header.kind != "cmyk":
            return pixels.jpeg(data)
        return pixels.by_pillow(data, header)
    except pixels.Meaningless as error:
        raise ValueError(f"{name} {error}") from None
    except pixels.ERRORS as error:
        raise ValueError(f"{name} is damaged: {error}") from error


def _say_conversions(header: Header, name: str, image_range: tuple[float, float] | None) -> None:
    if header.kind in _SAID:
        say_once(_SAID[header.kind], name)
    if header.bits > 8:
        low, high = image_range
        say_once(f"values {low} to {high} of {header.bits} bits are scaled to 0 to 255", name)
    if header.orientation != 1:
        say_once("is turned upright, as its orientation mark says", name)
    suffix = os.path.splitext(name)[1].lower()
    if suffix in IMAGE_SUFFIXES and suffix not in _SUFFIXES[header.format]:
        say_once(f"is named {suffix} and read as the {header.format.upper()} file that it is", name)


def decode_label(
    data: bytes, name: str, rows: int | None = None, *, colors: bool = False
) -> np.ndarray:
    """PNG -> the raw ids, uint8 or uint16 [H, W]; or its colors, uint8 [H, W, 3].

    Ids are gray values of 1 to 16 bits, the indices of a palette, or the value of equal color
    channels. Alpha must be opaque.

    Args:
        data: the file's bytes.
        name: what errors call it.
        rows: how many are needed, from the top; more may come.
        colors: read colors: of RGB channels, of the palette, or gray as a color.

    Raises:
        ValueError: naming the file, if its pixels cannot be ids or the content is damaged.
    """
    header = parse_header(data, name)
    check_label_header(header, name)
    if header.orientation == 1:
        return _stored_label(data, header, name, rows, colors)
    return upright(_stored_label(data, header, name, None, colors), header.orientation)


def _stored_label(
    data: bytes, header: Header, name: str, rows: int | None, colors: bool
) -> np.ndarray:
    if header.kind == "palette":
        return _palette_label(data, header, name, colors)
    if png.is_plain(data, header):
        values = png.decode_rows(data, header, name, rows or header.height)
    elif header.format == "png":
        values = _any_png(data, header, name)
    else:
        values = _tiff_or_bmp(data, header, name)
    return _as_colors(values, header, name) if colors else _as_ids(values, header, name)


def _palette_label(data: bytes, header: Header, name: str, colors: bool) -> np.ndarray:
    if header.format == "tiff" and header.orientation != 1:
        raise ValueError(f"label {name} has a palette and an orientation mark: save it upright")
    # Pillow gives the indices; other decoders give the palette's colors or their luminance.
    try:
        image = Image.open(io.BytesIO(data))
        # Two colors come as bool.
        return np.array(image.convert("RGB") if colors else image).astype(np.uint8)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{name} is damaged: {error}") from error


def _tiff_or_bmp(data: bytes, header: Header, name: str) -> np.ndarray:
    """Values without a palette, uint8 or uint16, [H, W] or [H, W, 3]."""
    try:
        values = pixels.label_values(data, header)
    except pixels.Meaningless as error:
        raise ValueError(f"label {name} {error}") from None
    except pixels.ERRORS as error:
        raise ValueError(f"{name} is damaged: {error}") from error
    if values.dtype in (np.uint8, np.uint16):
        return values
    if values.dtype.kind not in "iu" or not 0 <= values.min() <= values.max() <= 65535:
        raise ValueError(
            f"label {name} holds {values.dtype} values from {values.min()} to {values.max()}: "
            "labels are whole numbers from 0 to 65535"
        )
    return values.astype(np.uint16)


def _any_png(data: bytes, header: Header, name: str) -> np.ndarray:
    """Values of a PNG without a palette, [H, W] or [H, W, C], without transparent pixels."""
    try:
        values = png_decode(data)
    except PngError as error:
        raise ValueError(f"{name} is damaged: {error}") from error
    # One gray value or color that is declared transparent comes as alpha, too; it is still a value.
    channels = pixels.CHANNELS[header.kind]
    alpha = header.kind in ("gray+alpha", "rgba")
    if alpha and (values[..., -1] != (255 if header.bits == 8 else 65535)).any():
        raise ValueError(
            f"label {name} has transparent pixels, whose meaning is not clear: save it without "
            "alpha, with an id or color for pixels without a class"
        )
    if values.ndim == 3:
        values = values[..., :channels] if channels > 1 else values[..., 0]
    return values


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
