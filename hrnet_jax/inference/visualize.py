"""Images of labels and predictions; NumPy and Pillow only.

Images are uint8 [H, W, 3], labels integer train ids [H, W] with 255 = ignore. `classes` is a
data.sources.source.Classes: `names`, `colors` and `label_ids` are used.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from hrnet_jax.data.sources.source import Classes
from hrnet_jax.inference.fonts import find_font
from hrnet_jax.runtime import storage

IGNORE_COLOR = (0, 0, 0)
BACKGROUND = (24, 26, 31)
INK = (232, 234, 238)
FAINT_INK = (154, 160, 170)
ERROR_COLOR = (255, 64, 72)
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def _check_pair(image: np.ndarray, labels: np.ndarray) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be uint8 [H, W, 3], got {image.dtype} {image.shape}")
    if labels.shape != image.shape[:2]:
        raise ValueError(f"labels {labels.shape} do not fit the image {image.shape[:2]}")


def _palette(classes: Classes) -> np.ndarray:
    """uint8 [256, 3]: the color of each train id; IGNORE_COLOR for all other values."""
    palette = np.empty((256, 3), np.uint8)
    palette[:] = IGNORE_COLOR
    palette[: len(classes.colors)] = classes.colors
    return palette


def _gray(image: np.ndarray) -> np.ndarray:
    """float32 [H, W, 1], 0..255."""
    return (image.astype(np.float32) @ _LUMA)[..., None]


def color_labels(labels: np.ndarray, classes: Classes) -> np.ndarray:
    """Train ids [H, W] -> uint8 [H, W, 3] in the colors of the classes, black where ignored.

    Raises:
        ValueError: if labels are not integers [H, W] within 0..255.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be integers [H, W], got {labels.dtype} {labels.shape}")
    if labels.size and not 0 <= labels.min() <= labels.max() <= 255:
        raise ValueError(f"labels must be in 0..255, got {labels.min()}..{labels.max()}")
    return _palette(classes)[labels]


def to_label_ids(labels: np.ndarray, classes: Classes) -> np.ndarray:
    """Train ids -> raw label ids, as in the dataset's own label files and on test servers.

    Of several ids of a class it is the first. The type is uint8, or uint16 for ids above 255.

    Args:
        labels: integers of any shape, 0 .. num_classes - 1; predictions have no ignored pixels.
        classes: its `label_ids` are used.
    """
    ids = classes.first_ids
    return np.asarray(ids, np.uint8 if max(ids) <= 255 else np.uint16)[labels]


def overlay(
    image: np.ndarray, labels: np.ndarray, classes: Classes, alpha: float = 0.55
) -> np.ndarray:
    """The image blended with the colors of the classes, uint8 [H, W, 3].

    Args:
        image: uint8 [H, W, 3].
        labels: train ids [H, W]; pixels without a class show the image darkened.
        classes: names and colors.
        alpha: 0 shows only the image, 1 only the colors.

    Raises:
        ValueError: for arrays of other types or shapes, or alpha outside 0..1.
    """
    image, labels = np.asarray(image), np.asarray(labels)
    _check_pair(image, labels)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in 0..1, got {alpha}")
    colors = color_labels(labels, classes).astype(np.float32)
    mixed = (1 - alpha) * image.astype(np.float32) + alpha * colors
    return (mixed + 0.5).astype(np.uint8)


def error_map(
    image: np.ndarray, labels: np.ndarray, predictions: np.ndarray, num_classes: int
) -> np.ndarray:
    """Errors of a prediction in red over the gray image; unlabeled pixels are dark.

    Returns:
        uint8 [H, W, 3].
    """
    image, labels, predictions = np.asarray(image), np.asarray(labels), np.asarray(predictions)
    _check_pair(image, labels)
    _check_pair(image, predictions)
    valid = (labels < num_classes)[..., None]
    wrong = (labels != predictions)[..., None] & valid
    gray = _gray(image)
    base = np.where(valid, 70 + 0.62 * gray, 0.25 * gray) * np.ones(3, np.float32)
    red = 0.2 * gray + 0.8 * np.array(ERROR_COLOR, np.float32)
    return (np.where(wrong, red, base) + 0.5).astype(np.uint8)


def resize_to_width(image: np.ndarray, width: int) -> np.ndarray:
    """uint8 [H, W, 3] reduced to at most `width` columns, aspect ratio kept; never enlarged."""
    height, old_width = image.shape[:2]
    if old_width <= width:
        return image
    size = (width, max(1, round(height * width / old_width)))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))


def grid(
    images: Sequence[np.ndarray], columns: int, gap: int = 8, background: tuple = BACKGROUND
) -> np.ndarray:
    """Images in rows of `columns`, in cells of the largest image's size, uint8 [H, W, 3].

    Raises:
        ValueError: for no images or no columns.
    """
    if not images or columns < 1:
        raise ValueError(
            f"need images and columns >= 1, got {len(images)} images, {columns} columns"
        )
    height = max(i.shape[0] for i in images)
    width = max(i.shape[1] for i in images)
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    canvas = np.empty((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), np.uint8)
    canvas[:] = background
    for k, image in enumerate(images):
        top, left = k // columns * (height + gap), k % columns * (width + gap)
        canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    return canvas


def captioned(image: np.ndarray, text: str, size: int = 15) -> np.ndarray:
    """The image below a line of text (cut if too long), uint8 [H + 2 * size, W, 3]."""
    height, width = image.shape[:2]
    canvas = Image.new("RGB", (width, height + 2 * size), BACKGROUND)
    canvas.paste(Image.fromarray(image), (0, 2 * size))
    font = find_font(text, size)
    draw = ImageDraw.Draw(canvas)
    if draw.textlength(text, font=font) > width:
        while text and draw.textlength(text + "…", font=font) > width:
            text = text[:-1]
        text += "…"
    draw.text((0, size // 2), text, fill=INK, font=font)
    return np.asarray(canvas)


def legend(
    classes: Classes, width: int, present: Sequence[int] | None = None, size: int = 15
) -> np.ndarray:
    """Color swatches with the names of the classes, wrapped to `width`, uint8 [h, width, 3].

    Args:
        classes: names and colors.
        width: of the result, in pixels.
        present: train ids whose names are bright; the others are faint. None: all are bright.
        size: of the letters, in pixels.
    """
    fonts = [find_font(name, size) for name in classes.names]
    bright = set(range(len(classes.names)) if present is None else (int(i) for i in present))
    swatch, pad, line = size, size // 2, 2 * size
    x, y, items = 0, 0, []
    for k, name in enumerate(classes.names):
        length = swatch + pad + int(fonts[k].getlength(name)) + 2 * pad
        if x and x + length > width:
            x, y = 0, y + line
        items.append((x, y, k, name))
        x += length
    canvas = Image.new("RGB", (width, y + line), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for x, y, k, name in items:
        top = y + (line - swatch) // 2
        box = (x, top, x + swatch - 1, top + swatch - 1)
        draw.rectangle(box, fill=tuple(classes.colors[k]), outline=FAINT_INK)
        ink = INK if k in bright else FAINT_INK
        draw.text((x + swatch + pad, y + line / 2), name, fill=ink, font=fonts[k], anchor="lm")
    return np.asarray(canvas)


def panel(
    image: np.ndarray,
    labels: np.ndarray | None,
    predictions: np.ndarray | None,
    classes: Classes,
    *,
    title: str = "",
    columns: int = 2,
    width: int = 720,
    alpha: float = 0.7,
) -> np.ndarray:
    """Image, ground truth, prediction and errors side by side with a legend, uint8 [H, W, 3].

    Args:
        image: uint8 [H, W, 3].
        labels: ground-truth train ids [H, W], or None.
        predictions: predicted train ids [H, W], or None to show image and ground truth only.
        classes: names and colors.
        title: a line above, e.g. the name of the image and its metrics.
        columns: images per row.
        width: largest width of one image, in pixels.
        alpha: strength of the colors, 0 to 1.
    """
    image = np.asarray(image)
    parts = [(image, "image")]
    if labels is not None:
        parts.append((overlay(image, labels, classes, alpha), "ground truth"))
    if predictions is not None:
        parts.append((overlay(image, predictions, classes, alpha), "prediction"))
    if labels is not None and predictions is not None:
        errors = error_map(image, labels, predictions, len(classes.names))
        parts.append((errors, "errors"))
    images = grid([captioned(resize_to_width(p, width), t) for p, t in parts], columns)
    present = np.unique([i for a in (labels, predictions) if a is not None for i in np.unique(a)])
    body = np.concatenate([images, legend(classes, images.shape[1], present)])
    if title:
        body = captioned(body, title, size=18)
    return _with_margin(body, 12)


def side_by_side(
    image: np.ndarray,
    predictions: Sequence[tuple[str, np.ndarray, Any]],
    *,
    width: int = 480,
    alpha: float = 0.7,
) -> np.ndarray:
    """An image and the predictions of several networks, with their legends, uint8 [H, W, 3].

    Args:
        image: uint8 [H, W, 3].
        predictions: for each network a name, train ids [H, W] and its classes.
        width: largest width of one image, in pixels.
        alpha: strength of the colors, 0 to 1.
    """
    images = [captioned(resize_to_width(image, width), "image")]
    legends: dict[str, tuple[Any, list[str], set[int]]] = {}
    for name, labels, classes in predictions:
        drawn = resize_to_width(overlay(image, labels, classes, alpha), width)
        images.append(captioned(drawn, name))
        # Networks with the same classes have one legend.
        _, names, present = legends.setdefault(str(classes), (classes, [], set()))
        names.append(name)
        present.update(np.unique(labels).tolist())
    body = grid(images, len(images))
    rows = [
        captioned(legend(classes, body.shape[1], sorted(present)), ", ".join(names))
        for classes, names, present in legends.values()
    ]
    return _with_margin(np.concatenate([body, *rows]), 12)


def _with_margin(image: np.ndarray, margin: int) -> np.ndarray:
    height, width = image.shape[:2]
    framed = np.empty((height + 2 * margin, width + 2 * margin, 3), np.uint8)
    framed[:] = BACKGROUND
    framed[margin : margin + height, margin : margin + width] = image
    return framed


def save(path: str | os.PathLike, image: np.ndarray) -> None:
    """Writes uint8 [H, W, 3] or [H, W] to `path` (format by suffix); creates the folder."""
    with storage.written(path) as file:
        Image.fromarray(image).save(file)
