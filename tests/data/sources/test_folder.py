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
        ('{"names": ["a"], "label_ids": [70000]}', "label id 70000"),
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
    with pytest.raises(
        ValueError, match=r"names that differ only in the suffix: \['a/one.jpg', 'a/one.png'\]"
    ):
        open_source("folder", root=folder, split="train")
    (folder / "classes.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no class file .*classes.json"):
        open_source("folder", root=folder, split="train")


def test_files_that_are_not_samples(folder, caplog):
    """Hidden files are ignored, others that are not used are named in the log."""
    expected = open_source("folder", root=folder, split="train")
    assert not caplog.records
    images, labels = folder / "images" / "train", folder / "labels" / "train"
    (images / "a" / ".ipynb_checkpoints").mkdir()
    for path in (images / "._x.png", images / ".DS_Store", images / "a/.ipynb_checkpoints/y.png"):
        path.write_bytes(b"")
    for path in (images / "a" / "z.gif", labels / "b" / "three.png", labels / "._x.png"):
        path.write_bytes(b"")
    assert open_source("folder", root=folder, split="train") == expected
    unused_image, unused_label = (record.getMessage() for record in caplog.records)
    assert unused_image.startswith(f"1 files in {images} are no images with a known suffix")
    assert "['a/z.gif']" in unused_image
    assert unused_label.startswith(f"1 files in {labels} are labels without an image")
    assert "['b/three.png']" in unused_label


def test_linked_folders_are_followed_and_loops_refused(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for kind in ("images", "labels"):
        (folder / kind / "train" / "a").rename(elsewhere / kind)
        (folder / kind / "train" / "a").symlink_to(elsewhere / kind)
        # The same folder under two names is no loop.
        (folder / kind / "train" / "c").symlink_to(elsewhere / kind)
    source = open_source("folder", root=folder, split="train")
    assert source.ids == ("a/one", "b/two", "c/one")
    (elsewhere / "images" / "again").symlink_to(folder / "images" / "train")
    with pytest.raises(ValueError, match=r"train/[ac]/again is a link to .*/images/train, which"):
        open_source("folder", root=folder, split="train")
