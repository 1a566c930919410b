"""Several splits of a dataset as one: `split="train+val"`."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, groupby
from typing import Any, Generic

import numpy as np

from hrnet_jax.data.sources.source import Classes, Records, SampleT, Source


@dataclass(frozen=True)
class UnionRecords(Records[SampleT], Generic[SampleT]):
    """The samples of several records, one after the other, see `source.Records`."""

    parts: tuple[Records[SampleT], ...]

    @cached_property
    def has_labels(self) -> bool:  # type: ignore[override]
        return all(part.has_labels for part in self.parts)

    @cached_property
    def image_paths(self) -> tuple[str, ...]:  # type: ignore[override]
        return self._paths([part.image_paths for part in self.parts])

    @cached_property
    def label_paths(self) -> tuple[str, ...]:  # type: ignore[override]
        return self._paths([part.label_paths for part in self.parts])

    @cached_property
    def id_counts(self) -> np.ndarray | None:  # type: ignore[override]
        counts = [part.id_counts for part in self.parts]
        return None if any(c is None for c in counts) else np.concatenate(counts)

    @property
    def classes(self) -> Classes | None:  # type: ignore[override]
        return self.parts[0].classes  # the splits have the same

    def files(self, index: int) -> tuple[str, ...]:
        part, place = self._find(index)
        return part.files(place)

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(len(part) for part in self.parts))

    def _paths(self, paths: list[tuple[str, ...]]) -> tuple[str, ...]:
        return sum(paths, ()) if all(paths) else ()

    def _find(self, index: int) -> tuple[Records[SampleT], int]:
        which = bisect_right(self._ends, index)
        return self.parts[which], index - (self._ends[which - 1] if which else 0)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def name(self, index: int) -> str:
        part, place = self._find(index)
        return part.name(place)

    def label_name(self, index: int) -> str:
        part, place = self._find(index)
        return part.label_name(place)

    def open(self, index: int) -> SampleT:
        part, place = self._find(index)
        return part.open(place)

    def size(self, index: int) -> tuple[int, int]:
        part, place = self._find(index)
        return part.size(place)

    def label(self, index: int) -> np.ndarray:
        part, place = self._find(index)
        return part.label(place)

    def take(self, indices: Sequence[int]) -> "UnionRecords[SampleT]":
        # Neighbours of one part stay one part; any order is kept.
        found = groupby(map(self._find, indices), key=lambda place: id(place[0]))
        runs = [list(run) for _, run in found]
        return UnionRecords(tuple(run[0][0].take([place for _, place in run]) for run in runs))


def open_union(split: str, open_split: Callable[[str], Source[Any, Any]]) -> Source[Any, Any]:
    """The splits of `split`, joined by +; the ids begin with the split's name if some are equal.

    Args:
        split: one split, or several as in "train+val".
        open_split: opens one.

    Raises:
        ValueError: for an empty name or one named twice, for splits of which only some have labels,
            or with different classes.
    """
    names = split.split("+")
    if len(names) == 1:
        return open_split(split)
    if "" in names or len(set(names)) < len(names):
        raise ValueError(f"split {split!r}: need different names, joined by + as in 'train+val'")
    sources = [open_split(name) for name in names]
    for source in sources:
        if source.has_labels != sources[0].has_labels:
            raise ValueError(f"split {split!r}: some of these have labels, others do not")
        if source.classes != sources[0].classes:
            raise ValueError(f"split {split!r}: {source.split!r} has other classes")
    ids = [sample_id for source in sources for sample_id in source.ids]
    if len(set(ids)) < len(ids):
        ids = [f"{source.split}/{sample_id}" for source in sources for sample_id in source.ids]
    records = UnionRecords(tuple(source.records for source in sources))
    return replace(sources[0], split=split, ids=tuple(ids), records=records)
