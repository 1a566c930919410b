"""Which sample comes at which place of the endless training sequence.

Every result depends on (seed, place) alone and is computed with TensorFlow operations: nothing is
stored, and any place can be computed without those before it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

# Each source of a mixture gets its exact fraction of every BLOCK samples, so fractions are
# multiples of 1/1000.
BLOCK = 1000
NO_CLASS = -1


class Shard(NamedTuple):
    """The part of each batch that a process gets: slice number `index` of `count` equal slices."""

    index: int = 0
    count: int = 1

    def slots(self, batch_size: int) -> range:
        """The places in a batch of this shard.

        Raises:
            ValueError: if batch_size is not positive or not divisible by `count`, or `index` is
                out of range.
        """
        if batch_size < 1 or self.count < 1:
            raise ValueError(f"batch_size {batch_size} on {self.count} shards: must be positive")
        if batch_size % self.count:
            raise ValueError(f"batch_size {batch_size} is not divisible by {self.count} shards")
        if not 0 <= self.index < self.count:
            raise ValueError(f"shard index {self.index} must be in 0..{self.count - 1}")
        size = batch_size // self.count
        return range(self.index * size, (self.index + 1) * size)


WHOLE = Shard()  # of a single process: all of each batch


class Draw(NamedTuple):
    """One place of the sequence; int64 scalars."""

    source: tf.Tensor  # number of the source
    index: tf.Tensor  # number of the sample in its source
    focus: tf.Tensor  # class to crop around, or NO_CLASS


def sample_order(num_samples: int | tf.Tensor, seed: int, place: tf.Tensor) -> tf.Tensor:
    """The order of one source: a new permutation for each pass over it.

    Args:
        num_samples: length of the source, n.
        seed: seed of the run, 0 .. 2**32 - 1.
        place: int64 scalar, 0 or more.

    Returns:
        int64 scalar in 0 .. n - 1; the places k*n .. k*n + n - 1 hold each value once.
    """
    place, num_samples = tf.cast(place, tf.int64), tf.cast(num_samples, tf.int64)
    return _shuffle(place % num_samples, num_samples, seed, place // num_samples)


def _shuffle(position: tf.Tensor, count: tf.Tensor, seed: int, epoch: tf.Tensor) -> tf.Tensor:
    seeds = tf.stack([tf.constant(seed, tf.int64), epoch])
    return tf.random.experimental.index_shuffle(position, seeds, count - 1)


def block_counts(weights: Sequence[float], class_uniform: float) -> np.ndarray:
    """Samples of each stream within a block, int64 [2 * sources]; they add up to BLOCK.

    A source has two streams, one after the other in the result: its images in turn, and those
    chosen for a class.

    Raises:
        ValueError: for weights that are not positive or too small.
    """
    weights = np.array(weights, np.float64)
    if not np.isfinite(weights).all() or not (weights > 0).all():
        raise ValueError(f"weights of a mixture must be positive, got {weights.tolist()}")
    if not 0 <= class_uniform <= 1:
        raise ValueError(f"class_uniform is a fraction, 0..1, got {class_uniform}")
    exact = np.outer(weights / weights.sum(), (1 - class_uniform, class_uniform)).ravel() * BLOCK
    counts = np.floor(exact + 1e-9).astype(np.int64)
    # The samples left over by rounding down go to the largest remainders; the first of equal ones.
    for k in np.argsort(counts - exact, kind="stable")[: BLOCK - counts.sum()]:
        counts[k] += 1
    if ((exact > 0) & (counts == 0)).any():
        raise ValueError(f"weights {weights.tolist()}: fractions below 1/{BLOCK} are not supported")
    return counts


class Order:
    """The order of a mixture of sources.

    Within each block of BLOCK places, every stream has its fraction of the places, shuffled. A
    stream runs through its own samples as if it were alone, so each source's images come once in
    each pass.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        seed: int,
        *,
        weights: Sequence[float],
        class_uniform: float = 0.0,
        presence: Sequence[np.ndarray] = (),
    ):
        """
        Args:
            lengths: number of samples of each source.
            seed: seed of the run, 0 .. 2**32 - 1.
            weights: fraction of each source, up to a common factor.
            class_uniform: fraction of the samples of every source that are chosen by class: first a
                class is drawn, all classes equally often, then an image that contains it.
            presence: bool [samples, classes] for each source, if class_uniform is not 0.
        """
        self._lengths, self._seed = tuple(lengths), seed
        self._counts = block_counts(weights, class_uniform)
        self._tables = [_ClassTable.of(p) for p in presence] if class_uniform else []

    def draw(self, place: tf.Tensor) -> Draw:
        """The sample at `place`, an int64 scalar."""
        place = tf.cast(place, tf.int64)
        used = np.flatnonzero(self._counts)
        if len(used) == 1:
            return self._of_stream(int(used[0]), place)
        block, position = place // BLOCK, place % BLOCK
        mixed = _shuffle(position, tf.constant(BLOCK, tf.int64), self._stream_seed(-1), block)
        ends = np.cumsum(self._counts)
        stream = tf.reduce_sum(tf.cast(mixed >= tf.constant(ends), tf.int64))
        starts, counts = tf.constant(ends - self._counts), tf.constant(self._counts)
        place = block * tf.gather(counts, stream) + mixed - tf.gather(starts, stream)
        branches = [lambda k=int(k): self._of_stream(k, place) for k in used]
        return tf.switch_case(tf.searchsorted(used, stream[None], out_type=tf.int32)[0], branches)

    def _stream_seed(self, stream: int) -> int:
        # Streams of equal length need different orders; the first stream uses the seed itself.
        return (self._seed + 0x9E3779B9 * stream) % 2**32

    def _of_stream(self, stream: int, place: tf.Tensor) -> Draw:
        source, by_class = divmod(stream, 2)
        seed = self._stream_seed(stream)
        if not by_class:
            index, focus = sample_order(self._lengths[source], seed, place), NO_CLASS
        else:
            index, focus = self._tables[source].draw(seed, place)
        return Draw(*(tf.cast(value, tf.int64) for value in (source, index, focus)))


class _ClassTable(NamedTuple):
    """The images of each class, one class after the other."""

    classes: np.ndarray  # int64 [c], the classes that occur
    starts: np.ndarray  # int64 [c]
    counts: np.ndarray  # int64 [c]
    images: np.ndarray  # int64 [sum of counts]

    @classmethod
    def of(cls, presence: np.ndarray) -> "_ClassTable":
        counts = presence.sum(0, dtype=np.int64)
        classes = np.flatnonzero(counts)
        images = [np.flatnonzero(presence[:, c]) for c in classes]
        starts = np.cumsum(counts[classes]) - counts[classes]
        return cls(classes, starts, counts[classes], np.concatenate(images))

    def draw(self, seed: int, place: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """(image, class): each class occurs once in every len(classes) places."""
        row = sample_order(len(self.classes), seed, place)
        count, start = tf.gather(self.counts, row), tf.gather(self.starts, row)
        # The images of a class are also permuted, pass by pass.
        rank = sample_order(count, seed ^ 0xFFFFFFFF, place // len(self.classes))
        return tf.gather(self.images, start + rank), tf.gather(self.classes, row)
