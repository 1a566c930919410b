"""The loss functions of `hrnet_jax.train.losses`, under their public name."""

from hrnet_jax.train.losses import (
    LossFunction,
    boundary_cross_entropy,
    cross_entropy,
    dice,
    focal,
    lovasz_softmax,
    ohem_cross_entropy,
)

__all__ = [
    "LossFunction",
    "boundary_cross_entropy",
    "cross_entropy",
    "dice",
    "focal",
    "lovasz_softmax",
    "ohem_cross_entropy",
]
