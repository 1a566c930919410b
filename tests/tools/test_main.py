"""The command `hrnet` and the flag --config."""

import subprocess
import sys
from pathlib import Path

import pytest

from hrnet_jax.tools import __main__ as command
from hrnet_jax.tools import config_flag

TOOLS = Path(command.__file__).parent


def test_every_tool_is_a_command():
    tools = {p.stem for p in TOOLS.glob("[!_]*.py") if "script.run(" in p.read_text()}
    assert tools - {"script"} == set(command.TOOLS)


def test_usage_has_a_line_for_each_tool():
    lines = command.usage().partition("Tools:\n")[2].splitlines()
    assert [line.split()[0] for line in lines] == list(command.TOOLS)
    assert all(len(line.split()) > 3 for line in lines)


def test_help_imports_nothing_heavy():
    program = (
        "import sys; from hrnet_jax.tools.__main__ import usage; usage();"
        " print({'jax', 'tensorflow', 'flax', 'numpy'} & {*sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("arguments", "code", "out", "err"),
    [
        ([], 2, "Tools:", ""),
        (["--help"], 0, "Tools:", ""),
        (["--version"], 0, ".", ""),
        (
            ["evalute"],
            2,
            "",
            "unknown tool 'evalute' (did you mean 'evaluate'?); known: inspect_data",
        ),
    ],
)
def test_without_a_tool(monkeypatch, capsys, arguments, code, out, err):
    monkeypatch.setattr(sys, "argv", ["hrnet", *arguments])
    assert command.main() == code
    printed = capsys.readouterr()
    assert out in printed.out
    assert err in printed.err


@pytest.mark.parametrize("name", ["camvid", "camvid.py", "configs/camvid.py", "configs/camvid"])
def test_finds_shipped_recipes_from_any_folder(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    shipped = str(config_flag.RECIPES / "camvid.py")
    assert config_flag.find(name) == shipped
    assert config_flag.find(f"{name}:variant=w18,runlocal") == f"{shipped}:variant=w18,runlocal"


def test_a_file_comes_before_a_shipped_recipe(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "camvid.py").touch()
    (tmp_path / "demo").mkdir()  # a folder is no recipe
    assert config_flag.find("configs/camvid.py:runlocal") == "configs/camvid.py:runlocal"
    assert config_flag.find("demo") == str(config_flag.RECIPES / "demo.py")


@pytest.mark.parametrize("name", ["nope", "configs/nope.py", "other/camvid.py", "", "__init__"])
def test_names_the_recipes_there_are(name):
    with pytest.raises(ValueError, match=r"no configuration file '.*known: configs/ade20k\.py, "):
        config_flag.find(name)
