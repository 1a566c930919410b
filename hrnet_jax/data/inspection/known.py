"""What may be known of a folder: that it is a public dataset, and names for ids or colors."""

import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath

from hrnet_jax.data import open_source
from hrnet_jax.data.sources import public
from hrnet_jax.data.sources.source import UNKNOWN_LABEL, Color, Source, spread_indices

DATASETS = ("cityscapes", "camvid", *public.NAMES)
# Labels of a dataset whose values are compared with its class list.
SAMPLE = 100
# Text files that may hold the names of classes.
_NAME_FILE = re.compile(r"(class|label|names|colou?r|palette|categor|legend|codes|ontology)", re.I)
_LIMIT = 200_000  # characters
_RGB = r"(\d{1,3})[,;\s]+(\d{1,3})[,;\s]+(\d{1,3})"


@dataclass(frozen=True)
class Recognized:
    """A public dataset whose layout a folder has.

    Attributes:
        name: for config.data.name.
        splits: number of labeled images of each split that it has.
        present: number of its classes in a sample of the labels.
        num_classes: of the dataset.
        problem: why its class list does not fit the labels; "" if it does.
    """

    name: str
    splits: Mapping[str, int]
    present: int
    num_classes: int
    problem: str

    @property
    def fits(self) -> bool:
        """Whether the labels hold half of the classes, and nothing else.

        A folder of another dataset may have the layout of a well-known one, such as VOC's.
        """
        return not self.problem and 2 * self.present >= self.num_classes


def recognize(root: epath.Path) -> list[Recognized]:
    """The public datasets whose layout the folder has, with those that fit first."""
    found = []
    logging.disable(logging.WARNING)  # each attempt would count the files that it does not use
    try:
        for name in DATASETS:
            sources = dict(open_splits(name, root))
            if sources:
                found.append(_compare(name, sources))
    finally:
        logging.disable(logging.NOTSET)
    return sorted(found, key=lambda r: (not r.fits, -r.present))


def open_splits(name: str, root: epath.Path) -> Iterator[tuple[str, Source]]:
    """The labeled ones of train and val of a public dataset, as far as they are there."""
    for split in ("train", "val"):
        try:
            source = open_source(name, root=root, split=split)
        except (OSError, ValueError):
            continue
        if source.has_labels:
            yield split, source


def _compare(name: str, sources: Mapping[str, Source]) -> Recognized:
    present: set[int] = set()
    problem = ""
    for source in sources.values():
        for index in spread_indices(len(source), SAMPLE):
            try:
                raw = source.records.label(index)
            except (OSError, ValueError) as error:
                problem = str(error)
                continue
            train_ids = source.lookup()[np.unique(raw)]
            if (train_ids == UNKNOWN_LABEL).any():
                unknown = np.unique(raw)[train_ids == UNKNOWN_LABEL].tolist()
                problem = f"{source.label_name(index)} holds the ids {unknown[:8]}"
            present.update(train_ids[train_ids < UNKNOWN_LABEL].tolist())
    classes = next(iter(sources.values())).classes
    counts = {split: len(source) for split, source in sources.items()}
    return Recognized(name, counts, len(present), classes.num_classes, problem)


# ---- names in text files


def is_name_file(path: str) -> bool:
    """Whether a text file may hold names of classes, by its own name."""
    name = path.rsplit("/", 1)[-1]
    return bool(_NAME_FILE.search(name)) and name.lower().endswith((".txt", ".csv", ".json"))


def read_names(text: str) -> dict[int | Color, str]:
    """Names of ids or colors in a text file of any common form; empty if there are none.

    Forms: lines "R G B NAME", "NAME,R,G,B", "ID NAME", "ID: NAME", "NAME ID" or NAME alone; JSON
    with a list of names, {"ID": NAME}, {NAME: ID} or objects with name and id or color.
    """
    if len(text) > _LIMIT:
        return {}
    if text.lstrip("\ufeff \n\t")[:1] in ("{", "["):
        try:
            return _json_names(json.loads(text.lstrip("\ufeff")))
        except ValueError:
            return {}
    lines = [line.strip().lstrip("\ufeff") for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith(("#", "//"))]
    if lines and not re.search(r"\d", lines[0]) and any(re.search(r"\d", x) for x in lines[1:]):
        lines = lines[1:]  # a header
    for pattern, order in (
        (rf"^{_RGB}[,;:\s]+(.+)$", "color first"),
        (rf"^(.+?)[,;:\s]+{_RGB}\b", "color last"),
        (r"^(\d+)\s*[:,;=\t ]\s*([^\d\s].*)$", "id first"),
        (r"^(.*[^\d\s,;:=])\s*[:,;=\t ]\s*(\d+)$", "id last"),
    ):
        matches = [re.match(pattern, line) for line in lines]
        if lines and all(matches):
            return dict(_named(m.groups(), order) for m in matches if m)
    if lines and all(re.fullmatch(r"[^\W\d][\w \-/()&.]{0,60}", line) for line in lines):
        return dict(enumerate(map(_clean, lines)))
    return {}


def _named(groups: tuple[str, ...], order: str) -> tuple[int | Color, str]:
    if order == "color first":
        red, green, blue, name = groups
    elif order == "color last":
        name, red, green, blue = groups
    else:
        number, name = groups if order == "id first" else groups[::-1]
        return int(number), _clean(name)
    return (int(red), int(green), int(blue)), _clean(name)


def _clean(name: str) -> str:
    return name.strip(" \t,;:_\"'")


def _json_names(data: Any) -> dict[int | Color, str]:
    if isinstance(data, dict):
        for key in ("names", "classes", "labels", "categories", "class_names"):
            if isinstance(data.get(key), list | dict):
                return _json_names(data[key])
        if data and all(str(k).isdecimal() and isinstance(v, str) for k, v in data.items()):
            return {int(k): v for k, v in data.items()}
        if data and all(isinstance(v, int) and not isinstance(v, bool) for v in data.values()):
            return {v: k for k, v in data.items()}
        return {}
    if all(isinstance(v, str) for v in data):
        return dict(enumerate(data))
    names: dict[int | Color, str] = {}
    for k, entry in enumerate(data):
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            return {}
        names[entry["id"] if isinstance(entry.get("id"), int) else k] = entry["name"]
        color = entry.get("color")
        if isinstance(color, list) and len(color) == 3 and all(isinstance(c, int) for c in color):
            names[tuple(color)] = entry["name"]
    return names
