"""Reports of an evaluation: metrics.json, terminal tables and a self-contained HTML page."""

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

from hrnet_jax.data.sources.source import Classes
from hrnet_jax.evaluation import metrics
from hrnet_jax.evaluation.segmentation import EvalResult
from hrnet_jax.inference import visualize
from hrnet_jax.runtime import storage

# Thumbnails: wide enough to judge a prediction, small enough that 500 street images fit into a page
# that can be sent by mail.
THUMBNAIL_WIDTH = 480
JPEG_QUALITY = 75
MAX_THUMBNAIL_BYTES = 23_000_000
# Full-size images waiting to be reduced; more would take too much memory.
MAX_WAITING = 16


@dataclass(frozen=True)
class Example:
    """An evaluated image uint8 [H, W, 3], its labels and predictions [H, W], and its metrics."""

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
    result: EvalResult,
    *,
    step: int,
    variant: str,
    intervals: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The contents of metrics.json; undefined metrics are null.

    Args:
        result: of `segmentation.evaluate`.
        step: training step of the weights.
        variant: name of the variant.
        intervals: of `metrics.intervals`.
    """
    found = result.metrics
    categories = {
        name: found[name] for name in ("category_miou", "per_category_iou") if name in found
    }
    if categories:
        categories["category_miou"] = _or_null(categories["category_miou"])
    return {
        "miou": _or_null(found["miou"]),
        "per_class_iou": found["per_class_iou"],
        "pixel_accuracy": _or_null(found["pixel_accuracy"]),
        "mean_accuracy": _or_null(found["mean_accuracy"]),
        "per_class_accuracy": found["per_class_accuracy"],
        **categories,
        "intervals": intervals,
        "confusion_matrix": result.confusion.tolist(),
        "num_images": found["num_images"],
        "num_pixels": found["num_pixels"],
        "step": step,
        "variant": variant,
    }


def _range(interval: Sequence[float] | None) -> str:
    """[0.512, 0.538] -> "51.2 - 53.8"; "" for None."""
    return f"{100 * interval[0]:.1f} - {100 * interval[1]:.1f}" if interval else ""


def class_table(result: EvalResult, intervals: dict[str, Any] | None = None) -> Table:
    """A table for the terminal: IoU with interval, accuracy and pixel fraction of each class."""
    table = Table()
    table.add_column("class")
    columns = ["IoU", "accuracy", "pixels"]
    columns[1:1] = ["95 % interval"] if intervals else []
    for name in columns:
        table.add_column(name, justify="right")

    def row(name: str, value: str, interval: Sequence[float] | None, *rest: str) -> None:
        table.add_row(name, value, *([_range(interval)] if intervals else []), *rest)

    found, ranges = result.metrics, intervals or {"per_class_iou": {}}
    fractions = result.confusion.sum(1) / max(1, found["num_pixels"])
    for (name, iou), fraction in zip(found["per_class_iou"].items(), fractions, strict=True):
        accuracy = found["per_class_accuracy"][name]
        interval = ranges["per_class_iou"].get(name)
        row(name, percent(iou), interval, percent(accuracy), percent(fraction))
    table.add_section()
    row("mean", percent(found["miou"]), ranges.get("miou"), percent(found["mean_accuracy"]), "")
    row("all pixels", "", None, percent(found["pixel_accuracy"]), "")
    if "category_miou" in found:
        table.add_section()
        for name, iou in found["per_category_iou"].items():
            row(f"category {name}", percent(iou), None, "", "")
        row("mean of categories", percent(found["category_miou"]), None, "", "")
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
    table.add_column("metric")
    for name in ("this", "other", "difference", "95 % interval"):
        table.add_column(name, justify="right")
    table.add_column("")
    for k, row in enumerate(_comparison_rows(comparison)):
        if k == 3:
            table.add_section()
        table.add_row(*row)
    return table


def read_log(path: str | os.PathLike) -> dict[str, list[tuple[int, float]]]:
    """Curves of a training log (JSON lines with "step"): name -> [(step, value)].

    Only finite numbers are used; incomplete lines, as a crash leaves them, are skipped. {} if the
    file does not exist.
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
    """Removes the files of `save_overlay` from a folder."""
    folder = storage.path(folder)
    # epath's own glob would treat "[" in the folder's name as a pattern.
    for old in storage.files_in(folder, "worst_*.png") + storage.files_in(folder, "best_*.png"):
        storage.path(old).unlink()


def save_overlay(folder: str | os.PathLike, place: str, example: Example, classes: Classes) -> None:
    """Writes a panel to FOLDER/PLACE_NAME.png, with a place such as "worst_1"."""
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
            f'<button class="name" data-class="{k}" title="Show its images">{title}</button>'
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
        f"<section><h2>Compared with {html.escape(other)}</h2>"
        '<p class="faint">In percentage points, on the same images. The interval is a paired '
        "bootstrap over images; better or worse is shown only if the interval excludes 0.</p>"
        '<table class="compare"><thead><tr><th></th><th>this</th><th>other</th><th>difference</th>'
        f"<th>95 % interval</th><th></th></tr></thead><tbody>{''.join(rows)}</tbody></table>"
        "</section>"
    )


def _matrix(confusion: np.ndarray, names: Sequence[str]) -> str:
    names = [html.escape(n) for n in names]
    head = "".join(f"<th><span>{n}</span></th>" for n in names)
    rows = []
    for i, row in enumerate(confusion):
        total = max(1, int(row.sum()))
        cells = []
        for j, count in enumerate(row):
            fraction = int(count) / total
            text = f"{100 * fraction:.0f}" if fraction >= 0.005 else ""
            hit = ' class="hit"' if i == j else ""
            title = f"{names[i]} predicted as {names[j]}: {count:,} pixels, {percent(fraction)}"
            cells.append(f'<td{hit} style="--v:{fraction**0.7:.3f}" title="{title}">{text}</td>')
        rows.append(f"<tr><th>{names[i]}</th>{''.join(cells)}</tr>")
    body = "\n".join(rows)
    return (
        f'<table class="matrix"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table>"
    )


def _plot(name: str, points: Sequence[tuple[int, float]], unit: str = "") -> str:
    """A line plot over the training steps, as SVG."""
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
class Thumbnail:
    """A reduced evaluated image for the page.

    Attributes:
        name: name of the image.
        width: in pixels, at most THUMBNAIL_WIDTH.
        height: in pixels.
        jpeg: the image.
        maps: alternating rows of ground-truth and predicted train ids, uint8, deflated. The rows
            are similar, so this takes half the space of two separate maps.
    """

    name: str
    width: int
    height: int
    jpeg: bytes
    maps: bytes

    @property
    def num_bytes(self) -> int:
        """Size in the page, as base64."""
        return (len(self.jpeg) + len(self.maps)) * 4 // 3


def make_thumbnail(
    name: str, image: np.ndarray, labels: np.ndarray, predictions: np.ndarray
) -> Thumbnail:
    """Reduces an image uint8 [H, W, 3] and its train ids [H, W]; ids are subsampled, not mixed."""
    height, width = labels.shape
    if width > THUMBNAIL_WIDTH:
        height, width = max(1, round(height * THUMBNAIL_WIDTH / width)), THUMBNAIL_WIDTH
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
    return Thumbnail(name, width, height, buffer.getvalue(), zlib.compress(maps.tobytes()))


class Gallery:
    """Makes thumbnails on another thread while the devices compute the next images."""

    def __init__(self) -> None:
        self._worker = ThreadPoolExecutor(1)
        self._waiting: collections.deque[Future] = collections.deque()
        self._thumbnails: dict[int, Thumbnail] = {}

    def add(
        self, index: int, name: str, image: np.ndarray, labels: np.ndarray, predictions: np.ndarray
    ) -> None:
        """Queues an image for `make_thumbnail`; waits if too many are queued."""

        def make() -> None:
            self._thumbnails[index] = make_thumbnail(name, image, labels, predictions)

        self._waiting.append(self._worker.submit(make))
        if len(self._waiting) > MAX_WAITING:
            self._waiting.popleft().result()

    def finish(self) -> dict[int, Thumbnail]:
        """All thumbnails by index; no more can be added."""
        while self._waiting:
            self._waiting.popleft().result()
        self._worker.shutdown()
        return self._thumbnails


def choose_thumbnails(ranking: Sequence[int], num_bytes: Mapping[int, int]) -> list[int]:
    """Indices of the images to show, from both ends of the ranking, up to MAX_THUMBNAIL_BYTES.

    Args:
        ranking: indices of all images, the worst first.
        num_bytes: size of the thumbnail of each image.
    """
    ends = [i for pair in zip(ranking, reversed(ranking), strict=True) for i in pair]
    chosen, total = [], 0
    for index in dict.fromkeys(ends):
        total += num_bytes[index]
        if total > MAX_THUMBNAIL_BYTES:
            break
        chosen.append(index)
    return chosen


def _rounded(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 5)


def _thumbnail_data(thumbnail: Thumbnail, counts: np.ndarray) -> dict[str, Any]:
    """What the page's script reads; `counts` [3, C] are those of the image."""
    return {
        "name": thumbnail.name,
        "width": thumbnail.width,
        "height": thumbnail.height,
        "miou": _rounded(metrics.miou_of_counts(counts)),
        "accuracy": _rounded(metrics.accuracy_of_counts(counts)),
        "ious": [_rounded(v) for v in metrics.iou_of_counts(counts)],
        "jpeg": base64.b64encode(thumbnail.jpeg).decode(),
        "maps": base64.b64encode(thumbnail.maps).decode(),
    }


def _page_data(
    result: EvalResult, classes: Classes, thumbnails: Sequence[tuple[int, Thumbnail]]
) -> str:
    """The JSON of the page's script."""
    data = {
        "names": list(classes.names),
        "colors": [list(c) for c in classes.colors],
        "num_images": len(result.ids),
        "pictures": [_thumbnail_data(t, result.image_counts[i]) for i, t in thumbnails],
    }
    # "<" could end the script element.
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def _headline(result: EvalResult, intervals: dict[str, Any]) -> str:
    found = result.metrics
    rows = [
        (name, percent(found[key]), _range(intervals.get(key)))
        for name, key in (
            ("mean IoU", "miou"),
            ("pixel accuracy", "pixel_accuracy"),
            ("mean accuracy", "mean_accuracy"),
        )
    ]
    rows += [
        ("images", f"{found['num_images']:,}", ""),
        ("labeled pixels", f"{found['num_pixels']:,}", ""),
    ]
    return "".join(
        f"<div><b>{value}</b>{name}<small>{interval and f'95 %: {interval}'}</small></div>"
        for name, value, interval in rows
    )


def _categories(found: dict[str, Any]) -> str:
    if "per_category_iou" not in found:
        return ""
    return (
        f"<section><h2>IoU per category (mean {percent(found['category_miou'])})</h2>"
        f'<div class="bars">{_bars(found["per_category_iou"], None)}</div></section>'
    )


def build_report(
    *,
    title: str,
    subtitle: str,
    result: EvalResult,
    classes: Classes,
    intervals: dict[str, Any] | None = None,
    comparison: dict[str, Any] | None = None,
    other: str = "",
    thumbnails: Sequence[tuple[int, Thumbnail]] = (),
    curves: dict[str, list[tuple[int, float]]] | None = None,
) -> str:
    """The HTML page as a string; it needs no other files and no network.

    Args:
        title: e.g. "w48 on cityscapes val".
        subtitle: one line about how the result was computed.
        result: of `segmentation.evaluate`.
        classes: names and colors.
        intervals: of `metrics.intervals`.
        comparison: of `metrics.compare`.
        other: name of the network that was compared with.
        thumbnails: images to show, each with its index in the result.
        curves: of `read_log`.
    """
    intervals = intervals or {}
    ious = result.metrics["per_class_iou"]
    parts = {
        "title": html.escape(title),
        "subtitle": html.escape(subtitle),
        "headline": _headline(result, intervals),
        "bars": _bars(ious, classes.colors, intervals.get("per_class_iou")),
        "categories": _categories(result.metrics),
        "comparison": _comparison(comparison, other),
        "matrix": _matrix(result.confusion, classes.names),
        "curves": _curves(curves or {}),
        "data": _page_data(result, classes, thumbnails),
    }
    template = importlib.resources.files(__package__).joinpath("report.html").read_text("utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)
