"""All configurations: arguments, the official numbers, locking."""

import importlib

import numpy as np
import pytest

from hrnet_jax.configs import common
from hrnet_jax.models import VARIANTS
from hrnet_jax.train import build
from hrnet_jax.train.config import check_config, flatten

NAMES = (
    "cityscapes", "camvid", "ade20k", "mapillary", "bdd100k", "imagenet", "demo", "fake_data",
    "finetune", "few_images", "thin_classes",
)  # fmt: skip


def _get(name, arg=None):
    return importlib.import_module(f"hrnet_jax.configs.{name}").get_config(arg)


@pytest.mark.parametrize("name", NAMES)
def test_every_config_takes_variant_and_runlocal(name):
    full = _get(name)
    check_config(full)
    for variant in VARIANTS:
        config = _get(name, f"variant={variant},runlocal")
        assert config.variant == variant
        check_config(config)
        pixels = config.data.crop_size[0] * config.data.crop_size[1]
        assert config.num_steps * config.batch_size * pixels <= 100 * 128 * 256
    assert set(flatten(full.to_dict())) == set(flatten(common.get_config().to_dict()))
    with pytest.raises(AttributeError, match=r"Did you mean .batch_size."):
        full.bach_size = 3


def test_official_cityscapes_recipe():
    config = _get("cityscapes")
    assert (config.variant, config.batch_size, config.num_epochs) == ("w48", 12, 484)
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.momentum) == (0.01, 0.9)
    assert (optimizer.weight_decay, optimizer.poly_power) == (5e-4, 0.9)
    data = config.data
    assert (data.crop_size, data.flip) == ((512, 1024), True)
    assert (data.scale_min, data.scale_max, data.scale_step) == (0.5, 2.1, 0.1)
    weights = config.loss.class_weights
    assert (len(weights), weights[0], weights[-1]) == (19, 0.8373, 1.0507)
    assert sum(weights) == pytest.approx(19.0, abs=1e-3)


def test_scratch_differs_as_documented():
    config = _get("cityscapes", "variant=w18,scratch")
    assert (config.variant, config.model.init) == ("w18", "kaiming")
    assert config.optimizer.warmup_steps > 0
    assert config.optimizer.ema_decay > 0


@pytest.mark.parametrize(
    ("arg", "message"),
    [
        (
            "varaint=w48",
            r"'varaint' \(did you mean 'variant'\?\); known: "
            r"\['holdout', 'recipe', 'runlocal', 'variant'\]",
        ),
        ("variant=w47", "unknown variant 'w47'"),
        ("variant", "needs a value"),
        ("runlocal=1", "is a switch"),
        ("recipe=best", r"'best'; known: \['complete', 'constant', 'decay', 'official'\]"),
        ("holdout=[a]", "cannot hold out"),
    ],
)
def test_bad_arguments(arg, message):
    with pytest.raises(ValueError, match=message):
        _get("camvid", arg)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("constant", [0.002, 0.002, 0.002]),  # keeps its learning rate
        ("decay", [0.0005, 0.00025, 0.000001]),
        ("complete", [0.002, 0.001, 0.000004]),  # keeps it for half of the run
    ],
)
def test_camvid_recipes(recipe, expected):
    config = _get("camvid", f"recipe={recipe}")
    check_config(config)
    # Pixels of each class in the 367 training frames.
    pixels = np.array(
        [10682767, 14750079, 623349, 20076880, 2845085, 6166762, 743859, 714595, 3719877, 405385,
         184967]
    )  # fmt: skip
    weights = pixels**-0.25
    weights *= pixels.sum() / (weights * pixels).sum()
    np.testing.assert_allclose(config.loss.class_weights, weights, atol=0.005)
    schedule, _ = build.make_optimizer(config, 1000, 92)
    rates = [float(schedule(step)) for step in (500, 750, 999)]
    assert rates == pytest.approx(expected, rel=1e-3)


def test_a_sequence_of_camvid_is_held_out():
    data = _get("camvid", "recipe=complete,holdout=0006R0").data
    assert (data.train_split, data.eval_split) == ("train[-0006R0]", "train[0006R0]")


def test_a_held_rate_is_of_one_schedule():
    config = _get("camvid", "recipe=complete")
    config.optimizer.schedule = "cosine"
    with pytest.raises(ValueError, match=r"hold_fraction=0.5 is for schedule='poly'.*'cosine'"):
        check_config(config)


@pytest.mark.parametrize(
    ("name", "dataset", "batch", "steps", "crop", "rate", "decay"),
    [
        ("ade20k", "ade20k", 16, 160_000, (512, 512), 0.01, 5e-4),
        ("bdd100k", "bdd100k", 16, 80_000, (512, 1024), 0.01, 5e-4),
        ("mapillary", "mapillary_vistas_v1.2", 16, 0, (1024, 1024), 0.005, 1e-4),
    ],
)
def test_recipes_of_the_literature(name, dataset, batch, steps, crop, rate, decay):
    config = _get(name)
    assert (config.data.name, config.batch_size, config.num_steps) == (dataset, batch, steps)
    assert (config.data.crop_size, config.loss.class_weights) == (crop, None)
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.weight_decay) == (rate, decay)


def test_versions_of_mapillary():
    assert _get("mapillary", "version=2.0").data.name == "mapillary_vistas_v2.0"
    with pytest.raises(ValueError, match=r"unknown version '3' .*known: \('1.2', '2.0'\)"):
        _get("mapillary", "version=3")


def test_official_imagenet_recipe():
    config = _get("imagenet")
    assert (config.head, config.batch_size, config.num_epochs) == ("classification", 256, 100)
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.momentum, optimizer.nesterov) == (0.1, 0.9, True)
    assert (optimizer.weight_decay, optimizer.schedule) == (1e-4, "multistep")
    assert (optimizer.milestones, optimizer.gamma) == ((30, 60, 90), 0.1)
    data = config.data
    assert (data.crop_size, data.flip, data.eval_short_side) == ((224, 224), True, 256)
    assert (data.area_min, data.aspect_max) == (0.08, 4 / 3)
