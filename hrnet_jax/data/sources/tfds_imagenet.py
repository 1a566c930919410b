"""ImageNet as TensorFlow Datasets has prepared it (`imagenet2012`).

The user prepares it, for the archives need a registration:

    tfds build imagenet2012 --data_dir=DIR --manual_dir=ARCHIVES
"""

import os
from dataclasses import dataclass

from hrnet_jax.data.sources.image_folder import ImageClasses, ImageSource
from hrnet_jax.data.sources.tfds_shards import Prepared, Shards

# Our split names -> those of TFDS.
SPLITS = {"train": "train", "val": "validation"}
_PREPARED = Prepared("imagenet2012", "https://www.image-net.org")


@dataclass(frozen=True)
class Records:
    """The encoded images and classes in the shards."""

    shards: Shards
    num_classes: int

    def read(self, number: int) -> tuple[bytes, int]:
        image, label = self.shards.features(number, "image", "label")
        if not 0 <= label < self.num_classes:
            raise ValueError(
                f"{self.name(number)} has label {label}: not in 0..{self.num_classes - 1}"
            )
        return image, label

    def name(self, number: int) -> str:
        return self.shards.name(number)


def open_tfds_imagenet(root: str | os.PathLike, split: str) -> ImageSource:
    """The samples of `split` in a data_dir of TFDS; ids are SPLIT/NUMBER.

    Args:
        root: the data_dir, or the folder of the prepared version itself.
        split: "train" or "val", which is TFDS's "validation".

    Raises:
        FileNotFoundError: if nothing is prepared there; it says how to.
        ValueError: for an unknown split, other features, or a damaged shard.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r} of {_PREPARED.name}; known: {tuple(SPLITS)}")
    info = _PREPARED.open(root, {"image", "label"})
    shards = _PREPARED.shards(info, [SPLITS[split]])
    classes = ImageClasses(tuple(info.features["label"].names))
    return ImageSource(
        name="tfds_imagenet",
        split=split,
        classes=classes,
        ids=shards.ids,
        records=Records(shards, classes.num_classes),
        numbers=tuple(range(len(shards.ids))),
    )
