"""Class files: JSON that says what the ids or colors in labels mean, and where files lie.

    {
      "names": ["background", "leaf"],
      "colors": [[0, 0, 0], [0, 160, 60]],
      "label_ids": [0, [1, 2]],
      "ignore_ids": [7],
      "categories": ["none", "plant"],
      "label_type": "ids",
      "ignore_colors": [],
      "image_range": [0, 4095],
      "files": {"images": "images/{split}", "labels": "labels/{split}"}
    }

The keys are those of `source.Classes`, and "files" is a `layout.Layout`; "about" is free text or
anything else, and is not read. Only `names` is required: colors are chosen automatically, label ids
are 0, 1, 2, ..., only 255 is ignored.
"""

import colorsys
import json
import os
from dataclasses import replace
from typing import Any, NamedTuple

from hrnet_jax.data.sources.layout import Layout
from hrnet_jax.data.sources.source import Classes
from hrnet_jax.runtime import storage


class ClassFile(NamedTuple):
    """What a class file says."""

    classes: Classes
    layout: Layout


def read_class_file(path: str | os.PathLike) -> Classes:
    """The classes of a class file.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: naming the file and what is wrong in it.
    """
    return read(path).classes


def read_names(path: str | os.PathLike) -> tuple[str, ...]:
    """The names of the classes alone. Raises as `read_class_file`."""
    return tuple(_read_json(path)["names"])


def read(path: str | os.PathLike) -> ClassFile:
    """A class file with the layout of the dataset. Raises as `read_class_file`."""
    data = _read_json(path)
    try:
        layout = Layout.from_json(data.pop("files", {}))
        count = len(data["names"])
        if data.get("label_type") == "colors" and "colors" not in data:
            raise ValueError('"label_type": "colors" needs the "colors" of the label files')
        defaults = {"label_ids": list(range(count)), "colors": _colors(count)}
        return ClassFile(Classes.from_json({**defaults, **data}), layout)
    except ValueError as error:
        raise ValueError(f"class file {storage.path(path)}: {error}") from error


def read_for(path: str | os.PathLike, dataset: str, known: Classes) -> Classes:
    """The classes of a class file for a dataset whose ids are known: fewer, or several as one.

    Names that the dataset has need no label ids. What the dataset ignores stays ignored; a class
    of it that is left out must be in "ignore_ids", or that is "rest". Colors are those of the
    dataset, of the first id of each class.

    Args:
        path: of the class file.
        dataset: its name, for errors.
        known: its own classes.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: naming the file and what is wrong in it.
    """
    data = _read_json(path)
    try:
        for key in ("files", "label_type", "ignore_colors"):
            if key in data:
                raise ValueError(f"{key!r} is for the dataset 'folder'; {dataset} has its own")
        if known.label_type == "colors":
            raise ValueError(
                f"the labels of {dataset} are colors, whose classes cannot be changed by their ids"
            )
        own = dict(zip(known.names, known.label_ids, strict=True))
        if "label_ids" not in data and (new := [n for n in data["names"] if n not in own]):
            raise ValueError(f"needs label_ids, as {dataset} has no class {new[0]!r}; {list(own)}")
        defaults: dict[str, Any] = {"label_ids": [own.get(n) for n in data["names"]]}
        defaults["colors"] = _colors(len(data["names"]))
        given = Classes.from_json({**defaults, **data})
        used = {i for ids in given.ids_by_class for i in ids}
        ignored = {i for i in (*known.ignore_ids, *given.ignore_ids) if i not in used}
        left = {
            n: set(ids) - used - ignored for n, ids in zip(own, known.ids_by_class, strict=True)
        }
        left = {name: sorted(ids) for name, ids in left.items() if ids}
        if left and not given.ignore_rest:
            raise ValueError(
                f"leaves out ids of {dataset}: {left}; add them to label_ids, or ignore them with "
                '"ignore_ids": "rest"'
            )
        ignored.update(i for ids in left.values() for i in ids)
        colors = _colors_of(given, known) if "colors" not in data else given.colors
        return replace(given, colors=colors, ignore_ids=tuple(sorted(ignored)), ignore_rest=False)
    except ValueError as error:
        raise ValueError(f"class file {storage.path(path)}: {error}") from error


def _colors_of(given: Classes, known: Classes) -> tuple:
    """The dataset's color of the first id of each class; the generated one for other ids."""
    by_id = {i: c for c, ids in zip(known.colors, known.ids_by_class, strict=True) for i in ids}
    pairs = zip(given.first_ids, given.colors, strict=True)
    return tuple(by_id.get(first, generated) for first, generated in pairs)


def _read_json(path: str | os.PathLike) -> dict[str, Any]:
    path = storage.path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no class file {path}: a JSON file with at least "
            '{"names": ["first class", ...]}, see hrnet_jax/data/sources/class_file.py'
        )
    try:
        # Bytes: the encoding is found by their beginning, with or without a byte-order mark.
        data = json.loads(storage.read_bytes(str(path)))
        names = data.get("names") if isinstance(data, dict) else None
        if not isinstance(names, list) or not all(isinstance(n, str) and n for n in names):
            raise ValueError('need {"names": ["first class", ...]} with the names as strings')
    except ValueError as error:  # JSON errors are ValueErrors, too.
        raise ValueError(f"class file {path}: {error}") from error
    data.pop("about", None)
    return data


def _colors(count: int) -> list[list[int]]:
    """Colors that differ: hues a golden angle apart, two brightnesses in turn."""
    return [
        [round(255 * c) for c in colorsys.hsv_to_rgb(0.618034 * i % 1, 0.75, (0.9, 0.6)[i % 2])]
        for i in range(count)
    ]
