"""One file holds a network: there and back, by path and by name, and what is refused."""

import json
import shutil
import struct
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import traverse_util

import hrnet_jax
from hrnet_jax import to_torch
from hrnet_jax.checkpoints import manifest, weights_file
from hrnet_jax.checkpoints.load import load_checkpoint
from hrnet_jax.configs import common
from hrnet_jax.models import create_model
from hrnet_jax.pytorch import files as torch_files
from hrnet_jax.train import build

MODEL = {
    "variant": "tiny",
    "num_classes": 3,
    "head": "segmentation",
    "align_corners": True,
    "image_statistics": 0.25,
}
CLASSES = {
    "names": ["a", "b", "c"],
    "colors": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "label_ids": [0, 1, 2],
    "ignore_ids": [],
    "categories": [],
}
METADATA = {
    "format_version": manifest.FORMAT_VERSION,
    "model": MODEL,
    "classes": CLASSES,
    "config": {
        "init_from": "/home/me/x.pth",
        "data": {"root": "/home/me/camvid", "name": "camvid"},
    },
    "version": "0",
}

NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def variables(tiny):
    network = create_model(tiny, 3, align_corners=True)
    return jax.jit(network.init)(jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32))


@pytest.fixture
def file(tmp_path, variables, quick):
    path = tmp_path / "street.safetensors"
    weights_file.write(path, variables, METADATA, step=12, metric=0.5)
    return path


@pytest.fixture
def shipped(file, monkeypatch):
    """As if the file had come with the package, under this name."""
    folder = file.parent / "weights"
    folder.mkdir()
    shutil.copy(file, folder / "camvid_tiny.safetensors")
    monkeypatch.setattr(weights_file, "FOLDER", folder)
    return "camvid_tiny"


def _equal(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_there_and_back(file, variables):
    checkpoint = load_checkpoint(file)
    _equal(checkpoint.variables, variables)
    assert (checkpoint.step, checkpoint.metric, checkpoint.path) == (12, 0.5, str(file))
    assert (checkpoint.metadata["model"], checkpoint.metadata["classes"]) == (MODEL, CLASSES)
    # Nothing of the machine it was made on.
    assert checkpoint.metadata["config"] == {
        "init_from": "",
        "data": {"root": "", "name": "camvid"},
    }
    assert b"/home/me" not in file.read_bytes()
    assert load_checkpoint(file, step=12).step == 12
    with pytest.raises(ValueError, match=r"step 3 was asked for, but .* holds step 12"):
        load_checkpoint(file, step=3)


def test_float16_rounds_kernels_only(tmp_path, variables, quick):
    sizes = {}
    for dtype in weights_file.DTYPES:
        path = tmp_path / f"{dtype}.safetensors"
        weights_file.write(path, variables, METADATA, step=0, metric=None, dtype=dtype)
        sizes[dtype] = path.stat().st_size
    found, _, _, score = weights_file.read(tmp_path / "float16.safetensors")
    assert score is None
    found, expected = (traverse_util.flatten_dict(v, sep="/") for v in (found, variables))
    assert {v.dtype.name for v in found.values()} == {"float32"}
    for name, value in expected.items():
        rounded = value.astype(np.float16).astype(np.float32) if value.ndim > 1 else value
        np.testing.assert_array_equal(found[name], rounded)
    kernels = sum(v.size for v in expected.values() if v.ndim > 1)
    assert sizes["float32"] - sizes["float16"] == pytest.approx(2 * kernels, rel=0.1)
    variables = jax.tree.map(np.array, variables)
    variables["params"]["head"]["classifier"]["kernel"][0, 0, 0, 0] = 7e4
    with pytest.raises(ValueError, match="head/classifier/kernel has values too large"):
        weights_file.write(path, variables, METADATA, step=0, metric=None, dtype="float16")


def test_a_name_is_as_good_as_a_path(shipped, file):
    assert weights_file.names() == (shipped,)
    image = np.random.default_rng(0).integers(0, 256, (40, 48, 3)).astype(np.uint8)
    by_name = hrnet_jax.load(shipped)
    assert (by_name.step, by_name.classes.names) == (12, ("a", "b", "c"))
    assert by_name.model.to_json() == MODEL
    np.testing.assert_array_equal(
        by_name.predict_proba(image), hrnet_jax.load(file).predict_proba(image)
    )
    with pytest.raises(FileNotFoundError, match=r"come with hrnet_jax: camvid_tiny$"):
        hrnet_jax.load("camvid_tony")


def test_without_any(tmp_path, monkeypatch):
    monkeypatch.setattr(weights_file, "FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match="come with hrnet_jax: none in this version"):
        hrnet_jax.load("camvid_w18_small_v1")


def test_a_training_starts_from_it(shipped, variables):
    config = common.get_config()
    config.variant, config.init_from = "tiny", shipped
    network = create_model("tiny", 3, align_corners=True)
    _equal(build.load_initial_variables(config, network, NAMES), variables)
    config.init_from = "camvid_tony"
    with pytest.raises(FileNotFoundError, match=r"camvid_tony.*: camvid_tiny"):
        build.load_initial_variables(config, network, NAMES)


@pytest.mark.parametrize(
    ("prefix", "head"),
    [("", "features"), ("backbone.", "features"), ("encoder.model.", "classification")],
    ids=["bare", "mmdet", "ImageNet"],
)
def test_a_training_starts_from_any_backbone(tmp_path, caplog, prefix, head):
    """Of a PyTorch file, whatever else is in it."""
    other = create_model("w18_small_v1", 7, head)
    variables = jax.jit(other.init)(jax.random.key(1), np.zeros((1, 64, 64, 3), np.float32))
    arrays = {prefix + k: v for k, v in to_torch(other, variables).items()}
    arrays |= {"decoder.0.weight": np.ones((3, 3), np.float32)}
    torch_files.write_tensors(tmp_path / "x.pth", arrays)
    config = common.get_config()
    config.variant, config.init_from = "w18_small_v1", str(tmp_path / "x.pth")
    network = create_model("w18_small_v1", 3)
    with caplog.at_level("INFO"):
        found = build.load_initial_variables(config, network, NAMES)
    _equal(found["params"]["backbone"], variables["params"]["backbone"])
    _equal(found["batch_stats"]["backbone"], variables["batch_stats"]["backbone"])
    assert "left out 1 (beside the network): decoder.0.weight" in caplog.text
    config.init_from = "timm:hrnet_w19"
    with pytest.raises(ValueError, match="timm:hrnet_w19: unknown; known"):
        build.load_initial_variables(config, network, NAMES)


def test_files_of_before_there_were_images_statistics(file):
    _rewrite(file, lambda _, about: about["model"].pop("image_statistics"))
    assert hrnet_jax.load(file).model.to_json() == MODEL | {"image_statistics": 0.0}


def test_files_of_pytorch_are_told_apart(file, tmp_path):
    assert not weights_file.is_foreign(file)
    assert not weights_file.is_foreign(tmp_path)
    other = tmp_path / "torch.safetensors"
    torch_files.write_tensors(other, {"x": np.zeros(3)})
    (tmp_path / "x.pth").write_bytes(b"PK\x03\x04" + bytes(30))
    for path in (other, tmp_path / "x.pth"):
        assert weights_file.is_foreign(path)
    with pytest.raises(ValueError, match=r"torch\.safetensors: not an HRNet of a known layout"):
        load_checkpoint(other)


def _rewrite(file: Path, change) -> None:
    """Applies `change` to (arrays, description) and writes both without any checks."""
    with torch_files.open_tensors(file) as tensors:
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    about = json.loads(torch_files.safetensors_metadata(file)["hrnet_jax"])
    change(arrays, about)
    torch_files.write_tensors(file, arrays, {"hrnet_jax": json.dumps(about)})


KERNEL = "params/head/classifier/kernel"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, _: a.pop(KERNEL), f"tiny, 1 differences:\n  missing: {KERNEL}"),
        (lambda a, _: a.update(extra=np.zeros(2)), "unexpected: extra"),
        (lambda a, _: a.update({KERNEL: a[KERNEL][:, :, 1:]}), f"{KERNEL}: float32.*, expected"),
        (lambda a, _: a.update({KERNEL: a[KERNEL].astype(int)}), f"{KERNEL}: int64.*, expected"),
        (lambda _, m: m["model"].update(num_classes=4), "expected float32 or float16 of"),
        (lambda _, m: m["model"].update(variant="huge"), "unknown variant 'huge'"),
        (lambda _, m: m["model"].update(num_classes=-1), "description is damaged"),
        (lambda _, m: m["model"].update(num_classes=True), r"wrong type: \['num_classes'\]"),
        (lambda _, m: m["model"].update(image_statistics=2.0), "must be between 0 and 1, not 2.0"),
        (lambda _, m: m["model"].pop("head"), r"wrong type: \['head'\]"),
        (lambda _, m: m["model"].update(dtype="float64"), r"unknown in its model: \['dtype'\]"),
        (lambda _, m: m.update(classes=[]), r"wrong type: \['classes'\]"),
        (lambda _, m: m.update(format_version=2), "version 2; this hrnet_jax reads 1"),
        (lambda _, m: m.update(step="12"), "not a number"),
        (lambda _, m: m.update(score=float("nan")), "not a number"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(file, change, message):
    _rewrite(file, change)
    with pytest.raises(ValueError, match=message) as error:
        load_checkpoint(file)
    assert str(file) in str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        b"{}",
        struct.pack("<Q", 2**60) + b"{" + bytes(20),
        struct.pack("<Q", 30) + b'{"__metadata__": {"hrnet_jax":',
        struct.pack("<Q", 34) + b'{"__metadata__":{"hrnet_jax":"[]"}}'[:34],
        struct.pack("<Q", 36) + b'{"__metadata__":{"hrnet_jax":"[1]"}}',
        struct.pack("<Q", 33) + b'{"__metadata__":{"hrnet_jax": 3}}',
    ],
)
def test_damaged_files_are_refused(tmp_path, content):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.safetensors"):
        load_checkpoint(path)


def test_a_cut_file_is_refused(file):
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"street\.safetensors: .*not fully covered"):
        load_checkpoint(file)


def test_shipped_files_are_small_and_sound():
    assert weights_file.names() == ("camvid_w18_small_v1", "camvid_w18_small_v2")
    for name in weights_file.names():
        file = weights_file.FOLDER / f"{name}{weights_file.SUFFIX}"
        assert file.stat().st_size < 10e6
        variables, metadata, step, score = weights_file.read(file)
        data, variant = name.split("_", 1)
        found = metadata["model"], metadata["config"]["data"]
        assert (found[0]["variant"], found[0]["num_classes"]) == (variant, 11)
        assert (found[1]["name"], found[1]["root"]) == (data, "")
        assert step > 0
        assert score > 0.6
        # Trained ones: their statistics are no longer all 0 or all 1.
        assert all(np.ptp(value) > 0 for value in jax.tree.leaves(variables["batch_stats"]))
