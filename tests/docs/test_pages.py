"""README and docs/: options, keys, paths, links and marks are those of the code."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def check():
    spec = importlib.util.spec_from_file_location("docs_check", DOCS / "check.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    sys.path.insert(0, str(DOCS))
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(DOCS))


def test_options_keys_paths_and_links_exist(check):
    assert check.problems() == []


def test_every_page_of_options_is_up_to_date():
    done = subprocess.run(
        [sys.executable, str(DOCS / "options.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_most_blocks_are_run_and_the_others_say_why(check):
    blocks = [b for page in check.pages() for b in check.blocks(page)]
    blocks = [b for b in blocks if b.language in check.LANGUAGES]
    run = [b for b in blocks if not b.reason]
    assert len(run) > len(blocks) / 2
    assert {re.split("[,;]", b.reason)[0] for b in blocks if b.reason} <= set(check.REASONS)


def test_counts_by_hand_and_tests_that_do_not_exist(check):
    block = lambda reason: check.Block("page.md", 1, "sh", "true", reason)  # noqa: E731
    test = "tested by tests/docs/test_pages.py"
    blocks = [block(""), block(f"license, x; {test}::check"), block("hours"), block("hours, y")]
    assert check.counts(blocks) == (
        "4 blocks: 1 run, 1 not run but tested by a named test, 2 neither (2 hours)"
    )
    assert check._of_block(blocks[1]) == []
    wrong = block(f"license; {test}::missing")
    assert check._of_block(wrong) == ["no such test: tests/docs/test_pages.py::missing"]


@pytest.mark.parametrize("variant", ["w18_small_v1", "w18_small_v2"])
def test_the_table_of_models_is_what_the_script_counts(variant):
    code = f"import sys; sys.path.insert(0, {str(DOCS)!r}); import model_table; "
    code += f"print(*model_table.count({variant!r}, 'segmentation', (512, 1024)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    parameters, macs = map(int, done.stdout.split())
    row = f"| `{variant}` | {parameters:,} | {macs / 1e9:.1f} |"
    assert row in (DOCS.parent / "README.md").read_text("utf-8")


def test_the_picture_of_the_architecture_is_that_of_the_table_of_variants(check):
    import architecture_picture  # check has put docs/ on the path

    assert architecture_picture.FILE.read_text("utf-8") == architecture_picture.draw()


def page(check, tmp_path, monkeypatch, text):
    """The problems of docs/ with one page that has this text."""
    path = DOCS / "new.md"
    monkeypatch.setattr(check, "pages", lambda: [path])
    monkeypatch.setattr(Path, "read_text", _replaced(path, text))
    return check.problems()


def _replaced(path, text):
    original = Path.read_text
    return lambda self, *args, **kwargs: text if self == path else original(self, *args, **kwargs)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("```sh\nhrnet train --config.data.rot=A\n```", "no such key: --config.data.rot"),
        ("```sh\nhrnet predict --chekpoint=A\n```", "predict.py has no option --chekpoint"),
        ("```sh\nhrnet pedict\n```", "no such tool or script: hrnet pedict"),
        ("```sh\nX=1 python train.py \\\n  --workdr=A\n```", "train.py has no option --workdr"),
        ("Use `--flp`.", "no such option: --flp"),
        ("Set `optimizer.accumulatee=2`.", "no such key: optimizer.accumulatee"),
        ("See `hrnet_jax/utils.py`.", "no such file: hrnet_jax/utils.py"),
        ("pip install '.[gpu]'", "no such extra: gpu"),
        ("[a](nowhere.md)", "dead link: nowhere.md"),
        ("[a](faq.md#nothing)", "no such heading: faq.md#nothing"),
        ("<!-- not run: lazy -->\n```sh\nls\n```", "unknown reason 'lazy'"),
        ("```python\nx = (\n```", "not Python"),
        ("```bash\nls\n```", "the language of blocks"),
    ],
)
def test_a_wrong_name_is_found(check, tmp_path, monkeypatch, text, problem):
    found = page(check, tmp_path, monkeypatch, text)
    assert len(found) == 1
    assert problem in found[0]


def test_a_mark_belongs_to_the_next_block_alone(check, tmp_path, monkeypatch):
    text = "<!-- not run: hours -->\n```sh\nls\n```\n\n1. item\n\n    ```sh\n    ls -l\n    ```\n"
    path = tmp_path / "docs" / "page.md"
    path.parent.mkdir()
    path.write_text(text)
    monkeypatch.setattr(check, "ROOT", tmp_path)
    first, second = check.blocks(path)
    assert (first.reason, first.code) == ("hours", "ls")
    assert (second.reason, second.code, second.line) == ("", "ls -l", 8)


def test_placeholders_become_small_data(check):
    names = {
        name: f"/d/{name.lower()}"
        for name in ("CITYSCAPES", "CAMVID", "ROOT", "IMAGENET", "IMAGES", "RUN")
    } | {"IMAGENET_WEIGHTS": "camvid_w18_small_v1"}
    code = (
        "hrnet train --config=configs/cityscapes.py:variant=w48 --x=CITYSCAPES --y=IMAGENET_WEIGHTS"
    )
    assert check.small(code, names) == (
        "hrnet train --config=configs/cityscapes.py:variant=w18_small_v1 --x=/d/cityscapes"
        " --y=camvid_w18_small_v1"
    )
    assert check.small("--checkpoint=RUN --output=OUT", names) == "--checkpoint=/d/run --output=OUT"
