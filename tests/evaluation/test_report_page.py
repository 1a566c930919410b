"""The report in a real browser: clicks, slider, keys, colours, and nothing from the network."""

import numpy as np
import pytest
from headless import new_page

from hrnet_jax.data import Classes
from hrnet_jax.evaluation import metrics, report, segmentation

CLASSES = Classes(("road", "sky", "boat"), ((200, 0, 0), (0, 0, 250), (0, 220, 0)), (7, 23, 4))
HEIGHT, WIDTH = 40, 60


def sample(wrong_columns, with_boat):
    """A gray image: road below, sky above, perhaps a boat; the first columns are wrong."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[: HEIGHT // 2] = 1
    labels[0] = 255
    if with_boat:
        labels[18:22, 40:] = 2
    predictions = labels.copy()
    predictions[labels == 255] = 1
    predictions[:, :wrong_columns] = 1 - (predictions[:, :wrong_columns] > 0)
    image = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    valid = labels < 3
    confusion = np.bincount(3 * labels[valid].astype(int) + predictions[valid], minlength=9)
    return image, labels, predictions, confusion.reshape(3, 3)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    thumbnails, counts, confusion = [], [], np.zeros((3, 3), int)
    for name, wrong, boat in (("good", 0, False), ("middle", 10, True), ("bad", 30, False)):
        *arrays, matrix = sample(wrong, boat)
        confusion += matrix
        thumbnails.append(report.make_thumbnail(name, *arrays))
        counts.append(metrics.counts_of(matrix))
    summary = metrics.summarize(confusion, CLASSES) | {"num_images": 3}
    ids = tuple(t.name for t in thumbnails)
    result = segmentation.EvalResult(confusion, summary, ids, np.stack(counts), 1.0)
    page = report.build_report(
        title="net on dataset",
        subtitle="step 7",
        result=result,
        classes=CLASSES,
        intervals=metrics.intervals(result.image_counts, CLASSES.names),
        thumbnails=list(enumerate(thumbnails)),
        curves={"train/loss": [(1, 2.0), (5, 1.0)]},
    )
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def color(page, canvas, x, y):
    """RGB of a canvas's pixel."""
    script = "([id, x, y]) => [...document.getElementById(id).getContext('2d')\
        .getImageData(x, y, 1, 1).data.slice(0, 3)]"
    return page.evaluate(script, [canvas, x, y])


def shown(page, name):
    page.wait_for_selector(f"#stage[data-name='{name}']")


def test_a_reader_looks_around(path, tmp_path):
    with new_page(viewport={"width": 1200, "height": 900}, color_scheme="light") as (
        page,
        messages,
    ):
        page.context.set_offline(True)
        page.goto(path.as_uri())
        shown(page, "bad")  # the worst comes first
        assert page.locator("#list button").count() == 3
        assert "3 of 3 images" in page.inner_text("#count")

        # Left the image, right the prediction: sky where road is, in the left half.
        np.testing.assert_allclose(color(page, "left", 5, 30), [128] * 3, atol=3)
        red, _, blue = color(page, "right", 5, 30)
        assert blue > red + 100
        page.keyboard.press("4")  # errors
        assert page.inner_text("#right-tag") == "errors"
        red, green, _ = color(page, "right", 5, 30)
        assert red > green + 80
        np.testing.assert_allclose(np.ptp(color(page, "right", 50, 30)), 0)  # right: gray
        assert max(color(page, "right", 50, 0)) < 50  # unlabeled: dark
        page.keyboard.press("Shift+2")
        assert page.inner_text("#left-tag") == "ground truth"
        red, _, blue = color(page, "left", 5, 30)
        assert red > blue + 80
        page.get_by_role("group", name="Right view").get_by_role("button", name="image").click()
        np.testing.assert_allclose(color(page, "right", 5, 30), [128] * 3, atol=3)

        # The slider follows the pointer, the control and the keys.
        page.locator("#stage").scroll_into_view_if_needed()
        box = page.locator("#stage").bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] * 0.75)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.75)
        page.mouse.up()
        assert float(page.input_value("#slider")) == pytest.approx(25, abs=1)
        assert page.inner_text("#readout") == "ground truth: road, prediction: sky"
        page.keyboard.press("]")
        assert float(page.input_value("#slider")) == pytest.approx(30, abs=1)
        page.locator("#slider").fill("80")
        assert page.evaluate("stage.style.getPropertyValue('--cut')") == "80%"
        page.locator("#slider").blur()

        # Other images, orders, classes and names.
        page.keyboard.press("ArrowRight")
        shown(page, "middle")
        page.select_option("#order", "best")
        shown(page, "good")
        page.locator("#order").blur()
        page.locator("button.name", has_text="boat").click()
        shown(page, "middle")
        assert page.locator("#list button").count() == 1
        assert page.input_value("#class") == "2"
        assert "boat" in page.inner_text("#caption")
        page.keyboard.press("Escape")
        assert page.locator("#list button").count() == 3
        page.fill("#search", "BAD")
        shown(page, "bad")
        assert page.locator("#list button").count() == 1
        page.fill("#search", "nothing")
        assert page.inner_text("#caption") == "No image matches."
        page.keyboard.press("Escape")
        shown(page, "good")

        # Light and dark.
        background = "getComputedStyle(document.body).backgroundColor"
        assert page.evaluate(background) == "rgb(246, 247, 249)"
        page.keyboard.press("t")
        assert page.evaluate(background) == "rgb(20, 22, 26)"
        page.click("#theme")
        assert page.evaluate(background) == "rgb(246, 247, 249)"
        page.emulate_media(color_scheme="dark")
        page.reload()
        shown(page, "bad")
        assert page.evaluate(background) == "rgb(20, 22, 26)"
        # A narrow window needs no scrolling sideways.
        page.set_viewport_size({"width": 390, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert messages == []
