"""Samples that are an image file and a label file each."""

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from etils import epath

from hrnet_jax.data.images import decode
from hrnet_jax.data.images.headers import Header, check_sizes, parse_header, read_header
from hrnet_jax.data.sources import label_values
from hrnet_jax.data.sources.source import (
    Classes,
    Records,
    Sample,
    Source,
    Window,
    describe_folder,
)
from hrnet_jax.runtime import storage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncodedSample:
    """A sample of encoded files, see `source.Sample`.

    Attributes:
        image_data: an image file of any kind that `decode.decode_image` reads.
        label_data: a PNG file, or None.
        image_name: what errors call the image.
        label_name: what errors call the label.
        classes: how the files are read; None: labels are ids of one byte.
    """

    image_data: bytes
    label_data: bytes | None
    image_name: str
    label_name: str
    classes: Classes | None = None

    @property
    def size(self) -> tuple[int, int]:
        return self._header.size

    @cached_property
    def _header(self) -> Header:
        return parse_header(self.image_data, self.image_name)

    def image(self, window: Window | None = None) -> np.ndarray:
        image_range = self.classes.image_range if self.classes else None
        rows = None if window is None else window[0].stop
        image = decode.decode_image(self.image_data, self.image_name, rows, image_range=image_range)
        return image if window is None else image[window]

    def label(self, window: Window | None = None) -> np.ndarray:
        header = parse_header(self.label_data, self.label_name)
        check_sizes(self._header, header, self.image_name, self.label_name)
        rows = None if window is None else window[0].stop
        label = read_label(self.label_data, self.label_name, self.classes, rows)
        return label if window is None else label[window]


@dataclass(frozen=True)
class Files(Records[Sample]):
    """Image files and their label files, see `source.Records`.

    Attributes:
        image_paths: one per sample.
        label_paths: one per sample; empty if the split has no labels.
        classes: how the files are read; None: labels are ids of one byte.

    Raises:
        ValueError: if the numbers of files differ.
    """

    image_paths: tuple[str, ...] = field()  # without the default of `Records`
    label_paths: tuple[str, ...] = ()
    classes: Classes | None = None

    def __post_init__(self):
        if self.label_paths and len(self.label_paths) != len(self.image_paths):
            raise ValueError(
                f"{len(self.image_paths)} image files but {len(self.label_paths)} label files: "
                f"{self.label_paths[:2]} ..."
            )

    @property
    def has_labels(self) -> bool:
        return bool(self.label_paths)

    def __len__(self) -> int:
        return len(self.image_paths)

    def name(self, index: int) -> str:
        return self.image_paths[index]

    def label_name(self, index: int) -> str:
        return self.label_paths[index] if self.label_paths else self.image_paths[index]

    def open(self, index: int) -> EncodedSample:
        label = storage.read_bytes(self.label_paths[index]) if self.label_paths else None
        image = storage.read_bytes(self.image_paths[index])
        return EncodedSample(image, label, self.name(index), self.label_name(index), self.classes)

    def size(self, index: int) -> tuple[int, int]:
        return read_header(self.image_paths[index]).size

    def label(self, index: int) -> np.ndarray:
        # Counting the ids of a split needs no images, which are ten times as large.
        path = self.label_paths[index]
        return read_label(storage.read_bytes(path), path, self.classes)

    def take(self, indices: Sequence[int]) -> "Files":
        pick = lambda paths: tuple(paths[i] for i in indices) if paths else ()  # noqa: E731
        return Files(pick(self.image_paths), pick(self.label_paths), self.classes)


def read_label(
    data: bytes, name: str, classes: Classes | None, rows: int | None = None
) -> np.ndarray:
    """A label file as `Records.label` gives it, uint8 [H, W].

    Args:
        data: the file's bytes.
        name: what errors call it.
        classes: the class list; None: labels are ids of one byte.
        rows: how many are needed, from the top; more may come.

    Raises:
        ValueError: naming the file, if it is damaged or holds what the class list does not know.
    """
    colors = classes is not None and classes.label_type == "colors"
    values = decode.decode_label(data, name, rows, colors=colors)
    return label_values.to_bytes(values, classes, name)


class Pair(NamedTuple):
    """A sample of a dataset of files: its id, its image file and where its label file must be."""

    id: str
    image: str
    label: str


def not_hidden(names: Iterable[str]) -> list[str]:
    """The relative paths without a part that begins with a dot.

    Operating systems and tools leave files such as ._NAME.png, .DS_Store and .ipynb_checkpoints/.
    """
    return [name for name in names if not _is_hidden(name.split("/"))]


def _is_hidden(parts: Sequence[str]) -> bool:
    return any(part.startswith(".") for part in parts)


def log_unused(folder: str | os.PathLike, names: Iterable[str], what: str) -> None:
    """Warns of files of a dataset that are not used, with their number and the first ones.

    Args:
        folder: where they lie.
        names: their places in the folder.
        what: why, as in "are labels without an image".
    """
    if names := sorted(names):
        logger.warning(
            "%d files in %s %s and are not used, e.g. %s", len(names), folder, what, names[:3]
        )


def log_unpaired(
    images: tuple[epath.Path, str], labels: tuple[epath.Path, str], pairs: Iterable[Pair]
) -> None:
    """Warns of files of a dataset with fixed names that belong to no pair.

    Args:
        images: folder of a split's images, and the pattern (of `storage.files_in`) of all files in
            it.
        labels: folder of its labels, and the pattern of labels only.
        pairs: what is used.
    """
    used = {path for pair in pairs for path in (pair.image, pair.label)}
    kinds = ((images, "do not have the names of images"), (labels, "are labels without an image"))
    for (folder, pattern), what in kinds:
        names = (
            p[len(str(folder)) + 1 :] for p in storage.files_in(folder, pattern) if p not in used
        )
        log_unused(folder, not_hidden(names), what)


def find_images(
    root: epath.Path, folder: epath.Path, pattern: str, *, dataset: str, layout: str
) -> list[str]:
    """The files in `folder` that fit the pattern, without hidden ones, in order of names.

    Args:
        root: the dataset's folder, described in the error.
        folder: below root.
        pattern: of `storage.files_in`.
        dataset: its name, for the error.
        layout: where files are expected, for the error.

    Raises:
        FileNotFoundError: if there are none; it says what was looked for and what is there.
    """
    depth = 1 + pattern.count("/")
    found = storage.files_in(folder, pattern)
    found = [path for path in found if not _is_hidden(path.split("/")[-depth:])]
    if not found:
        inside = "; ".join(describe_folder(p) for p in (root, folder) if p == root or p.is_dir())
        raise FileNotFoundError(
            f"no {dataset} images: looked for {folder}/{pattern}; {inside}. "
            f"Expected layout: {layout}. Is --config.data.root the right folder?"
        )
    return found


def source_of_pairs(
    name: str,
    split: str,
    classes: Classes,
    pairs: Iterable[Pair],
    *,
    layout: str,
    has_labels: bool = True,
) -> Source[Classes, Sample]:
    """The source of these files.

    Args:
        name: of the dataset.
        split: of the dataset.
        classes: what the labels mean.
        pairs: one per sample.
        layout: where files are expected, for the error.
        has_labels: False: the pairs' label files are not looked at.

    Raises:
        FileNotFoundError: if a label file is missing.
    """
    ids, images, labels = zip(*pairs, strict=True)
    if not has_labels:
        labels = ()
    if missing := storage.missing(labels):
        folder = storage.path(os.path.dirname(missing[0]))
        raise FileNotFoundError(
            f"{len(missing)} of {len(labels)} images of {name} {split!r} have no label; looked for "
            f"{', '.join(missing[:3])}; {describe_folder(folder)} (layout: {layout})"
        )
    return Source(name, split, classes, ids, Files(images, labels, classes))
