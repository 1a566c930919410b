"""Images with one class each, as a folder per class:

    root/SPLIT/CLASS/**/NAME.{jpg,jpeg,png}

which is how ImageNet is mostly unpacked. The classes are the folders' names in alphabetic order.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from hrnet_jax.data.sources.source import describe_folder
from hrnet_jax.runtime import storage

LAYOUT = "ROOT/SPLIT/CLASS/**/NAME.{jpg,jpeg,png}"
_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class ImageClasses:
    """Names of classes of whole images; there may be any number of them.

    Raises:
        ValueError: for fewer than two, or a name used twice.
    """

    names: tuple[str, ...]

    def __post_init__(self):
        if len(self.names) < 2:
            raise ValueError(f"need two classes or more to tell apart, got {list(self.names)}")
        if len(set(self.names)) < len(self.names):
            repeated = sorted({n for n in self.names if self.names.count(n) > 1})
            raise ValueError(f"class name used more than once: {repeated[:5]}")

    @property
    def num_classes(self) -> int:
        return len(self.names)

    def to_json(self) -> dict[str, Any]:
        """Plain lists, as stored in checkpoints; `from_json` reads them."""
        return {"names": list(self.names)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ImageClasses":
        """The inverse of `to_json`."""
        return cls(tuple(data["names"]))


class ImageRecords(Protocol):
    """Encoded images and their classes by number."""

    def read(self, number: int) -> tuple[bytes, int]:
        """The encoded image and its class."""

    def name(self, number: int) -> str:
        """What error messages call the image."""


@dataclass(frozen=True)
class ImageSource:
    """One split of a set of images with one class each.

    Attributes:
        name: of the data set, e.g. "image_folder".
        split: e.g. "train".
        classes: what the labels mean.
        ids: stable relative names of the images.
        records: where their bytes are.
        numbers: of the records, one per image.
    """

    name: str
    split: str
    classes: ImageClasses
    ids: tuple[str, ...]
    records: ImageRecords
    numbers: tuple[int, ...]

    has_labels = True

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, index: int) -> tuple[bytes, int]:
        """The encoded image and its class.

        Raises:
            OSError, ValueError: naming the file or record, if it cannot be read.
        """
        return self.records.read(self.numbers[index])

    def image_name(self, index: int) -> str:
        """What messages call the image: its path, or the record's name."""
        return self.records.name(self.numbers[index])

    def take(self, indices: Sequence[int]) -> "ImageSource":
        """The same split with only these images, in this order."""
        ids, numbers = (tuple(values[i] for i in indices) for values in (self.ids, self.numbers))
        return ImageSource(self.name, self.split, self.classes, ids, self.records, numbers)


@dataclass(frozen=True)
class Files:
    """Image files and their classes."""

    paths: tuple[str, ...]
    labels: tuple[int, ...]

    def read(self, number: int) -> tuple[bytes, int]:
        return storage.read_bytes(self.paths[number]), self.labels[number]

    def name(self, number: int) -> str:
        return self.paths[number]


def open_image_folder(root: str | os.PathLike, split: str) -> ImageSource:
    """The images of root/`split`, in the order of classes and names.

    Raises:
        FileNotFoundError: if the folder is not laid out as above.
        ValueError: for a class without images, images outside of the class folders, or fewer than
            two classes.
    """
    root = storage.path(root)
    folder = root / split
    if not split or not folder.is_dir():
        raise FileNotFoundError(
            f"no folder for split {split!r}: looked for {folder}; {describe_folder(root)}. "
            f"Expected layout: {LAYOUT}"
        )
    # Tools leave folders such as .ipynb_checkpoints behind.
    found = (e for e in folder.iterdir() if not e.name.startswith("."))
    entries = sorted(found, key=lambda e: e.name)
    names = [e.name for e in entries if e.is_dir()]
    stray = [e.name for e in entries if not e.is_dir() and _is_image(e.name)]
    if stray:
        raise ValueError(
            f"{len(stray)} images in {folder} are in no class folder, e.g. {stray[0]}; the folder "
            f"is what says their class (layout: {LAYOUT})"
        )
    if not names:
        raise FileNotFoundError(
            f"no class folders in {folder}; {describe_folder(folder)}. Expected layout: {LAYOUT}"
        )
    ids, labels = [], []
    for label, name in enumerate(names):
        found = sorted(filter(_is_image, storage.names_below(folder / name)))
        if not found:
            raise ValueError(
                f"class folder {folder / name} holds no images ({', '.join(_SUFFIXES)}); "
                f"{describe_folder(folder / name)}. Remove it if there is no such class"
            )
        ids += [f"{name}/{path}" for path in found]
        labels += [label] * len(found)
    return ImageSource(
        name="image_folder",
        split=split,
        classes=ImageClasses(tuple(names)),
        ids=tuple(ids),
        records=Files(tuple(f"{folder}/{i}" for i in ids), tuple(labels)),
        numbers=tuple(range(len(ids))),
    )


def _is_image(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES) and not os.path.basename(name).startswith(".")
