"""Names of classes in text files, and public datasets by their layout and values."""

import shutil

import numpy as np
import pytest
from PIL import Image

from hrnet_jax.data.inspection.known import is_name_file, read_names, recognize
from hrnet_jax.data.inspection.look import look
from hrnet_jax.data.sources import public
from hrnet_jax.runtime import storage


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("road\ntree line\n", {0: "road", 1: "tree line"}),
        ("_background_\nroad\n", {0: "background", 1: "road"}),
        ("0: road\n7: tree\n", {0: "road", 7: "tree"}),
        ("id,name\n0,road\n7,tree\n", {0: "road", 7: "tree"}),
        ("road 0\ntree 7\n", {0: "road", 7: "tree"}),
        ("name,r,g,b\nroad,1,2,3\n", {(1, 2, 3): "road"}),
        ("# label:color_rgb:parts:actions\nroad:1,2,3::\n", {(1, 2, 3): "road"}),
        ("1 2 3\troad\n", {(1, 2, 3): "road"}),
        ('["road", "tree"]', {0: "road", 1: "tree"}),
        ('{"classes": {"0": "road"}}', {0: "road"}),
        ('{"road": 4}', {4: "road"}),
        ('[{"id": 4, "name": "road", "color": [1, 2, 3]}]', {4: "road", (1, 2, 3): "road"}),
        ("{", {}),
    ],
)
def test_names(text, names):
    assert read_names(text) == names


def test_files_of_names():
    assert is_name_file("x/class_dict.csv")
    assert is_name_file("labels.txt")
    assert not is_name_file("train.txt")
    assert not is_name_file("labels.png")


def write(root, name, values):
    files = public.read(name).layout
    for split in ("train", "val"):
        word = dict(files.splits).get(split, split)
        image = root / files.images[0].replace("{split}", word) / "a.jpg"
        label = root / files.labels[0].replace("{split}", word) / "a.png"
        for path, pixels in ((image, np.zeros((1, len(values), 3))), (label, np.array([values]))):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)


def test_public_datasets(tmp_path):
    write(tmp_path, "ade20k", range(90))
    (found,) = recognize(storage.path(tmp_path))
    assert (found.name, found.splits, found.present) == ("ade20k", {"train": 1, "val": 1}, 89)
    assert found.fits
    whole = look(storage.path(tmp_path), 0)
    assert (whole.dataset, whole.class_file, whole.counted) == ("ade20k", {}, 2)
    assert whole.values.sizes == {(1, 90): 2}
    assert (whole.names[1], whole.names[150]) == ("wall", "flag")


def test_labels_for_evaluation_only(tmp_path):
    write(tmp_path, "ade20k", range(90))
    shutil.rmtree(tmp_path / "annotations" / "training")
    found = look(storage.path(tmp_path), 0)
    assert (found.dataset, found.splits) == ("ade20k", {"val": 1})
    assert any("train split has no labels" in note for note in found.notes)


@pytest.mark.parametrize(
    ("values", "problem"),
    [(range(3), ""), (range(100, 200), r"holds the ids \[151, 152, ")],
)
def test_a_dataset_of_the_same_layout_is_no_public_one(tmp_path, values, problem):
    write(tmp_path, "ade20k", values)
    (found,) = recognize(storage.path(tmp_path))
    assert not found.fits
    assert bool(found.problem) == bool(problem)
