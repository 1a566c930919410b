"""An installed wheel is complete: every command works from an empty folder, without a clone."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from compiling import FAST_ENVIRONMENT
from PIL import Image

from hrnet_jax.tools.__main__ import TOOLS

ROOT = Path(__file__).parents[2]
# A recipe outside the package, built on one inside.
OWN_RECIPE = """
from hrnet_jax.configs import fake_data

def get_config(arg=None):
    config = fake_data.get_config("runlocal")
    config.num_steps = 1
    config.eval.every_steps = 1
    config.eval.num_images = 1
    config.data.crop_size = (64, 64)
    return config
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this tree, built in a copy so that no build folder is left in the tree."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "hrnet_jax", copy / "hrnet_jax", ignore=ignored)
    pip("wheel", "--no-build-isolation", f"--wheel-dir={copy}", str(copy))
    return next(copy.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """The folder of a fresh environment's commands: the wheel, and the dependencies of this one."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = folder / "lib" / version / "site-packages"
    pip("install", f"--target={folder / 'wheel'}", str(wheel))  # with its command in wheel/bin
    # The wheel comes before the packages of this environment, which may hold the clone itself.
    paths = [folder / "wheel", *dependencies()]
    (packages / "dependencies.pth").write_text("\n".join(map(str, paths)))
    command = (folder / "wheel" / "bin" / "hrnet").read_text().splitlines()[1:]
    script = folder / "bin" / "hrnet"
    script.write_text("\n".join([f"#!{folder}/bin/python", *command]))
    script.chmod(0o755)
    return folder / "bin"


def pip(command, *arguments):
    options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-index")
    subprocess.run([sys.executable, "-m", "pip", command, *options, *arguments], check=True)


def dependencies():
    """The folders of packages of this environment."""
    return [p for p in sys.path if p.endswith("-packages")] or [sysconfig.get_path("purelib")]


def run(environment, folder, *arguments, program="hrnet"):
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [environment / program, *map(str, arguments)],
        cwd=folder,
        env=clean | FAST_ENVIRONMENT | {"JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_wheel_holds_more_than_modules(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    shipped = [p for p in (ROOT / "hrnet_jax").rglob("*") if p.is_file() and p.suffix != ".pyc"]
    assert {str(p.relative_to(ROOT)) for p in shipped} <= names
    assert "hrnet_jax/py.typed" in names
    others = {name.split("/")[0] for name in names} - {"hrnet_jax"}
    assert all(name.endswith(".dist-info") for name in others), others


def test_trains_evaluates_predicts_and_exports_from_an_empty_folder(environment, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    recipe = tmp_path / "elsewhere" / "own.py"
    recipe.write_text(OWN_RECIPE)
    folder = tmp_path / "empty"
    folder.mkdir()
    picture = tmp_path / "picture.png"
    Image.new("RGB", (64, 64), "gray").save(picture)
    steps = [
        ("train", f"--config={recipe}", "--workdir=run"),
        ("evaluate", "--checkpoint=run", "--output=evaluation", "--num_overlays=1"),
        ("predict", "--checkpoint=run", "--output=predictions", picture),
        ("show-batch", "--config=fake_data:runlocal", "--output=batch"),
        ("export-model", "--checkpoint=run", "--output=model.stablehlo", "--size=64x64",
         "--batch_size=1"),
    ]  # fmt: skip
    for step in steps:
        done = run(environment, folder, *step)
        assert done.returncode == 0, f"{step}: {done.stdout}{done.stderr}"
    assert (folder / "evaluation" / "report.html").exists()
    assert (folder / "model.stablehlo").exists()
    assert (folder / "predictions" / "picture_overlay.png").exists()
    where = "import hrnet_jax; print(hrnet_jax.__file__)"
    done = run(environment, folder, "-c", where, program="python")
    assert Path(done.stdout.strip()).is_relative_to(environment.parent / "wheel")


@pytest.mark.parametrize("name", TOOLS)
def test_help_of_every_tool(environment, tmp_path, name):
    done = run(environment, tmp_path, name, "--help")
    assert done.returncode == 1, done.stderr  # absl's exit code after --help
    source = (ROOT / "hrnet_jax" / "tools" / f"{name}.py").read_text()
    assert source.split('"""')[1].splitlines()[0] in done.stdout
    assert "\n  --" in done.stdout
