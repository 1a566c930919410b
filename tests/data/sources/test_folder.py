import json

import pytest

from hrnet_jax.data import open_source


def test_reads(folder):
    source = open_source("folder", root=folder, split="train")
    assert source.ids == ("a/one", "b/two")
    assert source.image_paths[1] == str(folder / "images/train/b/two.jpg")
    assert source.label_paths[1] == str(folder / "labels/train/b/two.png")
    assert source.classes.names == ("soil", "leaf")
    assert source.classes.label_ids == (0, 1)
    assert len(set(source.classes.colors)) == 2
    assert not open_source("folder", root=folder, split="field").has_labels


def test_other_class_file(folder, tmp_path):
    path = tmp_path / "other.json"
    classes = {
        "names": ["a", "b"],
        "label_ids": [4, 2],
        "ignore_ids": [0],
        "colors": [[0, 0, 0]] * 2,
    }
    path.write_text(json.dumps(classes))
    source = open_source("folder", root=folder, split="train", class_file=str(path))
    assert source.classes.label_ids == (4, 2)
    assert source.classes.ignore_ids == (0,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "classes.json: Expecting"),
        ("[]", 'classes.json: need {"names"'),
        ('{"names": []}', "classes.json: need 1..254 classes"),
        ('{"names": [1]}', "classes.json: need"),
        ('{"names": ["a"], "ids": [1]}', r"unknown keys \['ids'\]"),
        ('{"names": ["a"], "label_ids": [300]}', "label id 300"),
    ],
)
def test_bad_class_files(folder, text, message):
    (folder / "classes.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_source("folder", root=folder, split="train")


def test_errors(folder):
    with pytest.raises(FileNotFoundError, match="images holds field, train"):
        open_source("folder", root=folder, split="test")
    (folder / "labels/train/b/two.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images .*labels/train/b/two.png"):
        open_source("folder", root=folder, split="train")
    (folder / "images/train/a/one.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"nothing but their suffix: \['a/one'\]"):
        open_source("folder", root=folder, split="train")
    (folder / "classes.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no class file .*classes.json"):
        open_source("folder", root=folder, split="train")
