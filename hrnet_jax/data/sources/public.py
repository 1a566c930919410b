"""Public datasets by name: class files of this package, which also say where the files lie.

The folder `classes` holds one class file for each name. Its key "about" gives the title, the
devkit or paper that the table is from, and the name of the licence; docs/datasets.md explains where
to get each dataset.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path

from hrnet_jax.data.sources.source import Classes

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
        files: where images and labels lie, see `folder`.
        title: the dataset's own name.
        source: the devkit, paper or page that the table is from.
        license: the name of the licence of the data.
    """

    classes: Classes
    files: dict
    title: str
    source: str
    license: str


@functools.cache
def read(name: str) -> PublicDataset:
    """The class file of one of NAMES."""
    data = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    about, files = data.pop("about"), data.pop("files")
    from hrnet_jax.data.sources.folder import _with_defaults

    return PublicDataset(Classes.from_json(_with_defaults(data)), files, **about)
