"""Functions of the user's own: checked before the run, never imported for somebody's checkpoint."""

import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import pytest

import hrnet_jax
from hrnet_jax.checkpoints import weights_file
from hrnet_jax.checkpoints.load import load_checkpoint
from hrnet_jax.checkpoints.store import CheckpointStore
from hrnet_jax.configs import common
from hrnet_jax.data.sources.camvid import CLASSES
from hrnet_jax.train import build, hooks, initial_weights
from hrnet_jax.train.config import check_config
from hrnet_jax.train.step import create_state

MODULE = """
import jax.numpy as jnp
import optax

def loss(logits, labels, *, ignore_label, class_weights):
    valid = labels != ignore_label
    return jnp.mean(jnp.where(valid[..., None], logits, 0.0) ** 2)

def optimizer(schedule):
    return optax.lion(schedule)

def schedule(learning_rate, num_steps, steps_per_epoch):
    return lambda step: learning_rate * (1 - step / num_steps) + steps_per_epoch

def plain(logits, labels):
    return 0.0

def map_of_losses(logits, labels, *, ignore_label, class_weights):
    return logits[..., 0]

def three(*arguments, **keywords):
    return 3

def fails(*arguments, **keywords):
    raise RuntimeError("no luck")

NUMBER = 5
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "own_functions.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)  # the working directory is searched
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "own_functions"
    sys.modules.pop("own_functions", None)


def _config(**values):
    config = common.get_config()
    config.update_from_flattened_dict(values)
    return config


def test_own_functions_are_used(module):
    config = _config(**{
        "loss.function": f"{module}:loss",
        "optimizer.function": f"{module}:optimizer",
        "optimizer.schedule_function": f"{module}:schedule",
        "optimizer.multipliers": {"head": 0.5},
        "data.crop_size": (32, 32),
    })  # fmt: skip
    check_config(config)
    build.check_own_loss(config, 3)
    loss = build.make_loss(config)
    labels = jnp.array([[[0, 255]]])
    assert float(loss(jnp.full((1, 1, 2, 3), 2.0), labels)) == 2.0
    schedule, optimizer = build.make_optimizer(config, 100, 4.0)
    assert float(schedule(50)) == pytest.approx(0.005 + 4)
    # Lion's update is the gradient's sign times the rate, here with the factors of the parts.
    params = {"backbone": {"kernel": jnp.zeros(2)}, "head": {"kernel": jnp.zeros(2)}}
    gradients = jax.tree.map(lambda x: x + 7, params)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    assert float(updates["backbone"]["kernel"][0]) == pytest.approx(-4.01)
    assert float(updates["head"]["kernel"][0]) == pytest.approx(-2.005)


@pytest.mark.parametrize(
    ("key", "name", "message"),
    [
        ("loss.function", "own_functions", "need 'module:function'"),
        ("loss.function", "own_functions:a.b", "need 'module:function'"),
        ("loss.function", "no_such_module:f", r"'no_such_module' cannot be imported.*PYTHONPATH"),
        ("loss.function", "own_functions:focal", r"has no 'focal'; known: .*'loss'"),
        ("loss.function", "own_functions:NUMBER", "is int 5, not a function"),
        (
            "loss.function",
            "own_functions:plain",
            r"function\(\.\.\., \.\.\., ignore_label=\.\.\., class_weights=\.\.\.\).*it takes",
        ),
        ("loss.function", "own_functions:map_of_losses", "not one floating-point number"),
        ("loss.function", "own_functions:fails", "fails when it is called: RuntimeError: no luck"),
        ("optimizer.function", "own_functions:three", "returns int, not an optax.Gradient"),
        ("optimizer.function", "own_functions:loss", "cannot be called as"),
        ("optimizer.function", "own_functions:fails", "RuntimeError: no luck"),
        ("optimizer.schedule_function", "own_functions:three", "returns int, not a function of"),
        ("optimizer.schedule_function", "own_functions:optimizer", "cannot be called as"),
    ],
)
def test_unusable_functions_are_refused(module, key, name, message):
    config = _config(**{key: name, "data.crop_size": (32, 32)})
    with pytest.raises(ValueError, match=rf"(?s)config\.{key}='{name}'.*{message}"):
        (build.check_own_loss(config, 3), build.make_optimizer(config, 100, 4.0))


def test_keys_that_would_have_no_effect_are_refused():
    for values, message in (
        ({"optimizer.function": "m:f", "optimizer.decay_norm_and_bias": False}, "weight decay"),
        ({"optimizer.schedule_function": "m:f", "optimizer.warmup_steps": 5}, "own start"),
        ({"optimizer.schedule": "one_cycle", "optimizer.warmup_steps": 5}, "warmup_steps to 0"),
    ):
        with pytest.raises(ValueError, match=message):
            check_config(_config(**values))


def test_nobody_elses_checkpoint_makes_us_import_anything(tmp_path, monkeypatch, quick):
    """A checkpoint names a module whose import leaves a trace."""
    trace = tmp_path / "trace"
    (tmp_path / "left_a_trace.py").write_text(f"open({str(trace)!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    names = ("loss.function", "optimizer.function", "optimizer.schedule_function")
    config = _config(variant="tiny", **dict.fromkeys(names, "left_a_trace:f"))
    model = build.make_model(config, CLASSES.num_classes)

    class Camvid:
        classes = CLASSES

    _, optimizer = build.make_optimizer(_config(variant="tiny"), 10, 1.0)
    metadata = build.make_metadata(config, model, Camvid)
    assert metadata["config"]["loss"]["function"] == "left_a_trace:f"
    store = CheckpointStore(str(tmp_path / "run"))
    store.save(create_state(model, optimizer, seed=0), metadata)
    store.close()
    checkpoint = load_checkpoint(tmp_path / "run")
    hrnet_jax.load(tmp_path / "run")
    file = tmp_path / "weights.safetensors"
    weights_file.write(file, checkpoint.variables, checkpoint.metadata, step=0, metric=None)
    initial_weights.load(str(file), model, CLASSES.names, 0)
    assert not trace.exists()
    with pytest.raises(ValueError, match="has no 'f'"):  # the name would have been found
        build.make_loss(config)
    assert trace.exists()


def test_only_the_trainer_knows_hooks():
    """Prediction, evaluation, conversion and export lie below it and cannot import it."""
    package = pathlib.Path(hooks.__file__).parents[1]
    users = [p.relative_to(package).as_posix() for p in package.rglob("*.py")
             if re.search(r"\bhooks\.\w", p.read_text())]  # fmt: skip
    assert users == ["train/build.py"]
