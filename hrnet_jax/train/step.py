"""The state of a training run and one pure step of it; jit, devices and I/O are the trainer's."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import lax

from hrnet_jax.models import normalize
from hrnet_jax.train import augment, losses

Metrics = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
    """All that a bitwise continuation needs; random numbers and data follow from seed and step.

    Attributes:
      step: optimizer steps done, int32 scalar.
      params: the network's parameters.
      batch_stats: BatchNorm's running statistics.
      opt_state: the optimizer's state.
      ema: moving averages {"params", "batch_stats"}, or None.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any = None


def create_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    ema: bool = False,
    variables: Mapping[str, Any] | None = None,
) -> TrainState:
    """Initialises a state.

    Args:
      model: from `create_model`.
      optimizer: from `make_optimizer`.
      seed: of the random initialisation.
      ema: whether to keep moving averages.
      variables: {"params", "batch_stats"} to start from instead of random ones.
    """
    if variables is None:
        # Parameters do not depend on the size of the images.
        variables = model.init(jax.random.key(seed), jnp.zeros((1, 64, 64, 3)))
    params, batch_stats = variables["params"], variables["batch_stats"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        opt_state=optimizer.init(params),
        # Copies: the step donates its state, and no buffer can be donated twice.
        ema=jax.tree.map(jnp.copy, {"params": params, "batch_stats": batch_stats}) if ema else None,
    )


def make_train_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    loss_function: losses.LossFunction,
    *,
    seed: int,
    accumulate: int = 1,
    unroll: bool = False,
    ema_decay: float = 0.0,
    ignore_label: int = 255,
    skip_nonfinite: bool = False,
    color_jitter: float = 0.0,
    class_mix: float = 0.0,
) -> Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, Metrics]]:
    """Builds the pure function (state, batch) -> (state, metrics).

    The batch holds "image" uint8 [N, H, W, 3] and "label" [N, H, W] train ids, or [N] with the
    head that classifies whole images. The metrics are the
    scalars loss, pixel_accuracy, grad_norm and learning_rate, the latter as used in this step, and
    under "probe" what tells afterwards where a number was not finite, see `diagnosis`.

    Args:
      model: from `create_model`.
      optimizer: from `make_optimizer`.
      schedule: the learning rate in it, for the metrics.
      loss_function: maps logits and labels at full size to a scalar.
      seed: of dropout, colours and mixing, together with the step.
      accumulate: computes the batch in this many parts, one after the other, and averages their
        losses and gradients. Statistics are those of each part, as if it were a batch. It needs
        the activations of one part only.
      unroll: writes the parts out one by one instead of as a loop. XLA CPU's convolutions are
        slow inside a loop; elsewhere a loop compiles faster.
      ema_decay: decay of the moving averages, kept if the state has any. It is at most
        (1 + step) / (10 + step), so that the random initialisation is forgotten early.
      ignore_label: what the accuracy leaves out, as the loss function does by itself.
      skip_nonfinite: leaves everything but the counters as it was where the loss or the gradient's
        norm is not finite.
      color_jitter: random brightness, contrast and saturation of each image by up to this share,
        see `augment.adjust_color`; 0 leaves the images alone.
      class_mix: share of the images that get classes of others, see `augment.mix_classes`.
    """
    dtype = model.policy.dtype

    def forward(params, batch_stats, part, key):
        images = part["image"]
        if color_jitter:
            images = augment.adjust_color(images, part["color"])
        outputs, updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            normalize.normalize(images, dtype),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        loss, logits = losses.segmentation_loss(
            outputs, part["label"], loss_function, align_corners=model.align_corners
        )
        accuracy = losses.pixel_accuracy(lax.stop_gradient(logits), part["label"], ignore_label)
        return loss, (updated["batch_stats"], {"loss": loss, "pixel_accuracy": accuracy})

    gradient_function = jax.grad(forward, has_aux=True)

    def gradients_of_batch(state, batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        batch = dict(batch)
        if class_mix:
            batch["image"], batch["label"] = augment.mix_classes(
                batch["image"], batch["label"], seed, state.step, class_mix, ignore_label
            )
        if color_jitter:
            batch["color"] = augment.color_factors(
                seed, state.step, len(batch["image"]), color_jitter
            )
        if accumulate == 1:
            gradients, rest = gradient_function(state.params, state.batch_stats, batch, key)
            return gradients, *rest

        def add_part(carry, part):
            total, batch_stats, key = carry
            key, part_key = jax.random.split(key)
            gradients, (batch_stats, metrics) = gradient_function(
                state.params, batch_stats, part, part_key
            )
            total = jax.tree.map(lambda t, g: t + g / accumulate, total, gradients)
            return (total, batch_stats, key), metrics

        # Part i takes every accumulate-th image, so that all devices have a share of each part.
        parts = jax.tree.map(
            lambda x: jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0), batch
        )
        zeros = jax.tree.map(jnp.zeros_like, state.params)
        (gradients, batch_stats, _), metrics = lax.scan(
            add_part, (zeros, state.batch_stats, key), parts, unroll=accumulate if unroll else 1
        )
        return gradients, batch_stats, jax.tree.map(jnp.mean, metrics)

    def train_step(state, batch):
        gradients, batch_stats, metrics = gradients_of_batch(state, batch)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
            new = {"params": params, "batch_stats": batch_stats}
            ema = jax.tree.map(lambda e, n: (decay * e + (1 - decay) * n).astype(e.dtype), ema, new)
        squares = jnp.stack([jnp.sum(jnp.square(g)) for g in jax.tree.leaves(gradients)])
        metrics |= {
            "grad_norm": jnp.sqrt(jnp.sum(squares)),
            "learning_rate": jnp.asarray(schedule(state.step)),
            # Computed in any case, hence for nothing.
            "probe": {
                "gradients": squares,
                "batch_stats": jnp.concatenate([x.ravel() for x in jax.tree.leaves(batch_stats)]),
            },
        }
        new = TrainState(state.step + 1, params, batch_stats, opt_state, ema)
        if skip_nonfinite:
            finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
            new = jax.tree.map(
                # The integers are counters, which follow the data.
                lambda n, o: jnp.where(finite, n, o) if jnp.issubdtype(n.dtype, jnp.inexact) else n,
                new,
                state,
            )
        return new, metrics

    return train_step
