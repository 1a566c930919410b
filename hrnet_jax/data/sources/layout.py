"""Where the images and labels of a dataset lie: the key "files" of a class file.

    {"images": "images/{split}", "labels": "labels/{split}"}           the default
    {"images": "{split}", "labels": "{split}", "label_suffix": "_mask.png"}
    {"images": "JPEGImages", "labels": "SegmentationClass",
     "list": "ImageSets/Segmentation/{split}.txt"}
    {"list": "{split}.lst"}                                            "IMAGE LABEL" in each line
    {"images": "images", "labels": "masks", "split": {"val": 0.1, "seed": 0}}

docs/data.md describes the keys with an example each.
"""

import hashlib
import logging
import os
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any, NamedTuple

from etils import epath

from hrnet_jax.data.images.headers import IMAGE_SUFFIXES
from hrnet_jax.data.sources.files import Pair, log_unused, not_hidden, source_of_pairs
from hrnet_jax.data.sources.source import Classes, Sample, Source, describe_folder
from hrnet_jax.runtime import storage

logger = logging.getLogger(__name__)

_KEYS = (
    "images", "labels", "image_suffix", "label_suffix", "replace", "list", "splits", "split",
)  # fmt: skip
_NEEDS_IMAGES = {"labels", "image_suffix", "label_suffix", "replace"}
_NAMED = "{split}"
_CLASS_FILE = "classes.json"


@dataclass(frozen=True)
class Layout:
    """Rules that find the files of a split below the dataset's folder.

    Attributes:
        images: folder of the images, at any depth of which they lie, or several of which the first
            that exists is taken. {split} is the split's name, * any one folder. Empty with a list
            of pairs.
        labels: folder of the labels, likewise; it may be that of the images. * is the same folder.
        image_suffixes: what the names of images end with, in any case.
        label_suffix: what the names of labels end with, in place of the image's suffix.
        replace: (text in an image's path, text in its label's path); images are only files whose
            path below `images` holds all of these texts.
        list: file with the names of a split's samples; "": all files in `images`. With `images`
            each line is the name of an image in it, without it "IMAGE LABEL" or "IMAGE", paths
            below the dataset's folder.
        splits: (name of a split, what is written for {split}); empty: the name itself.
        fractions: (name of a split, its fraction): parts of the files of "train", which keeps the
            rest, or of all files if {split} occurs nowhere.
        seed: of the fractions.
    """

    images: tuple[str, ...] = ("images/{split}",)
    labels: tuple[str, ...] = ("labels/{split}",)
    image_suffixes: tuple[str, ...] = IMAGE_SUFFIXES
    label_suffix: str = ".png"
    replace: tuple[tuple[str, str], ...] = ()
    list: str = ""
    splits: tuple[tuple[str, str], ...] = ()
    fractions: tuple[tuple[str, float], ...] = ()
    seed: int = 0

    @classmethod
    def from_json(cls, data: Any) -> "Layout":
        """The rules of the key "files".

        Raises:
            ValueError: naming the key that is unknown or has an invalid value.
        """
        if not isinstance(data, dict):
            raise ValueError(f'"files" must be a dict with some of {_KEYS}, got {data!r}')
        if unknown := sorted(set(data) - set(_KEYS)):
            raise ValueError(f'unknown keys {unknown} in "files"; known: {_KEYS}')
        for key in ("label_suffix", "list"):
            if key in data and (not isinstance(data[key], str) or not data[key]):
                raise ValueError(f'"files": {key!r} must be a text, got {data[key]!r}')
        # A list alone holds the paths of both files.
        of_pairs = "list" in data and "images" not in data
        if of_pairs and (unused := sorted(_NEEDS_IMAGES & set(data))):
            raise ValueError(
                f'"files": {unused} need "images"; a "list" without it holds the paths of images '
                "and labels"
            )
        defaults = {} if of_pairs else {"images": cls.images, "labels": cls.labels}
        folders = {k: _texts(k, data.get(k, defaults.get(k, ()))) for k in ("images", "labels")}
        pairs = {key: _text_pairs(key, data.get(key, {})) for key in ("replace", "splits")}
        fractions, seed = _fractions(data.get("split", {}))
        layout = cls(
            image_suffixes=_texts("image_suffix", data.get("image_suffix", IMAGE_SUFFIXES)),
            label_suffix=data.get("label_suffix", cls.label_suffix),
            list=data.get("list", ""),
            fractions=fractions,
            seed=seed,
            **folders,
            **pairs,
        )
        layout._check_split()
        layout._check_folders()
        return layout

    def _check_folders(self) -> None:
        """Raises ValueError unless images and labels can be told apart."""
        if len({folder.count("*") for folder in (*self.images, *self.labels)}) > 1:
            raise ValueError('"files": "images" and "labels" need the same number of *')
        same = set(self.images) & set(self.labels) and not self.replace
        if same and self.label_suffix in self.image_suffixes:
            raise ValueError(
                f'"files": images and labels in one folder both end in {self.label_suffix!r}: '
                'give an "image_suffix" and a "label_suffix" that tell them apart'
            )

    def _check_split(self) -> None:
        """Raises ValueError unless it is clear which files belong to which split."""
        if twice := sorted(dict(self.fractions).keys() & dict(self.splits).keys()):
            raise ValueError(f'"files": {twice} are in both "splits" and "split"')
        if not self.fractions and not self.is_named:
            raise ValueError(
                f'"files": all splits would be the same files: write {_NAMED} into "images" or '
                '"list", or divide them by "split": {"val": 0.1}'
            )

    @property
    def is_named(self) -> bool:
        """Whether {split} says which files belong to a split."""
        return _NAMED in "".join(self.images) + self.list

    @property
    def divided(self) -> tuple[str, ...]:
        """The splits that `fractions` make out of one set of files."""
        return ("train", *dict(self.fractions)) if self.fractions else ()

    def describe(self) -> str:
        """The rule, for errors."""
        if self.list and not self.images:
            return f"pairs of paths in ROOT/{self.list}"
        name = f"one of the names in ROOT/{self.list}" if self.list else "any"
        suffixes = "|".join(self.image_suffixes)
        images, labels = " or ".join(self.images), " or ".join(self.labels)
        text = f"ROOT/{images}/**/NAME{suffixes} and ROOT/{labels}/**/NAME{self.label_suffix}"
        text += "".join(f", {a!r} in the path replaced by {b!r}" for a, b in self.replace)
        return f"{text}, NAME is {name}"

    def image_suffix(self, name: str) -> str:
        """The suffix by which a path below `images` is an image; "" if it is none."""
        suffixes = [s for s in self.image_suffixes if name.lower().endswith(s.lower())]
        if not all(text in f"/{name}" for text, _ in self.replace):
            return ""
        return max(suffixes, key=len, default="")

    def is_label(self, name: str) -> bool:
        """Whether a path below `labels` can be a label."""
        texts = all(text in f"/{name}" for _, text in self.replace)
        return texts and name.lower().endswith(self.label_suffix.lower())

    def label_stem(self, stem: str) -> str:
        """The label's path without suffix, from that of its image."""
        path = f"/{stem}"
        for text, other in self.replace:
            path = path.replace(text, other)
        return path.removeprefix("/")


class Found(NamedTuple):
    """The samples of a split, in order of names or of the list."""

    pairs: list[Pair]
    has_labels: bool


def open_split(
    name: str, root: epath.Path, split: str, classes: Classes, layout: Layout
) -> Source[Classes, Sample]:
    """The source of a split. Raises as `find`, and FileNotFoundError for a missing label.

    Args:
        name: of the dataset.
        root: its folder.
        split: of the dataset.
        classes: what the labels mean.
        layout: where the files are.
    """
    pairs, has_labels = find(root, split, layout)
    return source_of_pairs(
        name, split, classes, pairs, layout=layout.describe(), has_labels=has_labels
    )


def find(root: epath.Path, split: str, layout: Layout) -> Found:
    """The files of a split; files that are not used are counted in the log.

    Raises:
        FileNotFoundError: if there are no images, or one that a list names is missing.
        ValueError: for an unknown split, an invalid list, or images that differ in their suffix
            alone.
    """
    divided = layout.divided
    known = list(dict.fromkeys((*divided, *dict(layout.splits))))
    if (layout.splits or not layout.is_named) and split not in known:
        raise ValueError(f'unknown split {split!r}; known by "files": {known}')
    whole = "train" if split in divided else split
    written = dict(layout.splits).get(whole, whole)
    if layout.list and not layout.images:
        found = _listed_pairs(root, root / layout.list.replace(_NAMED, written))
    else:
        scans = [_scan(place, layout) for place in _places(root, written, layout)]
        if not split or not any(scan.images for scan in scans):
            raise _no_images(root, split, scans, layout)
        if layout.list:
            found = _listed_names(root / layout.list.replace(_NAMED, written), scans, layout)
        else:
            found = _in_folders(scans, layout)
    ids = [pair.id for pair in found.pairs]
    if repeated := sorted(i for i, n in Counter(ids).items() if n > 1):
        raise ValueError(
            f"{split!r} of {root}: images whose names differ only in the suffix, or that are "
            f"listed twice: {repeated[:5]} (layout: {layout.describe()})"
        )
    if split not in divided:
        return found
    chosen = [pair for pair in found.pairs if split_of(pair.id, layout) == split]
    if not chosen:
        raise ValueError(
            f'split {split!r} of {root} is empty: of {len(ids)} images "split" gives it none; '
            "choose another fraction or seed"
        )
    return found._replace(pairs=chosen)


def split_of(sample_id: str, layout: Layout) -> str:
    """The split of a sample by `fractions`: a function of its name and the seed alone.

    So other files that come or go move it nowhere. The fractions hold approximately.
    """
    digest = hashlib.sha256(f"{layout.seed}/{sample_id}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    for name, fraction in layout.fractions:
        if place < fraction:
            return name
        place -= fraction
    return "train"


class _Place(NamedTuple):
    """A folder of images and that of its labels."""

    prefix: str  # of the ids of its samples
    images: epath.Path
    labels: epath.Path


class _Scan(NamedTuple):
    """What lies in a place."""

    place: _Place
    images: dict[str, str]  # path below the folder without suffix -> with it
    labels: dict[str, str]  # likewise
    others: set[str]  # files among the images that are neither


def _places(root: epath.Path, written: str, layout: Layout) -> list[_Place]:
    """The folders of a split, in order of names."""
    images, labels = (
        _first(root, [template.replace(_NAMED, written) for template in templates])
        for templates in (layout.images, layout.labels)
    )
    if "*" not in images:
        return [_Place("", root / images, root / labels)]
    pattern = re.compile(re.escape(images).replace(r"\*", "([^/]+)"))
    places = []
    for folder in storage.files_in(root, images):
        stars = pattern.fullmatch(folder.removeprefix(f"{root}/"))
        if stars and not any(star.startswith(".") for star in stars.groups()):
            label_folder = labels
            for star in stars.groups():
                label_folder = label_folder.replace("*", star, 1)
            prefix = "".join(f"{star}/" for star in stars.groups())
            places.append(_Place(prefix, epath.Path(folder), root / label_folder))
    return places


def _first(root: epath.Path, folders: list[str]) -> str:
    """The first one that exists, or else the first one."""
    exists = lambda f: bool(storage.files_in(root, f)) if "*" in f else (root / f).is_dir()  # noqa: E731
    return next(filter(exists, folders), folders[0])


def _scan(place: _Place, layout: Layout) -> _Scan:
    shared = place.images == place.labels
    images, others = {}, set()
    for name in _names(place.images, without=place.labels):
        suffix = layout.image_suffix(name)
        # Where labels lie among the images, the longer suffix says what a file is.
        if shared and layout.is_label(name) and len(layout.label_suffix) >= len(suffix):
            continue
        if not suffix:
            others.update({name} - {_CLASS_FILE})
        elif (stem := name[: -len(suffix)]) in images:
            raise ValueError(
                f"images in {place.images} have names that differ only in the suffix: "
                f"{[images[stem], name]}"
            )
        else:
            images[stem] = name
    label_files = filter(layout.is_label, _names(place.labels, without=place.images))
    if shared:
        label_files = set(label_files) - set(images.values())
    return _Scan(place, images, {n[: -len(layout.label_suffix)]: n for n in label_files}, others)


def _names(folder: epath.Path, *, without: epath.Path) -> list[str]:
    """The files at any depth that are not hidden, and not in a folder `without` below it."""
    names = not_hidden(storage.names_below(folder, follow_links=True))
    inside = f"{without}/".removeprefix(f"{folder}/")
    if without == folder or inside == f"{without}/":
        return names
    return [name for name in names if not name.startswith(inside)]


def _no_images(
    root: epath.Path, split: str, scans: list[_Scan], layout: Layout
) -> FileNotFoundError:
    looked_for = [str(scan.place.images) for scan in scans] or [f"{root}/{layout.images[0]}"]
    folders = dict.fromkeys(
        (root, *(f for s in scans for f in (s.place.images.parent, s.place.images)))
    )
    inside = "; ".join(describe_folder(f) for f in folders if f == root or f.is_dir())
    return FileNotFoundError(
        f"no images in split {split!r}: looked for {looked_for[0]}/**/*"
        f"{{{','.join(layout.image_suffixes)}}}; {inside}. Expected layout: {layout.describe()}"
    )


def _in_folders(scans: list[_Scan], layout: Layout) -> Found:
    """All images of the folders."""
    pairs = [_pair(scan, stem, layout) for scan in scans for stem in scan.images]
    used = {pair.label for pair in pairs}
    for (_, images, labels), _, label_files, others in scans:
        log_unused(images, others, "are no images with a known suffix")
        unused = {name for name in label_files.values() if f"{labels}/{name}" not in used}
        # A folder of labels for all splits holds those of the other splits, too.
        if _NAMED in "".join(layout.labels) or _NAMED not in "".join(layout.images):
            log_unused(labels, unused, "are labels without an image")
    return Found(pairs, _has_labels(scans, layout))


def _has_labels(scans: list[_Scan], layout: Layout) -> bool:
    """Whether the split has labels: a folder of their own, or some among the images."""
    shared = [scan for scan in scans if scan.place.images == scan.place.labels]
    if shared == scans and not any(scan.labels for scan in scans):
        logger.warning(
            "no labels: no file in %s fits %s", shared[0].place.labels, layout.describe()
        )
        return False
    return any(scan.place.labels.is_dir() for scan in scans)


def _pair(scan: _Scan, stem: str, layout: Layout) -> Pair:
    place, label = scan.place, layout.label_stem(stem)
    label = scan.labels.get(label, label + layout.label_suffix)
    return Pair(
        place.prefix + stem, f"{place.images}/{scan.images[stem]}", f"{place.labels}/{label}"
    )


def _listed_names(path: epath.Path, scans: list[_Scan], layout: Layout) -> Found:
    """The images whose names, with or without suffix, are in a list."""
    known = {scan.place.prefix + stem: (scan, stem) for scan in scans for stem in scan.images}
    pairs, missing = [], []
    for _, line in _lines(path):
        suffix = layout.image_suffix(line)
        found = known.get(line) or known.get(line[: -len(suffix)] if suffix else line)
        if found is None:
            missing.append(line)
        else:
            pairs.append(_pair(*found, layout))
    if missing:
        folder = scans[0].place.images
        raise FileNotFoundError(
            f"{len(missing)} of {len(missing) + len(pairs)} names in {path} have no image in "
            f"{folder}, e.g. {missing[:3]}; {describe_folder(folder)} "
            f"(layout: {layout.describe()})"
        )
    return Found(pairs, _has_labels(scans, layout))


def _listed_pairs(root: epath.Path, path: epath.Path) -> Found:
    """The pairs of paths in a list, "IMAGE LABEL", or images alone."""
    pairs, unlabeled = [], []
    for number, line in _lines(path):
        columns = [c.strip() for c in line.split("\t")] if "\t" in line else line.split()
        if len(columns) > 2:
            raise ValueError(
                f"{path}, line {number}: need IMAGE LABEL or IMAGE, got {len(columns)} parts: "
                f"{line!r}; paths with spaces are separated by a tab"
            )
        if any(".." in column.split("/") for column in columns):
            raise ValueError(f"{path}, line {number}: {line!r} leaves the dataset's folder")
        image, label = (*columns, "")[:2]
        if not label:
            unlabeled.append(number)
        sample_id = os.path.splitext(image)[0].lstrip("/")
        pairs.append(Pair(sample_id, str(root / image), str(root / label)))
    if unlabeled and len(unlabeled) < len(pairs):
        raise ValueError(
            f"{path}: {len(unlabeled)} of {len(pairs)} lines have no label, e.g. line "
            f"{unlabeled[0]}; need one in all lines or none"
        )
    if missing := storage.missing([pair.image for pair in pairs]):
        raise FileNotFoundError(
            f"{len(missing)} of {len(pairs)} images in {path} are missing, e.g. {missing[:3]}; "
            f"{describe_folder(root)}. Paths are below the dataset's folder"
        )
    return Found(pairs, not unlabeled)


def _lines(path: epath.Path) -> list[tuple[int, str]]:
    """(number, text) of the lines of a list that are not empty.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is empty, or no UTF-8.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no list {path}; {describe_folder(path.parent)}")
    try:
        text = storage.read_bytes(str(path)).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"list {path} is no UTF-8 text: {error}") from error
    lines = [(n, line.strip()) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise ValueError(f"list {path} is empty")
    return lines


def _texts(key: str, value: Any) -> tuple[str, ...]:
    """One text or several."""
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(t, str) and t for t in texts):
        raise ValueError(f'"files": {key!r} must be a text or a list of texts, got {value!r}')
    return tuple(texts)


def _text_pairs(key: str, value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict) or not all(isinstance(v, str) and k for k, v in value.items()):
        raise ValueError(f'"files": {key!r} must be a dict of texts, got {value!r}')
    return tuple(value.items())


def _fractions(value: Any) -> tuple[tuple[tuple[str, float], ...], int]:
    """The fractions of the key "split", and its seed."""
    example = '{"val": 0.1, "seed": 0}'
    if not isinstance(value, dict):
        raise ValueError(f'"files": "split" must be a dict such as {example}, got {value!r}')
    fractions = {name: f for name, f in value.items() if name != "seed"}
    seed = value.get("seed", 0)
    good = all(isinstance(f, int | float) and 0 < f < 1 for f in fractions.values())
    if not good or sum(fractions.values()) >= 1 or not isinstance(seed, int):
        raise ValueError(
            f'"files": "split" has the fractions of the other splits, each in 0..1 and less than 1 '
            f"together, and a seed, such as {example}; got {value!r}"
        )
    if "train" in fractions:
        raise ValueError('"files": "split" must not name "train", which gets the rest')
    return tuple(fractions.items()), seed
