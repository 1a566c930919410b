"""The old name of `hrnet_jax.train.optimizers`, for one version."""

import warnings

from hrnet_jax.train.optimizers import make_optimizer, poly_schedule

__all__ = ["make_optimizer", "poly_schedule"]
warnings.warn("hrnet_jax.optim is now hrnet_jax.train.optimizers", DeprecationWarning, stacklevel=2)
