"""The whole network: a backbone with a head, and `create_model`, which builds it."""

import functools
import zlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from hrnet_jax.models.backbone import HRNet
from hrnet_jax.models.heads import HEADS, make_head
from hrnet_jax.models.layers import Policy, bias_bound, kernel_std
from hrnet_jax.models.remat_scan import call
from hrnet_jax.models.variants import Variant, get_variant


class HRNetModel(nn.Module):
    """Backbone and head; see `create_model` for the fields."""

    variant: Variant
    num_classes: int
    head: str
    align_corners: bool
    dropout: float = 0.05
    policy: Policy = Policy()

    @nn.compact
    def __call__(self, images: jax.Array, *, train: bool = False) -> dict[str, jax.Array]:
        """Normalized images [N, H, W, 3] to a dictionary of outputs.

        Returns `logits` [N, ceil(H / 4), ceil(W / 4), num_classes], float32 (float64 in a float64
        network); "ocr" adds `aux_logits` of the same shape; "classification" has `logits`
        [N, num_classes]; "pose" has `heatmaps` at 1/4 resolution; "pyramid" and "features" have
        `features`, a tuple of maps at 1/4, 1/8, 1/16 and 1/32 resolution.
        """
        spec = HEADS[self.head]
        backbone = HRNet(
            self.variant,
            method=spec.method,
            align_corners=self.align_corners,
            single_output=spec.single_output,
            policy=self.policy,
            name="backbone",
        )
        head = make_head(self.head, self.num_classes, self.align_corners, self.dropout, self.policy)
        streams = backbone(images.astype(self.policy.dtype), train=train)
        return call(head, streams, "head", train=train)

    def to_json(self) -> dict[str, Any]:
        """The arguments of `create_model` that checkpoints store with the weights."""
        return {
            "variant": self.variant.name,
            "num_classes": self.num_classes,
            "head": self.head,
            "align_corners": self.align_corners,
            "image_statistics": self.policy.image_statistics,
        }

    @nn.nowrap
    def init(self, rngs, *args, **kwargs) -> dict:
        """Linen's `init`, with the values drawn on the host.

        Structure and distributions are those of the layers' own initializers. Those would compile
        a generator for each of a thousand arrays, which takes longer than compiling the training
        step. The values of an array depend on the key and its path only. They are the same with
        and without jit, and on every platform (NumPy's `RandomState` streams are frozen).
        """
        shapes = jax.eval_shape(functools.partial(super().init, **kwargs), rngs, *args)
        key = rngs["params"] if isinstance(rngs, dict) else rngs
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            key = jax.random.key_data(key)
        draw = functools.partial(_draw, shapes, self.policy.init)
        if isinstance(key, jax.core.Tracer):
            return jax.pure_callback(draw, shapes, key, vmap_method="sequential")
        return jax.tree.map(jnp.asarray, draw(key))


def _draw(shapes: dict, scheme: str, key_data: jax.Array) -> dict:
    """Initial values for the variables `shapes`, as NumPy arrays."""
    flat = traverse_util.flatten_dict(shapes)
    seed = [int(word) for word in np.asarray(key_data).ravel()]

    def value(path: tuple[str, ...]) -> np.ndarray:
        shape = flat[path].shape
        rng = np.random.RandomState([*seed, zlib.crc32("/".join(path).encode())])
        kernel = flat.get((*path[:-1], "kernel"))
        if path[-1] == "kernel" and len(shape) == 4:
            return rng.standard_normal(shape) * kernel_std(path[-2], shape, scheme)
        if kernel is not None:  # a linear layer, or a bias: PyTorch's default
            return rng.uniform(-bias_bound(kernel.shape), bias_bound(kernel.shape), shape)
        return np.full(shape, {"scale": 1, "var": 1, "bias": 0, "mean": 0}[path[-1]])

    return traverse_util.unflatten_dict(
        {path: value(path).astype(leaf.dtype) for path, leaf in flat.items()}
    )


def create_model(
    variant: str | Variant,
    num_classes: int = 19,
    head: str = "segmentation",
    *,
    align_corners: bool | None = None,
    dropout: float = 0.05,
    dtype=jnp.float32,
    param_dtype=jnp.float32,
    init: str = "kaiming",
    remat: str = "none",
    scan: str = "none",
    lanes: int = 0,
    image_statistics: float = 0.0,
    frozen_norm: Mapping[str, bool] | None = None,
) -> HRNetModel:
    """Builds an HRNet as a Linen module.

    Args:
      variant: a name in `VARIANTS`, or a `Variant` of your own.
      num_classes: channels of the logits.
      head: "segmentation" (HRNetV2), "segmentation_v1", "ocr", "classification" (ImageNet),
        "pose", "pyramid" (HRNetV2p, for detectors), or "features" (the streams of the backbone).
      align_corners: of every bilinear resize in the network. None: True for OCR and False for
        the others, as in the official networks.
      dropout: rate of OCR's dropout of whole channels; the other heads have none.
      dtype: of the arithmetic, e.g. `jnp.bfloat16`.
      param_dtype: of parameters and running statistics.
      init: "kaiming" (normal, fan-out: training from scratch) or "normal" (standard deviation
        0.001: the official segmentation code, which loads ImageNet weights afterwards).
      remat: what the backward pass recomputes, see `layers.REMAT`.
      scan: what is compiled once and run in a loop, see `layers.SCAN`.
      lanes: see `layers.Policy`; the trainer sets 128 for TPU.
      image_statistics: fraction of each image's own mean and variance in BatchNorm's statistics
        when `train` is false, 0..1; 0 is the usual BatchNorm. The network then adapts to the light,
        the camera and the street of an image; see `layers.BatchNorm.of_images`, docs/results.md.
      frozen_norm: part of the network ("backbone/stem", "" for all, see `parts`) -> True where
        BatchNorm and dropout work as in evaluation also when `train` is true.

    Raises:
      ValueError: for a name that is unknown or a number that is out of range.
    """
    if head not in HEADS:
        raise ValueError(f"unknown head {head!r}; known: {list(HEADS)}")
    if num_classes < 1 and HEADS[head].has_classes:
        raise ValueError(f"num_classes must be at least 1, not {num_classes}")
    if align_corners is None:
        align_corners = HEADS[head].align_corners
    dtype, param_dtype = jnp.dtype(dtype), jnp.dtype(param_dtype)
    policy = Policy(
        dtype,
        param_dtype,
        init,
        remat,
        scan,
        lanes,
        float(image_statistics),
        tuple((frozen_norm or {}).items()),
    )
    return HRNetModel(get_variant(variant), num_classes, head, align_corners, dropout, policy)
