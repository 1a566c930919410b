"""Images with one class each, in one folder per class:

    root/SPLIT/CLASS/**/NAME.{png,jpg,jpeg,webp,tif,tiff,bmp,ppm}

which is ImageNet's usual layout. The classes are the folders' names in alphabetic order.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hrnet_jax.data.images.headers import IMAGE_SUFFIXES
from hrnet_jax.data.sources.files import log_unused, not_hidden
from hrnet_jax.data.sources.source import Records, Source, describe_folder
from hrnet_jax.runtime import storage

LAYOUT = "ROOT/SPLIT/CLASS/**/NAME.{jpg,png,...}"


@dataclass(frozen=True)
class ImageClasses:
    """Names of the classes of whole images, two or more.

    Raises:
        ValueError: for fewer than two, or a name used twice.
    """

    names: tuple[str, ...]

    def __post_init__(self):
        if len(self.names) < 2:
            raise ValueError(f"need two or more classes, got {list(self.names)}")
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


class LabeledImage(NamedTuple):
    """An encoded image and the number of its class."""

    data: bytes
    label: int


ImageSource = Source[ImageClasses, LabeledImage]


@dataclass(frozen=True)
class ImageFiles(Records[LabeledImage]):
    """Image files and their classes, see `source.Records`."""

    image_paths: tuple[str, ...] = field()  # without the default of `Records`
    labels: tuple[int, ...] = ()

    has_labels = True

    def __len__(self) -> int:
        return len(self.image_paths)

    def name(self, index: int) -> str:
        return self.image_paths[index]

    def open(self, index: int) -> LabeledImage:
        return LabeledImage(storage.read_bytes(self.image_paths[index]), self.labels[index])

    def take(self, indices: Sequence[int]) -> "ImageFiles":
        paths, labels = (
            tuple(values[i] for i in indices) for values in (self.image_paths, self.labels)
        )
        return ImageFiles(paths, labels)


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
    found = (e for e in folder.iterdir() if not e.name.startswith("."))
    entries = sorted(found, key=lambda e: e.name)
    names = [e.name for e in entries if e.is_dir()]
    stray = [e.name for e in entries if not e.is_dir() and _is_image(e.name)]
    if stray:
        raise ValueError(
            f"{len(stray)} images in {folder} are in no class folder, e.g. {stray[0]}; the "
            f"name of its folder is an image's class (layout: {LAYOUT})"
        )
    if not names:
        raise FileNotFoundError(
            f"no class folders in {folder}; {describe_folder(folder)}. Expected layout: {LAYOUT}"
        )
    ids, labels, others, empty = [], [], [], []
    for label, name in enumerate(names):
        files = not_hidden(storage.names_below(folder / name, follow_links=True))
        found = sorted(filter(_is_image, files))
        ids += [f"{name}/{path}" for path in found]
        labels += [label] * len(found)
        others += [f"{name}/{path}" for path in files if not _is_image(path)]
        empty += [] if found else [name]
    if empty:
        raise ValueError(
            f"{len(empty)} of {len(names)} class folders in {folder} hold no images "
            f"({', '.join(IMAGE_SUFFIXES)}): {empty[:5]}; {describe_folder(folder / empty[0])}. "
            "Remove them if there are no such classes"
        )
    log_unused(folder, others, "are no images with a known suffix")
    return Source(
        name="image_folder",
        split=split,
        classes=ImageClasses(tuple(names)),
        ids=tuple(ids),
        records=ImageFiles(tuple(f"{folder}/{i}" for i in ids), tuple(labels)),
    )


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)
