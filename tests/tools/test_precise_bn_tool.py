import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from hrnet_jax.checkpoints.load import load_checkpoint

ROOT = Path(__file__).parents[2]
NAME = "camvid_w18_small_v1"


def run(*options):
    command = [sys.executable, "-m", "hrnet_jax.tools.precise_bn", f"--checkpoint={NAME}", *options]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1"}
    return subprocess.run(
        command, cwd=ROOT, check=False, capture_output=True, text=True, env=environment
    )


def test_writes_weights_with_other_statistics(tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "trainannot"):
        (tmp_path / split).mkdir()
        for k in range(3):
            shape = (64, 96, 3) if split == "train" else (64, 96)
            pixels = rng.integers(0, 256 if split == "train" else 11, shape, np.uint8)
            Image.fromarray(pixels).save(tmp_path / split / f"{k}.png")
    file = tmp_path / "new.safetensors"
    options = "--batch_size=2", "--dtype=float16", "--image_statistics=0.125", f"--output={file}"
    done = run(f"--data_root={tmp_path}", *options)
    assert done.returncode == 0, done.stderr
    assert "with statistics of 2 of 3 images of camvid train" in done.stdout
    new, old = load_checkpoint(file), load_checkpoint(NAME)
    jax.tree.map(np.testing.assert_array_equal, new.variables["params"], old.variables["params"])
    assert new.step == old.step
    assert new.metadata["model"] == old.metadata["model"] | {"image_statistics": 0.125}
    assert new.metric is None  # that of other statistics
    differences = jax.tree.map(
        lambda a, b: np.abs(a - b).max() / np.abs(b).max(),
        *(x.variables["batch_stats"] for x in (new, old)),
    )
    assert min(jax.tree.leaves(differences)) > 0.01  # noise is no street


def test_says_what_is_missing_before_any_work(tmp_path):
    done = run(f"--output={tmp_path}/new.npz")
    assert done.returncode == 2
    assert "new.npz: weights are written to a .safetensors file" in done.stderr
    done = run(f"--output={tmp_path}/new.safetensors", f"--data_root={tmp_path}/none")
    assert done.returncode == 2
    assert "none'; set it with --data_root=DIR" in done.stderr
