"""The rule found for each layout of files, by names alone."""

import pytest

from hrnet_jax.data.inspection.pairing import find_pairs


def found(*names, **texts):
    texts = {path.replace("__", "/") + ".txt": text for path, text in texts.items()}
    return find_pairs([*names, *texts], texts.__getitem__)


def each(template, splits=("",)):
    return [template.format(k=k, s=s) for s in splits for k in range(3)]


ONE = {"split": {"val": 0.2, "seed": 0}}
BOTH = ("train", "val")


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (
            each("x/{k}.jpg") + each("x/{k}_mask.png"),
            {"images": ".", "labels": ".", "image_suffix": ".jpg",
             "label_suffix": "_mask.png"} | ONE,
        ),
        (
            each("im/{k}.png") + each("gt/{k}.png"),
            {"images": "im", "labels": "gt", "image_suffix": ".png", "label_suffix": ".png"} | ONE,
        ),
        (
            each("images/{k}.jpg") + each("labels/{k}_L.png"),
            {"images": "images", "labels": "labels", "image_suffix": ".jpg",
             "label_suffix": "_L.png"} | ONE,
        ),
        (
            each("{s}/images/{k}.png", ("train", "valid"))
            + each("{s}/masks/{k}.png", ("train", "valid")),
            {"images": "{split}/images", "labels": "{split}/masks", "image_suffix": ".png",
             "label_suffix": ".png", "splits": {"train": "train", "val": "valid"}},
        ),
        (
            each("images/{s}/a/{k}.png", BOTH) + each("labels/{s}/a/{k}.png", BOTH),
            {"images": "images/{split}", "labels": "labels/{split}", "image_suffix": ".png",
             "label_suffix": ".png"},
        ),
        (
            each("{s}/{k}.png", BOTH) + each("{s}annot/{k}.png", BOTH),
            {"images": "{split}", "labels": "{split}annot", "image_suffix": ".png",
             "label_suffix": ".png"},
        ),
        (
            each("scene{s}/rgb/{k}.png", "12") + each("scene{s}/sem/{k}.png", "12"),
            {"images": "*/rgb", "labels": "*/sem", "image_suffix": ".png", "label_suffix": ".png"}
            | ONE,
        ),
        (
            each("img_{k}.png") + each("mask_{k}.png"),
            {"images": ".", "labels": ".", "image_suffix": ".png", "label_suffix": ".png",
             "replace": {"/img_": "/mask_"}} | ONE,
        ),
        (  # words that are not known
            each("{k}_pan.jpg") + each("{k}_zones.png"),
            {"images": ".", "labels": ".", "image_suffix": "_pan.jpg", "label_suffix": "_zones.png"}
            | ONE,
        ),
        (
            each("leftImg8bit/{s}/b/{k}_leftImg8bit.png", BOTH)
            + [n for t in ("labelIds", "color", "instanceIds")
               for n in each("gtFine/{s}/b/{k}_gtFine_" + t + ".png", BOTH)],
            {"images": "leftImg8bit/{split}", "labels": "gtFine/{split}",
             "image_suffix": "_leftImg8bit.png", "label_suffix": "_gtFine_labelIds.png"},
        ),
    ],
)  # fmt: skip
def test_rules(names, files):
    names = [n.removeprefix("x/") for n in names]
    pairing = found(*names)
    assert pairing.files == files
    kinds = 4 if "gtFine" in str(names) else 2
    assert sum(map(len, pairing.pairs.values())) == len(names) // kinds


def test_lists_of_pairs():
    pairing = found(
        *each("a/{k}.png"),
        *each("b/x{k}.png"),
        lists__train="a/0.png b/x0.png\na/1.png b/x1.png\n",
        lists__val="a/2.png\tb/x2.png",
    )
    assert pairing.files == {"list": "lists/{split}.txt"}
    assert pairing.pairs["val"] == (("a/2.png", "b/x2.png"),)


def test_lists_of_names():
    pairing = found(
        *each("JPEGImages/{k}.jpg"),
        *each("SegmentationClass/{k}.png"),
        *each("SegmentationObject/{k}.png"),
        ImageSets__Segmentation__train="0\n1\n",
        ImageSets__Segmentation__val="2\n",
    )
    assert pairing.files["labels"] == "SegmentationClass"
    assert pairing.files["list"] == "ImageSets/Segmentation/{split}.txt"
    assert {k: len(v) for k, v in pairing.pairs.items()} == {"train": 2, "val": 1}
    assert "SegmentationObject/*.png could be the labels, too" in pairing.notes


def test_notes():
    pairing = found(*each("train_images/{k}.jpg"), *each("train_masks/{k}.png"), "z/9.png", "a.npy")
    assert pairing.files["split"] == {"val": 0.2, "seed": 0}
    notes = " ".join(pairing.notes)
    for text in ("1 images are not used: 1 z/*.png", "1 .npy", "no val found"):
        assert text in notes


def test_nothing_to_pair():
    with pytest.raises(ValueError, match=r"no images .*; found: 2 .npy, 1 no ending"):
        found("a.npy", "b.npy", "README")
    with pytest.raises(ValueError, match="3 images, but no label found for any of them"):
        found(*each("{k}.jpg"))
