"""Pixels of each class in every label of a source, for sampling by class."""

import numpy as np

from hrnet_jax.data.pipeline.survey import survey
from hrnet_jax.data.sources.source import Source


def class_counts(source: Source, *, progress: bool = True) -> np.ndarray:
    """Pixels of each class in each label, int64 [samples, classes]; see `survey`.

    Raises:
        FileNotFoundError, ValueError: naming a file that is missing or damaged.
    """
    table, num_classes = source.lookup(), source.classes.num_classes
    counts = np.zeros((len(source), num_classes), np.int64)
    for index, facts in enumerate(survey(source, progress=progress)):
        counts[index] = by_class(facts.ids, table, num_classes)
    return counts


def by_class(ids: np.ndarray, table: np.ndarray, num_classes: int) -> np.ndarray:
    """Pixels of each class, int64 [num_classes].

    Args:
        ids: int64 [k, 2], raw ids and their pixels.
        table: of `Source.lookup`.
        num_classes: how many there are; ids of no class are left out.
    """
    train_ids = table[np.minimum(ids[:, 0], len(table) - 1)]
    known = (train_ids < num_classes) & (ids[:, 0] < len(table))
    counts = np.zeros(num_classes, np.int64)
    np.add.at(counts, train_ids[known], ids[known, 1])
    return counts
