"""Losses of semantic segmentation. Logits are NHWC, labels integer class indices.

Everything is computed in float32, or in float64 where the logits are float64; bfloat16 logits are
promoted first. All reductions are sums and counts over the whole batch, so under `jax.jit` with a
batch that is sharded over devices the result is that of the global batch.
"""

from hrnet_jax.train.losses.outputs import (
    LossFunction,
    pixel_accuracy,
    segmentation_loss,
    weighted_sum,
)
from hrnet_jax.train.losses.pixel import (
    boundary_cross_entropy,
    cross_entropy,
    focal,
    kth_smallest,
    near_boundary,
    ohem_cross_entropy,
)
from hrnet_jax.train.losses.region import dice, lovasz_softmax

__all__ = [
    "LossFunction",
    "boundary_cross_entropy",
    "cross_entropy",
    "dice",
    "focal",
    "kth_smallest",
    "lovasz_softmax",
    "near_boundary",
    "ohem_cross_entropy",
    "pixel_accuracy",
    "segmentation_loss",
    "weighted_sum",
]
