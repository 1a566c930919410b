"""Curves of runs: what is read of their logs, and that a picture comes of it."""

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks import plot_runs


def _log(folder, lines):
    folder.mkdir()
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def test_a_run_in_two_parts(tmp_path, capsys):
    first = _log(
        tmp_path / "a",
        [
            {"step": 10, "train/epoch": 1.0, "train/loss": 2.0},
            {"step": 20, "train/epoch": 2.0, "train/loss": 1.5},
            {"step": 15, "eval/miou": 0.25},
        ],
    )
    second = _log(
        tmp_path / "b",
        [
            {"step": 20, "train/epoch": 1.0, "train/loss": 1.0},
            {"step": 20, "eval/miou": 0.5},
        ],
    )
    curves = plot_runs.read_run([first, second])
    np.testing.assert_allclose(curves["train/loss"], [[1, 2, 3], [2.0, 1.5, 1.0]])
    np.testing.assert_allclose(curves["eval/miou"], [[1.5, 3], [0.25, 0.5]])
    output = tmp_path / "curves.png"
    plot_runs.main([f"whole={first}+{second}", f"first={first}", f"--output={output}"])
    assert Image.open(output).size == (1210, 440)
    with pytest.raises(SystemExit):
        plot_runs.main([f"none={tmp_path}", f"--output={output}"])
    assert "holds no log.jsonl" in capsys.readouterr().err
