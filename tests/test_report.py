import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from hrnet_jax import metrics, report
from hrnet_jax.data import Classes

CLASSES = Classes(
    ("road", "<sky>", "boat"),
    ((200, 0, 0), (0, 0, 100), (1, 2, 3)),
    (7, 23, 4),
    categories=("flat", "far", "far"),
)
CONFUSION = np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
FIGURES = metrics.summarize(CONFUSION, CLASSES) | {"num_images": 2}


def example(name="a/b"):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (21, 30, 3)).astype(np.uint8)
    labels, predictions = rng.integers(0, 2, (2, 21, 30)).astype(np.uint8)
    return report.Example(name, image, labels, predictions, 0.25, 0.5)


def page(**kwargs):
    return report.build_report(
        title="net on set",
        subtitle="step 7",
        figures=FIGURES,
        confusion=CONFUSION,
        classes=CLASSES,
        **kwargs,
    )


class Outline(HTMLParser):
    """Fails on tags that do not nest; keeps what refers to other files."""

    VOID = ("meta", "img", "line", "polyline", "link", "br")

    def __init__(self):
        super().__init__()
        self.open, self.links, self.images = [], [], 0

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href") and not v.startswith("data:")]
        self.images += tag == "img"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        pass


def test_metrics_json_has_the_documented_keys():
    result = json.loads(json.dumps(report.metrics_json(FIGURES, CONFUSION, step=7, variant="w18")))
    assert result == {
        "miou": pytest.approx((6 / 9 + 3 / 6) / 2),
        "per_class_iou": {"road": pytest.approx(6 / 9), "<sky>": 0.5, "boat": None},
        "pixel_accuracy": 0.75,
        "mean_accuracy": 0.75,
        "confusion_matrix": [[6, 2, 0], [1, 3, 0], [0, 0, 0]],
        "num_images": 2,
        "num_pixels": 12,
        "step": 7,
        "variant": "w18",
    }


def test_figures_that_do_not_exist_are_null():
    nothing = np.zeros((3, 3), int)
    figures = metrics.summarize(nothing, CLASSES) | {"num_images": 1}
    result = report.metrics_json(figures, nothing, step=0, variant="w18")
    assert (result["miou"], result["pixel_accuracy"], result["mean_accuracy"]) == (None,) * 3
    assert report.percent(None) == report.percent(float("nan")) == "-"


def test_table_has_a_row_per_class_and_category():
    table = report.class_table(FIGURES, CONFUSION)
    names, ious, accuracies, shares = (list(c.cells) for c in table.columns)
    assert names[:3] == list(CLASSES.names)
    assert ious[:3] == ["66.67 %", "50.00 %", "-"]
    assert accuracies[:3] == ["75.00 %", "75.00 %", "-"]
    assert shares[:3] == ["66.67 %", "33.33 %", "0.00 %"]
    assert ious[names.index("mean")] == "58.33 %"
    assert ious[names.index("category far")] == "50.00 %"


def test_page_stands_alone_and_nests():
    outline = Outline()
    text = page(
        worst=[example()],
        best=[example("c"), example("d")],
        curves={
            "train/loss": [(1, 2.0), (5, 1.0)],
            "eval/miou": [(1, 0.1), (5, 0.2)],
            "other": [(1, 1.0)],
        },
    )
    outline.feed(text)
    assert outline.open == []
    assert outline.links == []
    assert outline.images == 12
    assert text.count("<polyline") == 2
    assert "http" not in text
    assert "$" not in text
    assert "&lt;sky&gt;" in text
    assert "<sky>" not in text
    assert "prefers-color-scheme: dark" in text


def test_page_shows_the_figures():
    text = page()
    assert "58.33 %" in text
    assert re.search(r"road taken for &lt;sky&gt;: 2 pixels, 25.00 %", text)
    assert "<img" not in text
    assert "<polyline" not in text


def test_log_is_read_line_by_line(tmp_path):
    path = tmp_path / "log.jsonl"
    lines = [
        '{"step": 10, "loss": 2.5, "name": "x", "good": true}',
        '{"step": 20, "loss": NaN, "miou": 0.5}',
        "[1]",
        '{"loss": 1}',
        '{"step": 30, "lo',
    ]
    path.write_text("\n".join(lines))
    assert report.read_log(path) == {"loss": [(10, 2.5)], "miou": [(20, 0.5)]}
    assert report.read_log(tmp_path / "none") == {}


def test_overlays_replace_older_ones(tmp_path):
    report.save_overlays(tmp_path, [example(), example("x")], [example("c")], CLASSES)
    report.save_overlays(tmp_path, [example()], [], CLASSES)
    assert [p.name for p in tmp_path.iterdir()] == ["worst_1_a_b.png"]
