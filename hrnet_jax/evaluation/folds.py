"""Metrics of a cross-validation: for each fold, over all folds, and differences of two of them.

A fold is a group of images that a network was not trained on. Its counts are int64 [N, 3, C] as of
`metrics.counts_of` for each of its N images, one array for each seed of the training.

A class counts in the mean IoU of a fold if it occurs in the ground truth of the fold. So a class
that is wrongly predicted in a fold without it lowers the IoU of the classes whose pixels it takes,
not the mean as an IoU of 0 (`metrics.summarize`, for whole splits, counts such a class as 0).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hrnet_jax.evaluation import metrics

# Name of the fold -> one array [N, 3, C] per seed.
FoldCounts = Mapping[str, list[np.ndarray]]
# Name of the fold -> total counts, [..., 3, C], of its images or of resamples of them.
Totals = dict[str, np.ndarray]
Metric = Callable[[Totals], np.ndarray]


def present_iou(counts: np.ndarray) -> np.ndarray:
    """Counts [..., 3, C] -> IoU, float64 [..., C]; NaN for a class without ground truth."""
    return np.where(counts[..., 1, :] > 0, metrics.iou_of_counts(counts), np.nan)


def present_miou(counts: np.ndarray) -> np.ndarray:
    """[..., 3, C] -> mean IoU of the classes with ground truth, float64 [...]; NaN without any."""
    iou = present_iou(counts)
    present = ~np.isnan(iou)
    number = present.sum(-1)
    total = np.where(present, iou, 0).sum(-1)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)


def summarize(counts: FoldCounts, names: tuple[str, ...]) -> dict[str, Any]:
    """The metrics of the folds.

    Each is the mean over the seeds. Its interval is a 95 % bootstrap interval over images: images
    are drawn within their fold, the same for all seeds. It says how far the metric would move with
    other images of the same groups, not with other groups, nor with other seeds.

    Args:
        counts: of each fold.
        names: of the classes.

    Returns:
        "folds": name -> {"images", "absent_classes" (without ground truth), "miou",
        "pixel_accuracy", "per_class_iou" (class -> entry)}; "mean_of_folds": the mean of their mean
        IoU; "pooled": the same three metrics of the pixels of all folds together. An entry is
        {"value", "interval" [low, high], "by_seed", "seed_deviation" (standard deviation over
        seeds, n - 1; None for one seed)}; undefined values are None.

    Raises:
        ValueError: for folds with different numbers of seeds.
    """
    _check(counts)
    seeds = _Seeds.of(counts)
    entries = {key: _entry(seeds, metric) for key, metric in _metrics(tuple(counts), names)}
    return _nested(entries, counts, names)


def compare(this: FoldCounts, other: FoldCounts, names: tuple[str, ...]) -> dict[str, Any]:
    """Differences of two cross-validations on the same images, with paired bootstrap intervals.

    Both are resampled with the same images. The numbers of seeds may differ.

    Args:
        this: counts of each fold.
        other: those of the other one, of the same images in the same order.
        names: of the classes.

    Returns:
        As `summarize`, with entries {"this", "other", "difference" (this - other), "interval"
        [low, high] of the difference}.

    Raises:
        ValueError: for other folds or other numbers of images.
    """
    _check(this)
    _check(other)
    sizes = [{fold: len(arrays[0]) for fold, arrays in c.items()} for c in (this, other)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"cannot compare folds of {sizes[0]} images with folds of {sizes[1]}")
    pair = _Seeds.of(this), _Seeds.of(other)
    entries = {key: _difference(*pair, metric) for key, metric in _metrics(tuple(this), names)}
    return _nested(entries, this, names)


def _check(counts: FoldCounts) -> None:
    if not counts or len({len(arrays) for arrays in counts.values()}) != 1:
        numbers = {fold: len(arrays) for fold, arrays in counts.items()}
        raise ValueError(f"every fold needs the counts of the same number of seeds, got {numbers}")


def _metrics(folds: tuple[str, ...], names: tuple[str, ...]) -> list[tuple[tuple, Metric]]:
    """All metrics: (where they stand in the result, function of the totals of all folds)."""
    found = [m for f in folds for m in _of_counts(("folds", f), lambda t, f=f: t[f], names)]
    mean = lambda t: np.mean([present_miou(t[f]) for f in folds], 0)  # noqa: E731
    pooled = _of_counts(("pooled",), lambda t: sum(t.values()), names)
    return [*found, (("mean_of_folds",), mean), *pooled]


def _of_counts(
    where: tuple, counts_of: Metric, names: tuple[str, ...]
) -> list[tuple[tuple, Metric]]:
    """The metrics of the counts [..., 3, C] that a function takes from the totals."""
    classes = [
        ((*where, "per_class_iou", n), lambda t, k=k: present_iou(counts_of(t))[..., k])
        for k, n in enumerate(names)
    ]
    return [
        ((*where, "miou"), lambda t: present_miou(counts_of(t))),
        ((*where, "pixel_accuracy"), lambda t: metrics.accuracy_of_counts(counts_of(t))),
        *classes,
    ]


@dataclass(frozen=True)
class _Seeds:
    """The totals of each seed, and those of resamples [resamples, 3, C]."""

    sums: list[Totals]
    resamples: list[Totals]

    @classmethod
    def of(cls, counts: FoldCounts) -> "_Seeds":
        number = len(next(iter(counts.values())))
        # With seeds of their own, resamples of equally large folds are independent of each other.
        places = {fold: k for k, fold in enumerate(sorted(counts))}
        resample = lambda fold, s: metrics.resample(counts[fold][s], seed=places[fold])  # noqa: E731
        return cls(
            [{f: np.sum(counts[f][s], 0) for f in counts} for s in range(number)],
            [{f: resample(f, s) for f in counts} for s in range(number)],
        )

    def values(self, metric: Metric) -> np.ndarray:
        """The metric of each seed, [seeds]."""
        return np.array([float(metric(totals)) for totals in self.sums])

    def resampled(self, metric: Metric) -> np.ndarray:
        """Its mean over the seeds for each resample, [resamples]."""
        return np.mean([metric(totals) for totals in self.resamples], 0)


def _entry(seeds: _Seeds, metric: Metric) -> dict[str, Any]:
    by_seed = seeds.values(metric)
    return {
        "value": _or_none(by_seed.mean()),
        "interval": metrics.interval_of(seeds.resampled(metric)),
        "by_seed": [_or_none(v) for v in by_seed],
        "seed_deviation": _or_none(by_seed.std(ddof=1)) if len(by_seed) > 1 else None,
    }


def _difference(this: _Seeds, other: _Seeds, metric: Metric) -> dict[str, Any]:
    a, b = this.values(metric).mean(), other.values(metric).mean()
    return {
        "this": _or_none(a),
        "other": _or_none(b),
        "difference": _or_none(a - b),
        "interval": metrics.interval_of(this.resampled(metric) - other.resampled(metric)),
    }


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _nested(entries: dict[tuple, Any], counts: FoldCounts, names: tuple[str, ...]) -> dict:
    """The entries at their places, and what else is said of each fold."""
    result: dict[str, Any] = {"folds": {fold: _about(counts[fold][0], names) for fold in counts}}
    for (*where, last), entry in entries.items():
        at = result
        for key in where:
            at = at.setdefault(key, {})
        at[last] = entry
    return result


def _about(image_counts: np.ndarray, names: tuple[str, ...]) -> dict[str, Any]:
    truth = np.sum(image_counts, 0)[1]
    absent = [name for name, pixels in zip(names, truth, strict=True) if not pixels]
    return {"images": len(image_counts), "absent_classes": absent}


# ---- as text


def table(result: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """The result of `summarize` as a Markdown table, in percent."""
    header = ["held out", "images", "mIoU", "95 % interval", "by seed", "pixel accuracy", *names]
    rows = [_row(name, fold["images"], fold) for name, fold in result["folds"].items()]
    mean = result["mean_of_folds"]
    rows.append(["**mean of folds**", "", *_value_cells(mean), "", *("" for _ in names)])
    images = sum(fold["images"] for fold in result["folds"].values())
    rows.append(_row("**all pixels together**", images, result["pooled"]))
    return _markdown(header, rows) + _absent_note(result)


def _row(name: str, images: int, about: Mapping[str, Any]) -> list[str]:
    classes = [_percent(entry["value"]) for entry in about["per_class_iou"].values()]
    accuracy = _percent(about["pixel_accuracy"]["value"])
    return [name, str(images), *_value_cells(about["miou"]), accuracy, *classes]


def _value_cells(entry: Mapping[str, Any]) -> list[str]:
    by_seed = ", ".join(map(_percent, entry["by_seed"]))
    if entry["seed_deviation"] is not None:
        by_seed += f" (deviation {_percent(entry['seed_deviation'])})"
    return [_percent(entry["value"]), _range(entry["interval"], ""), by_seed]


def comparison_table(result: Mapping[str, Any]) -> str:
    """The result of `compare` as a Markdown table, in percent."""
    folds = result["folds"].items()
    pooled = result["pooled"]
    named = [
        ("mean of folds, mIoU", result["mean_of_folds"]),
        ("all pixels together, mIoU", pooled["miou"]),
        ("all pixels together, pixel accuracy", pooled["pixel_accuracy"]),
        *((f"{name}, mIoU", fold["miou"]) for name, fold in folds),
        *((f"all pixels together, {name}", e) for name, e in pooled["per_class_iou"].items()),
    ]
    rows = [
        [
            name,
            *(_percent(entry[key]) for key in ("this", "other")),
            _percent(entry["difference"], "+"),
            _range(entry["interval"], "+"),
        ]
        for name, entry in named
    ]
    return _markdown(["", "this", "other", "difference", "95 % interval"], rows)


def _absent_note(result: Mapping[str, Any]) -> str:
    lines = [
        f"\n{name} has no pixel of {', '.join(fold['absent_classes'])}: not in its mean.\n"
        for name, fold in result["folds"].items()
        if fold["absent_classes"]
    ]
    return "".join(lines)


def _percent(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{100 * value:{sign}.1f}"


def _range(interval: list[float] | None, sign: str) -> str:
    return " .. ".join(_percent(v, sign) for v in interval) if interval else "-"


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---" for _ in header], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
