"""ImageNet as TensorFlow Datasets has prepared it (`imagenet2012`).

The user prepares it, as the archives need a registration:

    tfds build imagenet2012 --data_dir=DIR --manual_dir=ARCHIVES
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hrnet_jax.data.sources.image_folder import ImageClasses, ImageSource, LabeledImage
from hrnet_jax.data.sources.source import Records, Source
from hrnet_jax.data.sources.tfds_shards import Prepared, Shards

# Our split names -> those of TFDS.
SPLITS = {"train": "train", "val": "validation"}
_PREPARED = Prepared("imagenet2012", "https://www.image-net.org")


@dataclass(frozen=True)
class ShardImages(Records[LabeledImage]):
    """The encoded images and classes in the shards, see `source.Records`."""

    shards: Shards
    num_classes: int

    has_labels = True

    def __len__(self) -> int:
        return len(self.shards.ids)

    def name(self, index: int) -> str:
        return self.shards.name(index)

    def open(self, index: int) -> LabeledImage:
        image, label = self.shards.features(index, "image", "label")
        if not 0 <= label < self.num_classes:
            raise ValueError(
                f"{self.name(index)} has label {label}: not in 0..{self.num_classes - 1}"
            )
        return LabeledImage(image, label)

    def take(self, indices: Sequence[int]) -> "ShardImages":
        return replace(self, shards=self.shards.take(indices))


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
    return Source(
        name="tfds_imagenet",
        split=split,
        classes=classes,
        ids=shards.ids,
        records=ShardImages(shards, classes.num_classes),
    )
