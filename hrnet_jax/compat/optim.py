"""The old name of `hrnet_jax.train.optimizers`, for one version."""

import warnings

from hrnet_jax.train.optimizers import make_optimizer, multistep_schedule, poly_schedule

__all__ = ["make_optimizer", "poly_schedule", "staircase_schedule"]
warnings.warn("hrnet_jax.optim is now hrnet_jax.train.optimizers", DeprecationWarning, stacklevel=2)


def staircase_schedule(learning_rate, num_steps, *, drops, factor=0.1, warmup_steps=0):
    """The old name of `multistep_schedule` and of its arguments."""
    return multistep_schedule(
        learning_rate, num_steps, milestones=drops, gamma=factor, warmup_steps=warmup_steps
    )
