"""Checks a dataset before the first step: the headers of its files and the ids in its labels.

It takes about a minute. Without it a damaged file stops the run hours later, and a wrong class list
is not noticed at all.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from hrnet_jax.data.images import decode, headers
from hrnet_jax.data.sources.source import IGNORE_LABEL, UNKNOWN_LABEL, Source
from hrnet_jax.runtime.progress import progress_bar

_EXAMPLES = 3


@dataclass(frozen=True)
class LabelAudit:
    """The classes in the labels of a split.

    Attributes:
        names: of the classes.
        counts: pixels of each class, int64 [num_classes].
        images: how many of the counted images hold each class, int64 [num_classes].
        ignored: pixels that belong to no class.
        num_counted: images whose labels were counted.
        num_images: images in the split.
    """

    names: tuple[str, ...]
    counts: np.ndarray
    images: np.ndarray
    ignored: int
    num_counted: int
    num_images: int

    @property
    def fractions(self) -> np.ndarray:
        """Of each class in the labeled pixels, float64 [num_classes]."""
        return self.counts / self.counts.sum()

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
        lines = [f"labels of {counted} images", f"{'class':<{width}}   pixels   images"]
        for name, fraction, images in zip(self.names, self.fractions, self.images, strict=True):
            lines.append(f"{name:<{width}} {fraction:>8.3%} {images:>8}")
        ignored = self.ignored / (self.ignored + self.counts.sum())
        lines.append(f"ignored: {ignored:.3%} of all pixels")
        if self.absent:
            lines.append(f"without a single pixel: {', '.join(self.absent)}")
        return "\n".join(lines)


def audit_labels(source: Source, *, max_images: int = 0, progress: bool = True) -> LabelAudit:
    """Checks all files by their headers and counts the ids in the labels.

    Args:
        source: a split with labels.
        max_images: count the ids of this many labels only, spread evenly over the split; 0 counts
            all. The headers of all files are always checked (of samples inside shards, those
            that are counted).
        progress: show a bar with rate and time left.

    Raises:
        FileNotFoundError: naming a file that is missing.
        ValueError: naming the file, if one is empty, damaged, of the wrong format, too large, or
            if a label's size is not its image's; naming ids that belong to no class with examples;
            if all pixels are ignored, or the split has no labels.
    """
    if not source.has_labels:
        raise ValueError(f"split {source.split!r} of {source.name!r} has no labels to audit")
    if max_images < 0:
        raise ValueError(f"max_images must be 0 (all) or more, got {max_images}")
    if source.image_paths:
        check = lambda index: check_headers(source, index)  # noqa: E731
        for _ in parallel(check, range(len(source)), "checking files", progress):
            pass
    chosen = range(len(source))
    if 0 < max_images < len(source):
        chosen = [i * len(source) // max_images for i in range(max_images)]
    histogram = np.zeros(256, np.int64)  # of raw ids
    presence = np.zeros(256, np.int64)
    images = np.zeros(source.classes.num_classes, np.int64)
    examples: dict[int, list[str]] = {}
    count = lambda index: (index, count_ids(source, index))  # noqa: E731
    for index, ids in parallel(count, chosen, "counting labels", progress):
        histogram += ids
        presence += ids > 0
        images += count_classes(source, ids) > 0
        for i in np.flatnonzero(ids):
            if len(files := examples.setdefault(int(i), [])) < _EXAMPLES:
                files.append(source.label_name(index))
    return _judge(source, histogram, presence, images, examples, len(chosen))


def check_images(source: Source, *, progress: bool = True) -> None:
    """Checks the headers of all image files of a split without labels.

    Raises:
        FileNotFoundError, ValueError: naming the file.
    """
    check = lambda index: headers.read_header(source.image_paths[index])  # noqa: E731
    for _ in parallel(check, range(len(source.image_paths)), "checking files", progress):
        pass


def check_headers(source: Source, index: int) -> None:
    """Compares the headers of an image file and its label file.

    Raises:
        FileNotFoundError, ValueError: naming the file.
    """
    image_path, label_path = source.image_paths[index], source.label_paths[index]
    image, label = headers.read_header(image_path), headers.read_header(label_path)
    headers.check_label_header(label, label_path)
    if image.size != label.size:
        raise ValueError(
            f"label {label_path} is {label.height}x{label.width} but its image {image_path} is "
            f"{image.height}x{image.width}"
        )


def count_ids(source: Source, index: int) -> np.ndarray:
    """Pixels of each raw id in one label, int64 [256]."""
    return decode.count_ids(source.records.label(index))


def count_classes(source: Source, ids: np.ndarray) -> np.ndarray:
    """Pixels of each class, int64 [num_classes], from those of each raw id."""
    counts = np.zeros(256, np.int64)
    np.add.at(counts, source.lookup(), ids)
    return counts[: source.classes.num_classes]


def _judge(
    source: Source,
    histogram: np.ndarray,
    presence: np.ndarray,
    images: np.ndarray,
    examples: dict[int, list[str]],
    num_counted: int,
) -> LabelAudit:
    train_ids = source.lookup()
    if unknown := [i for i in sorted(examples) if train_ids[i] == UNKNOWN_LABEL]:
        found = "\n".join(
            f"  id {i}: {histogram[i]} pixels in {presence[i]} images, e.g. {examples[i]}"
            for i in unknown
        )
        raise ValueError(
            f"labels of {source.name!r}, split {source.split!r}, hold ids which the class list "
            f"does not know:\n{found}\nknown: {source.known_ids()}. Are these labels of "
            "another kind (for Cityscapes: labelIds), or is the class list incomplete?"
        )
    counts = count_classes(source, histogram)
    ignored = histogram[train_ids == IGNORE_LABEL].sum()
    if not counts.sum():
        raise ValueError(
            f"all {ignored} pixels in {num_counted} labels of {source.name!r}, split "
            f"{source.split!r}, are ignored: nothing can be learned or evaluated. Ids found: "
            f"{sorted(examples)}; known: {source.known_ids()}"
        )
    return LabelAudit(
        names=source.classes.names,
        counts=counts,
        images=images,
        ignored=int(ignored),
        num_counted=num_counted,
        num_images=len(source),
    )


def parallel(function: Callable, items: Iterable[int], what: str, progress: bool) -> Iterator:
    """Results in order, from threads (reading and decoding run outside the interpreter lock)."""
    items = list(items)
    threads = 2 * (os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        # A bounded number of items ahead, so that an error does not wait for the whole queue.
        futures: list[Future] = [pool.submit(function, i) for i in items[: 4 * threads]]
        with progress_bar(total=len(items), desc=what, unit=" images", disable=not progress) as bar:
            for k in range(len(items)):
                result = futures[k].result()
                futures[k] = None
                if k + 4 * threads < len(items):
                    futures.append(pool.submit(function, items[k + 4 * threads]))
                bar.update()
                yield result
