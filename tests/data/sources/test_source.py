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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ["road", "road"]}, r"class name used more than once: \['road'\]"),
        ({"names": []}, "1..254 classes, got 0"),
        ({"label_ids": [7]}, "2 names but 1 label_ids"),
        ({"label_ids": [7, 7]}, r"label id used more than once: \[7\]"),
        ({"ignore_ids": [7]}, r"label id used more than once: \[7\]"),
        ({"label_ids": [7, 255]}, "label id 255: need an integer in 0..254"),
        ({"label_ids": [7, -1]}, "label id -1"),
        ({"label_ids": [7, "sky"]}, "label id 'sky'"),
        ({"ignore_ids": [256]}, "ignore id 256: need an integer in 0..255"),
        ({"colors": [[1, 2, 3], [4, 5, 256]]}, "of 'sky'"),
        ({"colors": [[1, 2, 3], [4, 5]]}, "of 'sky'"),
        ({"colors": [[1, 2, 3], "red"]}, "'red'"),
        ({"categories": ["flat"]}, "2 names but 1 categories"),
        ({"names": "road"}, "'names' must be a list"),
        ({"colours": []}, r"unknown keys \['colours'\]"),
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
    with pytest.raises(ValueError, match=r"unknown dataset 'kitti'; known: .*camvid"):
        open_source("kitti", root=tmp_path, split="train")
    with pytest.raises(ValueError, match="needs its folder"):
        open_source("camvid", root="", split="train")
    with pytest.raises(ValueError, match="is for the dataset 'folder'"):
        open_source("camvid", root=tmp_path, split="train", class_file="c.json")


def test_needs_no_tensorflow():
    code = (
        "import sys, hrnet_jax.data; sys.exit('tensorflow' in sys.modules or 'jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
