"""docs/architecture.md lists every module of the package with one line, and no other."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def listed() -> dict[str, str]:
    """path -> line of text, from the tree of the page."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    tree = text.partition("```\nhrnet_jax/\n")[2].partition("```")[0]
    found, folders = {}, []
    for line in tree.splitlines():
        indent, name, about = re.fullmatch(r"( *)(\S+) +(.+)", line).groups()
        depth = len(indent) // 2 - 1
        folders = [*folders[:depth], name]
        path = "".join(folders)
        assert path not in found, path
        found[path] = about
    return found


def test_every_module_has_its_line():
    package = ROOT / "hrnet_jax"
    modules = {str(p.relative_to(package)) for p in package.rglob("*.py")}
    modules = {path for path in modules if not path.endswith("__init__.py")}
    folders = {f"{p.relative_to(package)}/" for p in package.rglob("*") if p.is_dir()}
    folders = {path for path in folders if "__pycache__" not in path}
    tree = listed()
    assert set(tree) - modules - folders == set()
    assert (modules | folders) - set(tree) == set()
    assert all(len(about.split()) >= 1 for about in tree.values())


def test_no_module_lies_outside_the_rooms():
    package = ROOT / "hrnet_jax"
    assert {p.name for p in package.glob("*.py")} == {"__init__.py", "losses.py"}


def test_quick_tests_touch_every_room():
    lines = (ROOT / "tests" / "quick.txt").read_text().splitlines()
    quick = [line for line in lines if not line.startswith("#")]
    assert [path for path in quick if not (ROOT / path.split("::")[0]).exists()] == []
    rooms = {p.name for p in (ROOT / "tests").iterdir() if (ROOT / "hrnet_jax" / p.name).is_dir()}
    assert rooms - {path.split("/")[1] for path in quick} == set()
