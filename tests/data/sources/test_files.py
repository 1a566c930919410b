import numpy as np
import pytest
from PIL import Image

from hrnet_jax.data.sources.files import (
    EncodedSample,
    Files,
    Pair,
    find_images,
    not_hidden,
    source_of_pairs,
)
from hrnet_jax.data.sources.source import Classes
from hrnet_jax.runtime import storage

CLASSES = Classes(("no", "yes"), ((0, 0, 0), (9, 9, 9)), (4, 7))
IMAGE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
LABEL = np.array([[4, 7, 255, 4, 4, 4]] * 4, np.uint8)


@pytest.fixture
def pair(tmp_path):
    """An image of 4x6 and its label."""
    found = Pair("a", str(tmp_path / "a.png"), str(tmp_path / "a_label.png"))
    Image.fromarray(IMAGE).save(found.image)
    Image.fromarray(LABEL).save(found.label)
    return found


def test_records_of_files(pair):
    records = Files((pair.image,), (pair.label,))
    assert (len(records), records.has_labels, records.id_counts) == (1, True, None)
    assert (records.name(0), records.label_name(0)) == (pair.image, pair.label)
    assert records.size(0) == records.open(0).size == (4, 6)
    np.testing.assert_array_equal(records.label(0), LABEL)
    np.testing.assert_array_equal(records.open(0).image(), IMAGE)
    window = slice(1, 3), slice(2, 5)
    np.testing.assert_array_equal(records.open(0).image(window), IMAGE[1:3, 2:5])
    np.testing.assert_array_equal(records.open(0).label(window), LABEL[1:3, 2:5])


def test_records_without_labels(pair):
    records = Files((pair.image,))
    assert not records.has_labels
    assert records.label_name(0) == pair.image
    assert records.take([0, 0]) == Files((pair.image, pair.image))
    assert records.open(0).label_data is None


def test_numbers_of_files_must_agree():
    with pytest.raises(ValueError, match="2 image files but 1 label files"):
        Files(("a", "b"), ("c",))


def test_size_and_label_need_no_other_file(pair):
    assert Files((pair.image,), ("missing",)).size(0) == (4, 6)
    assert Files(("missing",), (pair.label,)).label(0)[0, 1] == 7
    with pytest.raises(FileNotFoundError, match="missing"):
        Files((pair.image,), ("missing",)).open(0)


def test_a_label_of_another_size_is_named(pair):
    with open(pair.image, "rb") as image, open(pair.label, "rb") as label:
        image_data, label_data = image.read(), label.read()
    Image.fromarray(LABEL.T.copy()).save(pair.label)
    with open(pair.label, "rb") as label:
        turned = label.read()
    EncodedSample(image_data, label_data, "i.png", "l.png").label()
    with pytest.raises(ValueError, match=r"label l.png is 6x4 but its image i.png is 4x6"):
        EncodedSample(image_data, turned, "i.png", "l.png").label()


def test_source_of_pairs(pair):
    source = source_of_pairs("mine", "val", CLASSES, [pair], layout="ROOT/*.png")
    assert (source.ids, source.image_paths, source.label_paths) == (
        ("a",), (pair.image,), (pair.label,),
    )  # fmt: skip
    np.testing.assert_array_equal(source.read(0)[1], [[0, 1, 255, 0, 0, 0]] * 4)
    lost = [pair, Pair("b", "b.png", "b_label.png")]
    message = r"1 of 2 images of mine 'val' have no label; looked for b_label.png; .* ROOT/"
    with pytest.raises(FileNotFoundError, match=message):
        source_of_pairs("mine", "val", CLASSES, lost, layout="ROOT/*.png")
    source = source_of_pairs("mine", "val", CLASSES, lost, layout="", has_labels=False)
    assert (len(source), source.has_labels) == (2, False)


def test_not_hidden():
    names = ["a.png", "._a.png", "b/.ipynb_checkpoints/c.png", ".DS_Store", "b/c.png"]
    assert not_hidden(names) == ["a.png", "b/c.png"]


def test_find_images(pair, tmp_path):
    root = storage.path(tmp_path)
    (tmp_path / "._a.png").write_bytes(b"")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "b.png").write_bytes(b"")
    names = {"dataset": "Mine", "layout": "ROOT/x"}
    assert find_images(root, root, "*.png", **names) == [pair.image, pair.label]
    with pytest.raises(FileNotFoundError, match="no Mine images"):
        find_images(root, root, "*/*.png", **names)
    (tmp_path / ".hidden" / "b.png").unlink()
    (tmp_path / ".hidden").rmdir()
    (tmp_path / "._a.png").unlink()
    message = (
        r"no Mine images: looked for .*/x/\*.png; .* holds a.png, a_label.png. Expected .*ROOT/x"
    )
    with pytest.raises(FileNotFoundError, match=message):
        find_images(root, root / "x", "*.png", **names)
