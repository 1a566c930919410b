"""The heads: each maps the backbone's streams to a dictionary of outputs."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from hrnet_jax.models.backbone import Streams
from hrnet_jax.models.layers import Bottleneck, Conv, ConvBN, Policy, uniform
from hrnet_jax.models.resize import resize

# Widths of the official models, the same for every variant.
OCR_CHANNELS = 512
OCR_KEY_CHANNELS = 256
INCRE_PLANES = (32, 64, 128, 256)
CLASSIFICATION_FEATURES = 2048
PYRAMID_CHANNELS = 256


class SegmentationHead(nn.Module):
    """1x1 convolution over all streams at 1/4 resolution, then the classifier.

    With four streams this is HRNetV2's head (arXiv 1908.07919, fig. 4b), with one HRNetV1's.
    """

    num_classes: int
    align_corners: bool = False
    policy: Policy = Policy()

    @nn.compact
    def __call__(self, streams: Streams, *, train: bool) -> dict[str, jax.Array]:
        features = sum(s.shape[-1] for s in streams)
        hidden = ConvBN(
            features,
            use_bias=True,
            align_corners=self.align_corners,
            policy=self.policy,
            name="hidden",
        )(streams, train=train)  # [N, H/4, W/4, sum of C]
        classifier = Conv(self.num_classes, use_bias=True, policy=self.policy, name="classifier")
        return {"logits": classifier(hidden).astype(self.policy.statistics_dtype)}


class OCRHead(nn.Module):
    """Object-contextual representations (arXiv 1909.11065) on HRNetV2's features.

    An auxiliary classifier estimates the region of each class. Features are averaged over each
    region, and every pixel attends to these averages. Returns `logits` and `aux_logits`; the
    paper's loss weights are 1.0 and 0.4.
    """

    num_classes: int
    align_corners: bool = True
    dropout: float = 0.05
    policy: Policy = Policy()

    @nn.compact
    def __call__(self, streams: Streams, *, train: bool) -> dict[str, jax.Array]:
        policy = self.policy
        conv = functools.partial(ConvBN, policy=policy)
        key = functools.partial(conv, OCR_KEY_CHANNELS)
        channels = functools.partial(conv, OCR_CHANNELS)
        hidden = conv(
            sum(s.shape[-1] for s in streams),
            use_bias=True,
            align_corners=self.align_corners,
            name="aux_hidden",
        )(streams, train=train)  # [N, H/4, W/4, sum of C]
        classifier = functools.partial(Conv, self.num_classes, use_bias=True, policy=policy)
        aux_logits = classifier(name="aux_classifier")(hidden)
        aux_logits = aux_logits.astype(policy.statistics_dtype)

        pixels = channels(3, use_bias=True, name="pixels")(
            _concatenated(streams, self.align_corners), train=train
        )  # [N, H/4, W/4, 512]
        regions = _region_features(pixels, aux_logits)[:, :, None]  # [N, classes, 1, 512]

        queries = key(name="f_pixel0")(pixels, train=train)
        queries = key(name="f_pixel1")(queries, train=train)  # [N, H/4, W/4, 256]
        keys = key(name="f_object0")(regions, train=train)
        keys = key(name="f_object1")(keys, train=train)[:, :, 0]  # [N, classes, 256]
        values = key(name="f_down")(regions, train=train)[:, :, 0]  # [N, classes, 256]
        scores = jnp.einsum("nhwc,nkc->nhwk", queries, keys).astype(policy.statistics_dtype)
        weights = jax.nn.softmax(scores * OCR_KEY_CHANNELS**-0.5, axis=-1).astype(policy.dtype)
        context = jnp.einsum("nhwk,nkc->nhwc", weights, values)
        context = channels(name="f_up")(context, train=train)  # [N, H/4, W/4, 512]

        fused = channels(name="fuse")(jnp.concatenate([context, pixels], axis=-1), train=train)
        # Drops whole channels of an image.
        drops = train and not policy.freezes(self.path)
        fused = nn.Dropout(self.dropout, broadcast_dims=(1, 2), deterministic=not drops)(fused)
        logits = classifier(name="classifier")(fused).astype(policy.statistics_dtype)
        return {"logits": logits, "aux_logits": aux_logits}


class ClassificationHead(nn.Module):
    """ImageNet head (arXiv 1908.07919, fig. 9): widens the streams, then adds them from high to low
    resolution."""

    num_classes: int
    policy: Policy = Policy()

    @nn.compact
    def __call__(self, streams: Streams, *, train: bool) -> dict[str, jax.Array]:
        wide = [
            Bottleneck(planes, self.policy, name=f"incre{k}")(x, train=train)
            for k, (planes, x) in enumerate(zip(INCRE_PLANES, streams, strict=True))
        ]  # [N, H / 2**(k + 2), W / 2**(k + 2), 128 * 2**k]
        conv = functools.partial(ConvBN, use_bias=True, policy=self.policy)
        y = wide[0]
        for k, x in enumerate(wide[1:]):
            y = x + conv(x.shape[-1], 3, 2, name=f"downsamp{k}")(y, train=train)
        y = conv(CLASSIFICATION_FEATURES, name="final")(y, train=train)  # [N, H/32, W/32, 2048]
        pooled = jnp.mean(y.astype(self.policy.statistics_dtype), axis=(1, 2))
        classifier = nn.Dense(
            self.num_classes,
            dtype=self.policy.statistics_dtype,
            param_dtype=self.policy.param_dtype,
            # PyTorch's default for linear layers.
            kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
            bias_init=uniform(CLASSIFICATION_FEATURES**-0.5),
            name="classifier",
        )
        return {"logits": classifier(pooled)}


class PoseHead(nn.Module):
    """A heatmap per keypoint from the high-resolution stream (arXiv 1902.09212)."""

    num_classes: int
    policy: Policy = Policy()

    @nn.compact
    def __call__(self, streams: Streams, *, train: bool) -> dict[str, jax.Array]:
        conv = Conv(self.num_classes, use_bias=True, policy=self.policy, name="heatmaps")
        return {"heatmaps": conv(streams[0]).astype(self.policy.statistics_dtype)}


class PyramidHead(nn.Module):
    """HRNetV2p for detectors (arXiv 1908.07919, fig. 4c): four levels of 256 channels.

    The streams are concatenated at 1/4 resolution, reduced by a 1x1 convolution and average-pooled
    to each level; then follows a 3x3 convolution. Pooling rounds sizes down, as the official code.
    """

    align_corners: bool = False
    policy: Policy = Policy()

    @nn.compact
    def __call__(self, streams: Streams, *, train: bool) -> dict[str, tuple[jax.Array, ...]]:
        conv = functools.partial(Conv, PYRAMID_CHANNELS, use_bias=True, policy=self.policy)
        x = conv(align_corners=self.align_corners, name="reduction")(streams)
        levels = []
        for k in range(len(streams)):
            window = (2**k, 2**k)
            pooled = nn.avg_pool(x, window, window) if k else x
            levels.append(conv(3, name=f"level{k}")(pooled))
        return {"features": tuple(levels)}


class FeaturesHead(nn.Module):
    """Returns the four streams unchanged, for custom heads."""

    policy: Policy = Policy()

    @nn.compact
    def __call__(self, streams: Streams, *, train: bool) -> dict[str, tuple[jax.Array, ...]]:
        return {"features": streams}


@dataclasses.dataclass(frozen=True)
class HeadSpec:
    """What a head requires of the backbone.

    Attributes:
      method: how exchange units upsample; "nearest" where the official model of the task does so.
      align_corners: of bilinear resizing, by default.
      single_output: HRNetV1: the backbone returns only the stream at 1/4 resolution.
      has_classes: whether the head uses `num_classes`.
    """

    method: str = "bilinear"
    align_corners: bool = False
    single_output: bool = False
    has_classes: bool = True


HEADS: dict[str, HeadSpec] = {
    "segmentation": HeadSpec(),
    "segmentation_v1": HeadSpec(single_output=True),
    "ocr": HeadSpec(align_corners=True),
    "classification": HeadSpec(method="nearest"),
    "pose": HeadSpec(method="nearest", single_output=True),
    "pyramid": HeadSpec(method="nearest", has_classes=False),
    "features": HeadSpec(method="nearest", has_classes=False),
}


def make_head(
    name: str, num_classes: int, align_corners: bool, dropout: float, policy: Policy
) -> nn.Module:
    """The module of a head in `HEADS`, as the submodule "head"."""
    match name:
        case "segmentation" | "segmentation_v1":
            return SegmentationHead(num_classes, align_corners, policy, name="head")
        case "ocr":
            return OCRHead(num_classes, align_corners, dropout, policy, name="head")
        case "classification":
            return ClassificationHead(num_classes, policy, name="head")
        case "pose":
            return PoseHead(num_classes, policy, name="head")
        case "pyramid":
            return PyramidHead(align_corners, policy, name="head")
        case "features":
            return FeaturesHead(policy, name="head")
    raise ValueError(f"unknown head {name!r}; known: {sorted(HEADS)}")


def _concatenated(streams: Streams, align_corners: bool) -> jax.Array:
    """All streams resized to the first one's size and concatenated."""
    size = streams[0].shape[1:3]
    return jnp.concatenate([resize(s, size, align_corners=align_corners) for s in streams], -1)


def _region_features(pixels: jax.Array, logits: jax.Array) -> jax.Array:
    """[N, classes, C]: features averaged over each class's region.

    The weights are a softmax over positions, not over classes.
    """
    weights = jax.nn.softmax(logits, axis=(1, 2)).astype(pixels.dtype)
    return jnp.einsum("nhwk,nhwc->nkc", weights, pixels)
