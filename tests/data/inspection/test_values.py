"""Ids, colors, modes and sizes of label files, and the classes that describe them."""

import numpy as np
import pytest
from PIL import Image

from hrnet_jax.data.inspection import values
from hrnet_jax.data.inspection.values import classes_of, count, is_scale


@pytest.fixture
def pairs(tmp_path):
    """Writes labels, each with an image of its size."""

    def make(*labels, size=None):
        found = []
        for k, label in enumerate(labels):
            label = label if isinstance(label, Image.Image) else Image.fromarray(np.array(label))
            image = Image.new("RGB", size or label.size)
            for kind, picture in (("image", image), ("label", label)):
                picture.save(tmp_path / f"{kind}{k}.png")
            found.append((str(tmp_path / f"image{k}.png"), str(tmp_path / f"label{k}.png")))
        return found

    return make


def gray(*rows, dtype=np.uint8):
    return np.array(rows, dtype)


def test_counts(pairs):
    found = count(pairs(gray([0, 3], [3, 3]), gray([3, 255], [255, 255])))
    assert found.ids == {0: 1, 3: 4, 255: 3}
    assert found.in_files == {0: 1, 3: 2, 255: 1}
    assert found.label_kinds == {"PNG gray 8 bits": 2}
    assert found.sizes == {(2, 2): 2}
    assert not found.problems


def test_sizes_that_differ_and_damaged_files_are_problems(pairs, tmp_path):
    found = count(
        [*pairs(gray([0, 1]), size=(3, 1)), (str(tmp_path / "image0.png"), "/missing.png")]
    )
    assert "label0.png is 1x2 but its image" in found.problems[0]
    assert "/missing.png" in found.problems[1]


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (gray([0, 255]), {"names": ["background", "foreground"], "label_ids": [0, 255],
                          "ignore_ids": []}),
        (gray([0, 1, 255]), {"names": ["background", "foreground"], "label_ids": [0, 1]}),
        (gray([0, 128, 255]), {"names": ["class 0", "class 128", "class 255"],
                               "label_ids": [0, 128, 255], "ignore_ids": []}),
        (gray([0, 3, 9, 255]), {"names": ["class 0", "class 3", "class 9"],
                                "label_ids": [0, 3, 9]}),
        (gray([1000, 2000, 3000], dtype=np.uint16),
         {"names": ["class 1000", "class 2000", "class 3000"], "label_ids": [1000, 2000, 3000]}),
        # Equal channels are ids, different ones colors.
        (np.repeat(gray([0, 3, 4])[..., None], 3, -1),
         {"names": ["class 0", "class 3", "class 4"], "label_ids": [0, 3, 4]}),
        (np.array([[[255, 0, 0], [255, 0, 0], [0, 0, 9]]], np.uint8),
         {"names": ["red", "color 000009"], "label_type": "colors",
          "colors": [[255, 0, 0], [0, 0, 9]]}),
    ],
)  # fmt: skip
def test_classes(pairs, label, expected):
    assert classes_of(count(pairs(label)), {})[0] == expected


def test_palette_gives_the_colors(pairs):
    image = Image.fromarray(gray([0, 1, 2]))
    image.putpalette([0, 0, 0, 9, 8, 7, 1, 2, 3])
    data, _ = classes_of(count(pairs(image)), {})
    assert data["colors"] == [[0, 0, 0], [9, 8, 7], [1, 2, 3]]


def test_names_and_what_is_no_class(pairs):
    data, notes = classes_of(count(pairs(gray([0, 1, 5]))), {0: "void", 1: "road", 5: "tree"})
    assert data == {"names": ["road", "tree"], "label_ids": [1, 5], "ignore_ids": [0]}
    assert any("ids ignored for their names: [(0, 'void')]" in note for note in notes)
    label = np.array([[[0, 0, 0], [9, 9, 0], [8, 9, 0]]], np.uint8)
    names = {(0, 0, 0): "Void", (9, 9, 0): "road", (8, 9, 0): "tree"}
    data, _ = classes_of(count(pairs(label)), names)
    assert data["ignore_colors"] == [[0, 0, 0]]
    assert sorted(data["names"]) == ["road", "tree"]


def test_interpolated_colors_are_ignored_and_photographs_refused(pairs):
    label = np.zeros((300, 400, 3), np.uint8)
    label[:, 200:] = 255, 0, 0
    label[0, :80, 1] = np.arange(1, 81)
    data, notes = classes_of(count(pairs(label)), {})
    assert (data["names"], data["ignore_colors"]) == (["red", "black"], "rest")
    assert "80 colors with less than 0.1% of the pixels each" in notes[0]
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    with pytest.raises(ValueError, match="colors: these are photographs, or labels that were"):
        classes_of(count(pairs(noise)), {})
    many = np.arange(400, dtype=np.uint16).reshape(20, 20)
    with pytest.raises(ValueError, match="400 different ids from 0 to 399, more than 254"):
        classes_of(count(pairs(many)), {})


def test_range_of_deep_images(tmp_path):
    Image.fromarray(gray([7, 4000], dtype=np.uint16)).save(tmp_path / "i.png")
    Image.fromarray(gray([0, 1])).save(tmp_path / "l.png")
    found = count([(str(tmp_path / "i.png"), str(tmp_path / "l.png"))])
    assert classes_of(found, {})[0]["image_range"] == [7, 4000]


def test_scales():
    assert is_scale([0, 85, 170, 255])
    assert not is_scale([0, 1, 255])
    assert not is_scale([0, 1, 2])
    assert values.MANY_COLORS == 64
