"""Cityscapes as it is unpacked from the official archives (https://www.cityscapes-dataset.com).

root/leftImg8bit/{train,val,test}/CITY/CITY_SEQUENCE_FRAME_leftImg8bit.png
root/gtFine/{train,val}/CITY/CITY_SEQUENCE_FRAME_gtFine_labelIds.png
root/gtCoarse/{train,val,train_extra}/CITY/CITY_SEQUENCE_FRAME_gtCoarse_labelIds.png

The coarse labels are a dataset of their own, "cityscapes_coarse".
"""

import os

from hrnet_jax.data.sources.files import Pair, find_images, log_unpaired, source_of_pairs
from hrnet_jax.data.sources.source import Classes, Source
from hrnet_jax.runtime import storage

SPLITS = ("train", "val", "test", "trainval")
COARSE_SPLITS = ("train", "val", "train_extra")
_IMAGE_SUFFIX = "_leftImg8bit.png"

# (label id, name, category, color) of the 19 classes that are evaluated, in the order of their
# train ids, and every other label id; both as the official cityscapesScripts define them.
_CLASSES = (
    (7, "road", "flat", (128, 64, 128)),
    (8, "sidewalk", "flat", (244, 35, 232)),
    (11, "building", "construction", (70, 70, 70)),
    (12, "wall", "construction", (102, 102, 156)),
    (13, "fence", "construction", (190, 153, 153)),
    (17, "pole", "object", (153, 153, 153)),
    (19, "traffic light", "object", (250, 170, 30)),
    (20, "traffic sign", "object", (220, 220, 0)),
    (21, "vegetation", "nature", (107, 142, 35)),
    (22, "terrain", "nature", (152, 251, 152)),
    (23, "sky", "sky", (70, 130, 180)),
    (24, "person", "human", (220, 20, 60)),
    (25, "rider", "human", (255, 0, 0)),
    (26, "car", "vehicle", (0, 0, 142)),
    (27, "truck", "vehicle", (0, 0, 70)),
    (28, "bus", "vehicle", (0, 60, 100)),
    (31, "train", "vehicle", (0, 80, 100)),
    (32, "motorcycle", "vehicle", (0, 0, 230)),
    (33, "bicycle", "vehicle", (119, 11, 32)),
)
# unlabeled, ego vehicle, rectification border, out of roi, static, dynamic, ground, parking,
# rail track, guard rail, bridge, tunnel, polegroup, caravan, trailer. The 35th label, license
# plate, has id -1, which is 255 where it is written as a byte; 255 is ignored in every
# dataset.
_IGNORED = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)

CLASSES = Classes(
    names=tuple(c[1] for c in _CLASSES),
    colors=tuple(c[3] for c in _CLASSES),
    label_ids=tuple(c[0] for c in _CLASSES),
    ignore_ids=_IGNORED,
    categories=tuple(c[2] for c in _CLASSES),
)


def open_cityscapes(
    root: str | os.PathLike, split: str, classes: Classes = CLASSES, *, coarse: bool = False
) -> Source:
    """The images of `split` with their labels ("test" comes without labels).

    Args:
        root: the dataset's folder.
        split: of SPLITS or COARSE_SPLITS.
        classes: what the labels mean.
        coarse: take the coarse labels instead of the fine ones.

    Raises:
        FileNotFoundError: if the folder is not laid out as above, or a label is missing.
        ValueError: for an unknown split.
    """
    name, known, kind = "cityscapes", SPLITS, "gtFine"
    if coarse:
        name, known, kind = "cityscapes_coarse", COARSE_SPLITS, "gtCoarse"
    if split not in known:
        raise ValueError(f"unknown split {split!r} of {name}; known: {known}")
    suffix = f"_{kind}_labelIds.png"
    layout = f"ROOT/leftImg8bit/SPLIT/CITY/*{_IMAGE_SUFFIX} and ROOT/{kind}/SPLIT/CITY/*{suffix}"
    root = storage.path(root)
    pairs = []
    for part in ("train", "val") if split == "trainval" else (split,):
        folder = root / "leftImg8bit" / part
        for image in find_images(
            root, folder, f"*/*{_IMAGE_SUFFIX}", dataset="Cityscapes", layout=layout
        ):
            city, file = image.split("/")[-2:]
            stem = file.removesuffix(_IMAGE_SUFFIX)
            label = f"{root / kind / part}/{city}/{stem}{suffix}"
            pairs.append(Pair(f"{city}/{stem}", image, label))
        log_unpaired((folder, "*/*"), (root / kind / part, f"*/*{suffix}"), pairs)
    # The official test labels are dummies: nothing may be trained on or scored against them.
    return source_of_pairs(name, split, classes, pairs, layout=layout, has_labels=split != "test")
