"""The notebook from top to bottom, on a checkpoint made here."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import nbformat
import numpy as np
import pytest
from compiling import FAST_COMPILE
from nbclient import NotebookClient

import hrnet_jax
from hrnet_jax.checkpoints import manifest
from hrnet_jax.checkpoints.store import CheckpointStore
from hrnet_jax.data.sources.cityscapes import CLASSES
from hrnet_jax.data.synthetic import write as synthetic
from hrnet_jax.models import create_model
from hrnet_jax.train.step import TrainState

PATH = Path(__file__).parents[2] / "notebooks" / "evaluate_checkpoint.ipynb"


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(PATH, as_version=4)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run with one checkpoint of random weights, and the streets that it names."""
    root, folder = tmp_path_factory.mktemp("streets"), tmp_path_factory.mktemp("run")
    synthetic.write_cityscapes(root, {"val": 3}, size=(64, 128), progress=False)
    model = create_model("w18_small_v1")
    variables = model.init(jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32))
    data = {"name": "cityscapes", "root": str(root), "class_file": "", "eval_split": "val"}
    model_fields = {
        "variant": "w18_small_v1",
        "num_classes": 19,
        "head": "segmentation",
        "align_corners": False,
    }
    metadata = {
        "format_version": manifest.FORMAT_VERSION,
        "model": model_fields,
        "classes": CLASSES.to_json(),
        "config": {"data": data},
        "version": hrnet_jax.__version__,
    }
    store = CheckpointStore(str(folder))
    store.save(TrainState(jnp.int32(7), **variables, opt_state={"count": jnp.int32(7)}), metadata)
    store.close()
    return folder


def test_nothing_but_the_text_is_kept(notebook):
    assert [c.get("outputs", []) for c in notebook.cells if c.get("outputs")] == []
    counts = [c.execution_count for c in notebook.cells if c.cell_type == "code"]
    assert counts == [None] * len(counts)
    assert notebook.cells[1].metadata.tags == ["install"]
    nbformat.validate(notebook)


def test_runs_from_top_to_bottom(notebook, workdir, monkeypatch):
    # The kernel is a process of its own, which runs each program only a few times.
    flags = [f"--{name}={str(value).lower()}" for name, value in FAST_COMPILE.items()]
    monkeypatch.setenv("XLA_FLAGS", " ".join([os.environ.get("XLA_FLAGS", ""), *flags]).strip())
    notebook = notebook.copy()
    (parameters,) = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    parameters.source = parameters.source.replace('CHECKPOINT = ""', f'CHECKPOINT = "{workdir}"')
    parameters.source = parameters.source.replace("NUM_IMAGES = 3", "NUM_IMAGES = 2")
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": workdir}}).execute()
    outputs = [o for c in notebook.cells for o in c.get("outputs", [])]
    text = "".join(o.get("text", "") + o.get("data", {}).get("text/plain", "") for o in outputs)
    assert "w18_small_v1, step 7: 19 classes" in text
    assert "cityscapes val: 3 images" in text
    for word in ("IoU", "road", "mean"):
        assert word in text
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    # Two panels, the confusion matrix, two of confidence, the branches.
    assert len(pictures) == 6
    assert not [o for o in outputs if o.output_type == "error"]
