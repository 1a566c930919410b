import json
import re
from pathlib import Path

import pytest

from hrnet_jax.data import open_source
from hrnet_jax.data.sources import camvid, cityscapes, class_file
from hrnet_jax.data.sources.layout import Layout
from hrnet_jax.data.sources.source import Classes


@pytest.fixture
def write(tmp_path):
    """Writes a class file and returns its path."""

    def make(data):
        path = tmp_path / "c.json"
        path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())
        return path

    return make


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_of_editors(write, encoding):
    text = json.dumps({"names": ["Straße", "道路", "طريق"]}, ensure_ascii=False, indent=1)
    path = write(text.replace("\n", "\r\n").encode(encoding))
    assert class_file.read_class_file(path).names == ("Straße", "道路", "طريق")
    assert class_file.read(path).layout == Layout()


def test_not_unicode(write):
    with pytest.raises(ValueError, match=r"c.json: 'utf-8' codec can't decode"):
        class_file.read(write('{"names": ["Straße"]}'.encode("latin-1")))


def test_colors_need_colors(write):
    with pytest.raises(ValueError, match=r"c.json: .* needs the \"colors\""):
        class_file.read(write({"names": ["a"], "label_type": "colors"}))


def test_fewer_classes_of_cityscapes(write):
    path = write(
        {"names": ["road", "vehicle"], "label_ids": [7, [26, 27, 28]], "ignore_ids": "rest"}
    )
    classes = class_file.read_for(path, "cityscapes", cityscapes.CLASSES)
    assert classes == Classes(
        names=("road", "vehicle"),
        colors=((128, 64, 128), (0, 0, 142)),
        label_ids=(7, (26, 27, 28)),
        # All others of the official list; ids that no Cityscapes file has are still unknown.
        ignore_ids=tuple(i for i in range(34) if i not in (7, 26, 27, 28)),
    )
    table = classes.lookup()
    assert table[[7, 26, 28, 8, 33, 0, 255, 34]].tolist() == [0, 1, 1, 255, 255, 255, 255, 254]


def test_names_of_the_dataset_need_no_ids(write):
    path = write({"names": ["car", "road"], "ignore_ids": "rest", "colors": [[1, 1, 1], [2, 2, 2]]})
    classes = class_file.read_for(path, "cityscapes", cityscapes.CLASSES)
    assert classes.label_ids == (26, 7)
    assert classes.colors == ((1, 1, 1), (2, 2, 2))


def test_what_the_dataset_ignores_can_become_a_class(write):
    ids = [list(range(11)), 11]
    classes = class_file.read_for(
        write({"names": ["thing", "void"], "label_ids": ids}), "camvid", camvid.CLASSES
    )
    assert classes.ignore_ids == ()
    assert classes.lookup()[[0, 10, 11, 255]].tolist() == [0, 0, 1, 255]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"names": ["sky"]}, r"leaves out ids of camvid: \{'building': \[1\], .*\"rest\""),
        ({"names": ["ski"]}, r"needs label_ids, as camvid has no class 'ski'; \['sky', 'build"),
        ({"names": ["sky"], "files": {}}, "'files' is for the dataset 'folder'"),
        ({"names": ["sky"], "label_type": "colors"}, "'label_type' is for the dataset 'folder'"),
        ({"names": ["sky"], "ids": [1]}, r"unknown keys \['ids'\]"),
    ],
)
def test_refuses(write, data, message):
    with pytest.raises(ValueError, match=rf"c.json: {message}"):
        class_file.read_for(write(data), "camvid", camvid.CLASSES)


def test_opens_with_fewer_classes(camvid, write):
    path = write({"names": ["sky", "road"], "ignore_ids": "rest"})
    full = open_source("camvid", root=camvid, split="train")
    source = open_source("camvid", root=camvid, split="train", class_file=str(path))
    assert source.classes.label_ids == (0, 3)
    _, expected = full.read(0)
    _, found = source.read(0)
    assert (found[expected == 3] == 1).all()
    assert (found[expected == 0] == 0).all()
    assert set(found[(expected != 0) & (expected != 3)].tolist()) == {255}


PAGE = (Path(__file__).parents[3] / "docs" / "data.md").read_text("utf-8")
EXAMPLES = [
    *re.findall(r"^```json\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE),
    *re.findall(r"\| `(\{.*\})` \|", PAGE),
]


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples_of_the_page(write, text):
    """docs/data.md: class files, and values of the key "files"."""
    data = json.loads(text)
    found = class_file.read(write(data if "names" in data else {"names": ["a"], "files": data}))
    assert found.classes.num_classes == len(data.get("names", "a"))
    assert len(EXAMPLES) >= 17
