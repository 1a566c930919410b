"""Checks README.md and docs/: commands run, and options, keys, paths and links exist.

python docs/check.py                     everything that needs no run, and the counts; seconds
python docs/check.py --run [PAGE ...]    runs every shell and Python block, on small data; minutes

A block is run unless the line before it is `<!-- not run: REASON -->`, where REASON starts with one
of `REASONS`. If a test does the same on a small scale, REASON ends with `; tested by FILE::TEST`.
The counts are the blocks that are run, those with such a test, and the others, by reason.

Runs happen in an empty folder for each page. Names in capitals (CITYSCAPES, RUN, ...)
stand for data made here: drawn streets and a network trained for two steps. Large networks are
replaced by a small one, and trainings are cut to two steps.
"""

import argparse
import ast
import dataclasses
import functools
import os
import pathlib
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

REASONS = {
    "accelerator": "needs a GPU or TPU",
    "cloud": "needs a bucket or a cloud account",
    "fragment": "part of a program that another block completes",
    "hours": "takes long",
    "license": "needs files that may not be shipped",
    "needs-install": "needs an extra that the tests do not install",
    "network": "downloads packages",
    "other machines": "needs several machines",
    "server": "runs until it is stopped",
}
LANGUAGES = ("sh", "python")
# Config values that make a training take two steps.
SMALL = (
    "num_steps=2", "batch_size=2", "log_every_steps=1", "checkpoint_every_steps=2",
    "eval.every_steps=2", "eval.batch_size=2", "eval.num_images=2", "optimizer.warmup_steps=0",
)  # fmt: skip
CROP = "data.crop_size=(64,128)"


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block: its page, line, language, code, and why it is not run ("" if it is)."""

    page: str
    line: int
    language: str
    code: str
    reason: str

    @property
    def test(self) -> str:
        """The test that does the same, as FILE::TEST; "" if none is named."""
        return self.reason.partition("; tested by ")[2]


def counts(found: list[Block]) -> str:
    """How many of these shell and Python blocks are run, tested, or neither."""
    found = [block for block in found if block.language in LANGUAGES]
    neither = Counter(
        re.split("[,;]", block.reason)[0] for block in found if block.reason and not block.test
    )
    return (
        f"{len(found)} blocks: {sum(not b.reason for b in found)} run, "
        f"{sum(bool(b.test) for b in found)} not run but tested by a named test, "
        f"{neither.total()} neither ("
        + ", ".join(f"{number} {reason}" for reason, number in sorted(neither.items()))
        + ")"
    )


def pages() -> list[pathlib.Path]:
    """README.md and every page of docs/ that is written by hand."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def name_of(page: pathlib.Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: pathlib.Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found, lines = [], page.read_text("utf-8").splitlines()
    start, mark = None, ""
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if start is None and text.startswith("```"):
            start, language = number, text[3:].strip()
        elif start is not None and text == "```":
            code = textwrap.dedent("\n".join(lines[start : number - 1]))
            found.append(Block(name_of(page), start, language, code, mark))
            start, mark = None, ""
        elif start is None and text:
            match = re.fullmatch(r"<!-- not run: (.*) -->", text)
            mark = match[1] if match else ""
    return found


# ---- what exists


@functools.cache
def flags_of(path: pathlib.Path) -> frozenset[str]:
    """Names of the flags that a script defines or adopts, read from its source."""
    tree, names = ast.parse(path.read_text("utf-8")), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            first = node.args[0] if node.args else None
            defines = node.func.attr.startswith("DEFINE_") or node.func.attr == "add_argument"
            if defines and isinstance(first, ast.Constant):
                names.add(str(first.value).lstrip("-"))
                if node.func.attr == "DEFINE_bool":
                    names.add(f"no{first.value}")
            if node.func.attr == "define" and "config" in ast.unparse(node.func):
                names.add("config")
        if isinstance(node, ast.ImportFrom) and node.module == "hrnet_jax.tools":
            for alias in node.names:
                shared = ROOT / "hrnet_jax" / "tools" / f"{alias.name}.py"
                if shared.exists() and alias.name.endswith(("flags", "flag")):
                    names |= flags_of(shared)
    return frozenset(names | {"help"})


def script_of(words: list[str]) -> pathlib.Path | None:
    """The script that a command starts, if it is one of this repository."""
    if words[:1] == ["hrnet"] and len(words) > 1 and not words[1].startswith("-"):
        return ROOT / "hrnet_jax" / "tools" / f"{words[1].replace('-', '_')}.py"
    if words[:1] == ["python"] and words[1:2] == ["-m"] and len(words) > 2:
        path = ROOT / pathlib.Path(*words[2].split("."))
        if words[2].startswith(("hrnet_jax.", "benchmarks.")):
            return path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    if words[:1] == ["python"] and len(words) > 1 and words[1].endswith(".py"):
        path = ROOT / words[1]
        thin = words[1] in ("train.py", "evaluate.py")
        return ROOT / "hrnet_jax" / "tools" / words[1] if thin else path
    return None


@functools.cache
def known_keys() -> frozenset[str]:
    from options import keys_of

    return frozenset(key for key, _, _ in keys_of())


def commands(code: str) -> list[list[str]]:
    """The commands of a shell text as words, with what follows an assignment or `do` in front."""
    joined = re.sub(r"\\\n", " ", code)
    found = []
    for line in re.split(r"\n|;|&&|\|\|", joined):
        words = re.sub(r"\s#.*", "", line).split()
        while words and re.fullmatch(r"\w+=\S*|do|then|until|!", words[0]):
            words.pop(0)
        if words:
            found.append(words)
    return found


def prose(page: pathlib.Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"(?ms)^ *```.*?^ *```$", "", page.read_text("utf-8"))


# ---- checks without runs


def problems() -> list[str]:
    """What is wrong on the pages, a line each; empty if nothing is."""
    found = []
    for page in pages():
        name = name_of(page)
        for block in blocks(page):
            found += [f"{name}:{block.line}: {text}" for text in _of_block(block)]
        if name != "docs/options.md":
            found += [f"{name}: {text}" for text in _of_prose(page)]
        found += [f"{name}: {text}" for text in _of_links(page)]
    return found


def _of_block(block: Block) -> list[str]:
    if block.reason and not block.reason.startswith(tuple(REASONS)):
        return [f"unknown reason {block.reason!r} of a block that is not run; known: {[*REASONS]}"]
    if block.test:
        file, _, name = block.test.partition("::")
        if not (ROOT / file).exists() or f"def {name}(" not in (ROOT / file).read_text("utf-8"):
            return [f"no such test: {block.test}"]
    if block.language in ("bash", "shell", "console", "py"):
        return [f"the language of blocks is one of {LANGUAGES}, not {block.language!r}"]
    if block.language == "python":
        try:
            ast.parse(block.code)
        except SyntaxError as error:
            return [f"not Python: {error}"]
    return _of_commands(commands(block.code)) if block.language == "sh" else []


def _of_commands(lines: list[list[str]]) -> list[str]:
    found = []
    for words in lines:
        script = script_of(words)
        if script is None:
            continue
        if not script.exists():
            found.append(f"no such tool or script: {' '.join(words[:3])}")
            continue
        for word in words:
            match = re.match(r"[\"']?--([a-z_]+)((?:\.[a-z_0-9]+)*)", word)
            if match and match[1] == "config" and match[2]:
                if match[2][1:] not in known_keys():
                    found.append(f"no such key: {match[0]}")
            elif match and match[1] not in flags_of(script):
                found.append(f"{script.name} has no option --{match[1]}")
    return found


def _all_flags() -> set[str]:
    folders = (ROOT / "hrnet_jax" / "tools", ROOT / "benchmarks", ROOT / "docs")
    scripts = [path for folder in folders for path in folder.glob("*.py")]
    scripts.append(ROOT / "hrnet_jax" / "data" / "synthetic" / "__main__.py")
    return set().union(*map(flags_of, scripts))


# Options of other programs that the pages mention: mpirun, srun, gcloud, tfds, tensorboard, Beam.
FOREIGN = {
    "bind-to", "mca", "gpus-per-node", "signal", "worker", "logdir", "beam_pipeline_options",
    "config", "manual_dir", "data_dir", "run",
}  # fmt: skip
GROUPS = ("data", "model", "optimizer", "loss", "mesh", "eval")
# Not keys, though they look like keys.
ATTRIBUTES = {"model.apply", "model.init"}


def _of_prose(page: pathlib.Path) -> list[str]:
    found, text = [], prose(page)
    flags = _all_flags() | FOREIGN
    for span in re.findall(r"`([^`\n]+)`", re.sub(r"\s*\n\s*", " ", text)):
        for group, keys in re.findall(r"(?<![\w-])--(\w[\w-]*)((?:\.[a-z_0-9]+)*)", span):
            if group == "config" and keys:
                if keys[1:] not in known_keys():
                    found.append(f"no such key: --config{keys}")
            elif group not in flags and group.removeprefix("no") not in flags:
                found.append(f"no such option: --{group}")
        dotted = rf"(?<![\w./])((?:{'|'.join(GROUPS)})\.[a-z_]+)(?![\w.(])"
        for key in re.findall(dotted, span):
            section = any(known.startswith(f"{key}.") for known in known_keys())
            if not section and key not in known_keys() | ATTRIBUTES:
                found.append(f"no such key: {key}")
        for path in re.findall(
            r"(?<![\w/.-])((?:tests|hrnet_jax|benchmarks|configs|docs|notebooks)/[\w/.-]+\w)", span
        ):
            if not (ROOT / path).exists():
                found.append(f"no such file: {path}")
    extras = _extras()
    for names in re.findall(r"'\.\[([\w,]+)\]'", page.read_text("utf-8")):
        found += [f"no such extra: {extra}" for extra in names.split(",") if extra not in extras]
    return found


def _extras() -> set[str]:
    import tomllib

    text = (ROOT / "pyproject.toml").read_text("utf-8")
    return set(tomllib.loads(text)["project"]["optional-dependencies"])


def anchors(page: pathlib.Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"(?m)^#+ (.*)$", prose(page))
    plain = (re.sub(r"[`*]|\[|\]\([^)]*\)", "", heading).lower() for heading in headings)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", text).strip()) for text in plain}


def _of_links(page: pathlib.Path) -> list[str]:
    found = []
    for link in re.findall(r"\]\(\s*([^)\s]+)\)", prose(page)):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            found.append(f"dead link: {link}")
        elif anchor and anchor not in anchors(target):
            found.append(f"no such heading: {link}")
    return found


# ---- runs


def prepare(folder: pathlib.Path) -> dict[str, str]:
    """Data that the names in capitals stand for; and `python` and `hrnet`, which come first on the
    path: this interpreter, with trainings cut to two steps."""
    import numpy as np
    from PIL import Image

    from hrnet_jax.data.synthetic.write import write_cityscapes

    streets = folder / "cityscapes"
    write_cityscapes(str(streets), {"train": 8, "val": 2}, size=(128, 256), seed=0, progress=False)
    for kind in ("leftImg8bit", "gtFine"):
        os.symlink(streets / kind / "val", streets / kind / "test")
    images = sorted((streets / "leftImg8bit" / "val").rglob("*.png"))
    rng = np.random.default_rng(0)

    def save(path: pathlib.Path, array: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)

    for split, count in (("train", 4), ("val", 2)):
        for i in range(count):
            image = rng.integers(0, 256, (96, 128, 3), np.uint8)
            save(folder / "camvid" / split / f"{i}.png", image)
            save(folder / "camvid" / f"{split}annot" / f"{i}.png", image[..., 0] % 11)
            save(folder / "own" / "images" / split / f"{i}.png", image)
            save(folder / "own" / "labels" / split / f"{i}.png", image[..., 0] % 2)
            for name in ("first", "second"):
                save(folder / "imagenet" / split / name / f"{i}.JPEG", image)
    (folder / "own" / "classes.json").write_text('{"names": ["background", "crack"]}')
    for split in ("", "annot"):
        os.symlink(folder / "camvid" / f"val{split}", folder / "camvid" / f"test{split}")
    pictures = folder / "images"
    pictures.mkdir()
    for image in images:
        os.symlink(image, pictures / image.name)
    programs = folder / "bin"
    programs.mkdir()
    # Each key is added where the command does not have it.
    added = "".join(
        f'    case "$*" in *--config.{value.partition("=")[0]}=*) ;; '
        f"*) set -- \"$@\" '--config.{value}';; esac\n"
        for value in SMALL
    )
    for name, start in (("python", ""), ("hrnet", "-m hrnet_jax.tools ")):
        path = programs / name
        path.write_text(
            f'#!/bin/sh\ncase "$*" in\n  train*|*hrnet_jax.tools.train*)\n'
            f'    case "$*" in *imagenet*) ;; *) set -- "$@" \'--config.{CROP}\';; esac\n'
            f'{added}  ;;\nesac\nexec {sys.executable} {start}"$@"\n'
        )
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    names = {
        "CITYSCAPES": str(streets), "CAMVID": str(folder / "camvid"), "ROOT": str(folder / "own"),
        "IMAGENET": str(folder / "imagenet"), "IMAGES": str(pictures), "RUN": str(folder / "run"),
        "IMAGENET_WEIGHTS": "camvid_w18_small_v1",
    }  # fmt: skip
    return names | {"street.png": str(images[0]), "PATH": str(programs)}


def small(code: str, names: dict[str, str]) -> str:
    """The code with data in place of names, and a small network in place of large ones."""
    for name in ("IMAGENET_WEIGHTS", "CITYSCAPES", "CAMVID", "IMAGENET", "IMAGES", "ROOT", "RUN"):
        code = re.sub(rf"(?<![\w/]){name}(?![\w/])", names[name], code)
    code = re.sub(r"variant=w\d+\b(?!_small)", "variant=w18_small_v1", code)
    code = re.sub(r"(configs/cityscapes\.py)(?!:)", r"\1:variant=w18_small_v1", code)
    # Each process's exit code counts.
    return code.replace("done; wait", "done; for job in $(jobs -p); do wait $job; done")


def fill(folder: pathlib.Path, names: dict[str, str]) -> None:
    """Puts images into the empty folders that a page has made for the reader's own."""
    for kind in ("images", "labels"):
        for split in (folder / "mydata" / kind).glob("*"):
            if not any(split.iterdir()):
                shutil.copytree(
                    pathlib.Path(names["ROOT"], kind, split.name), split, dirs_exist_ok=True
                )


def run_page(page: str, runnable: list[Block], folder: pathlib.Path, names: dict) -> list[str]:
    """Runs the blocks of a page in `folder`, shell first; what failed and how its output ends."""
    environment = os.environ | {
        "PATH": f"{names['PATH']}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    folder.mkdir()
    for name in ("train.py", "evaluate.py", "configs", "benchmarks", "docs"):
        os.symlink(ROOT / name, folder / name)
    os.symlink(names["street.png"], folder / "street.png")
    failures = []

    def run(command: list[str], block: Block) -> None:
        started = time.monotonic()
        done = subprocess.run(
            command, cwd=folder, env=environment, text=True, timeout=900,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        seconds = time.monotonic() - started
        verdict = "ok" if done.returncode == 0 else f"FAILED ({done.returncode})"
        print(f"{page}:{block.line}: {verdict}, {seconds:.0f} s", flush=True)
        if done.returncode:
            failures.append(
                f"{page}:{block.line}: exit code {done.returncode}\n{done.stdout[-3000:]}"
            )

    for block in runnable:
        if block.language == "sh":
            run(["bash", "-euo", "pipefail", "-c", small(block.code, names)], block)
            fill(folder, names)
    python = [block for block in runnable if block.language == "python"]
    if python:
        # One process, since importing takes longer than the blocks; a traceback names the line.
        program = ["namespace = {'__name__': 'docs'}"]
        for block in python:
            code, where = small(block.code, names), f"{page}, line {block.line}"
            program.append(f"exec(compile({code!r}, {where!r}, 'exec'), namespace)")
        run(["python", "-c", "\n".join(program)], python[0])
    return failures


def run(selected: list[str]) -> int:
    """Runs the blocks of the selected pages (all if empty); the number of failures."""
    if unknown := set(selected) - {name_of(page) for page in pages()}:
        raise SystemExit(f"no such pages: {sorted(unknown)}; e.g. docs/train.md, README.md")
    todo: dict[str, list[Block]] = {}
    for page in pages():
        if selected and name_of(page) not in selected:
            continue
        for block in blocks(page):
            if block.language in LANGUAGES and not block.reason:
                todo.setdefault(block.page, []).append(block)
    failures = []
    with tempfile.TemporaryDirectory(prefix="docs_check_") as temporary:
        folder = pathlib.Path(temporary)
        names = prepare(folder)
        fixture = Block("the run behind RUN", 0, "sh", (
            "hrnet train --config=configs/cityscapes.py:variant=w18_small_v1"
            " --config.data.root=CITYSCAPES --workdir=RUN"
        ), "")  # fmt: skip
        failures += run_page(fixture.page, [fixture], folder / "fixture", names)
        for number, (page, runnable) in enumerate(todo.items()):
            failures += run_page(page, runnable, folder / f"page_{number}", names)
    print(f"{sum(map(len, todo.values()))} blocks run on {len(todo)} pages")
    for failure in failures:
        print(f"\n{failure}", file=sys.stderr)
    return len(failures)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", action="store_true", help="Run the blocks.")
    parser.add_argument("pages", nargs="*", help="Pages to run, e.g. docs/train.md; default: all.")
    arguments = parser.parse_args()
    found = problems()
    print("\n".join(found) if found else "no dead option, key, path or link", flush=True)
    print(counts([block for page in pages() for block in blocks(page)]), flush=True)
    failed = run(arguments.pages) if arguments.run else 0
    return 1 if found or failed else 0


if __name__ == "__main__":
    sys.exit(main())
