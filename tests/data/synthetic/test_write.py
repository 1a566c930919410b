import hashlib
import subprocess
import sys

import pytest
from PIL import Image

from hrnet_jax.data import open_source
from hrnet_jax.data.synthetic import write as synthetic


def digests(root):
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {p.relative_to(root): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_same_seed_same_bytes(streets, tmp_path):
    synthetic.write_cityscapes(tmp_path, {"val": 3, "train": 2}, size=(64, 128), progress=False)
    written, before = digests(tmp_path), digests(streets)
    assert len(written) == 10
    assert all(before[path] == digest for path, digest in written.items())


def test_errors(tmp_path):
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
