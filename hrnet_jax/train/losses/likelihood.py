"""Log likelihoods of the true classes, with derivatives of their own, and parts of all losses."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Targets(NamedTuple):
    """Logits and labels that fit together.

    Attributes:
      logits: [..., C], float32 or float64.
      classes: int32 [...], the class of each pixel; 0 where the label is no class.
      valid: bool [...], False where the label is the one to be ignored.
      weights: [...], weight of each pixel's class; 0 if ignored, NaN if the label is no class.
      class_weights: [C].
    """

    logits: jax.Array
    classes: jax.Array
    valid: jax.Array
    weights: jax.Array
    class_weights: jax.Array


def checked(
    logits: jax.Array,
    labels: jax.Array,
    ignore_label: int,
    class_weights: Sequence[float] | jax.Array | None,
) -> Targets:
    """What the losses are computed from.

    Raises:
      ValueError: if the shapes do not fit together.
    """
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"logits {logits.shape} do not fit labels {labels.shape}: expected logits of shape"
            f" {(*labels.shape, 'classes')}; resize the logits to the labels' size first"
        )
    num_classes = logits.shape[-1]
    logits = promote(logits)
    if class_weights is None:
        class_weights = jnp.ones(num_classes, logits.dtype)
    class_weights = jnp.asarray(class_weights, logits.dtype)
    if class_weights.shape != (num_classes,):
        raise ValueError(
            f"class_weights has shape {class_weights.shape}, expected ({num_classes},):"
            " one per class"
        )
    labels = jnp.asarray(labels).astype(jnp.int32)
    valid = labels != ignore_label
    is_class = (labels >= 0) & (labels < num_classes)
    classes = class_index(labels, valid & is_class)
    weights = jnp.where(valid, jnp.where(is_class, class_weights[classes], jnp.nan), 0)
    return Targets(logits, classes, valid, weights, class_weights)


def promote(logits):
    """Logits in float32, or in float64 where they are float64."""
    return logits if logits.dtype == jnp.float64 else logits.astype(jnp.float32)


def class_index(labels, valid):
    """The labels as int32, 0 where they are not valid."""
    return jnp.where(valid, labels, 0).astype(jnp.int32)


def one_hot(labels, logits):
    """[...] class indices below 2^24 to [..., C] of the logits' dtype, 1 at the class, 0 elsewhere.

    By arithmetic: XLA CPU's library of fused kernels has no comparisons and selections.
    """
    classes = jnp.arange(logits.shape[-1], dtype=logits.dtype)
    return jnp.maximum(1 - jnp.abs(labels[..., None].astype(logits.dtype) - classes), 0)


def select(logits, labels):
    """The logit of each pixel's label: [..., C], [...] -> [...].

    A product and a sum: cheaper than a gather where XLA fuses it, and it keeps any sharding.
    """
    return jnp.sum(one_hot(labels, logits) * logits, axis=-1)


@jax.custom_vjp
def negative_log_likelihood(logits, labels):
    """-log softmax(logits)[label] per pixel: [..., C], [...] -> [...].

    With its own derivative: only the logits, which exist in any case, and one number per pixel are
    kept for the backward pass, instead of several arrays of the logits' size.
    """
    return _negative_log_likelihood_forward(logits, labels)[0]


def _negative_log_likelihood_forward(logits, labels):
    maximum = jnp.max(logits, axis=-1)
    log_sum = maximum + jnp.log(jnp.sum(jnp.exp(logits - maximum[..., None]), axis=-1))
    return log_sum - select(logits, labels), (logits, log_sum, labels)


def _negative_log_likelihood_backward(residuals, gradient):
    logits, log_sum, labels = residuals
    probabilities = jnp.exp(logits - log_sum[..., None])
    return (probabilities - one_hot(labels, logits)) * gradient[..., None], None


negative_log_likelihood.defvjp(_negative_log_likelihood_forward, _negative_log_likelihood_backward)


@jax.custom_vjp
def smoothed_log_likelihood(logits, labels, fractions):
    """As `negative_log_likelihood`, and sum_c fractions[c] * -log softmax(logits)[c] per pixel."""
    return _smoothed_forward(logits, labels, fractions)[0]


def _smoothed_forward(logits, labels, fractions):
    losses, (_, log_sum, _) = _negative_log_likelihood_forward(logits, labels)
    mean = jnp.sum(fractions) * log_sum - jnp.sum(fractions * logits, axis=-1)
    return (losses, mean), (logits, log_sum, labels, fractions)


def _smoothed_backward(residuals, gradients):
    logits, log_sum, labels, fractions = residuals
    own, mean = (gradient[..., None] for gradient in gradients)
    probabilities = jnp.exp(logits - log_sum[..., None])
    of_sum = own + mean * jnp.sum(fractions)
    return probabilities * of_sum - one_hot(labels, logits) * own - mean * fractions, None, None


smoothed_log_likelihood.defvjp(_smoothed_forward, _smoothed_backward)


def ratio(total, count):
    """total / count, and 0 (with a gradient of 0) where the count is 0."""
    return jnp.where(count == 0, 0, total / jnp.where(count == 0, 1, count))
