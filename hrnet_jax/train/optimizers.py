"""Optimizers (SGD as in the official code, AdamW) and learning rate schedules."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import optax

from hrnet_jax.train import param_groups
from hrnet_jax.train.param_groups import ParameterGroups

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("poly", "multistep", "cosine", "one_cycle")

# Of `torch.optim.lr_scheduler.OneCycleLR`: its defaults.
_ONE_CYCLE_START = 25.0  # learning rate / that of the first step
_ONE_CYCLE_END = 1e4  # learning rate of the first step / that of the last one


def poly_schedule(
    learning_rate: float,
    num_steps: int,
    *,
    power: float = 0.9,
    warmup_steps: int = 0,
    hold_fraction: float = 0.0,
) -> optax.Schedule:
    """learning_rate * (1 - step / num_steps) ** power, from step 0, and 0 after the last one.

    With a `hold_fraction` the rate stays `learning_rate` for this fraction of the steps, and falls
    in this way over the rest. During the first `warmup_steps` it is multiplied by
    (step + 1) / warmup_steps as well.

    Raises:
      ValueError: if `num_steps` is below 1, `warmup_steps` not in [0, num_steps], or
        `hold_fraction` not in [0, 1).
    """
    _check_steps(num_steps, warmup_steps)
    if not 0 <= hold_fraction < 1:
        raise ValueError(f"hold_fraction must be in [0, 1), got {hold_fraction}")
    held = hold_fraction * num_steps

    def schedule(step):
        step = jnp.asarray(step, float)  # float64 where JAX may use it, float32 otherwise
        fallen = jnp.maximum(jnp.minimum(step, num_steps) - held, 0) / (num_steps - held)
        return learning_rate * (1 - fallen) ** power * _warmup(step, warmup_steps)

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


def cosine_schedule(
    learning_rate: float, num_steps: int, *, warmup_steps: int = 0
) -> optax.Schedule:
    """learning_rate * (1 + cos(pi * step / num_steps)) / 2, and 0 after the last step.

    `torch.optim.lr_scheduler.CosineAnnealingLR` with T_max = num_steps; warm-up as with
    `poly_schedule`.

    Raises:
      ValueError: as `poly_schedule`.
    """
    _check_steps(num_steps, warmup_steps)

    def schedule(step):
        step = jnp.asarray(step, float)
        rate = _cosine(learning_rate, 0.0, jnp.minimum(step, num_steps) / num_steps)
        return rate * _warmup(step, warmup_steps)

    return schedule


def one_cycle_schedule(
    learning_rate: float, num_steps: int, *, rise_fraction: float = 0.3
) -> optax.Schedule:
    """Rises to `learning_rate` during a fraction of the steps, then falls to nearly 0.

    `torch.optim.lr_scheduler.OneCycleLR` with its defaults for all but `rise_fraction` (its
    pct_start): it starts at 1/25 of the learning rate and ends at 1/250000 of it, with half a
    cosine both ways. Momentum stays as it is (cycle_momentum=False).

    Raises:
      ValueError: if `num_steps` is below 1 or the rise does not leave a step for each way.
    """
    _check_steps(num_steps, 0)
    top, last = rise_fraction * num_steps - 1, num_steps - 1
    if not 0 < top < last:
        raise ValueError(
            f"one_cycle over {num_steps} steps with a rise of {rise_fraction:g} of them does not"
            " leave steps for both the rise and the fall; use more steps or another"
            " config.optimizer.rise_fraction"
        )
    first = learning_rate / _ONE_CYCLE_START
    end = first / _ONE_CYCLE_END

    def schedule(step):
        step = jnp.minimum(jnp.asarray(step, float), last)
        rise = _cosine(first, learning_rate, step / top)
        fall = _cosine(learning_rate, end, (step - top) / (last - top))
        return jnp.where(step <= top, rise, fall)

    return schedule


def _cosine(start: float, end: float, fraction):
    """From `start` to `end` along half a cosine."""
    return end + (start - end) / 2 * (1 + jnp.cos(math.pi * fraction))


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
    groups: ParameterGroups = param_groups.ALL_ALIKE,
) -> optax.GradientTransformation:
    """SGD or AdamW. The decay applies to all parameters, unless `groups` says otherwise.

    "sgd" is `torch.optim.SGD`, as in the official code: the decay is part of the gradient that
    momentum accumulates. "adamw" is `torch.optim.AdamW` with betas (momentum, beta2) and its
    epsilon of 1e-8: each step multiplies the weights by 1 - learning rate * decay.

    Raises:
      ValueError: if there is no optimizer of this name.
    """
    decay = _decay(weight_decay, groups)
    if name == "adamw":
        steps = (optax.scale_by_adam(b1=momentum, b2=beta2, nesterov=nesterov), decay)
    elif name == "sgd":
        steps = (decay, optax.trace(decay=momentum, nesterov=nesterov))
    else:
        raise ValueError(f"unknown optimizer {name!r}; known: {sorted(OPTIMIZERS)}")
    optimizer = optax.chain(*steps, optax.scale_by_learning_rate(schedule))
    return param_groups.with_groups(optimizer, groups)


def _decay(weight_decay: float, groups: ParameterGroups) -> optax.GradientTransformation:
    """Adds to each gradient its parameter times the decay of its group."""
    if not groups.decay_multipliers and groups.decay_norm_and_bias:
        return optax.add_decayed_weights(weight_decay)

    def add(factor, gradient, weight):
        return gradient + weight_decay * factor * weight if factor else gradient

    return optax.stateless(
        lambda gradients, params: param_groups.map_with_paths(add, groups.decay, gradients, params)
    )
