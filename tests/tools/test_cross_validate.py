"""The command, on folds that are done: what it prints, writes and compares, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hrnet_jax.data import open_source
from hrnet_jax.evaluation import metrics, segmentation

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def camvid(tmp_path_factory):
    folder = tmp_path_factory.mktemp("camvid")
    for name in ("0001TP_0", "0001TP_1", "0006R0_0", "0006R0_1"):
        for kind, shape in (("train", (32, 64, 3)), ("trainannot", (32, 64))):
            (folder / kind).mkdir(exist_ok=True)
            pixels = np.arange(np.prod(shape)).reshape(shape) % 11
            Image.fromarray(pixels.astype(np.uint8)).save(folder / kind / f"{name}.png")
    return folder


def _done(camvid, workdir, seeds, correct):
    """Writes the counts of folds in which so many of 100 pixels of road are correct."""
    for name in ("0001TP", "0006R0"):
        source = open_source("camvid", root=camvid, split=f"train[{name}]")
        confusion = np.zeros((11, 11), np.int64)
        confusion[3, 3], confusion[3, 8] = correct, 100 - correct
        counts = np.stack([metrics.counts_of(confusion)] * len(source))
        result = segmentation.EvalResult(confusion, {}, source.ids, counts, 1.0)
        for seed in seeds:
            (workdir / f"{name}_seed{seed}").mkdir(parents=True)
            file = workdir / f"{name}_seed{seed}" / "per_image.csv"
            segmentation.save_image_metrics(file, result, source.classes.names)


def _run(camvid, workdir, *options):
    command = [
        sys.executable, "-m", "hrnet_jax.tools", "cross_validate",
        "--config=configs/camvid.py:recipe=complete", f"--config.data.root={camvid}",
        f"--workdir={workdir}", *options,
    ]  # fmt: skip
    return subprocess.run(
        command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=300
    )


def test_prints_and_compares_what_is_done(camvid, tmp_path):
    _done(camvid, tmp_path / "this", (1, 2), 75)
    _done(camvid, tmp_path / "other", (0,), 50)
    (tmp_path / "other" / "results.json").write_text('{"seeds": [0]}')
    done = _run(camvid, tmp_path / "this", "--seeds=1,2", f"--compare={tmp_path / 'other'}")
    assert done.returncode == 0, done.stderr
    assert "4 of 4 trainings are done already" in done.stdout
    assert "| 0001TP | 2 | 75.0 | 75.0 .. 75.0 | 75.0, 75.0 (deviation 0.0) | 75.0 |" in done.stdout
    assert "| **mean of folds** |  | 75.0 |" in done.stdout
    assert "0006R0 has no pixel of sky, building, pole, pavement" in done.stdout
    assert "| mean of folds, mIoU | 75.0 | 50.0 | +25.0 | +25.0 .. +25.0 |" in done.stdout
    results = json.loads((tmp_path / "this" / "results.json").read_text())
    assert results["seeds"] == [1, 2]
    assert results["pooled"]["miou"]["value"] == 0.75
    assert (tmp_path / "this" / "results.md").read_text() in done.stdout
    comparison = json.loads((tmp_path / "this" / "comparison.json").read_text())
    assert comparison["mean_of_folds"]["interval"] == [0.25, 0.25]


def test_refuses_seeds_that_are_no_numbers(camvid, tmp_path):
    done = _run(camvid, tmp_path / "new", "--seeds=1,b")
    assert done.returncode == 2
    assert "--seeds: 'b' is no number" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "new").exists()
