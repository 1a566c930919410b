"""Converts any dataset to tiles (`tiles.format` describes them).

`prepare` does it in threads, shard by shard, and continues after an interruption. `Tiles` does the
same as a builder of TensorFlow Datasets, which can also run on Apache Beam, for datasets that are
too large for one machine:

    tfds build hrnet_jax/data/tiles/prepare.py --config=cityscapes --manual_dir=CITYSCAPES \\
        --data_dir=DIR
    ... --config=cityscapes_beam --beam_pipeline_options=...

Both write the same records and description, which `tfds.builder_from_directory` reads.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath

from hrnet_jax.data import SOURCES, open_source
from hrnet_jax.data.images import decode
from hrnet_jax.data.pipeline.parallel import parallel
from hrnet_jax.data.sources import selection
from hrnet_jax.data.sources.source import UNKNOWN_LABEL, Source, spread_indices
from hrnet_jax.data.sources.union import UnionRecords
from hrnet_jax.data.tiles import format as tile_format
from hrnet_jax.runtime import run_lock, storage

VERSION = "1.0.0"
# About 200 MB of street images: the most that is lost when a preparation is killed.
SHARD_IMAGES = 64
_SPLITS = ("train", "train_extra", "val", "test")

FEATURES = tfds.features.FeaturesDict(
    {
        "id": tfds.features.Text(),
        "height": np.int32,
        "width": np.int32,
        # Compressed tiles, one after the other, and the bytes of each.
        "image": tfds.features.Tensor(shape=(), dtype=tf.string),
        "image_length": tfds.features.Tensor(shape=(None,), dtype=np.int32),
        "label": tfds.features.Tensor(shape=(), dtype=tf.string),
        "label_length": tfds.features.Tensor(shape=(None,), dtype=np.int32),
        "id_count": tfds.features.Tensor(shape=(256,), dtype=np.int64),
    }
)
_DESCRIPTION = "Images and labels cut into tiles; each tile is compressed separately."


def tile_example(source: Source, index: int) -> dict[str, Any]:
    """One image as FEATURES say.

    Raises:
        FileNotFoundError, ValueError: naming the file that is missing or damaged, or holds ids that
            the class list does not know.
    """
    sample = source.records.open(index)
    image = sample.image()
    tiles = tile_format.encode_tiles(image)
    label_tiles, counts = [b""] * len(tiles), np.zeros(256, np.int64)
    if source.has_labels:
        label = sample.label()
        counts = decode.count_ids(label)
        if (unknown := np.flatnonzero(counts * (source.lookup() == UNKNOWN_LABEL))).size:
            raise source.unknown_ids(unknown.tolist(), index)
        label_tiles = tile_format.encode_tiles(label)
    return {
        "id": source.ids[index],
        "height": image.shape[0],
        "width": image.shape[1],
        "image": b"".join(tiles),
        "image_length": np.array([len(t) for t in tiles], np.int32),
        "label": b"".join(label_tiles),
        "label_length": np.array([len(t) for t in label_tiles], np.int32),
        "id_count": counts,
    }


# ---- preparing on one machine


@dataclass(frozen=True)
class Estimate:
    """The disk space that a preparation needs. `free` is None for a store."""

    images: int
    bytes: int
    free: int | None

    def text(self) -> str:
        each = self.bytes / self.images
        free = "" if self.free is None else f" of {self.free / 1e9:.1f} GB free"
        return (
            f"{self.images} images, about {each / 1e6:.2f} MB each: {self.bytes / 1e9:.2f} GB{free}"
        )


def estimate(source: Source, output: epath.Path, samples: int = 4) -> Estimate:
    """Compresses a few images, spread over the source, and multiplies by the number of pixels."""
    chosen = spread_indices(len(source), samples)
    sizes = list(parallel(source.records.size, range(len(source)), "sizes", False))
    examples = [tile_example(source, i) for i in chosen]
    stored = sum(len(e["image"]) + len(e["label"]) for e in examples)
    per_pixel = stored / sum(math.prod(sizes[i]) for i in chosen)
    pixels = sum(math.prod(size) for size in sizes)
    free = None if storage.in_store(output) else shutil.disk_usage(output).free
    return Estimate(len(source), int(per_pixel * pixels), free)


def prepare(
    source: Source,
    output: str | os.PathLike,
    *,
    shard_images: int = SHARD_IMAGES,
    progress: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> epath.Path:
    """Writes the tiles of a split; continues an interrupted preparation.

    Args:
        source: what to convert; not tiles themselves.
        output: the folder; other splits of the same dataset may be in it.
        shard_images: images per shard.
        progress: show a bar with rate and time left.
        say: is called with lines about disk use and what was found.

    Returns:
        The manifest's path.

    Raises:
        ValueError: if the output holds other tiles, the disk is too small, another process
            prepares the same tiles, or a file of the source is damaged.
        OSError: if writing fails; complete shards are kept.
    """
    _check_source(source)
    if shard_images < 1:
        raise ValueError(f"shard_images must be 1 or more, got {shard_images}")
    output = storage.path(output)
    output.mkdir(parents=True, exist_ok=True)
    path = tile_format.manifest_path(output, source.split)
    plan = _fingerprint(source, shard_images)
    if path.is_file():
        if tile_format.read_manifest(output, source.split).get("plan") != plan:
            raise ValueError(
                f"{path} describes tiles of other files or with other options: delete it and its "
                "shards, or give another folder"
            )
        say(f"{path}: complete, nothing to do")
        return path
    work = tile_format.unfinished_folder(output, source.split)
    with run_lock.locked(work, advice="wait until it is done, or end it."):
        _check_plan(work / "plan", plan)
        count = -(-len(source) // shard_images)
        shards = [
            output / f"tiles-{source.split}.tfrecord-{k:05d}-of-{count:05d}" for k in range(count)
        ]
        missing = [k for k in range(count) if not _is_complete(shards[k], work)]
        if missing:
            _check_space(source, output, len(missing) / count, say)
        if len(missing) < count:
            say(f"continuing: {count - len(missing)} of {count} shards are complete")
        _write_shards(source, shards, missing, shard_images, work, progress)
        parts = [_read_part(work, shard) for shard in shards]
        _write_manifest(output, source, shards, parts, plan)
    work.rmtree()
    describe_for_tfds(output)
    return path


def _check_source(source: Source) -> None:
    if isinstance(source.records, tile_format.TileRecords):
        raise ValueError(f"{source.name!r} {source.split!r} are tiles already")
    if isinstance(source.records, UnionRecords) or selection.parse(source.split).names:
        raise ValueError(
            f"split {source.split!r}: prepare its splits one by one and whole; reading joins their"
            " tiles and takes parts of them, too"
        )


def _check_space(
    source: Source, output: epath.Path, fraction: float, say: Callable[[str], None]
) -> None:
    """Raises ValueError if the disk has no room for this fraction of the shards."""
    space = estimate(source, output)
    say(space.text())
    needed = space.bytes * fraction
    if space.free is not None and needed > space.free:
        raise ValueError(
            f"{output} has {space.free / 1e9:.2f} GB free, {needed / 1e9:.2f} GB are needed"
        )


def _write_shards(
    source: Source,
    shards: list[epath.Path],
    missing: list[int],
    shard_images: int,
    work: epath.Path,
    progress: bool,
) -> None:
    """Writes the missing shards in order; see `prepare`."""
    serializer = tfds.core.example_serializer.ExampleSerializer(FEATURES.get_serialized_info())

    def record(index: int) -> bytes:
        example = FEATURES.encode_example(tile_example(source, index))
        # Otherwise the order of the features differs from process to process.
        return serializer.get_tf_example(example).SerializeToString(deterministic=True)

    members = {
        k: range(k * shard_images, min((k + 1) * shard_images, len(source))) for k in missing
    }
    order = [i for k in missing for i in members[k]]
    records = parallel(record, order, f"tiling {source.split}", progress)
    with contextlib.closing(records):
        for done, k in enumerate(missing):
            complete = f"{len(shards) - len(missing) + done} of {len(shards)} shards"
            with _disk_errors(shards[k], complete), storage.written(shards[k], sync=True) as part:
                with tf.io.TFRecordWriter(str(part)) as writer:
                    for _ in members[k]:
                        writer.write(next(records))
                index = _pack(index_shard(part))
                storage.write_bytes(work / f"{shards[k].name}.npz", index, sync=True)


@contextlib.contextmanager
def _disk_errors(path: epath.Path, complete: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise  # of the source
    except (OSError, tf.errors.OpError) as error:
        raise OSError(
            f"writing {path} failed: {getattr(error, 'message', error)}. {complete} are complete "
            "and stay; make room and run the same command again"
        ) from error


def _is_complete(shard: epath.Path, work: epath.Path) -> bool:
    """A shard gets its name after its part of the index is safe."""
    if not shard.is_file():
        return False
    try:
        return int(_read_part(work, shard)["bytes"]) == storage.size(str(shard))
    except (OSError, ValueError, KeyError):
        return False


def _read_part(work: epath.Path, shard: epath.Path) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(storage.read_bytes(str(work / f"{shard.name}.npz")))) as file:
        return dict(file)


def _pack(arrays: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def _fingerprint(source: Source, shard_images: int) -> str:
    """A hash of everything that the shards depend on."""
    digest = hashlib.sha256()
    options = [tile_format.FORMAT_VERSION, source.name, source.split, tile_format.TILE]
    options += [tile_format.LEVEL, shard_images, source.classes.to_json(), source.ids]
    digest.update(json.dumps(options).encode())
    for stamp in storage.stamps((*source.image_paths, *source.label_paths)):
        digest.update(f"{stamp}\n".encode())
    return digest.hexdigest()


def _check_plan(path: epath.Path, plan: str) -> None:
    if path.is_file() and path.read_text() != plan:
        raise ValueError(
            f"{path.parent} is an unfinished preparation of other files or with other options: "
            "delete it and the shards in the same folder to start again"
        )
    storage.write_bytes(path, plan.encode(), sync=True)


# ---- manifest, index and what TFDS wants to know


def index_shard(path: Path) -> dict[str, np.ndarray]:
    """Where the images of a shard and their tiles lie in it, and the shard's size and checksum.

    Raises:
        ValueError: naming the shard, if a record is damaged.
    """
    columns: dict[str, list] = {key: [] for key in (*tile_format.INDEX, "ids")}
    position, tiles = 0, 0
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        position += 12  # length and its checksum
        example = tf.train.Example.FromString(record).features.feature
        spans = _value_spans(record)
        numbers = {k: np.array(example[k].int64_list.value) for k in FEATURES if k not in spans}
        columns["ids"].append(example["id"].bytes_list.value[0])
        columns["size"].append((int(numbers["height"][0]), int(numbers["width"][0])))
        columns["image_start"].append(position + spans["image"])
        columns["label_start"].append(position + spans["label"])
        columns["first_tile"].append(tiles)
        columns["image_length"].append(numbers["image_length"])
        columns["label_length"].append(numbers["label_length"])
        columns["id_count"].append(numbers["id_count"])
        tiles += len(numbers["image_length"])
        position += len(record) + 4
    with open(path, "rb") as file:
        checksum = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "ids": np.array([i.decode() for i in columns["ids"]]),
        "size": np.array(columns["size"], np.int32),
        "image_start": np.array(columns["image_start"], np.int64),
        "label_start": np.array(columns["label_start"], np.int64),
        "first_tile": np.array(columns["first_tile"], np.int64),
        "image_length": np.concatenate(columns["image_length"]).astype(np.int32),
        "label_length": np.concatenate(columns["label_length"]).astype(np.int32),
        "id_count": np.array(columns["id_count"], np.uint32),
        "bytes": np.array(os.path.getsize(path)),
        "sha256": np.array(checksum),
    }


def _value_spans(record: bytes) -> dict[str, int]:
    """Where in a serialized tf.train.Example the value of each bytes feature begins."""
    spans = {}
    for features, end in _fields(record, 0, len(record)):
        for entry, entry_end in _fields(record, features, end):
            (key, key_end), (feature, feature_end) = _fields(record, entry, entry_end)
            tag = record[feature] if feature < feature_end else 0
            if tag != _TAG_BYTES_LIST:
                continue
            ((values, values_end),) = _fields(record, feature, feature_end)
            ((value, _),) = _fields(record, values, values_end)
            spans[record[key:key_end].decode()] = value
    return spans


_TAG_BYTES_LIST = 0x0A


def _fields(record: bytes, position: int, end: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of the length-delimited fields of a protocol buffer."""
    while position < end:
        position += 1  # the tag: one byte for the few numbers that are used here
        length = shift = 0
        while True:
            byte = record[position]
            position += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        yield position, position + length
        position += length


def _write_manifest(
    folder: epath.Path, source: Source, shards: list[epath.Path], parts: list[dict], plan: str
) -> None:
    ids = np.concatenate([part["ids"] for part in parts]).tolist()
    if ids != list(source.ids):
        raise ValueError(f"the shards in {folder} do not hold the images of {source.split!r}")
    index = {
        key: np.concatenate([part[key] for part in parts])
        for key in tile_format.INDEX
        if key not in ("shard", "first_tile")
    }
    index["shard"] = np.repeat(
        np.arange(len(parts), dtype=np.int32), [len(part["ids"]) for part in parts]
    )
    before = np.cumsum([0] + [len(part["image_length"]) for part in parts])
    index["first_tile"] = np.concatenate(
        [part["first_tile"] + start for part, start in zip(parts, before, strict=False)]
    )
    arrays = tile_format.index_path(folder, source.split)
    data = _pack(index)
    storage.write_bytes(arrays, data, sync=True)
    files = [{"name": arrays.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}]
    files += [
        {
            "name": shard.name,
            "bytes": int(part["bytes"]),
            "sha256": str(part["sha256"]),
            "images": len(part["ids"]),
        }
        for shard, part in zip(shards, parts, strict=True)
    ]
    manifest = {
        "format_version": tile_format.FORMAT_VERSION,
        "name": source.name,
        "split": source.split,
        "num_images": len(ids),
        "has_labels": source.has_labels,
        "tile": tile_format.TILE,
        "classes": source.classes.to_json(),
        "plan": plan,
        "files": files,
        "ids": ids,
    }
    path = tile_format.manifest_path(folder, source.split)
    storage.write_bytes(path, json.dumps(manifest, indent=1).encode(), sync=True)


def describe_for_tfds(folder: epath.Path) -> None:
    """Writes dataset_info.json and features.json for all prepared splits."""
    infos = []
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name="tiles", filetype_suffix="tfrecord"
    )
    for path in storage.files_in(folder, "tiles_*.json"):
        manifest = json.loads(storage.read_bytes(path))
        shards = manifest["files"][1:]
        infos.append(
            tfds.core.SplitInfo(
                name=manifest["split"],
                shard_lengths=[shard["images"] for shard in shards],
                num_bytes=sum(shard["bytes"] for shard in shards),
                filename_template=template.replace(split=manifest["split"]),
            )
        )
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=FEATURES,
        split_infos=infos,
        filename_template=template,
        version=VERSION,
        check_data=False,
        description=_DESCRIPTION,
        disable_shuffling=True,
    )


def verify(folder: str | os.PathLike, split: str, *, progress: bool = True) -> int:
    """Compares all files of a split with the checksums in its manifest; returns their number.

    Raises:
        FileNotFoundError, ValueError: naming the first file that is missing or differs.
    """
    folder = storage.path(folder)
    manifest = tile_format.read_manifest(folder, split)
    path = tile_format.manifest_path(folder, split)

    def check(number: int) -> None:
        entry = manifest["files"][number]
        tile_format.check_size(path, folder / entry["name"], entry["bytes"])
        with (folder / entry["name"]).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                raise ValueError(f"{folder / entry['name']} is damaged: another checksum in {path}")

    count = len(manifest["files"])
    for _ in parallel(check, range(count), f"verifying {split}", progress):
        pass
    return count


# ---- the same with TensorFlow Datasets


@dataclass
class TilesConfig(tfds.core.BuilderConfig):
    """Which dataset; `beam`: run on Apache Beam."""

    source: str = ""
    beam: bool = False


class Tiles(tfds.core.GeneratorBasedBuilder):
    """Tiles of the dataset in --manual_dir."""

    name = "tiles"
    VERSION = tfds.core.Version(VERSION)
    MANUAL_DOWNLOAD_INSTRUCTIONS = "--manual_dir is the dataset's folder, as training reads it."
    BUILDER_CONFIGS = [  # noqa: RUF012
        TilesConfig(name=f"{source}{suffix}", source=source, beam=bool(suffix))
        for source in SOURCES
        for suffix in ("", "_beam")
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self, features=FEATURES, description=_DESCRIPTION, disable_shuffling=True
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        self._sources = {}
        for split in _SPLITS:
            with contextlib.suppress(FileNotFoundError, ValueError):
                self._sources[split] = open_source(
                    self.builder_config.source, root=dl_manager.manual_dir, split=split
                )
        if not self._sources:
            # Says what was looked for.
            open_source(self.builder_config.source, root=dl_manager.manual_dir, split="train")
        return {s: self._generate_examples(source) for s, source in self._sources.items()}

    def _generate_examples(self, source: Source):
        if not self.builder_config.beam:
            return ((i, tile_example(source, i)) for i in range(len(source)))
        beam = tfds.core.lazy_imports.apache_beam
        return beam.Create(range(len(source))) | beam.Map(lambda i: (i, tile_example(source, i)))

    def _download_and_prepare(self, *args, **kwargs) -> None:
        super()._download_and_prepare(*args, **kwargs)
        for split, source in self._sources.items():
            shards = [epath.Path(path) for path in self.info.splits[split].filepaths]
            parts = []
            for shard in shards:
                with storage.local(shard) as file:
                    parts.append(index_shard(file))
            folder = epath.Path(self.data_dir)
            _write_manifest(folder, source, shards, parts, plan="tfds build")
