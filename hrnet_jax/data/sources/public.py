"""Public datasets by name: class files of this package, which also say where the files lie.

The folder `classes` holds one class file for each name. Its key "about" gives the dataset's title,
the devkit or paper that the table is from, and the name of the data's license; docs/datasets.md
says where to get each dataset.
"""

import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path

from hrnet_jax.data.sources import class_file as class_files
from hrnet_jax.data.sources import layout as layouts
from hrnet_jax.data.sources.layout import Layout
from hrnet_jax.data.sources.source import Classes, Source
from hrnet_jax.runtime import storage

FOLDER = Path(__file__).with_name("classes")
NAMES = (
    "acdc", "ade20k", "bdd100k", "coco_stuff", "dark_zurich", "idd", "kitti", "kitti360", "loveda",
    "mapillary_vistas_v1.2", "mapillary_vistas_v2.0", "pascal_voc2012", "potsdam", "vaihingen",
)  # fmt: skip


@dataclass(frozen=True)
class PublicDataset:
    """What a class file of this package says.

    Attributes:
        classes: what the labels mean.
        layout: where images and labels lie below the dataset's folder.
        title: the dataset's own name.
        source: the devkit, paper or page that the table is from.
        license: the name of the license of the data.
    """

    classes: Classes
    layout: Layout
    title: str
    source: str
    license: str


@functools.cache
def read(name: str) -> PublicDataset:
    """The class file of one of NAMES."""
    path = FOLDER / f"{name}.json"
    about = json.loads(path.read_text("utf-8"))["about"]
    return PublicDataset(*class_files.read(path), **about)


def open_public(
    name: str, root: str | os.PathLike, split: str, class_file: str | os.PathLike = ""
) -> Source:
    """One split of a public dataset in its official folders.

    Args:
        name: one of NAMES.
        root: the dataset's folder.
        split: "train", "val" or, where the dataset has one, "test".
        class_file: fewer classes than the dataset has, or several as one.

    Raises:
        FileNotFoundError: if the folder is not laid out so, or a label is missing.
        ValueError: for an unknown split or an invalid class file.
    """
    dataset, root = read(name), storage.path(root)
    classes = dataset.classes
    if class_file:
        classes = class_files.read_for(class_file, name, classes)
    try:
        return layouts.open_split(name, root, split, classes, dataset.layout)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{dataset.title}: {error}") from error
