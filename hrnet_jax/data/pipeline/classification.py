"""Batches of images with one class each, for training a classifier and for evaluating it.

The augmentation is that of the official ImageNet code, torchvision's: a crop of random area and
aspect ratio, resized with antialiasing, mirrored or not; for evaluation the short side is resized
and the centre cropped. Pillow decodes and resizes, as there: the pixels are the same. Order and
random numbers are those of `pipeline`.
"""

import io
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image

from hrnet_jax.data.images.headers import MAX_PIXELS
from hrnet_jax.data.pipeline import segmentation as segmentation_data
from hrnet_jax.data.pipeline.order import sample_order
from hrnet_jax.data.sources.image_folder import ImageSource

# Images with a shorter side are refused: nothing can be recognised in them.
MIN_SIDE = 8
# Crops are drawn anew until one lies in the image, but no more often than that.
_ATTEMPTS = 10


class CropView(NamedTuple):
    """What one augmented sample shows of its image: this box, mirrored or not."""

    top: int
    left: int
    height: int
    width: int
    flip: bool


def sample_crop(
    rng: np.random.Generator,
    size: tuple[int, int],
    *,
    area_min: float,
    aspect_max: float,
    flip: bool,
) -> CropView:
    """Draws a crop of an image.

    Args:
        rng: where the random numbers come from.
        size: (height, width) of the image.
        area_min: the crop's share of the area is uniform between this and 1.
        aspect_max: the logarithm of width / height is uniform between its negative and itself.
        flip: whether half of the views are mirrored.
    """
    # Always the same number of draws: one setting does not change what another one draws.
    shapes, place, mirrored = rng.random((_ATTEMPTS, 2)), rng.random(2), rng.random()
    height, width = size
    top = left = None
    for share, shape in shapes:
        area = height * width * (area_min + share * (1 - area_min))
        aspect = math.exp((2 * shape - 1) * math.log(aspect_max))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(place[0] * (height - h + 1)), int(place[1] * (width - w + 1))
            break
    else:
        # The largest box in the middle with an aspect ratio that is allowed.
        w = min(width, round(height * aspect_max))
        h = min(height, round(width * aspect_max))
        top, left = (height - h) // 2, (width - w) // 2
    return CropView(top, left, h, w, flip and bool(mirrored < 0.5))


def apply_crop(image: Image.Image, view: CropView, crop_size: tuple[int, int]) -> np.ndarray:
    """The view of an RGB image at `crop_size`, uint8 [*crop_size, 3]."""
    box = view.left, view.top, view.left + view.width, view.top + view.height
    height, width = crop_size
    pixels = np.asarray(image.crop(box).resize((width, height), Image.Resampling.BILINEAR))
    return pixels[:, ::-1] if view.flip else pixels


def center_crop(image: Image.Image, short_side: int, crop_size: tuple[int, int]) -> np.ndarray:
    """Resizes an RGB image's short side and crops the centre, uint8 [*crop_size, 3]."""
    width, height = image.size
    shortest = min(image.size)
    size = int(short_side * width / shortest), int(short_side * height / shortest)
    resized = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    top, left = (round((n - c) / 2) for n, c in zip(resized.shape[:2], crop_size, strict=True))
    return resized[top : top + crop_size[0], left : left + crop_size[1]]


def check_center(crop_size: tuple[int, int], short_side: int) -> None:
    """Raises ValueError if `center_crop` would find less than a whole crop."""
    if max(crop_size) > short_side:
        raise ValueError(f"crops of {crop_size} do not fit images with a side of {short_side}")


def decode_rgb(data: bytes, name: str) -> Image.Image:
    """PNG or JPEG of any colour mode -> RGB.

    Of ImageNet's own files some are CMYK and one is a PNG called .JPEG; the content decides.

    Raises:
        ValueError: naming the file, if it is empty, damaged, neither PNG nor JPEG, too small or
            too large.
    """
    if not data:
        raise ValueError(f"{name} is empty (0 bytes)")
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG"))
        width, height = image.size
        if width * height <= MAX_PIXELS:
            image.load()
    except Image.UnidentifiedImageError as error:
        raise ValueError(
            f"{name} is neither a PNG nor a JPEG file (begins with {data[:8]!r})"
        ) from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} is damaged: {error}") from error
    if width * height > MAX_PIXELS:
        raise ValueError(f"{name} is {height}x{width}: more than {MAX_PIXELS} pixels")
    if min(width, height) < MIN_SIDE:
        raise ValueError(f"{name} is {height}x{width}: smaller than {MIN_SIDE} pixels")
    return image.convert("RGB")


def read_image(source: ImageSource, index: int) -> tuple[Image.Image, int]:
    """An RGB image and its class.

    Raises:
        FileNotFoundError, ValueError: naming the file.
    """
    sample = source.records.open(index)
    return decode_rgb(sample.data, source.image_name(index)), sample.label


def train_dataset(
    source: ImageSource,
    *,
    batch_size: int,
    crop_size: tuple[int, int],
    seed: int,
    start_step: int = 0,
    area_min: float = 0.08,
    aspect_max: float = 4 / 3,
    flip: bool = True,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 0,
    prefetch: int = 2,
) -> tf.data.Dataset:
    """Augmented batches without end; order and random numbers as `segmentation_data.train_dataset`.

    Args:
        source: the images.
        batch_size: over all processes.
        crop_size: (height, width) of the samples.
        seed: of order and augmentation.
        start_step: the first batch is that of this step.
        area_min: see `sample_crop`, as are aspect_max and flip.
        aspect_max: largest width / height of a crop, and height / width.
        flip: mirror half of the samples left to right.
        process_index: of this process; it gets its contiguous slice of each batch.
        process_count: number of processes; must divide batch_size.
        threads: that make samples; 0: one for each core.
        prefetch: batches made ahead.

    Returns:
        Dataset of {"image": uint8 [b, *crop_size, 3], "label": int32 [b]}, for
        `segmentation_data.iterate`.

    Raises:
        ValueError: for arguments that make no sense.
    """
    crop_size = _checked_size(crop_size)
    if not 0 < area_min <= 1:
        raise ValueError(f"area_min must be above 0 and at most 1, got {area_min}")
    if aspect_max < 1:
        raise ValueError(f"aspect_max must be 1 or more, got {aspect_max}")

    segmentation_data.check_seed(seed)

    def load(index: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        image, label = read_image(source, int(index))
        size, rng = image.size[::-1], segmentation_data.sample_rng(seed, int(place))
        view = sample_crop(rng, size, area_min=area_min, aspect_max=aspect_max, flip=flip)
        return apply_crop(image, view, crop_size), np.int32(label)

    return segmentation_data.sample_dataset(
        lambda place: (sample_order(len(source), seed, place), place),
        load,
        {"image": ((*crop_size, 3), tf.uint8), "label": ((), tf.int32)},
        batch_size=batch_size,
        start_step=start_step,
        process_index=process_index,
        process_count=process_count,
        threads=threads,
        prefetch=prefetch,
    )


def eval_batches(
    source: ImageSource,
    *,
    batch_size: int,
    crop_size: tuple[int, int],
    short_side: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """The centre of every image exactly once, in order.

    The last batch is filled up with rows that do not count, so that all have one shape; processes
    get contiguous slices of each.

    Args:
        source: the images.
        batch_size: over all processes.
        crop_size: (height, width) of the centre.
        short_side: the image's shorter side is resized to it before.
        process_index: of this process.
        process_count: number of processes; must divide batch_size.

    Yields:
        {"image": uint8 [b, *crop_size, 3], "label": int32 [b], "valid_mask": bool [b],
        "index": int32 [b], place in the source}; filled-up rows have valid_mask False, index and
        label -1.

    Raises:
        ValueError, FileNotFoundError: naming the file that is missing or not sound.
    """
    crop_size = _checked_size(crop_size)
    check_center(crop_size, short_side)

    def read(index: int) -> tuple[np.ndarray, int]:
        image, label = read_image(source, index)
        return center_crop(image, short_side, crop_size), label

    plan = segmentation_data.batch_rows(
        range(len(source)), batch_size, process_index, process_count
    )
    for rows, samples in zip(plan, segmentation_data.read_ahead(plan, read), strict=True):
        batch = {
            "image": np.zeros((len(rows), *crop_size, 3), np.uint8),
            "label": np.full(len(rows), -1, np.int32),
            "valid_mask": np.array([i >= 0 for i in rows]),
            "index": np.array(rows, np.int32),
        }
        for k, sample in enumerate(samples):
            if sample is not None:
                batch["image"][k], batch["label"][k] = sample
        yield batch


def audit_images(source: ImageSource, max_images: int) -> str:
    """Decodes `max_images` of the images, spread evenly, and says what was found.

    Not all of them, as a set of this kind may have millions.

    Raises:
        ValueError, FileNotFoundError: naming the file that is missing or not sound.
    """

    def look(index: int) -> tuple[int, int, int]:
        image, label = read_image(source, index)
        return *image.size, label

    count = min(max_images, len(source))
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(look, [i * len(source) // count for i in range(count)]))
    widths, heights, labels = zip(*found, strict=True)
    return (
        f"{len(source)} images of {source.classes.num_classes} classes; looked at {count}, of "
        f"{len(set(labels))} classes: {min(heights)}..{max(heights)} high, "
        f"{min(widths)}..{max(widths)} wide"
    )


def _checked_size(crop_size: tuple[int, int]) -> tuple[int, int]:
    crop_size = tuple(int(c) for c in crop_size)
    if len(crop_size) != 2 or min(crop_size) < 1:
        raise ValueError(f"crop_size must be (height, width), got {crop_size}")
    return crop_size
