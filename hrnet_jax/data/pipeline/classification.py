"""Batches of images with one class each, for training and for evaluation of a classifier.

The augmentation is that of the official ImageNet code, which uses torchvision's: a crop of random
area and aspect ratio, resized with antialiasing, flipped or not; for evaluation the short side is
resized and the center cropped. Pillow resizes in both, so the pixels are the same.
`batches` says how the order follows from seed and step.
"""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image

from hrnet_jax.data.images.decode import decode_image
from hrnet_jax.data.pipeline.augment import checked_crop_size
from hrnet_jax.data.pipeline.batches import (
    BatchPlan,
    batch_rows,
    read_ahead,
    sample_dataset,
    sample_rng,
)
from hrnet_jax.data.pipeline.order import WHOLE, Shard, sample_order
from hrnet_jax.data.sources.image_folder import ImageSource

# Images with a shorter side are rejected: nothing can be recognized in them.
MIN_SIDE = 8
# A crop is drawn again until it lies in the image, at most so many times.
_ATTEMPTS = 10


class CropView(NamedTuple):
    """What one augmented sample shows of its image: this box, flipped or not."""

    top: int
    left: int
    height: int
    width: int
    flip: bool


@dataclass(frozen=True)
class CropAugmentation:
    """The settings of the augmentation; the fields are the keys of config.data with these names.

    Attributes:
        crop_size: (height, width) of the samples.
        area_min: the crop's fraction of the image area is uniform between this and 1.
        aspect_max: the logarithm of width / height is uniform between its negative and itself.
        flip: flip half of the samples left to right.

    Raises:
        ValueError: for a value out of range.
    """

    crop_size: tuple[int, int]
    area_min: float = 0.08
    aspect_max: float = 4 / 3
    flip: bool = True

    def __post_init__(self):
        object.__setattr__(self, "crop_size", checked_crop_size(self.crop_size))
        if not 0 < self.area_min <= 1:
            raise ValueError(f"area_min must be above 0 and at most 1, got {self.area_min}")
        if self.aspect_max < 1:
            raise ValueError(f"aspect_max must be 1 or more, got {self.aspect_max}")


def sample_crop(
    rng: np.random.Generator, size: tuple[int, int], augmentation: CropAugmentation
) -> CropView:
    """Draws a crop of an image.

    Args:
        rng: source of the random numbers.
        size: (height, width) of the image.
        augmentation: the settings.
    """
    area_min, aspect_max = augmentation.area_min, augmentation.aspect_max
    # Always the same number of draws, so that one setting does not change the draws of another.
    shapes, place, flipped = rng.random((_ATTEMPTS, 2)), rng.random(2), rng.random()
    height, width = size
    top = left = None
    for fraction, shape in shapes:
        area = height * width * (area_min + fraction * (1 - area_min))
        aspect = math.exp((2 * shape - 1) * math.log(aspect_max))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = int(place[0] * (height - h + 1)), int(place[1] * (width - w + 1))
            break
    else:
        # The largest centered box with an allowed aspect ratio.
        w = min(width, round(height * aspect_max))
        h = min(height, round(width * aspect_max))
        top, left = (height - h) // 2, (width - w) // 2
    return CropView(top, left, h, w, augmentation.flip and bool(flipped < 0.5))


def apply_crop(image: Image.Image, view: CropView, crop_size: tuple[int, int]) -> np.ndarray:
    """The view of an RGB image at `crop_size`, uint8 [*crop_size, 3]."""
    box = view.left, view.top, view.left + view.width, view.top + view.height
    height, width = crop_size
    pixels = np.asarray(image.crop(box).resize((width, height), Image.Resampling.BILINEAR))
    return pixels[:, ::-1] if view.flip else pixels


def center_crop(image: Image.Image, short_side: int, crop_size: tuple[int, int]) -> np.ndarray:
    """Resizes an RGB image's short side and crops the center, uint8 [*crop_size, 3]."""
    width, height = image.size
    shortest = min(image.size)
    size = int(short_side * width / shortest), int(short_side * height / shortest)
    resized = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    top, left = (round((n - c) / 2) for n, c in zip(resized.shape[:2], crop_size, strict=True))
    return resized[top : top + crop_size[0], left : left + crop_size[1]]


def check_center(crop_size: tuple[int, int], short_side: int) -> None:
    """Raises ValueError if the resized images are smaller than a crop."""
    if max(crop_size) > short_side:
        raise ValueError(f"crops of {crop_size} do not fit images with a side of {short_side}")


def decode_rgb(data: bytes, name: str) -> Image.Image:
    """An image file -> upright RGB; `decode.decode_image` says which are read and how.

    Raises:
        ValueError: naming the file, if it is damaged, of an unclear kind, too small or too large.
    """
    pixels = decode_image(data, name)
    height, width = pixels.shape[:2]
    if min(width, height) < MIN_SIDE:
        raise ValueError(f"{name} is {height}x{width}: smaller than {MIN_SIDE} pixels")
    return Image.fromarray(pixels)


def read_image(source: ImageSource, index: int) -> tuple[Image.Image, int]:
    """An RGB image and its class.

    Raises:
        FileNotFoundError, ValueError: naming the file.
    """
    sample = source.records.open(index)
    return decode_rgb(sample.data, source.image_name(index)), sample.label


def train_dataset(
    source: ImageSource, augmentation: CropAugmentation, plan: BatchPlan
) -> tf.data.Dataset:
    """An endless dataset of augmented batches.

    Args:
        source: the images.
        augmentation: its crop_size is the size of the samples.
        plan: which batches, and how they are made; without service.

    Returns:
        Dataset of {"image": uint8 [b, *crop_size, 3], "label": int32 [b]}, for `batches.iterate`.

    Raises:
        ValueError: for a plan with servers.
    """
    if plan.service:
        raise ValueError(f"service {plan.service!r} is for segmentation only")

    def load(index: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        image, label = read_image(source, int(index))
        view = sample_crop(sample_rng(plan.seed, int(place)), image.size[::-1], augmentation)
        return apply_crop(image, view, augmentation.crop_size), np.int32(label)

    return sample_dataset(
        lambda place: (sample_order(len(source), plan.seed, place), place),
        load,
        {"image": ((*augmentation.crop_size, 3), tf.uint8), "label": ((), tf.int32)},
        plan,
    )


def eval_batches(
    source: ImageSource,
    *,
    batch_size: int,
    crop_size: tuple[int, int],
    short_side: int,
    shard: Shard = WHOLE,
) -> Iterator[dict[str, np.ndarray]]:
    """The center crop of every image exactly once, in order.

    The last batch is filled up with rows that do not count, so that all batches have one shape.
    Shards are contiguous slices of each batch.

    Args:
        source: the images.
        batch_size: images of a batch over all processes; shard.count must divide it.
        crop_size: (height, width) of the center crop.
        short_side: the image's shorter side is first resized to this.
        shard: the slice of each batch that this process gets.

    Yields:
        {"image": uint8 [b, *crop_size, 3], "label": int32 [b], "valid_mask": bool [b],
        "index": int32 [b], number of the image in the source}; rows that do not count have
        valid_mask False, index and label -1.

    Raises:
        ValueError, FileNotFoundError: naming the file that is missing or damaged.
    """
    crop_size = checked_crop_size(crop_size)
    check_center(crop_size, short_side)

    def read(index: int) -> tuple[np.ndarray, int]:
        image, label = read_image(source, index)
        return center_crop(image, short_side, crop_size), label

    plan = batch_rows(range(len(source)), batch_size, shard)
    for rows, samples in zip(plan, read_ahead(plan, read), strict=True):
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
    """Decodes `max_images` of the images, evenly spread, and describes them in one line.

    Not all images, since a dataset of this kind may have millions.

    Raises:
        ValueError, FileNotFoundError: naming the file that is missing or damaged.
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
