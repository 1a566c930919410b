"""Samples by number from what TensorFlow Datasets has prepared.

The order of training is a function of the step, so samples are read by number directly from the
shards. A TFRecord shard has no index: its record offsets are collected once from the length
headers. ArrayRecord shards have an index. Nothing is downloaded.
"""

import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath

from hrnet_jax.data.sources.source import describe_folder
from hrnet_jax.runtime import storage


@dataclass(frozen=True)
class Prepared:
    """A dataset as TFDS names it, and how a user gets it.

    Attributes:
        name: e.g. "cityscapes/semantic_segmentation".
        home: where its archives come from.
    """

    name: str
    home: str

    @property
    def command(self) -> str:
        return f"tfds build {self.name} --data_dir=DIR --manual_dir=FOLDER_WITH_THE_ARCHIVES"

    def open(self, root: str | os.PathLike, features: Iterable[str]) -> tfds.core.DatasetInfo:
        """Its description, from a data_dir or the folder of the prepared version itself.

        Raises:
            FileNotFoundError: if nothing is prepared there; it says how to.
            ValueError: if it lacks one of the `features`.
        """
        info = tfds.builder_from_directory(str(self._folder(storage.path(root)))).info
        if missing := set(features) - set(info.features):
            raise ValueError(
                f"{info.data_dir} lacks the features {sorted(missing)}: not {self.name}"
            )
        return info

    def _folder(self, root: epath.Path) -> epath.Path:
        """The newest prepared version under `root`."""
        if (root / "dataset_info.json").is_file():
            return root
        found = storage.files_in(root / self.name, "*/dataset_info.json")
        versions = [epath.Path(p).parent for p in found]
        if not versions:
            raise FileNotFoundError(
                f"{self.name} is not prepared: looked for {root / self.name}/VERSION/"
                f"dataset_info.json; {describe_folder(root)}. It is never downloaded: "
                f"get the archives from {self.home} and run `{self.command}`, then give DIR as "
                "--config.data.root"
            )
        return max(versions, key=_version)

    def shards(self, info: tfds.core.DatasetInfo, splits: Iterable[str]) -> "Shards":
        """The samples of these splits, one after the other; ids are SPLIT/NUMBER.

        Raises:
            FileNotFoundError: if a shard is missing.
            ValueError: if there is no such split, or a shard is damaged.
        """
        shards, names, places, ids = [], [], [], []
        for split in splits:
            if split not in info.splits:
                known = sorted(info.splits)
                raise ValueError(f"no split {split!r} in {info.data_dir}; known: {known}")
            start = len(places)
            files = zip(info.splits[split].filepaths, info.splits[split].shard_lengths, strict=True)
            for path, length in files:
                shard = self._open_shard(str(path), info.file_format.value)
                if len(shard) != length:
                    raise ValueError(
                        f"shard {path} holds {len(shard)} records, its description says {length}; "
                        "prepare the dataset again"
                    )
                places += [(len(shards), i) for i in range(length)]
                shards.append(shard)
                names.append(str(path))
            ids += [f"{split}/{i:06d}" for i in range(len(places) - start)]
        return Shards(self.name, tuple(ids), tuple(names), tuple(shards), tuple(places))

    def _open_shard(self, path: str, file_format: str):
        if storage.missing([path]):
            raise FileNotFoundError(
                f"shard {path} is missing; prepare the dataset again: {self.command}"
            )
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
        size = storage.size(self.path)
        spans, position = [], 0
        with epath.Path(self.path).open("rb") as f:
            while position < size:
                f.seek(position)
                head = f.read(12)
                length = struct.unpack_from("<Q", head)[0] if len(head) == 12 else size
                if position + 16 + length > size:
                    raise ValueError(
                        f"shard {self.path} is damaged: record {len(spans)} at byte {position} "
                        f"ends beyond the file's {size} bytes; prepare the dataset again"
                    )
                spans.append((position + 12, length))
                position += 16 + length
        return spans

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, index: int) -> bytes:
        offset, length = self.spans[index]
        (record,) = storage.read_spans(self.path, [(offset, offset + length)])
        return record


@dataclass(frozen=True)
class Shards:
    """Serialized tf.train.Examples by number.

    Attributes:
        dataset: its name in errors.
        ids: one per sample.
        paths: of the shards.
        files: the shards themselves; each has __len__ and __getitem__(i) -> bytes.
        places: (shard, place in it) of each sample.
    """

    dataset: str
    ids: tuple[str, ...]
    paths: tuple[str, ...]
    files: tuple
    places: tuple[tuple[int, int], ...]

    def name(self, index: int) -> str:
        """What error messages call the sample."""
        shard, place = self.places[index]
        return f"record {place} of {self.paths[shard]}"

    def take(self, indices: Sequence[int]) -> "Shards":
        """Only these samples, in this order."""
        ids, places = (tuple(values[i] for i in indices) for values in (self.ids, self.places))
        return replace(self, ids=ids, places=places)

    def features(self, index: int, *keys: str) -> list:
        """The single value, bytes or int, of each of these features of a sample.

        Raises:
            ValueError: naming the record, if it is damaged or lacks a feature.
        """
        shard, place = self.places[index]
        try:
            example = tf.train.Example.FromString(self.files[shard][place])
        except Exception as error:  # google.protobuf.message.DecodeError, OSError, RuntimeError
            raise ValueError(f"{self.name(index)} is damaged: {error}") from error
        return [self._value(example.features.feature, key, index) for key in keys]

    def _value(self, found, key: str, index: int):
        kind = found[key].WhichOneof("kind") if key in found else None
        values = getattr(found[key], kind).value if kind else ()
        if len(values) != 1:
            raise ValueError(
                f"{self.name(index)} has no {key!r}; is this really {self.dataset}? It holds: "
                f"{sorted(k for k in found if k != key)}"
            )
        return values[0]


def _version(folder: epath.Path) -> list[int]:
    return [int(n) if n.isdigit() else -1 for n in folder.name.split(".")]
