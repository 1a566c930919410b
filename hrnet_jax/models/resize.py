"""Resizing of maps, equal to PyTorch's `interpolate`, in forms that each platform computes fast.

Arrays are NHWC. Only the height is ever split over devices.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# In how many parts TPUs upsample the height: what a mesh's 'space' axis has to divide, if rows are
# to be exchanged with neighbours only.
HEIGHT_PARTS = 8
# Products of float32 there are sums of products of bfloat16: HIGHEST's of six, HIGH's of three,
# which keep 1e-5 of a value. Half the cycles for the logits, and half the time to compile.
TPU_RESIZING = lax.Precision.HIGH


def resize(
    x: jax.Array,
    size: tuple[int, int],
    *,
    method: str = "bilinear",
    align_corners: bool = False,
) -> jax.Array:
    """Resizes [N, H, W, C] to `size` = (height, width), as `torch.nn.functional.interpolate` does.

    Args:
      x: the maps.
      size: target height and width.
      method: "bilinear" (no antialiasing, also when shrinking) or "nearest" (floor, as PyTorch).
      align_corners: bilinear only; True puts the corner samples of both grids onto each other.

    Raises:
      ValueError: unknown method.
    """
    if method not in ("bilinear", "nearest"):
        raise ValueError(f"unknown resize method {method!r}; known: ['bilinear', 'nearest']")
    by_axis = functools.partial(_resize, size=size, method=method, align_corners=align_corners)
    if method == "nearest" or x.shape[1:3] == tuple(size):
        return by_axis(x)
    by_matrix = functools.partial(_resize_by_matrix, size=size, align_corners=align_corners)
    return lax.platform_dependent(x, tpu=by_matrix, default=by_axis)


def _resize(x: jax.Array, size: tuple[int, int], method: str, align_corners: bool) -> jax.Array:
    # The width first, while the maps are low. Only the height is ever split over devices.
    for axis, out in ((2, size[1]), (1, size[0])):
        if x.shape[axis] == out:
            continue
        if method == "nearest":
            x = _nearest_axis(x, axis, out)
        elif axis == 1 and out % x.shape[1] == 0:
            x = _upsample_height(x, out // x.shape[1], align_corners)
        else:
            x = _interpolate_axis(x, axis, out, align_corners)
    return x


def _resize_by_matrix(x: jax.Array, size: tuple[int, int], align_corners: bool) -> jax.Array:
    """Bilinear resizing for TPU: products with matrices that its matrix units find worth while.

    A tenth of the cycles of any other form, by the compiler's estimate, and of the time to compile.
    """
    for axis, out in ((1, size[0]), (2, size[1])):
        in_ = x.shape[axis]
        if in_ == out:
            continue
        if axis == 1 and out % in_ == 0 and in_ % HEIGHT_PARTS == 0:
            x = _upsample_parts(x, out // in_, align_corners)
        else:
            x = _interpolate_axis(x, axis, out, align_corners, copies=False, precision=TPU_RESIZING)
    return x


def _upsample_parts(x: jax.Array, factor: int, align_corners: bool) -> jax.Array:
    """Bilinear upsampling of the height, part by part, each with a row of its neighbours.

    So a height that is split over devices exchanges single rows; one matrix for all of it would
    have to gather it.
    """
    n, h, w, c = x.shape
    rows = h // HEIGHT_PARTS
    parts = x.reshape(n, HEIGHT_PARTS, rows, w, c)
    before, after = _rotate(parts[:, :, -1:], 1, 1), _rotate(parts[:, :, :1], -1, 1)
    parts = lax.concatenate([before, parts, after], 2)
    # A column more on both sides: nothing of what the rotation brought round from the far end.
    whole = np.pad(interpolation_matrix(h, h * factor, align_corners), ((0, 0), (1, 1)))
    matrices = np.stack([
        whole[k * factor : (k + rows) * factor, k : k + rows + 2] for k in range(0, h, rows)
    ])  # fmt: skip
    y = jnp.einsum(
        "por,nprwc->npowc", jnp.asarray(matrices, x.dtype), parts, precision=TPU_RESIZING
    )
    return y.reshape(n, h * factor, w, c)


def _nearest_axis(x: jax.Array, axis: int, out: int) -> jax.Array:
    in_ = x.shape[axis]
    if out % in_ == 0:
        return jnp.repeat(x, out // in_, axis=axis)
    return jnp.take(x, np.arange(out) * in_ // out, axis=axis)


def _upsample_height(x: jax.Array, factor: int, align_corners: bool) -> jax.Array:
    """Bilinear upsampling by a whole factor along the height: each of `factor` rows in the place
    of one is a weighted sum of it and its neighbours.

    So a height that is split over devices exchanges single rows; a product with an interpolation
    matrix would have to gather it. The sums are products of small matrices, one per row: written
    out as sums, each weight would be an array of the result's size on CPU.
    """
    n, h, w, c = x.shape
    weights = jnp.asarray(_upsampling_weights(h, factor, align_corners), x.dtype)
    neighbours = jnp.stack([_rotate(x, by, 1) for by in (0, 1, -1)], axis=2)
    y = jnp.einsum(
        "nhfk,nhkx->nhfx",
        jnp.broadcast_to(weights, (n, *weights.shape)),
        neighbours.reshape(n, h, 3, w * c),
        precision=lax.Precision.HIGHEST,
    )
    return y.reshape(n, h * factor, w, c)


@functools.lru_cache(maxsize=256)
def _upsampling_weights(n: int, factor: int, align_corners: bool) -> np.ndarray:
    """Weights [n, factor, 3] of a sample itself, of the one before and of the one after it."""
    place, sample = np.arange(factor), np.arange(n)[:, None]
    # Where the new sample lies between the old one and a neighbour, -1 .. 1.
    if align_corners:
        offset = (place * (n - 1) - sample * (factor - 1)) / (n * factor - 1)
    else:
        offset = np.tile((place + 0.5) / factor - 0.5, (n, 1))
        offset[0], offset[-1] = np.maximum(offset[0], 0), np.minimum(offset[-1], 0)
        if n == 1:
            offset[:] = 0
    return np.stack([1 - np.abs(offset), np.maximum(-offset, 0), np.maximum(offset, 0)], axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _rotate(x: jax.Array, by: int, axis: int) -> jax.Array:
    """`jnp.roll` by `by`; what leaves at one end enters at the other.

    Devices that share the axis pass rows on to their neighbours for it, and nothing else. With the
    derivative written out, the backward pass does so, too: that of slices is sums of padded ones.
    """
    if by == 0 or x.shape[axis] == 1:
        return x
    n = x.shape[axis]
    cut = -by % n
    return lax.concatenate(
        [lax.slice_in_dim(x, cut, n, axis=axis), lax.slice_in_dim(x, 0, cut, axis=axis)], axis
    )


def _rotate_forward(x, by, axis):
    return _rotate(x, by, axis), None


def _rotate_backward(by, axis, _, gradient):
    return (_rotate(gradient, -by, axis),)


_rotate.defvjp(_rotate_forward, _rotate_backward)


@functools.lru_cache(maxsize=256)
def interpolation_matrix(in_: int, out: int, align_corners: bool) -> np.ndarray:
    """[out, in_] float64 weights of linear interpolation along one axis."""
    if align_corners:
        position = np.arange(out) * ((in_ - 1) / (out - 1) if out > 1 else 0.0)
    else:
        position = np.maximum((np.arange(out) + 0.5) * (in_ / out) - 0.5, 0.0)
    low = np.minimum(position.astype(np.int64), in_ - 1)
    high = np.minimum(low + 1, in_ - 1)
    fraction = position - low
    matrix = np.zeros((out, in_))
    np.add.at(matrix, (np.arange(out), low), 1 - fraction)
    np.add.at(matrix, (np.arange(out), high), fraction)
    return matrix


def _interpolate_axis(
    x: jax.Array,
    axis: int,
    out: int,
    align_corners: bool,
    *,
    copies: bool = True,
    precision: lax.Precision = lax.Precision.HIGHEST,
) -> jax.Array:
    """`copies`: of the matrix for each product of a batch. On CPU that is cheaper than transposing
    the maps, unless the copies are the larger ones."""
    n, h, w, c = x.shape
    spec = "oh,nhwc->nowc" if axis == 1 else "ow,nhwc->nhoc"
    matrix = jnp.asarray(interpolation_matrix(x.shape[axis], out, align_corners), x.dtype)
    if copies and axis == 1:
        spec, matrix = f"n{spec}", jnp.broadcast_to(matrix, (n, out, h))
    elif copies and w <= c:
        spec, matrix = f"nh{spec}", jnp.broadcast_to(matrix, (n, h, out, w))
    # Full precision also where matrix units default to fewer bits: these weights are not learnt.
    return jnp.einsum(spec, matrix, x, precision=precision)
