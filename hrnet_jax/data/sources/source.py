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
# The largest raw id: that of a 16-bit PNG.
MAX_ID = 65535
LABEL_TYPES = ("ids", "colors")
_LIST_KEYS = ("names", "colors", "label_ids", "ignore_ids", "categories", "ignore_colors")

Color = tuple[int, int, int]  # RGB, 0..255
Window = tuple[slice, slice]  # rows and columns of an image
ClassesT = TypeVar("ClassesT")  # Classes or image_folder.ImageClasses
SampleT = TypeVar("SampleT")  # Sample or image_folder.LabeledImage


@dataclass(frozen=True)
class Classes:
    """The classes of a dataset; index i of every tuple of one per class belongs to train id i.

    Attributes:
        names: one per class.
        colors: RGB in 0..255, one per class.
        label_ids: the raw id in the label files, one per class, in 0..65535; a tuple where several
            raw ids are one class, whose first one is written back.
        ignore_ids: raw ids that are known and mean "no class". 255 does unless it is a label id.
        categories: a coarser name per class, or empty.
        label_type: of LABEL_TYPES: label files hold "ids", or exactly the "colors".
        ignore_colors: colors in label files that mean "no class".
        ignore_rest: every other id or color means "no class", too; "ignore_ids": "rest" in JSON.
        image_range: (low, high), the values in pictures of more than 8 bits that become 0 and 255;
            None: such pictures are refused.

    Raises:
        ValueError: for lengths that differ, ids out of range or used twice, names used twice.
    """

    names: tuple[str, ...]
    colors: tuple[Color, ...]
    label_ids: tuple[int | tuple[int, ...], ...]
    ignore_ids: tuple[int, ...] = ()
    categories: tuple[str, ...] = ()
    label_type: str = "ids"
    ignore_colors: tuple[Color, ...] = ()
    ignore_rest: bool = False
    image_range: tuple[int, int] | None = None

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
        for name, color in zip(self.names, self.colors, strict=True):
            _check_color(color, f" of {name!r}")
        self._check_ids()
        self._check_label_type()
        _check_image_range(self.image_range)

    def _check_ids(self) -> None:
        # [4] is 4, so that equal classes compare equal.
        one = lambda ids: ids[0] if isinstance(ids, tuple) and len(ids) == 1 else ids  # noqa: E731
        object.__setattr__(self, "label_ids", tuple(map(one, self.label_ids)))
        if () in self.label_ids:
            raise ValueError(f"class {self.names[self.label_ids.index(())]!r} has no label id")
        label_ids = [i for ids in self.ids_by_class for i in ids]
        for what, ids in (("label", label_ids), ("ignore", self.ignore_ids)):
            for i in ids:
                if not _is_int(i) or not 0 <= i <= MAX_ID:
                    raise ValueError(f"{what} id {i!r}: need an integer in 0..{MAX_ID}")
        _refuse_repeats("label id", (*label_ids, *self.ignore_ids))

    def _check_label_type(self) -> None:
        if self.ignore_rest and (self.ignore_ids or self.ignore_colors):
            raise ValueError("ignore_rest ignores all others: give no ignore_ids or ignore_colors")
        if self.label_type not in LABEL_TYPES:
            raise ValueError(f"unknown label_type {self.label_type!r}; known: {LABEL_TYPES}")
        for color in self.ignore_colors:
            _check_color(color, " in ignore_colors")
        if self.label_type == "ids":
            if self.ignore_colors:
                raise ValueError('ignore_colors are for labels with "label_type": "colors"')
            return
        if self.ignore_ids:
            raise ValueError('"label_type": "colors" has ignore_colors, not ignore_ids')
        _refuse_repeats("color of label files", (*self.colors, *self.ignore_colors))

    @property
    def num_classes(self) -> int:
        return len(self.names)

    @property
    def ids_by_class(self) -> tuple[tuple[int, ...], ...]:
        """All raw ids of each class."""
        return tuple(ids if isinstance(ids, tuple) else (ids,) for ids in self.label_ids)

    @property
    def first_ids(self) -> tuple[int, ...]:
        """The raw id that is written for each class."""
        return tuple(ids[0] for ids in self.ids_by_class)

    @property
    def stores_raw_ids(self) -> bool:
        """Whether a byte holds every raw id of the class list.

        Readers (`Records.label`), tiles and counts have one byte per pixel. It is the raw id where
        this is true; else (ids above 255, colors) it is the train id, or IGNORE_LABEL.
        """
        ids = [i for ids in self.ids_by_class for i in ids]
        return self.label_type == "ids" and max(*ids, *self.ignore_ids, 0) <= 255

    @property
    def label_format(self) -> str:
        """On what, apart from its file, a label as read depends; "" if it holds raw ids."""
        if self.stores_raw_ids and not self.ignore_rest:
            return ""
        parts = self.label_type, self.colors, self.ignore_colors, self.label_ids, self.ignore_ids
        return repr((*parts, self.ignore_rest))

    def lookup(self) -> np.ndarray:
        """uint8 [256]: byte in a label as read -> train id, IGNORE_LABEL or UNKNOWN_LABEL."""
        raw = self.stores_raw_ids
        table = np.full(256, IGNORE_LABEL if self.ignore_rest and raw else UNKNOWN_LABEL, np.uint8)
        table[IGNORE_LABEL] = IGNORE_LABEL
        table[list(self.ignore_ids) if raw else []] = IGNORE_LABEL
        for k, ids in enumerate(self.ids_by_class):
            table[list(ids) if raw else k] = k
        return table

    def to_json(self) -> dict[str, Any]:
        """Plain lists, as stored in checkpoints; `from_json` reads them.

        Later keys are left out where they have their default, so that older files stay equal.
        """
        data: dict[str, Any] = {
            "names": list(self.names),
            "colors": [list(c) for c in self.colors],
            "label_ids": [list(i) if isinstance(i, tuple) else i for i in self.label_ids],
            "ignore_ids": list(self.ignore_ids),
            "categories": list(self.categories),
        }
        if self.label_type != "ids":
            data["label_type"] = self.label_type
        if self.ignore_colors:
            data["ignore_colors"] = [list(c) for c in self.ignore_colors]
        if self.ignore_rest:
            data["ignore_ids" if self.label_type == "ids" else "ignore_colors"] = "rest"
        if self.image_range:
            data["image_range"] = list(self.image_range)
        return data

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Classes":
        """The inverse of `to_json`.

        Raises:
            ValueError: for missing or unknown keys, or values that do not fit together.
        """
        known = (*_LIST_KEYS, "label_type", "image_range")
        if not isinstance(data, dict):
            raise ValueError(f"classes must be a dict with {known}, got {type(data).__name__}")
        if unknown := sorted(set(data) - set(known)):
            raise ValueError(f"unknown keys {unknown} in classes; known: {known}")
        if missing := [k for k in _LIST_KEYS[:3] if k not in data]:
            raise ValueError(f"classes lack the keys {missing}; needed: {_LIST_KEYS[:3]}")
        values = {k: data.get(k, []) for k in _LIST_KEYS}
        label_type = data.get("label_type", "ids")
        ignore_key = "ignore_ids" if label_type == "ids" else "ignore_colors"
        if ignore_rest := values[ignore_key] == "rest":
            values[ignore_key] = []
        for k, v in values.items():
            if not isinstance(v, list | tuple):
                raise ValueError(f"classes: {k!r} must be a list, got {type(v).__name__}")
        for k in ("colors", "ignore_colors"):
            if bad := [c for c in values[k] if not isinstance(c, list | tuple)]:
                raise ValueError(f"classes: each color must be a list [r, g, b], got {bad[0]!r}")
        # Ids and colors of a class may be lists themselves.
        frozen = lambda v: tuple(v) if isinstance(v, list) else v  # noqa: E731
        lists: dict[str, Any] = {k: tuple(map(frozen, v)) for k, v in values.items()}
        return cls(
            **lists,
            label_type=label_type,
            ignore_rest=ignore_rest,
            image_range=frozen(data.get("image_range")),
        )


class Sample(Protocol):
    """One image and its label, decoded as far as asked for."""

    size: tuple[int, int]  # (height, width)

    def image(self, window: Window | None = None) -> np.ndarray:
        """uint8 RGB [h, w, 3]: the whole image, or the given rows and columns."""

    def label(self, window: Window | None = None) -> np.ndarray:
        """Raw ids, uint8 [h, w]; the split must have labels.

        With a class list whose raw ids do not fit in a byte, or with colors, train ids; see
        `Classes.stores_raw_ids`.
        """


class Records(Generic[SampleT]):
    """The samples of a split by number. Subclasses know how they are stored.

    Attributes:
        has_labels: whether the split has labels.
        image_paths: one image file per sample; empty if samples are not single files.
        label_paths: one label file per sample; empty if labels are not single files.
        id_counts: pixels of each raw id, uint32 [samples, 256], where they are stored with the
            samples; else None.
        classes: how files of images and labels are read; None: labels are ids of one byte.
    """

    has_labels: bool
    image_paths: tuple[str, ...] = ()
    label_paths: tuple[str, ...] = ()
    id_counts: np.ndarray | None = None
    classes: Classes | None = None

    def __len__(self) -> int:
        raise NotImplementedError

    def name(self, index: int) -> str:
        """What error messages call the image."""
        raise NotImplementedError

    def label_name(self, index: int) -> str:
        """What error messages call the label."""
        return self.name(index)

    @property
    def label_format(self) -> str:
        """On what, apart from the files, the bytes of labels depend; "" if they are raw ids."""
        return self.classes.label_format if self.classes else ""

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
        """The raw ids of a label, uint8 [H, W], see `Sample.label`. Raises as `open`."""
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
        known = np.flatnonzero(table < UNKNOWN_LABEL).tolist()
        ignored = np.flatnonzero(table == IGNORE_LABEL).tolist()
        return f"{known}, ignored: {'all others' if self.classes.ignore_rest else ignored}"

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


def spread_indices(count: int, wanted: int) -> Sequence[int]:
    """`wanted` of `count` indices, evenly spread; 0, or more than there are: all."""
    if not 0 < wanted < count:
        return range(count)
    return [i * count // wanted for i in range(wanted)]


def describe_folder(path: epath.Path, limit: int = 8) -> str:
    """What errors say about a folder in which something was not found."""
    if not path.is_dir():
        return f"{path} is not a folder"
    inside = sorted(p.name for p in path.iterdir())
    more = ", ..." if len(inside) > limit else ""
    return f"{path} holds {', '.join(inside[:limit]) + more if inside else 'nothing'}"


def _is_int(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _check_color(color: Any, where: str) -> None:
    if len(color) != 3 or not all(_is_int(c) and 0 <= c <= 255 for c in color):
        raise ValueError(f"color {color!r}{where}: need three integers in 0..255")


def _check_image_range(limits: Any) -> None:
    """Raises ValueError unless it is None or two increasing integers in 0..65535."""
    if limits is None:
        return
    if not isinstance(limits, tuple) or len(limits) != 2 or not all(map(_is_int, limits)):
        raise ValueError(f"image_range {limits!r}: need [low, high], two integers, or null")
    if not 0 <= limits[0] < limits[1] <= 65535:
        raise ValueError(f"image_range {limits!r}: need 0 <= low < high <= 65535")


def _refuse_repeats(what: str, values: Iterable) -> None:
    values = list(values)
    # Compared one by one, as values from a file may be of any type, also unhashable ones.
    if repeated := [v for k, v in enumerate(values) if v in values[:k]]:
        raise ValueError(f"{what} used more than once: {repeated}")
