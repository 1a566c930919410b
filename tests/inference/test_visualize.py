import numpy as np
import pytest
from PIL import Image

from hrnet_jax.data import Classes
from hrnet_jax.inference import visualize

CLASSES = Classes(("road", "sky"), ((200, 0, 0), (0, 0, 100)), (7, 23))
LABELS = np.array([[0, 1], [255, 1]], np.uint8)
IMAGE = np.full((2, 2, 3), 100, np.uint8)


def test_colors():
    expected = [[[200, 0, 0], [0, 0, 100]], [[0, 0, 0], [0, 0, 100]]]
    np.testing.assert_array_equal(visualize.color_labels(LABELS, CLASSES), expected)


def test_overlay():
    result = visualize.overlay(IMAGE, LABELS, CLASSES, alpha=0.5)
    expected = [[[150, 50, 50], [50, 50, 100]], [[50, 50, 50], [50, 50, 100]]]
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(visualize.overlay(IMAGE, LABELS, CLASSES, alpha=0), IMAGE)


def test_errors_are_red_where_labelled_and_wrong():
    predictions = np.array([[0, 0], [0, 1]], np.uint8)
    result = visualize.error_map(IMAGE, LABELS, predictions, 2).astype(int)
    red = result[..., 0] - result[..., 1:].max(-1) > 50
    np.testing.assert_array_equal(red, [[False, True], [False, False]])
    assert (result[1, 0] < result[0, 0]).all()  # unlabelled is darker than right


def test_grid_places_pictures_in_rows():
    pictures = [np.full((2, 3, 3), v, np.uint8) for v in (10, 20, 30)]
    result = visualize.grid(pictures, columns=2, gap=1, background=(0, 0, 0))
    assert result.shape == (5, 7, 3)
    assert [result[0, 0, 0], result[0, 4, 0], result[3, 0, 0], result[3, 4, 0]] == [10, 20, 30, 0]
    assert (result[2] == 0).all()
    assert (result[:, 3] == 0).all()


def test_legend_wraps_and_shows_every_color():
    wide = visualize.legend(CLASSES, 400)
    narrow = visualize.legend(CLASSES, 80)
    assert wide.shape[1] == 400
    assert narrow.shape[0] == 2 * wide.shape[0]
    for picture in (wide, narrow):
        for color in CLASSES.colors:
            assert (picture == color).all(-1).any()


def test_panel_holds_what_is_there(tmp_path):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (31, 47, 3)).astype(np.uint8)
    labels = rng.integers(0, 2, (31, 47)).astype(np.uint8)
    whole = visualize.panel(image, labels, labels, CLASSES, title="a title that is far too long")
    alone = visualize.panel(image, None, labels, CLASSES)
    assert whole.shape[0] > alone.shape[0] > 31
    assert any((whole[y : y + 31, x : x + 47] == image).all() for y in range(80) for x in range(20))
    visualize.save(tmp_path / "new" / "panel.png", whole)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "panel.png")), whole)


def test_large_pictures_shrink_to_the_width():
    assert visualize.resize_to_width(np.zeros((100, 400, 3), np.uint8), 200).shape == (50, 200, 3)
    assert visualize.resize_to_width(np.zeros((9, 40, 3), np.uint8), 200).shape == (9, 40, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: visualize.color_labels(LABELS.astype(float), CLASSES), "integers"),
        (lambda: visualize.color_labels(LABELS[None], CLASSES), r"\[H, W\]"),
        (lambda: visualize.color_labels(LABELS.astype(int) - 1, CLASSES), r"0\.\.255"),
        (lambda: visualize.overlay(IMAGE, LABELS[:1], CLASSES), "do not fit"),
        (lambda: visualize.overlay(IMAGE / 255, LABELS, CLASSES), "uint8"),
        (lambda: visualize.overlay(IMAGE, LABELS, CLASSES, alpha=2), "alpha"),
        (lambda: visualize.grid([], 2), "need images"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_networks_side_by_side():
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    labels = np.zeros((40, 60), np.uint8)
    other = Classes(("a", "b"), ((1, 2, 3), (4, 5, 6)), (0, 1))
    shared = visualize.side_by_side(image, [("n", labels, CLASSES), ("m", labels + 1, CLASSES)])
    apart = visualize.side_by_side(image, [("n", labels, CLASSES), ("m", labels + 1, other)])
    assert shared.shape[1] == apart.shape[1] >= 3 * 60
    assert apart.shape[0] > shared.shape[0]  # a legend more
    for picture, color in ((shared, CLASSES.colors[1]), (apart, other.colors[1])):
        assert (picture == color).all(-1).any()
        assert any((picture[y : y + 40, 12:72] == image).all() for y in range(60))


def test_label_ids_are_those_of_the_dataset():
    classes = Classes(("a", "b", "c"), ((1, 0, 0), (0, 1, 0), (0, 0, 1)), (7, 8, 11))
    found = visualize.to_label_ids(np.array([[0, 2, 1]], np.uint8), classes)
    np.testing.assert_array_equal(found, [[7, 11, 8]])
    assert found.dtype == np.uint8
