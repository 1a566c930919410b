import numpy as np
import pytest

from hrnet_jax.data.sources.label_values import code_color, color_codes, to_bytes
from hrnet_jax.data.sources.source import Classes

COLORS = ((0, 0, 0), (200, 10, 9))


def classes(label_ids=(0, 1), **changes):
    return Classes(("no", "yes"), COLORS, label_ids, **changes)


def test_bytes_stay_as_they_are():
    label = np.array([[3, 255]], np.uint8)
    assert to_bytes(label, classes(), "a.png") is label
    assert to_bytes(label, None, "a.png") is label


def test_ids_of_16_bits_that_fit_in_a_byte():
    stored = to_bytes(np.array([[3, 255]], np.uint16), classes(), "a.png")
    assert stored.dtype == np.uint8
    assert stored.tolist() == [[3, 255]]
    large = np.array([[3, 256, 256, 9999]], np.uint16)
    for known in (classes(), None):
        with pytest.raises(ValueError, match=r"a.png holds ids .* id 256: 2 pixels; id 9999: 1 pi"):
            to_bytes(large, known, "a.png")
    # All others are ignored, as is the 255 that stands for them.
    assert to_bytes(large, classes(ignore_rest=True), "a.png").tolist() == [[3, 255, 255, 255]]
    # 255 is a class: the largest byte that is none.
    known = classes((0, 255), ignore_rest=True)
    assert to_bytes(large, known, "a.png").tolist() == [[3, 254, 254, 254]]


def test_large_ids_become_train_ids():
    known = classes((0, (300, 65535)), ignore_ids=(7,))
    stored = to_bytes(np.array([[0, 300, 65535, 7, 255]], np.uint16), known, "a.png")
    assert stored.tolist() == [[0, 1, 1, 255, 255]]
    assert stored.dtype == np.uint8
    assert known.lookup()[stored].tolist() == stored.tolist()
    # An 8-bit file of the same dataset.
    assert to_bytes(np.array([[0, 7]], np.uint8), known, "a.png").tolist() == [[0, 255]]
    with pytest.raises(ValueError, match=r"a.png holds ids .*: id 301: 1 pixels. .*ignore_ids"):
        to_bytes(np.array([[0, 301]], np.uint16), known, "a.png")
    known = classes((0, (300, 65535)), ignore_rest=True)
    assert to_bytes(np.array([[0, 301]], np.uint16), known, "a.png").tolist() == [[0, 255]]


def test_colors_become_train_ids():
    known = classes(label_type="colors", ignore_colors=((9, 9, 9),))
    label = np.array([[COLORS[1], COLORS[0], (9, 9, 9)]], np.uint8)
    assert to_bytes(label, known, "a.png").tolist() == [[1, 0, 255]]
    label = np.array([[(201, 10, 9), (1, 1, 1), (201, 10, 9)]], np.uint8)
    with pytest.raises(
        ValueError,
        match=r"color \(201, 10, 9\): 2 pixels, nearest 'yes' \(200, 10, 9\); "
        r"color \(1, 1, 1\): 1 pixels, nearest 'no' \(0, 0, 0\)\. .*ignore_colors",
    ):
        to_bytes(label, known, "a.png")
    rest = classes(label_type="colors", ignore_rest=True)
    assert to_bytes(label, rest, "a.png").tolist() == [[255, 255, 255]]


def test_many_colors_are_a_lossy_format():
    label = np.stack([np.arange(1, 21, dtype=np.uint8)] * 3, -1)[None]
    with pytest.raises(ValueError, match=r"and 12 more; so many colors come from resizing"):
        to_bytes(label, classes(label_type="colors"), "a.png")


def test_color_codes():
    codes = color_codes(np.array([[1, 2, 3], [255, 255, 255]], np.uint8))
    assert codes.tolist() == [0x010203, 0xFFFFFF]
    assert code_color(codes[0]) == (1, 2, 3)
