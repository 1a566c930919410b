"""From the outputs of a network to its loss and accuracy."""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from hrnet_jax.models.resize import resize
from hrnet_jax.train.losses.likelihood import class_index, promote, ratio, select

LossFunction = Callable[[jax.Array, jax.Array], jax.Array]


def segmentation_loss(
    outputs: Mapping[str, jax.Array],
    labels: jax.Array,
    loss_function: LossFunction,
    *,
    align_corners: bool,
    aux_loss_function: LossFunction | None = None,
    aux_weight: float = 0.4,
    main_weight: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Loss of a model's outputs, whose logits are resized bilinearly to the labels' size first.

    Logits [N, C] of whole images are not resized.

    Args:
      outputs: "logits" [N, h, w, C], and "aux_logits" of the same shape where the model has them.
      labels: [N, H, W] integers, or [N].
      loss_function: maps logits [N, H, W, C] and labels to a scalar.
      align_corners: the model's own way to resize.
      aux_loss_function: of the auxiliary logits; None: `loss_function`. The official OCR code has
        plain cross-entropy there, also where the main logits have OHEM.
      aux_weight: weight of the auxiliary logits' loss; 0.4 in the official OCR recipe.
      main_weight: weight of the main logits' loss, if there are auxiliary ones.

    Returns:
      The loss and the main logits at the labels' size, [N, H, W, C].
    """
    if labels.ndim == 1:
        return loss_function(outputs["logits"], labels), outputs["logits"]
    size = labels.shape[1:3]
    logits = resize(outputs["logits"], size, align_corners=align_corners)
    loss = loss_function(logits, labels)
    if "aux_logits" in outputs:
        aux_logits = resize(outputs["aux_logits"], size, align_corners=align_corners)
        aux_loss = (aux_loss_function or loss_function)(aux_logits, labels)
        loss = main_weight * loss + aux_weight * aux_loss
    return loss, logits


def pixel_accuracy(logits: jax.Array, labels: jax.Array, ignore_label: int = 255) -> jax.Array:
    """Fraction of the valid pixels whose true class has the largest logit; 0 if none is valid.

    Compares the true class's logit to the maximum, which the loss computes too, instead of an arg
    max, which is many times as slow on CPU. A tie counts as correct.
    """
    logits = promote(logits)
    valid = labels != ignore_label
    true_logits = select(logits, class_index(labels, valid))
    correct = valid & (true_logits >= jnp.max(logits, axis=-1))
    return ratio(jnp.sum(correct, dtype=logits.dtype), jnp.sum(valid, dtype=logits.dtype))


def weighted_sum(
    logits: jax.Array, labels: jax.Array, terms: Sequence[tuple[LossFunction, float]]
) -> jax.Array:
    """The sum of weight * loss over the terms, each a loss function and its weight."""
    return jnp.sum(jnp.stack([weight * function(logits, labels) for function, weight in terms]))
