"""Datasets, the input pipeline and the checks before training.

Importing this package does not import TensorFlow; `pipeline`, `tiles.prepare` and the sources of
TFDS do.
"""

import os

from hrnet_jax.data.sources.folder import open_folder, read_class_file
from hrnet_jax.data.sources.image_folder import ImageSource, open_image_folder
from hrnet_jax.data.sources.source import IGNORE_LABEL, Classes, Source
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

SOURCES = ("cityscapes", "cityscapes_coarse", "camvid", "folder", "tfds_cityscapes")
# With one class per image.
IMAGE_SOURCES = ("image_folder", "tfds_imagenet")


def open_source(name: str, *, root: str | os.PathLike, split: str, class_file: str = "") -> Source:
    """One split of a dataset.

    Args:
        name: one of SOURCES.
        root: the dataset's folder, for tfds_cityscapes the TFDS data_dir; or the folder with the
            dataset's tiles (`prepare_tiles`).
        split: e.g. "train"; which ones exist depends on the dataset.
        class_file: for "folder" only: the JSON file with the classes, instead of
            root/classes.json.

    Raises:
        FileNotFoundError: if the files are not where the dataset's layout has them.
        ValueError: for unknown names and splits, or an empty split.
    """
    if name not in SOURCES:
        raise ValueError(f"unknown dataset {name!r}; known: {SOURCES}")
    if not str(root):
        raise ValueError(f"dataset {name!r} needs its folder: --config.data.root=DIR")
    if class_file and name != "folder":
        raise ValueError(f"class_file={class_file!r} is for the dataset 'folder', not {name!r}")
    if folder := find_tiles(root, name):
        source = open_tiles(folder, name, split)
        if class_file and read_class_file(class_file) != source.classes:
            raise ValueError(f"the tiles in {folder} have other classes than {class_file}")
        return source
    if name.startswith("cityscapes"):
        from hrnet_jax.data.sources.cityscapes import open_cityscapes

        return open_cityscapes(root, split, coarse=name == "cityscapes_coarse")
    if name == "camvid":
        from hrnet_jax.data.sources.camvid import open_camvid

        return open_camvid(root, split)
    if name == "folder":
        return open_folder(root, split, class_file)
    from hrnet_jax.data.sources.tfds_cityscapes import open_tfds_cityscapes

    return open_tfds_cityscapes(root, split)


def open_images(name: str, *, root: str | os.PathLike, split: str) -> ImageSource:
    """One split of a dataset with one class per image.

    Args:
        name: one of IMAGE_SOURCES.
        root: the dataset's folder; for tfds_imagenet the TFDS data_dir.
        split: e.g. "train".

    Raises:
        FileNotFoundError: if the files are not where the dataset's layout has them.
        ValueError: for unknown names and splits, or a class without images.
    """
    if name not in IMAGE_SOURCES:
        raise ValueError(f"unknown dataset of images {name!r}; known: {IMAGE_SOURCES}")
    if not str(root):
        raise ValueError(f"dataset {name!r} needs its folder: --config.data.root=DIR")
    if name == "image_folder":
        return open_image_folder(root, split)
    from hrnet_jax.data.sources.tfds_imagenet import open_tfds_imagenet

    return open_tfds_imagenet(root, split)
