"""From a strange folder to a class file that opens it; the tool end to end."""

import json
import shlex
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from hrnet_jax.data import open_source
from hrnet_jax.data.inspection.look import look
from hrnet_jax.runtime import storage


@pytest.fixture
def masks(tmp_path):
    """Photographs and masks of 0 and 255 in one folder, without splits."""
    root = tmp_path / "my masks"
    root.mkdir()
    rng = np.random.default_rng(0)
    for k in range(12):
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(root / f"{k}.jpg")
        mask = np.zeros((40, 60), np.uint8)
        mask[:, :k] = 255
        Image.fromarray(mask).save(root / f"{k}_mask.png")
    (root / "._0.jpg").write_bytes(b"")
    return root


def test_look_describes_what_training_opens(masks, tmp_path):
    found = look(storage.path(masks), 0)
    path = tmp_path / "classes.json"
    path.write_text(json.dumps(found.class_file))
    train, val = (
        open_source("folder", root=masks, split=split, class_file=str(path))
        for split in ("train", "val")
    )
    assert len(train) + len(val) == 12
    assert len(val) >= 1
    number = int(train.ids[0])
    assert (train.read(0)[1] == 1).sum() == 40 * number


def test_tool(masks, tmp_path):
    out = tmp_path / "out"
    tool = [sys.executable, "-m", "hrnet_jax.tools.inspect_data", str(masks), f"--output={out}"]
    result = subprocess.run(tool, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "12 in all; 12 of them were read" in result.stdout
    assert "255 is a class, not ignored" in result.stdout
    assert Image.open(out / "samples.png").width > 200
    command = result.stdout.split("\n\nhrnet train ")[1]
    words = shlex.split(command.replace("\\\n", " "))
    assert f"--config.data.root={masks}" in words
    assert f"--config.data.class_file={out / 'classes.json'}" in words
    assert "--config.data.crop_size=(32,32)" in words


def test_what_was_not_found_is_said(tmp_path):
    (tmp_path / "x.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no images .*; found: 1 \.npy"):
        look(storage.path(tmp_path), 0)
    with pytest.raises(FileNotFoundError, match="no folder"):
        look(storage.path(tmp_path / "none"), 0)
