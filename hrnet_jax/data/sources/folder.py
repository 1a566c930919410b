"""Any folder of images and labels, with a file that says what the ids in the labels mean.

    root/images/SPLIT/**/NAME.{png,jpg,jpeg,webp,tif,tiff,bmp,ppm}
    root/labels/SPLIT/**/NAME.png               same relative path, ids as 8-bit grey or palette
    root/classes.json

Each folder in root/images is a split. A split without a folder under root/labels has no labels
and can be predicted only. classes.json lists the classes in the order of their train ids:

    {
      "names": ["background", "leaf"],
      "colors": [[0, 0, 0], [0, 160, 60]],
      "label_ids": [0, 1],
      "ignore_ids": [7],
      "categories": ["none", "plant"]
    }

`colors`, `label_ids`, `ignore_ids` and `categories` may be left out: then the colors are chosen
automatically, label_ids are 0, 1, 2, ..., only 255 is ignored, and there are no categories.
"""

import colorsys
import json
import logging
import os
from typing import Any

from etils import epath

from hrnet_jax.data.images.headers import IMAGE_SUFFIXES
from hrnet_jax.data.sources.files import Pair, not_hidden, source_of_pairs
from hrnet_jax.data.sources.source import Classes, Source, describe_folder
from hrnet_jax.runtime import storage

LAYOUT = "ROOT/images/SPLIT/**/NAME.{png,jpg,...}, ROOT/labels/SPLIT/**/NAME.png, ROOT/classes.json"
logger = logging.getLogger(__name__)


def open_folder(root: str | os.PathLike, split: str, class_file: str | os.PathLike = "") -> Source:
    """The images of root/images/`split` with their labels.

    Args:
        root: the dataset's folder.
        split: name of a folder in root/images.
        class_file: instead of root/classes.json.

    Raises:
        FileNotFoundError: if the class file, the images or a label are not there.
        ValueError: if the class file is invalid, or two images have the same name.
    """
    root = storage.path(root)
    classes = read_class_file(class_file or root / "classes.json")
    folder = root / "images" / split
    names = not_hidden(storage.names_below(folder, follow_links=True))
    found = [name for name in names if _suffix(name) in IMAGE_SUFFIXES]
    if not split or not found:
        raise FileNotFoundError(
            f"no images in split {split!r}: looked for {folder}/**/* with one of "
            f"{', '.join(IMAGE_SUFFIXES)}; "
            f"{describe_folder(root)}; {describe_folder(root / 'images')}. "
            f"Expected layout: {LAYOUT}"
        )
    ids = [os.path.splitext(name)[0] for name in found]
    if repeated := sorted({i for i in ids if ids.count(i) > 1}) if len(set(ids)) < len(ids) else []:
        raise ValueError(f"images in {folder} differ in nothing but their suffix: {repeated[:5]}")
    labels = root / "labels" / split
    _log_unused(folder, set(names) - set(found), "are no images with a known suffix")
    label_names = not_hidden(storage.names_below(labels, (".png",), follow_links=True))
    used = set(ids)
    unused = {name for name in label_names if os.path.splitext(name)[0] not in used}
    _log_unused(labels, unused, "are labels without an image")
    pairs = [
        Pair(i, f"{folder}/{name}", f"{labels}/{i}.png") for i, name in zip(ids, found, strict=True)
    ]
    return source_of_pairs(
        "folder", split, classes, pairs, layout=LAYOUT, has_labels=labels.is_dir()
    )


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _log_unused(folder: epath.Path, names: set[str], what: str) -> None:
    if names:
        first = sorted(names)[:3]
        logger.warning(
            "%d files in %s %s and are not used, e.g. %s", len(names), folder, what, first
        )


def read_class_file(path: str | os.PathLike) -> Classes:
    """Reads a class file as described above.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: naming the file and what is wrong in it.
    """
    path = storage.path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no class file {path}: a JSON file with at least "
            '{"names": ["first class", ...]}, see hrnet_jax/data/sources/folder.py'
        )
    try:
        data = json.loads(path.read_text())
        return Classes.from_json(_with_defaults(data))
    except ValueError as error:  # JSON errors are ValueErrors, too.
        raise ValueError(f"class file {path}: {error}") from error


def _with_defaults(data: Any) -> Any:
    names = data.get("names") if isinstance(data, dict) else None
    if not isinstance(names, list) or not all(isinstance(n, str) and n for n in names):
        raise ValueError('need {"names": ["first class", ...]} with the names as strings')
    defaults = {"label_ids": list(range(len(names))), "colors": _colors(len(names))}
    return {**defaults, **data}


def _colors(count: int) -> list[list[int]]:
    """Colors that differ: hues a golden angle apart, two brightnesses in turn."""
    return [
        [round(255 * c) for c in colorsys.hsv_to_rgb(0.618034 * i % 1, 0.75, (0.9, 0.6)[i % 2])]
        for i in range(count)
    ]
