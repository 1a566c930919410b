"""Images and labels cut into tiles, each compressed on its own: how they are stored and read.

A split is a number of TFRecord shards, one `tf.train.Example` per image, and two small files:

    tiles-SPLIT.tfrecord-00000-of-00012, ...
    tiles_SPLIT.npz       where each image and each of its tiles lies in the shards
    tiles_SPLIT.json      the manifest: names, classes, sizes and checksums of all these files

The manifest is written last and names its files with their sizes, so a folder without it, or with a
file of another length, is never read. A crop takes one read per row of tiles below it. Each tile
holds a checksum of its pixels. docs/data.md has the measurements behind these choices.
"""

import hashlib
import io
import json
import math
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import zstandard
from etils import epath

from hrnet_jax.data.sources.source import Classes, Records, Sample, Source, Window, describe_folder
from hrnet_jax.runtime import storage

FORMAT_VERSION = 1
# (height, width)
TILE = (64, 256)
LEVEL = 1
PREPARE = "python -m hrnet_jax.tools.prepare_tiles"
# What the index of a split holds, for n images with t tiles in all.
INDEX = {
    "size": "int32 [n, 2], (height, width)",
    "shard": "int32 [n]",
    "image_start": "int64 [n], where its compressed tiles begin in the shard",
    "label_start": "int64 [n]",
    "first_tile": "int64 [n], where its tiles begin in the next two",
    "image_length": "int32 [t], bytes of each tile",
    "label_length": "int32 [t]",
    "id_count": "uint32 [n, 256], pixels of each raw id",
}

_thread = threading.local()


class Grid(NamedTuple):
    """How an image is cut; the last row and column of tiles may be smaller."""

    size: tuple[int, int]
    tile: tuple[int, int]

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of tiles."""
        return -(-self.size[0] // self.tile[0]), -(-self.size[1] // self.tile[1])

    def extent(self, row: int, column: int) -> tuple[int, int]:
        """(height, width) of one tile."""
        place = row, column
        height, width = (
            min(t, n - k * t) for k, n, t in zip(place, self.size, self.tile, strict=True)
        )
        return height, width


def encode_tiles(pixels: np.ndarray, tile: tuple[int, int] = TILE) -> list[bytes]:
    """Compresses an image or a label, tile by tile, row after row.

    Images are stored as differences to the pixel above; undoing them is one addition per row.

    Args:
        pixels: uint8 [H, W, 3] or, for labels, [H, W].
        tile: (height, width).
    """
    height, width = tile
    compressor = zstandard.ZstdCompressor(level=LEVEL, write_checksum=True)
    encoded = []
    for top in range(0, pixels.shape[0], height):
        band = pixels[top : top + height]
        if pixels.ndim == 3:
            band = np.concatenate([band[:1], band[1:] - band[:-1]])
        for left in range(0, pixels.shape[1], width):
            encoded.append(compressor.compress(band[:, left : left + width].tobytes()))
    return encoded


@dataclass(frozen=True)
class TileRecords(Records[Sample]):
    """Random access to the images of a prepared split, see `source.Records`.

    Attributes:
        paths: of the shards.
        ids: of the images.
        tile: (height, width) of the tiles.
        has_labels: whether the split has labels.
        index: the arrays of INDEX.
        rows: which rows of the index these images are, int64 [images].
    """

    paths: tuple[str, ...]
    ids: tuple[str, ...]
    tile: tuple[int, int]
    has_labels: bool
    index: dict[str, np.ndarray] = field(compare=False, repr=False)
    rows: np.ndarray = field(compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, indices: Sequence[int]) -> "TileRecords":
        indices = list(indices)
        return replace(self, ids=tuple(self.ids[i] for i in indices), rows=self.rows[indices])

    def name(self, index: int) -> str:
        shard = self.index["shard"][self.rows[index]]
        return f"{self.ids[index]} in {self.paths[shard]}"

    def open(self, index: int) -> "TileSample":
        row = self.rows[index]
        height, width = self.index["size"][row].tolist()
        return TileSample(self, row, self.name(index), (height, width))

    @property
    def id_counts(self) -> np.ndarray:
        """Pixels of each raw id, uint32 [images, 256]."""
        return self.index["id_count"][self.rows]


@dataclass(frozen=True)
class TileSample:
    """One image and its label, see `source.Sample`."""

    records: TileRecords
    row: int
    name: str
    size: tuple[int, int]

    def image(self, window: Window | None = None) -> np.ndarray:
        """uint8 RGB [h, w, 3].

        Raises:
            FileNotFoundError, ValueError: naming image and shard.
        """
        return self._read("image", window)

    def label(self, window: Window | None = None) -> np.ndarray:
        """Raw ids, uint8 [h, w].

        Raises:
            FileNotFoundError, ValueError: naming image and shard.
        """
        return self._read("label", window)

    def _read(self, kind: str, window: Window | None) -> np.ndarray:
        rows, columns = window or (slice(0, self.size[0]), slice(0, self.size[1]))
        height, width = self.records.tile
        grid = Grid(self.size, self.records.tile)
        top, bottom = rows.start // height, -(-rows.stop // height)
        left, right = columns.start // width, -(-columns.stop // width)
        channels = (3,) if kind == "image" else ()
        bands = np.empty(
            (bottom - top, height, min(right * width, self.size[1]) - left * width, *channels),
            np.uint8,
        )
        widths = [grid.extent(0, column)[1] for column in range(left, right)]
        for k, tiles in enumerate(self._stored(kind, grid, range(top, bottom), left, right)):
            tall = grid.extent(top + k, 0)[0]
            for i, (tile, wide) in enumerate(zip(tiles, widths, strict=True)):
                pixels = self._decompress(tile, (tall, wide, *channels), (top + k, left + i))
                bands[k, :tall, i * width : i * width + wide] = pixels
        if kind == "image":
            # All rows of tiles at once. Rows below the image hold arbitrary values and are cut off.
            for y in range(1, height):
                np.add(bands[:, y - 1], bands[:, y], out=bands[:, y])
        whole = bands.reshape(-1, *bands.shape[2:])
        first_row, first_column = top * height, left * width
        return whole[
            rows.start - first_row : rows.stop - first_row,
            columns.start - first_column : columns.stop - first_column,
        ]

    def _stored(self, kind: str, grid: Grid, rows: range, left: int, right: int):
        """The compressed tiles left .. right - 1 of each row."""
        index, per_row = self.records.index, grid.shape[1]
        first = index["first_tile"][self.row]
        count = grid.shape[0] * per_row
        lengths = index[f"{kind}_length"][first : first + count]
        ends = index[f"{kind}_start"][self.row] + np.cumsum(lengths, dtype=np.int64)
        path = self.records.paths[index["shard"][self.row]]
        parts = [slice(row * per_row + left, row * per_row + right) for row in rows]
        spans = [(int(ends[p][0] - lengths[p][0]), int(ends[p][-1])) for p in parts]
        for part, data in zip(parts, storage.read_spans(path, spans), strict=True):
            view = memoryview(data)
            splits = np.cumsum(lengths[part]).tolist()
            yield [view[a:b] for a, b in zip([0, *splits], splits, strict=False)]

    def _decompress(self, tile: memoryview, shape: tuple, place: tuple[int, int]) -> np.ndarray:
        if not hasattr(_thread, "decompressor"):
            _thread.decompressor = zstandard.ZstdDecompressor()
        size = math.prod(shape)
        try:
            # Before anything is allocated: damaged bytes may claim any size.
            if (found := zstandard.frame_content_size(tile)) != size:
                raise ValueError(f"{found} bytes instead of {size}")
            return np.frombuffer(_thread.decompressor.decompress(tile), np.uint8).reshape(shape)
        except (zstandard.ZstdError, ValueError) as error:
            raise ValueError(
                f"tile {place} of {self.name} is damaged: {error}; `{PREPARE} --verify` looks for "
                "more; restore the file or prepare the tiles again"
            ) from error


def manifest_path(folder: epath.Path, split: str) -> epath.Path:
    return folder / f"tiles_{split}.json"


def index_path(folder: epath.Path, split: str) -> epath.Path:
    return folder / f"tiles_{split}.npz"


def find_tiles(root: str | os.PathLike, name: str) -> epath.Path | None:
    """The folder with tiles of a dataset, if `root` is one, or a data_dir of TFDS with one."""
    built = [f"tiles/{kind}/*/tiles_*.json" for kind in (name, f"{name}_beam")]
    root = storage.path(root)
    for pattern in (*reversed(built), "tiles_*.json"):
        if found := storage.files_in(root, pattern):
            return epath.Path(found[-1]).parent
    return None


def open_tiles(folder: epath.Path, name: str, split: str) -> Source:
    """A prepared split.

    Args:
        folder: of `find_tiles`.
        name: of the dataset that the tiles must be from.
        split: of the dataset.

    Raises:
        FileNotFoundError: if the split is not prepared, or a file is missing.
        ValueError: naming the file, if the manifest does not match the other files or the dataset.
    """
    manifest = read_manifest(folder, split)
    path = manifest_path(folder, split)
    if manifest["name"] != name:
        raise ValueError(
            f"{path} is of the dataset {manifest['name']!r}, not {name!r}: give "
            f"--config.data.name={manifest['name']} or another folder"
        )
    for shard in manifest["files"]:
        check_size(path, folder / shard["name"], shard["bytes"])
    arrays = index_path(folder, split)
    data = storage.read_bytes(str(arrays))
    if hashlib.sha256(data).hexdigest() != manifest["files"][0]["sha256"]:
        raise ValueError(f"{arrays} is not the file that {path} describes; prepare it again")
    with np.load(io.BytesIO(data)) as file:
        index = {key: file[key] for key in INDEX}
    ids = tuple(manifest["ids"])
    if len(ids) != len(index["size"]) or len(ids) != manifest["num_images"]:
        raise ValueError(f"{path} lists {len(ids)} images, {arrays} {len(index['size'])}")
    return Source(
        name=name,
        split=split,
        classes=Classes.from_json(manifest["classes"]),
        ids=ids,
        records=TileRecords(
            paths=tuple(str(folder / shard["name"]) for shard in manifest["files"][1:]),
            ids=ids,
            tile=tuple(manifest["tile"]),
            has_labels=manifest["has_labels"],
            index=index,
            rows=np.arange(len(ids)),
        ),
    )


def read_manifest(folder: epath.Path, split: str) -> dict:
    """The manifest of a prepared split.

    Raises:
        FileNotFoundError: if there is none; it lists what was found.
        ValueError: if it is damaged or of another version.
    """
    path = manifest_path(folder, split)
    if not path.is_file():
        found = map(epath.Path, storage.files_in(folder, "tiles_*.json"))
        prepared = [p.stem.removeprefix("tiles_") for p in found]
        unfinished = " (begun, not finished)" if unfinished_folder(folder, split).is_dir() else ""
        raise FileNotFoundError(
            f"split {split!r} is not prepared{unfinished}: {path} is missing, prepared are "
            f"{prepared}; {describe_folder(folder)}. Run {PREPARE} --help"
        )
    try:
        manifest = json.loads(path.read_text())
        version = manifest["format_version"]
        missing = {"name", "classes", "ids", "files", "num_images", "tile", "has_labels"} - set(
            manifest
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"manifest {path} is damaged: {error!r}; prepare the tiles again"
        ) from error
    if version != FORMAT_VERSION or missing:
        raise ValueError(
            f"manifest {path} is of version {version}, this program reads {FORMAT_VERSION}"
            + (f"; it lacks {sorted(missing)}" if missing else "")
        )
    return manifest


def unfinished_folder(folder: epath.Path, split: str) -> epath.Path:
    """Where a preparation keeps what it knows until it is complete."""
    return folder / f"unfinished_{split}"


def check_size(manifest: epath.Path, path: epath.Path, expected: int) -> None:
    """Raises FileNotFoundError or ValueError unless a file has the size its manifest says."""
    try:
        size = storage.size(str(path))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} is missing, which {manifest} lists; prepare it again"
        ) from None
    if size != expected:
        raise ValueError(
            f"{path} has {size} bytes, {manifest} says {expected}: it is cut off or another file; "
            "restore it or prepare the tiles again"
        )
