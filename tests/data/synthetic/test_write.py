import hashlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from hrnet_jax.data import open_source
from hrnet_jax.data.sources.cityscapes import CLASSES
from hrnet_jax.data.synthetic import write as synthetic


def digests(root):
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {p.relative_to(root): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_same_seed_same_bytes(streets, tmp_path):
    synthetic.write_cityscapes(tmp_path, {"val": 3, "train": 2}, size=(64, 128), progress=False)
    written, before = digests(tmp_path), digests(streets)
    assert len(written) == 10
    assert all(before[path] == digest for path, digest in written.items())


def test_scenes_differ():
    scenes = [
        synthetic.draw_scene(seed, split, number, 32, 64)[0].tobytes()
        for seed, split, number in (
            (0, "train", 0),
            (0, "train", 1),
            (0, "val", 0),
            (1, "train", 0),
        )
    ]
    assert len(set(scenes)) == 4


def test_labels_are_classes_and_lie_where_they_belong():
    known = {*CLASSES.label_ids, 1}
    shares = np.zeros(256)
    top, bottom = np.zeros(256), np.zeros(256)
    for number in range(12):
        image, label = synthetic.draw_scene(0, "train", number, 96, 192)
        assert image.shape == (96, 192, 3)
        assert image.dtype == label.dtype == np.uint8
        assert set(np.unique(label)) <= known
        shares += np.bincount(label.ravel(), minlength=256) / label.size / 12
        top += np.bincount(label[:32].ravel(), minlength=256)
        bottom += np.bincount(label[-32:].ravel(), minlength=256)
    share = dict(zip(CLASSES.names, shares[list(CLASSES.label_ids)], strict=True))
    assert 0.15 < share["road"] < 0.5
    assert 0.1 < share["building"] < 0.5
    assert min(share[n] for n in ("sidewalk", "vegetation", "sky", "car")) > 0.02
    assert min(share[n] for n in ("pole", "traffic sign", "person", "bicycle", "terrain")) > 1e-3
    assert (top[7], bottom[23]) == (0, 0)  # no road at the top, no sky at the bottom


def test_picture_shows_what_the_label_says():
    """Sky is brighter than road in daylight, and the classes differ in colour at all."""
    image, label = synthetic.draw_scene(0, "train", 0, 128, 256)
    assert image[label == 23].mean() > image[label == 7].mean() + 20
    assert image.std() > 25


def test_errors(tmp_path):
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        synthetic.draw_scene(0, "dev", 0, 64, 64)
    with pytest.raises(ValueError, match="at least 32"):
        synthetic.draw_scene(0, "train", 0, 64, 31)
    with pytest.raises(ValueError, match="-1 images for split 'train'"):
        synthetic.write_cityscapes(tmp_path, {"train": -1})


def test_command(tmp_path):
    command = [sys.executable, "-m", "hrnet_jax.data.synthetic", f"--output={tmp_path}"]
    options = ["--train=2", "--val=1", "--height=48", "--width=80", "--seed=5"]
    done = subprocess.run(command + options, check=True, capture_output=True, text=True)
    assert "3 street scenes" in done.stdout
    source = open_source("cityscapes", root=tmp_path, split="train")
    assert source.ids[1] == "synthetic/synthetic_000005_000001"
    assert Image.open(source.image_paths[0]).size == (80, 48)
