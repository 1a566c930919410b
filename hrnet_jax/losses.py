"""The loss functions of `hrnet_jax.train.losses`, under their public name."""

from hrnet_jax.train.losses import LossFunction, cross_entropy, ohem_cross_entropy

__all__ = ["LossFunction", "cross_entropy", "ohem_cross_entropy"]
