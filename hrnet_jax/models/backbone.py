"""The backbone: stem, four stages of parallel branches, exchange units (arXiv 1908.07919, sec. 3).

Streams are tuples of maps [N, H / 2**(k + 2), W / 2**(k + 2), C * 2**k], k = 0 .. 3; every module
maps a tuple to a new tuple. Sizes that are not divisible by 32 are rounded up at each halving.
Exchange units resize to the target stream's size, as in the official network.
"""

import functools

import flax.linen as nn
import jax

from hrnet_jax.models.layers import BasicBlock, Bottleneck, ConvBN, Policy, fold, relu
from hrnet_jax.models.remat_scan import call, call_in_turn
from hrnet_jax.models.resize import resize
from hrnet_jax.models.variants import Variant

Streams = tuple[jax.Array, ...]


class Stem(nn.Module):
    """Two 3x3 convolutions of stride 2: [N, H, W, 3] -> [N, H/4, W/4, 64]."""

    policy: Policy = Policy()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        folded = 2 if self.policy.lanes and x.shape[2] % 2 == 0 else 1
        x = fold(x.astype(self.policy.dtype), folded)
        x = ConvBN(64, 3, 2, folded=folded, policy=self.policy, name="conv1")(x, train=train)
        return ConvBN(64, 3, 2, policy=self.policy, name="conv2")(x, train=train)


class Layer1(nn.Module):
    """Stage 1: bottleneck blocks on one stream at 1/4 resolution."""

    planes: int
    num_blocks: int
    policy: Policy = Policy()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        make = functools.partial(Bottleneck, self.planes, self.policy)
        names = [f"block{k}" for k in range(self.num_blocks)]
        # The first block has a convolution in its shortcut.
        x = call(make(name=names[0]), x, "layer1", train=train)
        return call_in_turn(self, make, names[1:], x, "layer1", train=train)


class Transition(nn.Module):
    """Adapts the channels of the streams and adds a stream at half the lowest resolution."""

    channels: tuple[int, ...]
    policy: Policy = Policy()

    @nn.compact
    def __call__(self, streams: Streams, *, train: bool) -> Streams:
        out = []
        for k, features in enumerate(self.channels):
            if k < len(streams) and streams[k].shape[-1] == features:
                out.append(streams[k])
                continue
            x, stride = (streams[k], 1) if k < len(streams) else (streams[-1], 2)
            conv = ConvBN(features, 3, stride, policy=self.policy, name=f"branch{k}")
            out.append(conv(x, train=train))
        return tuple(out)


class Branch(nn.Module):
    """A sequence of basic blocks on one stream."""

    features: int
    num_blocks: int
    policy: Policy = Policy()

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        by = self.policy.folds(x)
        make = functools.partial(BasicBlock, self.features, by, self.policy)
        names = [f"block{k}" for k in range(self.num_blocks)]
        y = call_in_turn(self, make, names, fold(x, by), "block", train=train)
        return y.reshape(x.shape)


class ExchangeUnit(nn.Module):
    """Every output stream is the sum of all input streams, converted to its shape.

    From a lower resolution: 1x1 convolution, then upsampling. From a higher one: 3x3 convolutions
    of stride 2, with an activation after each except the last.
    """

    channels: tuple[int, ...]
    num_outputs: int
    method: str
    align_corners: bool
    policy: Policy = Policy()

    @nn.compact
    def __call__(self, streams: Streams, *, train: bool) -> Streams:
        return tuple(
            relu(sum(self._convert(streams, j, i, train) for j in range(len(streams))))
            for i in range(self.num_outputs)
        )

    def _convert(self, streams: Streams, source: int, target: int, train: bool) -> jax.Array:
        """Stream `source`, converted to the shape of stream `target`."""
        x = streams[source]
        name = f"to{target}_from{source}_conv"
        features = self.channels[target]
        if source > target:
            x = ConvBN(features, relu=False, policy=self.policy, name=f"{name}0")(x, train=train)
            size = streams[target].shape[1:3]
            return resize(x, size, method=self.method, align_corners=self.align_corners)
        for k in range(target - source):
            last = k == target - source - 1
            x = ConvBN(
                features if last else self.channels[source],
                3,
                2,
                relu=not last,
                policy=self.policy,
                name=f"{name}{k}",
            )(x, train=train)
        return x


class ExchangeModule(nn.Module):
    """The parallel branches, then the exchange unit."""

    channels: tuple[int, ...]
    num_blocks: int
    num_outputs: int
    method: str
    align_corners: bool
    policy: Policy = Policy()

    @nn.compact
    def __call__(self, streams: Streams, *, train: bool) -> Streams:
        streams = tuple(
            Branch(features, self.num_blocks, self.policy, name=f"branch{k}")(x, train=train)
            for k, (features, x) in enumerate(zip(self.channels, streams, strict=True))
        )
        fuse = ExchangeUnit(
            self.channels,
            self.num_outputs,
            self.method,
            self.align_corners,
            self.policy,
            name="fuse",
        )
        return call(fuse, streams, "block", train=train)


class Stage(nn.Module):
    """A sequence of modules; with `single_output` the last one computes the first stream only."""

    channels: tuple[int, ...]
    num_modules: int
    num_blocks: int
    method: str
    align_corners: bool
    single_output: bool = False
    policy: Policy = Policy()

    @nn.compact
    def __call__(self, streams: Streams, *, train: bool) -> Streams:
        make = functools.partial(
            ExchangeModule,
            self.channels,
            self.num_blocks,
            method=self.method,
            align_corners=self.align_corners,
            policy=self.policy,
        )
        names = [f"module{k}" for k in range(self.num_modules)]
        full = functools.partial(make, num_outputs=len(self.channels))
        if not self.single_output:
            return call_in_turn(self, full, names, streams, "module", train=train)
        streams = call_in_turn(self, full, names[:-1], streams, "module", train=train)
        return call(make(num_outputs=1, name=names[-1]), streams, "module", train=train)


class HRNet(nn.Module):
    """Images [N, H, W, 3] to four streams, 1/4 to 1/32 resolution.

    Attributes:
      variant: depth and width.
      method: how exchange units upsample: "bilinear" (segmentation) or "nearest"
        (classification and pose, as in the official code).
      align_corners: of the bilinear upsampling.
      single_output: HRNetV1: returns only the stream at 1/4 resolution.
      policy: how the layers compute.
    """

    variant: Variant
    method: str = "bilinear"
    align_corners: bool = False
    single_output: bool = False
    policy: Policy = Policy()

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool) -> Streams:
        v = self.variant
        x = Stem(self.policy, name="stem")(images, train=train)  # [N, H/4, W/4, 64]
        x = Layer1(v.layer1_planes, v.layer1_blocks, self.policy, name="layer1")(x, train=train)
        streams: Streams = (x,)
        for k, num_modules in enumerate(v.num_modules):
            channels = v.channels[: k + 2]
            transition = Transition(channels, self.policy, name=f"transition{k + 1}")
            stage = Stage(
                channels,
                num_modules,
                v.num_blocks,
                self.method,
                self.align_corners,
                self.single_output and k == 2,
                self.policy,
                name=f"stage{k + 2}",
            )
            streams = stage(transition(streams, train=train), train=train)
        return streams
