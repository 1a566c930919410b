"""The training augmentation in NumPy: random scale, crop, flip, brightness and warp.

The recipe is that of the official HRNet code: the whole image is resized by a random factor, padded
at the bottom and on the right where it is smaller than the crop, and cropped at random. Here the
crop is chosen first and only the source pixels under it are resized, at the sampling positions of
the whole image; the result is bit-identical. Rotation, shear and perspective happen in the same
resampling (`warp`), so that an image is never interpolated twice.

NumPy was the fastest: a crop of 512x1024 takes 30 ms of a core with TensorFlow's gather and
arithmetic, 12 ms with its crop_and_resize (whose single-precision positions are also off by 1e-4
pixels), and 9 ms here, with the GIL released for most of the time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hrnet_jax.data.pipeline import warp
from hrnet_jax.data.sources.source import IGNORE_LABEL

Window = tuple[slice, slice]  # rows and columns

# Rows resized at a time, so that the intermediate values stay in the cache.
_BLOCK = 32


def checked_crop_size(crop_size: Sequence[int]) -> tuple[int, int]:
    """Raises ValueError for anything but two positive numbers."""
    crop_size = tuple(int(c) for c in crop_size)
    if len(crop_size) != 2 or min(crop_size) < 1:
        raise ValueError(f"crop_size must be (height, width), got {crop_size}")
    return crop_size


@dataclass(frozen=True)
class Augmentation:
    """The settings of the augmentation; the fields are the keys of config.data with these names.

    Attributes:
        crop_size: (height, width) of the samples.
        scale_min: smallest factor of the random scale.
        scale_max: largest factor, inclusive.
        scale_step: distance of the factors (official: 0.1); 0 draws from the whole interval.
        flip: flip half of the samples left to right.
        brightness: add an integer in [-brightness, brightness] to all channels.
        rotation: largest angle in degrees, to either side.
        shear: largest angle in degrees by which vertical lines lean, to either side.
        perspective: how far each corner of the crop moves at most, as a fraction of its sides.

    Raises:
        ValueError: for a value out of range.
    """

    crop_size: tuple[int, int]
    scale_min: float = 0.5
    scale_max: float = 2.1
    scale_step: float = 0.1
    flip: bool = True
    brightness: int = 0
    rotation: float = 0.0
    shear: float = 0.0
    perspective: float = 0.0

    def __post_init__(self):
        object.__setattr__(self, "crop_size", checked_crop_size(self.crop_size))
        low, high, step = self.scale_min, self.scale_max, self.scale_step
        if not 0 < low <= high:
            raise ValueError(f"need 0 < scale_min <= scale_max, got {low} and {high}")
        if step < 0:
            raise ValueError(f"scale_step must be 0 or more, got {step}")
        if step and abs((high - low) / step - round((high - low) / step)) > 1e-6:
            raise ValueError(
                f"scale_step {step} does not divide the interval from scale_min {low} to "
                f"scale_max {high}"
            )
        if isinstance(self.brightness, bool) or not 0 <= self.brightness <= 255:
            raise ValueError(f"brightness is the largest shift, 0..255, got {self.brightness!r}")
        for name, value, limit in (
            ("rotation", self.rotation, 180),
            ("shear", self.shear, 60),
            ("perspective", self.perspective, 0.2),
        ):
            if not 0 <= value <= limit:
                raise ValueError(f"{name} must be in 0..{limit}, got {value!r}")

    @property
    def warps(self) -> bool:
        """Whether samples are rotated, sheared or seen in perspective."""
        return any((self.rotation, self.shear, self.perspective))


class View(NamedTuple):
    """What one augmented sample shows of its image.

    Attributes:
        scaled_size: (height, width) the whole image would be resized to.
        offset: (top, left) of the crop in the resized image.
        flip: flip left to right.
        shift: added to all channels.
        matrix: from points of the crop to points of the unwarped crop, see `warp.matrix`; None:
            they are the same.
    """

    scaled_size: tuple[int, int]
    offset: tuple[int, int]
    flip: bool
    shift: int
    matrix: warp.Matrix | None = None


def sample_view(
    rng: np.random.Generator,
    size: tuple[int, int],
    augmentation: Augmentation,
    focus: tuple[int, int] | None = None,
) -> View:
    """Draws a view of an image.

    Args:
        rng: source of the random numbers.
        size: (height, width) of the image.
        augmentation: the settings.
        focus: (row, column) of a pixel that must be in the crop, at any place of it. A warp leaves
            it where it is.
    """
    low_scale, high_scale = augmentation.scale_min, augmentation.scale_max
    crop_size = augmentation.crop_size
    # Always four draws in this order, so that one setting does not change the draws of another.
    which, place, flipped, shift = rng.random(), rng.random(2), rng.random(), rng.random()
    if step := augmentation.scale_step:
        steps = round((high_scale - low_scale) / step)
        scale = low_scale + int(which * (steps + 1)) * step
    else:
        scale = low_scale + which * (high_scale - low_scale)
    scaled = scaled_size(size, scale)
    offset, pivot = [], []
    for axis, (p, whole, crop) in enumerate(zip(place, scaled, crop_size, strict=True)):
        low, high = 0, max(whole - crop, 0)
        if focus is not None:
            at = int((focus[axis] + 0.5) * whole / size[axis])
            low, high = max(low, min(at - crop + 1, high)), min(high, at)
        offset.append(low + int(p * (high - low + 1)))
        pivot.append(min(crop, whole) / 2 if focus is None else at + 0.5 - offset[-1])
    return View(
        scaled_size=scaled,
        offset=(offset[0], offset[1]),
        flip=augmentation.flip and bool(flipped < 0.5),
        shift=int(shift * (2 * augmentation.brightness + 1)) - augmentation.brightness,
        matrix=_sample_matrix(rng, augmentation, pivot) if augmentation.warps else None,
    )


def _sample_matrix(
    rng: np.random.Generator, augmentation: Augmentation, pivot: Sequence[float]
) -> warp.Matrix:
    """A random warp that leaves the pivot, (y, x) in the crop, at its place."""
    angle, lean, corners = rng.uniform(-1, 1), rng.uniform(-1, 1), rng.uniform(-1, 1, (4, 2))
    return warp.matrix(
        augmentation.rotation * angle,
        augmentation.shear * lean,
        augmentation.perspective * corners,
        pivot,
        augmentation.crop_size,
    )


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """The size of an image resized by `scale`: the long side is rounded, the other follows it."""
    longest = max(size)
    scaled_longest = int(longest * scale + 0.5)
    height, width = (max(1, int(n * scaled_longest / longest + 0.5)) for n in size)
    return height, width


class _Axis(NamedTuple):
    low: np.ndarray  # int64 [n], index of the source pixel at or before each position
    high: np.ndarray  # int64 [n], index of the one after
    weight: np.ndarray  # float32 [n], fraction of `high`
    nearest: np.ndarray  # int64 [n]

    def moved(self, by: int) -> "_Axis":
        return self._replace(low=self.low + by, high=self.high + by, nearest=self.nearest + by)


def _axis(size: int, scaled: int, offset: int, length: int) -> _Axis:
    """Where `length` pixels of the resized axis, from `offset` on, lie in the source axis.

    Pixel centers are at half integers (OpenCV's INTER_LINEAR, PyTorch's align_corners=False) and
    positions beyond the outermost centers take the edge pixel. Nearest is floor(i * size / scaled)
    (OpenCV's INTER_NEAREST). The result is shorter than `length` if the resized axis ends before.
    """
    index = np.arange(offset, min(offset + length, scaled))
    position = (index + 0.5) * (size / scaled) - 0.5
    floor = np.floor(position)
    low = floor.astype(np.int64)
    return _Axis(
        low=np.clip(low, 0, size - 1),
        high=np.clip(low + 1, 0, size - 1),
        weight=(position - floor).astype(np.float32),
        nearest=index * size // scaled,
    )


def window(view: View, size: tuple[int, int], crop_size: tuple[int, int]) -> Window:
    """The rows and columns of an image of this size that a view reads."""
    if view.matrix is not None:
        return warp.window(_to_image(view, size), size, crop_size)
    spans = []
    for args in zip(size, view.scaled_size, view.offset, crop_size, strict=True):
        axis = _axis(*args)
        first, last = min(axis.low[0], axis.nearest[0]), max(axis.high[-1], axis.nearest[-1])
        spans.append(slice(int(first), int(last) + 1))
    return spans[0], spans[1]


def apply_view(
    image: np.ndarray,
    label: np.ndarray,
    view: View,
    crop_size: tuple[int, int],
    *,
    size: tuple[int, int] | None = None,
    origin: tuple[int, int] = (0, 0),
) -> tuple[np.ndarray, np.ndarray]:
    """Resizes, crops, warps, pads, shifts and flips; labels are never interpolated.

    Args:
        image: uint8 [H, W, 3], the image or its part `window`.
        label: uint8 [H, W].
        view: the part to show.
        crop_size: (height, width) of the result.
        size: (height, width) of the whole image; default: that of `label`.
        origin: (row, column) of the first given pixel in the whole image.

    Returns:
        uint8 [*crop_size, 3], padded with 0, and uint8 [*crop_size], padded with IGNORE_LABEL. What
        a warp shows from outside the image is IGNORE_LABEL, too, and of `warp.OUTSIDE_COLOR`.
    """
    if view.matrix is not None:
        size = size or label.shape
        pixels, ids = warp.apply(
            image, label, _to_image(view, size), crop_size, size, origin, view.shift
        )
        return (pixels[:, ::-1], ids[:, ::-1]) if view.flip else (pixels, ids)
    rows, columns = (
        _axis(*args).moved(-first)
        for *args, first in zip(
            size or label.shape, view.scaled_size, view.offset, crop_size, origin, strict=True
        )
    )
    height, width = len(rows.low), len(columns.low)
    first = 0
    if view.flip:
        # Reversed positions give the flipped image; the padding moves to the left.
        columns = _Axis(*(values[::-1] for values in columns))
        first = crop_size[1] - width
    pixels = np.zeros((*crop_size, 3), np.uint8)
    _resample(image, rows, columns, view.shift, pixels[:height, first : first + width])
    ids = np.full(crop_size, IGNORE_LABEL, np.uint8)
    ids[:height, first : first + width] = label.take(rows.nearest, 0).take(columns.nearest, 1)
    return pixels, ids


def _to_image(view: View, size: tuple[int, int]) -> np.ndarray:
    """The matrix from points (x, y, 1) of the warped crop to points of the image."""
    (top, left), (height, width) = view.offset, view.scaled_size
    scale = np.diag([size[1] / width, size[0] / height, 1.0])
    move = np.array([[1.0, 0.0, left], [0.0, 1.0, top], [0.0, 0.0, 1.0]])
    return scale @ move @ np.array(view.matrix)


def _resample(image: np.ndarray, rows: _Axis, columns: _Axis, shift: int, out: np.ndarray) -> None:
    """Linear interpolation in float32, rows first, rounded half up; writes uint8 to `out`."""
    left = min(columns.low[0], columns.low[-1])
    right = max(columns.high[0], columns.high[-1]) + 1
    # The three channels become three columns: gathering single numbers is NumPy's fast case.
    channel = np.arange(3)
    low = ((columns.low - left)[:, None] * 3 + channel).ravel()
    high = ((columns.high - left)[:, None] * 3 + channel).ravel()
    weight = np.repeat(columns.weight, 3)
    for start in range(0, len(rows.low), _BLOCK):
        block = slice(start, start + _BLOCK)
        above = image[rows.low[block], left:right].astype(np.float32)
        below = image[rows.high[block], left:right].astype(np.float32)
        below -= above
        below *= rows.weight[block, None, None]
        above += below
        above = above.reshape(len(above), -1)
        before = above.take(low, 1, mode="clip")
        after = above.take(high, 1, mode="clip")
        after -= before
        after *= weight
        after += before
        after += 0.5 + shift
        np.clip(after, 0, 255, out=after)
        out[block] = after.astype(np.uint8).reshape(len(after), -1, 3)
