"""A cross-validation with a tiny network: what is trained on, resumed and refused."""

import json
import logging

import numpy as np
import pytest
from PIL import Image
from tiny_run import tiny_config

from hrnet_jax.checkpoints.load import load_checkpoint
from hrnet_jax.data import open_source
from hrnet_jax.evaluation import folds, metrics, segmentation
from hrnet_jax.train import cross_validation


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """CamVid's layout: two sequences in train, and frames of one of them in val."""
    folder = tmp_path_factory.mktemp("camvid")
    rng = np.random.default_rng(0)
    train = ("0001TP_0", "0001TP_1", "0006R0_0", "0006R0_1", "0006R0_2")
    for split, name in [*(("train", name) for name in train), ("val", "0006R0_7")]:
        ids = rng.integers(0, 11, (4, 8), np.uint8).repeat(8, 0).repeat(8, 1)
        ids[:, :8] = 11 if name == "0001TP_0" else 3
        for kind, pixels in (("", ids[..., None] * np.array([20, 11, 5])), ("annot", ids)):
            path = folder / f"{split}{kind}" / f"{name}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


def _config(root, **overrides):
    values = {
        "num_steps": 2,
        "log_every_steps": 1,
        "data.name": "camvid",
        "loss.class_weights": None,
        "eval.batch_size": 1,
    }
    return tiny_config(root, **(values | overrides))


def _plan(root, workdir, overrides=None, **options):
    return cross_validation.make_plan(_config(root, **(overrides or {})), str(workdir), **options)


def _trained_on(plan, name, seed):
    config = plan.config_of(name, seed)
    assert (config.data.eval_split, config.seed) == ("", seed)
    data = config.data
    return open_source(data.name, root=data.root, split=data.train_split).ids


def test_folds_by_hand(tmp_path, root, quick):
    plan = _plan(root, tmp_path)
    assert {name: source.ids for name, source in plan.held_out.items()} == {
        "0001TP": ("0001TP_0", "0001TP_1"), "0006R0": ("0006R0_0", "0006R0_1", "0006R0_2"),
    }  # fmt: skip
    assert _trained_on(plan, "0001TP", 3) == plan.held_out["0006R0"].ids
    assert _trained_on(plan, "0006R0", 4) == plan.held_out["0001TP"].ids


def test_a_fold_is_trained_and_evaluated(tmp_path, root, quick, monkeypatch):
    measured, measure = [], cross_validation.precise_bn.measure

    def noted(model, variables, source, **options):
        measured.append(source.ids)
        return measure(model, variables, source, **options)

    monkeypatch.setattr(cross_validation.precise_bn, "measure", noted)
    monkeypatch.setattr(cross_validation, "_STATISTICS_BATCH", 2)
    plan = _plan(root, tmp_path, names=("0001TP",), seeds=(5,), precise_bn=True)
    counts = cross_validation.run(plan)["0001TP"][0]
    assert load_checkpoint(tmp_path / "0001TP_seed5").step == 2
    # Nothing is measured on what is held out.
    assert measured == [("0006R0_0", "0006R0_1", "0006R0_2")]
    # Every labeled pixel of the held-out images counts once, by its class.
    labels = [plan.held_out["0001TP"].read(k)[1] for k in range(2)]
    truth = [np.bincount(label.ravel(), minlength=256)[:11] for label in labels]
    assert truth[0].sum() == 32 * 56
    np.testing.assert_array_equal(counts[:, 1], truth)
    np.testing.assert_array_equal(counts[:, 2].sum(-1), counts[:, 1].sum(-1))


@pytest.fixture
def trained(monkeypatch):
    """The trainings that would have been run: (name, seed). All pixels become road or car."""
    calls = []

    def run_fold(plan, name, seed, make_watch):
        calls.append((name, seed))
        source = plan.held_out[name]
        confusion = np.zeros((len(source), 11, 11), np.int64)
        confusion[:, 3, 3], confusion[:, 3, 8] = 100, 10 * seed
        counts = np.stack([metrics.counts_of(c) for c in confusion])
        file = cross_validation.counts_file(plan.workdir, name, seed)
        file.parent.mkdir()
        result = segmentation.EvalResult(confusion.sum(0), {}, source.ids, counts, 1.0)
        segmentation.save_image_metrics(file, result, source.classes.names)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(cross_validation, "_run_fold", run_fold)
    return calls


def test_what_is_done_is_not_done_again(tmp_path, root, quick, trained, caplog):
    caplog.set_level(logging.INFO, "hrnet_jax")
    plan = _plan(root, tmp_path, seeds=(1, 2))
    with pytest.raises(KeyboardInterrupt):
        cross_validation.run(plan)
    assert "training 3 of 4: 0006R0 held out (3 images), seed 1" in caplog.text
    counts = cross_validation.run(_plan(root, tmp_path, {"log_every_steps": 7}, seeds=(1, 2)))
    assert "3 of 4 trainings are done already" in caplog.text
    assert "1 of 1 trainings done" in caplog.text
    assert trained == [("0001TP", 1), ("0001TP", 2), ("0006R0", 1), ("0006R0", 2)]
    result = folds.summarize(counts, plan.class_names)
    assert result["mean_of_folds"]["by_seed"] == pytest.approx([100 / 110, 100 / 120])
    again = cross_validation.read_counts(plan.workdir, plan.held_out, (2, 1))
    difference = folds.compare(again, counts, plan.class_names)["mean_of_folds"]
    assert (difference["difference"], difference["interval"]) == (0, [0, 0])
    with pytest.raises(FileNotFoundError, match="0001TP_seed3"):
        cross_validation.read_counts(plan.workdir, plan.held_out, (3,))


def test_other_settings_are_named(tmp_path, root, quick, trained):
    cross_validation.run(_plan(root, tmp_path, names=("0001TP",)))
    assert json.loads((tmp_path / "settings.json").read_text())["config"]["seed"] is None
    message = "\n  ".join((
        "holds a cross-validation with other settings:",
        "cross_validation.precise_bn: saved False, now True",
        "optimizer.learning_rate: saved 0.01, now 0.5",
    ))  # fmt: skip
    with pytest.raises(ValueError, match=message):
        _plan(root, tmp_path, {"optimizer.learning_rate": 0.5}, precise_bn=True)
    with pytest.raises(ValueError, match=r"images\[0\]\.number: saved 5, now 6"):
        _plan(root, tmp_path, {"data.train_split": "train+val"})


@pytest.mark.parametrize(
    ("overrides", "options", "message"),
    [
        ({}, {"names": ("0006",)}, r"no image's name begins with '0006'; .*0001TP \(2\), 0006R0"),
        ({"data.train_split": "train+val"}, {"names": ("0006R0", "0006R0_7")}, "held out by"),
        ({"data.train_split": "val"}, {"names": ("0006R0",)}, "leaves no image to train on"),
        ({"data.train_split": "val"}, {}, "do not say which belong together"),
        ({"data.train_split": "train[0006R0]"}, {}, "do not say which|part already"),
        ({}, {"seeds": (1, 1)}, "each is to be given once"),
        ({"eval.patience": 2}, {}, "would choose the last step by the held-out images"),
        ({"extend": True}, {}, "not extended"),
        ({"data.name": "fake"}, {}, "no sequences to hold out"),
        ({"head": "classification", "data.name": "image_folder"}, {}, "is for segmentation"),
        ({"batch_size": 0}, {}, "config.batch_size=0: must be at least 1"),
    ],
)  # fmt: skip
def test_refuses_before_any_work(tmp_path, root, quick, overrides, options, message):
    with pytest.raises(ValueError, match=message):
        _plan(root, tmp_path / "new", overrides, **options)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("split", "image", "fold"),
    [("train", "0001TP_0.png", "0001TP"), ("val", "0006R0_7.png", "0006R0")],
)
def test_mixed_data_may_not_bring_back_what_is_held_out(tmp_path, root, quick, split, image, fold):
    entry = {"name": "camvid", "root": str(root), "split": split, "weight": 0.5}
    with pytest.raises(ValueError, match=f"/{image}, which the fold '{fold}' holds out"):
        _plan(root, tmp_path, {"data.mix": (entry,)})
    # A split without images of the group may be mixed in.
    others = {"data.mix": ({**entry, "split": "val"},)}
    assert _plan(root, tmp_path, others, names=("0001TP",)).held_out


def test_weights_that_may_know_the_images_are_named(tmp_path, root, quick, trained, caplog):
    caplog.set_level(logging.WARNING, "hrnet_jax")
    plan = _plan(root, tmp_path, {"init_from": "camvid_w18_small_v1"})
    assert "all folds learn from camvid_w18_small_v1" in caplog.text
    cross_validation.run(plan)
    with pytest.raises(ValueError, match=r"init_from: saved 'camvid_w18_small_v1', now ''"):
        _plan(root, tmp_path)
