"""What an evaluation leaves behind: metrics.json, tables and one self-contained HTML page."""

import base64
import collections
import html
import importlib.resources
import io
import json
import math
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from rich.table import Table

from hrnet_jax.evaluation import metrics
from hrnet_jax.inference import visualize
from hrnet_jax.runtime import storage

# Pictures in the page: wide enough to judge, small enough that 500 of a street fit into a page
# that can be mailed.
PICTURE_WIDTH = 480
JPEG_QUALITY = 75
MAX_PICTURE_BYTES = 23_000_000
# Images waiting to be made small at a time; more would keep full-size arrays in memory.
MAX_WAITING = 16


@dataclass(frozen=True)
class Example:
    """One evaluated image: uint8 [H, W, 3], its train ids [H, W] true and predicted, its scores."""

    name: str
    image: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray
    miou: float
    pixel_accuracy: float

    @property
    def title(self) -> str:
        return f"{self.name}: mIoU {percent(self.miou)}, pixels {percent(self.pixel_accuracy)}"


def percent(value: float | None) -> str:
    """0.8123 -> "81.23 %"; a dash for None and NaN."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.2f} %"


def _or_null(value: float) -> float | None:
    return None if math.isnan(value) else value


def metrics_json(
    figures: dict[str, Any],
    confusion: np.ndarray,
    *,
    step: int,
    variant: str,
    intervals: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The contents of metrics.json; figures that do not exist are null.

    Args:
        figures: of `segmentation.evaluate`.
        confusion: integers [C, C], rows true, columns predicted.
        step: training step of the weights.
        variant: name of the network's size.
        intervals: of `metrics.intervals`.
    """
    categories = {
        name: figures[name] for name in ("category_miou", "per_category_iou") if name in figures
    }
    if categories:
        categories["category_miou"] = _or_null(categories["category_miou"])
    return {
        "miou": _or_null(figures["miou"]),
        "per_class_iou": figures["per_class_iou"],
        "pixel_accuracy": _or_null(figures["pixel_accuracy"]),
        "mean_accuracy": _or_null(figures["mean_accuracy"]),
        "per_class_accuracy": figures["per_class_accuracy"],
        **categories,
        "intervals": intervals,
        "confusion_matrix": confusion.tolist(),
        "num_images": figures["num_images"],
        "num_pixels": figures["num_pixels"],
        "step": step,
        "variant": variant,
    }


def _range(interval: Sequence[float] | None) -> str:
    """[0.512, 0.538] -> "51.2 - 53.8"; "" for None."""
    return f"{100 * interval[0]:.1f} - {100 * interval[1]:.1f}" if interval else ""


def class_table(
    figures: dict[str, Any], confusion: np.ndarray, intervals: dict[str, Any] | None = None
) -> Table:
    """A table for the terminal: IoU with its interval, accuracy and share of each class."""
    table = Table()
    table.add_column("class")
    columns = ["IoU", "accuracy", "share of pixels"]
    columns[1:1] = ["95 % of it"] if intervals else []
    for name in columns:
        table.add_column(name, justify="right")

    def row(name: str, value: str, interval: Sequence[float] | None, *rest: str) -> None:
        table.add_row(name, value, *([_range(interval)] if intervals else []), *rest)

    found = intervals or {"per_class_iou": {}}
    shares = confusion.sum(1) / max(1, figures["num_pixels"])
    for (name, iou), share in zip(figures["per_class_iou"].items(), shares, strict=True):
        accuracy = figures["per_class_accuracy"][name]
        interval = found["per_class_iou"].get(name)
        row(name, percent(iou), interval, percent(accuracy), percent(share))
    table.add_section()
    row("mean", percent(figures["miou"]), found.get("miou"), percent(figures["mean_accuracy"]), "")
    row("all pixels", "", None, percent(figures["pixel_accuracy"]), "")
    if "category_miou" in figures:
        table.add_section()
        for name, iou in figures["per_category_iou"].items():
            row(f"category {name}", percent(iou), None, "", "")
        row("mean of categories", percent(figures["category_miou"]), None, "", "")
    return table


def _difference(entry: dict[str, Any]) -> tuple[str, str, str, str, str]:
    """This, other, difference and its interval in percent, and "better", "worse" or ""."""
    difference, interval = entry["difference"], entry["interval"]
    verdict = ""
    if interval and (interval[0] > 0 or interval[1] < 0):
        verdict = "better" if interval[0] > 0 else "worse"
    return (
        percent(entry["this"]),
        percent(entry["other"]),
        "-" if difference is None else f"{100 * difference:+.2f}",
        "" if not interval else f"{100 * interval[0]:+.2f} .. {100 * interval[1]:+.2f}",
        verdict,
    )


def _comparison_rows(comparison: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = {
        "mean IoU": comparison["miou"],
        "pixel accuracy": comparison["pixel_accuracy"],
        "mean accuracy": comparison["mean_accuracy"],
        **comparison["per_class_iou"],
    }
    return [(name, *_difference(entry)) for name, entry in rows.items()]


def comparison_table(comparison: dict[str, Any]) -> Table:
    """The result of `metrics.compare` for the terminal."""
    table = Table()
    table.add_column("figure")
    for name in ("this", "other", "difference", "95 % of it"):
        table.add_column(name, justify="right")
    table.add_column("")
    for k, row in enumerate(_comparison_rows(comparison)):
        if k == 3:
            table.add_section()
        table.add_row(*row)
    return table


def read_log(path: str | os.PathLike) -> dict[str, list[tuple[int, float]]]:
    """Curves of a training log (JSON lines with "step"): name -> [(step, value)].

    Only finite numbers count; lines cut short by a crash are left out. {} if there is no file.
    """
    path = storage.path(path)
    curves: dict[str, list[tuple[int, float]]] = {}
    if not path.exists():
        return curves
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
            continue
        for name, value in entry.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if name != "step" and number and math.isfinite(value):
                curves.setdefault(name, []).append((entry["step"], value))
    return curves


def remove_overlays(folder: str | os.PathLike) -> None:
    """Removes what `save_overlay` wrote there."""
    folder = storage.path(folder)
    # Not by epath's own glob, which takes "[" in the folder's name for a pattern.
    for old in storage.files_in(folder, "worst_*.png") + storage.files_in(folder, "best_*.png"):
        storage.path(old).unlink()


def save_overlay(folder: str | os.PathLike, place: str, example: Example, classes: Any) -> None:
    """Writes a panel, folder/worst_1_NAME.png for the `place` worst_1."""
    e = example
    panel = visualize.panel(e.image, e.labels, e.predictions, classes, title=e.title)
    name = e.name.replace("/", "_")
    visualize.save(storage.path(folder) / f"{place}_{name}.png", panel)


def _swatch(color: Sequence[int]) -> str:
    return f'<i class="swatch" style="background:rgb({color[0]} {color[1]} {color[2]})"></i>'


def _bars(
    values: dict[str, float | None],
    colors: Sequence[Sequence[int]] | None,
    intervals: dict[str, Any] | None = None,
) -> str:
    rows = []
    for k, (name, value) in enumerate(values.items()):
        swatch = _swatch(colors[k]) if colors else ""
        width = 0 if value is None else 100 * value
        interval = (intervals or {}).get(name)
        whisker = ""
        if interval:
            low, high = (100 * v for v in interval)
            whisker = f'<i class="whisker" style="left:{low:.2f}%;width:{high - low:.2f}%"></i>'
        title = f"{swatch}{html.escape(name)}"
        label = (
            f'<button class="name" data-class="{k}" title="Its images">{title}</button>'
            if colors
            else f'<div class="name">{title}</div>'
        )
        rows.append(
            f'<div class="bar">{label}'
            f'<div class="track"><div class="fill" style="width:{width:.2f}%"></div>{whisker}</div>'
            f'<div class="number">{percent(value)}</div>'
            f'<div class="number"><small>{_range(interval)}</small></div></div>'
        )
    return "\n".join(rows)


def _comparison(comparison: dict[str, Any] | None, other: str) -> str:
    if comparison is None:
        return ""
    rows = []
    for name, this, theirs, difference, interval, verdict in _comparison_rows(comparison):
        cells = "".join(f"<td>{c}</td>" for c in (this, theirs))
        rows.append(
            f"<tr><th>{html.escape(name)}</th>{cells}"
            f'<td class="{verdict}">{difference}</td><td>{interval}</td><td>{verdict}</td></tr>'
        )
    return (
        f"<section><h2>Against {html.escape(other)}</h2>"
        '<p class="faint">In points, on the same images. The interval is a paired bootstrap over '
        "images; better or worse is said only where it leaves out 0.</p>"
        '<table class="compare"><thead><tr><th></th><th>this</th><th>other</th><th>difference</th>'
        f"<th>95 % of it</th><th></th></tr></thead><tbody>{''.join(rows)}</tbody></table></section>"
    )


def _matrix(confusion: np.ndarray, names: Sequence[str]) -> str:
    names = [html.escape(n) for n in names]
    head = "".join(f"<th><span>{n}</span></th>" for n in names)
    rows = []
    for i, row in enumerate(confusion):
        total = max(1, int(row.sum()))
        cells = []
        for j, count in enumerate(row):
            share = int(count) / total
            text = f"{100 * share:.0f}" if share >= 0.005 else ""
            hit = ' class="hit"' if i == j else ""
            title = f"{names[i]} taken for {names[j]}: {count:,} pixels, {percent(share)}"
            cells.append(f'<td{hit} style="--v:{share**0.7:.3f}" title="{title}">{text}</td>')
        rows.append(f"<tr><th>{names[i]}</th>{''.join(cells)}</tr>")
    body = "\n".join(rows)
    return (
        f'<table class="matrix"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


def _plot(name: str, points: Sequence[tuple[int, float]], unit: str = "") -> str:
    """An SVG line over the training steps."""
    width, height, left, top, bottom = 520, 240, 56, 14, 28
    steps, values = (np.array(v, float) for v in zip(*points, strict=True))
    low, high = float(values.min()), float(values.max())
    spread = (high - low) or 1.0
    span = (steps.max() - steps.min()) or 1.0
    x = left + (steps - steps.min()) / span * (width - left - 12)
    y = height - bottom - (values - low) / spread * (height - top - bottom)
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    labels = "".join(
        f'<line class="axis" x1="{left}" x2="{width - 12}" y1="{b:.1f}" y2="{b:.1f}"/>'
        f'<text x="{left - 6}" y="{b + 4:.1f}" text-anchor="end">{v:.3g}{unit}</text>'
        for v, b in (
            (low + f * (high - low), height - bottom - f * (height - top - bottom))
            for f in (0, 0.5, 1)
        )
    )
    first, last = f"{int(steps.min()):,}", f"step {int(steps.max()):,}"
    ends = (
        f'<text x="{left}" y="{height - 8}">{first}</text>'
        f'<text x="{width - 12}" y="{height - 8}" text-anchor="end">{last}</text>'
    )
    return (
        f"<div><p>{html.escape(name)}</p>"
        f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'aria-label="{html.escape(name)} over the steps">{labels}{ends}'
        f'<polyline class="curve" style="stroke:rgb(var(--good))" points="{line}"/></svg></div>'
    )


def _curves(curves: dict[str, list[tuple[int, float]]]) -> str:
    wanted = (
        ("train/loss", "training loss", 1, ""),
        ("eval/miou", "validation mIoU", 100, " %"),
    )
    plots = [
        _plot(title, [(s, factor * v) for s, v in curves[name]], unit)
        for name, title, factor, unit in wanted
        if len(curves.get(name, ())) > 1
    ]
    if not plots:
        return ""
    return f'<section><h2>Training</h2><div class="plots">{"".join(plots)}</div></section>'


@dataclass(frozen=True)
class Picture:
    """An evaluated image made small for the page.

    Attributes:
        name: of the image.
        width: in pixels, at most PICTURE_WIDTH.
        height: in pixels.
        jpeg: the image.
        maps: rows of true and of predicted train ids in turns, uint8, deflated: neighbouring rows
            resemble each other, so this is half the size of two files.
    """

    name: str
    width: int
    height: int
    jpeg: bytes
    maps: bytes

    @property
    def num_bytes(self) -> int:
        """In the page, as base64."""
        return (len(self.jpeg) + len(self.maps)) * 4 // 3


def make_picture(
    name: str, image: np.ndarray, labels: np.ndarray, predictions: np.ndarray
) -> Picture:
    """Shrinks an image uint8 [H, W, 3] and its train ids [H, W]; classes are never mixed."""
    height, width = labels.shape
    if width > PICTURE_WIDTH:
        height, width = max(1, round(height * PICTURE_WIDTH / width)), PICTURE_WIDTH
        rows, columns = (
            (2 * np.arange(small) + 1) * full // (2 * small)
            for small, full in zip((height, width), labels.shape, strict=True)
        )
        labels, predictions = (a[rows[:, None], columns] for a in (labels, predictions))
    small = Image.fromarray(image)
    if small.size != (width, height):
        small = small.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=JPEG_QUALITY)
    maps = np.stack([labels.astype(np.uint8), predictions.astype(np.uint8)], axis=1)
    return Picture(name, width, height, buffer.getvalue(), zlib.compress(maps.tobytes()))


class Gallery:
    """Makes pictures on another thread, while the devices work on the next images."""

    def __init__(self) -> None:
        self._worker = ThreadPoolExecutor(1)
        self._waiting: collections.deque[Future] = collections.deque()
        self._pictures: dict[int, Picture] = {}

    def add(
        self, index: int, name: str, image: np.ndarray, labels: np.ndarray, predictions: np.ndarray
    ) -> None:
        """Takes an image; waits if too many are waiting already. See `make_picture`."""

        def make() -> None:
            self._pictures[index] = make_picture(name, image, labels, predictions)

        self._waiting.append(self._worker.submit(make))
        if len(self._waiting) > MAX_WAITING:
            self._waiting.popleft().result()

    def finish(self) -> dict[int, Picture]:
        """All pictures by index; none can be added any more."""
        while self._waiting:
            self._waiting.popleft().result()
        self._worker.shutdown()
        return self._pictures


def choose_pictures(ranking: Sequence[int], num_bytes: Mapping[int, int]) -> list[int]:
    """Images for the page, from both ends of the ranking until MAX_PICTURE_BYTES are reached.

    Args:
        ranking: indices of all images, the worst one first.
        num_bytes: of the picture of each.
    """
    ends = [i for pair in zip(ranking, reversed(ranking), strict=True) for i in pair]
    chosen, total = [], 0
    for index in dict.fromkeys(ends):
        total += num_bytes[index]
        if total > MAX_PICTURE_BYTES:
            break
        chosen.append(index)
    return chosen


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 5)


def _picture_data(picture: Picture, counts: np.ndarray) -> dict[str, Any]:
    return {
        "name": picture.name,
        "width": picture.width,
        "height": picture.height,
        "miou": _rounded(metrics.miou_of_counts(counts)),
        "accuracy": _rounded(metrics.accuracy_of_counts(counts)),
        "ious": [_rounded(v) for v in metrics.iou_of_counts(counts)],
        "jpeg": base64.b64encode(picture.jpeg).decode(),
        "maps": base64.b64encode(picture.maps).decode(),
    }


def build_report(
    *,
    title: str,
    subtitle: str,
    figures: dict[str, Any],
    confusion: np.ndarray,
    classes: Any,
    intervals: dict[str, Any] | None = None,
    comparison: dict[str, Any] | None = None,
    other: str = "",
    pictures: Sequence[tuple[Picture, np.ndarray]] = (),
    curves: dict[str, list[tuple[int, float]]] | None = None,
) -> str:
    """The page as a string; it needs no other file and no network.

    Args:
        title: e.g. "w48 on cityscapes val".
        subtitle: a line on how it was made.
        figures: of `segmentation.evaluate`.
        confusion: integers [C, C], rows true, columns predicted.
        classes: names and colours.
        intervals: of `metrics.intervals`.
        comparison: of `metrics.compare`.
        other: what was compared with.
        pictures: each with its counts [3, C] as of `metrics.counts_of`.
        curves: of `read_log`.
    """
    intervals = intervals or {}
    headline = [
        (name, percent(figures[key]), _range(intervals.get(key)))
        for name, key in (
            ("mean IoU", "miou"),
            ("pixel accuracy", "pixel_accuracy"),
            ("mean accuracy", "mean_accuracy"),
        )
    ]
    headline += [
        ("images", f"{figures['num_images']:,}", ""),
        ("labelled pixels", f"{figures['num_pixels']:,}", ""),
    ]
    categories = ""
    if "per_category_iou" in figures:
        bars = _bars(figures["per_category_iou"], None)
        mean = percent(figures["category_miou"])
        categories = (
            f"<section><h2>IoU per category (mean {mean})</h2>"
            f'<div class="bars">{bars}</div></section>'
        )
    data = {
        "names": list(classes.names),
        "colors": [list(c) for c in classes.colors],
        "num_images": figures["num_images"],
        "pictures": [_picture_data(p, counts) for p, counts in pictures],
    }
    parts = {
        "title": html.escape(title),
        "subtitle": html.escape(subtitle),
        "figures": "".join(
            f"<div><b>{value}</b>{name}<small>{interval and f'95 %: {interval}'}</small></div>"
            for name, value, interval in headline
        ),
        "bars": _bars(figures["per_class_iou"], classes.colors, intervals.get("per_class_iou")),
        "categories": categories,
        "comparison": _comparison(comparison, other),
        "matrix": _matrix(confusion, classes.names),
        "curves": _curves(curves or {}),
        # No "<" inside: it could end the script element.
        "data": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
    }
    template = importlib.resources.files(__package__).joinpath("report.html").read_text("utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)
