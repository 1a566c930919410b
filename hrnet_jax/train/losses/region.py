"""Losses that compare whole regions, so that the size of a class does not count: Dice, Lovasz."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from hrnet_jax.train.losses.likelihood import Targets, checked, one_hot, ratio


def dice(
    logits: jax.Array,
    labels: jax.Array,
    ignore_label: int = 255,
    class_weights: Sequence[float] | jax.Array | None = None,
) -> jax.Array:
    """Soft Dice loss (Milletari et al. 2016, arXiv 1606.04797, with plain sums) of the classes.

    For a class with probabilities p and true pixels g it is 1 - 2 sum(p g) / (sum(p) + sum(g)),
    with sums over the valid pixels of the whole batch. The result is the mean over the classes that
    the labels of the batch have, weighted by class. A class without pixels has no defined overlap
    and no gradient; `segmentation_models_pytorch.losses.DiceLoss` counts it as 0 in the mean.

    Args:
      logits: [..., C], at the size of the labels.
      labels: [...] integers. A value that is neither `ignore_label` nor a class makes the loss NaN.
      ignore_label: pixels of this label do not count.
      class_weights: C weights, or None for equal ones.

    Returns:
      A scalar in 0..1. 0 if no pixel is valid, with a gradient of 0.

    Raises:
      ValueError: if the shapes do not fit together.
    """
    targets = checked(logits, labels, ignore_label, class_weights)
    probabilities, truth = _at_valid(targets)
    pixels = tuple(range(truth.ndim - 1))
    overlap = jnp.sum(probabilities * truth, pixels)
    sizes = jnp.sum(probabilities, pixels), jnp.sum(truth, pixels)
    losses = 1 - ratio(2 * overlap, sizes[0] + sizes[1])
    return _mean_of_present(losses, sizes[1] > 0, targets)


def lovasz_softmax(
    logits: jax.Array,
    labels: jax.Array,
    ignore_label: int = 255,
    class_weights: Sequence[float] | jax.Array | None = None,
    per_image: bool = False,
) -> jax.Array:
    """Lovasz-softmax loss (Berman et al. 2018, arXiv 1705.08790): a convex bound of 1 - IoU.

    For each class the errors |true - probability| of the valid pixels are sorted; the result is the
    Lovasz extension of the Jaccard loss, averaged over the classes that the labels have, weighted
    by class. As the authors' `lovasz_softmax(classes="present")`.

    The sort needs all pixels of the batch in one place: a batch that is sharded over devices is
    gathered, class by class: 8 bytes for each pixel and class. With `per_image` nothing is gathered
    over the batch.

    Args:
      logits: [N, ..., C], at the size of the labels.
      labels: [N, ...] integers. A value that is neither `ignore_label` nor a class makes the loss
        NaN.
      ignore_label: pixels of this label do not count.
      class_weights: C weights, or None for equal ones.
      per_image: computes the loss of each image and averages over those with a valid pixel. The
        authors average over all images.

    Returns:
      A scalar in 0..1. 0 if no pixel is valid, with a gradient of 0.

    Raises:
      ValueError: if the shapes do not fit together.
    """
    targets = checked(logits, labels, ignore_label, class_weights)
    probabilities, truth = _at_valid(targets)
    # Negative, so that the largest come first; ignored pixels come last and are left out there.
    order = jnp.where(targets.valid[..., None], -jnp.abs(truth - probabilities), 1)
    pixels = (len(labels), -1) if per_image else (-1,)
    order, truth = (x.reshape(*pixels, x.shape[-1]) for x in (order, truth))
    extension, split = _jaccard_extension, jax.typeof(order).sharding
    if any(split.spec):
        # Axes of the caller's mesh are explicit; a sort is not defined over arrays that are split.
        where = NamedSharding(split.mesh, PartitionSpec(*split.spec[:-2], None))
        extension = jax.sharding.auto_axes(extension, out_sharding=where)
    losses, present = extension(order, truth > 0), jnp.any(truth > 0, axis=-2)
    if not per_image:
        return _mean_of_present(losses, present, targets)
    means = jax.vmap(lambda a, b: _mean_of_present(a, b, targets))(losses, present)
    counts = jnp.any(targets.valid.reshape(*pixels), axis=-1)
    return ratio(jnp.sum(means), jnp.sum(counts, dtype=means.dtype))


def _at_valid(targets: Targets) -> tuple[jax.Array, jax.Array]:
    """Probabilities and truth, [..., C] each, both 0 at ignored pixels."""
    valid = targets.valid[..., None]
    truth = jnp.where(valid, one_hot(targets.classes, targets.logits), 0)
    return jnp.where(valid, jax.nn.softmax(targets.logits), 0), truth


def _mean_of_present(losses, present, targets):
    """The weighted mean of [C] losses over the present classes; NaN if a label is no class."""
    weights = jnp.where(present, targets.class_weights, 0)
    mean = ratio(jnp.sum(weights * losses), jnp.sum(weights))
    return jnp.where(jnp.any(jnp.isnan(targets.weights)), jnp.nan, mean)


@jax.custom_jvp
def _jaccard_extension(order, truth):
    """The Lovasz extension of the Jaccard loss of each class.

    Args:
      order: [..., M, C], the errors in 0..1, negated; pixels above 0 do not count.
      truth: bool [..., M, C].

    Returns:
      [..., C]. 0 where nothing is true.
    """
    return _extension_and_growth(order, truth)[0]


def _extension_and_growth(order, truth):
    # One class after the other: a tenth of the memory, and no arrays with classes first, whose
    # layout XLA CPU's kernel library does not take.
    classes = jnp.moveaxis(order, -1, 0), jnp.moveaxis(truth, -1, 0)
    values, growth = lax.map(lambda one: _of_class(*one), classes)
    return jnp.moveaxis(values, 0, -1), jnp.moveaxis(growth, 0, -1)


def _of_class(order, truth):
    """The extension [...] of one class, from [..., M] each, and how it grows with each error.

    With T true pixels, t true and f false ones among those of the largest errors, the Jaccard loss
    of these is 1 - (T - t) / (T + f); the derivative by an error is how much it grows when that
    pixel is added. The differences are written out: subtracting two losses of about equal size, as
    in the authors' code, leaves few digits in single precision.
    """
    places = jnp.broadcast_to(jnp.arange(order.shape[-1], dtype=jnp.int32), order.shape)
    # One number holds the place and whether it is true, so that two arrays are sorted, not three.
    order, tags = lax.sort((order, 2 * places + truth), num_keys=1, is_stable=False)
    true_at = tags % 2
    true_until = jnp.cumsum(true_at, axis=-1)
    false_until = 1 + places - true_until
    total, true_until, false_until = (
        x.astype(order.dtype) for x in (true_until[..., -1:], true_until, false_until)
    )
    union = jnp.maximum(total + false_until, 1)
    growth = jnp.where(
        true_at == 1, 1 / union, (total - true_until) / (union * jnp.maximum(union - 1, 1))
    )
    growth = jnp.where(order > 0, 0, growth)
    value = jnp.sum(-order * growth, axis=-1)
    _, at_place = lax.sort((tags // 2, growth), num_keys=1, is_stable=False)
    return value, at_place


@_jaccard_extension.defjvp
def _jaccard_extension_jvp(primals, tangents):
    values, growth = _extension_and_growth(*primals)
    return values, jnp.sum(-growth * tangents[0], axis=-2)
