"""Whole runs with a tiny network on a synthetic set: files, resuming, refusals, NaN."""

import dataclasses
import json
import logging
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stopping import interrupted_at, stopped_at
from tiny_run import tiny_config

import hrnet_jax
from hrnet_jax.checkpoints.load import load_checkpoint
from hrnet_jax.checkpoints.store import CheckpointStore
from hrnet_jax.configs import camvid, common, fake_data, imagenet
from hrnet_jax.data.sources.cityscapes import CLASSES
from hrnet_jax.data.synthetic import write as synthetic
from hrnet_jax.models import create_model
from hrnet_jax.pytorch import convert
from hrnet_jax.pytorch import files as torch_files
from hrnet_jax.runtime import progress, run_lock
from hrnet_jax.train import build, loop, preemption
from hrnet_jax.train.config import check_config, check_same_config
from hrnet_jax.train.tasks import Evaluation, task_of

CITYSCAPES = CLASSES.names
LETTERS = tuple("abcdefg")


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    root = tmp_path_factory.mktemp("streets")
    synthetic.write_cityscapes(root, {"train": 5, "val": 3}, size=(48, 80), progress=False)
    return root


def _config(root, **overrides):
    values = {
        "num_steps": 4,
        "log_every_steps": 1,
        "checkpoint_every_steps": 2,
        "optimizer.ema_decay": 0.9,
        "mesh.data": 2,
        "eval.every_steps": 4,
        "eval.num_images": 2,
    }
    return tiny_config(root, **(values | overrides))


def _equal(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def _log(workdir):
    return [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]


def test_run_resume_and_load(tmp_path, streets, quick, caplog, monkeypatch, capsys):
    caplog.set_level(logging.INFO, "hrnet_jax")
    whole = loop.train(_config(streets), str(tmp_path / "whole"))

    # What a user sees and finds.
    text = caplog.text
    for expected in (
        "variant='tiny'",
        "mesh data=2",
        "2 device(s) x 1 image(s)",
        "total",
        "step 4/4",
    ):
        assert expected in text
    lines = _log(tmp_path / "whole")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 4]
    rates = [line["train/learning_rate"] for line in lines[:4]]
    np.testing.assert_allclose(rates, [0.01 * (1 - k / 4) ** 0.9 for k in range(4)], rtol=1e-6)
    assert 0 <= lines[4]["eval/miou"] <= 1
    assert list((tmp_path / "whole" / "tensorboard").iterdir())

    # Ctrl-C in step 1, noticed in step 2, then the same call again.
    monkeypatch.setattr(progress, "_redraws", lambda stream: True)
    caplog.set_level(logging.WARNING, "hrnet_jax")
    with interrupted_at(1) as raised:
        loop.train(_config(streets), str(tmp_path / "parts"))
    assert isinstance(raised.value, preemption.Preempted)
    assert str(raised.value) == "SIGINT: saved step 2 of 4 and ended"
    # Bars show the progress where the log does not.
    shown = capsys.readouterr().err
    for bar in ("compiling: 100%", "training:  25%", " 1/4 [", "loss="):
        assert bar in shown
    caplog.set_level(logging.INFO, "hrnet_jax")
    resumed = loop.train(_config(streets, log_every_steps=2), str(tmp_path / "parts"))
    assert "continuing at step 2 of 4" in caplog.text
    _equal(resumed, whole)
    assert [line["step"] for line in _log(tmp_path / "parts")] == [1, 2, 4, 4]

    # A finished run is left alone.
    again = loop.train(_config(streets), str(tmp_path / "parts"))
    assert "nothing to do" in caplog.text
    _equal(again, whole)

    # The folder is all that prediction needs; it takes the averaged weights.
    checkpoint = load_checkpoint(tmp_path / "whole")
    assert checkpoint.metric == lines[4]["eval/miou"]
    assert checkpoint.metadata["version"] == hrnet_jax.__version__
    _equal(checkpoint.variables, whole.ema)
    predictor = hrnet_jax.load(tmp_path / "whole")
    assert predictor.predict(np.zeros((32, 64, 3), np.uint8)).shape == (32, 64)

    # Another configuration does not get mixed in.
    with pytest.raises(ValueError, match=r"optimizer.momentum: saved 0.9, now 0.8"):
        loop.train(_config(streets, **{"optimizer.momentum": 0.8}), str(tmp_path / "whole"))

    # And its weights can start another run.
    start = {"init_from": str(tmp_path / "whole")}
    started = build.load_initial_variables(_config(streets, **start), _tiny_model(19), CITYSCAPES)
    _equal(started, checkpoint.variables)
    with caplog.at_level("INFO"):
        started = build.load_initial_variables(_config(streets, **start), _tiny_model(7), LETTERS)
    assert "random: head/classifier; left out: head/classifier" in caplog.text
    old, new = checkpoint.variables["params"], started["params"]
    _equal(new["backbone"], old["backbone"])
    _equal(new["head"]["hidden"], old["head"]["hidden"])
    assert new["head"]["classifier"]["kernel"].shape == (1, 1, 60, 7)
    wide = build.make_model(_config("x", variant="w18_small_v1"), 7)
    with pytest.raises(ValueError, match=r"does not fit the backbone.*batch_stats/backbone/"):
        build.load_initial_variables(_config(streets, **start), wide, LETTERS)
    with pytest.raises(FileNotFoundError, match="no such file"):
        build.load_initial_variables(_config(streets, init_from="/none"), _tiny_model(7), LETTERS)


def test_imagenet_weights_start_a_segmentation_network(tmp_path, caplog):
    caplog.set_level(logging.INFO, "hrnet_jax")
    imagenet = create_model("w18_small_v1", 1000, "classification")
    variables = imagenet.init(jax.random.key(7), jnp.zeros((1, 64, 64, 3)))
    path = tmp_path / "imagenet.pth"
    torch_files.write_tensors(path, convert.to_torch(imagenet, variables))
    config = _config("x", variant="w18_small_v1", init_from=str(path))
    started = build.load_initial_variables(config, build.make_model(config, 19), CITYSCAPES)
    for collection in ("params", "batch_stats"):
        _equal(started[collection]["backbone"], variables[collection]["backbone"])
    assert "random: head/classifier, head/hidden; left out: head/classifier, head/" in caplog.text


def _tiny_model(num_classes):
    return build.make_model(_config("x"), num_classes)


def test_a_frozen_run_ends_early_and_continues_bit_for_bit(
    tmp_path, streets, quick, monkeypatch, caplog
):
    """Metrics in place of evaluations: the best one is that of step 2."""
    caplog.set_level(logging.INFO, "hrnet_jax")
    metrics = {1: 0.1, 2: 0.3, 3: 0.2, 4: 0.3, 5: 0.1, 6: 0.0}
    steps = iter(())

    def evaluate(*_):
        return Evaluation(metrics[next(steps)], {}, "")

    task = dataclasses.replace(task_of("segmentation"), evaluate=evaluate)
    monkeypatch.setattr(loop, "task_of", lambda head: task)
    config = _config(streets, **{
        "num_steps": 6, "checkpoint_every_steps": 1, "eval.every_steps": 1, "eval.patience": 2,
        "optimizer.multipliers": {"backbone": 0.0}, "optimizer.ema_decay": 0.9,
        "optimizer.hold_fraction": 0.5,
    })  # fmt: skip
    steps = iter((1, 2, 3, 4))
    whole = loop.train(config, str(tmp_path / "whole"))
    assert int(whole.step) == 4
    assert "learning rate: backbone x 0" in caplog.text
    assert "early at step 4 of 6: 2 evaluations in a row are not above 0.3000 of step 2" in (
        caplog.text
    )
    assert len(jax.tree.leaves(whole.opt_state)) == 1 + len(jax.tree.leaves(whole.params["head"]))
    _equal(whole.ema["params"]["backbone"], whole.params["backbone"])

    steps = iter((1, 2, 3, 4))
    with stopped_at(4):
        loop.train(config, str(tmp_path / "parts"))
    resumed = loop.train(config, str(tmp_path / "parts"))
    _equal(resumed, whole)
    assert not any(steps)

    # It is finished, until more patience is given.
    caplog.clear()
    _equal(loop.train(config, str(tmp_path / "parts")), whole)
    assert "has ended early at step 4" in caplog.text
    assert "compiling" not in caplog.text
    steps, config.eval.patience = iter((5, 6)), 5
    assert int(loop.train(config, str(tmp_path / "parts")).step) == 6


def test_a_finished_run_is_extended(tmp_path, streets, quick, caplog):
    """To another length and batch size; the same commands give the same bits."""
    caplog.set_level(logging.INFO, "hrnet_jax")
    short = {"num_steps": 2, "eval.every_steps": 0, "data.eval_split": "", "log_every_steps": 1}
    longer = short | {"num_steps": 4, "batch_size": 4}
    loop.train(_config(streets, **short), str(tmp_path / "a"))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with pytest.raises(
        ValueError, match=r"(?s)batch_size: saved 2, now 4.*--config.extend to continue"
    ):
        loop.train(_config(streets, **longer), str(tmp_path / "a"))
    whole = loop.train(_config(streets, extend=True, **longer), str(tmp_path / "a"))
    assert int(whole.step) == 4
    assert "extending the run at step 2: num_steps 2 -> 4, batch_size 2 -> 4" in caplog.text
    lines = _log(tmp_path / "a")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["train/epoch"] for line in lines] == pytest.approx([0.4, 0.8, 1.6, 2.4])
    rates = [line["train/learning_rate"] for line in lines[2:]]
    np.testing.assert_allclose(rates, [0.01 * (1 - k / 4) ** 0.9 for k in (2, 3)], rtol=1e-6)

    with stopped_at(4):
        long = _config(streets, extend=True, **longer, checkpoint_every_steps=1)
        loop.train(long, str(tmp_path / "b"))
    resumed = loop.train(_config(streets, **longer), str(tmp_path / "b"))  # a plain command
    _equal(resumed, whole)
    history = load_checkpoint(tmp_path / "b").metadata["history"]
    assert history == [{"step": 2, "changed": {"num_steps": [2, 4], "batch_size": [2, 4]}}]
    loop.train(_config(streets, extend=True, **longer), str(tmp_path / "b"))
    assert "nothing to do. A larger --config.num_steps" in caplog.text

    # The data went on where they were.
    source, _ = build.open_sources(_config(streets, **short))
    before = build.make_batches(_config(streets, **short), source, 2)
    after = build.make_batches(_config(streets, **longer), source, 2, sample_offset=-4)
    expected = [next(before), next(before)]
    np.testing.assert_array_equal(
        next(after)["image"], np.concatenate([batch["image"] for batch in expected])
    )


def test_nan_stops_the_run_and_names_the_step(tmp_path, streets, quick, monkeypatch):
    def poisoned(*args, make_batches=build.make_batches, **kwargs):
        for number, batch in enumerate(make_batches(*args, **kwargs)):
            if number == 2:
                batch = {**batch, "label": np.full_like(batch["label"], 99)}  # no class
            yield batch

    def slow(store, write=CheckpointStore._complete):
        time.sleep(1)  # step 2 is still being written when the error comes
        write(store)

    monkeypatch.setattr(build, "make_batches", poisoned)
    monkeypatch.setattr(CheckpointStore, "_complete", slow)
    with pytest.raises(
        loop.NonFiniteError,
        match=r"step 3: the loss is nan.*gradient is not is head/classifier.* that of step 2 in",
    ):
        loop.train(_config(streets), str(tmp_path / "run"))
    assert load_checkpoint(tmp_path / "run").step == 2


BAD_CONFIGS = [
    ("variant", "w19", r"unknown variant 'w19'; known: .*'w18'"),
    (
        "head",
        "segmentatoin",
        r"unknown config.head='segmentatoin' \(did you mean 'segmentation'\?\)",
    ),
    ("loss.name", "jaccard", r"known: \['boundary', 'cross_entropy', 'dice', .*'ohem'\]"),
    ("loss.terms", {"ohemm": 1.0}, r"unknown config.loss.terms='ohemm' \(did you mean 'ohem'"),
    ("loss.terms", {"dice": 0.0}, r"terms=\{'dice': 0.0\} add to nothing: give one of them"),
    ("loss.terms", {"dice": -1.0}, r"config.loss.terms.dice=-1.0: must be at least 0"),
    ("loss.terms", {"dice": float("nan")}, r"config.loss.terms.dice=nan: must be at least 0"),
    ("loss.focal_gamma", -0.5, r"config.loss.focal_gamma=-0.5: must be at least 0"),
    ("loss.boundary_radius", 0, r"config.loss.boundary_radius=0: must be at least 1"),
    (
        "loss.class_weights",
        "inverse",
        r"unknown config.loss.class_weights='inverse'; known: \['auto', 'effective",
    ),
    ("loss.class_weights_beta", 1.1, r"config.loss.class_weights_beta=1.1: must be in 0..1"),
    ("data.rotation", 200.0, r"config.data.rotation=200.0: must be in 0..180"),
    ("data.photometric", 2.0, r"config.data.photometric=2.0: must be in 0..1"),
    ("model.dtype", "int8", "unknown config.model.dtype='int8'"),
    ("model.dtype", "float64", "JAX_ENABLE_X64=1"),
    ("model.init", "zero", "unknown initialization 'zero'"),
    ("batch_size", -2, "config.batch_size=-2: must be at least 1"),
    ("batch_size", 3, r"config.batch_size=3 is not divisible by 2"),
    ("data.class_mix", 1.1, "config.data.class_mix=1.1: must be in 0..1"),
    ("model.image_statistics", 2.0, "config.model.image_statistics=2.0: must be in 0..1"),
    ("optimizer.gradient_accumulation", 2, "not divisible by 4: mesh.data has 2 devices"),
    ("optimizer.ema_decay", 1.5, r"config.optimizer.ema_decay=1.5: must be in 0..1"),
    ("optimizer.learning_rate", 0.0, "not > 0"),
    ("optimizer.learning_rate", float("inf"), "not > 0 and finite"),
    ("optimizer.skip_nonfinite", -1, "config.optimizer.skip_nonfinite=-1: must be at least 0"),
    ("eval.every_epochs", float("inf"), "config.eval.every_epochs=inf"),
    ("optimizer.warmup_steps", -1, "config.optimizer.warmup_steps=-1: must be at least 0"),
    ("num_steps", -1, "config.num_steps=-1"),
    (
        "data.crop_size",
        (50, 64),
        r"\(50, 64\) is not divisible by 32.*use \(64, 64\).*allow_any_crop",
    ),
    ("data.crop_size", (16, 64), "each 32 or more"),
    ("data.name", "nuscenes", "unknown config.data.name='nuscenes'; known"),
    ("data.root", "/nowhere", "/nowhere"),
    ("data.train_split", "", "train_split is empty"),
    ("data.scale_min", -1.0, "scale_min"),
    ("loss.class_weights", (1.0, 2.0), "has 2 values, 'cityscapes' has 19 classes"),
    ("mesh.data", 16, "needs 16 devices, there are 8"),
    ("init_from", "/none", "init_from='/none'"),
    ("optimizer.multipliers", {"neck": 0.1}, "unknown part 'neck'; known: backbone, "),
    ("optimizer.clip_norm", -1.0, "config.optimizer.clip_norm=-1.0: must be at least 0"),
    ("optimizer.schedule", "cosin", r"did you mean 'cosine'"),
    ("model.frozen_norm", "affine", r"known: \['all', 'none', 'statistics'\]"),
    ("loss.function", "nowhere:loss", "'nowhere' cannot be imported"),
    ("eval.patience", -1, "config.eval.patience=-1: must be at least 0"),
]


@pytest.mark.parametrize(("key", "value", "message"), BAD_CONFIGS)
def test_bad_configs_are_refused_before_anything_compiles(
    tmp_path, streets, quick, monkeypatch, key, value, message
):
    monkeypatch.setattr(build, "make_state", None)
    monkeypatch.setattr(build, "compile_step", None)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        loop.train(_config(streets, **{key: value}), str(tmp_path))
    assert not (tmp_path / "log.jsonl").exists()


def test_mixing_needs_images_with_classes_and_another_one():
    config = common.get_config()
    config.update_from_flattened_dict({"data.class_mix": 0.5, "batch_size": 1})
    with pytest.raises(ValueError, match="batch_size=1: set it to 2 or more"):
        check_config(config)
    config = imagenet.get_config()
    config.data.class_mix = 0.5
    with pytest.raises(ValueError, match=r"class_mix=0\.5 is for segmentation only"):
        task_of(config.head).mix(config, None)
    config = imagenet.get_config()
    config.data.rotation = 5.0
    with pytest.raises(ValueError, match=r"rotation=5\.0 is for segmentation only"):
        task_of(config.head).mix(config, None)


def test_losses_that_cannot_be_meant_are_refused():
    config = imagenet.get_config()
    config.loss.terms.dice = 1.0
    with pytest.raises(ValueError, match=r"loss.terms='dice'; known: \['cross_entropy'\]"):
        check_config(config)
    config = common.get_config()
    config.loss.name, config.loss.label_smoothing = "dice", 0.1
    with pytest.raises(ValueError, match=r"label_smoothing=0\.1 is for cross_entropy and ohem"):
        check_config(config)
    config.loss.terms = {"dice": 1.0, "ohem": 0.5}
    check_config(config)
    config.loss.function = "mine:loss"
    with pytest.raises(ValueError, match=r"'mine:loss' and config.loss.terms=.* are both set"):
        check_config(config)
    config.loss.function = ""
    config.head, config.loss.main_weight, config.loss.aux_weight = "ocr", 0.0, 0.0
    with pytest.raises(ValueError, match="are both 0: nothing would be learned"):
        check_config(config)


def test_a_folder_in_use_is_refused(tmp_path, streets, quick):
    with (
        run_lock.locked(str(tmp_path)),
        pytest.raises(ValueError, match=r"is in use by process \d+"),
    ):
        loop.train(_config(streets), str(tmp_path))


def test_fake_data_is_written_once_and_recorded_as_what_it_is(tmp_path):
    config = fake_data.get_config("runlocal")
    config.data.crop_size = (32, 64)
    resolved = build.with_fake_data(config, str(tmp_path))
    assert (config.data.name, resolved.data.name) == ("fake", "cityscapes")
    train, val = build.open_sources(resolved)
    assert (len(train), len(val)) == (8, 4)
    assert build.with_fake_data(resolved, str(tmp_path)) is resolved


def test_camvid_crops_need_no_special_flag():
    check_config(camvid.get_config())


def test_runs_from_before_a_key_existed_go_on(tmp_path):
    config = common.get_config().to_dict()
    now = {"classes": {"names": ["road"]}, "config": config}
    data = {k: v for k, v in config["data"].items() if k != "color_jitter"}
    before = now | {"config": config | {"data": data}}
    check_same_config(before, now, str(tmp_path))
    changed = now | {"config": config | {"data": data | {"color_jitter": 0.2}}}
    with pytest.raises(ValueError, match=r"data\.color_jitter: saved 0\.0, now 0\.2"):
        check_same_config(before, changed, str(tmp_path))
