"""Augmentation on the device, inside the jitted step: colors, blur, erasing and class mixing.

Random numbers depend on the seed, the step and an image's place in the batch and on nothing else:
neither on the devices nor on the size of the batch. `draw` makes all of them for a batch, `apply`
changes the images accordingly; the training step and `tools.show_batch` call both.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from hrnet_jax.models import normalize

# Brightness of RGB as in ITU-R BT.601, which both Pillow and torchvision take.
LUMA = (0.299, 0.587, 0.114)
# The random numbers must be those of no step's dropout: steps are below 2 ** 31.
_COLOR_STREAM = 2**32 - 1
_MIX_STREAM = 2**32 - 2
_PHOTOMETRIC_STREAM = 2**32 - 3
_BLUR_STREAM = 2**32 - 4
_ERASE_STREAM = 2**32 - 5

# Ranges of mmsegmentation's PhotoMetricDistortion: shift of all channels, factors of contrast and
# saturation in 1 +- this, and turn of the hue as a fraction of the circle (18 of OpenCV's 180).
BRIGHTNESS_SHIFT, CONTRAST_RANGE, SATURATION_RANGE, HUE_TURN = 32.0, 0.5, 0.5, 0.1
# Fraction of the image that is erased and aspect ratio of the rectangle (arXiv 1708.04896, 4.3).
ERASED_AREA, ERASED_ASPECT = (0.02, 0.33), 0.3


@dataclass(frozen=True)
class Settings:
    """What happens on the device; the fields are the keys of config.data with these names.

    Attributes:
      color_jitter: 0..1, see `color_factors`.
      class_mix: fraction of the images that get classes of others, see `mix_classes`.
      photometric: 0..1, fraction of the ranges of `photometric_numbers`.
      blur: largest standard deviation in pixels, see `blur_sigmas`.
      erasing: fraction of the images in which a rectangle is erased, see `erased_boxes`.
    """

    color_jitter: float = 0.0
    class_mix: float = 0.0
    photometric: float = 0.0
    blur: float = 0.0
    erasing: float = 0.0


def draw(
    settings: Settings,
    batch: Mapping[str, Any],
    seed: int,
    step: jax.Array | int,
    ignore_label: int = 255,
) -> dict[str, Any]:
    """The batch with its classes mixed, labels of erased pixels, and numbers for `apply`.

    Args:
      settings: what to do.
      batch: "image" uint8 [N, H, W, 3] and "label" [N, H, W] or [N].
      seed: of the run.
      step: the optimizer step, an integer scalar.
      ignore_label: label of no class, which erased pixels get.

    Returns:
      The batch; for what is switched on also "color", "photometric", "blur" and "erased", numbers
      whose first axis is N.
    """
    batch = dict(batch)
    if settings.class_mix:
        batch["image"], batch["label"] = mix_classes(
            batch["image"], batch["label"], seed, step, settings.class_mix, ignore_label
        )
    count, height, width, _ = batch["image"].shape
    if settings.color_jitter:
        batch["color"] = color_factors(seed, step, count, settings.color_jitter)
    if settings.photometric:
        batch["photometric"] = photometric_numbers(seed, step, count, settings.photometric)
    if settings.blur:
        batch["blur"] = blur_sigmas(seed, step, count, settings.blur)
    if settings.erasing:
        boxes = erased_boxes(seed, step, count, settings.erasing, (height, width))
        batch["erased"] = boxes
        if batch["label"].ndim == 3:
            inside = inside_boxes(boxes, (height, width))
            batch["label"] = jnp.where(
                inside, jnp.asarray(ignore_label, batch["label"].dtype), batch["label"]
            )
    return batch


def apply(settings: Settings, batch: Mapping[str, Any]) -> jax.Array:
    """The images of a batch of `draw` with the changes that its numbers stand for.

    Returns:
      [N, H, W, 3] in 0..255: float32, or the images as they are if nothing is switched on.
    """
    images = batch["image"]
    if "color" in batch:
        images = adjust_color(images, batch["color"])
    if "photometric" in batch:
        images = distort_colors(images, batch["photometric"])
    if "blur" in batch:
        images = blur(images, batch["blur"], settings.blur)
    if "erased" in batch:
        inside = inside_boxes(batch["erased"], images.shape[1:3])
        mean = jnp.asarray(normalize.MEAN, jnp.float32) * 255
        images = jnp.where(inside[..., None], mean, images.astype(jnp.float32))
    return images


def color_factors(seed: int, step: jax.Array | int, count: int, strength: float) -> jax.Array:
    """Factors of brightness, contrast and saturation, uniform in [1 - strength, 1 + strength].

    Args:
      seed: of the run.
      step: the optimizer step, an integer scalar.
      count: number of images.
      strength: 0..1.

    Returns:
      float32 [count, 3].
    """
    return jax.vmap(
        lambda key: jax.random.uniform(key, (3,), jnp.float32, 1 - strength, 1 + strength)
    )(_keys(seed, _COLOR_STREAM, step, count))


def _keys(seed: int, stream: int, step: jax.Array, count: int) -> jax.Array:
    """One key for each place in the batch."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), step)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))


def adjust_color(images: jax.Array, factors: jax.Array) -> jax.Array:
    """Changes brightness, contrast and saturation as torchvision's ColorJitter does.

    With L the luma of a pixel and M the mean luma of its image, brightness b maps x to b * x,
    contrast c to c * x + (1 - c) * M, saturation s to s * x + (1 - s) * L. Their order does not
    matter, since values are neither rounded nor clipped in between, only clipped at the end;
    ColorJitter, which does both after each, is the same in a random order but for that.

    Args:
      images: uint8 RGB [N, H, W, 3]; fewer than 2 ** 24 pixels each.
      factors: [N, 3], as `color_factors` gives them. Ones leave an image as it is.

    Returns:
      float32 [N, H, W, 3] in 0..255.
    """
    n, height, width, _ = images.shape
    # A sum of integers, rows first, which is fast: the same bits however images are split.
    rows = jnp.sum(images.reshape(n, height, width * 3), axis=1, dtype=jnp.uint32)
    means = jnp.sum(rows.reshape(n, width, 3), axis=1, dtype=jnp.uint32) / (height * width)
    mean_luma = sum(means[:, i].astype(jnp.float32) * LUMA[i] for i in range(3))
    brightness, contrast, saturation = (factors[:, i] for i in range(3))
    # All three at once: own * x + shared * L + shift.
    own = (saturation * contrast * brightness)[:, None, None]
    shared = ((1 - saturation) * contrast * brightness)[:, None, None]
    shift = ((1 - contrast) * brightness * mean_luma)[:, None, None]
    # Channel by channel: fewer and smaller arrays where XLA does not fuse them (CPU).
    planes = [images[..., i].astype(jnp.float32) for i in range(3)]
    common = shared * sum(plane * LUMA[i] for i, plane in enumerate(planes)) + shift
    return jnp.stack([jnp.clip(own * plane + common, 0, 255) for plane in planes], axis=-1)


def mix_classes(
    images: jax.Array,
    labels: jax.Array,
    seed: int,
    step: jax.Array | int,
    fraction: float,
    ignore_label=255,
) -> tuple[jax.Array, jax.Array]:
    """Pastes some classes of the next image of the batch over an image, with their labels.

    The pixels of each of the next image's classes are taken with probability 1/2, all or none of
    them, at their own place; those to be ignored are not. The last image's next one is the first.
    This is ClassMix (arXiv 2007.07936) with true labels in the place of predicted ones: classes
    appear in surroundings that no frame shows.

    Args:
      images: [N, H, W, 3], N > 1.
      labels: [N, H, W] integers.
      seed: of the run.
      step: the optimizer step, an integer scalar.
      fraction: probability that an image gets anything pasted, 0..1.
      ignore_label: label of no class.

    Returns:
      Images and labels, of the same shapes and types.
    """

    def draw(key):
        chosen, numbers = jax.random.split(key)
        chosen = jax.random.uniform(chosen, (), jnp.float32) < fraction
        return chosen, jax.random.bits(numbers, (2,), jnp.uint32)

    chosen, numbers = jax.vmap(draw)(_keys(seed, _MIX_STREAM, step, len(images)))
    chosen, factor, shift = (x[:, None, None] for x in (chosen, numbers[:, 0] | 1, numbers[:, 1]))
    next_images, next_labels = jnp.roll(images, -1, axis=0), jnp.roll(labels, -1, axis=0)
    # The top bit of a random odd multiple says whether a class is taken, so that there is no table
    # of classes to be looked up for each pixel.
    taken = (next_labels.astype(jnp.uint32) * factor + shift) >> 31 == 1
    pasted = chosen & taken & (next_labels != ignore_label)
    return (
        jnp.where(pasted[..., None], next_images, images),
        jnp.where(pasted, next_labels, labels),
    )


def photometric_numbers(seed: int, step: jax.Array | int, count: int, strength: float) -> jax.Array:
    """What mmsegmentation's PhotoMetricDistortion draws for an image.

    Columns: shift of the brightness, factor of the contrast, factor of the saturation, turn of the
    hue as a fraction of the circle, and 1 where the contrast comes before saturation and hue, else
    0. Each of the first four is drawn with probability 1/2, else it changes nothing.

    Args:
      seed: of the run.
      step: the optimizer step, an integer scalar.
      count: number of images.
      strength: 0..1, fraction of the ranges above; mmsegmentation has 1.

    Returns:
      float32 [count, 5].
    """
    ranges = jnp.array([BRIGHTNESS_SHIFT, CONTRAST_RANGE, SATURATION_RANGE, HUE_TURN], jnp.float32)
    neutral = jnp.array([0, 1, 1, 0], jnp.float32)

    def numbers(key):
        uniform = jax.random.uniform(key, (9,), jnp.float32)
        changed = neutral + strength * ranges * (2 * uniform[:4] - 1)
        values = jnp.where(uniform[4:8] < 0.5, changed, neutral)
        return jnp.append(values, (uniform[8] < 0.5).astype(jnp.float32))

    return jax.vmap(numbers)(_keys(seed, _PHOTOMETRIC_STREAM, step, count))


def distort_colors(images: jax.Array, numbers: jax.Array) -> jax.Array:
    """Changes brightness, contrast, saturation and hue as mmsegmentation's PhotoMetricDistortion.

    Brightness is added and contrast multiplied, each clipped to 0..255. Saturation and hue are
    those of HSV. mmsegmentation rounds to bytes after each; nothing is rounded here.

    Args:
      images: RGB [N, H, W, 3] in 0..255.
      numbers: [N, 5], as `photometric_numbers` gives them.

    Returns:
      float32 [N, H, W, 3] in 0..255.
    """
    shift, contrast, saturation, turn, first = (numbers[:, i, None, None] for i in range(5))
    planes = [images[..., i].astype(jnp.float32) for i in range(3)]
    planes = [jnp.clip(x + shift, 0, 255) for x in planes]
    early = jnp.where(first == 1, contrast, 1)
    planes = _turned_hue([jnp.clip(x * early, 0, 255) for x in planes], saturation, turn)
    late = jnp.where(first == 1, 1, contrast)
    return jnp.stack([jnp.clip(x * late, 0, 255) for x in planes], axis=-1)


def _turned_hue(planes, saturation, turn):
    """Saturation and hue of HSV changed, for red, green and blue [N, H, W] each."""
    red, green, blue = planes
    value, low = (
        jnp.maximum(jnp.maximum(red, green), blue),
        jnp.minimum(jnp.minimum(red, green), blue),
    )
    chroma = value - low
    safe = jnp.where(chroma > 0, chroma, 1)
    # Sixths of the circle, 0 for red.
    sector = jnp.where(
        value == red,
        (green - blue) / safe,
        jnp.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    sector = sector + 6 * turn
    chroma = jnp.minimum(chroma * saturation, value)  # at most full saturation

    def plane(place):
        at = jnp.mod(sector + place, 6)
        return value - chroma * jnp.clip(jnp.minimum(at, 4 - at), 0, 1)

    return [plane(5), plane(3), plane(1)]


def blur_sigmas(seed: int, step: jax.Array | int, count: int, largest: float) -> jax.Array:
    """Standard deviations of the blur in pixels: 0 for half of the images, else in 0..largest.

    Returns:
      float32 [count].
    """

    def sigma(key):
        uniform = jax.random.uniform(key, (2,), jnp.float32)
        return jnp.where(uniform[0] < 0.5, largest * uniform[1], 0)

    return jax.vmap(sigma)(_keys(seed, _BLUR_STREAM, step, count))


def blur(images: jax.Array, sigmas: jax.Array, largest: float) -> jax.Array:
    """Gaussian blur; beyond the edges, the pixels at the edge go on.

    Args:
      images: [N, H, W, 3].
      sigmas: [N] standard deviations in pixels; 0 leaves an image as it is.
      largest: the largest that can occur; the kernel ends at three of it.

    Returns:
      float32 [N, H, W, 3].
    """
    radius = max(1, math.ceil(3 * largest))
    places = jnp.arange(-radius, radius + 1, dtype=jnp.float32)
    narrow = jnp.maximum(sigmas, 1e-3)[:, None]  # so narrow that one pixel is left
    kernels = jnp.exp(-0.5 * jnp.square(places / narrow))
    kernels /= jnp.sum(kernels, axis=1, keepdims=True)
    blurred = images.astype(jnp.float32)
    for axis in (1, 2):
        length = blurred.shape[axis]
        padding = [(0, 0)] * 4
        padding[axis] = (radius, radius)
        padded = jnp.pad(blurred, padding, mode="edge")
        blurred = sum(
            kernels[:, k, None, None, None] * jax.lax.slice_in_dim(padded, k, k + length, axis=axis)
            for k in range(2 * radius + 1)
        )
    return blurred


def erased_boxes(
    seed: int, step: jax.Array | int, count: int, fraction: float, size: tuple[int, int]
) -> jax.Array:
    """Rectangles to erase (Zhong et al. 2017, arXiv 1708.04896): top, left, height, width.

    The area is uniform in 2 % to 33 % of the image, the logarithm of height / width uniform for
    0.3 to 1 / 0.3. A side that would be longer than the image ends with it, where the paper draws
    again.

    Args:
      seed: of the run.
      step: the optimizer step, an integer scalar.
      count: number of images.
      fraction: probability that an image gets a rectangle, 0..1; others get one without pixels.
      size: (height, width) of the images.

    Returns:
      int32 [count, 4].
    """

    def box(key):
        chosen, area, aspect, *place = jax.random.uniform(key, (5,), jnp.float32)
        area = ERASED_AREA[0] + (ERASED_AREA[1] - ERASED_AREA[0]) * area
        root = jnp.sqrt(area * size[0] * size[1])
        stretch = jnp.exp(jnp.log(ERASED_ASPECT) * (0.5 - aspect))
        sides = [
            jnp.minimum(jnp.round(side), whole)
            for side, whole in zip((root * stretch, root / stretch), size, strict=True)
        ]
        corner = [
            jnp.floor(p * (whole - side + 1))
            for p, whole, side in zip(place, size, sides, strict=True)
        ]
        return jnp.where(chosen < fraction, jnp.stack([*corner, *sides]), 0).astype(jnp.int32)

    return jax.vmap(box)(_keys(seed, _ERASE_STREAM, step, count))


def inside_boxes(boxes: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Where the rectangles lie: int [N, 4] of `erased_boxes` -> bool [N, H, W]."""
    top, left, height, width = (boxes[:, i, None, None] for i in range(4))
    rows, columns = jnp.arange(size[0])[:, None], jnp.arange(size[1])[None]
    return (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)
