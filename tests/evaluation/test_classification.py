"""Top-1 and top-5, and a whole run: train, evaluate, start segmentation from it."""

import dataclasses
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from hrnet_jax.checkpoints.load import load_checkpoint
from hrnet_jax.configs import common, imagenet
from hrnet_jax.data import open_images
from hrnet_jax.evaluation import classification
from hrnet_jax.runtime import sharding
from hrnet_jax.train import build, loop, tasks

COLORS = {"blue": (30, 40, 220), "green": (40, 200, 30), "red": (220, 50, 40)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three classes, told apart by colour."""
    folder = tmp_path_factory.mktemp("colours")
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for name, color in COLORS.items():
            for k in range(count):
                noise = rng.integers(-30, 30, (50 + k, 44, 3))
                path = folder / split / name / f"{k}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray((noise + color).clip(0, 255).astype(np.uint8)).save(path)
    return folder


def test_ranks_by_hand():
    logits = jnp.array([[3.0, 1, 2], [3, 1, 2], [5, 5, 5], [5, 5, 5], [jnp.nan, 9, 0]])
    found = classification.ranks(logits, jnp.array([0, 1, 0, 2, 1]))
    # Ties as a stable sort has them; with a NaN nothing is right.
    assert found.tolist() == [0, 2, 0, 2, 3]


def test_figures_by_hand():
    result = classification.ClassificationResult(
        ranks=np.array([0, 4, 5, 0]),
        labels=np.array([2, 2, 0, 0]),
        ids=("a", "b", "c", "d"),
        names=("x", "y", "z"),
        seconds=1.0,
    )
    assert result.metrics(step=7, variant="w18") == {
        "top1": 0.5,
        "top5": 0.75,
        "per_class_accuracy": {"x": 0.5, "y": None, "z": 0.5},
        "num_images": 4,
        "step": 7,
        "variant": "w18",
    }


@dataclasses.dataclass(frozen=True)
class Strongest:
    """A "network" that says which channel is the strongest: blue, green, red."""

    num_classes: int = 3
    head: str = "classification"

    def apply(self, variables, images, train):
        return {"logits": images.mean((1, 2))[:, ::-1] * variables["gain"]}


@pytest.mark.parametrize(("devices", "batch_size"), [(1, 4), (8, 3), (2, 9)])
def test_every_image_counts_once_on_any_mesh(root, devices, batch_size):
    source = open_images("image_folder", root=root, split="val")
    source = source.take([0, 1, 3, 4, 6, 7, 8])
    options = {"crop_size": (32, 32), "short_side": 40, "batch_size": batch_size}
    options |= {"mesh": sharding.make_mesh(devices), "progress": False}
    result = classification.evaluate(Strongest(), {"gain": jnp.ones(())}, source, **options)
    assert result.labels.tolist() == [0, 0, 1, 1, 2, 2, 2]
    assert (result.top1, result.ids) == (1.0, source.ids)
    wrong = classification.evaluate(Strongest(), {"gain": -jnp.ones(())}, source, **options)
    assert (wrong.top1, wrong.top5) == (0.0, 1.0)
    with pytest.raises(ValueError, match=r"has 4 classes, 'image_folder' has 3"):
        classification.evaluate(Strongest(4), {}, source, **options)
    with pytest.raises(ValueError, match="'ocr' does not classify"):
        classification.evaluate(Strongest(head="ocr"), {}, source, **options)


def _config(root, **overrides):
    config = imagenet.get_config("runlocal")
    values = {
        "variant": "tiny",
        "batch_size": 6,
        "num_steps": 3,
        "log_every_steps": 1,
        "compilation_cache": jax.config.jax_compilation_cache_dir or "",
        "data.root": str(root),
        "data.crop_size": (32, 32),
        "data.eval_short_side": 36,
        "data.area_min": 0.5,
        "mesh.data": 2,
        "eval.every_steps": 3,
    }
    config.update_from_flattened_dict(values | overrides)
    return config


def test_trains_and_feeds_segmentation(root, tmp_path, quick, caplog):
    caplog.set_level(logging.INFO, "hrnet_jax")
    config = _config(root)
    loop.train(config, str(tmp_path))
    assert "18 images of 3 classes" in caplog.text
    assert "evaluated val after step 3: top-1 " in caplog.text
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    scores = next(line for line in lines if "eval/top1" in line)
    assert scores["eval/top5"] == 1
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint.metric == pytest.approx(scores["eval/top1"])
    assert checkpoint.metadata["classes"] == {"names": ["blue", "green", "red"]}
    evaluated = classification.evaluate(
        build.make_model(config, 3),
        checkpoint.variables,
        open_images("image_folder", root=root, split="val"),
        batch_size=config.eval.batch_size,
        crop_size=(32, 32),
        short_side=36,
        mesh=sharding.make_mesh(2),
    )
    assert evaluated.top1 == pytest.approx(scores["eval/top1"])
    start = common.get_config()
    start.update({"variant": "tiny", "init_from": str(tmp_path)})
    started = build.load_initial_variables(start, build.make_model(start, 19), ())
    for collection in ("params", "batch_stats"):
        jax.tree.map(
            np.testing.assert_array_equal,
            started[collection]["backbone"],
            checkpoint.variables[collection]["backbone"],
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.name": "cityscapes"}, r"'cityscapes' has no labels for .*'classification'; known"),
        ({"data.name": "fake"}, "'fake' has no labels"),
        ({"loss.name": "ohem"}, r"unknown config.loss.name='ohem'; known: \['cross_entropy'\]"),
        ({"optimizer.schedule": "multisteps"}, r"did you mean 'multistep'"),
        ({"head": "pose"}, r"config.head='pose' cannot be trained here; known"),
        ({"head": "ocr"}, r"'image_folder' has no labels for config.head='ocr'"),
        ({"data.area_min": 2.0}, "area_min must be"),
        ({"data.eval_short_side": 16}, r"crops of \(32, 32\) do not fit"),
        ({"data.root": "/nowhere"}, "looked for /nowhere/train"),
    ],
)
def test_bad_configs_are_refused_before_anything_compiles(
    root, tmp_path, quick, monkeypatch, changes, message
):
    monkeypatch.setattr(build, "make_state", None)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        loop.train(_config(root, **changes), str(tmp_path))


def test_splits_with_other_classes_are_refused(root, tmp_path, quick):
    for split, names in (("train", "ab"), ("val", "ac")):
        for name in names:
            path = tmp_path / split / name / "x.png"
            path.parent.mkdir(parents=True)
            Image.new("RGB", (40, 40)).save(path)
    with pytest.raises(ValueError, match=r"only the first has \['b'\], only the second \['c'\]"):
        build.open_sources(_config(tmp_path))


def test_every_class_counts_in_loss_and_accuracy(quick):
    """255 is a class of ImageNet, not a label to leave out."""
    task = tasks.task_of("classification")
    loss = build.make_loss(imagenet.get_config())
    logits = jnp.zeros((2, 300)).at[:, 255].set(9.0)
    assert float(loss(logits, jnp.array([255, 255]))) == pytest.approx(
        float(jnp.log(1 + 299 * jnp.exp(-9.0))), rel=1e-4
    )
    assert task.ignore_label == -1
    assert tasks.task_of("ocr").ignore_label == 255
