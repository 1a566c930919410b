"""Optimizers (SGD as in the official code, AdamW) and learning rate schedules."""

from collections.abc import Sequence

import jax.numpy as jnp
import optax

OPTIMIZERS = ("sgd", "adamw")


def poly_schedule(
    learning_rate: float, num_steps: int, *, power: float = 0.9, warmup_steps: int = 0
) -> optax.Schedule:
    """learning_rate * (1 - step / num_steps) ** power, from step 0, and 0 after the last one.

    During the first `warmup_steps` it is multiplied by (step + 1) / warmup_steps as well.

    Raises:
      ValueError: if `num_steps` is below 1 or `warmup_steps` not in [0, num_steps].
    """
    _check_steps(num_steps, warmup_steps)

    def schedule(step):
        step = jnp.asarray(step, float)  # float64 where JAX may use it, float32 otherwise
        rate = learning_rate * (1 - jnp.minimum(step, num_steps) / num_steps) ** power
        return rate * _warmup(step, warmup_steps)

    return schedule


def multistep_schedule(
    learning_rate: float,
    num_steps: int,
    *,
    milestones: Sequence[int],
    gamma: float = 0.1,
    warmup_steps: int = 0,
) -> optax.Schedule:
    """learning_rate * gamma ** (number of `milestones` at or before this step).

    `torch.optim.lr_scheduler.MultiStepLR` of the official ImageNet code, with milestones in steps;
    warm-up as with `poly_schedule`.

    Raises:
      ValueError: as `poly_schedule`, and if the milestones are not in ascending order.
    """
    _check_steps(num_steps, warmup_steps)
    if list(milestones) != sorted(milestones) or any(m < 0 for m in milestones):
        raise ValueError(
            f"milestones of the learning rate must be 0 or more in ascending order,"
            f" got {milestones}"
        )

    def schedule(step):
        passed = sum((jnp.where(step >= m, 1, 0) for m in milestones), jnp.zeros((), int))
        step = jnp.asarray(step, float)
        return learning_rate * jnp.asarray(gamma, float) ** passed * _warmup(step, warmup_steps)

    return schedule


def _check_steps(num_steps: int, warmup_steps: int) -> None:
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    if not 0 <= warmup_steps <= num_steps:
        raise ValueError(f"warmup_steps must be in [0, {num_steps}], got {warmup_steps}")


def _warmup(step, warmup_steps: int):
    return jnp.minimum(1, (step + 1) / warmup_steps) if warmup_steps else 1


def make_optimizer(
    schedule: optax.Schedule,
    *,
    name: str = "sgd",
    momentum: float = 0.9,
    beta2: float = 0.999,
    weight_decay: float = 5e-4,
    nesterov: bool = False,
) -> optax.GradientTransformation:
    """SGD or AdamW. The decay applies to all parameters, biases and BatchNorm's included.

    "sgd" is `torch.optim.SGD`, as in the official code: the decay is part of the gradient that
    momentum accumulates. "adamw" is `torch.optim.AdamW` with betas (momentum, beta2) and its
    epsilon of 1e-8: each step multiplies the weights by 1 - learning rate * decay.

    Raises:
      ValueError: if there is no optimizer of this name.
    """
    if name == "adamw":
        return optax.adamw(
            schedule, b1=momentum, b2=beta2, weight_decay=weight_decay, nesterov=nesterov
        )
    if name != "sgd":
        raise ValueError(f"unknown optimizer {name!r}; known: {sorted(OPTIMIZERS)}")
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.trace(decay=momentum, nesterov=nesterov),
        optax.scale_by_learning_rate(schedule),
    )
