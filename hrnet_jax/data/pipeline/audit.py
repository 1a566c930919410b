"""Checks a dataset before the first step: the headers of its files and the ids in its labels.

Without it a damaged file stops the run hours later, and a wrong class list is not noticed at all.
`odd_labels` judges what is found.
"""

from dataclasses import dataclass

import numpy as np

from hrnet_jax.data.images import headers
from hrnet_jax.data.pipeline.class_counts import by_class
from hrnet_jax.data.pipeline.parallel import parallel
from hrnet_jax.data.pipeline.survey import ALONE, Team, survey
from hrnet_jax.data.sources.source import (
    IGNORE_LABEL,
    UNKNOWN_LABEL,
    Classes,
    Source,
    spread_indices,
)
from hrnet_jax.runtime import storage

_EXAMPLES = 3
# Unknown ids with examples; the others are listed only.
_LISTED = 5
# From so many unknown ids on, the labels are taken for damaged, not for incomplete class lists.
_MANY_IDS = 20
# Pairs of files whose bytes are compared, and only where their sizes are equal.
_COMPARED = 3


@dataclass(frozen=True)
class LabelAudit:
    """The classes in the labels of a split.

    Attributes:
        name: of the dataset.
        split: of the dataset.
        classes: what the labels mean.
        mapped: whether the class list is another dataset's (`Source.with_classes`).
        ids: pixels of each raw id that was found.
        counts: pixels of each class, int64 [num_classes].
        images: how many of the counted images hold each class, int64 [num_classes].
        ignored: pixels that belong to no class.
        num_counted: images whose labels were counted.
        num_images: images in the split.
        by_image: name of each counted image -> its pixels of each raw id, as bytes to compare.
    """

    name: str
    split: str
    classes: Classes
    mapped: bool
    ids: dict[int, int]
    counts: np.ndarray
    images: np.ndarray
    ignored: int
    num_counted: int
    num_images: int
    by_image: dict[str, bytes]

    @property
    def names(self) -> tuple[str, ...]:
        return self.classes.names

    @property
    def fractions(self) -> np.ndarray:
        """Of each class in the labeled pixels, float64 [num_classes]."""
        return self.counts / self.counts.sum()

    @property
    def ignored_fraction(self) -> float:
        """Of all counted pixels."""
        return self.ignored / (self.ignored + int(self.counts.sum()))

    @property
    def absent(self) -> tuple[str, ...]:
        """Classes without a single pixel."""
        return tuple(n for n, c in zip(self.names, self.counts, strict=True) if not c)

    def table(self) -> str:
        """The counts as text, one line per class, for the log."""
        width = max(len(n) for n in self.names)
        counted = f"{self.num_counted} of {self.num_images}"
        if self.num_counted == self.num_images:
            counted = f"all {self.num_images}"
        lines = [
            f"labels of {counted} images of {self.name} {self.split}",
            f"{'class':<{width}}   pixels   images",
        ]
        for name, fraction, images in zip(self.names, self.fractions, self.images, strict=True):
            lines.append(f"{name:<{width}} {fraction:>8.3%} {images:>8}")
        lines.append(f"ignored: {self.ignored_fraction:.3%} of all pixels")
        if self.absent:
            lines.append(f"without a single pixel: {', '.join(self.absent)}")
        return "\n".join(lines)


def audit_labels(
    source: Source, *, max_images: int = 0, progress: bool = True, team: Team = ALONE
) -> LabelAudit:
    """Checks all files by their headers and counts the ids in the labels.

    Args:
        source: a split with labels.
        max_images: count the ids of this many labels only, spread evenly over the split; 0 counts
            all. The headers of all files are always checked (of samples inside shards, those
            that are counted).
        progress: show a bar with rate and time left.
        team: the processes that share the work; each gets the same result or error.

    Raises:
        FileNotFoundError: naming a file that is missing.
        ValueError: naming the file, if one is empty, damaged, of the wrong format, too large, or
            if a label's size is not its image's; naming ids that belong to no class with examples;
            if all pixels are ignored, images and labels are the same files, or the split has no
            labels.
    """
    if not source.has_labels:
        raise ValueError(f"split {source.split!r} of {source.name!r} has no labels to audit")
    if max_images < 0:
        raise ValueError(f"max_images must be 0 (all) or more, got {max_images}")
    facts = survey(source, max_labels=max_images, progress=progress, team=team)
    _check_different(source)
    chosen = spread_indices(len(source), max_images)
    return _summarize(source, {i: facts[i].ids for i in chosen})


def check_images(source: Source, *, progress: bool = True) -> None:
    """Checks the headers of all image files of a split without labels.

    Raises:
        FileNotFoundError, ValueError: naming the file.
    """
    check = lambda index: headers.read_header(source.image_paths[index])  # noqa: E731
    for _ in parallel(check, range(len(source.image_paths)), "checking files", progress):
        pass


def _check_different(source: Source) -> None:
    """Raises ValueError if images and labels are the same files, or copies of each other."""
    chosen = spread_indices(len(source), _COMPARED) if source.image_paths else ()
    pairs = [(source.image_paths[i], source.label_paths[i]) for i in chosen]
    same = [
        image == label
        or (
            storage.size(image) == storage.size(label)
            and storage.read_bytes(image) == storage.read_bytes(label)
        )
        for image, label in pairs
    ]
    if same and all(same):
        raise ValueError(
            f"images and labels of {source.name!r}, split {source.split!r}, are the same files, "
            f"e.g. {pairs[0][0]} and {pairs[0][1]}: give the photographs as images"
        )


def _summarize(source: Source, counted: dict[int, np.ndarray]) -> LabelAudit:
    """Adds up the ids of the counted labels.

    Args:
        source: the split.
        counted: index -> int64 [k, 2], raw ids and their pixels.

    Raises:
        ValueError: for ids that belong to no class, or if all pixels are ignored.
    """
    table, num_classes = source.lookup(), source.classes.num_classes
    histogram = np.zeros(len(table), np.int64)
    images = np.zeros(num_classes, np.int64)
    examples: dict[int, list[int]] = {}
    for index, ids in counted.items():
        histogram[ids[:, 0]] += ids[:, 1]
        images += by_class(ids, table, num_classes) > 0
        for i in ids[:, 0].tolist():
            examples.setdefault(i, []).append(index)
    if unknown := [i for i in sorted(examples) if table[i] == UNKNOWN_LABEL]:
        raise ValueError(_describe_unknown(source, unknown, histogram, examples))
    counts = by_class(np.stack([np.arange(len(table)), histogram], -1), table, num_classes)
    ignored = int(histogram[table == IGNORE_LABEL].sum())
    if not counts.sum():
        raise ValueError(
            f"all {ignored} pixels in {len(counted)} labels of {source.name!r}, split "
            f"{source.split!r}, are ignored: nothing can be learned or evaluated. Ids found: "
            f"{sorted(examples)}; known: {source.known_ids()}"
        )
    return LabelAudit(
        name=source.name,
        split=source.split,
        classes=source.classes,
        mapped=bool(source.train_ids),
        ids={i: int(histogram[i]) for i in sorted(examples)},
        counts=counts,
        images=images,
        ignored=ignored,
        num_counted=len(counted),
        num_images=len(source),
        by_image={source.ids[index]: ids.tobytes() for index, ids in counted.items()},
    )


def _describe_unknown(
    source: Source, unknown: list[int], histogram: np.ndarray, examples: dict[int, list[int]]
) -> str:
    """The message about ids of no class.

    Args:
        source: the split.
        unknown: these ids.
        histogram: pixels of each id.
        examples: each id that was found -> the labels that hold it.
    """
    lines = []
    for i in unknown[:_LISTED]:
        files = [source.label_name(k) for k in examples[i][:_EXAMPLES]]
        lines.append(f"  id {i}: {histogram[i]} pixels in {len(examples[i])} images, e.g. {files}")
    if more := unknown[_LISTED:]:
        lines.append(f"  and the ids {more}")
    return (
        f"labels of {source.name!r}, split {source.split!r}, hold ids which the class list "
        f"does not know:\n"
        + "\n".join(lines)
        + f"\nknown: {source.known_ids()}. "
        + _why_unknown(source.classes, unknown, sorted(examples))
    )


def _why_unknown(classes: Classes, unknown: list[int], found: list[int]) -> str:
    """The likely reason for ids of no class, and the way out.

    Args:
        classes: the class list.
        unknown: ids of no class, in order.
        found: all ids in the labels, in order.
    """
    count = classes.num_classes
    from_zero = classes.stores_raw_ids and classes.label_ids == tuple(range(count))
    if len(unknown) >= _MANY_IDS:
        return (
            "So many ids are typical of gray pictures and of labels that were resized with "
            "interpolation or compressed with loss: resize labels with the nearest pixel only"
        )
    if len(found) == count:
        return f'If these are the classes in order: "label_ids": {found} in the class file'
    if from_zero and unknown == [count]:
        ids = f"[1, ..., {count}]"
        return f'The labels seem to count from 1: "label_ids": {ids} in the class file, 0 ignored'
    return (
        "Are these labels of another kind (for Cityscapes: labelIds), or is the class list "
        f'incomplete? "ignore_ids": {[*classes.ignore_ids, *unknown]} in the class file ignores '
        "them"
    )
