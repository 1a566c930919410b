import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


def run(*options):
    command = [sys.executable, "-m", "hrnet_jax.tools.show_batch", *options]
    return subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("output", "written"), [("", "batch_3.png"), ("new/batch.png", "new/batch.png")]
)
def test_writes_an_image(tmp_path, output, written):
    done = run(
        "--config=configs/fake_data.py",
        "--config.batch_size=2",
        "--config.data.crop_size=(64, 96)",
        "--config.data.rotation=20",
        "--config.data.erasing=1",
        f"--output={tmp_path / output}",
        "--step=3",
    )
    assert done.returncode == 0, done.stderr
    assert f"2 samples to {tmp_path / written}" in done.stdout
    width, height = Image.open(tmp_path / written).size
    assert width > 2 * 96
    assert height > 64


def test_names_the_missing_folder(tmp_path):
    options = ("--config=configs/camvid.py", f"--config.data.root={tmp_path}/none")
    done = run(*options, f"--output={tmp_path}")
    assert done.returncode == 2
    assert "none is not a folder" in done.stderr
    assert "Traceback" not in done.stderr
