"""A cross-validation with a tiny network: what is trained on, resumed and refused."""

import json
import logging

import jax
import numpy as np
import pytest
from PIL import Image
from stopping import stopped_at

from hrnet_jax.configs import common
from hrnet_jax.data import open_source
from hrnet_jax.evaluation import folds
from hrnet_jax.train import cross_validation, loop

SEQUENCES = {"0001TP": 2, "0006R0": 3}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """CamVid's layout: two sequences in train, and frames of one of them in val."""
    folder = tmp_path_factory.mktemp("camvid")
    rng = np.random.default_rng(0)
    names = [("train", f"{name}_{k}") for name, count in SEQUENCES.items() for k in range(count)]
    for split, name in [*names, ("val", "0006R0_7")]:
        ids = rng.integers(0, 11, (4, 8), np.uint8).repeat(8, 0).repeat(8, 1)
        ids[:, :8] = 11 if name == "0001TP_0" else 3
        for kind, pixels in (("", ids[..., None] * np.array([20, 11, 5])), ("annot", ids)):
            path = folder / f"{split}{kind}" / f"{name}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


def _config(root, **overrides):
    config = common.get_config()
    values = {
        "variant": "tiny",
        "batch_size": 2,
        "num_steps": 2,
        "log_every_steps": 1,
        "compilation_cache": jax.config.jax_compilation_cache_dir or "",
        "data.name": "camvid",
        "data.root": str(root),
        "data.crop_size": (32, 64),
        "loss.class_weights": None,
        "mesh.data": 1,
        "eval.batch_size": 1,
    }
    config.update_from_flattened_dict(values | overrides)
    return config


def _plan(root, workdir, overrides=None, **options):
    return cross_validation.make_plan(_config(root, **(overrides or {})), str(workdir), **options)


@pytest.fixture
def measured(monkeypatch):
    """The names of the images by which BatchNorm is measured, for each time that it is."""
    names, measure = [], cross_validation.precise_bn.measure

    def noted(model, variables, source, **options):
        names.append(source.ids)
        return measure(model, variables, source, **options)

    monkeypatch.setattr(cross_validation.precise_bn, "measure", noted)
    monkeypatch.setattr(cross_validation, "_STATISTICS_BATCH", 2)
    return names


def test_trains_without_the_held_out_images_and_continues(tmp_path, root, quick, measured, caplog):
    caplog.set_level(logging.INFO, "hrnet_jax")
    plan = _plan(root, tmp_path, precise_bn=True)
    assert {name: len(source) for name, source in plan.held_out.items()} == SEQUENCES
    for name in SEQUENCES:
        config = plan.config_of(name, 3)
        data = config.data
        trained_on = open_source(data.name, root=data.root, split=data.train_split)
        assert set(trained_on.ids) == {
            f"{other}_{k}" for other in SEQUENCES if other != name for k in range(SEQUENCES[other])
        }
        assert (data.eval_split, config.seed) == ("", 3)

    with stopped_at(2):
        cross_validation.run(plan)
    counts = cross_validation.run(plan)
    assert caplog.text.count("training 1 of 2: 0001TP held out (2 images), seed 0") == 2
    assert "2 of 2 trainings done" in caplog.text
    assert [{i.partition("_")[0] for i in ids} for ids in measured] == [{"0006R0"}, {"0001TP"}]
    assert [arrays[0].shape for arrays in counts.values()] == [(2, 3, 11), (3, 3, 11)]
    # Every labeled pixel of the held-out images counts once, by its class.
    truth = [np.bincount(plan.held_out["0001TP"].read(k)[1].ravel(), minlength=256)[:11]
             for k in range(2)]  # fmt: skip
    np.testing.assert_array_equal(counts["0001TP"][0][:, 1], truth)
    assert truth[0].sum() == 32 * 56

    # All is done: nothing is trained, and the result is the same.
    caplog.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train", None)
        again = cross_validation.run(_plan(root, tmp_path, {"log_every_steps": 7}, precise_bn=True))
    assert "2 of 2 trainings are done already" in caplog.text
    names = plan.class_names
    assert folds.summarize(again, names) == folds.summarize(counts, names)
    difference = folds.compare(again, counts, names)["mean_of_folds"]
    assert (difference["difference"], difference["interval"]) == (0, [0, 0])

    # Other settings are named; each would mix trainings that differ.
    message = "\n  ".join((
        "holds a cross-validation with other settings:",
        "cross_validation.precise_bn: saved True, now False",
        "optimizer.learning_rate: saved 0.01, now 0.5",
    ))  # fmt: skip
    with pytest.raises(ValueError, match=message):
        _plan(root, tmp_path, {"optimizer.learning_rate": 0.5})


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


def test_mixed_data_may_not_bring_back_what_is_held_out(tmp_path, root, quick):
    entry = {"name": "camvid", "root": str(root), "split": "train", "weight": 0.5}
    with pytest.raises(ValueError, match=r"0001TP_0.png, which is held out in the fold '0001TP'"):
        _plan(root, tmp_path / "new", {"data.mix": (entry,)})
    _plan(root, tmp_path / "other", {"data.mix": (entry | {"split": "val"},)})


def test_weights_that_may_know_the_images_are_named(tmp_path, root, quick, caplog):
    caplog.set_level(logging.WARNING, "hrnet_jax")
    _plan(root, tmp_path, {"init_from": "camvid_w18_small_v1"})
    assert "all folds learn from camvid_w18_small_v1" in caplog.text
    assert json.loads((tmp_path / "settings.json").read_text())["config"]["seed"] is None
    with pytest.raises(ValueError, match=r"init_from: saved 'camvid_w18_small_v1', now ''"):
        _plan(root, tmp_path)
