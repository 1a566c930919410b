"""Images without labels in training: labels in which all pixels are ignored.

Distillation learns from them; a loss on labels does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hrnet_jax.data.sources.source import IGNORE_LABEL, Classes, Records, Sample, Source, Window


@dataclass(frozen=True)
class BlankSample:
    """A sample whose label is 255 everywhere, see `source.Sample`."""

    sample: Sample

    @property
    def size(self) -> tuple[int, int]:
        return self.sample.size

    def image(self, window: Window | None = None) -> np.ndarray:
        return self.sample.image(window)

    def label(self, window: Window | None = None) -> np.ndarray:
        height, width = self.size
        rows, columns = window or (slice(height), slice(width))
        shape = len(range(height)[rows]), len(range(width)[columns])
        return np.full(shape, IGNORE_LABEL, np.uint8)


@dataclass(frozen=True)
class BlankLabels(Records[Sample]):
    """The images of other records, with blank labels; see `source.Records`."""

    images: Records[Sample]

    has_labels = True

    @property
    def image_paths(self) -> tuple[str, ...]:
        return self.images.image_paths

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        return self.images.name(index)

    @property
    def id_counts(self) -> np.ndarray:  # type: ignore[override]
        # Of no id, so that nobody reads the images to count blank pixels.
        return np.zeros((len(self), 256), np.uint32)

    def files(self, index: int) -> tuple[str, ...]:
        return self.images.files(index)

    def open(self, index: int) -> BlankSample:
        return BlankSample(self.images.open(index))

    def size(self, index: int) -> tuple[int, int]:
        return self.images.size(index)

    def take(self, indices: Sequence[int]) -> "BlankLabels":
        return BlankLabels(self.images.take(indices))


def with_blank_labels(source: Source, classes: Classes) -> Source[Classes, Sample]:
    """The images of a source with blank labels.

    Args:
        source: its labels, if it has any, are not read.
        classes: those of the labels that other images have.
    """
    return replace(
        source,
        classes=classes,
        records=BlankLabels(source.records),
        train_ids=(IGNORE_LABEL,) * 256,
    )


def is_unlabeled(source: Source) -> bool:
    """Whether the source is one of `with_blank_labels`."""
    return isinstance(source.records, BlankLabels)
