import numpy as np
import pytest
from PIL import Image

from hrnet_jax.data import open_source
from hrnet_jax.data.sources.camvid import CLASSES


@pytest.fixture
def camvid(tmp_path):
    for split, names in (("train", ("a", "b")), ("val", ("c",))):
        for folder, pixels in ((split, np.zeros((4, 6, 3))), (f"{split}annot", np.zeros((4, 6)))):
            (tmp_path / folder).mkdir()
            for name in names:
                Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / folder / f"{name}.png")
    return tmp_path


def test_classes():
    assert CLASSES.names[:4] == ("sky", "building", "pole", "road")
    assert CLASSES.names[-1] == "bicyclist"
    assert list(CLASSES.lookup()[:13]) == [*range(11), 255, 254]


def test_splits(camvid):
    source = open_source("camvid", root=camvid, split="train")
    assert source.ids == ("a", "b")
    assert source.label_paths[1] == str(camvid / "trainannot" / "b.png")
    assert open_source("camvid", root=camvid, split="trainval").ids == (
        "train/a",
        "train/b",
        "val/c",
    )


def test_errors(camvid):
    with pytest.raises(FileNotFoundError, match=r"test/\*.png; .* holds train, trainannot"):
        open_source("camvid", root=camvid, split="test")
    with pytest.raises(ValueError, match="unknown split 'all'"):
        open_source("camvid", root=camvid, split="all")
    (camvid / "trainannot" / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images .*trainannot/b.png"):
        open_source("camvid", root=camvid, split="train")


def test_files_that_are_not_used_are_named(camvid, caplog):
    root = camvid
    open_source("camvid", root=root, split="trainval")
    assert not caplog.records
    (root / "train" / "a.png").rename(root / "train" / "a.bmp")
    (root / "train" / "._b.png").write_bytes(b"")
    open_source("camvid", root=root, split="trainval")
    assert [r.getMessage() for r in caplog.records] == [
        f"1 files in {root}/train do not have the names of images and are not used, e.g. ['a.bmp']",
        f"1 files in {root}/trainannot are labels without an image and are not used, e.g. "
        "['a.png']",
    ]
