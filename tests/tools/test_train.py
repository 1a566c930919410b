"""The command: what a user reads, and the exit code, when the command line is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/camvid.py:varaint=w18"], "(did you mean 'variant'?)"),
        (["--config=configs/camvid.py:variant=w19"], "unknown variant 'w19'; known:"),
        (["--config=configs/nope.py"], "no configuration file 'configs/nope.py'; known: configs/"),
        (["--config=configs/camvid.py", "--config.data.rot=x"], "(did you mean 'data.root'?)"),
        (["--config=configs/camvid.py", "--config.batch_size=-1"], "must be at least 1"),
    ],
)
def test_wrong_command_lines(tmp_path, arguments, message):
    result = subprocess.run(
        [sys.executable, "train.py", *arguments, f"--workdir={tmp_path / 'run'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()
