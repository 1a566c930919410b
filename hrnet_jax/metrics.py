"""Confusion matrices, counted exactly on the device, and the figures made of them.

Rows are the truth, columns the prediction. Counts are int32 on the device (one batch never
comes near 2**31 pixels) and are to be added up on the host in int64: one pass over a training
set has more pixels than int32 can count.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

MAX_PIXELS = 2**31 - 1


def _count_by_scatter(labels: jax.Array, predictions: jax.Array, num_classes: int) -> jax.Array:
    """[N, P] -> [N, C, C]: one histogram per image over the joint index label * C + prediction."""
    bins = num_classes * num_classes
    valid = (
        (labels >= 0) & (labels < num_classes) & (predictions >= 0) & (predictions < num_classes)
    )
    index = jnp.where(valid, labels * num_classes + predictions, bins)
    empty = jnp.zeros((labels.shape[0], bins), jnp.int32)
    counts = jax.vmap(lambda zeros, i: zeros.at[i].add(1, mode="drop"))(empty, index)
    return counts.reshape(-1, num_classes, num_classes)


def _count_by_matmul(labels: jax.Array, predictions: jax.Array, num_classes: int) -> jax.Array:
    """[N, P] -> [N, C, C]: product of one-hot matrices; int8 with int32 sums, hence exact."""
    rows = jax.nn.one_hot(labels, num_classes, dtype=jnp.int8)
    columns = jax.nn.one_hot(predictions, num_classes, dtype=jnp.int8)
    return jnp.einsum("npr,npc->nrc", rows, columns, preferred_element_type=jnp.int32)


def confusion_matrices(
    labels: jax.Array, predictions: jax.Array, num_classes: int, ignore_label: int = 255
) -> jax.Array:
    """One confusion matrix per image.

    On CPU a scatter-add counts 2 Mpixels of 19 classes in 6 ms where the one-hot product takes
    114 ms. Accelerators serialise scatters to colliding indices, so there the matrix units count.

    Args:
        labels: integers [N, ...], train ids. Pixels that are `ignore_label` count nowhere, and
            neither does any other value outside 0 .. num_classes - 1.
        predictions: integers of the same shape.
        num_classes: number of classes C (static under jit).
        ignore_label: the label left out.

    Returns:
        int32 [N, C, C]; rows are the truth, columns the prediction.

    Raises:
        ValueError: for shapes that differ, or for more pixels than int32 can count.
    """
    labels, predictions = jnp.asarray(labels), jnp.asarray(predictions)
    if labels.shape != predictions.shape:
        raise ValueError(
            f"labels {labels.shape} and predictions {predictions.shape} must have one shape"
        )
    for name, array in (("labels", labels), ("predictions", predictions)):
        if not jnp.issubdtype(array.dtype, jnp.integer):
            raise ValueError(f"{name} must be integers, got {array.dtype}")
    if labels.ndim < 1 or labels.size > MAX_PIXELS:
        raise ValueError(f"labels {labels.shape}: need [N, ...] with at most {MAX_PIXELS} pixels")
    labels = labels.astype(jnp.int32).reshape(labels.shape[0], -1)
    labels = jnp.where(labels == ignore_label, -1, labels)
    predictions = predictions.astype(jnp.int32).reshape(labels.shape)
    return jax.lax.platform_dependent(
        labels,
        predictions,
        cpu=lambda t, p: _count_by_scatter(t, p, num_classes),
        default=lambda t, p: _count_by_matmul(t, p, num_classes),
    )


def confusion_matrix(
    labels: jax.Array, predictions: jax.Array, num_classes: int, ignore_label: int = 255
) -> jax.Array:
    """The confusion matrix of all pixels together, int32 [C, C]; see `confusion_matrices`.

    Labels may have any shape: [N, H, W], [H, W] or [P].
    """
    labels, predictions = jnp.asarray(labels), jnp.asarray(predictions)
    if labels.ndim < 3:
        labels, predictions = labels[None], predictions[None]
    return confusion_matrices(labels, predictions, num_classes, ignore_label).sum(0)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Elementwise division, NaN where the denominator is 0."""
    safe = np.where(denominator > 0, denominator, 1)
    return np.where(denominator > 0, numerator / safe, np.nan)


def counts_of(confusion: np.ndarray) -> np.ndarray:
    """int64 [3, C] of a matrix [C, C]: per class the pixels that are right, true, predicted."""
    confusion = np.asarray(confusion, np.int64)
    return np.stack([np.diagonal(confusion), confusion.sum(1), confusion.sum(0)])


def iou_of_counts(counts: np.ndarray) -> np.ndarray:
    """[..., 3, C] as of `counts_of` -> IoU, float64 [..., C]; NaN where the union is empty."""
    right, true, predicted = np.moveaxis(np.asarray(counts, np.int64), -2, 0)
    return _ratio(right, true + predicted - right)


def miou_of_counts(counts: np.ndarray) -> np.ndarray:
    """[..., 3, C] -> mean IoU, float64 [...]; NaN where nothing is counted."""
    values = iou_of_counts(counts)
    return _ratio(np.nansum(values, -1), (~np.isnan(values)).sum(-1))


def accuracy_of_counts(counts: np.ndarray) -> np.ndarray:
    """[..., 3, C] -> share of right pixels, float64 [...]; NaN where nothing is counted."""
    right, true, _ = np.moveaxis(np.asarray(counts, np.int64), -2, 0)
    return _ratio(right.sum(-1), true.sum(-1))


def _optional(values: np.ndarray, names: tuple[str, ...]) -> dict[str, float | None]:
    return {n: None if np.isnan(v) else float(v) for n, v in zip(names, values, strict=True)}


def summarize(confusion: np.ndarray, classes: Any) -> dict[str, Any]:
    """The figures of a confusion matrix.

    The convention is that of cityscapesScripts: a class that occurs neither in the truth nor in
    the prediction has no IoU (None) and is left out of the mean; a class that is only predicted
    has IoU 0 and counts. (The official HRNet code divides by max(1, union) instead, which makes
    an absent class a 0 in the mean.)

    Args:
        confusion: integers [C, C], rows true, columns predicted.
        classes: has `names` and, per class or empty, `categories` (data.source.Classes).

    Returns:
        miou: mean IoU over the classes with a union (NaN if there is none);
        per_class_iou: name -> float or None;
        pixel_accuracy: share of labelled pixels that are right;
        mean_accuracy: mean over the classes in the truth of the share found;
        per_class_accuracy: name -> float or None;
        num_pixels: labelled pixels counted;
        and, if `classes.categories` is given, category_miou and per_category_iou, where a
        confusion inside a category is no error.

    Raises:
        ValueError: if the matrix is not [C, C] for these classes or holds no integers.
    """
    confusion = np.asarray(confusion)
    names = tuple(classes.names)
    if confusion.shape != (len(names), len(names)):
        raise ValueError(f"confusion matrix {confusion.shape} does not fit {len(names)} classes")
    if not np.issubdtype(confusion.dtype, np.integer):
        raise ValueError(f"confusion matrix must hold integers, got {confusion.dtype}")
    counts = counts_of(confusion)
    accuracy = _ratio(counts[0], counts[1])
    figures = {
        "miou": float(miou_of_counts(counts)),
        "per_class_iou": _optional(iou_of_counts(counts), names),
        "pixel_accuracy": float(accuracy_of_counts(counts)),
        "mean_accuracy": float(_ratio(np.nansum(accuracy), (~np.isnan(accuracy)).sum())),
        "per_class_accuracy": _optional(accuracy, names),
        "num_pixels": int(counts[1].sum()),
    }
    if classes.categories:
        categories = tuple(dict.fromkeys(classes.categories))
        member = np.array([[c == k for c in classes.categories] for k in categories], np.int64)
        counts = counts_of(member @ confusion.astype(np.int64) @ member.T)
        figures["category_miou"] = float(miou_of_counts(counts))
        figures["per_category_iou"] = _optional(iou_of_counts(counts), categories)
    return figures
