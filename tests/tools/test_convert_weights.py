"""The tool from outside: PyTorch file -> checkpoint -> PyTorch file, and its errors."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from hrnet_jax import to_torch
from hrnet_jax.checkpoints.load import load_checkpoint
from hrnet_jax.models import create_model
from hrnet_jax.pytorch.files import open_tensors, write_tensors

ROOT = Path(__file__).parents[2]


def run(*options):
    command = [sys.executable, "-m", "hrnet_jax.tools.convert_weights", *map(str, options)]
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)


def state_dict(head, num_classes):
    model = create_model("w18_small_v1", num_classes, head)
    return to_torch(model, model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))))


def test_there_and_back(tmp_path):
    weights = state_dict("segmentation", 2)
    write_tensors(tmp_path / "weights.pth", weights)
    classes = tmp_path / "classes.json"
    classes.write_text(json.dumps({"names": ["road", "sky"]}))
    folder = tmp_path / "converted"
    options = (f"--classes={classes}", f"--output={folder}", "--align_corners")
    done = run(tmp_path / "weights.pth", *options)
    assert done.returncode == 0, done.stderr
    assert "official layout, HRNet w18_small_v1, segmentation head, 2 classes" in done.stdout
    assert "align_corners=True (asked for)" in done.stdout
    checkpoint = load_checkpoint(str(folder))
    assert checkpoint.metadata["model"] == {
        "variant": "w18_small_v1",
        "num_classes": 2,
        "head": "segmentation",
        "align_corners": True,
        "image_statistics": 0.0,
    }
    assert checkpoint.metadata["classes"]["names"] == ["road", "sky"]
    assert checkpoint.metadata["config"]["data"]["name"] == "folder"

    done = run(folder, "--to=official", f"--output={tmp_path / 'new' / 'back.safetensors'}")
    assert done.returncode == 0, done.stderr
    file = tmp_path / "file.safetensors"
    done = run(folder, "--to=weights", f"--output={file}")
    assert done.returncode == 0, done.stderr
    assert f"Wrote {file}, " in done.stdout
    found = load_checkpoint(file)
    assert found.metadata["model"] == checkpoint.metadata["model"]
    jax.tree.map(np.testing.assert_array_equal, found.variables, checkpoint.variables)

    with open_tensors(tmp_path / "new" / "back.safetensors") as found:
        assert list(found) == list(weights)
        for key, tensor in found.items():
            np.testing.assert_array_equal(tensor.numpy(), weights[key])


def test_of_two_networks_one_is_chosen(tmp_path):
    """And what is written for timm is the network without its head."""
    weights = state_dict("segmentation", 2)
    averaged = {k: 2 * v for k, v in weights.items()}
    both = {f"model.{k}": v for k, v in weights.items()}
    both |= {f"ema.{k}": v for k, v in averaged.items()}
    write_tensors(tmp_path / "both.pth", both)
    found = {}
    for options in (["--weights=raw"], ["--weights=ema"], [], ["--key=model"]):
        output = tmp_path / f"{len(found)}.safetensors"
        done = run(tmp_path / "both.pth", "--to=timm", f"--output={output}", *options)
        assert done.returncode == 0, done.stderr
        assert "also in the file: " in done.stdout
        with open_tensors(output) as tensors:
            assert "last_layer.0.weight" not in tensors
            found[len(found)] = np.array(tensors["conv1.weight"].numpy())
    for number, expected in enumerate((weights, averaged, averaged, weights)):
        np.testing.assert_array_equal(found[number], expected["conv1.weight"])


def test_errors_are_one_line(tmp_path):
    pose, segmentation = tmp_path / "pose.pth", tmp_path / "segmentation.pth"
    write_tensors(pose, state_dict("pose", 17))
    write_tensors(segmentation, state_dict("segmentation", 2))
    for options, message in [
        ((segmentation, f"--output={tmp_path}/x"), "has 2 classes, but cityscapes has 19"),
        ((pose, f"--output={tmp_path}/x"), "has the head pose"),
        ((pose, "--to=mmsegmentation", f"--output={tmp_path}/x.pth"), "no layout 'mmsegmentation'"),
    ]:
        done = run(*options)
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pose.pth", "segmentation.pth"]
