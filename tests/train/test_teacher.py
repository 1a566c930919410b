"""Reading a teacher: which networks can teach, and what a run records of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import tiny_config

from hrnet_jax.checkpoints import weights_file
from hrnet_jax.configs import common
from hrnet_jax.data.synthetic import write as synthetic
from hrnet_jax.models import create_model
from hrnet_jax.pytorch import convert
from hrnet_jax.pytorch import files as torch_files
from hrnet_jax.train import build, loop, teacher
from hrnet_jax.train.config import check_config

NAMES = ("sky", "road", "car")


@functools.cache
def _variables(head="segmentation", classes=3, seed=5):
    model = create_model("tiny", classes, head)
    return model, model.init(jax.random.key(seed), jnp.zeros((1, 64, 64, 3)))


def _write(path, names=NAMES, seed=5):
    """A weights file of a tiny network with these classes."""
    model, variables = _variables(classes=len(names), seed=seed)
    colors = [[k, k, k] for k in range(len(names))]
    about = {
        "model": model.to_json(),
        "classes": {"names": names, "colors": colors, "label_ids": list(range(len(names)))},
        "config": {},
        "version": "0",
    }
    weights_file.write(path, variables, about, step=1, metric=None)
    return str(path)


def _load(path, names=NAMES, head="segmentation", **options):
    count = 3 if names is None else len(names)
    return teacher.load(path, head=head, num_classes=count, class_names=names, **options)


def test_a_teacher_and_what_is_recorded_of_it(tmp_path, quick):
    path = _write(tmp_path / "a.safetensors")
    found = _load(path, head="ocr", dtype=jnp.bfloat16)
    assert (found.class_order, found.model.policy.dtype) == (None, jnp.bfloat16)
    assert found.to_json() == {"name": path, "hash": found.fingerprint}
    model, variables = _variables()
    about = {**model.to_json(), "class_order": None}
    assert found.fingerprint == teacher.fingerprint_of(about, variables)
    assert found.fingerprint != teacher.fingerprint_of(
        {**about, "image_statistics": 0.1}, variables
    )
    leaves, structure = jax.tree.flatten(variables)
    leaves[-1] = leaves[-1] * 1.000001  # the smallest change counts
    changed = jax.tree.unflatten(structure, leaves)
    assert found.fingerprint != teacher.fingerprint_of(about, changed)


def test_classes_in_another_order_are_mapped(tmp_path, quick):
    path = _write(tmp_path / "a.safetensors", ("car", "sky", "road"))
    assert _load(path).class_order == (1, 2, 0)


def test_teachers_that_cannot_teach(tmp_path, quick):
    path = _write(tmp_path / "a.safetensors", ("sky", "road", "tree"))
    with pytest.raises(ValueError, match=r"only the teacher has \['tree'\].*dataset has \['car'\]"):
        _load(path)
    with pytest.raises(ValueError, match=r"teacher has no others.*dataset has \['car'\]"):
        _load(path, ("sky", "road", "tree", "car"))
    with pytest.raises(ValueError, match="has 3 classes, the dataset 2"):
        teacher.load(path, head="segmentation", num_classes=2, class_names=None)
    with pytest.raises(ValueError, match="head 'segmentation', the run trains 'classification'"):
        _load(path, head="classification")
    with pytest.raises(FileNotFoundError, match=r"teacher='nothing'.*camvid_w18_small_v1"):
        _load("nothing")


def test_a_file_of_pytorch_has_the_classes_of_the_dataset(tmp_path, caplog):
    model = create_model("w18_small_v1", 3)
    variables = model.init(jax.random.key(5), jnp.zeros((1, 64, 64, 3)))
    path = tmp_path / "a.safetensors"
    torch_files.write_tensors(path, convert.to_torch(model, variables), {})
    found = _load(str(path))
    assert "does not name its 3 classes" in caplog.text
    assert "sky, road, car" in caplog.text
    inputs = np.random.default_rng(0).normal(size=(1, 32, 32, 3)).astype(np.float32)
    outputs = jax.eval_shape(lambda v: found.model.apply(v, inputs), found.variables)
    assert outputs["logits"].shape == (1, 8, 8, 3)
    with pytest.raises(ValueError, match="has 3 classes, the dataset 2"):
        _load(str(path), NAMES[:2])


@pytest.mark.parametrize(
    ("key", "value"),
    [("temperature", 0.0), ("temperature", -1.0), ("weight", 0.0), ("min_confidence", 1.5)],
)
def test_bad_numbers(key, value):
    config = common.get_config()
    config.distill[key] = value
    with pytest.raises(ValueError, match=rf"config\.distill\.{key}={value}"):
        check_config(config)


def test_a_run_with_images_without_labels(tmp_path, quick, streets):
    """Two steps; the checkpoint names the teacher and does not hold it."""
    names = build.open_sources(_config(streets))[0].classes.names
    path = _write(tmp_path / "a.safetensors", names)
    unlabeled = {"name": "cityscapes", "root": str(streets), "split": "test", "weight": 0.5}
    config = _config(streets, **{"data.mix": (unlabeled,)})
    with pytest.raises(ValueError, match=r"'test' .* no labels to train on.*distill\.teacher"):
        loop.train(config, str(tmp_path / "run"))
    config.distill.teacher = path
    state = loop.train(config, str(tmp_path / "run"))
    assert int(state.step) == 2
    run = loop.CheckpointStore(str(tmp_path / "run"))
    saved = run.metadata()
    run.close()
    assert saved["teacher"] == _load(path, names).to_json()
    held = [p.name for p in (tmp_path / "run/checkpoints/2").iterdir()]
    assert not any("teacher" in name for name in held)
    # The same weights under another name are the same teacher.
    config.num_steps = 2
    config.distill.teacher = _write(tmp_path / "copy.safetensors", names)
    loop.train(config, str(tmp_path / "run"))
    config.distill.teacher = _write(tmp_path / "b.safetensors", names, seed=6)
    with pytest.raises(ValueError, match=r"hash of distill\.teacher: saved '"):
        loop.train(config, str(tmp_path / "run"))
    config.distill.teacher, config.data.mix = "", ()
    with pytest.raises(ValueError, match=r"hash of distill\.teacher.*now ''"):
        loop.train(config, str(tmp_path / "run"))


@pytest.fixture
def streets(tmp_path):
    root = tmp_path / "streets"
    synthetic.write_cityscapes(root, {"train": 2, "test": 2}, size=(48, 80), progress=False)
    return root


def _config(root, **overrides):
    values = {"num_steps": 2, "data.eval_split": "", "mesh.data": 2}
    return tiny_config(root, **(values | overrides))
