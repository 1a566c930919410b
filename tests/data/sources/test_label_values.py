import json

import numpy as np
import pytest
from PIL import Image

from hrnet_jax.data import open_source
from hrnet_jax.data.pipeline import audit, segmentation
from hrnet_jax.data.pipeline.augment import Augmentation
from hrnet_jax.data.pipeline.batches import BatchPlan, iterate
from hrnet_jax.data.pipeline.class_counts import class_counts
from hrnet_jax.data.pipeline.mixture import Mixture
from hrnet_jax.data.sources.files import Files
from hrnet_jax.data.sources.label_values import code_color, color_codes, to_bytes
from hrnet_jax.data.sources.source import Classes, Source
from hrnet_jax.data.tiles import prepare

COLORS = ((0, 0, 0), (200, 10, 9))


def classes(label_ids=(0, 1), **changes):
    return Classes(("no", "yes"), COLORS, label_ids, **changes)


def test_bytes_stay_as_they_are():
    label = np.array([[3, 255]], np.uint8)
    assert to_bytes(label, classes(), "a.png") is label
    assert to_bytes(label, None, "a.png") is label


def test_ids_of_16_bits_that_fit_in_a_byte():
    stored = to_bytes(np.array([[3, 255]], np.uint16), classes(), "a.png")
    assert stored.dtype == np.uint8
    assert stored.tolist() == [[3, 255]]
    large = np.array([[3, 256, 256, 9999]], np.uint16)
    for known in (classes(), None):
        with pytest.raises(ValueError, match=r"a.png holds ids .* id 256: 2 pixels; id 9999: 1 pi"):
            to_bytes(large, known, "a.png")
    # All others are ignored, as is the 255 that stands for them.
    assert to_bytes(large, classes(ignore_rest=True), "a.png").tolist() == [[3, 255, 255, 255]]
    # 255 is a class: the largest byte that is none.
    known = classes((0, 255), ignore_rest=True)
    assert to_bytes(large, known, "a.png").tolist() == [[3, 254, 254, 254]]


def test_large_ids_become_train_ids():
    known = classes((0, (300, 65535)), ignore_ids=(7,))
    stored = to_bytes(np.array([[0, 300, 65535, 7, 255]], np.uint16), known, "a.png")
    assert stored.tolist() == [[0, 1, 1, 255, 255]]
    assert stored.dtype == np.uint8
    assert known.lookup()[stored].tolist() == stored.tolist()
    # An 8-bit file of the same dataset.
    assert to_bytes(np.array([[0, 7]], np.uint8), known, "a.png").tolist() == [[0, 255]]
    with pytest.raises(ValueError, match=r"a.png holds ids .*: id 301: 1 pixels. .*ignore_ids"):
        to_bytes(np.array([[0, 301]], np.uint16), known, "a.png")
    known = classes((0, (300, 65535)), ignore_rest=True)
    assert to_bytes(np.array([[0, 301]], np.uint16), known, "a.png").tolist() == [[0, 255]]


def test_colors_become_train_ids():
    known = classes(label_type="colors", ignore_colors=((9, 9, 9),))
    label = np.array([[COLORS[1], COLORS[0], (9, 9, 9)]], np.uint8)
    assert to_bytes(label, known, "a.png").tolist() == [[1, 0, 255]]
    label = np.array([[(201, 10, 9), (1, 1, 1), (201, 10, 9)]], np.uint8)
    with pytest.raises(
        ValueError,
        match=r"color \(201, 10, 9\): 2 pixels, nearest 'yes' \(200, 10, 9\); "
        r"color \(1, 1, 1\): 1 pixels, nearest 'no' \(0, 0, 0\)\. .*ignore_colors",
    ):
        to_bytes(label, known, "a.png")
    rest = classes(label_type="colors", ignore_rest=True)
    assert to_bytes(label, rest, "a.png").tolist() == [[255, 255, 255]]


def test_many_colors_are_a_lossy_format():
    label = np.stack([np.arange(1, 21, dtype=np.uint8)] * 3, -1)[None]
    with pytest.raises(ValueError, match=r"and 12 more; so many colors come from resizing"):
        to_bytes(label, classes(label_type="colors"), "a.png")


def test_color_codes():
    codes = color_codes(np.array([[1, 2, 3], [255, 255, 255]], np.uint8))
    assert codes.tolist() == [0x030201, 0xFFFFFF]
    assert code_color(codes[0]) == (1, 2, 3)


# ---- the same labels in every form give the same everywhere

IDS = (0, 7, 9)  # of the classes, in 8-bit files; 3 is ignored
FORMS = {
    "8 bits": {"label_ids": IDS, "ignore_ids": (3,)},
    "several ids and 255": {"label_ids": (0, (7, 8), 255), "ignore_ids": (3,)},
    "16 bits": {"label_ids": (0, (300, 301), 40000), "ignore_ids": (1000,)},
    "colors": {"label_ids": (0, 1, 2), "label_type": "colors", "ignore_colors": ((9, 9, 9),)},
}
NAMES = ("no", "yes", "sky")
RGB = (*COLORS, (0, 200, 0))


def file_of(form, ids):
    """The label, given as 8-bit ids, as an image file of this form."""
    if form == "several ids and 255":
        ids = np.where((ids == 7) & (np.arange(ids.size).reshape(ids.shape) % 2 == 0), 8, ids)
        ids = np.where(ids == 9, 255, ids)
    if form == "16 bits":
        table = np.zeros(256, np.uint16)
        table[[0, 7, 9, 3]] = (0, 301, 40000, 1000)
        return Image.fromarray(table[ids])
    if form == "colors":
        table = np.zeros((256, 3), np.uint8)
        table[[0, 7, 9, 3]] = (*RGB, (9, 9, 9))
        return Image.fromarray(table[ids])
    return Image.fromarray(ids.astype(np.uint8))


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """A source with the same images and labels in each form."""
    rng = np.random.default_rng(5)
    images = [rng.integers(0, 256, (24, 40, 3), np.uint8) for _ in range(3)]
    labels = [rng.choice(np.array([*IDS, 3], np.uint8), (3, 5)).repeat(8, 0).repeat(8, 1)
              for _ in range(3)]  # fmt: skip
    found = {}
    for form, keys in FORMS.items():
        folder = tmp_path_factory.mktemp("form")
        paths = [], []
        for k, pixels in enumerate(zip(map(Image.fromarray, images), labels, strict=True)):
            for kind, image in enumerate((pixels[0], file_of(form, pixels[1]))):
                paths[kind].append(str(folder / f"{kind}_{k}.png"))
                image.save(paths[kind][-1])
        known = Classes(NAMES, RGB, **keys)
        files = Files(*map(tuple, paths), known)
        found[form] = Source("folder", "train", known, ("a", "b", "c"), files)
    return found


def used_by(source):
    """All that training and evaluation see of the labels of a source."""
    audited = audit.audit_labels(source, progress=False)
    batches = segmentation.eval_batches(source, batch_size=3)
    plan = BatchPlan(batch_size=2, seed=1, threads=1, prefetch=1)
    mixture = Mixture((source,), class_uniform=0.5)
    crops = iterate(segmentation.train_dataset(mixture, Augmentation((16, 24)), plan))
    renamed = Classes(("a", "b"), RGB[:2], (5, 6))
    mapped = source.with_classes(renamed, {"no": "b", "yes": "", "sky": "a"})
    return {
        "counts": audited.counts,
        "ignored": audited.ignored,
        "per image": class_counts(source, progress=False),
        "evaluation": next(batches)["label"],
        "training": np.stack([next(crops)["label"] for _ in range(3)]),
        "mapped": mapped.read(1)[1],
    }


@pytest.mark.parametrize("form", list(FORMS)[1:])
def test_every_form_is_used_alike(forms, form, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    expected = used_by(forms["8 bits"])
    assert set(np.unique(expected["evaluation"]).tolist()) == {0, 1, 2, 255}
    prepare.prepare(forms[form], tmp_path / "tiles", progress=False)
    tiles = open_source("folder", root=tmp_path / "tiles", split="train")
    assert tiles.classes == forms[form].classes
    for source in (forms[form], tiles):
        for what, value in used_by(source).items():
            np.testing.assert_array_equal(value, expected[what], err_msg=what)


def test_tiles_with_another_class_file(forms, tmp_path):
    """Tiles of raw ids take any; those of train ids none but their own."""
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"names": ["low", "high"], "label_ids": [[0, 7], 9]}))
    for form, refused in (("8 bits", False), ("16 bits", True), ("colors", True)):
        tiles = tmp_path / form
        prepare.prepare(forms[form], tiles, progress=False)
        opened = lambda: open_source("folder", root=tiles, split="train", class_file=path)  # noqa: B023, E731
        if refused:
            with pytest.raises(
                ValueError, match=r"contain train ids.*prepare them again with this"
            ):
                opened()
            continue
        # 3 is in no class of this file.
        with pytest.raises(ValueError, match=r"holds the ids \[3\]"):
            opened().read(0)
        path.write_text(
            json.dumps({"names": ["a", "b"], "label_ids": [[0, 7], 9], "ignore_ids": "rest"})
        )
        full, coarse = forms[form].read(0)[1], opened().read(0)[1]
        np.testing.assert_array_equal(coarse, np.array([0, 0, 1, *[255] * 253])[full])
