"""Earlier names of keys and values, in configuration files, on the command line, in checkpoints."""

import logging
import sys
import warnings
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

import hrnet_jax
from hrnet_jax.checkpoints.store import CheckpointStore
from hrnet_jax.configs import camvid, common, imagenet
from hrnet_jax.data.sources.camvid import CLASSES
from hrnet_jax.tools import config_flag
from hrnet_jax.train import build
from hrnet_jax.train.config import (
    RENAMED_KEYS,
    RENAMED_VALUES,
    Config,
    check_config,
    check_same_config,
    current_names,
    flatten,
)

ROOT = Path(__file__).parents[2]
OLD_RUN = ROOT / "tests" / "checkpoints" / "run_before_rooms.zip"


def _parse(monkeypatch, *arguments, name="common"):
    """The configuration of these command line arguments."""
    monkeypatch.setattr(sys, "argv", ["train.py", f"--config={ROOT}/configs/{name}.py", *arguments])
    values = flags.FlagValues()
    holder = config_flag.define(values)
    values(sys.argv)
    return holder.value


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [
        ("drop_epochs", "milestones", (1, 2)),
        ("drop_factor", "gamma", 0.25),
        ("accumulate", "gradient_accumulation", 3),
    ],
)
def test_earlier_keys_are_those_of_today(monkeypatch, old, new, value):
    assert RENAMED_KEYS[f"optimizer.{old}"] == f"optimizer.{new}"
    expected = common.get_config()
    expected.optimizer[new] = value
    message = rf"config\.optimizer\.{old} is now config\.optimizer\.{new}"

    def by_attribute(config):
        setattr(config.optimizer, old, value)

    def by_item(config):
        config["optimizer"][old] = value

    def by_path(config):
        config.update_from_flattened_dict({f"optimizer.{old}": value})

    def by_dict(config):
        config.update({"optimizer": {old: value}})

    for change in (by_attribute, by_item, by_path, by_dict):
        config = common.get_config()
        with pytest.warns(FutureWarning, match=message):
            change(config)
        assert config.to_dict() == expected.to_dict()
    with pytest.warns(FutureWarning, match=message):
        assert getattr(config.optimizer, old) == value
    with pytest.warns(FutureWarning, match=message):
        config = _parse(monkeypatch, f"--config.optimizer.{old}={value}")
    assert config.to_dict() == expected.to_dict()
    assert _parse(monkeypatch, f"--config.optimizer.{new}={value}").to_dict() == expected.to_dict()


def test_the_earlier_schedule_is_that_of_today(monkeypatch):
    assert RENAMED_VALUES == {"optimizer.schedule": {"staircase": "multistep"}}
    config = common.get_config()
    with pytest.warns(FutureWarning, match=r"schedule='staircase' is now 'multistep'"):
        config.optimizer.schedule = "staircase"
    assert config.optimizer.schedule == "multistep"
    check_config(config)
    with pytest.warns(FutureWarning, match="'staircase' is now"):
        config = _parse(monkeypatch, "--config.optimizer.schedule=staircase")
    assert config.optimizer.schedule == "multistep"


def test_sections_that_are_copied_or_replaced_know_the_earlier_names():
    config = common.get_config()
    copies = [config.copy_and_resolve_references(), Config(config)]
    replaced = common.get_config()
    replaced.optimizer = config.optimizer.to_dict()
    for other in (*copies, replaced):
        with pytest.warns(FutureWarning):
            other.optimizer.accumulate = 2
        assert other.optimizer.gradient_accumulation == 2


def test_names_of_today_do_not_warn_and_unknown_ones_are_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = imagenet.get_config()
        check_config(config)
    for holder, name in ((config, "accumulate"), (config.data, "drop_factor")):
        with pytest.raises(AttributeError):
            setattr(holder, name, 1)


TUPLES = [key for key, value in flatten(common.get_config().to_dict()).items()
          if isinstance(value, tuple)]  # fmt: skip


def test_every_tuple_key_is_known_here():
    assert TUPLES == ["data.crop_size", "data.mix", "data.service", "optimizer.milestones"]


@pytest.mark.parametrize("key", TUPLES)
def test_none_empties_a_tuple_and_the_last_flag_wins(monkeypatch, key):
    assert _flat(_parse(monkeypatch, f"--config.{key}=None"))[key] == ()
    assert _flat(_parse(monkeypatch, f"--config.{key}=()"))[key] == ()
    assert _flat(_parse(monkeypatch, f"--config.{key}="))[key] == ()
    twice = [f"--config.{key}=(1,2)", f"--config.{key}=(3, 4, 5)"]
    assert _flat(_parse(monkeypatch, *twice))[key] == (3, 4, 5)
    assert _flat(_parse(monkeypatch, *twice, f"--config.{key}=None"))[key] == ()
    assert _flat(_parse(monkeypatch, f"--config.{key}=host:5000"))[key] == ("host:5000",)
    assert _flat(_parse(monkeypatch, f"--config.{key}=7"))[key] == (7,)
    with pytest.raises(flags.IllegalFlagValueError):
        _parse(monkeypatch, f"--config.{key}=(1,2")


def _flat(config):
    return flatten(config.to_dict())


def test_class_weights_may_be_none(monkeypatch):
    key = "--config.loss.class_weights="
    assert _parse(monkeypatch, name="cityscapes").loss.class_weights[0] == 0.8373
    for name in ("cityscapes", "common"):
        assert _parse(monkeypatch, key + "None", name=name).loss.class_weights is None
        assert (
            _parse(monkeypatch, key + "(1,2)", key + "None", name=name).loss.class_weights is None
        )
        weights = _parse(monkeypatch, key + "None", key + "(1.5,2)", name=name).loss.class_weights
        assert weights == (1.5, 2)


def test_no_crop_size_is_refused():
    config = common.get_config()
    config.data.crop_size = None
    with pytest.raises(ValueError, match=r"crop_size=\(\): must be \(height, width\)"):
        check_config(config)


def test_current_names():
    flat, renamed = current_names(
        {"optimizer.accumulate": 2, "optimizer.schedule": "staircase", "seed": 1}
    )
    assert flat == {
        "optimizer.gradient_accumulation": 2, "optimizer.schedule": "multistep", "seed": 1
    }  # fmt: skip
    assert renamed == [
        "optimizer.accumulate -> optimizer.gradient_accumulation",
        "optimizer.schedule='staircase' -> 'multistep'",
    ]
    assert current_names(flat) == (flat, [])


@pytest.mark.parametrize(("warmup", "expected"), [(30, 2), (20, 20), (0, 0)])
def test_a_warm_up_longer_than_the_run_is_shortened(caplog, warmup, expected):
    config = common.get_config()
    config.optimizer.warmup_steps = warmup
    schedule, _ = build.make_optimizer(config, 20, 4.0)
    plain = common.get_config()
    plain.optimizer.warmup_steps = expected
    wanted, _ = build.make_optimizer(plain, 20, 4.0)
    assert [float(schedule(k)) for k in range(20)] == [float(wanted(k)) for k in range(20)]
    said = "warmup_steps=30 is longer than the run of 20 steps: using 2" in caplog.text
    assert said == (warmup > 20)


@pytest.fixture
def old_run(tmp_path):
    with zipfile.ZipFile(OLD_RUN) as archive:
        archive.extractall(tmp_path / "run")
    return tmp_path / "run"


def _config_of_the_old_run():
    config = camvid.get_config("variant=w18_small_v1,recipe=constant")
    config.data.root = "CAMVID"
    config.num_steps = 20
    config.optimizer.warmup_steps = 2
    config.optimizer.schedule = "multistep"
    config.optimizer.milestones = (1, 2)
    config.optimizer.gamma = 0.5
    config.data.class_mix = 0.25
    return config


def test_a_run_of_an_earlier_version_is_continued(old_run, caplog):
    caplog.set_level(logging.INFO, "hrnet_jax")

    class Camvid:
        classes = CLASSES

    config = _config_of_the_old_run()
    model = build.make_model(config, CLASSES.num_classes)
    _, optimizer = build.make_optimizer(config, 20, 4.0)
    store = CheckpointStore(str(old_run))
    saved = store.metadata()
    assert saved["config"]["optimizer"]["drop_epochs"] == [1, 2]
    check_same_config(saved, build.make_metadata(config, model, Camvid), "RUN")
    assert "optimizer.drop_epochs -> optimizer.milestones" in caplog.text
    assert "optimizer.schedule='staircase' -> 'multistep'" in caplog.text
    config.optimizer.gamma = 0.4
    with pytest.raises(ValueError, match=r"optimizer\.gamma: saved 0\.5, now 0\.4"):
        check_same_config(saved, build.make_metadata(config, model, Camvid), "RUN")

    state = jax.eval_shape(lambda: build.create_state(model, optimizer, seed=0, ema=True))
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    template = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state
    )
    restored = store.restore(template)
    store.close()
    assert int(restored.step) == 7
    for number, leaf in enumerate(jax.tree.leaves(restored)):
        if jnp.ndim(leaf):
            np.testing.assert_array_equal(leaf, np.full(leaf.shape, number * 1e-3, leaf.dtype))


def test_a_checkpoint_of_an_earlier_version_predicts(old_run):
    predictor = hrnet_jax.load(old_run)
    assert predictor.classes.names == CLASSES.names
    assert predictor.predict(np.zeros((32, 64, 3), np.uint8)).shape == (32, 64)


def _metadata(**changes):
    config = {"data": {"mix": changes.pop("mix", []), "root": changes.pop("root", "HERE")}}
    images = changes.pop("images", {"split": "train", "number": 3, "names": "a1"})
    classes = {"names": ["soil", "leaf"], "colors": [[0, 0, 0], [0, 9, 0]], "label_ids": [0, 1]}
    classes |= {"ignore_ids": [7, 8], "categories": []} | changes
    return {"classes": classes, "config": config, "images": [images]}


@pytest.mark.parametrize(
    "free",
    [
        {"root": "ELSEWHERE"},
        {"colors": [[1, 1, 1], [2, 2, 2]]},
        {"categories": ["ground", "plant"]},
        {"ignore_ids": [8, 7]},
        {"mix": [{"name": "camvid", "root": "ELSEWHERE", "weight": 0.1}]},
    ],
)
def test_what_may_change_when_a_run_is_continued(free):
    mix = [{"name": "camvid", "root": "HERE", "weight": 0.1}] if "mix" in free else []
    check_same_config(_metadata(mix=mix), _metadata(**free), "RUN")


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ({}, {"label_ids": [0, 255]}, r"classes\.label_ids: saved \[0, 1\], now \[0, 255\]"),
        ({}, {"ignore_ids": []}, r"classes\.ignore_ids: saved \[7, 8\], now \[\]"),
        ({}, {"ignore_ids": "rest"}, r"classes\.ignore_ids: saved \[7, 8\], now 'rest'"),
        ({"image_range": [0, 9]}, {}, r"classes\.image_range: saved \[0, 9\], now None"),
        ({}, {"label_type": "colors"}, r"classes\.label_type: saved None, now 'colors'"),
        (
            {"label_type": "colors"},
            {"label_type": "colors", "colors": [[0, 0, 0], [9, 9, 9]]},
            r"classes\.colors: .* now \[\[0, 0, 0\], \[9, 9, 9\]\]",
        ),
        (
            {"mix": [{"name": "camvid", "class_map": {"sky": "soil"}}]},
            {"mix": [{"name": "camvid", "class_map": {"sky": "leaf"}}]},
            r"data\.mix: saved .*'sky': 'soil'.*, now .*'sky': 'leaf'",
        ),
        (
            {},
            {"images": {"split": "train", "number": 4, "names": "b2"}},
            r"images\[0\]\.names: saved 'a1', now 'b2'\n  images\[0\]\.number: saved 3, now 4\n"
            r"Give another --workdir \(and --config\.init_from=RUN .*the same images to continue",
        ),
    ],
)
def test_what_must_not_change_when_a_run_is_continued(old, new, line):
    with pytest.raises(ValueError, match=line):
        check_same_config(_metadata(**old), _metadata(**new), "RUN")


def test_what_earlier_versions_did_not_record_is_not_compared():
    old = _metadata()
    del old["images"]
    check_same_config(old, _metadata(images={"number": 4}), "RUN")
