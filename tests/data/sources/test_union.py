import numpy as np
import pytest

from hrnet_jax.data import open_source
from hrnet_jax.data.pipeline import class_counts
from hrnet_jax.data.tiles import prepare


def test_joins_splits(camvid):
    train, val, both = (
        open_source("camvid", root=camvid, split=split) for split in ("train", "val", "train+val")
    )
    assert both.split == "train+val"
    assert len(both) == len(train) + len(val) == 13
    # frame00, frame01 and frame02 are in both.
    assert both.ids == (*(f"train/{i}" for i in train.ids), *(f"val/{i}" for i in val.ids))
    assert both.image_paths == train.image_paths + val.image_paths
    assert both.label_paths == train.label_paths + val.label_paths
    assert both.image_name(10) == val.image_name(0)
    assert both.label_name(12) == val.label_name(2)
    for found, expected in zip(both.read(11), val.read(1), strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(both.records.label(9), train.records.label(9))
    part = both.take([12, 0])
    assert part.ids == ("val/frame02", "train/frame00")
    np.testing.assert_array_equal(part.read(0)[1], val.read(2)[1])


def test_ids_stay_where_they_differ(folder):
    for kind in ("images", "labels"):
        (folder / kind / "val").mkdir()
        (folder / kind / "train" / "b").rename(folder / kind / "val" / "b")
    both = open_source("folder", root=folder, split="val+train")
    assert both.ids == ("b/two", "a/one")
    assert both.records.size(0) == (6, 8)


def test_counts(camvid, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    counts = [
        class_counts.class_counts(open_source("camvid", root=camvid, split=s), progress=False)
        for s in ("train", "val", "train+val")
    ]
    np.testing.assert_array_equal(counts[2], np.concatenate(counts[:2]))


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("train+train", "need different names"),
        ("train+", "need different names"),
        ("train+val+test", "some of these have labels, others do not"),
        ("train+nothing", "unknown split 'nothing'"),
    ],
)
def test_refuses(streets, split, message):
    with pytest.raises(ValueError, match=message):
        open_source("cityscapes", root=streets, split=split)


def test_tiles(streets, tmp_path):
    for split in ("train", "val"):
        source = open_source("cityscapes", root=streets, split=split)
        prepare.prepare(source, tmp_path, progress=False)
    both = open_source("cityscapes", root=tmp_path, split="train+val")
    files = open_source("cityscapes", root=streets, split="train+val")
    assert both.ids == files.ids
    np.testing.assert_array_equal(both.read(8)[1], files.read(8)[1])
    assert both.records.id_counts.shape == (10, 256)
    with pytest.raises(ValueError, match="prepare its splits one by one"):
        prepare.prepare(files, tmp_path / "more", progress=False)
