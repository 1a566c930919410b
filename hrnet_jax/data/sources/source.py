"""What a dataset is to the rest of the package: classes, names and the way to the samples.

Imports neither TensorFlow nor JAX, so that checkpoints and reports can use `Classes`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from etils import epath

IGNORE_LABEL = 255
# What lookup() gives for an id that the class list does not know. The audit and the readers refuse
# it, so it never reaches training.
UNKNOWN_LABEL = 254
MAX_CLASSES = 254

Window = tuple[slice, slice]  # rows and columns of an image
ClassesT = TypeVar("ClassesT")  # Classes or image_folder.ImageClasses
SampleT = TypeVar("SampleT")  # Sample or image_folder.LabeledImage


@dataclass(frozen=True)
class Classes:
    """The classes of a dataset; index i of every tuple belongs to train id i.

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
        for field_name in ("names", "categories"):
            if odd := [v for v in getattr(self, field_name) if not isinstance(v, str)]:
                raise ValueError(f"{field_name} must be strings, got {odd[0]!r}")
        _refuse_repeats("class name", self.names)
        _refuse_repeats("label id", (*self.label_ids, *self.ignore_ids))
        for what, ids, top in (("label", self.label_ids, 254), ("ignore", self.ignore_ids, 255)):
            for i in ids:
                if not _is_int(i) or not 0 <= i <= top:
                    raise ValueError(f"{what} id {i!r}: need an integer in 0..{top}")
        for name, color in zip(self.names, self.colors, strict=True):
            if len(color) != 3 or not all(_is_int(c) and 0 <= c <= 255 for c in color):
                raise ValueError(f"color {color!r} of {name!r}: need three integers in 0..255")

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
            raise ValueError(f"classes: each color must be a list [r, g, b], got {bad[0]!r}")
        values["colors"] = [tuple(c) for c in values["colors"]]
        return cls(**{k: tuple(v) for k, v in values.items()})


class Sample(Protocol):
    """One image and its label, decoded as far as asked for."""

    size: tuple[int, int]  # (height, width)

    def image(self, window: Window | None = None) -> np.ndarray:
        """uint8 RGB [h, w, 3]: the whole image, or the given rows and columns."""

    def label(self, window: Window | None = None) -> np.ndarray:
        """Raw ids, uint8 [h, w]; the split must have labels."""


class Records(Generic[SampleT]):
    """The samples of a split by number. Subclasses know how they are stored.

    Attributes:
        has_labels: whether the split has labels.
        image_paths: one image file per sample; empty if samples are not single files.
        label_paths: one label file per sample; empty if labels are not single files.
        id_counts: pixels of each raw id, uint32 [samples, 256], where they are stored with the
            samples; else None.
    """

    has_labels: bool
    image_paths: tuple[str, ...] = ()
    label_paths: tuple[str, ...] = ()
    id_counts: np.ndarray | None = None

    def __len__(self) -> int:
        raise NotImplementedError

    def name(self, index: int) -> str:
        """What error messages call the image."""
        raise NotImplementedError

    def label_name(self, index: int) -> str:
        """What error messages call the label."""
        return self.name(index)

    def files(self, index: int) -> tuple[str, ...]:
        """The files that hold a sample: its image and label, or a shard of many samples."""
        return tuple(paths[index] for paths in (self.image_paths, self.label_paths) if paths)

    def open(self, index: int) -> SampleT:
        """One sample.

        Raises:
            OSError: naming the file, if it cannot be read (FileNotFoundError if it is missing).
            ValueError: naming the file or record, if it is damaged.
        """
        raise NotImplementedError

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of an image, without decoding it. Raises as `open`."""
        return self.open(index).size  # type: ignore[attr-defined]

    def label(self, index: int) -> np.ndarray:
        """The raw ids of a label, uint8 [H, W]. Raises as `open`."""
        return self.open(index).label()  # type: ignore[attr-defined]

    def take(self, indices: Sequence[int]) -> "Records[SampleT]":
        """Only these samples, in this order."""
        raise NotImplementedError


@dataclass(frozen=True)
class Source(Generic[ClassesT, SampleT]):
    """One split of a dataset: the names of its samples and the way to their pixels.

    With a label per pixel it is a `Source[Classes, Sample]`; with a class per image an
    `image_folder.ImageSource`.

    Attributes:
        name: of the dataset, e.g. "cityscapes".
        split: e.g. "train".
        classes: what its labels mean.
        ids: stable relative names of the samples, without suffix; outputs are named after them.
        records: the samples.
        train_ids: 256 values, what each raw id in the labels means; empty: as `classes` says.

    Raises:
        ValueError: for an empty split, or a different number of ids and records.
    """

    name: str
    split: str
    classes: ClassesT
    ids: tuple[str, ...]
    records: Records[SampleT]
    train_ids: tuple[int, ...] = ()

    def __post_init__(self):
        if not self.ids:
            raise ValueError(f"split {self.split!r} of {self.name!r} holds no images")
        if len(self.records) != len(self.ids):
            raise ValueError(f"{len(self.ids)} ids but {len(self.records)} records")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def has_labels(self) -> bool:
        return self.records.has_labels

    @property
    def image_paths(self) -> tuple[str, ...]:
        """One file per sample; empty if the samples are not single files."""
        return self.records.image_paths

    @property
    def label_paths(self) -> tuple[str, ...]:
        """One file per sample; empty without labels, or if they are not single files."""
        return self.records.label_paths

    def image_name(self, index: int) -> str:
        """What messages call the image: its path, or the record's name."""
        return self.records.name(index)

    def label_name(self, index: int) -> str:
        """What messages call the label: its path, or the record's name."""
        return self.records.label_name(index)

    def take(self, indices: Sequence[int]) -> "Source[ClassesT, SampleT]":
        """The same split with only these samples, in this order."""
        ids = tuple(self.ids[i] for i in indices)
        return replace(self, ids=ids, records=self.records.take(indices))

    # ---- with a label per pixel

    def read(self: "Source[Classes, Sample]", index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Image uint8 [H, W, 3] and train ids uint8 [H, W] (None if the split has no labels).

        Raises:
            FileNotFoundError, ValueError: naming the file.
        """
        sample = self.records.open(index)
        label = self.to_train_ids(sample.label(), index) if self.has_labels else None
        return sample.image(), label

    def lookup(self: "Source[Classes, Sample]") -> np.ndarray:
        """uint8 [256]: raw id -> train id, IGNORE_LABEL or UNKNOWN_LABEL."""
        return np.array(self.train_ids, np.uint8) if self.train_ids else self.classes.lookup()

    def known_ids(self: "Source[Classes, Sample]") -> str:
        """The ids that labels may hold, as errors list them."""
        table = self.lookup()
        ignored, known = table == IGNORE_LABEL, table < UNKNOWN_LABEL
        return f"{np.flatnonzero(known).tolist()}, ignored: {np.flatnonzero(ignored).tolist()}"

    def to_train_ids(self: "Source[Classes, Sample]", label: np.ndarray, index: int) -> np.ndarray:
        """Raw ids -> train ids.

        Args:
            label: of the sample `index`, or a part of it, uint8 [h, w].
            index: for error messages.

        Raises:
            ValueError: naming the file and the ids that belong to no class.
        """
        # bytes.translate takes 1.6 ms for 2 Mpixels; indexing the table takes 6 ms.
        translated = label.tobytes().translate(self.lookup().tobytes())
        train_ids = np.frombuffer(translated, np.uint8).reshape(label.shape)
        if (unknown := train_ids == UNKNOWN_LABEL).any():
            raise self.unknown_ids(np.unique(label[unknown]).tolist(), index)
        return train_ids

    def unknown_ids(self: "Source[Classes, Sample]", ids: Sequence[int], index: int) -> ValueError:
        """The error for ids in a label that belong to no class."""
        return ValueError(
            f"label {self.label_name(index)} holds the ids {list(ids)}, which the class list does "
            f"not know; known: {self.known_ids()}"
        )

    def with_classes(
        self: "Source[Classes, Sample]", classes: Classes, class_map: Mapping[str, str]
    ) -> "Source[Classes, Sample]":
        """The same samples with the classes of another dataset.

        Args:
            classes: the new ones.
            class_map: for each class of this source the new name, or "" if it is to be ignored.

        Raises:
            ValueError: for names that do not exist, or a class without an entry.
        """
        own = self.classes.names
        for what, found, known in (
            ("maps the unknown classes", set(class_map) - set(own), own),
            ("maps to the unknown classes", {*class_map.values()} - {*classes.names, ""},
             classes.names),
            ("lacks the classes", set(own) - set(class_map), own),
        ):  # fmt: skip
            if found:
                raise ValueError(
                    f"the class map of {self.name!r} {what} {sorted(found)}; known: {known}"
                )
        table = self.lookup()
        new = {n: k for k, n in enumerate(classes.names)} | {"": IGNORE_LABEL}
        for label, name in enumerate(own):
            table[self.lookup() == label] = new[class_map[name]]
        return replace(self, classes=classes, train_ids=tuple(table.tolist()))


def describe_folder(path: epath.Path, limit: int = 8) -> str:
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
    # Compared one by one, as values from a file may be of any type, also unhashable ones.
    if repeated := [v for k, v in enumerate(values) if v in values[:k]]:
        raise ValueError(f"{what} used more than once: {repeated}")
