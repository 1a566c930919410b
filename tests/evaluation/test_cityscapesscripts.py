"""Our figures against the official evaluator's, on the same label-id files."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
from PIL import Image

from hrnet_jax.checkpoints.store import CheckpointStore
from hrnet_jax.configs import cityscapes as cityscapes_config
from hrnet_jax.data import open_source
from hrnet_jax.data.sources import cityscapes
from hrnet_jax.evaluation import metrics
from hrnet_jax.inference import visualize
from hrnet_jax.train import build
from hrnet_jax.train.step import TrainState

ROOT = Path(__file__).parents[2]
LABEL_IDS = np.array(cityscapes.CLASSES.label_ids)
SIZE = (64, 128)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A val split in the official layout; the labels hold every id but two classes'."""
    folder = tmp_path_factory.mktemp("cityscapes")
    rng = np.random.default_rng(0)
    ids = [i for i in range(34) if i not in (24, 31)]  # person, train
    for k, city in enumerate(("lindau", "lindau", "munster")):
        stem = f"{city}_{k:06d}_000019"
        # Coarse patches, so that a network's answers vary; and single pixels.
        label = rng.choice(ids, (8, 16)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
        label[rng.random(SIZE) < 0.2] = rng.choice(ids)
        image = rng.integers(0, 256, (8, 16, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        for kind, suffix, pixels in (
            ("leftImg8bit", "leftImg8bit", image),
            ("gtFine", "gtFine_labelIds", label),
        ):
            path = folder / kind / "val" / city / f"{stem}_{suffix}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return folder


def run_official(root, predictions, monkeypatch):
    """The official evaluator's results; it finds the files by itself."""
    monkeypatch.setenv("CITYSCAPES_RESULTS", str(predictions))
    args = official.args
    for name, value in {
        "predictionPath": None,
        "predictionWalk": None,
        "evalInstLevelScore": False,  # needs instance files
        "JSONOutput": False,
        "quiet": True,
    }.items():
        monkeypatch.setattr(args, name, value)
    truth = sorted(str(p) for p in root.glob("gtFine/val/*/*_gtFine_labelIds.png"))
    found = [official.getPrediction(args, path) for path in truth]
    return official.evaluateImgLists(found, truth, args)


def assert_agrees(figures, confusion, expected):
    whole = np.array(expected["confMatrix"])
    np.testing.assert_array_equal(confusion, whole[np.ix_(LABEL_IDS, LABEL_IDS)])
    # Nothing is predicted but the classes.
    assert whole.sum() == whole[:, LABEL_IDS].sum()
    for ours, theirs in (
        (figures["per_class_iou"], expected["classScores"]),
        (figures["per_category_iou"], expected["categoryScores"]),
    ):
        # Ignored labels and the category "void" have no score there and no entry here.
        assert {k for k, v in theirs.items() if not math.isnan(v)} <= set(ours) <= set(theirs)
        for name, value in ours.items():
            assert value == (None if math.isnan(theirs[name]) else theirs[name]), name
    assert figures["miou"] == pytest.approx(expected["averageScoreClasses"], rel=1e-12)
    assert figures["category_miou"] == pytest.approx(expected["averageScoreCategories"], rel=1e-12)


def test_any_predictions(root, tmp_path, monkeypatch):
    source = open_source("cityscapes", root=root, split="val")
    rng = np.random.default_rng(1)
    confusion = np.zeros((19, 19), np.int64)
    for name, path in zip(source.ids, source.label_paths, strict=True):
        labels = cityscapes.CLASSES.lookup()[np.asarray(Image.open(path))]
        prediction = rng.choice([c for c in range(19) if c != 16], SIZE).astype(np.uint8)
        prediction = np.where((rng.random(SIZE) < 0.5) & (labels < 19), labels, prediction)
        confusion += np.asarray(metrics.confusion_matrices(labels[None], prediction[None], 19)[0])
        ids = visualize.to_label_ids(prediction, source.classes)
        visualize.save(tmp_path / f"{name}_pred_labelIds.png", ids)
    expected = run_official(root, tmp_path, monkeypatch)
    figures = metrics.summarize(confusion, source.classes)
    # Neither true nor predicted; only predicted.
    assert figures["per_class_iou"]["train"] is None
    assert figures["per_class_iou"]["person"] == 0
    assert_agrees(figures, confusion, expected)


def test_evaluation_script(root, tmp_path, monkeypatch):
    config = cityscapes_config.get_config("variant=w18_small_v1")
    config.data.root = str(root)
    config.model.init = "kaiming"
    source = open_source("cityscapes", root=root, split="val")
    model = build.make_model(config, 19)
    variables = model.init(jax.random.key(0), jnp.zeros((1, *SIZE, 3)))
    classifier = variables["params"]["head"]["classifier"]
    classifier["bias"] = jnp.zeros(19)  # so that the answers vary
    store = CheckpointStore(str(tmp_path / "run"))
    state = TrainState(jnp.int32(1), **variables, opt_state={"count": jnp.int32(1)})
    store.save(state, build.make_metadata(config, model, source))
    store.wait()
    store.close()
    done = subprocess.run(
        [
            sys.executable,
            "evaluate.py",
            f"--checkpoint={tmp_path / 'run'}",
            f"--output={tmp_path / 'out'}",
            "--save_predictions",
            "--num_overlays=0",
        ],
        cwd=ROOT,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    confusion = np.array(found["confusion_matrix"])
    assert (confusion.sum(0) > 0).sum() > 5
    expected = run_official(root, tmp_path / "out" / "predictions", monkeypatch)
    assert_agrees(metrics.summarize(confusion, source.classes), confusion, expected)
    assert found["miou"] == pytest.approx(expected["averageScoreClasses"], rel=1e-12)
    for name, iou in found["per_class_iou"].items():
        theirs = expected["classScores"][name]
        assert iou == (None if math.isnan(theirs) else theirs), name


def test_class_list_is_the_official_one():
    from cityscapesscripts.helpers import labels

    ours = cityscapes.CLASSES
    theirs = sorted(
        (x for x in labels.labels if x.trainId not in (-1, 255)), key=lambda x: x.trainId
    )
    assert [x.trainId for x in theirs] == list(range(19))
    assert ours.names == tuple(x.name for x in theirs)
    assert ours.label_ids == tuple(x.id for x in theirs)
    assert ours.colors == tuple(x.color for x in theirs)
    assert ours.categories == tuple(x.category for x in theirs)
    ignored = {x.id for x in labels.labels if x.ignoreInEval and x.id >= 0}
    assert set(ours.ignore_ids) == ignored
