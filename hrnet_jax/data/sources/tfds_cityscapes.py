"""Cityscapes as TensorFlow Datasets has prepared it (`cityscapes/semantic_segmentation`).

The user prepares it, as the archives need a registration:

    tfds build cityscapes/semantic_segmentation --data_dir=DIR --manual_dir=ARCHIVES
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hrnet_jax.data.sources.cityscapes import CLASSES
from hrnet_jax.data.sources.files import EncodedSample
from hrnet_jax.data.sources.source import Classes, Records, Sample, Source
from hrnet_jax.data.sources.tfds_shards import Prepared, Shards

# Our split names -> those of TFDS.
SPLITS = {
    "train": ("train",),
    "val": ("validation",),
    "test": ("test",),
    "trainval": ("train", "validation"),
}
_IMAGE, _LABEL = "image_left", "segmentation_label"
_PREPARED = Prepared("cityscapes/semantic_segmentation", "https://www.cityscapes-dataset.com")


@dataclass(frozen=True)
class ShardRecords(Records[Sample]):
    """The encoded images and labels in the shards, see `source.Records`."""

    shards: Shards
    has_labels: bool
    classes: Classes

    def __len__(self) -> int:
        return len(self.shards.ids)

    def name(self, index: int) -> str:
        return self.shards.name(index)

    def files(self, index: int) -> tuple[str, ...]:
        shard, _ = self.shards.places[index]
        return (self.shards.paths[shard],)

    def take(self, indices: Sequence[int]) -> "ShardRecords":
        return replace(self, shards=self.shards.take(indices))

    def open(self, index: int) -> EncodedSample:
        """See `Records.open`.

        Raises:
            ValueError: naming the record, if it is damaged or lacks a feature.
        """
        keys = (_IMAGE, _LABEL) if self.has_labels else (_IMAGE,)
        image, *label = self.shards.features(index, *keys)
        names = 2 * [self.name(index)]
        return EncodedSample(image, label[0] if label else None, *names, self.classes)


def open_tfds_cityscapes(root: str | os.PathLike, split: str, classes: Classes = CLASSES) -> Source:
    """The samples of `split` in a data_dir of TFDS; ids are SPLIT/NUMBER.

    Args:
        root: the data_dir, or the folder of the prepared version itself.
        split: as with the folder layout; "val" is TFDS's "validation".
        classes: what the labels mean.

    Raises:
        FileNotFoundError: if nothing is prepared there; it says how to.
        ValueError: for an unknown split, other features, or a damaged shard.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r} of {_PREPARED.name}; known: {tuple(SPLITS)}")
    # The official test labels are dummies, see cityscapes.py.
    has_labels = split != "test"
    info = _PREPARED.open(root, {_IMAGE, _LABEL} if has_labels else {_IMAGE})
    shards = _PREPARED.shards(info, SPLITS[split])
    return Source(
        name="tfds_cityscapes",
        split=split,
        classes=classes,
        ids=shards.ids,
        records=ShardRecords(shards, has_labels, classes),
    )
