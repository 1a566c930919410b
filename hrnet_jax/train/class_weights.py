"""Class weights of the loss, computed from the labels of the training data."""

from collections.abc import Sequence

import numpy as np

from hrnet_jax.data.pipeline.class_counts import class_counts
from hrnet_jax.data.pipeline.mixture import Mixture
from hrnet_jax.data.sources.source import Source

AUTO = "effective_number"
RULES = ("auto", "inverse_frequency", "median_frequency", "effective_number")


def from_labels(
    source: Source | Mixture, rule: str, beta: float
) -> tuple[tuple[float, ...], np.ndarray]:
    """The weights of the classes, and the fraction of the labeled pixels that each class has.

    The labels are counted once and kept in the user's cache (`class_counts`). In a mixture each
    source counts by its weight. `data.class_uniform` is not considered: it changes how often a
    class is seen, too.

    Args:
      source: the training data.
      rule: one of `RULES`; "auto" is `AUTO`.
      beta: of "effective_number", see `effective_number`.

    Raises:
      FileNotFoundError, ValueError: naming a label file that is missing or damaged.
    """
    mixture = Mixture.of(source)
    found = [
        (class_counts(one), w) for one, w in zip(mixture.sources, mixture.weights, strict=True)
    ]
    found = [(counts, w) for counts, w in found if counts.any()]  # others have no labels
    if not found:
        raise ValueError(
            f"class weights by the rule {rule!r} need labels: {mixture.name!r} has none"
        )
    counts, parts = zip(*found, strict=True)
    fractions = _mixed([_fractions(one) for one in counts], parts)
    rule = AUTO if rule == "auto" else rule
    if rule == "inverse_frequency":
        weights = inverse_frequency(fractions)
    elif rule == "median_frequency":
        inside = _mixed([_fractions_where_present(one) for one in counts], parts)
        presence = _mixed([(one > 0).mean(axis=0) for one in counts], parts)
        weights = median_frequency(np.divide(inside, presence, where=presence > 0, out=inside * 0))
    else:
        presence = _mixed([(one > 0).mean(axis=0) for one in counts], parts)
        weights = effective_number(presence * sum(len(one) for one in counts), beta)
    return tuple(float(w) for w in normalized(weights, fractions)), fractions


def inverse_frequency(fractions: np.ndarray) -> np.ndarray:
    """1 / (fraction of the pixels), so that every class has the same part in the loss.

    Args:
      fractions: [classes]; 0 for a class without pixels, which gets 0.
    """
    return _inverse(fractions)


def median_frequency(frequencies: np.ndarray) -> np.ndarray:
    """Median of the frequencies / frequency (Eigen and Fergus 2015, arXiv 1411.4734, 6.3.2).

    Args:
      frequencies: [classes], of each class among the pixels of the images that have it; 0 for a
        class without pixels, which gets 0.
    """
    present = frequencies > 0
    return np.median(frequencies[present]) * _inverse(frequencies) if present.any() else frequencies


def effective_number(images: np.ndarray, beta: float) -> np.ndarray:
    """(1 - beta) / (1 - beta^n) (Cui et al. 2019, arXiv 1901.05555), with n images of a class.

    The paper counts samples. Here a sample is an image that has the class: its pixels are so alike
    that counting them would give all classes the same weight for any beta below 1 - 1e-6.

    Args:
      images: [classes], number of images with the class; 0 for one without pixels, which gets 0.
      beta: 0 (equal weights) to 1 (inverse number of images); 0.9 to 0.9999 in the paper.
    """
    numbers = images if beta == 1 else (1 - np.power(beta, images)) / (1 - beta)
    return _inverse(numbers)


def normalized(weights: np.ndarray, fractions: np.ndarray) -> np.ndarray:
    """The weights, scaled to a mean of 1 over the labeled pixels; 1 for classes without pixels.

    So the loss has the size that it has without weights, and the learning rate may stay.
    """
    mean = np.sum(weights * fractions)
    scaled = weights / (mean if mean > 0 else 1)
    return np.where((fractions > 0) & (weights > 0), scaled, 1.0)


def table(names: Sequence[str], fractions: np.ndarray | None, weights: Sequence[float]) -> str:
    """One line for each class: its fraction of the labeled pixels and its weight."""
    width = max(map(len, (*names, "class")))
    lines = [f"{'class':<{width}} {'fraction':>10} {'weight':>8}"]
    for k, (name, weight) in enumerate(zip(names, weights, strict=True)):
        fraction = "" if fractions is None else f"{fractions[k]:.4%}"
        lines.append(f"{name:<{width}} {fraction:>10} {weight:>8.3f}")
    return "\n".join(lines)


def _inverse(values: np.ndarray) -> np.ndarray:
    return np.divide(1.0, values, where=values > 0, out=np.zeros_like(values, float))


def _fractions(counts: np.ndarray) -> np.ndarray:
    """[images, classes] pixels -> [classes] fractions of all labeled pixels."""
    return counts.sum(axis=0) / max(counts.sum(), 1)


def _fractions_where_present(counts: np.ndarray) -> np.ndarray:
    """[images, classes] pixels -> pixels of a class / labeled pixels of the images that have it.

    Multiplied by the fraction of images that have it, so that sources can be added.
    """
    labeled = (counts.sum(axis=1, keepdims=True) * (counts > 0)).sum(axis=0)
    frequencies = counts.sum(axis=0) / np.maximum(labeled, 1)
    return frequencies * (counts > 0).mean(axis=0)


def _mixed(values: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    return sum(w / sum(weights) * v for w, v in zip(weights, values, strict=True))
