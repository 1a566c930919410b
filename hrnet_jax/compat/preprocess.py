"""The old name of `hrnet_jax.models.normalize`, for one version."""

import warnings

from hrnet_jax.models.normalize import MEAN, STD, normalize

__all__ = ["MEAN", "STD", "normalize"]
warnings.warn(
    "hrnet_jax.preprocess is now hrnet_jax.models.normalize", DeprecationWarning, stacklevel=2
)
