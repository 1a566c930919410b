"""Values, names and checks of label files in every form."""

import io

import numpy as np
import pytest
from PIL import Image

from hrnet_jax.data import Classes
from hrnet_jax.data.sources import cityscapes, public
from hrnet_jax.inference import label_form
from hrnet_jax.inference.label_form import get_form

CLASSES = Classes(("road", "sky"), ((9, 0, 0), (0, 9, 0)), ((7, 8), 23))
LABELS = np.array([[0, 1, 1]], np.uint8)


def decoded(name, classes=CLASSES, labels=LABELS):
    with Image.open(io.BytesIO(get_form(name).encode(labels, classes))) as image:
        image.load()
        return image


@pytest.mark.parametrize(
    ("name", "mode", "pixels"),
    [
        ("ids", "L", [[7, 23, 23]]),  # the first of several ids
        ("train_ids", "L", [[0, 1, 1]]),
        ("colors", "RGB", [[[9, 0, 0], [0, 9, 0], [0, 9, 0]]]),
        ("palette", "P", [[7, 23, 23]]),
        ("cityscapes", "L", [[7, 23, 23]]),
    ],
)
def test_values(name, mode, pixels):
    image = decoded(name)
    assert image.mode == mode
    assert np.asarray(image).tolist() == pixels
    form = get_form(name)
    assert form.problem(form.encode(LABELS, CLASSES), (1, 3), CLASSES) == ""
    assert "3x1 pixels, but its image has 4x1" in form.problem(
        form.encode(LABELS, CLASSES), (1, 4), CLASSES
    )


def test_palette_shows_the_colors():
    image = decoded("palette").convert("RGB")
    assert np.asarray(image).tolist() == [[[9, 0, 0], [0, 9, 0], [0, 9, 0]]]


def test_ids_above_255_have_16_bits():
    classes = Classes(("a", "b"), ((0, 0, 0),) * 2, (7, 300))
    assert np.asarray(decoded("ids", classes)).tolist() == [[7, 300, 300]]
    with pytest.raises(ValueError, match="label id 300 does not fit into a palette"):
        get_form("palette").ids(classes)


def test_servers_get_their_own_ids():
    """A network with train ids, as BDD100K has them, writes the ids of the server's classes."""
    bdd = public.read("bdd100k").classes
    assert get_form("kitti").ids(bdd) == cityscapes.CLASSES.first_ids
    assert get_form("ids").ids(bdd) == tuple(range(19))
    ade = public.read("ade20k").classes
    assert get_form("ade20k").ids(ade) == tuple(range(1, 151))  # train id + 1
    with pytest.raises(ValueError, match=r"form of ade20k needs its classes; it has none named"):
        get_form("ade20k").ids(bdd)


def test_problems():
    form = get_form("ids")
    other = get_form("train_ids").encode(LABELS, CLASSES)
    assert form.problem(other, (1, 3), CLASSES) == "values [0, 1] are not label ids of the classes"
    colors = get_form("colors")
    assert colors.problem(other, (1, 3), CLASSES) == "mode 'L', must be 'RGB'"
    wrong = io.BytesIO()
    Image.new("RGB", (3, 1), (1, 2, 3)).save(wrong, "PNG")
    assert "colors [(1, 2, 3)] are not" in colors.problem(wrong.getvalue(), (1, 3), CLASSES)


def test_names():
    assert get_form("ids").suffix == "_labelIds.png"
    assert get_form("ids", "_mask.png").suffix == "_mask.png"
    assert [label_form.form_of_dataset(n) for n in ("kitti", "camvid")] == ["kitti", "cityscapes"]
    for arguments, message in (
        (
            ("idss",),
            "unknown label form 'idss'; known: ids, train_ids, colors, palette, cityscapes",
        ),
        (("ids", "_x.jpg"), "written as PNG"),
        (("ids", "/x.png"), "must not name a folder"),
    ):
        with pytest.raises(ValueError, match=message):
            get_form(*arguments)
