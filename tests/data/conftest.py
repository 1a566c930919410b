"""Small sets written once per session, and a writer of single pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hrnet_jax.data import Source
from hrnet_jax.data.sources.files import Files
from hrnet_jax.data.sources.source import Classes
from hrnet_jax.data.synthetic import write as synthetic

CLASSES = Classes(
    names=("ground", "tree", "sky"),
    colors=((90, 60, 30), (0, 160, 60), (90, 160, 250)),
    label_ids=(3, 5, 7),
    ignore_ids=(0,),
)


@pytest.fixture(scope="session")
def streets(tmp_path_factory) -> Path:
    """A synthetic set in the Cityscapes layout: 7 train and 3 val images of 64x128."""
    root = tmp_path_factory.mktemp("streets")
    counts = {"train": 7, "val": 3, "test": 1}
    synthetic.write_cityscapes(root, counts, size=(64, 128), progress=False)
    return root


@pytest.fixture
def make_source(tmp_path):
    """Writes images and labels and returns the source; sizes may differ."""

    def make(sizes, *, label=None, classes=CLASSES, seed=0) -> Source:
        rng = np.random.default_rng(seed)
        images, labels = [], []
        for k, (height, width) in enumerate(sizes):
            images.append(str(tmp_path / f"image{k:03d}.png"))
            labels.append(str(tmp_path / f"label{k:03d}.png"))
            pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
            # The first pixel tells which image this is.
            pixels[0, 0] = k
            Image.fromarray(pixels).save(images[-1])
            ids = rng.choice(np.array(classes.label_ids, np.uint8), (height, width))
            Image.fromarray(ids if label is None else label).save(labels[-1])
        ids = tuple(Path(p).stem for p in images)
        return Source("test", "train", classes, ids, Files(tuple(images), tuple(labels)))

    return make


@pytest.fixture
def folder(tmp_path) -> Path:
    """The layout of `folder` with a PNG and a JPEG, nested, and their labels."""
    rng = np.random.default_rng(0)
    for split, names in (("train", ("a/one.png", "b/two.jpg")), ("field", ("three.png",))):
        for name in names:
            path = tmp_path / "images" / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).save(path)
            if split == "train":
                path = (tmp_path / "labels" / split / name).with_suffix(".png")
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 2, (6, 8), np.uint8)).save(path)
    (tmp_path / "classes.json").write_text(json.dumps({"names": ["soil", "leaf"]}))
    return tmp_path


@pytest.fixture(scope="session")
def camvid(tmp_path_factory) -> Path:
    """CamVid's layout: 10 train and 3 val frames of 48x64 with blocks of all ids."""
    root = tmp_path_factory.mktemp("camvid")
    rng = np.random.default_rng(7)
    for split, count in (("train", 10), ("val", 3)):
        for folder in (split, f"{split}annot"):
            (root / folder).mkdir()
        for k in range(count):
            ids = rng.integers(0, 12, (6, 8), np.uint8).repeat(8, 0).repeat(8, 1)
            pixels = ids[..., None] * np.array([20, 11, 5]) + rng.integers(0, 30, (48, 64, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(root / split / f"frame{k:02d}.png")
            Image.fromarray(ids).save(root / f"{split}annot" / f"frame{k:02d}.png")
    return root
