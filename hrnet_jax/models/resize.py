"""Resizing of maps, equal to PyTorch's `interpolate`, in a form that is fast on each platform.

Bilinear resizing is products with small matrices on CPU, with larger ones on TPU, and weighted sums
of neighbors on GPU. Arrays are NHWC. Only the height is ever split over devices.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hrnet_jax.models.linear import linear_call

# TPUs upsample the height in this many parts. Devices exchange single rows with their neighbors
# only if the size of the mesh's 'space' axis divides it.
HEIGHT_PARTS = 8
# A TPU computes products of float32 as sums of bfloat16 products: 6 with HIGHEST and 3 with HIGH,
# whose relative error is 1e-5. HIGH takes half the cycles for the logits and half the time to
# compile.
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
    by_sums = functools.partial(_resize_by_sums, size=size, align_corners=align_corners)
    by_platform = functools.partial(
        lax.platform_dependent, tpu=by_matrix, cuda=by_sums, rocm=by_sums, default=by_axis
    )
    where = jax.typeof(x).sharding
    if any(where.spec):
        # Axes of the caller's mesh are explicit: types then show how an array is split, and the
        # forms' types have to be the same. Between them the compiler decides.
        return jax.sharding.auto_axes(by_platform, out_sharding=where)(x)
    return by_platform(x)


def _resize(x: jax.Array, size: tuple[int, int], method: str, align_corners: bool) -> jax.Array:
    # The width first, while the maps are low.
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
    """Bilinear resizing for TPU: products with matrices that are large enough for its matrix units.

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


def _resize_by_sums(x: jax.Array, size: tuple[int, int], align_corners: bool) -> jax.Array:
    """Bilinear resizing for GPU: weighted sums of neighbors, forward and backward.

    The compiler fuses them with what uses the result. Products with matrices would be kernels of
    their own, with copies of the matrices for each image and row: a quarter to a third of the bytes
    that a training step of W48 wrote.
    """
    for axis, out in ((2, size[1]), (1, size[0])):
        in_ = x.shape[axis]
        if out == in_:
            continue
        pair: tuple[Callable[..., jax.Array], ...] = (_gathered_sum, _gathered_sum_of_targets)
        if out % in_ == 0:
            pair = (_sum_of_neighbors, _sum_of_targets)
        arguments = {"axis": axis, "in_": in_, "out": out, "align_corners": align_corners}
        forward, backward = (
            functools.partial(_in_float32, function=functools.partial(f, **arguments)) for f in pair
        )
        (x,) = linear_call(forward, backward, (), (x,))
    return x


def _in_float32(_, operands, *, function) -> tuple[jax.Array]:
    """A function of one array, computed in float32 or wider and rounded at the end."""
    (x,) = operands
    return (function(x.astype(jnp.promote_types(x.dtype, jnp.float32))).astype(x.dtype),)


def _along(weights: np.ndarray, axis: int, x: jax.Array) -> jax.Array:
    """Weights [size of the axis] as an array that multiplies x, of NHWC."""
    return jnp.asarray(weights, x.dtype).reshape([-1 if k == axis else 1 for k in range(4)])


def _shift(x: jax.Array, by: int, axis: int) -> jax.Array:
    """Moves x by `by` along an axis and fills up with zeros."""
    if by == 0:
        return x
    padding = [(by, -by, 0) if k == axis else (0, 0, 0) for k in range(x.ndim)]
    return lax.pad(x, jnp.zeros((), x.dtype), padding)


def _sum_of_neighbors(x: jax.Array, *, axis: int, in_: int, out: int, align_corners: bool):
    """Upsampling by an integer factor: each new sample is a weighted sum of three old ones."""
    factor = out // in_
    weights = _upsampling_weights(in_, factor, align_corners)  # [in_, factor, 3]
    shape = [1, 1, 1, 1, 1]
    shape[axis], shape[axis + 1] = in_, factor
    terms = [
        jnp.expand_dims(_shift(x, by, axis), axis + 1)
        * jnp.asarray(weights[:, :, k], x.dtype).reshape(shape)
        for k, by in enumerate((0, 1, -1))
    ]
    return sum(terms[1:], terms[0]).reshape(
        [out if k == axis else n for k, n in enumerate(x.shape)]
    )


def _sum_of_targets(gradient: jax.Array, *, axis: int, in_: int, out: int, align_corners: bool):
    """The transpose of `_sum_of_neighbors`: each old sample is a sum over the new ones near it."""
    factor = out // in_
    weights = _upsampling_weights(in_, factor, align_corners)
    shape = list(gradient.shape)
    shape[axis : axis + 1] = [in_, factor]
    targets = gradient.reshape(shape)
    parts = [lax.index_in_dim(targets, p, axis + 1, keepdims=False) for p in range(factor)]
    terms = [
        _shift(part * _along(weights[:, p, k], axis, part), -by, axis)
        for k, by in enumerate((0, 1, -1))
        for p, part in enumerate(parts)
        if np.any(weights[:, p, k])
    ]
    return sum(terms)


def _gathered_sum(x: jax.Array, *, axis: int, in_: int, out: int, align_corners: bool):
    """Resizing to any size: each new sample is a weighted sum of two old ones."""
    return _sum_by_rows(x, interpolation_matrix(in_, out, align_corners), axis)


def _gathered_sum_of_targets(x: jax.Array, *, axis: int, in_: int, out: int, align_corners: bool):
    """The transpose of `_gathered_sum`."""
    return _sum_by_rows(x, interpolation_matrix(in_, out, align_corners).T, axis)


def _sum_by_rows(x: jax.Array, matrix: np.ndarray, axis: int) -> jax.Array:
    """The product of a matrix with few entries per row and an axis of x, as a sum over them."""
    count = np.count_nonzero(matrix, axis=1).max()
    # The columns of each row's entries; rows with fewer entries are filled up with zeros.
    columns = np.argsort(matrix == 0, axis=1, kind="stable")[:, :count]
    weights = np.take_along_axis(matrix, columns, axis=1)
    terms = [
        jnp.take(x, columns[:, k], axis=axis) * _along(weights[:, k], axis, x) for k in range(count)
    ]
    return sum(terms[1:], terms[0])


def _upsample_parts(x: jax.Array, factor: int, align_corners: bool) -> jax.Array:
    """Bilinear upsampling of the height, part by part, each with one row of its neighbors.

    So devices that split the height exchange single rows; a product with one matrix for the whole
    height would gather it on every device.
    """
    n, h, w, c = x.shape
    rows = h // HEIGHT_PARTS
    parts = x.reshape(n, HEIGHT_PARTS, rows, w, c)
    before, after = _rotate(parts[:, :, -1:], 1, 1), _rotate(parts[:, :, :1], -1, 1)
    parts = lax.concatenate([before, parts, after], 2)
    # One more column on both sides: weights 0 for the rows that the rotation brings from the other
    # end.
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
    """Bilinear upsampling of the height by an integer factor, for CPU: each row becomes `factor`
    rows, which are weighted sums of it and its neighbors.

    So devices that split the height exchange single rows; a product with an interpolation matrix
    would gather it on every device. The sums are products with small matrices, one per row: as
    plain sums, each weight would be an array of the result's size on CPU.
    """
    n, h, w, c = x.shape
    weights = jnp.asarray(_upsampling_weights(h, factor, align_corners), x.dtype)
    neighbors = jnp.stack([_rotate(x, by, 1) for by in (0, 1, -1)], axis=2)
    y = jnp.einsum(
        "nhfk,nhkx->nhfx",
        jnp.broadcast_to(weights, (n, *weights.shape)),
        neighbors.reshape(n, h, 3, w * c),
        precision=lax.Precision.HIGHEST,
    )
    return y.reshape(n, h * factor, w, c)


@functools.lru_cache(maxsize=256)
def _upsampling_weights(n: int, factor: int, align_corners: bool) -> np.ndarray:
    """Weights [n, factor, 3] of a sample itself, of the one before and of the one after it."""
    place, sample = np.arange(factor), np.arange(n)[:, None]
    # Position of the new sample between the old one and a neighbor, -1 .. 1.
    if align_corners:
        offset = (place * (n - 1) - sample * (factor - 1)) / (n * factor - 1)
    else:
        offset = np.tile((place + 0.5) / factor - 0.5, (n, 1))
        offset[0], offset[-1] = np.maximum(offset[0], 0), np.minimum(offset[-1], 0)
        if n == 1:
            offset[:] = 0
    return np.stack([1 - np.abs(offset), np.maximum(-offset, 0), np.maximum(offset, 0)], axis=-1)


def _rotate(x: jax.Array, by: int, axis: int) -> jax.Array:
    """`jnp.roll` by `by`; what leaves at one end enters at the other.

    Devices that split the axis pass rows on to their neighbors for it, and nothing else. The
    transpose is a rotation, too; JAX's own, of the slices, would be a sum of padded arrays.
    """
    if by == 0 or x.shape[axis] == 1:
        return x
    back = functools.partial(_rotate_operand, by=-by, axis=axis)
    return linear_call(functools.partial(_rotate_operand, by=by, axis=axis), back, (), (x,))[0]


def _rotate_operand(_, operands, *, by: int, axis: int) -> tuple[jax.Array]:
    (x,) = operands
    n = x.shape[axis]
    cut = -by % n
    first, last = lax.slice_in_dim(x, cut, n, axis=axis), lax.slice_in_dim(x, 0, cut, axis=axis)
    return (lax.concatenate([first, last], axis),)


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
    """Linear interpolation of one axis as a product with a matrix.

    `copies` makes a copy of the matrix for each product of a batch. On CPU that is cheaper than
    transposing the maps, unless the copies are larger than the maps.
    """
    n, h, w, c = x.shape
    spec = "oh,nhwc->nowc" if axis == 1 else "ow,nhwc->nhoc"
    matrix = jnp.asarray(interpolation_matrix(x.shape[axis], out, align_corners), x.dtype)
    if copies and axis == 1:
        spec, matrix = f"n{spec}", jnp.broadcast_to(matrix, (n, out, h))
    elif copies and w <= c:
        spec, matrix = f"nh{spec}", jnp.broadcast_to(matrix, (n, h, out, w))
    # Full precision also where matrix units default to fewer bits: the weights are exact.
    return jnp.einsum(spec, matrix, x, precision=precision)
