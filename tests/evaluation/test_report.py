import base64
import io
import json
import re
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from hrnet_jax.data import Classes
from hrnet_jax.evaluation import metrics, report, segmentation

CLASSES = Classes(
    ("road", "<sky>", "boat"),
    ((200, 0, 0), (0, 0, 100), (1, 2, 3)),
    (7, 23, 4),
    categories=("flat", "far", "far"),
)
CONFUSION = np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
# Two images that add up to CONFUSION.
COUNTS = np.array([[[4, 1, 0], [4, 3, 0], [6, 1, 0]], [[2, 2, 0], [4, 1, 0], [1, 4, 0]]])
RESULT = segmentation.EvalResult(
    CONFUSION,
    metrics.summarize(CONFUSION, CLASSES) | {"num_images": 2},
    ("a/b", "c"),
    COUNTS,
    1.0,
)
INTERVALS = metrics.intervals(COUNTS, CLASSES.names)


def example(name="a/b"):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (21, 30, 3)).astype(np.uint8)
    labels, predictions = rng.integers(0, 2, (2, 21, 30)).astype(np.uint8)
    return report.Example(name, image, labels, predictions, 0.25, 0.5)


def thumbnail(name="a/b"):
    e = example()
    return 0, report.make_thumbnail(name, e.image, e.labels, e.predictions)


def data_of(text):
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])


def page(**kwargs):
    return report.build_report(
        title="net on dataset",
        subtitle="step 7",
        result=RESULT,
        classes=CLASSES,
        **kwargs,
    )


class Outline(HTMLParser):
    """Fails on tags that do not nest; keeps what refers to other files."""

    VOID = ("meta", "img", "line", "polyline", "link", "br", "input")

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
    contents = report.metrics_json(RESULT, step=7, variant="w18", intervals={"miou": [0.5, 0.6]})
    assert json.loads(json.dumps(contents)) == {
        "miou": pytest.approx((6 / 9 + 3 / 6) / 2),
        "per_class_iou": {"road": pytest.approx(6 / 9), "<sky>": 0.5, "boat": None},
        "pixel_accuracy": 0.75,
        "mean_accuracy": 0.75,
        "per_class_accuracy": {"road": 0.75, "<sky>": 0.75, "boat": None},
        "category_miou": pytest.approx((6 / 9 + 3 / 6) / 2),
        "per_category_iou": {"flat": pytest.approx(6 / 9), "far": 0.5},
        "intervals": {"miou": [0.5, 0.6]},
        "confusion_matrix": [[6, 2, 0], [1, 3, 0], [0, 0, 0]],
        "num_images": 2,
        "num_pixels": 12,
        "step": 7,
        "variant": "w18",
    }


def test_undefined_metrics_are_null():
    nothing = np.zeros((3, 3), int)
    summary = metrics.summarize(nothing, CLASSES) | {"num_images": 1}
    empty = segmentation.EvalResult(nothing, summary, ("a",), np.zeros((1, 3, 3), int), 1.0)
    result = report.metrics_json(empty, step=0, variant="w18")
    assert (result["miou"], result["pixel_accuracy"], result["mean_accuracy"]) == (None,) * 3
    assert report.percent(None) == report.percent(float("nan")) == "-"


def test_table_has_a_row_per_class_and_category():
    table = report.class_table(RESULT)
    names, ious, accuracies, fractions = (list(c.cells) for c in table.columns)
    assert names[:3] == list(CLASSES.names)
    assert ious[:3] == ["66.67 %", "50.00 %", "-"]
    assert accuracies[:3] == ["75.00 %", "75.00 %", "-"]
    assert fractions[:3] == ["66.67 %", "33.33 %", "0.00 %"]
    assert ious[names.index("mean")] == "58.33 %"
    assert ious[names.index("category far")] == "50.00 %"


def test_table_has_intervals():
    table = report.class_table(RESULT, INTERVALS)
    names, _, intervals, *_ = (list(c.cells) for c in table.columns)
    low, high = INTERVALS["per_class_iou"]["road"]
    assert intervals[names.index("road")] == f"{100 * low:.1f} - {100 * high:.1f}"
    assert intervals[names.index("boat")] == ""


def test_comparison_says_better_only_beyond_doubt():
    def entry(low, high):
        return {"this": 0.5, "other": 0.4, "difference": 0.1, "interval": [low, high]}

    nothing = {"this": None, "other": 0.4, "difference": None, "interval": None}
    comparison = {
        "miou": entry(0.05, 0.15),
        "pixel_accuracy": entry(-0.01, 0.2),
        "mean_accuracy": entry(-0.2, -0.1),
        "per_class_iou": {"road": nothing},
    }
    columns = [list(c.cells) for c in report.comparison_table(comparison).columns]
    assert columns[3] == ["+10.00", "+10.00", "+10.00", "-"]
    assert columns[4] == ["+5.00 .. +15.00", "-1.00 .. +20.00", "-20.00 .. -10.00", ""]
    assert columns[5] == ["better", "", "worse", ""]
    text = page(comparison=comparison, other="<run>")
    assert "Compared with &lt;run&gt;" in text
    assert text.count('class="better"') == 1
    assert text.count('class="worse"') == 1


def test_page_stands_alone_and_nests():
    outline = Outline()
    text = page(
        intervals=INTERVALS,
        thumbnails=[thumbnail(), thumbnail("</script><b>")],
        curves={
            "train/loss": [(1, 2.0), (5, 1.0)],
            "eval/miou": [(1, 0.1), (5, 0.2)],
            "other": [(1, 1.0)],
        },
    )
    outline.feed(text)
    assert outline.open == []
    assert outline.links == []
    assert text.count("<polyline") == 2
    assert text.count('class="whisker"') == 2  # boat has no IoU
    assert "http" not in text
    assert "{{" not in text
    assert "&lt;sky&gt;" in text
    assert "<sky>" not in text
    assert [p["name"] for p in data_of(text)["pictures"]] == ["a/b", "</script><b>"]


def test_page_shows_the_metrics():
    text = page()
    assert "58.33 %" in text
    assert re.search(r"road predicted as &lt;sky&gt;: 2 pixels, 25.00 %", text)
    assert data_of(text)["pictures"] == []
    assert "<polyline" not in text


def test_thumbnails_hold_exact_labels_and_scores():
    (shown,) = data_of(page(thumbnails=[thumbnail()]))["pictures"]
    rows = np.frombuffer(zlib.decompress(base64.b64decode(shown["maps"])), np.uint8)
    rows = rows.reshape(shown["height"], 2, shown["width"])
    np.testing.assert_array_equal(rows[:, 0], example().labels)
    np.testing.assert_array_equal(rows[:, 1], example().predictions)
    # Image 0 of COUNTS: road 4 / (4 + 6 - 4), sky 1 / (3 + 1 - 1).
    assert shown["ious"] == [pytest.approx(2 / 3, abs=1e-5), pytest.approx(1 / 3, abs=1e-5), None]
    assert shown["miou"] == pytest.approx(0.5)
    assert shown["accuracy"] == pytest.approx(5 / 7, abs=1e-5)
    with Image.open(io.BytesIO(base64.b64decode(shown["jpeg"]))) as image:
        assert image.size == (30, 21)


def test_large_images_shrink_without_mixing_classes():
    labels = np.zeros((1000, 2000), np.uint8)
    labels[:, 1000:] = 200
    small = report.make_thumbnail("a", np.zeros((1000, 2000, 3), np.uint8), labels, labels)
    assert (small.height, small.width) == (240, report.THUMBNAIL_WIDTH)
    rows = np.frombuffer(zlib.decompress(small.maps), np.uint8).reshape(240, 2, -1)
    assert (rows[:, :, :240] == 0).all()
    assert (rows[:, :, 240:] == 200).all()


def test_gallery_makes_every_thumbnail():
    gallery = report.Gallery()
    e = example()
    for i in range(40):
        gallery.add(i, f"n{i}", e.image, e.labels, e.predictions)
    thumbnails = gallery.finish()
    assert {i: p.name for i, p in thumbnails.items()} == {i: f"n{i}" for i in range(40)}
    assert thumbnails[39].jpeg == thumbnail()[1].jpeg


def test_thumbnails_are_of_both_ends_until_the_page_is_full(monkeypatch):
    monkeypatch.setattr(report, "MAX_THUMBNAIL_BYTES", 50)
    num_bytes = dict.fromkeys(range(40), 10)
    assert report.choose_thumbnails([*range(1, 40), 0], num_bytes) == [1, 0, 2, 39, 3]
    assert report.choose_thumbnails([*range(1, 40), 0], num_bytes | {2: 31}) == [1, 0]
    assert report.choose_thumbnails([0, 2, 1], num_bytes) == [0, 1, 2]


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


@pytest.mark.parametrize("name", ["plain", "a[1]*"])
def test_overlays(tmp_path, name):
    tmp_path = tmp_path / name
    report.save_overlay(tmp_path, "worst_1", example(), CLASSES)
    report.save_overlay(tmp_path, "best_2", example("c"), CLASSES)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best_2_c.png", "worst_1_a_b.png"]
    (tmp_path / "other.png").touch()
    report.remove_overlays(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["other.png"]
