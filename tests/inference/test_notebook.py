"""The notebooks from top to bottom, in a small form."""

from pathlib import Path

import nbformat
import pytest
from compiling import FAST_ENVIRONMENT
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
NAMES = ("evaluate_checkpoint", "finetune")


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_but_the_text_is_kept(name):
    notebook = read(name)
    assert [c.get("outputs", []) for c in notebook.cells if c.get("outputs")] == []
    counts = [c.execution_count for c in notebook.cells if c.cell_type == "code"]
    assert counts == [None] * len(counts)
    assert notebook.cells[1].metadata.tags == ["install"]
    nbformat.validate(notebook)


def run(name, folder, monkeypatch, changes):
    """Runs a notebook in a folder with other parameters; its text on both streams, its pictures."""
    # The kernel is a process of its own, which runs each program only a few times, on one device:
    # not on the eight of the tests.
    for key, value in {**FAST_ENVIRONMENT, "JAX_NUM_CPU_DEVICES": "1"}.items():
        monkeypatch.setenv(key, value)
    notebook = read(name)
    (parameters,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    for old, new in changes.items():
        assert old in parameters.source
        parameters.source = parameters.source.replace(old, new)
    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": folder}}).execute()
    outputs = [o for c in notebook.cells for o in c.get("outputs", [])]
    assert not [o for o in outputs if o.output_type == "error"]
    text = "".join(o.get("text", "") + o.get("data", {}).get("text/plain", "") for o in outputs)
    return text, [o for o in outputs if "image/png" in o.get("data", {})]


def test_shows_the_shipped_weights_on_drawn_streets(tmp_path, monkeypatch):
    changes = {"NUM_IMAGES = 3": "NUM_IMAGES = 2"}
    text, pictures = run("evaluate_checkpoint", tmp_path, monkeypatch, changes)
    assert "w18_small_v1, step 2936: 11 classes" in text
    assert "cityscapes val: 2 images in drawn streets" in text
    for word in ("IoU", "road", "mean"):
        assert word in text
    # Two panels, the confusion matrix, two of confidence, the branches.
    assert len(pictures) == 6


def test_fine_tunes_with_progress_in_the_cell(tmp_path, monkeypatch):
    changes = {
        "NUM_STEPS = 150": "NUM_STEPS = 2",
        "(128, 256)": "(64, 128)",
        "NUM_TRAIN, NUM_VAL = 40, 8": "NUM_TRAIN, NUM_VAL = 4, 1",
    }
    text, pictures = run("finetune", tmp_path, monkeypatch, changes)
    assert "4 images to train on, 1 to evaluate on: ('sky', 'building'," in text
    for word in ("compiling: 100%", "training: 100%", "evaluating val: 100%", "loss=", "step 2 of"):
        assert word in text
    # A sample, the curves, before and after.
    assert len(pictures) == 3
    assert (tmp_path / "finetuned.safetensors").exists()
    assert (tmp_path / "finetuned_overlay.png").exists()
