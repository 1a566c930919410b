"""The building blocks: convolution, batch normalization, residual blocks.

Arrays are NHWC. Parameters and statistics have `Policy.param_dtype`, arithmetic happens in
`Policy.dtype`. Batch statistics are computed in float32 or wider.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from hrnet_jax.models import parts
from hrnet_jax.models.linear import linear_call
from hrnet_jax.models.resize import resize

# PyTorch's BatchNorm2d defaults, which the official code uses. `momentum=0.1` in PyTorch is the
# weight of the new value; here, as in Flax, the weight of the old value.
BN_MOMENTUM = 0.9
BN_EPSILON = 1e-5

# Schemes for initial kernels.
# "kaiming": as the official classification code; for training from scratch.
# "normal": as the official segmentation code, which then loads ImageNet weights for most of it.
INITS = ("kaiming", "normal")


def kernel_std(name: str, shape: tuple[int, ...], init: str) -> float:
    """Standard deviation of the initial kernel [k, k, in, out] of the convolution `name`.

    Classifiers start small in both schemes, as in the official segmentation code, so the first
    loss is log(classes). With Kaiming's it would be three times as high for most of an epoch.
    """
    if init == "normal" or name.endswith("classifier"):
        return 0.001
    return np.sqrt(2 / (np.prod(shape[:-2]) * shape[-1]))


def bias_bound(kernel_shape: tuple[int, ...]) -> float:
    """Initial biases are uniform in +-1 / sqrt(fan in): PyTorch's default, which the official code
    keeps."""
    return 1 / np.sqrt(np.prod(kernel_shape[:-1]))


# What the backward pass recomputes instead of keeping it in memory, in ascending order.
# "norm": normalization and activation, from the outputs of convolutions. "block": residual blocks
# and exchange units, from their inputs. "module": whole modules of branches and exchange unit.
REMAT = ("none", "norm", "block", "module")
# What is compiled once and run in a loop: nothing, the "modules" of each stage, or also the
# "blocks" of each branch.
SCAN = ("none", "modules", "blocks")
# What remat="norm" keeps, by the names given below: outputs of convolutions and their statistics.
KEPT = ("convolution", "statistics")


@dataclasses.dataclass(frozen=True)
class Policy:
    """How every layer of one network computes.

    No field changes the variables. Only `image_statistics` and, in training, `frozen_norm` change
    results by more than rounding.

    Attributes:
      dtype: of the arithmetic.
      param_dtype: of parameters and running statistics.
      init: one of INITS.
      remat: one of REMAT; training needs less memory and computes more.
      scan: one of SCAN; loops compile faster. They are slow on CPU.
      lanes: number of channels that the hardware processes at a time, 128 on TPU. Branches with
        fewer channels, and the first convolution, then work on folded maps, see `fold`. 0 folds
        nothing.
      image_statistics: fraction of each image's own statistics in evaluation, see
        `BatchNorm.of_images`.
      frozen_norm: pairs of a part (see `parts`) and whether it is frozen: there BatchNorm, and
        dropout, work in training as in evaluation, and the running statistics stay.

    Raises:
      ValueError: for an unknown choice, or `image_statistics` outside 0..1.
    """

    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    init: str = "kaiming"
    remat: str = "none"
    scan: str = "none"
    lanes: int = 0
    image_statistics: float = 0.0
    frozen_norm: tuple[tuple[str, bool], ...] = ()

    def __post_init__(self):
        choices = {
            "initialization": (self.init, INITS),
            "remat": (self.remat, REMAT),
            "scan": (self.scan, SCAN),
        }
        for name, (value, known) in choices.items():
            if value not in known:
                raise ValueError(f"unknown {name} {value!r}; known: {list(known)}")
        if not 0 <= self.image_statistics <= 1:
            raise ValueError(
                f"image_statistics must be between 0 and 1, not {self.image_statistics}"
            )

    def freezes(self, path: tuple[str, ...]) -> bool:
        """Whether the module at this path lies in a part with frozen normalization."""
        return parts.value_at("/".join(path), dict(self.frozen_norm), False)

    def below(self, path: tuple[str, ...]) -> "Policy":
        """The policy for the module at this path where it is applied as a network of its own."""
        inside = parts.below("/".join(path), dict(self.frozen_norm))
        return dataclasses.replace(self, frozen_norm=tuple(inside.items()))

    def folds(self, x: jax.Array) -> int:
        """The factor to `fold` a branch's maps by: the largest power of two that fits the lanes."""
        by = 1
        while 2 * by * x.shape[-1] <= self.lanes and x.shape[2] % (2 * by) == 0:
            by *= 2
        return by

    @property
    def statistics_dtype(self):
        """Of batch statistics, losses and logits: float32, or float64 in a float64 network."""
        return jnp.promote_types(self.dtype, jnp.float32)


@jax.custom_jvp
def relu(x: jax.Array) -> jax.Array:
    """max(x, 0); its gradient, 0 at 0 as in PyTorch, is computed from the output.

    So the input need not be kept, and the mask is a product: XLA CPU fuses products with their
    neighbors, but not the comparison and selection of `jax.nn.relu`.
    """
    return jnp.maximum(x, 0)


def _where_positive(residuals, operands):
    return (operands[0] * jnp.sign(residuals[0]),)


@relu.defjvp
def _relu_jvp(primals, tangents):
    y = relu(*primals)
    return y, linear_call(_where_positive, _where_positive, (y,), tuple(tangents))[0]


_convolve = functools.partial(lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def conv2d(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Convolves [N, H, W, C] with [k, k, C, D], padding k // 2 on every side as PyTorch does.

    'SAME' differs: with stride 2 it pads even sizes at the end only.
    """
    k = kernel.shape[0]
    if k == 1 and stride == 1:
        # A matrix product: twice as fast as XLA's convolution on CPU, equally fast elsewhere.
        return lax.dot_general(x, kernel[0, 0], (((3,), (0,)), ((), ())))
    pad = (k // 2, k // 2)
    return _convolve(x, kernel, (stride, stride), (pad, pad))


def conv2d_of_inference(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`conv2d` with stride 1, for inference.

    XLA CPU passes chains of convolutions, additions and maxima to its kernel library as a whole.
    XLA's own convolutions are faster except at about 48 channels: W18 at 512x1024 takes a seventh
    less time with them. The library does not accept a convolution whose output is larger than its
    input. So the output gets one more column, which is cut off. (Rows may be split over devices,
    columns never are.) For float64 XLA's own convolutions are slow.
    """
    k, channels = kernel.shape[0], x.shape[-1]
    if k == 1 or 40 <= channels <= 60 or x.dtype != jnp.float32:
        return conv2d(x, kernel)

    def on_cpu(x, kernel):
        return _convolve(x, kernel, (1, 1), ((k // 2, k // 2), (k // 2, k // 2 + 1)))[:, :, :-1]

    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=conv2d)


def fold(x: jax.Array, by: int) -> jax.Array:
    """[N, H, W, C] -> [N, H, W / by, by * C]: `by` neighbors in a row share one position.

    TPUs pad channels to 128 lanes, so narrow maps waste memory and time; folded maps do not.
    See `Policy.lanes` and `fold_kernel`.
    """
    n, h, w, c = x.shape
    return x.reshape(n, h, w // by, by * c)


def fold_kernel(kernel: jax.Array, by: int) -> jax.Array:
    """The kernel [k, k, by * C, by * D] for folded maps that equals [k, k, C, D] for plain maps.

    For k = 1 and 3 and stride 1. Entries are zero where an output does not depend on an input of
    the same or an adjacent group of neighbors.
    """
    k, _, c, d = kernel.shape
    start = (by - 1) * (k // 2)  # of the first output's kernel, within the k groups of a row
    copies = [
        jnp.pad(kernel, ((0, 0), (start + i, k * by - k - start - i), (0, 0), (0, 0)))
        for i in range(by)
    ]
    return jnp.stack(copies, axis=3).reshape(k, k, by * c, by * d)


def strided_conv_of_pairs(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`conv2d` with [3, 3, C, D] and stride 2 of maps folded by 2, [N, H, W / 2, 2 * C].

    The result is not folded: [N, H / 2, W / 2, D].

    TPUs pad an image's three channels to 128 lanes. Pairs halve the width of the map: the stem with
    its gradients takes 11.9 M cycles and 537 MB instead of 16.0 M and 806 MB (v5e, 4 images of
    512x1024, the compiler's estimates). With 48 channels there is no gain.
    """
    c, d = kernel.shape[2:]
    # The three columns around an even one are the second of the previous pair and its own pair.
    kernel = jnp.pad(kernel, ((0, 0), (1, 0), (0, 0), (0, 0))).reshape(3, 2, 2 * c, d)
    return _convolve(x, kernel, (2, 1), ((1, 1), (1, 0)))


def conv1x1_of_upsampled(
    streams: tuple[jax.Array, ...], kernel: jax.Array, align_corners: bool
) -> jax.Array:
    """1x1 convolution of the concatenation of streams upsampled to the first one's size.

    A 1x1 convolution acts on channels and bilinear resizing on positions, so they commute. Each
    stream is multiplied by its rows of the kernel at its own resolution; the products are
    upsampled and added. The result is the same up to rounding, for about an eighth of the work.
    """
    size = streams[0].shape[1:3]
    offsets = np.cumsum([0] + [s.shape[-1] for s in streams])
    products = (
        conv2d(s, kernel[:, :, start:stop])
        for s, start, stop in zip(streams, offsets[:-1], offsets[1:], strict=True)
    )
    resized = [resize(p, size, align_corners=align_corners) for p in products]
    return sum(resized)  # type: ignore[return-value]  # never empty


class Conv(nn.Module):
    """Convolution with PyTorch's padding.

    A tuple of streams as input means their upsampled concatenation (1x1 only, see
    `conv1x1_of_upsampled`). Input and output may be folded, see `fold`; with stride 2 only the
    input, by 2.
    """

    features: int
    kernel_size: int = 1
    stride: int = 1
    use_bias: bool = False
    align_corners: bool = False
    folded: int = 1
    policy: Policy = Policy()

    @nn.compact
    def __call__(
        self,
        x: jax.Array | tuple[jax.Array, ...],
        scale: jax.Array | None = None,
        shift: jax.Array | None = None,
    ) -> jax.Array:
        """Convolves. `scale` and `shift` [features] are an affine map of the output, which is
        folded into kernel and bias."""
        streams = x if isinstance(x, tuple) else (x,)
        dtype, param_dtype = self.policy.dtype, self.policy.param_dtype
        k, in_features = self.kernel_size, sum(s.shape[-1] for s in streams) // self.folded
        shape = (k, k, in_features, self.features)
        std = kernel_std(self.name or "", shape, self.policy.init)
        kernel = self.param("kernel", nn.initializers.normal(std), shape, param_dtype)
        bias = None
        if self.use_bias:
            bound = bias_bound(shape)
            bias = self.param("bias", uniform(bound), (self.features,), param_dtype)
        if scale is not None:
            kernel = kernel * scale
            bias = shift if bias is None else bias * scale + shift
        streams = tuple(s.astype(dtype) for s in streams)
        kernel = kernel.astype(dtype)
        pairs = self.folded == self.stride == 2
        if self.folded > 1 and not pairs:
            kernel = fold_kernel(kernel, self.folded)
        if isinstance(x, tuple):
            y = conv1x1_of_upsampled(streams, kernel, self.align_corners)
        elif pairs:
            y = strided_conv_of_pairs(streams[0], kernel)
        elif scale is not None and self.stride == 1:
            y = conv2d_of_inference(streams[0], kernel)
        else:
            y = conv2d(streams[0], kernel, self.stride)
        return y if bias is None else y + _spread(bias.astype(dtype), y)


def uniform(bound: float):
    """Initializer: uniform between -bound and bound."""

    def init(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class BatchNorm(nn.Module):
    """Batch normalization as in PyTorch: the running variance is the unbiased one (n / (n - 1)).

    Under jit over a mesh, mean and variance are those of the global batch (synchronized BatchNorm).
    """

    features: int
    policy: Policy = Policy()

    def setup(self):
        dtype, shape = self.policy.param_dtype, (self.features,)
        self.scale = self.param("scale", nn.initializers.ones, shape, dtype)
        self.bias = self.param("bias", nn.initializers.zeros, shape, dtype)
        self.mean = self.variable("batch_stats", "mean", jnp.zeros, shape, dtype)
        self.var = self.variable("batch_stats", "var", jnp.ones, shape, dtype)

    def affine(self) -> tuple[jax.Array, jax.Array]:
        """(scale, shift): the affine map that this layer computes with the running statistics."""
        scale = self.scale * lax.rsqrt(self.var.value + BN_EPSILON)
        return scale, self.bias - self.mean.value * scale

    def of_running(self, x: jax.Array) -> jax.Array:
        """Normalizes [N, H, W, C], folded or not, with the running statistics."""
        scale, shift = self.affine()
        wide = x.astype(self.policy.statistics_dtype)
        return (wide * _spread(scale, x) + _spread(shift, x)).astype(x.dtype)

    def of_images(self, x: jax.Array) -> jax.Array:
        """Normalizes [N, H, W, C] with a mixture of running statistics and those of each image.

        Mean and variance are (1 - s) times the running value plus s times the image's, with
        s = `policy.image_statistics`. This is the mixture of arXiv 2006.16971, but per image, so
        that a result does not depend on the other images of the batch.
        """
        rows = x.reshape(x.shape[0], -1, self.features)  # also unfolds folded maps
        rows = rows.astype(self.policy.statistics_dtype)
        mean = jnp.mean(rows, axis=1, keepdims=True)
        var = jnp.maximum(jnp.mean(rows * rows, axis=1, keepdims=True) - mean * mean, 0.0)
        fraction = self.policy.image_statistics
        mean = (1 - fraction) * self.mean.value + fraction * mean
        var = (1 - fraction) * self.var.value + fraction * var
        scale = self.scale * lax.rsqrt(var + BN_EPSILON)
        y = rows * scale + (self.bias - mean * scale)
        return y.astype(x.dtype).reshape(x.shape)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalizes with the batch's statistics and updates the running ones."""
        y, mean, var = normalize_batch(x, self.scale, self.bias)
        if not self.is_initializing():
            n = x.size // self.features
            unbiased = var * (n / max(n - 1, 1))
            for running, new in ((self.mean, mean), (self.var, unbiased)):
                old = running.value
                running.value = (BN_MOMENTUM * old + (1 - BN_MOMENTUM) * new).astype(old.dtype)
        return y


def _channel_sums(x: jax.Array, channels: int) -> jax.Array:
    """[N, H, W, C], folded or not -> [C] sums over images and positions."""
    sums = jnp.sum(x, axis=(0, 1, 2))
    return sums if sums.size == channels else jnp.sum(sums.reshape(-1, channels), axis=0)


def _spread(values: jax.Array, x: jax.Array) -> jax.Array:
    """[C] values per channel, repeated where the maps are folded."""
    return values if values.size == x.shape[-1] else jnp.tile(values, x.shape[-1] // values.size)


@jax.custom_jvp
def normalize_batch(
    x: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Batch normalization of [N, H, W, C]: the result in x's dtype, mean and biased variance [C].

    C is the size of `scale`; the maps may be folded, [N, H, W / k, k * C].

    The gradient is written out: two reductions and one affine map of the maps. Automatic
    differentiation of mean and variance makes several passes more (15 % of a training step on CPU).
    No derivative flows through the mean and the variance that are returned; they are for the
    running statistics.
    """
    return _normalize(x, scale, bias)[0]


def _normalize(x, scale, bias):
    """The results of `normalize_batch`, and 1 / std."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    n = x.size // scale.size
    mean = _channel_sums(wide, scale.size) / n
    var = jnp.maximum(_channel_sums(wide * wide, scale.size) / n - mean * mean, 0.0)
    mean, var = checkpoint_name(mean, "statistics"), checkpoint_name(var, "statistics")
    inverse_std = lax.rsqrt(var + BN_EPSILON)
    slope = scale * inverse_std
    y = (wide * _spread(slope, x) + _spread(bias - mean * slope, x)).astype(x.dtype)
    return (y, mean, var), inverse_std


@normalize_batch.defjvp
def _normalize_jvp(primals, tangents):
    x, scale, bias = primals
    (y, mean, var), inverse_std = _normalize(x, scale, bias)
    residuals = x, scale, mean, inverse_std
    (dy,) = linear_call(_normalize_tangent, _normalize_cotangents, residuals, tuple(tangents))
    return (y, mean, var), (dy, jnp.zeros_like(mean), jnp.zeros_like(var))


def _normalize_tangent(residuals, tangents):
    """How y changes with x, scale and bias."""
    x, scale, mean, inverse_std = residuals
    dx, dscale, dbias = tangents
    n = x.size // scale.size
    centered, dx = x.astype(mean.dtype) - _spread(mean, x), dx.astype(mean.dtype)
    # d(y) = slope * (dx - mean(dx) - centered * mean(centered * dx) / var), and of scale and bias.
    slope = scale * inverse_std
    of_dx = _channel_sums(dx, scale.size) / n
    of_centered = _channel_sums(centered * dx, scale.size) / n * inverse_std**2
    constant = dbias - slope * of_dx
    dy = dx * _spread(slope, x) + centered * _spread(dscale * inverse_std - slope * of_centered, x)
    return ((dy + _spread(constant, x)).astype(x.dtype),)


def _normalize_cotangents(residuals, gradients):
    """The transpose of `_normalize_tangent`: gradients of x, scale and bias."""
    x, scale, mean, inverse_std = residuals
    n = x.size // scale.size
    wide, dy = x.astype(mean.dtype), gradients[0].astype(mean.dtype)
    dbias = _channel_sums(dy, scale.size)
    dscale = _channel_sums(dy * (wide - _spread(mean, x)), scale.size) * inverse_std
    # dx = slope * (dy - mean(dy) - normalized * mean(dy * normalized)), sorted by powers of x.
    slope = scale * inverse_std
    of_x = -slope * inverse_std * dscale / n
    constant = slope * dbias / n + mean * of_x
    dx = dy * _spread(slope, x) + (wide * _spread(of_x, x) - _spread(constant, x))
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(scale.dtype)


class ConvBN(nn.Module):
    """Convolution, batch normalization and, with `relu`, the activation.

    In evaluation the normalization is an affine map, which is folded into the kernel: equal up to
    rounding, and one pass over the maps fewer. With `image_statistics` it cannot be folded. Frozen
    parts normalize in training as in evaluation, without folding: kernel and affine map may have
    gradients of their own.
    """

    features: int
    kernel_size: int = 1
    stride: int = 1
    relu: bool = True
    use_bias: bool = False
    align_corners: bool = False
    folded: int = 1
    policy: Policy = Policy()

    @nn.compact
    def __call__(self, x: jax.Array | tuple[jax.Array, ...], *, train: bool) -> jax.Array:
        conv = Conv(
            self.features,
            self.kernel_size,
            self.stride,
            self.use_bias,
            self.align_corners,
            self.folded,
            self.policy,
            name="conv",
        )
        bn = BatchNorm(self.features, self.policy, name="bn")
        if train and not self.policy.freezes((*self.path, "bn")):
            y = bn(checkpoint_name(conv(x), "convolution"))
        elif self.policy.image_statistics:
            y = bn.of_images(conv(x))
        elif train:
            y = bn.of_running(checkpoint_name(conv(x), "convolution"))
        else:
            y = conv(x, *bn.affine())
        return relu(y) if self.relu else y


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the identity shortcut, on maps that may be folded."""

    features: int
    folded: int = 1
    policy: Policy = Policy()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        conv = functools.partial(ConvBN, self.features, 3, folded=self.folded, policy=self.policy)
        y = conv(name="conv1")(x, train=train)
        y = conv(relu=False, name="conv2")(y, train=train)
        return relu(y + x)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions with 4 * `planes` output channels, and a shortcut."""

    planes: int
    policy: Policy = Policy()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        conv = functools.partial(ConvBN, policy=self.policy)
        features = 4 * self.planes
        y = conv(self.planes, name="conv1")(x, train=train)
        y = conv(self.planes, 3, name="conv2")(y, train=train)
        y = conv(features, relu=False, name="conv3")(y, train=train)
        if x.shape[-1] != features:
            x = conv(features, relu=False, name="downsample")(x, train=train)
        return relu(y + x)
