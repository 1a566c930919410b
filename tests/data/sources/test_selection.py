"""Parts of a split by the names of its samples."""

import numpy as np
import pytest

from hrnet_jax.data import open_source
from hrnet_jax.data.sources import selection
from hrnet_jax.data.tiles import prepare


def test_parts_of_camvid_by_hand(camvid):
    one = open_source("camvid", root=camvid, split="train[frame03]")
    rest = open_source("camvid", root=camvid, split="train[-frame03,frame07]")
    assert (one.ids, one.split) == (("frame03",), "train[frame03]")
    assert rest.ids == tuple(f"frame{k:02}" for k in (0, 1, 2, 4, 5, 6, 8, 9))
    whole = open_source("camvid", root=camvid, split="train")
    np.testing.assert_array_equal(one.read(0)[1], whole.read(3)[1])


def test_parts_of_joined_splits_and_of_tiles(streets, tmp_path):
    for split in ("train", "val"):
        source = open_source("cityscapes", root=streets, split=split)
        prepare.prepare(source, tmp_path, progress=False)
    for root in (streets, tmp_path):
        both = open_source("cityscapes", root=root, split="train+val")
        # The names of both splits are the same, so that of the split comes first.
        assert selection.groups(both.ids) == {"train": 7, "val": 3}
        kept = open_source("cityscapes", root=root, split="train+val[-train/synthetic]")
        assert kept.ids == both.ids[7:]
        np.testing.assert_array_equal(kept.read(2)[1], both.read(9)[1])
    part = open_source("cityscapes", root=streets, split="train[synthetic]")
    assert len(part) == 7
    with pytest.raises(ValueError, match="one by one and whole"):
        prepare.prepare(part, tmp_path / "part")


@pytest.mark.parametrize(
    ("sample_id", "name", "expected"),
    [
        ("0006R0_f02040", "0006R0", True),
        ("0006R0_f02040", "0006", False),
        ("jena/jena_000", "jena", True),
        ("jena2/jena_000", "jena", False),
        ("frame03", "frame03", True),
        ("a/b/c", "a/b", True),
        ("b/a", "a", False),
    ],
)
def test_a_name_ends_where_letters_and_digits_do(sample_id, name, expected):
    assert selection.begins(sample_id, name) == expected


def test_groups_are_folders_or_first_parts_of_names():
    names = ("0006R0_f1", "0001TP_2", "0006R0_f3", "north-west/a_1", "north-west/b_1")
    assert selection.groups(names) == {"0001TP": 1, "0006R0": 2, "north-west": 2}
    assert selection.describe([f"{k:02}_x" for k in range(30)]).endswith("19 (1), ... (30 in all)")


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("train[]", "brackets come last"),
        ("train[a,]", "brackets come last"),
        ("train[a]+val", "brackets come last"),
        ("[a]", "brackets come last"),
        ("train[fram]", r"no sample's name begins with 'fram'; names in 'train' of 'camvid' begin"),
        ("train[frame00,frame77]", r"begins with 'frame77'; .*: frame00 \(1\), frame01 \(1\)"),
        (f"train[-{','.join(f'frame{k:02}' for k in range(10))}]", "leaves out every sample"),
        ("tarin[frame00]", "unknown split 'tarin'"),
    ],
)
def test_refuses(camvid, split, message):
    with pytest.raises(ValueError, match=message):
        open_source("camvid", root=camvid, split=split)


def test_held_out():
    parts = selection.held_out("train+val", "0006R0")
    assert parts == ("train+val[-0006R0]", "train+val[0006R0]")
    for split, name in (("train[a]", "b"), ("train", "-a"), ("train", "a,b"), ("train", "")):
        with pytest.raises(ValueError, match=r"part already|cannot hold out"):
            selection.held_out(split, name)


@pytest.mark.parametrize(
    ("split", "other", "shared"),
    [
        ("train", "val", []),
        ("train+val", "val", ["val"]),
        ("train", "train[a]", ["train"]),
        ("train[-a]", "train[a]", []),
        ("train[-a]", "train[a,b]", ["train"]),
        ("train[-a,b]", "train[b]", []),
        ("train[-a]", "train[a/x]", []),
        ("train[-a/x]", "train[a]", ["train"]),
        ("train[-a]", "train[-b]", ["train"]),
        ("train[a]", "train[b]", []),
        ("train[a]", "train[a/x]", ["train"]),
        ("train+val[-a]", "val[b]", ["val"]),
    ],
)
def test_shared_splits(split, other, shared):
    assert selection.shared_splits(split, other) == shared
    assert selection.shared_splits(other, split) == shared
