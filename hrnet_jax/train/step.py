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
from hrnet_jax.train import augment, distill, losses, param_groups
from hrnet_jax.train.param_groups import ParameterGroups

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
    clip_norm: float = 0.0,
    groups: ParameterGroups = param_groups.ALL_ALIKE,
    photometric: float = 0.0,
    blur: float = 0.0,
    erasing: float = 0.0,
    segmentation_loss: Callable[..., tuple[jax.Array, jax.Array]] = losses.segmentation_loss,
    distillation: distill.Distillation | None = None,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Builds the pure function (state, batch) -> (state, metrics).

    With distillation it is (state, batch, teacher's variables) -> (state, metrics): as an input
    they are no constants of the program. The metrics get "distill_loss" and "distill_pixels", the
    fraction of the pixels that count in it; "loss" is the sum that is minimized.

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
      clip_norm: gradients with a larger norm are scaled to this one, see `_clipped`; 0: never.
      groups: which parameters are frozen: not differentiated, and not part of the norm.
      photometric: 0..1, see `augment.photometric_numbers`.
      blur: largest standard deviation in pixels, see `augment.blur_sigmas`.
      erasing: fraction of the images with an erased rectangle, see `augment.erased_boxes`.
      segmentation_loss: `losses.segmentation_loss`, maybe with its options for auxiliary logits.
      distillation: the teacher and its loss, or None. With parts, each part has its own mean.
    """
    loss_of = functools.partial(
        segmentation_loss, loss_function=loss_function, align_corners=model.align_corners
    )
    settings = augment.Settings(color_jitter, class_mix, photometric, blur, erasing)

    def train_step(state, batch, teacher=None):
        forward = functools.partial(
            _forward, model, loss_of, ignore_label, settings, distillation, teacher
        )
        params, frozen = groups.split(state.params)
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        # The whole batch is mixed before it is split into parts. Other changes are made part by
        # part, since they make the images float32.
        batch = augment.draw(settings, batch, seed, state.step, ignore_label)
        gradients, batch_stats, metrics = _accumulated_gradients(
            _gradient_function(forward, frozen),
            params,
            state.batch_stats,
            batch,
            key,
            gradient_accumulation,
            unroll,
        )
        metrics |= _gradient_metrics(gradients, frozen, batch_stats)
        metrics["learning_rate"] = jnp.asarray(schedule(state.step))
        if clip_norm:
            gradients = _clipped(gradients, metrics["grad_norm"], clip_norm)
        new = _updated(state, gradients, batch_stats, optimizer, ema_decay, groups)
        return _where_finite(metrics, new, state) if skip_nonfinite else new, metrics

    return train_step


def _gradient_function(forward, frozen):
    """Like `forward`, but of the trained parameters; returns the gradient and the rest."""

    def of_trained(params, *others):
        return forward(param_groups.merge(params, frozen), *others)

    return jax.grad(of_trained, has_aux=True)


def _forward(
    model, loss_of, ignore_label, settings, distillation, teacher, params, batch_stats, batch, key
):
    """The loss, and as auxiliary output the new batch statistics and the metrics."""
    images = augment.apply(settings, batch)
    inputs = normalize.normalize(images, model.policy.dtype)
    outputs, updated = model.apply(
        {"params": params, "batch_stats": batch_stats},
        inputs,
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": key},
    )
    loss, logits = loss_of(outputs, batch["label"])
    accuracy = losses.pixel_accuracy(lax.stop_gradient(logits), batch["label"], ignore_label)
    metrics = {"pixel_accuracy": accuracy}
    if distillation is not None:
        padding = distill.padding_of(batch["image"], batch["label"], ignore_label)
        distance, kept = distillation.loss(teacher, inputs, outputs["logits"], padding)
        metrics |= {"distill_loss": distance, "distill_pixels": kept}
        loss += distillation.weight * distance
    return loss, (updated["batch_stats"], {"loss": loss, **metrics})


def _accumulated_gradients(gradient_function, params, batch_stats, batch, key, parts, unroll):
    """Gradients, new batch statistics and metrics of a batch that is computed in parts.

    The parts are computed one after the other, so only the activations of one are in memory. Their
    losses and gradients are averaged. Each part updates the batch statistics by its own, as if it
    were a batch.
    """
    if parts == 1:
        gradients, (batch_stats, metrics) = gradient_function(params, batch_stats, batch, key)
        return gradients, batch_stats, metrics

    def add_part(carry, part):
        total, batch_stats, key = carry
        key, part_key = jax.random.split(key)
        gradients, (batch_stats, metrics) = gradient_function(params, batch_stats, part, part_key)
        total = jax.tree.map(lambda t, g: t + g / parts, total, gradients)
        return (total, batch_stats, key), metrics

    # Part i takes every parts-th image, so that each device has images of each part.
    batches = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), batch)
    zeros = jax.tree.map(jnp.zeros_like, params)
    (gradients, batch_stats, _), metrics = lax.scan(
        add_part, (zeros, batch_stats, key), batches, unroll=parts if unroll else 1
    )
    return gradients, batch_stats, jax.tree.map(jnp.mean, metrics)


def _clipped(gradients, norm, limit):
    """The gradients times min(1, limit / norm), as PyTorch's `clip_grad_norm_`, epsilon included.

    The norm is that of the whole gradient: of the global batch, for any mesh.
    """
    factor = jnp.minimum(1, limit / (norm + 1e-6))
    return jax.tree.map(lambda g: (g * factor).astype(g.dtype), gradients)


def _updated(state, gradients, batch_stats, optimizer, ema_decay, groups):
    """The state after the optimizer's step and the update of the moving averages."""
    params, frozen = groups.split(state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, params)
    params = param_groups.merge(optax.apply_updates(params, updates), frozen)
    new = TrainState(state.step + 1, params, batch_stats, opt_state)
    return new.replace(ema=_averaged(state, new, ema_decay, groups))


def _averaged(state, new, ema_decay, groups):
    """The moving averages after the step; None if the state has none.

    Their decay is at most (1 + step) / (10 + step), as in TensorFlow's ExponentialMovingAverage, so
    that the random initialization is forgotten early. What is frozen stays to the last bit.
    """
    if state.ema is None:
        return None
    decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))

    def average(old, new):
        (old, frozen), (new, _) = groups.split(old), groups.split(new)
        mixed = jax.tree.map(lambda e, n: (decay * e + (1 - decay) * n).astype(e.dtype), old, new)
        return param_groups.merge(mixed, frozen)

    return {
        "params": average(state.ema["params"], new.params),
        "batch_stats": average(state.ema["batch_stats"], new.batch_stats),
    }


def _gradient_metrics(gradients, frozen, batch_stats):
    """The gradient's norm, and the probe that `nan_diagnosis` reads: no extra work in the step.

    Frozen parameters have a gradient of 0 in the probe.
    """
    squares = param_groups.merge(
        jax.tree.map(lambda g: jnp.sum(jnp.square(g)), gradients),
        jax.tree.map(lambda p: jnp.zeros((), p.dtype), frozen),
    )
    squares = jnp.stack(jax.tree.leaves(squares))
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
