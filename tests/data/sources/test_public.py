"""Public datasets: a miniature of each official layout, and a few values of each table by hand."""

import numpy as np
import pytest
from PIL import Image

from hrnet_jax.data import SOURCES, open_source
from hrnet_jax.data.sources import cityscapes, public

_DRIVE = "2013_05_28_drive_0000_sync/image_00"
# For each dataset: the splits with an image and its label ("" if it has none), {} is a number.
LAYOUTS = {
    "acdc": {
        s: (
            f"rgb_anon/fog/{s}/GOPR0475/G_frame_{{}}_rgb_anon.png",
            f"gt/fog/{s}/GOPR0475/G_frame_{{}}_gt_labelIds.png",
        )
        for s in ("train", "val")
    },
    "ade20k": {
        "train": ("images/training/ADE_{}.jpg", "annotations/training/ADE_{}.png"),
        "val": ("images/validation/ADE_{}.jpg", "annotations/validation/ADE_{}.png"),
        "test": ("images/testing/ADE_{}.jpg", ""),
    },
    "bdd100k": {
        s: (f"images/10k/{s}/a{{}}.jpg", f"labels/sem_seg/masks/{s}/a{{}}.png")
        for s in ("train", "val")
    },
    "coco_stuff": {
        "train": ("images/train2017/00{}.jpg", "annotations/train2017/00{}.png"),
        "val": ("images/val2017/00{}.jpg", "annotations/val2017/00{}.png"),
    },
    "dark_zurich": {
        "train": ("rgb_anon/train/night/G1/G1_{}_rgb_anon.png", ""),
        "val": (
            "rgb_anon/val/night/G2/G2_{}_rgb_anon.png",
            "gt/val/night/G2/G2_{}_gt_labelIds.png",
        ),
    },
    "idd": {
        "train": (
            "leftImg8bit/train/1/{}_leftImg8bit.png",
            "gtFine/train/1/{}_gtFine_labellevel3Ids.png",
        ),
        "val": (  # the second part of IDD has JPEGs
            "leftImg8bit/val/2/{}_leftImg8bit.jpg",
            "gtFine/val/2/{}_gtFine_labellevel3Ids.png",
        ),
    },
    "kitti360": {
        s: (
            f"data_2d_raw/{_DRIVE}/data_rect/{s}{{}}.png",
            f"data_2d_semantics/train/{_DRIVE}/semantic/{s}{{}}.png",
        )
        for s in ("train", "val")
    },
    "loveda": {
        "train": ("Train/Rural/images_png/{}.png", "Train/Rural/masks_png/{}.png"),
        "val": ("Val/Urban/images_png/{}.png", "Val/Urban/masks_png/{}.png"),
        "test": ("Test/Urban/images_png/{}.png", ""),
    },
    "mapillary_vistas_v1.2": {
        "train": ("training/images/{}.jpg", "training/v1.2/labels/{}.png"),
        "val": ("validation/images/{}.jpg", "validation/v1.2/labels/{}.png"),
        "test": ("testing/images/{}.jpg", ""),
    },
    "mapillary_vistas_v2.0": {
        "train": ("training/images/{}.jpg", "training/v2.0/labels/{}.png"),
        "val": ("validation/images/{}.jpg", "validation/v2.0/labels/{}.png"),
    },
    "pascal_voc2012": {
        s: (f"JPEGImages/{s}_{{}}.jpg", f"SegmentationClass/{s}_{{}}.png") for s in ("train", "val")
    },
    "potsdam": {s: (f"images/{s}/2_{{}}.png", f"labels/{s}/2_{{}}.png") for s in ("train", "val")},
    "vaihingen": {
        s: (f"images/{s}/area{{}}.png", f"labels/{s}/area{{}}.png") for s in ("train", "val")
    },
}
# For each dataset: its number of classes, and (name, value in label files, color) by hand.
VALUES = {
    "acdc": (19, [("road", 7, (128, 64, 128)), ("bicycle", 33, (119, 11, 32))]),
    "ade20k": (150, [("wall", 1, (120, 120, 120)), ("flag", 150, (92, 0, 255))]),
    "bdd100k": (19, [("road", 0, (128, 64, 128)), ("bicycle", 18, (119, 11, 32))]),
    "coco_stuff": (171, [("person", 0, None), ("stop sign", 12, None), ("wood", 181, None)]),
    "dark_zurich": (19, [("sky", 23, (70, 130, 180))]),
    "idd": (26, [("autorickshaw", 8, (255, 204, 54)), ("sky", 25, (70, 130, 180))]),
    "kitti": (19, [("car", 26, (0, 0, 142))]),
    "kitti360": (19, [("car", 26, (0, 0, 142))]),
    "loveda": (7, [("background", 1, (255, 255, 255)), ("agriculture", 7, (255, 195, 128))]),
    "mapillary_vistas_v1.2": (65, [("Road", 13, (128, 64, 128)), ("Ego Vehicle", 64, None)]),
    "mapillary_vistas_v2.0": (116, [("Road", 21, (128, 64, 128)), ("Static", 122, (111, 111, 0))]),
    "pascal_voc2012": (21, [("aeroplane", 1, (128, 0, 0)), ("tvmonitor", 20, (0, 64, 128))]),
    "potsdam": (6, [("building", (0, 0, 255), (0, 0, 255)), ("car", (255, 255, 0), (255, 255, 0))]),
    "vaihingen": (6, [("tree", (0, 255, 0), (0, 255, 0))]),
}  # fmt: skip
# A value that is ignored, besides 255.
IGNORED = {
    "acdc": 0, "ade20k": 0, "dark_zurich": 6, "kitti": 9, "kitti360": 34, "loveda": 0,
    "mapillary_vistas_v1.2": 65, "mapillary_vistas_v2.0": 31, "potsdam": (0, 0, 0),
    "vaihingen": (0, 0, 0),
}  # fmt: skip


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if path.parent.name == "SegmentationClass":
        image.putpalette(bytes(range(256)) * 3)
    image.save(path)


def make(root, name):
    """Two images for each split, with a label whose pixels are the values to compare."""
    values = [value for _, value, _ in VALUES[name][1]] + [IGNORED.get(name, 255)]
    label = np.array([values] * 2, np.uint8)
    for split, (image, label_path) in LAYOUTS[name].items():
        for k in range(2):
            write(root / image.format(k), np.full((*label.shape[:2], 3), 90, np.uint8))
            if label_path:
                write(root / label_path.format(k), label)
        names = [image.format(k) for k in range(2)]
        if name == "kitti360":
            lines = [f"{image.format(k)} {label_path.format(k)}" for k in range(2)]
            path = root / f"data_2d_semantics/train/2013_05_28_drive_{split}_frames.txt"
            path.write_text("\n".join(lines) + "\n")
        if name == "pascal_voc2012":
            path = root / f"ImageSets/Segmentation/{split}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{n.split('/')[-1][:-4]}\n" for n in names))


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_and_values(tmp_path, name):
    make(tmp_path, name)
    count, values = VALUES[name]
    for split, (image, label_path) in LAYOUTS[name].items():
        source = open_source(name, root=tmp_path, split=split)
        assert source.image_paths == tuple(str(tmp_path / image.format(k)) for k in range(2))
        assert source.has_labels == bool(label_path)
        assert source.classes.num_classes == count
        if not label_path:
            continue
        assert source.label_paths == tuple(str(tmp_path / label_path.format(k)) for k in range(2))
        names = source.classes.names
        expected = [names.index(n) for n, _, _ in values] + [255]
        assert source.read(0)[1][0].tolist() == expected
    for class_name, _, color in values:
        assert color in (None, source.classes.colors[names.index(class_name)])


@pytest.mark.parametrize("name", public.NAMES)
def test_tables(name, tmp_path):
    dataset = public.read(name)
    assert name in SOURCES
    assert dataset.title
    assert dataset.license
    assert dataset.source.startswith("http")
    with pytest.raises((ValueError, FileNotFoundError), match=r"unknown split|no (images|list)"):
        open_source(name, root=tmp_path, split="tain")


def test_every_class_file_has_its_name():
    assert sorted(p.stem for p in public.FOLDER.glob("*.json")) == sorted(public.NAMES)
    assert set(VALUES) == set(public.NAMES)


def test_datasets_with_the_classes_of_cityscapes():
    own = cityscapes.CLASSES
    for name in ("acdc", "dark_zurich", "kitti"):
        assert public.read(name).classes == own
    for name in ("bdd100k", "kitti360"):
        classes = public.read(name).classes
        assert (classes.names, classes.colors) == (own.names, own.colors)


def test_kitti_is_divided_by_a_rule(tmp_path):
    """200 labeled images, no official validation split; the test images have no labels."""
    pixels = np.zeros((2, 2, 3), np.uint8)
    for k in range(40):
        write(tmp_path / f"training/image_2/{k:06}_10.png", pixels)
        write(tmp_path / f"training/semantic/{k:06}_10.png", pixels[..., 0])
    write(tmp_path / "testing/image_2/000000_10.png", pixels)
    train, val = (open_source("kitti", root=tmp_path, split=s) for s in ("train", "val"))
    assert set(train.ids) | set(val.ids) == {f"{k:06}_10" for k in range(40)}
    assert not set(train.ids) & set(val.ids)
    assert 3 <= len(val) <= 14
    test = open_source("kitti", root=tmp_path, split="test")
    assert (test.ids, test.has_labels) == (("000000_10",), False)


def test_older_mapillary_folders(tmp_path):
    """Releases before 2.0 have the labels of 1.2 without its name."""
    write(tmp_path / "training/images/a.jpg", np.zeros((2, 2, 3), np.uint8))
    write(tmp_path / "training/labels/a.png", np.full((2, 2), 13, np.uint8))
    source = open_source("mapillary_vistas_v1.2", root=tmp_path, split="train")
    assert source.read(0)[1][0, 0] == source.classes.names.index("Road")


def test_a_wrong_folder_is_named(tmp_path):
    (tmp_path / "pictures").mkdir()
    with pytest.raises(FileNotFoundError, match=r"ADE20K.*no images in split .*holds pictures"):
        open_source("ade20k", root=tmp_path, split="train")
