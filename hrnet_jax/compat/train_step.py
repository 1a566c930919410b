"""The old name of `hrnet_jax.train.step`, for one version."""

import warnings

from hrnet_jax.train import step
from hrnet_jax.train.step import TrainState, create_state

__all__ = ["TrainState", "create_state", "make_train_step"]
warnings.warn("hrnet_jax.train_step is now hrnet_jax.train.step", DeprecationWarning, stacklevel=2)


def make_train_step(*args, accumulate: int = 1, **options):
    """`hrnet_jax.train.step.make_train_step`, with the old name of `gradient_accumulation`."""
    return step.make_train_step(*args, **{"gradient_accumulation": accumulate} | options)
