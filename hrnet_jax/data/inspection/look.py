"""Looks at a folder: finds images and labels, counts what the labels hold, describes it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from etils import epath

from hrnet_jax.data.inspection import known, pairing, values
from hrnet_jax.data.sources.files import not_hidden
from hrnet_jax.data.sources.source import Classes, Color, spread_indices
from hrnet_jax.runtime import storage

Pair = tuple[str, str]
# Text files larger than this are no lists of images and no names of classes.
_MAX_TEXT = 20_000_000


@dataclass(frozen=True)
class Look:
    """What was found in a folder.

    Attributes:
        dataset: for config.data.name: that of a public dataset, or "folder".
        class_file: what describes a folder; empty for a public dataset.
        splits: number of pairs in each split; of a class file that divides them, before that.
        values: what was counted.
        names: of ids or colors, as far as they are known.
        counted: number of pairs that were read.
        notes: what could not be decided, and what a reader should check.
    """

    dataset: str
    class_file: dict[str, Any]
    splits: dict[str, int]
    values: values.Values
    names: Mapping[int | Color, str]
    counted: int
    notes: tuple[str, ...]


def look(
    root: epath.Path,
    sample: int,
    progress: Callable[[list[Pair]], Iterable[Pair]] = lambda pairs: pairs,
) -> Look:
    """Looks at a folder.

    Args:
        root: the folder.
        sample: how many pairs of image and label are read, spread over all; 0: all.
        progress: wraps the pairs that are read.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: if no images, labels or rule between them are found; it says what is there.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}")
    recognized = known.recognize(root)
    fitting = [found for found in recognized if found.fits]
    if fitting:
        return _look_at_public(root, fitting, sample, progress)
    names = not_hidden(storage.names_below(root, follow_links=True))
    found = pairing.find_pairs(names, lambda name: _text(root, name))
    notes = [*found.notes, *_alike(recognized)]
    paths = [p for pairs in found.pairs.values() for p in pairs]
    chosen = [paths[k] for k in spread_indices(len(paths), sample)]
    counts = values.count(progress([(f"{root}/{a}", f"{root}/{b}") for a, b in chosen]))
    class_names, name_files = _names(root, names, counts)
    keys, more = values.classes_of(counts, class_names)
    notes += [f"names of classes are from {', '.join(name_files)}"] if name_files else []
    notes += [*more, *_cityscapes_ids(counts)]
    splits = {split or "all": len(pairs) for split, pairs in found.pairs.items()}
    data = {**keys, "files": found.files}
    return Look("folder", data, splits, counts, class_names, len(chosen), tuple(notes))


def _look_at_public(root: epath.Path, fitting: list[known.Recognized], sample, progress) -> Look:
    found, *others = fitting
    paths, names = [], {}
    for _, source in known.open_splits(found.name, root):
        paths += zip(source.image_paths, source.label_paths, strict=True)
        names = _value_names(source.classes)
    chosen = [paths[k] for k in spread_indices(len(paths), sample)]
    counts = values.count(progress(chosen))
    notes = [f"{found.present} of the {found.num_classes} classes occur in a sample of the labels"]
    notes += [f"{o.name} fits these folders, too" for o in others]
    if "train" not in found.splits:
        notes.append("its train split has no labels here, so it can be evaluated on only")
    splits = dict(found.splits)
    return Look(found.name, {}, splits, counts, names, len(chosen), tuple(notes))


def _value_names(classes: Classes) -> dict[int | Color, str]:
    if classes.label_type == "colors":
        return dict(zip(classes.colors, classes.names, strict=True))
    pairs = zip(classes.ids_by_class, classes.names, strict=True)
    return {value: name for ids, name in pairs for value in ids}


def _text(root: epath.Path, name: str) -> str:
    path = f"{root}/{name}"
    if storage.size(path) > _MAX_TEXT:
        return ""
    return storage.read_bytes(path).decode("utf-8", "replace")


def _alike(recognized: list[known.Recognized]) -> Iterator[str]:
    for found in recognized:
        reason = found.problem or f"only {found.present} of its {found.num_classes} classes occur"
        yield (
            f"the folders are laid out as those of {found.name}, but {reason}; if they are a part "
            f"of it, use --config.data.name={found.name} without the class file"
        )


def _names(root: epath.Path, names: list[str], counts: values.Values) -> tuple[dict, list[str]]:
    """Names for the values that occur, from text files, and those files."""
    present = set(counts.colors) or set(counts.ids) - {255}
    best: dict = {}
    source: list[str] = []
    for name in filter(known.is_name_file, names):
        found = {k: v for k, v in known.read_names(_text(root, name)).items() if k in present}
        if len(found) > len(best):
            best, source = found, [name]
    return best, source


def _cityscapes_ids(counts: values.Values) -> Iterator[str]:
    ids = set(counts.ids) - {255}
    if len(ids) >= 12 and max(ids) in (17, 18) and not counts.colors:
        yield (
            "all ids lie in 0..18, as Cityscapes' train ids do: if they are, take the names of "
            "the class file of bdd100k (hrnet_jax/data/sources/classes/bdd100k.json)"
        )
