import shutil
from pathlib import Path

import numpy as np
import pytest

from hrnet_jax.data import open_source
from hrnet_jax.data.sources.cityscapes import CLASSES


def test_classes_agree_with_the_official_scripts():
    labels = pytest.importorskip("cityscapesscripts.helpers.labels").labels
    table = CLASSES.lookup()
    for label in labels:
        # id -1 (license plate) is 255 as a byte; train id -1 means ignored as 255 does.
        assert table[label.id % 256] == label.trainId % 256, label.name
    assert (table == 254).sum() == 256 - len(labels)
    for label in labels:
        if 0 <= label.trainId < 255:
            assert CLASSES.names[label.trainId] == label.name
            assert CLASSES.colors[label.trainId] == label.color
            assert CLASSES.categories[label.trainId] == label.category


def test_classes_by_hand():
    assert CLASSES.num_classes == 19
    assert (CLASSES.names[0], CLASSES.label_ids[0]) == ("road", 7)
    assert (CLASSES.names[18], CLASSES.label_ids[18]) == ("bicycle", 33)
    assert list(np.flatnonzero(CLASSES.lookup() < 19)) == list(CLASSES.label_ids)


def test_splits(streets):
    train = open_source("cityscapes", root=streets, split="train")
    assert len(train) == 7
    assert train.ids[0] == "synthetic/synthetic_000000_000000"
    assert train.image_paths[0].endswith(
        "leftImg8bit/train/synthetic/synthetic_000000_000000_leftImg8bit.png"
    )
    assert train.label_paths[0].endswith(
        "gtFine/train/synthetic/synthetic_000000_000000_gtFine_labelIds.png"
    )
    both = open_source("cityscapes", root=streets, split="trainval")
    val = open_source("cityscapes", root=streets, split="val")
    assert both.image_paths == train.image_paths + val.image_paths
    assert not open_source("cityscapes", root=streets, split="test").has_labels


def test_errors(streets, tmp_path):
    with pytest.raises(ValueError, match=r"unknown split 'dev'.*trainval"):
        open_source("cityscapes", root=streets, split="dev")
    with pytest.raises(FileNotFoundError, match=r"not a folder.*Expected layout: ROOT/leftImg8bit"):
        open_source("cityscapes", root=tmp_path / "nowhere", split="train")
    # One level too deep: the message shows what is there.
    with pytest.raises(FileNotFoundError, match="holds test, train, val"):
        open_source("cityscapes", root=streets / "leftImg8bit", split="train")
    copy = shutil.copytree(streets, tmp_path / "copy")
    next((copy / "gtFine" / "val" / "synthetic").glob("*1_gtFine_labelIds.png")).unlink()
    missing = "1 of 3 images .* have no label.*000001_gtFine_labelIds.png"
    with pytest.raises(FileNotFoundError, match=missing):
        open_source("cityscapes", root=copy, split="val")
    shutil.rmtree(copy / "leftImg8bit" / "val" / "synthetic")
    with pytest.raises(FileNotFoundError, match="val holds nothing"):
        open_source("cityscapes", root=copy, split="val")


def test_coarse_labels_are_a_set_of_their_own(streets, tmp_path):
    shutil.copytree(streets / "leftImg8bit" / "train", tmp_path / "leftImg8bit" / "train_extra")
    shutil.copytree(streets / "gtFine" / "train", tmp_path / "gtCoarse" / "train_extra")
    for path in (tmp_path / "gtCoarse").rglob("*.png"):
        path.rename(path.with_name(path.name.replace("gtFine", "gtCoarse")))
    coarse = open_source("cityscapes_coarse", root=tmp_path, split="train_extra")
    fine = open_source("cityscapes", root=streets, split="train")
    assert (coarse.ids, coarse.classes) == (fine.ids, fine.classes)
    assert coarse.label_paths[0].endswith("_gtCoarse_labelIds.png")
    with pytest.raises(ValueError, match=r"unknown split 'test' of cityscapes_coarse; known: "):
        open_source("cityscapes_coarse", root=tmp_path, split="test")


def test_files_that_are_not_used_are_named(tmp_path, streets, caplog):
    root = tmp_path / "streets"
    shutil.copytree(streets, root)
    source = open_source("cityscapes", root=root, split="val")
    assert not caplog.records
    image = Path(source.image_paths[0])
    image.rename(image.with_suffix(".jpg"))
    open_source("cityscapes", root=root, split="val")
    assert [r.getMessage().split(" e.g. ")[1] for r in caplog.records] == [
        f"['{source.ids[0]}_leftImg8bit.jpg']",
        f"['{source.ids[0]}_gtFine_labelIds.png']",
    ]
