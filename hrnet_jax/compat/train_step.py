"""The old name of `hrnet_jax.train.step`, for one version."""

import warnings

from hrnet_jax.train.step import TrainState, create_state, make_train_step

__all__ = ["TrainState", "create_state", "make_train_step"]
warnings.warn("hrnet_jax.train_step is now hrnet_jax.train.step", DeprecationWarning, stacklevel=2)
