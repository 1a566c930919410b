import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from hrnet_jax.data import open_source
from hrnet_jax.data.sources.files import Files
from hrnet_jax.data.sources.source import Classes, Source

GOOD = {
    "names": ["road", "sky"],
    "colors": [[1, 2, 3], [4, 5, 6]],
    "label_ids": [7, 23],
    "ignore_ids": [0, 9],
    "categories": ["flat", "sky"],
}


def test_lookup_by_hand():
    table = Classes.from_json(GOOD).lookup()
    assert table.dtype == np.uint8
    assert table.shape == (256,)
    assert (table[7], table[23]) == (0, 1)
    assert (table[0], table[9], table[255]) == (255, 255, 255)
    assert (np.delete(table, [0, 7, 9, 23, 255]) == 254).all()


def test_json_round_trip():
    classes = Classes.from_json(GOOD)
    assert classes.to_json() == GOOD
    assert Classes.from_json(classes.to_json()) == classes
    assert hash(classes) == hash(Classes.from_json(GOOD))
    assert classes.num_classes == 2


LATER = {
    "names": ["a", "b"],
    "colors": [[0, 0, 0], [9, 9, 9]],
    "label_ids": [0, [255, 300]],
    "ignore_ids": "rest",
    "categories": [],
    "image_range": [0, 4095],
}
COLORS = {
    "names": ["a", "b"],
    "colors": [[0, 0, 0], [9, 9, 9]],
    "label_ids": [0, 1],
    "ignore_ids": [],
    "categories": [],
    "label_type": "colors",
    "ignore_colors": [[1, 2, 3]],
}


@pytest.mark.parametrize("data", [LATER, COLORS, COLORS | {"ignore_colors": "rest"}])
def test_later_keys_round_trip(data):
    classes = Classes.from_json(data)
    assert classes.to_json() == data
    assert Classes.from_json(classes.to_json()) == classes
    assert not classes.stores_raw_ids


def test_several_ids_of_a_class():
    classes = Classes.from_json(GOOD | {"label_ids": [[7, 8], [23]]})
    assert classes.label_ids == ((7, 8), 23)
    assert classes.first_ids == (7, 23)
    table = classes.lookup()
    assert table[[7, 8, 23, 9, 255, 24]].tolist() == [0, 0, 1, 255, 255, 254]


def test_255_can_be_a_class():
    classes = Classes.from_json({**GOOD, "label_ids": [0, 255], "ignore_ids": []})
    assert classes.lookup()[[0, 255, 1]].tolist() == [0, 1, 254]
    rest = Classes.from_json({**GOOD, "label_ids": [0, 255], "ignore_ids": "rest"})
    assert rest.lookup()[[0, 255, 1]].tolist() == [0, 1, 255]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ["road", "road"]}, r"class name used more than once: \['road'\]"),
        ({"names": []}, "1..254 classes, got 0"),
        ({"label_ids": [7]}, "2 names but 1 label_ids"),
        ({"label_ids": [7, 7]}, r"label id used more than once: \[7\]"),
        ({"ignore_ids": [7]}, r"label id used more than once: \[7\]"),
        ({"label_ids": [7, 65536]}, "label id 65536: need an integer in 0..65535"),
        ({"label_ids": [7, -1]}, "label id -1"),
        ({"label_ids": [7, "sky"]}, "label id 'sky'"),
        ({"ignore_ids": [-1]}, "ignore id -1: need an integer in 0..65535"),
        ({"colors": [[1, 2, 3], [4, 5, 256]]}, "of 'sky'"),
        ({"colors": [[1, 2, 3], [4, 5]]}, "of 'sky'"),
        ({"colors": [[1, 2, 3], "red"]}, "'red'"),
        ({"categories": ["flat"]}, "2 names but 1 categories"),
        ({"names": "road"}, "'names' must be a list"),
        ({"colours": []}, r"unknown keys \['colours'\]"),
        ({"label_ids": [7, []]}, "class 'sky' has no label id"),
        ({"label_ids": [7, [8, 7]]}, r"label id used more than once: \[7\]"),
        ({"label_ids": [7, 255], "ignore_ids": [255]}, r"more than once: \[255\]"),
        ({"label_type": "palette"}, "unknown label_type 'palette'; known: .*colors"),
        ({"label_type": "colors"}, "has ignore_colors, not ignore_ids"),
        ({"ignore_colors": [[0, 0, 0]]}, "ignore_colors are for labels with"),
        (
            {"label_type": "colors", "ignore_ids": [], "ignore_colors": [[4, 5, 6]]},
            r"color of label files used more than once: \[\(4, 5, 6\)\]",
        ),
        ({"ignore_ids": "all"}, "'ignore_ids' must be a list"),
        ({"ignore_colors": "rest"}, "'ignore_colors' must be a list"),
        ({"image_range": 4095}, r"need \[low, high\]"),
        ({"image_range": [9, 9]}, "need 0 <= low < high"),
    ],
)
def test_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        Classes.from_json(GOOD | change)


def test_refuses_missing_keys():
    with pytest.raises(ValueError, match=r"lack the keys \['colors', 'label_ids'\]"):
        Classes.from_json({"names": ["road"]})
    with pytest.raises(ValueError, match="must be a dict"):
        Classes.from_json([1])


def test_source_refuses_what_does_not_fit():
    classes = Classes.from_json(GOOD)
    with pytest.raises(ValueError, match="split 'val' of 'x' holds no images"):
        Source("x", "val", classes, (), Files(()))
    with pytest.raises(ValueError, match="1 ids but 2 records"):
        Source("x", "val", classes, ("a",), Files(("a.png", "b.png")))


def test_take():
    records = Files(("ia", "ib", "ic"), ("la", "lb", "lc"))
    source = Source("x", "val", Classes.from_json(GOOD), ("a", "b", "c"), records)
    part = source.take([2, 0])
    assert (part.ids, part.image_paths, part.label_paths) == (
        ("c", "a"), ("ic", "ia"), ("lc", "la"),
    )  # fmt: skip
    assert len(part) == 2
    unlabelled = dataclasses.replace(source, records=Files(source.image_paths))
    assert source.has_labels
    assert not unlabelled.has_labels
    assert unlabelled.take([1]).label_paths == ()


def test_open_source_names_the_choices(tmp_path):
    with pytest.raises(ValueError, match=r"unknown dataset 'nuscenes'; known: .*camvid"):
        open_source("nuscenes", root=tmp_path, split="train")
    with pytest.raises(ValueError, match="needs its folder"):
        open_source("camvid", root="", split="train")
    with pytest.raises(FileNotFoundError, match=r"no class file c.json"):
        open_source("camvid", root=tmp_path, split="train", class_file="c.json")


def test_needs_no_tensorflow():
    code = (
        "import sys, hrnet_jax.data; sys.exit('tensorflow' in sys.modules or 'jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
