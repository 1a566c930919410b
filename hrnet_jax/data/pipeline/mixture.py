"""Several sources as one, and samples chosen for their classes."""

from collections.abc import Sequence
from dataclasses import dataclass

from hrnet_jax.data.pipeline.order import block_counts
from hrnet_jax.data.sources import class_maps
from hrnet_jax.data.sources.source import Classes, Source
from hrnet_jax.data.sources.unlabeled import with_blank_labels


@dataclass(frozen=True)
class Mixture:
    """What to train on: sources with the same classes, each with its weight.

    Attributes:
        sources: the first one gives its name.
        weights: one per source; their proportions count.
        class_uniform: fraction of the samples for which a class is drawn first, then an image that
            holds it; the crop is placed around one of its pixels.

    Raises:
        ValueError: for sources without labels or with other classes, or invalid weights.
    """

    sources: tuple[Source, ...]
    weights: tuple[float, ...] = (1.0,)
    class_uniform: float = 0.0

    def __post_init__(self):
        if len(self.sources) != len(self.weights) or not self.sources:
            raise ValueError(f"{len(self.sources)} sources but {len(self.weights)} weights")
        block_counts(self.weights, self.class_uniform)
        for source in self.sources:
            if not source.has_labels:
                raise ValueError(
                    f"split {source.split!r} of {source.name!r} has no labels to train on; images"
                    " without labels are for training with a teacher: --config.distill.teacher"
                )
            if source.classes.names != self.classes.names:
                raise ValueError(
                    f"{source.name!r} has other classes than {self.name!r}: {source.classes.names} "
                    f"and {self.classes.names}; map them with a class_map (ready-made ones: "
                    f"{', '.join(map(' to '.join, class_maps.pairs()))})"
                )

    @classmethod
    def of(cls, source: "Source | Mixture") -> "Mixture":
        """A source alone, or the mixture itself."""
        return source if isinstance(source, Mixture) else cls((source,))

    @property
    def name(self) -> str:
        return self.sources[0].name

    @property
    def split(self) -> str:
        return self.sources[0].split

    @property
    def classes(self) -> Classes:
        return self.sources[0].classes

    def __len__(self) -> int:
        """Samples in an epoch, which is one pass over the first source."""
        return max(1, round(len(self.sources[0]) * sum(self.weights) / self.weights[0]))

    def describe(self) -> str:
        """The fractions, for the log."""
        total = sum(self.weights)
        parts = [
            f"{weight / total:.1%} {source.name} {source.split} ({len(source)} images)"
            for source, weight in zip(self.sources, self.weights, strict=True)
        ]
        if self.class_uniform:
            parts.append(f"{self.class_uniform:.1%} of each chosen by class")
        return ", ".join(parts)


def open_mixture(
    first: Source, others: Sequence[dict], class_uniform: float, *, unlabeled: bool = False
) -> Source | Mixture:
    """What `config.data.mix` and `config.data.class_uniform` describe.

    Args:
        first: the dataset that the rest of `config.data` names; its weight is 1 minus the others'.
        others: dicts with name, root, split, weight and, if need be, class_file and class_map.
            Without a class_map, other classes are mapped by a ready-made one (`class_maps`).
        class_uniform: see `Mixture`.
        unlabeled: splits without labels are taken, too: all their pixels are ignored.

    Raises:
        ValueError: for unknown or missing keys, or invalid values; for a split without labels where
            they are needed.
        FileNotFoundError: if a dataset is missing.
    """
    from hrnet_jax.data import open_source

    needed, optional = ("name", "root", "split", "weight"), ("class_file", "class_map")
    sources, weights = [first], []
    for entry in others:
        if not isinstance(entry, dict) or set(needed) - set(entry):
            raise ValueError(f"config.data.mix: each entry is a dict with {needed}, got {entry!r}")
        if unknown := sorted(set(entry) - {*needed, *optional}):
            raise ValueError(f"config.data.mix: unknown keys {unknown}; known: {needed + optional}")
        source = open_source(
            entry["name"],
            root=entry["root"],
            split=entry["split"],
            class_file=entry.get("class_file", ""),
        )
        class_map = entry.get("class_map") or class_maps.find(
            source.classes.names, first.classes.names
        )
        if class_map:
            source = source.with_classes(first.classes, class_map)
        sources.append(source)
        weights.append(float(entry["weight"]))
    if not sum(weights) < 1:
        raise ValueError(
            f"config.data.mix: the weights {weights} leave nothing for {first.name!r}, whose "
            "weight is 1 minus their sum"
        )
    if unlabeled:
        sources = [_labeled_or_blank(s, first.classes, class_uniform) for s in sources]
    first = sources[0]
    if len(sources) == 1 and not class_uniform:
        return first
    return Mixture(tuple(sources), (1 - sum(weights), *weights), class_uniform)


def _labeled_or_blank(source: Source, classes: Classes, class_uniform: float) -> Source:
    if source.has_labels:
        return source
    if class_uniform:
        raise ValueError(
            f"config.data.class_uniform={class_uniform} looks for classes in labels, but split"
            f" {source.split!r} of {source.name!r} has none; set it to 0"
        )
    return with_blank_labels(source, classes)
