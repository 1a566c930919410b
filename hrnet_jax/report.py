"""What an evaluation leaves behind: metrics.json, a table and one self-contained HTML page."""

import base64
import html
import importlib.resources
import io
import json
import math
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.table import Table

from hrnet_jax import visualize

# Pictures in the page: wide enough to judge, small enough to mail.
PICTURE_WIDTH = 640
JPEG_QUALITY = 82


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
    figures: dict[str, Any], confusion: np.ndarray, *, step: int, variant: str
) -> dict[str, Any]:
    """The contents of metrics.json; figures that do not exist are null.

    Args:
        figures: of `evaluation.evaluate`.
        confusion: integers [C, C], rows true, columns predicted.
        step: training step of the weights.
        variant: name of the network's size.
    """
    return {
        "miou": _or_null(figures["miou"]),
        "per_class_iou": figures["per_class_iou"],
        "pixel_accuracy": _or_null(figures["pixel_accuracy"]),
        "mean_accuracy": _or_null(figures["mean_accuracy"]),
        "confusion_matrix": confusion.tolist(),
        "num_images": figures["num_images"],
        "num_pixels": figures["num_pixels"],
        "step": step,
        "variant": variant,
    }


def class_table(figures: dict[str, Any], confusion: np.ndarray) -> Table:
    """A table for the terminal: IoU, accuracy and share of the truth of each class."""
    table = Table()
    table.add_column("class")
    for name in ("IoU", "accuracy", "share of pixels"):
        table.add_column(name, justify="right")
    shares = confusion.sum(1) / max(1, figures["num_pixels"])
    for (name, iou), share in zip(figures["per_class_iou"].items(), shares, strict=True):
        accuracy = figures["per_class_accuracy"][name]
        table.add_row(name, percent(iou), percent(accuracy), percent(share))
    table.add_section()
    table.add_row("mean", percent(figures["miou"]), percent(figures["mean_accuracy"]), "")
    table.add_row("all pixels", "", percent(figures["pixel_accuracy"]), "")
    if "category_miou" in figures:
        table.add_section()
        for name, iou in figures["per_category_iou"].items():
            table.add_row(f"category {name}", percent(iou), "", "")
        table.add_row("mean of categories", percent(figures["category_miou"]), "", "")
    return table


def read_log(path: str | Path) -> dict[str, list[tuple[int, float]]]:
    """Curves of a training log (JSON lines with "step"): name -> [(step, value)].

    Only finite numbers count; lines cut short by a crash are left out. {} if there is no file.
    """
    path = Path(path)
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


def save_overlays(
    folder: str | Path, worst: Sequence[Example], best: Sequence[Example], classes: Any
) -> None:
    """Writes a panel per example, folder/worst_1_NAME.png and so on; replaces older ones."""
    folder = Path(folder)
    for old in [*folder.glob("worst_*.png"), *folder.glob("best_*.png")]:
        old.unlink()
    for kind, examples in (("worst", worst), ("best", best)):
        for rank, e in enumerate(examples, 1):
            panel = visualize.panel(e.image, e.labels, e.predictions, classes, title=e.title)
            name = e.name.replace("/", "_")
            visualize.save(folder / f"{kind}_{rank}_{name}.png", panel)


def _swatch(color: Sequence[int]) -> str:
    return f'<i class="swatch" style="background:rgb({color[0]} {color[1]} {color[2]})"></i>'


def _bars(values: dict[str, float | None], colors: Sequence[Sequence[int]] | None) -> str:
    rows = []
    for k, (name, value) in enumerate(values.items()):
        swatch = _swatch(colors[k]) if colors else ""
        width = 0 if value is None else 100 * value
        rows.append(
            f'<div class="name">{swatch}{html.escape(name)}</div>'
            f'<div class="track"><div class="fill" style="width:{width:.2f}%"></div></div>'
            f'<div class="number">{percent(value)}</div>'
        )
    return "\n".join(rows)


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


def _picture(pixels: np.ndarray, caption: str) -> str:
    buffer = io.BytesIO()
    small = visualize.resize_to_width(pixels, PICTURE_WIDTH)
    Image.fromarray(small).save(buffer, "JPEG", quality=JPEG_QUALITY)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<div>{caption}<img alt="{caption}" src="data:image/jpeg;base64,{data}"></div>'


def _figure(example: Example, classes: Any) -> str:
    image, labels, predictions = example.image, example.labels, example.predictions
    views = (
        (image, "image"),
        (visualize.overlay(image, labels, classes, 0.7), "truth"),
        (visualize.overlay(image, predictions, classes, 0.7), "prediction"),
        (visualize.error_map(image, labels, predictions, len(classes.names)), "errors"),
    )
    pictures = "".join(_picture(*view) for view in views)
    caption = html.escape(example.title)
    return f'<figure><figcaption>{caption}</figcaption><div class="views">{pictures}</div></figure>'


def _images(title: str, examples: Sequence[Example], classes: Any) -> str:
    if not examples:
        return ""
    legend = "".join(
        f"<span>{_swatch(color)}{html.escape(name)}</span>"
        for name, color in zip(classes.names, classes.colors, strict=True)
    )
    figures = "".join(_figure(e, classes) for e in examples)
    return f'<section><h2>{title}</h2><div class="legend">{legend}</div>{figures}</section>'


def build_report(
    *,
    title: str,
    subtitle: str,
    figures: dict[str, Any],
    confusion: np.ndarray,
    classes: Any,
    worst: Sequence[Example] = (),
    best: Sequence[Example] = (),
    curves: dict[str, list[tuple[int, float]]] | None = None,
) -> str:
    """The page as a string; it needs no other file and no network.

    Args:
        title: e.g. "w48 on cityscapes val".
        subtitle: a line on how it was made.
        figures: of `evaluation.evaluate`.
        confusion: integers [C, C], rows true, columns predicted.
        classes: names and colours.
        worst: pictures of the images with the lowest mean IoU.
        best: and with the highest.
        curves: of `read_log`.
    """
    headline = (
        ("mean IoU", percent(figures["miou"])),
        ("pixel accuracy", percent(figures["pixel_accuracy"])),
        ("mean accuracy", percent(figures["mean_accuracy"])),
        ("images", f"{figures['num_images']:,}"),
        ("labelled pixels", f"{figures['num_pixels']:,}"),
    )
    categories = ""
    if "per_category_iou" in figures:
        bars = _bars(figures["per_category_iou"], None)
        mean = percent(figures["category_miou"])
        categories = (
            f"<section><h2>IoU per category (mean {mean})</h2>"
            f'<div class="bars">{bars}</div></section>'
        )
    template = importlib.resources.files("hrnet_jax").joinpath("report.html").read_text("utf-8")
    return string.Template(template).substitute(
        title=html.escape(title),
        subtitle=html.escape(subtitle),
        figures="".join(f"<div><b>{value}</b>{name}</div>" for name, value in headline),
        bars=_bars(figures["per_class_iou"], classes.colors),
        categories=categories,
        matrix=_matrix(confusion, classes.names),
        curves=_curves(curves or {}),
        images=_images("Worst images", worst, classes) + _images("Best images", best, classes),
    )
