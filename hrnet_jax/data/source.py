"""What a data set is to the rest of the package: classes, names and where the bytes are.

NumPy only: no TensorFlow and no JAX, so that checkpoints and reports can use `Classes` freely.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

IGNORE_LABEL = 255
# What lookup() gives for an id the class list does not know. The audit and the readers refuse it;
# it never reaches training.
UNKNOWN_LABEL = 254
MAX_CLASSES = 254


@dataclass(frozen=True)
class Classes:
    """The classes of a data set; index i of every tuple belongs to train id i.

    Attributes:
        names: one per class.
        colors: RGB in 0..255, one per class.
        label_ids: the raw id in the label files, one per class, in 0..254.
        ignore_ids: raw ids that are known and mean "no class". 255 always does.
        categories: a coarser name per class, or empty.

    Raises:
        ValueError: for lengths that differ, ids out of range or used twice, names used twice.
    """

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    label_ids: tuple[int, ...]
    ignore_ids: tuple[int, ...] = ()
    categories: tuple[str, ...] = ()

    def __post_init__(self):
        if not 1 <= len(self.names) <= MAX_CLASSES:
            raise ValueError(f"need 1..{MAX_CLASSES} classes, got {len(self.names)}")
        for field_name in ("colors", "label_ids", "categories"):
            values = getattr(self, field_name)
            if len(values) != len(self.names) and not (field_name == "categories" and not values):
                raise ValueError(f"{len(self.names)} names but {len(values)} {field_name}")
        _refuse_repeats("class name", self.names)
        _refuse_repeats("label id", (*self.label_ids, *self.ignore_ids))
        for what, ids, top in (("label", self.label_ids, 254), ("ignore", self.ignore_ids, 255)):
            for i in ids:
                if not _is_int(i) or not 0 <= i <= top:
                    raise ValueError(f"{what} id {i!r}: need an integer in 0..{top}")
        for name, color in zip(self.names, self.colors, strict=True):
            if len(color) != 3 or not all(_is_int(c) and 0 <= c <= 255 for c in color):
                raise ValueError(f"colour {color!r} of {name!r}: need three integers in 0..255")

    @property
    def num_classes(self) -> int:
        return len(self.names)

    def lookup(self) -> np.ndarray:
        """uint8 [256]: raw id -> train id, IGNORE_LABEL or UNKNOWN_LABEL."""
        table = np.full(256, UNKNOWN_LABEL, np.uint8)
        table[[*self.ignore_ids, IGNORE_LABEL]] = IGNORE_LABEL
        table[list(self.label_ids)] = np.arange(self.num_classes)
        return table

    def to_json(self) -> dict[str, Any]:
        """Plain lists, as stored in checkpoints; `from_json` reads them."""
        return {
            "names": list(self.names),
            "colors": [list(c) for c in self.colors],
            "label_ids": list(self.label_ids),
            "ignore_ids": list(self.ignore_ids),
            "categories": list(self.categories),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Classes":
        """The inverse of `to_json`.

        Raises:
            ValueError: for missing or unknown keys, or values that do not fit together.
        """
        known = ("names", "colors", "label_ids", "ignore_ids", "categories")
        if not isinstance(data, dict):
            raise ValueError(f"classes must be a dict with {known}, got {type(data).__name__}")
        if unknown := sorted(set(data) - set(known)):
            raise ValueError(f"unknown keys {unknown} in classes; known: {known}")
        if missing := [k for k in known[:3] if k not in data]:
            raise ValueError(f"classes lack the keys {missing}; needed: {known[:3]}")
        values = {k: data.get(k, []) for k in known}
        for k, v in values.items():
            if not isinstance(v, list | tuple):
                raise ValueError(f"classes: {k!r} must be a list, got {type(v).__name__}")
        if bad := [c for c in values["colors"] if not isinstance(c, list | tuple)]:
            raise ValueError(f"classes: each colour must be a list [r, g, b], got {bad[0]!r}")
        values["colors"] = [tuple(c) for c in values["colors"]]
        return cls(**{k: tuple(v) for k, v in values.items()})


class Records(Protocol):
    """Samples that are not single files, e.g. inside shards."""

    has_labels: bool

    def read(self, index: int) -> tuple[bytes, bytes | None]:
        """The encoded image and label of one sample."""

    def name(self, index: int) -> str:
        """What error messages call the sample."""


@dataclass(frozen=True)
class Source:
    """One split of a data set: the names of its samples and the way to their bytes.

    Attributes:
        name: of the data set, e.g. "cityscapes".
        split: e.g. "train".
        classes: what its labels mean.
        ids: stable relative names of the samples, without suffix; outputs are named after them.
        image_paths: one file per sample; empty if the samples live in `records`.
        label_paths: one file per sample; empty if the split has no labels.
        records: gives the bytes of samples that are not single files.
    """

    name: str
    split: str
    classes: Classes
    ids: tuple[str, ...]
    image_paths: tuple[str, ...] = ()
    label_paths: tuple[str, ...] = ()
    records: Records | None = field(default=None, compare=False)

    def __post_init__(self):
        if not self.ids:
            raise ValueError(f"split {self.split!r} of {self.name!r} holds no images")
        for paths in (self.image_paths, self.label_paths):
            if paths and len(paths) != len(self.ids):
                raise ValueError(f"{len(self.ids)} ids but {len(paths)} files: {paths[:2]} ...")
        if bool(self.image_paths) == (self.records is not None):
            raise ValueError("a source needs either image_paths or records")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def has_labels(self) -> bool:
        return bool(self.label_paths) if self.records is None else self.records.has_labels

    def image_name(self, index: int) -> str:
        """What messages call the image: its path, or the record's name."""
        return self.image_paths[index] if self.image_paths else self.records.name(index)

    def label_name(self, index: int) -> str:
        """What messages call the label: its path, or the record's name."""
        return self.label_paths[index] if self.label_paths else self.records.name(index)

    def read(self, index: int) -> tuple[bytes, bytes | None]:
        """The encoded image and, where the split has labels, the encoded label.

        Raises:
            OSError: naming the file, if it cannot be read (FileNotFoundError if it is gone).
        """
        if self.records is not None:
            return self.records.read(index)
        label = Path(self.label_paths[index]).read_bytes() if self.label_paths else None
        return Path(self.image_paths[index]).read_bytes(), label

    def read_label(self, index: int) -> bytes:
        """The encoded label alone; the split must have labels.

        Raises:
            OSError: naming the file, if it cannot be read.
        """
        if self.records is not None:
            return self.records.read(index)[1]
        return Path(self.label_paths[index]).read_bytes()

    def take(self, indices: Sequence[int]) -> "Source":
        """The same split with only these samples, in this order."""

        def pick(values: tuple) -> tuple:
            return tuple(values[i] for i in indices) if values else ()

        records = _Subset(self.records, tuple(indices)) if self.records is not None else None
        return Source(
            name=self.name,
            split=self.split,
            classes=self.classes,
            ids=pick(self.ids),
            image_paths=pick(self.image_paths),
            label_paths=pick(self.label_paths),
            records=records,
        )


@dataclass(frozen=True)
class _Subset:
    records: Records
    indices: tuple[int, ...]

    @property
    def has_labels(self) -> bool:
        return self.records.has_labels

    def read(self, index: int) -> tuple[bytes, bytes | None]:
        return self.records.read(self.indices[index])

    def name(self, index: int) -> str:
        return self.records.name(self.indices[index])


def describe_folder(path: Path, limit: int = 8) -> str:
    """What errors say about a folder in which something was not found."""
    if not path.is_dir():
        return f"{path} is not a folder"
    inside = sorted(p.name for p in path.iterdir())
    more = ", ..." if len(inside) > limit else ""
    return f"{path} holds {', '.join(inside[:limit]) + more if inside else 'nothing'}"


def _is_int(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _refuse_repeats(what: str, values: Iterable) -> None:
    values = list(values)
    if repeated := sorted({v for v in values if values.count(v) > 1}):
        raise ValueError(f"{what} used more than once: {repeated}")
