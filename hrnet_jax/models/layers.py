"""The building blocks: convolution with batch normalisation, residual blocks, resizing.

Arrays are NHWC. Parameters and statistics keep `Policy.param_dtype`, arithmetic happens in
`Policy.dtype`; batch statistics are never computed below float32.
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

from hrnet_jax.models.resize import resize

# PyTorch's BatchNorm2d defaults, which the official code keeps: `momentum=0.1` there is the
# weight of the new value, here (as in Flax) the weight of the old one.
BN_MOMENTUM = 0.9
BN_EPSILON = 1e-5

# Schemes for initial kernels.
# "kaiming": the official classification code, and what training from scratch needs.
# "normal": the official segmentation code, which expects ImageNet weights to replace most of it.
INITS = ("kaiming", "normal")


def kernel_std(name: str, shape: tuple[int, ...], init: str) -> float:
    """Standard deviation of the initial kernel [k, k, in, out] of the convolution `name`.

    Classifiers start small in both schemes, as in the official segmentation code: the first loss
    is log(classes). Kaiming's would start at three times that, and the first epoch unlearns it.
    """
    if init == "normal" or name.endswith("classifier"):
        return 0.001
    return np.sqrt(2 / (np.prod(shape[:-2]) * shape[-1]))


def bias_bound(kernel_shape: tuple[int, ...]) -> float:
    """Initial biases are uniform in +-1 / sqrt(fan in): PyTorch's default, left in place by the
    official code."""
    return 1 / np.sqrt(np.prod(kernel_shape[:-1]))


# What the backward pass computes again instead of keeping it, from nothing to the most:
# "norm": normalisation and activation, from the outputs of convolutions; "block": residual blocks
# and exchange units, from their inputs; "module": whole rounds of branches and exchange.
REMAT = ("none", "norm", "block", "module")
# What is compiled once and run in a loop, where it is repeated: "modules" of a stage, or besides
# the "blocks" of each branch.
SCAN = ("none", "modules", "blocks")
# What "norm" keeps, by the names given below: outputs of convolutions and the statistics of them.
KEPT = ("convolution", "statistics")


@dataclasses.dataclass(frozen=True)
class Policy:
    """How every layer of one network computes.

    Nothing here changes the variables or, but for rounding and `image_statistics`, the results.

    Attributes:
      dtype: of the arithmetic.
      param_dtype: of parameters and running statistics.
      init: one of INITS.
      remat: one of REMAT; less memory in training for more work.
      scan: one of SCAN; less to compile. Loops are slow on CPU.
      lanes: channels that the machine computes with at a time, 128 on TPU: branches of fewer, and
        the convolution of the image, work on folded maps. 0: none do.
      image_statistics: share of each image's own statistics in evaluation, see
        `BatchNorm.of_images`.
    """

    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32
    init: str = "kaiming"
    remat: str = "none"
    scan: str = "none"
    lanes: int = 0
    image_statistics: float = 0.0

    def folds(self, x: jax.Array) -> int:
        """By how much to `fold` maps for a branch: the largest power of two that the lanes take."""
        by = 1
        while 2 * by * x.shape[-1] <= self.lanes and x.shape[2] % (2 * by) == 0:
            by *= 2
        return by

    @property
    def statistics_dtype(self):
        """Batch statistics, losses and logits: float32, or float64 in a float64 network."""
        return jnp.promote_types(self.dtype, jnp.float32)


@jax.custom_vjp
def relu(x: jax.Array) -> jax.Array:
    """max(x, 0); its gradient, 0 at 0 as PyTorch's, is read off the output.

    So the input need not be kept, and the mask is a product: XLA CPU fuses products with their
    neighbours, but not the comparison and selection of `jax.nn.relu`.
    """
    return jnp.maximum(x, 0)


def _relu_forward(x):
    y = relu(x)
    return y, y


def _relu_backward(y, gradient):
    return (gradient * jnp.sign(y),)


relu.defvjp(_relu_forward, _relu_backward)


_convolve = functools.partial(lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def conv2d(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Convolves [N, H, W, C] with [k, k, C, D], padding k // 2 on every side as PyTorch does.

    'SAME' would not do: with stride 2 it pads even sizes on the far side only.
    """
    k = kernel.shape[0]
    if k == 1 and stride == 1:
        # A plain matrix product: twice as fast as XLA's CPU convolution, the same elsewhere.
        return lax.dot_general(x, kernel[0, 0], (((3,), (0,)), ((), ())))
    pad = (k // 2, k // 2)
    return _convolve(x, kernel, (stride, stride), (pad, pad))


def conv2d_of_inference(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`conv2d` with stride 1, where no gradient is taken.

    XLA CPU hands chains of convolutions, additions and maxima to its library as a whole. Its own
    convolutions are faster, but for about 48 channels: W18 at 512x1024 takes a seventh less time
    with them. The library takes no convolution whose output is larger than its input, so the output
    gets a column more, which is cut off; of columns, since only rows are ever split over devices.
    For float64 XLA has plain loops only.
    """
    k, channels = kernel.shape[0], x.shape[-1]
    if k == 1 or 40 <= channels <= 60 or x.dtype != jnp.float32:
        return conv2d(x, kernel)

    def on_cpu(x, kernel):
        return _convolve(x, kernel, (1, 1), ((k // 2, k // 2), (k // 2, k // 2 + 1)))[:, :, :-1]

    return lax.platform_dependent(x, kernel, cpu=on_cpu, default=conv2d)


def fold(x: jax.Array, by: int) -> jax.Array:
    """[N, H, W, C] -> [N, H, W / by, by * C]: neighbours in a row side by side in the channels.

    Where a machine computes with so many channels at a time and fills up with zeros what is
    missing, narrow maps waste it; folded they do not. See `Policy.lanes` and `fold_kernel`.
    """
    n, h, w, c = x.shape
    return x.reshape(n, h, w // by, by * c)


def fold_kernel(kernel: jax.Array, by: int) -> jax.Array:
    """The kernel [k, k, by * C, by * D] that is to folded maps what [k, k, C, D] is to maps.

    For k = 1 and 3 and stride 1. Zeros are where an output has nothing to do with an input of its
    group of neighbours or of the groups beside it.
    """
    k, _, c, d = kernel.shape
    start = (by - 1) * (k // 2)  # of the first output's kernel, in the row of k groups
    copies = [
        jnp.pad(kernel, ((0, 0), (start + i, k * by - k - start - i), (0, 0), (0, 0)))
        for i in range(by)
    ]
    return jnp.stack(copies, axis=3).reshape(k, k, by * c, by * d)


def strided_conv_of_pairs(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`conv2d` with [3, 3, C, D] and stride 2 of maps folded by 2, [N, H, W / 2, 2 * C].

    The result is not folded: [N, H / 2, W / 2, D].

    An image's three channels are padded to 128 lanes on TPU: in pairs its map is half as wide, and
    the stem with its gradients takes 11.9 M cycles and 537 MB instead of 16.0 M and 806 MB (v5e,
    4 images of 512x1024, the compiler's estimate). Of 48 channels nothing is gained.
    """
    c, d = kernel.shape[2:]
    # The three columns around an even one are the second of the pair before and its own pair.
    kernel = jnp.pad(kernel, ((0, 0), (1, 0), (0, 0), (0, 0))).reshape(3, 2, 2 * c, d)
    return _convolve(x, kernel, (2, 1), ((1, 1), (1, 0)))


def conv1x1_of_upsampled(
    streams: tuple[jax.Array, ...], kernel: jax.Array, align_corners: bool
) -> jax.Array:
    """1x1 convolution of the concatenation of streams upsampled to the first one's size.

    A 1x1 convolution acts on channels and bilinear resizing on positions, so they commute: each
    stream is multiplied with its rows of the kernel at its own resolution, and the products are
    upsampled and added. The same result up to rounding for about an eighth of the work.
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
    """Convolution, PyTorch's padding. A tuple of streams stands for their upsampled concatenation
    (1x1 only, see `conv1x1_of_upsampled`). Input and output may be folded, see `fold`; with stride
    2 the input only, by 2."""

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
        """Convolves; `scale` and `shift` [features] are an affine map of the output, folded in."""
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
    """Initialiser: uniform between -bound and bound."""

    def init(key, shape, dtype):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class BatchNorm(nn.Module):
    """Batch normalisation as PyTorch's: the running variance is the unbiased one (n / (n - 1)).

    Under jit over a mesh the mean runs over the global batch: synchronised by construction.
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
        """(scale, shift) of the affine map that this layer is with the running statistics."""
        scale = self.scale * lax.rsqrt(self.var.value + BN_EPSILON)
        return scale, self.bias - self.mean.value * scale

    def of_images(self, x: jax.Array) -> jax.Array:
        """Normalises [N, H, W, C] with running statistics mixed with those of each image.

        The mean is (1 - s) times the running one and s times the image's, so is the variance, with
        s = `policy.image_statistics`: the mixture of arXiv 2006.16971, but of each image alone, so
        that its result does not depend on its neighbours.
        """
        rows = x.reshape(x.shape[0], -1, self.features)  # of maps that are folded, too
        rows = rows.astype(self.policy.statistics_dtype)
        mean = jnp.mean(rows, axis=1, keepdims=True)
        var = jnp.maximum(jnp.mean(rows * rows, axis=1, keepdims=True) - mean * mean, 0.0)
        share = self.policy.image_statistics
        mean = (1 - share) * self.mean.value + share * mean
        var = (1 - share) * self.var.value + share * var
        scale = self.scale * lax.rsqrt(var + BN_EPSILON)
        y = rows * scale + (self.bias - mean * scale)
        return y.astype(x.dtype).reshape(x.shape)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises with the batch's statistics and updates the running ones."""
        y, mean, var = normalize_batch(x, self.scale, self.bias)
        if not self.is_initializing():
            n = x.size // self.features
            unbiased = var * (n / max(n - 1, 1))
            for running, new in ((self.mean, mean), (self.var, unbiased)):
                old = running.value
                running.value = (BN_MOMENTUM * old + (1 - BN_MOMENTUM) * new).astype(old.dtype)
        return y


def _channel_sums(x: jax.Array, channels: int) -> jax.Array:
    """[N, H, W, C], folded or not, -> [C] sums over images and positions."""
    sums = jnp.sum(x, axis=(0, 1, 2))
    return sums if sums.size == channels else jnp.sum(sums.reshape(-1, channels), axis=0)


def _spread(values: jax.Array, x: jax.Array) -> jax.Array:
    """[C] values per channel, repeated for maps that are folded."""
    return values if values.size == x.shape[-1] else jnp.tile(values, x.shape[-1] // values.size)


@jax.custom_vjp
def normalize_batch(
    x: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Batch normalisation of [N, H, W, C]: the result in x's dtype, mean and biased variance [C].

    C is the size of `scale`; the maps may be folded, [N, H, W / k, k * C].

    The gradient is written out: two reductions and one affine map of the maps, where automatic
    differentiation of the mean and the variance makes several passes more (15 % of a training
    step on CPU). It does not flow through the mean and the variance that are returned; they are
    for the running statistics.
    """
    return _normalize_batch_forward(x, scale, bias)[0]


def _normalize_batch_forward(x, scale, bias):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    n = x.size // scale.size
    mean = _channel_sums(wide, scale.size) / n
    var = jnp.maximum(_channel_sums(wide * wide, scale.size) / n - mean * mean, 0.0)
    mean, var = checkpoint_name(mean, "statistics"), checkpoint_name(var, "statistics")
    inverse_std = lax.rsqrt(var + BN_EPSILON)
    slope = scale * inverse_std
    y = (wide * _spread(slope, x) + _spread(bias - mean * slope, x)).astype(x.dtype)
    return (y, mean, var), (x, scale, mean, inverse_std)


def _normalize_batch_backward(residuals, gradients):
    x, scale, mean, inverse_std = residuals
    n = x.size // scale.size
    wide, dy = x.astype(mean.dtype), gradients[0].astype(mean.dtype)
    dbias = _channel_sums(dy, scale.size)
    dscale = _channel_sums(dy * (wide - _spread(mean, x)), scale.size) * inverse_std
    # dx = slope * (dy - mean(dy) - normalised * mean(dy * normalised)), gathered by powers of x.
    slope = scale * inverse_std
    of_x = -slope * inverse_std * dscale / n
    constant = slope * dbias / n + mean * of_x
    dx = dy * _spread(slope, x) + (wide * _spread(of_x, x) - _spread(constant, x))
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(scale.dtype)


normalize_batch.defvjp(_normalize_batch_forward, _normalize_batch_backward)


class ConvBN(nn.Module):
    """Convolution, batch normalisation and, where `relu`, the activation.

    In evaluation the normalisation is an affine map and is folded into the kernel: exact up to
    rounding, and one pass over the maps fewer. Not where images' own statistics take part.
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
        if train:
            y = bn(checkpoint_name(conv(x), "convolution"))
        elif self.policy.image_statistics:
            y = bn.of_images(conv(x))
        else:
            y = conv(x, *bn.affine())
        return relu(y) if self.relu else y


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the identity, of maps that may be folded."""

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
    """1x1, 3x3, 1x1 convolutions with four times `planes` outputs, and a shortcut."""

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
