"""bench_gpu.py on a tiny network: the whole way from the drawn images to the table."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from compiling import FAST_ENVIRONMENT

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def _run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(BENCHMARKS / "bench_gpu.py"), *arguments]
    environment = os.environ | FAST_ENVIRONMENT
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_tiny_run_without_peers(tmp_path):
    output = tmp_path / "figures.json"
    options = ("--tiny", "--works=train", "--peers=", "--dtype=float32", "--seconds=0")
    result = _run(*options, f"--output={output}")
    assert result.returncode == 0, result.stderr
    (row,) = json.loads(output.read_text())
    assert (row["variant"], row["kind"], row["batch"]) == ("w18_small_v1", "train", 2)
    ours = row["sides"]["ours"]
    assert len(ours["seconds"]) == 3
    # Weights change from turn to turn, and the losses are those of 19 classes: about log(19).
    assert len(set(ours["losses"])) == 3
    assert all(2 < loss < 4 for loss in ours["losses"])
    assert ours["images_per_second"] == pytest.approx(2 / np.median(ours["seconds"]))
    assert ours["predicted_bytes"] > 0
    assert "| w18_small_v1 | train 2x64x128 | hrnet_jax, JAX" in result.stdout


def test_no_data_library_is_imported():
    code = (
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); import gpu_jax; "
        "print({'tensorflow', 'PIL', 'tensorflow_datasets', 'hrnet_jax.data'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "set()", result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tiny", "--works=training"), "--works: unknown ['training']; known: ['train',"),
        (("--tiny", "--peers=jit"), "--peers: unknown ['jit']; known: ['eager', 'compile']"),
        ((), "JAX sees no GPU here; --tiny tries the benchmark on any device"),
    ],
)
def test_bad_arguments(arguments, message):
    result = _run(*arguments)
    assert result.returncode == 2
    assert message in result.stderr


def test_drawn_images_have_a_color_for_each_class(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from gpu_child import CLASSES, drawn_images

    images, labels = drawn_images(8, 64, 128)
    assert images.shape == (8, 64, 128, 3)
    assert images.dtype == labels.dtype == np.uint8
    assert set(np.unique(labels)) <= {*range(CLASSES), 255}
    assert (labels[:, :4] == 255).all()
    for label in np.unique(labels[labels < 255]):
        spread = images[labels == label].astype(int)
        assert (spread.max(0) - spread.min(0) < 80).all()
