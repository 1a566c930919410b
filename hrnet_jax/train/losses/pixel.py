"""Losses that are a mean over pixels: cross-entropy, its hard pixels, focal, near boundaries."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hrnet_jax.train.losses.likelihood import (
    checked,
    negative_log_likelihood,
    ratio,
    smoothed_log_likelihood,
)


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
    return ratio(jnp.sum(weighted), jnp.sum(weights))


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
    return ratio(jnp.sum(jnp.where(kept, weighted, 0)), jnp.sum(kept, dtype=losses.dtype))


def focal(
    logits: jax.Array,
    labels: jax.Array,
    gamma: float = 2.0,
    ignore_label: int = 255,
    class_weights: Sequence[float] | jax.Array | None = None,
) -> jax.Array:
    """Focal loss (Lin et al. 2017, arXiv 1708.02002) with a softmax over the classes.

    With p the probability of a pixel's true class, its loss is -(1 - p)^gamma log p, so pixels that
    are right already count little. The mean is that of `cross_entropy`, which it is for gamma 0:
    sum(w * loss) / sum(w) over the valid pixels. The paper divides by the number of foreground
    anchors instead, which segmentation does not have; the class weights are its alpha.

    Args:
      logits: [..., C], at the size of the labels.
      labels: [...] integers. A value that is neither `ignore_label` nor a class makes the loss NaN.
      gamma: 0 or more; 2 in the paper.
      ignore_label: pixels of this label do not count.
      class_weights: C weights, or None for equal ones.

    Returns:
      A scalar. 0 if no pixel is valid, with a gradient of 0.

    Raises:
      ValueError: if the shapes do not fit together, or for a negative gamma.
    """
    if not gamma >= 0:
        raise ValueError(f"gamma must be 0 or more, got {gamma}")
    targets = checked(logits, labels, ignore_label, class_weights)
    losses = negative_log_likelihood(targets.logits, targets.classes)
    # 1 - p without cancellation; above 0, where its power has a finite derivative.
    missing = jnp.maximum(-jnp.expm1(-losses), jnp.finfo(losses.dtype).tiny)
    weighted = targets.weights * missing**gamma * losses
    return ratio(jnp.sum(weighted), jnp.sum(targets.weights))


def boundary_cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    radius: int = 3,
    extra_weight: float = 4.0,
    ignore_label: int = 255,
    class_weights: Sequence[float] | jax.Array | None = None,
) -> jax.Array:
    """Cross-entropy in which pixels near a boundary between two classes count more.

    A pixel's weight is that of its class, times 1 + `extra_weight` if the square of
    2 * radius + 1 pixels around it holds two classes. Objects that are thinner than the square
    (poles, signs, riders) lie in it as a whole. The mean is sum(w * loss) / sum(w).

    The idea is the weight map of U-Net (Ronneberger et al. 2015, equation 2, whose weight falls
    with the distance instead of ending at the radius). Unlike losses on skeletons or distance maps
    (clDice, boundary loss) it needs the labels only, and works for all classes at once.

    Args:
      logits: [..., H, W, C], at the size of the labels.
      labels: [..., H, W] integers. A value that is neither `ignore_label` nor a class makes the
        loss NaN. The edge of ignored pixels is no boundary.
      radius: 1 or more, in pixels of the labels.
      extra_weight: 0 or more; 0 gives `cross_entropy`.
      ignore_label: pixels of this label do not count.
      class_weights: C weights, or None for equal ones.

    Returns:
      A scalar. 0 if no pixel is valid, with a gradient of 0.

    Raises:
      ValueError: if the shapes do not fit together, or for an option out of range.
    """
    if radius < 1 or not extra_weight >= 0:
        raise ValueError(
            f"radius must be 1 or more and extra_weight 0 or more, got {radius} and {extra_weight}"
        )
    if labels.ndim < 2:
        raise ValueError(f"labels {labels.shape} have no height and width")
    targets = checked(logits, labels, ignore_label, class_weights)
    near = near_boundary(targets.classes, targets.valid, radius)
    weights = targets.weights * (1 + extra_weight * near.astype(targets.weights.dtype))
    losses = negative_log_likelihood(targets.logits, targets.classes)
    return ratio(jnp.sum(weights * losses), jnp.sum(weights))


def near_boundary(classes: jax.Array, valid: jax.Array, radius: int) -> jax.Array:
    """Where the square of 2 * radius + 1 pixels around a pixel holds two different classes.

    Args:
      classes: int32 [..., H, W], 0 or more.
      valid: bool [..., H, W]; others count as no class.
      radius: in pixels.

    Returns:
      bool [..., H, W].
    """
    largest = _largest_around(jnp.where(valid, classes, -1), radius)
    smallest = -_largest_around(jnp.where(valid, -classes, jnp.iinfo(jnp.int32).min), radius)
    return valid & (largest > smallest)


def _largest_around(values, radius):
    for axis in (values.ndim - 2, values.ndim - 1):
        window = [1] * values.ndim
        window[axis] = 2 * radius + 1
        lowest = np.array(np.iinfo(values.dtype).min, values.dtype)
        values = lax.reduce_window(values, lowest, lax.max, window, [1] * values.ndim, "SAME")
    return values


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
    logits, classes, valid, weights, class_weights = checked(
        logits, labels, ignore_label, class_weights
    )
    if not label_smoothing:
        losses = negative_log_likelihood(logits, classes)
        return losses, losses * weights, weights
    losses, mean = smoothed_log_likelihood(logits, classes, class_weights / logits.shape[-1])
    weighted = (1 - label_smoothing) * losses * weights
    return losses, weighted + label_smoothing * jnp.where(valid, mean, 0), weights
