"""Cityscapes as TensorFlow Datasets has prepared it (`cityscapes/semantic_segmentation`).

The user prepares it, for the archives need a registration:

    tfds build cityscapes/semantic_segmentation --data_dir=DIR --manual_dir=ARCHIVES

Nothing is downloaded here. Samples are read by number straight from the shards, since the order of
training is a function of the step: a TFRecord shard has no index, so its record offsets are
collected once by hopping over the length headers; ArrayRecord shards bring their own.
"""

import os
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import tensorflow as tf
import tensorflow_datasets as tfds

from hrnet_jax.data.cityscapes import CLASSES
from hrnet_jax.data.source import Source, describe_folder

# Our split names -> those of TFDS.
SPLITS = {
    "train": ("train",),
    "val": ("validation",),
    "test": ("test",),
    "trainval": ("train", "validation"),
}
_IMAGE, _LABEL = "image_left", "segmentation_label"
_CONFIG = "cityscapes/semantic_segmentation"
_PREPARE = f"tfds build {_CONFIG} --data_dir=DIR --manual_dir=FOLDER_WITH_THE_ARCHIVES"


@dataclass(frozen=True)
class TFRecordShard:
    """Random access to one TFRecord file.

    A record is: its length (uint64), a checksum of that (uint32), the bytes, their checksum
    (uint32), all little-endian.
    """

    path: str

    @cached_property
    def spans(self) -> list[tuple[int, int]]:
        """(offset, length) of each record.

        Raises:
            ValueError: if the file ends inside a record.
        """
        size = os.path.getsize(self.path)
        spans, position = [], 0
        with open(self.path, "rb") as f:
            while position < size:
                f.seek(position)
                head = f.read(12)
                length = struct.unpack_from("<Q", head)[0] if len(head) == 12 else size
                if position + 16 + length > size:
                    raise ValueError(
                        f"shard {self.path} is damaged: record {len(spans)} at byte {position} "
                        f"ends beyond the file's {size} bytes; prepare the data set again"
                    )
                spans.append((position + 12, length))
                position += 16 + length
        return spans

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, index: int) -> bytes:
        offset, length = self.spans[index]
        with open(self.path, "rb") as f:
            f.seek(offset)
            return f.read(length)


@dataclass(frozen=True)
class ExampleRecords:
    """Samples inside shards of serialized tf.train.Example."""

    shards: tuple  # of objects with __len__ and __getitem__(i) -> bytes
    paths: tuple[str, ...]  # one per shard
    places: tuple[tuple[int, int], ...]  # (shard, place in it) of each sample
    has_labels: bool

    def name(self, index: int) -> str:
        shard, place = self.places[index]
        return f"record {place} of {self.paths[shard]}"

    def read(self, index: int) -> tuple[bytes, bytes | None]:
        """The encoded image and label.

        Raises:
            ValueError: naming the record, if it is damaged or lacks a feature.
        """
        shard, place = self.places[index]
        try:
            example = tf.train.Example.FromString(self.shards[shard][place])
        except Exception as error:  # google.protobuf.message.DecodeError, OSError, RuntimeError
            raise ValueError(f"{self.name(index)} is damaged: {error}") from error
        image = self._feature(example, _IMAGE, index)
        return image, self._feature(example, _LABEL, index) if self.has_labels else None

    def _feature(self, example: tf.train.Example, key: str, index: int) -> bytes:
        values = example.features.feature[key].bytes_list.value
        if len(values) != 1:
            raise ValueError(
                f"{self.name(index)} has no {key!r}; is this really {_CONFIG}? It holds: "
                f"{sorted(k for k in example.features.feature if k != key)}"
            )
        return values[0]


def open_tfds_cityscapes(root: str | Path, split: str) -> Source:
    """The samples of `split` in a data_dir of TFDS; ids are SPLIT/NUMBER.

    Args:
        root: the data_dir, or the folder of the prepared version itself.
        split: as with the folder layout; "val" is TFDS's "validation".

    Raises:
        FileNotFoundError: if nothing is prepared there; it says how to.
        ValueError: for an unknown split, other features, or a damaged shard.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r} of {_CONFIG}; known: {tuple(SPLITS)}")
    info = tfds.builder_from_directory(str(_prepared_folder(Path(root)))).info
    needed = {_IMAGE} if split == "test" else {_IMAGE, _LABEL}
    if missing := needed - set(info.features):
        raise ValueError(f"{info.data_dir} lacks the features {sorted(missing)}: not {_CONFIG}")
    shards, paths, places, ids = [], [], [], []
    for part in SPLITS[split]:
        if part not in info.splits:
            raise ValueError(f"no split {part!r} in {info.data_dir}; there: {sorted(info.splits)}")
        start = len(places)
        for path, length in zip(
            info.splits[part].filepaths, info.splits[part].shard_lengths, strict=True
        ):
            shard = _open_shard(str(path), info.file_format.value)
            if len(shard) != length:
                raise ValueError(
                    f"shard {path} holds {len(shard)} records, its description says {length}; "
                    "prepare the data set again"
                )
            places += [(len(shards), i) for i in range(length)]
            shards.append(shard)
            paths.append(str(path))
        ids += [f"{part}/{i:06d}" for i in range(len(places) - start)]
    return Source(
        name="tfds_cityscapes",
        split=split,
        classes=CLASSES,
        ids=tuple(ids),
        # The official test labels are dummies, see cityscapes.py.
        records=ExampleRecords(tuple(shards), tuple(paths), tuple(places), split != "test"),
    )


def _prepared_folder(root: Path) -> Path:
    """The newest prepared version under `root`."""
    if (root / "dataset_info.json").is_file():
        return root
    versions = [p.parent for p in (root / _CONFIG).glob("*/dataset_info.json")]
    if not versions:
        raise FileNotFoundError(
            f"{_CONFIG} is not prepared: looked for {root / _CONFIG}/VERSION/dataset_info.json; "
            f"{describe_folder(root)}. It is never downloaded from here: get the archives from "
            f"https://www.cityscapes-dataset.com and run `{_PREPARE}`, then give DIR as "
            "--config.data.root"
        )
    return max(versions, key=lambda p: [int(n) if n.isdigit() else -1 for n in p.name.split(".")])


def _open_shard(path: str, file_format: str):
    if not os.path.isfile(path):
        raise FileNotFoundError(f"shard {path} is missing; prepare the data set again: {_PREPARE}")
    if file_format == "tfrecord":
        return TFRecordShard(path)
    if file_format == "array_record":
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        try:
            return ArrayRecordDataSource([path])
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"shard {path} is damaged: {error}") from error
    raise ValueError(
        f"{path} is a {file_format} file; known: tfrecord, array_record (--file_format of tfds)"
    )
