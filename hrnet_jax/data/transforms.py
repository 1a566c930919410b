"""The training augmentation: random scale, crop, flip and brightness, as pure functions.

The recipe is that of the official HRNet code: the whole image is resized by a random factor, padded
at the bottom and on the right where it is smaller than the crop, and cropped at random. Here the
crop is chosen first and only the source pixels under it are read and resized, at exactly the
sampling positions the whole image would have; the result is the same to the bit.
"""

from typing import NamedTuple

import tensorflow as tf

from hrnet_jax.data.source import IGNORE_LABEL

NUM_RANDOM = 5


class View(NamedTuple):
    """What one augmented sample shows of its image; scalars and pairs of tensors.

    Attributes:
        scaled_size: int32 [2], size the whole image would be resized to.
        offset: int32 [2], top left corner of the crop in the resized image.
        flip: bool, mirror left to right.
        shift: int32, added to all channels.
    """

    scaled_size: tf.Tensor
    offset: tf.Tensor
    flip: tf.Tensor
    shift: tf.Tensor


def sample_view(
    random: tf.Tensor,
    size: tf.Tensor,
    *,
    crop_size: tuple[int, int],
    scale_min: float,
    scale_max: float,
    scale_step: float,
    flip: bool,
    brightness: int,
) -> View:
    """Turns uniform random numbers into a view.

    Args:
        random: float64 [NUM_RANDOM] in [0, 1).
        size: int32 [2], height and width of the image.
        crop_size: of the result.
        scale_min: smallest factor.
        scale_max: largest factor, inclusive.
        scale_step: distance of the factors, e.g. 0.1; 0 draws from the whole interval.
        flip: whether half of the views are mirrored.
        brightness: the shift is an integer in [-brightness, brightness].
    """
    steps = round((scale_max - scale_min) / scale_step) if scale_step else 0
    if steps:
        # Tenths are not exact in binary, so the factor is made from the integer, not by summing.
        scale = scale_min + tf.floor(random[0] * (steps + 1)) * scale_step
    else:
        scale = scale_min + random[0] * (scale_max - scale_min)
    exact = tf.cast(size, tf.float64)
    longest = tf.reduce_max(exact)
    scaled_longest = tf.floor(longest * scale + 0.5)
    # For the long side this is the rounded value itself; the short side rounds once more.
    scaled = tf.floor(exact * scaled_longest / longest + 0.5)
    scaled = tf.maximum(scaled, 1)
    room = tf.maximum(scaled - tf.constant(crop_size, tf.float64), 0)
    offset = tf.floor(random[1:3] * (room + 1))
    shift = tf.floor(random[4] * (2 * brightness + 1)) - brightness
    return View(
        scaled_size=tf.cast(scaled, tf.int32),
        offset=tf.cast(offset, tf.int32),
        flip=(random[3] < 0.5) if flip else tf.constant(False),
        shift=tf.cast(shift, tf.int32),
    )


class _Axis(NamedTuple):
    low: tf.Tensor  # int32 [n], index of the source pixel at or before each position
    high: tf.Tensor  # int32 [n], index of the one after
    weight: tf.Tensor  # float32 [n], share of `high`
    nearest: tf.Tensor  # int32 [n]


def _axis(size: tf.Tensor, scaled: tf.Tensor, offset: tf.Tensor, length: int) -> _Axis:
    """Where `length` pixels of the resized axis, from `offset` on, lie in the source axis.

    Pixel centres are at half integers (OpenCV's INTER_LINEAR, PyTorch's align_corners=False) and
    positions beyond the outermost centres take the edge pixel. Nearest is floor(i * size / scaled)
    (OpenCV's INTER_NEAREST). Fewer than `length` positions if the resized axis ends before.
    """
    count = tf.minimum(length, scaled - offset)
    index = tf.cast(offset + tf.range(count), tf.float64)
    ratio = tf.cast(size, tf.float64) / tf.cast(scaled, tf.float64)
    position = (index + 0.5) * ratio - 0.5
    floor = tf.floor(position)
    low = tf.cast(floor, tf.int32)
    return _Axis(
        low=tf.clip_by_value(low, 0, size - 1),
        high=tf.clip_by_value(low + 1, 0, size - 1),
        weight=tf.cast(position - floor, tf.float32),
        nearest=tf.minimum(tf.cast(tf.floor(index * ratio), tf.int32), size - 1),
    )


def _linear(image: tf.Tensor, axis: _Axis, dim: int) -> tf.Tensor:
    """Linear interpolation along one axis, in float32."""
    low = tf.cast(tf.gather(image, axis.low, axis=dim), tf.float32)
    high = tf.cast(tf.gather(image, axis.high, axis=dim), tf.float32)
    shape = [1, 1, 1]
    shape[dim] = -1
    return low + (high - low) * tf.reshape(axis.weight, shape)


def apply_view(
    image: tf.Tensor, label: tf.Tensor, view: View, crop_size: tuple[int, int]
) -> tuple[tf.Tensor, tf.Tensor]:
    """Resizes, crops, pads, shifts and mirrors; labels are never interpolated.

    Args:
        image: uint8 [H, W, 3].
        label: uint8 [H, W].
        view: what to show.
        crop_size: of the result.

    Returns:
        uint8 [*crop_size, 3], padded with 0, and uint8 [*crop_size], padded with IGNORE_LABEL.
    """
    size = tf.shape(label)
    rows, columns = (
        _axis(size[i], view.scaled_size[i], view.offset[i], crop_size[i]) for i in range(2)
    )
    # Columns first: it cuts the rows down to the crop's width, on uint8.
    region = image[rows.low[0] : rows.high[-1] + 1]
    rows_in_region = rows._replace(low=rows.low - rows.low[0], high=rows.high - rows.low[0])
    pixels = _linear(_linear(region, rows_in_region, 0), columns, 1)
    pixels = tf.floor(pixels + 0.5) + tf.cast(view.shift, tf.float32)
    pixels = tf.cast(tf.clip_by_value(pixels, 0, 255), tf.uint8)
    label = tf.gather(tf.gather(label, rows.nearest), columns.nearest, axis=1)
    pad = tf.constant(crop_size) - tf.shape(label)
    pixels = tf.pad(pixels, [[0, pad[0]], [0, pad[1]], [0, 0]])
    label = tf.pad(label, [[0, pad[0]], [0, pad[1]]], constant_values=IGNORE_LABEL)
    if tf.get_static_value(view.flip) is not False:
        pixels = tf.cond(view.flip, lambda: tf.reverse(pixels, [1]), lambda: pixels)
        label = tf.cond(view.flip, lambda: tf.reverse(label, [1]), lambda: label)
    return tf.ensure_shape(pixels, (*crop_size, 3)), tf.ensure_shape(label, crop_size)
