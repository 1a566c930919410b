"""The state of a run and one step of it, as pure functions; `build` compiles it for devices."""

import functools
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
    """What a run needs to continue bit for bit; random numbers and data follow from seed and step.

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
    """Initializes a state.

    Args:
      model: from `create_model`.
      optimizer: from `make_optimizer`.
      seed: of the random initialization.
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
    gradient_accumulation: int = 1,
    unroll: bool = False,
    ema_decay: float = 0.0,
    ignore_label: int = 255,
    skip_nonfinite: bool = False,
    color_jitter: float = 0.0,
    class_mix: float = 0.0,
    photometric: float = 0.0,
    blur: float = 0.0,
    erasing: float = 0.0,
    segmentation_loss: Callable[..., tuple[jax.Array, jax.Array]] = losses.segmentation_loss,
) -> Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, Metrics]]:
    """Builds the pure function (state, batch) -> (state, metrics).

    The batch holds "image" uint8 [N, H, W, 3] and "label" [N, H, W] train ids, or [N] classes of
    whole images. The metrics are the scalars loss, pixel_accuracy, grad_norm and learning_rate
    (that of this step), and "probe", which tells where a number was not finite: `nan_diagnosis`.

    Args:
      model: from `create_model`.
      optimizer: from `make_optimizer`.
      schedule: the learning rate in it, for the metrics.
      loss_function: maps logits and labels at full size to a scalar.
      seed: of dropout and the augmentation on the device, together with the step.
      gradient_accumulation: number of parts of the batch, see `_accumulated_gradients`.
      unroll: writes the parts out one by one instead of as a loop. XLA CPU's convolutions are
        slow inside a loop; elsewhere a loop compiles faster.
      ema_decay: decay of the moving averages, if the state has any.
      ignore_label: label that the accuracy leaves out. The loss function has its own.
      skip_nonfinite: if the loss or the gradient's norm is not finite, only counters change.
      color_jitter: 0..1, see `augment.color_factors`; 0 leaves the images alone.
      class_mix: fraction of the images that get classes of others, see `augment.mix_classes`.
      photometric: 0..1, see `augment.photometric_numbers`.
      blur: largest standard deviation in pixels, see `augment.blur_sigmas`.
      erasing: fraction of the images with an erased rectangle, see `augment.erased_boxes`.
      segmentation_loss: `losses.segmentation_loss`, maybe with its options for auxiliary logits.
    """
    loss_of = functools.partial(
        segmentation_loss, loss_function=loss_function, align_corners=model.align_corners
    )
    settings = augment.Settings(color_jitter, class_mix, photometric, blur, erasing)
    forward = functools.partial(_forward, model, loss_of, ignore_label, settings)
    gradient_function = jax.grad(forward, has_aux=True)

    def train_step(state, batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        # The whole batch is mixed before it is split into parts. Other changes are made part by
        # part, since they make the images float32.
        batch = augment.draw(settings, batch, seed, state.step, ignore_label)
        gradients, batch_stats, metrics = _accumulated_gradients(
            gradient_function, state, batch, key, gradient_accumulation, unroll
        )
        new = _updated(state, gradients, batch_stats, optimizer, ema_decay)
        metrics |= _gradient_metrics(gradients, batch_stats)
        metrics["learning_rate"] = jnp.asarray(schedule(state.step))
        return _where_finite(metrics, new, state) if skip_nonfinite else new, metrics

    return train_step


def _forward(model, loss_of, ignore_label, settings, params, batch_stats, batch, key):
    """The loss, and as auxiliary output the new batch statistics and the metrics."""
    images = augment.apply(settings, batch)
    outputs, updated = model.apply(
        {"params": params, "batch_stats": batch_stats},
        normalize.normalize(images, model.policy.dtype),
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": key},
    )
    loss, logits = loss_of(outputs, batch["label"])
    accuracy = losses.pixel_accuracy(lax.stop_gradient(logits), batch["label"], ignore_label)
    return loss, (updated["batch_stats"], {"loss": loss, "pixel_accuracy": accuracy})


def _accumulated_gradients(gradient_function, state, batch, key, parts, unroll):
    """Gradients, new batch statistics and metrics of a batch that is computed in parts.

    The parts are computed one after the other, so only the activations of one are in memory. Their
    losses and gradients are averaged. Each part updates the batch statistics by its own, as if it
    were a batch.
    """
    if parts == 1:
        gradients, (batch_stats, metrics) = gradient_function(
            state.params, state.batch_stats, batch, key
        )
        return gradients, batch_stats, metrics

    def add_part(carry, part):
        total, batch_stats, key = carry
        key, part_key = jax.random.split(key)
        gradients, (batch_stats, metrics) = gradient_function(
            state.params, batch_stats, part, part_key
        )
        total = jax.tree.map(lambda t, g: t + g / parts, total, gradients)
        return (total, batch_stats, key), metrics

    # Part i takes every parts-th image, so that each device has images of each part.
    batches = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), batch)
    zeros = jax.tree.map(jnp.zeros_like, state.params)
    (gradients, batch_stats, _), metrics = lax.scan(
        add_part, (zeros, state.batch_stats, key), batches, unroll=parts if unroll else 1
    )
    return gradients, batch_stats, jax.tree.map(jnp.mean, metrics)


def _updated(state, gradients, batch_stats, optimizer, ema_decay):
    """The state after the optimizer's step and the update of the moving averages.

    Their decay is at most (1 + step) / (10 + step), as in TensorFlow's ExponentialMovingAverage, so
    that the random initialization is forgotten early.
    """
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema is not None:
        decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
        new = {"params": params, "batch_stats": batch_stats}
        ema = jax.tree.map(lambda e, n: (decay * e + (1 - decay) * n).astype(e.dtype), ema, new)
    return TrainState(state.step + 1, params, batch_stats, opt_state, ema)


def _gradient_metrics(gradients, batch_stats):
    """The gradient's norm, and the probe that `nan_diagnosis` reads: no extra work in the step."""
    squares = jnp.stack([jnp.sum(jnp.square(g)) for g in jax.tree.leaves(gradients)])
    statistics = jnp.concatenate([x.ravel() for x in jax.tree.leaves(batch_stats)])
    return {
        "grad_norm": jnp.sqrt(jnp.sum(squares)),
        "probe": {"gradients": squares, "batch_stats": statistics},
    }


def _where_finite(metrics, new, old):
    """The new state where loss and gradient are finite, else the old one with the new counters."""
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
    return jax.tree.map(
        # Integers are the counters of steps. They advance, as the data do.
        lambda n, o: jnp.where(finite, n, o) if jnp.issubdtype(n.dtype, jnp.inexact) else n,
        new,
        old,
    )
