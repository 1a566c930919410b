"""Losses of semantic segmentation. Logits are NHWC, labels integer class indices.

Everything is computed in float32, or in float64 where the logits are float64; bfloat16 logits are
promoted first. All reductions are plain sums and counts over the whole batch, so under `jax.jit`
with a batch that is sharded over devices the result is that of the global batch.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from hrnet_jax.models.resize import resize

LossFunction = Callable[[jax.Array, jax.Array], jax.Array]


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    ignore_label: int = 255,
    class_weights: Sequence[float] | jax.Array | None = None,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """Cross-entropy averaged over the valid pixels, weighted by class: sum(w * loss) / sum(w).

    With smoothing e, a pixel's w * loss becomes (1 - e) * w * loss + e * (the mean over all C
    classes of their weight times the loss were that the true class); the divisor stays. All as
    `torch.nn.CrossEntropyLoss`.

    Args:
      logits: [..., C], at the size of the labels.
      labels: [...] integers. A value that is neither `ignore_label` nor a class makes the loss NaN.
      ignore_label: pixels of this label do not count.
      class_weights: C weights, or None for equal ones.
      label_smoothing: 0..1.

    Returns:
      A scalar. 0 if no pixel is valid (PyTorch returns NaN there), with a gradient of 0.

    Raises:
      ValueError: if the shapes do not fit together, or for a smoothing outside 0..1.
    """
    _, weighted, weights = _pixel_losses(
        logits, labels, ignore_label, class_weights, label_smoothing
    )
    return _ratio(jnp.sum(weighted), jnp.sum(weights))


def ohem_cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    threshold: float = 0.9,
    min_kept: int = 131072,
    ignore_label: int = 255,
    class_weights: Sequence[float] | jax.Array | None = None,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """Cross-entropy over the hard pixels (online hard example mining), as the official HRNet code.

    With p the probability of a pixel's true class and the valid pixels sorted by p in ascending
    order, a pixel is kept where p < max(threshold, p[min(min_kept, n - 1)]): all pixels below
    `threshold`, and at least about `min_kept` ones over the whole batch. The result is the mean of
    the class-weighted losses over the number of kept pixels (not over the sum of their weights).

    Args:
      logits: [..., C], at the size of the labels.
      labels: [...] integers. A value that is neither `ignore_label` nor a class makes the loss NaN.
      threshold: probability above which a pixel counts as easy.
      min_kept: number of pixels to keep even if they are easy; values below 1 mean 1.
      ignore_label: pixels of this label do not count.
      class_weights: C weights, or None for equal ones.
      label_smoothing: 0..1, of the kept pixels' losses, as in `cross_entropy`. Which are kept
        depends on the true class alone.

    Returns:
      A scalar. 0 if no pixel is valid or kept (PyTorch returns NaN there), with a gradient of 0.

    Raises:
      ValueError: if the shapes do not fit together, or for a smoothing outside 0..1.
    """
    losses, weighted, _ = _pixel_losses(
        logits, labels, ignore_label, class_weights, label_smoothing
    )
    valid = labels != ignore_label
    probabilities = lax.stop_gradient(jnp.exp(-losses))
    limit = jnp.asarray(threshold, probabilities.dtype)
    position = jnp.minimum(max(1, min_kept), jnp.sum(valid, dtype=jnp.int32) - 1)
    # The search is skipped while enough pixels are hard, which is most of the training.
    enough = jnp.sum(valid & (probabilities <= limit), dtype=jnp.int32) > position
    limit = lax.cond(
        enough,
        lambda: limit,
        lambda: jnp.maximum(limit, kth_smallest(probabilities, valid, position)),
    )
    # A NaN is kept, so that it shows in the loss instead of passing for an easy pixel.
    kept = valid & ((probabilities < limit) | jnp.isnan(probabilities))
    return _ratio(jnp.sum(jnp.where(kept, weighted, 0)), jnp.sum(kept, dtype=losses.dtype))


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
    logits = _promote(logits)
    valid = labels != ignore_label
    true_logits = _select(logits, _safe(labels, valid))
    correct = valid & (true_logits >= jnp.max(logits, axis=-1))
    return _ratio(jnp.sum(correct, dtype=logits.dtype), jnp.sum(valid, dtype=logits.dtype))


def kth_smallest(values: jax.Array, valid: jax.Array, k: jax.Array) -> jax.Array:
    """The k-th smallest (from 0) of the valid values, exactly as a sort would give it.

    The bits of non-negative floats, read as an integer, are ordered as the floats are. So
    bisecting those integers finds the value in about 30 counts. Unlike a sort or a gather, a count
    over a sharded array needs one scalar sum across devices only.

    Args:
      values: floats >= 0, of any shape.
      valid: bool of the same shape, true somewhere.
      k: scalar, 0 <= k < number of valid values.
    """
    integer = jnp.int64 if values.dtype == jnp.float64 else jnp.int32
    bits = lax.bitcast_convert_type(values, integer)
    largest = jnp.max(jnp.where(valid, bits, 0))

    def halve(bounds):
        low, high = bounds
        middle = low + (high - low) // 2
        above = jnp.sum(valid & (bits <= middle), dtype=jnp.int32) > k
        return jnp.where(above, low, middle + 1), jnp.where(above, middle, high)

    low, _ = lax.while_loop(lambda b: b[0] < b[1], halve, (jnp.zeros_like(largest), largest))
    return lax.bitcast_convert_type(low, values.dtype)


def _pixel_losses(logits, labels, ignore_label, class_weights, label_smoothing):
    """Losses, weighted (and smoothed) losses, and weights, each [...].

    The latter two are 0 where a label is ignored and NaN where it is no class.
    """
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be in 0..1, got {label_smoothing}")
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"logits {logits.shape} do not fit labels {labels.shape}: expected logits of shape"
            f" {(*labels.shape, 'classes')}; resize the logits to the labels' size first"
        )
    num_classes = logits.shape[-1]
    logits = _promote(logits)
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
    safe = _safe(labels, valid & is_class)
    weights = jnp.where(valid, jnp.where(is_class, class_weights[safe], jnp.nan), 0)
    if not label_smoothing:
        losses = _negative_log_likelihood(logits, safe)
        return losses, losses * weights, weights
    losses, mean = _smoothed(logits, safe, class_weights / num_classes)
    weighted = (1 - label_smoothing) * losses * weights
    return losses, weighted + label_smoothing * jnp.where(valid, mean, 0), weights


def _promote(logits):
    return logits if logits.dtype == jnp.float64 else logits.astype(jnp.float32)


def _safe(labels, valid):
    return jnp.where(valid, labels, 0).astype(jnp.int32)


def _one_hot(labels, logits):
    """[...] class indices below 2^24 to [..., C] of the logits' dtype, 1 at the class, 0 elsewhere.

    By arithmetic: XLA CPU's library of fused kernels has no comparisons and selections.
    """
    classes = jnp.arange(logits.shape[-1], dtype=logits.dtype)
    return jnp.maximum(1 - jnp.abs(labels[..., None].astype(logits.dtype) - classes), 0)


def _select(logits, labels):
    """The logit of each pixel's label: [..., C], [...] -> [...].

    A product and a sum: cheaper than a gather where XLA fuses it, and it keeps any sharding.
    """
    return jnp.sum(_one_hot(labels, logits) * logits, axis=-1)


@jax.custom_vjp
def _negative_log_likelihood(logits, labels):
    """-log softmax(logits)[label] per pixel: [..., C], [...] -> [...].

    With its own derivative: only the logits, which are there anyhow, and one number per pixel are
    kept for the backward pass, instead of several arrays of the logits' size.
    """
    return _negative_log_likelihood_forward(logits, labels)[0]


def _negative_log_likelihood_forward(logits, labels):
    maximum = jnp.max(logits, axis=-1)
    log_sum = maximum + jnp.log(jnp.sum(jnp.exp(logits - maximum[..., None]), axis=-1))
    return log_sum - _select(logits, labels), (logits, log_sum, labels)


def _negative_log_likelihood_backward(residuals, gradient):
    logits, log_sum, labels = residuals
    probabilities = jnp.exp(logits - log_sum[..., None])
    return (probabilities - _one_hot(labels, logits)) * gradient[..., None], None


_negative_log_likelihood.defvjp(_negative_log_likelihood_forward, _negative_log_likelihood_backward)


@jax.custom_vjp
def _smoothed(logits, labels, shares):
    """As `_negative_log_likelihood`, and sum_c shares[c] * -log softmax(logits)[c] per pixel."""
    return _smoothed_forward(logits, labels, shares)[0]


def _smoothed_forward(logits, labels, shares):
    losses, (_, log_sum, _) = _negative_log_likelihood_forward(logits, labels)
    mean = jnp.sum(shares) * log_sum - jnp.sum(shares * logits, axis=-1)
    return (losses, mean), (logits, log_sum, labels, shares)


def _smoothed_backward(residuals, gradients):
    logits, log_sum, labels, shares = residuals
    own, mean = (gradient[..., None] for gradient in gradients)
    probabilities = jnp.exp(logits - log_sum[..., None])
    of_sum = own + mean * jnp.sum(shares)
    return probabilities * of_sum - _one_hot(labels, logits) * own - mean * shares, None, None


_smoothed.defvjp(_smoothed_forward, _smoothed_backward)


def _ratio(total, count):
    """total / count, and 0 (with a gradient of 0) where the count is 0."""
    return jnp.where(count == 0, 0, total / jnp.where(count == 0, 1, count))
