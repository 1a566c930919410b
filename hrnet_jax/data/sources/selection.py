"""A part of a split, chosen by the names of its samples: `split="train[aachen]"`.

    train[0006R0]             the samples whose names begin with 0006R0
    train[-0006R0]            all others
    train+val[-aachen,bremen] of both splits together, without two cities

A name begins with a text if the text ends where the name does, or before a character that is
neither a letter nor a digit: "jena" chooses "jena/000000" and "jena_000000", not "jena2/000000".
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hrnet_jax.data.sources.source import Source

_FORM = re.compile(r"([^\[\]]+)\[(-?)([^\[\]]+)\]")
# How many groups an error lists.
_SHOWN = 20


@dataclass(frozen=True)
class Selection:
    """What the text of a split says.

    Attributes:
        splits: the splits it takes samples of.
        names: what the names of the samples begin with; empty: any.
        excluded: whether these are left out, rather than taken.
    """

    splits: tuple[str, ...]
    names: tuple[str, ...] = ()
    excluded: bool = False

    def holds(self, sample_id: str) -> bool:
        """Whether a sample of the splits belongs to the part."""
        if not self.names:
            return True
        return any(begins(sample_id, name) for name in self.names) != self.excluded


def parse(split: str) -> Selection:
    """The parts of the text of a split.

    Raises:
        ValueError: for brackets in other places, or an empty name in them.
    """
    if not {"[", "]"} & set(split):
        return Selection(tuple(split.split("+")))
    found = _FORM.fullmatch(split)
    names = tuple(found[3].split(",")) if found else ("",)
    if "" in names:
        raise ValueError(
            f"split {split!r}: brackets come last and hold what the names of samples begin with, as"
            " in 'train[0006R0]', or with a minus those to leave out, as in 'train[-0006R0,0001TP]'"
        )
    return Selection(tuple(found[1].split("+")), names, bool(found[2]))


def held_out(split: str, name: str) -> tuple[str, str]:
    """The parts of a split to train on and to evaluate on, if samples of one name are held out.

    Raises:
        ValueError: for a split that is a part already, or a name that cannot stand in brackets.
    """
    if parse(split).names:
        raise ValueError(f"split {split!r} is a part already: nothing more can be held out of it")
    if not name or name.startswith("-") or set(name) & set("[],"):
        raise ValueError(f"cannot hold out {name!r}: need the beginning of names, without [],")
    return f"{split}[-{name}]", f"{split}[{name}]"


def begins(sample_id: str, name: str) -> bool:
    """Whether a sample's name begins with a text, see above."""
    after = sample_id[len(name) : len(name) + 1]
    return sample_id.startswith(name) and not after.isalnum()


def groups(sample_ids: Sequence[str]) -> dict[str, int]:
    """What samples belong together by their names, and how many there are of each; in order.

    That is their outermost folder, as with the cities of Cityscapes, or else the letters and digits
    that the name begins with, as with the sequences of CamVid.
    """
    return dict(sorted(Counter(map(_group, sample_ids)).items()))


def _group(sample_id: str) -> str:
    folder, slash, _ = sample_id.partition("/")
    return folder if slash else re.match(r"[^\W_]*", sample_id)[0]


def describe(sample_ids: Sequence[str]) -> str:
    """The groups of samples, for errors."""
    found = groups(sample_ids)
    shown = ", ".join(f"{name} ({count})" for name, count in list(found.items())[:_SHOWN])
    return shown + (f", ... ({len(found)} in all)" if len(found) > _SHOWN else "")


def open_selection(split: str, open_splits: Callable[[str], Source[Any, Any]]) -> Source[Any, Any]:
    """A split, or the part of it that its brackets choose.

    Args:
        split: as above.
        open_splits: opens what stands before the brackets.

    Raises:
        ValueError: for a malformed text, a name that no sample begins with, or an empty part.
    """
    chosen = parse(split)
    whole = open_splits("+".join(chosen.splits))
    if not chosen.names:
        return whole
    there = f"names in {whole.split!r} of {whole.name!r} begin with: {describe(whole.ids)}"
    for name in chosen.names:
        if not any(begins(sample_id, name) for sample_id in whole.ids):
            raise ValueError(f"split {split!r}: no sample's name begins with {name!r}; {there}")
    indices = [k for k, sample_id in enumerate(whole.ids) if chosen.holds(sample_id)]
    if not indices:
        raise ValueError(f"split {split!r} is empty: it leaves out every sample; {there}")
    return replace(whole.take(indices), split=split)


def shared_splits(split: str, other: str) -> list[str]:
    """The splits of which both may hold the same samples; none where one excludes the other."""
    a, b = parse(split), parse(other)
    return [] if _apart(a, b) or _apart(b, a) else sorted(set(a.splits) & set(b.splits))


def _apart(a: Selection, b: Selection) -> bool:
    """Whether all that b takes begins with what a leaves out or, if a takes some, with others."""
    if not a.names or not b.names or b.excluded:
        return False
    if a.excluded:
        return all(any(begins(name, out) for out in a.names) for name in b.names)
    return not any(begins(n, m) or begins(m, n) for n in a.names for m in b.names)
