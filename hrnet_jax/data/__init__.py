"""Datasets, the input pipeline and the checks before training.

Importing this package does not import TensorFlow; `pipeline`, `tiles.prepare` and the sources of
TFDS do.
"""

import os
from collections.abc import Callable
from dataclasses import replace

from hrnet_jax.data.sources import camvid, cityscapes, public
from hrnet_jax.data.sources import class_file as class_files
from hrnet_jax.data.sources.folder import open_folder
from hrnet_jax.data.sources.image_folder import ImageSource, open_image_folder
from hrnet_jax.data.sources.selection import open_selection
from hrnet_jax.data.sources.source import IGNORE_LABEL, Classes, Source
from hrnet_jax.data.sources.union import open_union
from hrnet_jax.data.tiles.format import find_tiles, open_tiles

__all__ = [
    "IGNORE_LABEL",
    "IMAGE_SOURCES",
    "SOURCES",
    "Classes",
    "Source",
    "open_images",
    "open_source",
]

SOURCES = (
    "cityscapes", "cityscapes_coarse", "camvid", "folder", "tfds_cityscapes", *public.NAMES,
)  # fmt: skip
# With one class per image.
IMAGE_SOURCES = ("image_folder", "tfds_imagenet")


def open_source(name: str, *, root: str | os.PathLike, split: str, class_file: str = "") -> Source:
    """One split of a dataset.

    Args:
        name: one of SOURCES.
        root: the dataset's folder, for tfds_cityscapes the TFDS data_dir; or the folder with the
            dataset's tiles (`prepare_tiles`).
        split: e.g. "train"; which ones exist depends on the dataset. "train+val" joins splits,
            "train[aachen]" and "train[-aachen]" are parts of one (`sources.selection`).
        class_file: a JSON file (`sources.class_file`): for "folder" instead of root/classes.json,
            for the others fewer classes than the dataset has, or several as one.

    Raises:
        FileNotFoundError: if the files are not where the dataset's layout has them.
        ValueError: for unknown names and splits, or an empty split.
    """
    if name not in SOURCES:
        raise ValueError(f"unknown dataset {name!r}; known: {SOURCES}")
    if not str(root):
        raise ValueError(f"dataset {name!r} needs its folder: --config.data.root=DIR")
    return _open_parts(split, lambda part: _open_split(name, root, part, class_file))


def _open_parts(split: str, open_split: Callable[[str], Source]) -> Source:
    """A split as `open_source` describes it, from a function that opens one without any parts."""
    return open_selection(split, lambda splits: open_union(splits, open_split))


def _open_split(name: str, root: str | os.PathLike, split: str, class_file: str) -> Source:
    if folder := find_tiles(root, name):
        source = open_tiles(folder, name, split)
        return _with_class_file(source, class_file, folder) if class_file else source
    if name == "folder":
        return open_folder(root, split, class_file)
    if name in public.NAMES:
        return public.open_public(name, root, split, class_file)
    if name == "tfds_cityscapes":
        from hrnet_jax.data.sources.tfds_cityscapes import open_tfds_cityscapes

        classes = _classes(name, cityscapes.CLASSES, class_file)
        return open_tfds_cityscapes(root, split, classes)
    if name == "camvid":
        return camvid.open_camvid(root, split, _classes(name, camvid.CLASSES, class_file))
    classes = _classes(name, cityscapes.CLASSES, class_file)
    coarse = name == "cityscapes_coarse"
    return cityscapes.open_cityscapes(root, split, classes, coarse=coarse)


def _classes(name: str, known: Classes, class_file: str) -> Classes:
    return class_files.read_for(class_file, name, known) if class_file else known


def _with_class_file(source: Source, class_file: str, folder: os.PathLike) -> Source:
    """Tiles, which hold raw ids, with other classes than those they were prepared with."""
    if source.name == "folder":
        classes = class_files.read_class_file(class_file)
    else:
        classes = class_files.read_for(class_file, source.name, source.classes)
    if classes == source.classes:
        return source
    if not (classes.stores_raw_ids and source.classes.stores_raw_ids):
        raise ValueError(
            f"the tiles in {folder} have other classes than {class_file}. They contain train ids, "
            "because the labels are colors or ids above 255: prepare them again with this class "
            "file"
        )
    return replace(source, classes=classes)


def open_images(name: str, *, root: str | os.PathLike, split: str) -> ImageSource:
    """One split of a dataset with one class per image.

    Args:
        name: one of IMAGE_SOURCES.
        root: the dataset's folder; for tfds_imagenet the TFDS data_dir.
        split: as of `open_source`.

    Raises:
        FileNotFoundError: if the files are not where the dataset's layout has them.
        ValueError: for unknown names and splits, or a class without images.
    """
    if name not in IMAGE_SOURCES:
        raise ValueError(f"unknown dataset of images {name!r}; known: {IMAGE_SOURCES}")
    if not str(root):
        raise ValueError(f"dataset {name!r} needs its folder: --config.data.root=DIR")
    if name == "image_folder":
        return _open_parts(split, lambda part: open_image_folder(root, part))
    from hrnet_jax.data.sources.tfds_imagenet import open_tfds_imagenet

    return _open_parts(split, lambda part: open_tfds_imagenet(root, part))
