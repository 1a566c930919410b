"""Confusion matrices, counted exactly on the device, and the metrics computed from them.

Rows are the ground truth, columns the predictions. Counts are int32 on the device (a batch has far
fewer than 2**31 pixels) and must be added up on the host in int64, since a training split has more
pixels than int32 can count.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hrnet_jax.data.sources.source import Classes

MAX_PIXELS = 2**31 - 1
# Bootstrap: number of resamples, and the fraction of them inside an interval.
BOOTSTRAP_RESAMPLES = 1000
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
    """[N, P] -> [N, C, C]: product of one-hot matrices, exact: int8 values, int32 sums."""
    rows = jax.nn.one_hot(labels, num_classes, dtype=jnp.int8)
    columns = jax.nn.one_hot(predictions, num_classes, dtype=jnp.int8)
    return jnp.einsum("npr,npc->nrc", rows, columns, preferred_element_type=jnp.int32)


def confusion_matrices(
    labels: jax.Array, predictions: jax.Array, num_classes: int, ignore_label: int = 255
) -> jax.Array:
    """One confusion matrix per image.

    On CPU, a scatter-add counts 2 Mpixels of 19 classes in 6 ms, the one-hot product in 114 ms.
    Accelerators serialize scatters to equal indices, so they use the one-hot product.

    Args:
        labels: integers [N, ...], train ids. Pixels with `ignore_label`, or any other value outside
            0 .. num_classes - 1, are not counted.
        predictions: integers of the same shape.
        num_classes: number of classes C (static under jit).
        ignore_label: the label of pixels that are not counted.

    Returns:
        int32 [N, C, C]; rows ground truth, columns predictions.

    Raises:
        ValueError: for different shapes, other types, or more pixels than int32 can count.
    """
    labels, predictions = jnp.asarray(labels), jnp.asarray(predictions)
    if labels.shape != predictions.shape:
        raise ValueError(
            f"labels {labels.shape} and predictions {predictions.shape} must have the same shape"
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


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Elementwise division, NaN where the denominator is 0."""
    safe = np.where(denominator > 0, denominator, 1)
    return np.where(denominator > 0, numerator / safe, np.nan)


def counts_of(confusion: np.ndarray) -> np.ndarray:
    """Matrix [C, C] -> int64 [3, C]: pixels per class that are correct, ground truth, predicted."""
    confusion = np.asarray(confusion, np.int64)
    return np.stack([np.diagonal(confusion), confusion.sum(1), confusion.sum(0)])


def iou_of_counts(counts: np.ndarray) -> np.ndarray:
    """Counts [..., 3, C] as of `counts_of` -> IoU, float64 [..., C]; NaN for an empty union."""
    correct, ground_truth, predicted = np.moveaxis(np.asarray(counts, np.int64), -2, 0)
    return _ratio(correct, ground_truth + predicted - correct)


def miou_of_counts(counts: np.ndarray) -> np.ndarray:
    """[..., 3, C] -> mean IoU, float64 [...]; NaN without counted pixels."""
    values = iou_of_counts(counts)
    return _ratio(np.nansum(values, -1), (~np.isnan(values)).sum(-1))


def accuracy_of_counts(counts: np.ndarray) -> np.ndarray:
    """[..., 3, C] -> fraction of correct pixels, float64 [...]; NaN without counted pixels."""
    correct, ground_truth, _ = np.moveaxis(np.asarray(counts, np.int64), -2, 0)
    return _ratio(correct.sum(-1), ground_truth.sum(-1))


def mean_accuracy_of_counts(counts: np.ndarray) -> np.ndarray:
    """[..., 3, C] -> accuracy per class, averaged over the classes in the ground truth; or NaN."""
    correct, ground_truth, _ = np.moveaxis(np.asarray(counts, np.int64), -2, 0)
    values = _ratio(correct, ground_truth)
    return _ratio(np.nansum(values, -1), (~np.isnan(values)).sum(-1))


_OF_COUNTS = {
    "miou": miou_of_counts,
    "pixel_accuracy": accuracy_of_counts,
    "mean_accuracy": mean_accuracy_of_counts,
}


def resample(
    image_counts: np.ndarray, resamples: int = BOOTSTRAP_RESAMPLES, seed: int = 0
) -> np.ndarray:
    """Total counts of bootstrap resamples of N images each: int64 [resamples, 3, C].

    Args:
        image_counts: int64 [N, 3, C], as of `counts_of` for each image.
        resamples: number of resamples.
        seed: with the same seed and N the same images are drawn, whatever their counts, so that
            two networks can be compared on the same resamples.
    """
    image_counts = np.asarray(image_counts, np.int64)
    n = len(image_counts)
    rng = np.random.RandomState(seed)  # its numbers are the same in every version of NumPy
    times = np.stack([np.bincount(rng.randint(0, n, n), minlength=n) for _ in range(resamples)])
    # float64 is exact up to 2**53 pixels and has a fast matrix product.
    sums = times.astype(np.float64) @ image_counts.reshape(n, -1).astype(np.float64)
    return sums.astype(np.int64).reshape(resamples, *image_counts.shape[1:])


def interval_of(values: np.ndarray) -> list[float] | None:
    """[low, high], the 95 % in the middle of a sample; None if all of it is NaN."""
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    tail = 100 * (1 - CONFIDENCE) / 2
    return [float(v) for v in np.percentile(values, [tail, 100 - tail])]


def intervals(image_counts: np.ndarray, names: tuple[str, ...]) -> dict[str, Any] | None:
    """95 % percentile bootstrap intervals over images; None for fewer than two images.

    They estimate how the metrics vary with other images of the same kind, not with another
    training run.

    Args:
        image_counts: int64 [N, 3, C].
        names: names of the classes.

    Returns:
        [low, high] for "miou", "pixel_accuracy" and "mean_accuracy", and per class under
        "per_class_iou" (None for a class with an empty union).
    """
    if len(image_counts) < 2:
        return None
    totals = resample(image_counts)
    result: dict[str, Any] = {k: interval_of(of(totals)) for k, of in _OF_COUNTS.items()}
    ious = iou_of_counts(totals)
    result["per_class_iou"] = {n: interval_of(ious[:, k]) for k, n in enumerate(names)}
    return result


def compare(
    image_counts: np.ndarray, other_counts: np.ndarray, names: tuple[str, ...]
) -> dict[str, Any]:
    """Differences between two models on the same images, with paired bootstrap intervals.

    Both models are resampled with the same images, so an image that is hard for both does not
    widen the interval of the difference.

    Args:
        image_counts: int64 [N, 3, C] of this model.
        other_counts: of the other model, for the same images in the same order.
        names: names of the classes.

    Returns:
        for "miou", "pixel_accuracy", "mean_accuracy" and per class under "per_class_iou":
        {"this", "other", "difference" (this - other), "interval" ([low, high] of the difference,
        None for fewer than two images)}; undefined values are None.

    Raises:
        ValueError: for counts of different shapes.
    """
    if np.shape(image_counts) != np.shape(other_counts):
        raise ValueError(
            f"counts {np.shape(image_counts)} and {np.shape(other_counts)} must have the same shape"
        )
    pair = image_counts, other_counts
    totals = [resample(c) for c in pair] if len(image_counts) > 1 else None

    def entry(of: Any) -> dict[str, Any]:
        this, other = (float(of(np.sum(c, 0))) for c in pair)
        differences = of(totals[0]) - of(totals[1]) if totals else np.array([])
        values = {"this": this, "other": other, "difference": this - other}
        return {k: None if np.isnan(v) else v for k, v in values.items()} | {
            "interval": interval_of(differences)
        }

    result: dict[str, Any] = {k: entry(of) for k, of in _OF_COUNTS.items()}
    result["per_class_iou"] = {
        n: entry(lambda c, k=k: iou_of_counts(c)[..., k]) for k, n in enumerate(names)
    }
    return result


def _optional(values: np.ndarray, names: tuple[str, ...]) -> dict[str, float | None]:
    return {n: None if np.isnan(v) else float(v) for n, v in zip(names, values, strict=True)}


def summarize(confusion: np.ndarray, classes: Classes) -> dict[str, Any]:
    """Computes the metrics of a confusion matrix.

    The convention is that of cityscapesScripts: a class that occurs neither in the ground truth nor
    in the predictions has no IoU (None) and is excluded from the mean; a class that is only
    predicted has IoU 0 and is included. (The official HRNet code divides by max(1, union) instead,
    so an absent class counts as 0 in the mean.)

    Args:
        confusion: integers [C, C], rows ground truth, columns predictions.
        classes: `names` and, per class or empty, `categories` (data.sources.source.Classes).

    Returns:
        miou: mean IoU over the classes with a nonempty union (NaN if there is none);
        per_class_iou: name -> float or None;
        pixel_accuracy: fraction of labeled pixels that are correct;
        mean_accuracy: per-class accuracy, averaged over the classes in the ground truth;
        per_class_accuracy: name -> float or None;
        num_pixels: number of labeled pixels;
        and, if `classes.categories` is given, category_miou and per_category_iou, where a
        confusion within a category is no error.

    Raises:
        ValueError: if the matrix is not [C, C] for these classes or does not hold integers.
    """
    confusion = np.asarray(confusion)
    names = tuple(classes.names)
    if confusion.shape != (len(names), len(names)):
        raise ValueError(f"confusion matrix {confusion.shape} does not fit {len(names)} classes")
    if not np.issubdtype(confusion.dtype, np.integer):
        raise ValueError(f"confusion matrix must hold integers, got {confusion.dtype}")
    counts = counts_of(confusion)
    accuracy = _ratio(counts[0], counts[1])
    result: dict[str, Any] = {
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
        result["category_miou"] = float(miou_of_counts(counts))
        result["per_category_iou"] = _optional(iou_of_counts(counts), categories)
    return result
