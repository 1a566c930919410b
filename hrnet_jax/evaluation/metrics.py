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
# Of the bootstrap: resampled sets of images, and the share of them inside an interval.
BOOTSTRAP_DRAWS = 1000
CONFIDENCE = 0.95


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


def mean_accuracy_of_counts(counts: np.ndarray) -> np.ndarray:
    """[..., 3, C] -> mean over the true classes of the share found, float64 [...]; or NaN."""
    right, true, _ = np.moveaxis(np.asarray(counts, np.int64), -2, 0)
    values = _ratio(right, true)
    return _ratio(np.nansum(values, -1), (~np.isnan(values)).sum(-1))


_OF_COUNTS = {
    "miou": miou_of_counts,
    "pixel_accuracy": accuracy_of_counts,
    "mean_accuracy": mean_accuracy_of_counts,
}


def resampled(image_counts: np.ndarray, draws: int = BOOTSTRAP_DRAWS, seed: int = 0) -> np.ndarray:
    """Counts of `draws` sets of as many images, drawn with replacement: int64 [draws, 3, C].

    Args:
        image_counts: int64 [N, 3, C], as of `counts_of` for each image.
        draws: number of sets.
        seed: the same seed and N draw the same images, whatever the counts: pairs.
    """
    image_counts = np.asarray(image_counts, np.int64)
    n = len(image_counts)
    rng = np.random.RandomState(seed)  # frozen: the same numbers in every version of NumPy
    times = np.stack([np.bincount(rng.randint(0, n, n), minlength=n) for _ in range(draws)])
    # float64 is exact up to 2**53 pixels, and has a matrix product that is fast.
    sums = times.astype(np.float64) @ image_counts.reshape(n, -1).astype(np.float64)
    return sums.astype(np.int64).reshape(draws, *image_counts.shape[1:])


def _interval(values: np.ndarray) -> list[float] | None:
    """[low, high] of a sample, or None where it has no value."""
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    tail = 100 * (1 - CONFIDENCE) / 2
    return [float(v) for v in np.percentile(values, [tail, 100 - tail])]


def intervals(image_counts: np.ndarray, names: tuple[str, ...]) -> dict[str, Any] | None:
    """95 % intervals by the percentile bootstrap over images; None for fewer than two images.

    They say how far the figures would move with other images of the same kind, not with another
    training.

    Args:
        image_counts: int64 [N, 3, C].
        names: of the classes.

    Returns:
        [low, high] for "miou", "pixel_accuracy" and "mean_accuracy", and per class under
        "per_class_iou" (None for a class without a union).
    """
    if len(image_counts) < 2:
        return None
    sets = resampled(image_counts)
    result: dict[str, Any] = {k: _interval(of(sets)) for k, of in _OF_COUNTS.items()}
    ious = iou_of_counts(sets)
    result["per_class_iou"] = {n: _interval(ious[:, k]) for k, n in enumerate(names)}
    return result


def compare(
    image_counts: np.ndarray, other_counts: np.ndarray, names: tuple[str, ...]
) -> dict[str, Any]:
    """Differences between two models on the same images, with paired-bootstrap intervals.

    Both models are resampled with the same images, so that an image which is hard for both
    widens neither interval.

    Args:
        image_counts: int64 [N, 3, C] of this model.
        other_counts: of the other, for the same images in the same order.
        names: of the classes.

    Returns:
        for "miou", "pixel_accuracy", "mean_accuracy" and per class under "per_class_iou":
        {"this", "other", "difference" (this - other), "interval" ([low, high] of the difference,
        None for fewer than two images)}; values that do not exist are None.

    Raises:
        ValueError: for counts that do not belong together.
    """
    if np.shape(image_counts) != np.shape(other_counts):
        raise ValueError(
            f"counts {np.shape(image_counts)} and {np.shape(other_counts)} must have one shape"
        )
    pair = image_counts, other_counts
    sets = [resampled(c) for c in pair] if len(image_counts) > 1 else None

    def entry(of: Any) -> dict[str, Any]:
        this, other = (float(of(np.sum(c, 0))) for c in pair)
        draws = of(sets[0]) - of(sets[1]) if sets else np.array([])
        values = {"this": this, "other": other, "difference": this - other}
        return {k: None if np.isnan(v) else v for k, v in values.items()} | {
            "interval": _interval(draws)
        }

    result: dict[str, Any] = {k: entry(of) for k, of in _OF_COUNTS.items()}
    result["per_class_iou"] = {
        n: entry(lambda c, k=k: iou_of_counts(c)[..., k]) for k, n in enumerate(names)
    }
    return result


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
        "mean_accuracy": float(mean_accuracy_of_counts(counts)),
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
