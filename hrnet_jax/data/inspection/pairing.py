"""Which files of a folder are images, which are their labels, and the rule that pairs them.

Works on names alone: files whose names agree but for a known word (`_mask`, `_leftImg8bit`, ...),
in one folder or in folders that differ in one component, are candidates for pairs. The rule that
pairs the most images wins, then the one whose words speak more clearly of labels. Lists of files
(`train.lst`, ImageSets) come before that.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from hrnet_jax.data.sources.layout import IMAGE_SUFFIXES

LIST_SUFFIXES = (".txt", ".lst", ".list", ".csv")
LABEL_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
# Pictures that cannot be read for training.
OTHER_IMAGES = (".gif", ".jp2", ".heic", ".avif", ".npy", ".mat", ".npz", ".raw", ".dcm")
# What splits are called, and the name by which training knows them.
SPLITS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "dev": "val", "test": "test", "testing": "test", "trainval": "trainval",
}  # fmt: skip
_SPLIT = "|".join(sorted(SPLITS, key=len, reverse=True))
# A split within a folder's name: alone, at a separator, or in front of a word for labels.
_SPLIT_IN_NAME = re.compile(
    rf"(?:^|(?<=[_\-.]))({_SPLIT})(?:\d{{4}})?(?=$|[_\-.]|annot|mask|label|image|img|gt)", re.I
)
# Words in names: of images, and of labels with how clearly they say so.
_IMAGE_WORDS = ("leftImg8bit", "rgb_anon", "image", "images", "img", "imgs", "rgb", "sat", "photo")
_LABEL_WORDS = {
    "gtFine_labelIds": 9, "gtCoarse_labelIds": 8, "gt_labelIds": 9, "labelIds": 9,
    "gtFine_labelTrainIds": 7, "gt_labelTrainIds": 7, "labelTrainIds": 7, "trainIds": 7,
    "labels": 6, "label": 6, "lbl": 5, "masks": 6, "mask": 6, "msk": 5, "segmentation": 6,
    "seg": 5, "semantic": 6, "annotations": 5, "annotation": 5, "annot": 5, "ann": 4, "anno": 5,
    "groundtruth": 5, "ground_truth": 5, "gt": 5, "target": 4, "targets": 4, "L": 3,
    "gtFine_color": 2, "labelColor": 2, "color": 2, "colors": 2, "instanceIds": 1,
    "gtFine_instanceIds": 1, "gtCoarse_instanceIds": 1, "instances": 1, "SegmentationClass": 6,
    "SegmentationObject": 1,
}  # fmt: skip
_WORDS = "|".join(sorted(map(re.escape, {*_IMAGE_WORDS, *_LABEL_WORDS}), key=len, reverse=True))
_PREFIX = re.compile(rf"({_WORDS})[_\-. ]?(?=.*\d)", re.I)
_SUFFIX = re.compile(rf"[_\-. ](?:{_WORDS})$", re.I)


class File(NamedTuple):
    """A file taken apart by its name."""

    path: str  # below the root
    folder: tuple[str, ...]  # with {split} where a component names a split
    split: str  # as written; "" if none
    prefix: str  # known word in front of the stem
    core: str
    suffix: str  # known word after it, and the ending


class Relation(NamedTuple):
    """A rule by which images have labels; folders as tuples of components."""

    images: tuple[str, ...]
    labels: tuple[str, ...]
    image_suffix: str
    label_suffix: str
    replace: tuple[str, str] | None


@dataclass(frozen=True)
class Pairing:
    """How images and labels were paired.

    Attributes:
        files: the key "files" of a class file.
        pairs: (image, label) below the root, for each split as training names it; "" if there is
            none.
        notes: what a reader should know: what could not be decided, what is left over.
    """

    files: dict[str, Any]
    pairs: Mapping[str, tuple[tuple[str, str], ...]]
    notes: tuple[str, ...]


def take_apart(path: str, endings: Sequence[str] = ()) -> File:
    """A path below the root by its split, known words and core.

    Args:
        path: with / between its components.
        endings: of stems, which are no part of the core; instead of known words.
    """
    *folder, name = path.split("/")
    split, parts = "", []
    for part in folder:
        match = None if split else _SPLIT_IN_NAME.search(part)
        if match:
            # A year stays in the folder: train2017 is the split's own name.
            split = match[0]
            part = part[: match.start()] + "{split}" + part[match.end() :]
        parts.append(part)
    stem, ending = os.path.splitext(name)
    prefix = _PREFIX.match(stem)
    prefix = prefix[0] if prefix else ""
    core = stem[len(prefix) :]
    words = ""
    for end in endings:
        if core.endswith(end) and core != end:
            core, words = core.removesuffix(end), end
    while not endings and (match := _SUFFIX.search(core)) and match.start():
        core, words = core[: match.start()], core[match.start() :] + words
    return File(path, tuple(parts), split, prefix, core, words + ending)


def find_pairs(names: Sequence[str], read_text: Callable[[str], str]) -> Pairing:
    """Pairs of images and labels among the files of a folder.

    Args:
        names: paths of all files below the root, without hidden ones.
        read_text: gives the text of one of them, for lists.

    Raises:
        ValueError: if no rule pairs images with labels; it says what was found.
    """
    pictures = [n for n in names if n.lower().endswith(IMAGE_SUFFIXES)]
    if not pictures:
        raise ValueError(_nothing_found(names))
    lists = _lists(names, read_text)
    if listed := _listed_pairs(lists, set(names)):
        return listed
    votes = _votes(list(map(take_apart, pictures)))
    if not votes and (endings := _unknown_endings(pictures)):
        votes = _votes([take_apart(n, endings) for n in pictures])
    if not votes:
        raise ValueError(
            f"{len(pictures)} images, but no label found for any of them: no PNG, TIFF or BMP file "
            "has the name of an image, alone or with a word such as _mask, _label, _gt or _seg. "
            "Describe the layout in a class file: docs/data.md"
        )
    best = max(votes, key=lambda r: (len({a.path for a, _ in votes[r]}), _clearness(r)))
    notes = _notes(names, pictures, votes, best)
    return _from_relation(best, votes[best], lists, notes)


# ---- by names


def _votes(files: list[File]) -> dict[Relation, list[tuple[File, File]]]:
    """The pairs that each relation would make."""
    by_core: dict[str, list[File]] = defaultdict(list)
    for file in files:
        by_core[file.core.lower()].append(file)
    votes: dict[Relation, list[tuple[File, File]]] = defaultdict(list)
    for group in by_core.values():
        # A name such as 0001 in a thousand folders would make a million pairs: only neighbors.
        near: dict[Any, list[File]] = defaultdict(list)
        for file in group:
            near[(file.split, len(file.folder)) if len(group) > 50 else 0].append(file)
        for some in near.values():
            for image in some:
                for label in some:
                    if relation := _relation(image, label):
                        votes[relation].append((image, label))
    return _starred(votes)


def _unknown_endings(pictures: list[str]) -> list[str]:
    """What follows the name of an image, at a separator, in the names of at least three images."""
    stems = {os.path.splitext(os.path.basename(n))[0] for n in pictures}
    counts: Counter[str] = Counter()
    for stem in stems:
        cuts = [m.start() for m in re.finditer(r"[_\-. ]", stem)]
        counts.update(stem[k:] for k in cuts if k and stem[:k] in stems)
        # Both may have one: 1_sat.jpg and 1_zones.png.
        counts.update({stem[cuts[-1] :]} if cuts and cuts[-1] else ())
    return [end for end, n in counts.items() if n >= max(3, len(stems) // 4)]


def _relation(image: File, label: File) -> Relation | None:
    if image.path == label.path or not label.suffix.lower().endswith(LABEL_SUFFIXES):
        return None
    if image.split.lower() != label.split.lower() or _is_label(image) > _is_label(label):
        return None
    if any(_score(word) > 0 for word in _own_words(image)):
        return None
    replace = None
    if image.prefix != label.prefix:
        if not image.prefix or not label.prefix:
            return None
        replace = (f"/{image.prefix}", f"/{label.prefix}")
    p, q = image.folder, label.folder
    if p == q:
        if image.suffix == label.suffix and not replace:
            return None
        k = p.index("{split}") + 1 if "{split}" in p else 0
        return Relation(p[:k], q[:k], image.suffix, label.suffix, replace)
    if len(p) != len(q):
        return Relation(p, q, image.suffix, label.suffix, replace)
    differing = [k for k in range(len(p)) if p[k] != q[k]]
    if len(differing) != 1:
        return None
    named = [k for k, part in enumerate(p) if "{split}" in part]
    k = max([*differing, *named]) + 1
    return Relation(p[:k], q[:k], image.suffix, label.suffix, replace)


def _starred(votes: dict[Relation, list]) -> dict[Relation, list]:
    """Relations that differ in one component, equal for images and labels, as one with a *."""
    merged: dict[Relation, list] = defaultdict(list)
    for relation, pairs in votes.items():
        merged[_star(relation)].extend(pairs)
    result = {}
    for starred, pairs in merged.items():
        originals = [r for r in votes if _star(r) == starred]
        result[starred if len(originals) > 1 else originals[0]] = pairs
    return result


def _star(relation: Relation) -> Relation:
    p, q = relation.images, relation.labels
    same = [k for k, (a, b) in enumerate(zip(p, q, strict=False)) if a == b and "{split}" not in a]
    if len(p) != len(q) or len(same) != 1 or same[0] == len(p) - 1:
        return relation
    star = lambda parts: (*parts[: same[0]], "*", *parts[same[0] + 1 :])  # noqa: E731
    return relation._replace(images=star(p), labels=star(q))


def _is_label(file: File) -> int:
    """How clearly the name says that a file is a label; negative for images."""
    score = max(map(_score, _own_words(file)), key=abs, default=0)
    return score or max(map(_score, file.folder), key=abs, default=0)


def _own_words(file: File) -> list[str]:
    """The known words in the name of a file itself."""
    words = [w.strip("_-. ") for w in (file.prefix, os.path.splitext(file.suffix)[0])]
    return [w for w in words if w]


def _score(word: str) -> int:
    """Of a word, or of the words in the name of a folder."""
    known = {k.lower(): v for k, v in _LABEL_WORDS.items()} | dict.fromkeys(
        (w.lower() for w in _IMAGE_WORDS), -4
    )
    word = word.lower().replace("{split}", "").strip("_-. ")
    if word in known:
        return known[word]
    found = [known[w] for w in re.split(r"[_\-. ]", word) if w in known]
    if found:
        return max(found, key=abs)
    within = ("mask", "label", "annot", "segmentation")
    return 5 if any(w in word for w in within) else -4 if "image" in word else 0


def _clearness(relation: Relation) -> tuple:
    """Of the roles in a relation: labels by their words, images by the endings of photographs."""
    label = _is_label(File("", relation.labels, "", (relation.replace or ("", ""))[1].strip("/"),
                           "", relation.label_suffix))  # fmt: skip
    image = _is_label(File("", relation.images, "", "", "", relation.image_suffix))
    photograph = relation.image_suffix.lower().endswith((".jpg", ".jpeg"))
    return label - image, photograph, relation


def _from_relation(relation, found, lists, notes: list[str]) -> Pairing:
    """The class file's rule and the pairs of each split."""
    files: dict[str, Any] = {
        "images": "/".join(relation.images) or ".",
        "labels": "/".join(relation.labels) or ".",
        "image_suffix": relation.image_suffix,
        "label_suffix": relation.label_suffix,
    }
    if relation.replace:
        files["replace"] = dict([relation.replace])
    pairs: dict[str, list[tuple[str, str]]] = defaultdict(list)
    written = {}
    for image, label in found:
        name = SPLITS.get(re.sub(r"\d+$", "", image.split).lower(), image.split)
        written[name] = image.split
        pairs[name].append((image.path, label.path))
    if named := _listed_splits(lists, pairs.get("", ()), files):
        files, pairs, written = named
    if any(name != word for name, word in written.items()):
        files["splits"] = written
    if set(pairs) == {""}:
        notes.append(
            f"no splits found: {_add_split(files, len(pairs['']))} of the images become val, by a "
            'rule that depends on their names alone; change "split" in the class file'
        )
    elif "val" not in pairs and "train" in pairs:
        fraction = _add_split(files, len(pairs["train"]))
        notes.append(f'no val found: {fraction} of train become val, see "split"')
    return Pairing(files, {k: tuple(sorted(v)) for k, v in pairs.items()}, tuple(notes))


def _add_split(files: dict[str, Any], count: int) -> str:
    """Takes val from `count` images by the key "split"; returns its fraction as text."""
    fraction = 0.1 if count >= 200 else 0.2
    files["split"] = {"val": fraction, "seed": 0}
    return f"{fraction:.0%}"


def _notes(names, pictures, votes, best: Relation) -> list[str]:
    notes = []
    used = {f.path for pair in votes[best] for f in pair}
    if left := sorted(set(pictures) - used):
        kinds = Counter(f"{n.rpartition('/')[0] or '.'}/*{take_apart(n).suffix}" for n in left)
        notes.append(
            f"{len(left)} images are not used: "
            + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
        )
    others = Counter(
        ending for n in names if (ending := os.path.splitext(n)[1].lower()) in OTHER_IMAGES
    )
    if others:
        notes.append(
            "files that were not looked at: "
            + ", ".join(f"{count} {ending}" for ending, count in others.most_common())
        )
    rivals = [
        r for r in votes if r != best and len(votes[r]) >= 0.9 * len(votes[best])
        and {a.path for a, _ in votes[r]} & {a.path for a, _ in votes[best]}
    ]  # fmt: skip
    for rival in sorted(rivals, key=_clearness, reverse=True)[:3]:
        place = "/".join((*rival.labels, "*" + rival.label_suffix))
        notes.append(f"{place} could be the labels, too")
    return notes


def _nothing_found(names: Sequence[str]) -> str:
    endings = Counter(os.path.splitext(n)[1].lower() or "no ending" for n in names)
    found = ", ".join(f"{count} {ending}" for ending, count in endings.most_common(8))
    return f"no images ({', '.join(IMAGE_SUFFIXES)}); found: {found or 'nothing'}"


# ---- by lists


def _lists(names: Iterable[str], read_text: Callable[[str], str]) -> dict[str, list[list[str]]]:
    """The columns of each line of the text files that can be lists."""
    lists = {}
    for name in names:
        if name.lower().endswith(LIST_SUFFIXES):
            rows = [re.split(r"[,\t ]+", line.strip()) for line in read_text(name).splitlines()]
            lists[name] = [row for row in rows if row != [""]]
    return {name: rows for name, rows in lists.items() if rows}


def _split_of_list(name: str) -> tuple[str, str, str] | None:
    """(template, split as training names it, as written) of the name of a list."""
    folder, _, file = name.rpartition("/")
    if not (match := _SPLIT_IN_NAME.search(file)):
        return None
    template = file[: match.start()] + "{split}" + file[match.end() :]
    return f"{folder}/{template}".lstrip("/"), SPLITS[match[1].lower()], match[0]


def _listed_pairs(lists: dict[str, list[list[str]]], names: set[str]) -> Pairing | None:
    """Lists whose lines are "IMAGE LABEL", paths below the root."""
    good = {}
    for name, rows in lists.items():
        pairs = [(r[0].lstrip("/"), r[1].lstrip("/")) for r in rows if len(r) == 2]
        if pairs and len(pairs) == len(rows) and all(a in names and b in names for a, b in pairs):
            good[name] = tuple(pairs)
    by_template: dict[str, dict[str, tuple[str, tuple]]] = defaultdict(dict)
    for name, pairs in good.items():
        if split := _split_of_list(name):
            template, training_name, written = split
            by_template[template][training_name] = (written, pairs)
    if not by_template:
        return None
    template, found = max(
        by_template.items(), key=lambda item: sum(len(v[1]) for v in item[1].values())
    )
    files: dict[str, Any] = {"list": template}
    if any(name != written for name, (written, _) in found.items()):
        files["splits"] = {name: written for name, (written, _) in found.items()}
    notes = []
    if "val" not in found and "train" in found:
        fraction = _add_split(files, len(found["train"][1]))
        notes.append(f'no list for val: {fraction} of train become val, see "split"')
    return Pairing(files, {k: v[1] for k, v in found.items()}, tuple(notes))


def _listed_splits(lists, pairs, files) -> tuple[dict, dict, dict] | None:
    """Lists of names that divide pairs without splits, as VOC's ImageSets."""
    folder = "" if files["images"] == "." else f"{files['images']}/"
    suffix = files["image_suffix"]
    by_name = {}
    for image, label in pairs:
        name = image.removeprefix(folder)
        by_name[name] = by_name[name[: -len(suffix)]] = (image, label)
    by_template: dict[str, dict[str, tuple[str, list]]] = defaultdict(dict)
    for name, rows in lists.items():
        split = _split_of_list(name)
        words = [r[0] for r in rows]
        if split and all(w in by_name for w in words):
            template, training_name, written = split
            by_template[template][training_name] = (written, [by_name[w] for w in words])
    if not by_template:
        return None
    template, found = max(by_template.items(), key=lambda item: len(item[1]))
    written = {name: word for name, (word, _) in found.items()}
    return {**files, "list": template}, {name: v for name, (_, v) in found.items()}, written
