"""Log likelihoods of the true classes, with derivatives of their own, and parts of all losses."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from hrnet_jax.models.linear import linear_call


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
    labels = jnp.asarray(labels).astype(jnp.int32)
    valid = labels != ignore_label
    is_class = (labels >= 0) & (labels < num_classes)
    classes = class_index(labels, valid & is_class)
    if class_weights is None:
        class_weights, of_pixels = jnp.ones(num_classes, logits.dtype), 1
    else:
        class_weights = jnp.asarray(class_weights, logits.dtype)
        if class_weights.shape != (num_classes,):
            raise ValueError(
                f"class_weights has shape {class_weights.shape}, expected ({num_classes},):"
                " one per class"
            )
        of_pixels = select(class_weights, classes)
    weights = jnp.where(valid, jnp.where(is_class, of_pixels, jnp.nan), 0).astype(logits.dtype)
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


def select(values, labels):
    """The value of each pixel's label: [..., C] or [C], [...] -> [...].

    A product and a sum: cheaper than a gather where XLA fuses it, and it keeps any sharding.
    """
    return jnp.sum(one_hot(labels, values) * values, axis=-1)


@jax.custom_jvp
def negative_log_likelihood(logits, labels):
    """-log softmax(logits)[label] per pixel: [..., C], [...] -> [...].

    Its derivative is written out, so that the backward pass keeps only the logits, which exist in
    any case, and one number per pixel, in place of several arrays of the logits' size.
    """
    return _log_sum(logits) - select(logits, labels)


def _log_sum(logits):
    maximum = jnp.max(logits, axis=-1)
    return maximum + jnp.log(jnp.sum(jnp.exp(logits - maximum[..., None]), axis=-1))


@negative_log_likelihood.defjvp
def _negative_log_likelihood_jvp(primals, tangents):
    logits, labels = primals
    log_sum = _log_sum(logits)
    residuals = logits, log_sum, labels
    (change,) = linear_call(_likelihood_tangent, _likelihood_cotangent, residuals, (tangents[0],))
    return log_sum - select(logits, labels), change


def _likelihood_tangent(residuals, tangents):
    logits, log_sum, labels = residuals
    probabilities = jnp.exp(logits - log_sum[..., None])
    return (jnp.sum((probabilities - one_hot(labels, logits)) * tangents[0], axis=-1),)


def _likelihood_cotangent(residuals, gradients):
    logits, log_sum, labels = residuals
    probabilities = jnp.exp(logits - log_sum[..., None])
    return ((probabilities - one_hot(labels, logits)) * gradients[0][..., None],)


@jax.custom_jvp
def smoothed_log_likelihood(logits, labels, fractions):
    """As `negative_log_likelihood`, and sum_c fractions[c] * -log softmax(logits)[c] per pixel.

    `fractions` has no derivative.
    """
    return _smoothed_of_sum(logits, labels, fractions, _log_sum(logits))


def _smoothed_of_sum(logits, labels, fractions, log_sum):
    mean = jnp.sum(fractions) * log_sum - jnp.sum(fractions * logits, axis=-1)
    return log_sum - select(logits, labels), mean


@smoothed_log_likelihood.defjvp
def _smoothed_jvp(primals, tangents):
    logits, labels, fractions = primals[0], primals[1], lax.stop_gradient(primals[2])
    log_sum = _log_sum(logits)
    residuals = logits, log_sum, labels, fractions
    changes = linear_call(_smoothed_tangent, _smoothed_cotangent, residuals, (tangents[0],))
    return _smoothed_of_sum(logits, labels, fractions, log_sum), changes


def _smoothed_tangent(residuals, tangents):
    logits, log_sum, labels, fractions = residuals
    (own,) = _likelihood_tangent((logits, log_sum, labels), tangents)
    probabilities = jnp.exp(logits - log_sum[..., None])
    of_mean = probabilities * jnp.sum(fractions) - fractions
    return own, jnp.sum(of_mean * tangents[0], axis=-1)


def _smoothed_cotangent(residuals, gradients):
    logits, log_sum, labels, fractions = residuals
    own, mean = (gradient[..., None] for gradient in gradients)
    probabilities = jnp.exp(logits - log_sum[..., None])
    of_sum = own + mean * jnp.sum(fractions)
    return (probabilities * of_sum - one_hot(labels, logits) * own - mean * fractions,)


def ratio(total, count):
    """total / count, and 0 (with a gradient of 0) where the count is 0."""
    return jnp.where(count == 0, 0, total / jnp.where(count == 0, 1, count))
