"""The official optimiser: SGD with momentum, weight decay on everything, poly learning rate."""

import jax.numpy as jnp
import optax


def poly_schedule(
    learning_rate: float, num_steps: int, *, power: float = 0.9, warmup_steps: int = 0
) -> optax.Schedule:
    """learning_rate * (1 - step / num_steps) ** power, from step 0, and 0 after the last one.

    During the first `warmup_steps` it is multiplied by (step + 1) / warmup_steps as well.

    Raises:
      ValueError: if `num_steps` is below 1 or `warmup_steps` not in [0, num_steps].
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    if not 0 <= warmup_steps <= num_steps:
        raise ValueError(f"warmup_steps must be in [0, {num_steps}], got {warmup_steps}")

    def schedule(step):
        step = jnp.asarray(step, float)  # float64 where JAX may use it, float32 otherwise
        rate = learning_rate * (1 - jnp.minimum(step, num_steps) / num_steps) ** power
        return rate * jnp.minimum(1, (step + 1) / warmup_steps) if warmup_steps else rate

    return schedule


def make_optimizer(
    schedule: optax.Schedule, *, momentum: float = 0.9, weight_decay: float = 5e-4
) -> optax.GradientTransformation:
    """SGD as `torch.optim.SGD`: the decay is part of the gradient that momentum accumulates.

    The decay applies to all parameters, biases and BatchNorm's included, as in the official code.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.trace(decay=momentum),
        optax.scale_by_learning_rate(schedule),
    )
