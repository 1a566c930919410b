"""Batches of images with label maps, for training and for evaluation of segmentation.

`batches` says how the order follows from seed and step.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import tensorflow as tf

from hrnet_jax.data.pipeline import augment
from hrnet_jax.data.pipeline.augment import Augmentation
from hrnet_jax.data.pipeline.batches import (
    BatchPlan,
    batch_rows,
    read_ahead,
    sample_dataset,
    sample_rng,
)
from hrnet_jax.data.pipeline.class_counts import class_counts
from hrnet_jax.data.pipeline.mixture import Mixture
from hrnet_jax.data.pipeline.order import NO_CLASS, WHOLE, Order, Shard
from hrnet_jax.data.sources.source import IGNORE_LABEL, Sample, Source


def train_dataset(
    source: Source | Mixture, augmentation: Augmentation, plan: BatchPlan
) -> tf.data.Dataset:
    """An endless dataset of augmented batches.

    Args:
        source: must have labels.
        augmentation: its crop_size is the size of the samples.
        plan: which batches, and how they are made.

    Returns:
        Dataset of {"image": uint8 [b, *crop_size, 3], "label": uint8 [b, *crop_size]} with train
        ids and 255 = ignore, b = batch_size / shard.count.

    Raises:
        ValueError: for a source without labels. Damaged files raise while iterating, with the
            file's name in the message; see `batches.iterate`.
    """
    mixture = Mixture.of(source)
    load = TrainingSamples(mixture, augmentation, plan.seed)
    order = _order(mixture, plan.seed)
    size = augmentation.crop_size
    return sample_dataset(
        lambda place: (load.description, *order.draw(place), place),
        load,
        {"image": ((*size, 3), tf.uint8), "label": (size, tf.uint8)},
        plan,
    )


def _order(mixture: Mixture, seed: int) -> Order:
    presence = [class_counts(s) > 0 for s in mixture.sources] if mixture.class_uniform else ()
    return Order(
        [len(s) for s in mixture.sources],
        seed,
        weights=mixture.weights,
        class_uniform=mixture.class_uniform,
        presence=presence,
    )


@dataclass(frozen=True)
class TrainingSamples:
    """Makes the training sample at a place of the sequence; called from several threads."""

    mixture: Mixture
    augmentation: Augmentation
    seed: int

    @cached_property
    def description(self) -> str:
        """Equal for two objects that make the same samples."""
        sources = ", ".join(f"{len(s)} of {s.name} {s.split}" for s in self.mixture.sources)
        return f"{sources}; seed {self.seed}; {self.augmentation}"

    def __call__(
        self,
        description: bytes,
        which: np.ndarray,
        index: np.ndarray,
        focus: np.ndarray,
        global_index: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The image and label of sample `index` of the source `which`, augmented.

        Raises:
            FileNotFoundError, ValueError: naming the file that is missing or damaged.
            ValueError: if the run expects other samples than these.
        """
        if (wanted := description.decode()) != self.description:
            raise ValueError(
                f"this data server makes samples of {self.description}, the run wants {wanted}: "
                "start the server with the run's configuration"
            )
        source, index = self.mixture.sources[int(which)], int(index)
        sample = source.records.open(index)
        pixel = None
        if focus != NO_CLASS:
            rng = sample_rng(self.seed, int(global_index), 1)
            pixel = _pixel_of(sample, source, index, int(focus), rng)
        crop_size = self.augmentation.crop_size
        view = augment.sample_view(
            sample_rng(self.seed, int(global_index)),
            sample.size,
            self.augmentation,
            focus=pixel,
        )
        window = augment.window(view, sample.size, crop_size)
        # As train ids, because the padding is IGNORE_LABEL, which can be the raw id of a class.
        train_ids = source.to_train_ids(sample.label(window), index)
        return augment.apply_view(
            sample.image(window),
            train_ids,
            view,
            crop_size,
            size=sample.size,
            origin=(window[0].start, window[1].start),
        )


def _pixel_of(
    sample: Sample, source: Source, index: int, label: int, rng: np.random.Generator
) -> tuple[int, int]:
    """(row, column) of one of the pixels of a class."""
    train_ids = source.to_train_ids(sample.label(), index)
    found = np.flatnonzero(train_ids == label)
    if not len(found):
        raise ValueError(
            f"label {source.label_name(index)} has no pixel of {source.classes.names[label]!r}: "
            "it has changed since the classes were counted"
        )
    row, column = divmod(int(found[rng.integers(len(found))]), train_ids.shape[1])
    return row, column


def eval_batches(
    source: Source, *, batch_size: int, shard: Shard = WHOLE, size_step: int = 1
) -> Iterator[dict[str, np.ndarray]]:
    """Every image exactly once, at its own size, or padded to multiples of `size_step`.

    Images of one (padded) size are batched together, sizes in the order of their first image. The
    last batch of a size is filled up with rows that do not count. All shards get the same number of
    batches with the same shapes, and contiguous slices of each.

    Args:
        source: without labels, all labels are 255.
        batch_size: images of a batch over all processes; shard.count must divide it.
        shard: the slice of each batch that this process gets.
        size_step: images are padded at the bottom and on the right by repeating their last row and
            column, labels by 255; 1 for no padding. Images of many sizes then need few programs.

    Yields:
        {"image": uint8 [b, h, w, 3], "label": uint8 [b, h, w] train ids, "valid_mask": bool [b],
        "index": int32 [b], number of the image in the source, "size": int32 [b, 2], height and
        width of the image without padding}; rows that do not count have valid_mask False, index -1
        and label 255.

    Raises:
        ValueError, FileNotFoundError: naming the file that is missing or damaged.
    """
    plan = [
        (size, rows)
        for size, members in _padded_sizes(source, size_step).items()
        for rows in batch_rows(members, batch_size, shard)
    ]
    batches = read_ahead([rows for _, rows in plan], source.read)
    for (size, rows), samples in zip(plan, batches, strict=True):
        yield _collect(samples, size, rows)


def sorted_by_size(source: Source) -> dict[tuple[int, int], list[int]]:
    """Image size -> indices, from the files' headers only.

    Raises:
        ValueError, FileNotFoundError: naming the file.
    """
    sizes: dict[tuple[int, int], list[int]] = {}
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        found = pool.map(source.records.size, range(len(source)))
        for index, size in enumerate(found):
            sizes.setdefault(size, []).append(index)
    return sizes


def _padded_sizes(source: Source, size_step: int) -> dict[tuple[int, int], list[int]]:
    """Padded size -> indices, those of one own size together."""
    if size_step < 1:
        raise ValueError(f"size_step must be at least 1, got {size_step}")
    sizes: dict[tuple[int, int], list[int]] = {}
    for (height, width), members in sorted_by_size(source).items():
        padded = height + -height % size_step, width + -width % size_step
        sizes.setdefault(padded, []).extend(members)
    return sizes


def _collect(samples: list, size: tuple[int, int], rows: list[int]) -> dict[str, np.ndarray]:
    batch = {
        "image": np.zeros((len(rows), *size, 3), np.uint8),
        "label": np.full((len(rows), *size), IGNORE_LABEL, np.uint8),
        "valid_mask": np.array([i >= 0 for i in rows]),
        "index": np.array(rows, np.int32),
        "size": np.array([size] * len(rows), np.int32),
    }
    for k, sample in enumerate(samples):
        if sample is not None:
            image, label = sample
            height, width = image.shape[:2]
            batch["size"][k] = height, width
            padded = batch["image"][k]
            padded[:height, :width] = image
            padded[height:, :width] = padded[height - 1, :width]
            padded[:, width:] = padded[:, width - 1 : width]
            if label is not None:
                batch["label"][k, :height, :width] = label
    return batch
