"""Batches for training and evaluation.

The order of training is a function of (seed, step, slot) and of nothing else: sample g = step *
batch_size + slot is image shuffle(g mod n, epoch = g div n), augmented with random numbers made
from (seed, g). Hence there is no state to save, resuming is counting from another step, each epoch
visits each image once, and neither threads nor the number of hosts change what is seen.
"""

import atexit
import os
import re
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import tensorflow as tf

from hrnet_jax.data.pipeline import augment
from hrnet_jax.data.pipeline.class_counts import class_counts
from hrnet_jax.data.pipeline.mixture import Mixture
from hrnet_jax.data.pipeline.order import NO_CLASS, Order
from hrnet_jax.data.pipeline.service import call_on_server, distribute
from hrnet_jax.data.sources.source import IGNORE_LABEL, Sample, Source

# TensorFlow waits for samples under way before it frees an iterator, and samples cannot finish once
# the interpreter is shutting down: an iterator that is still alive by then hangs the program. So
# all are closed while Python still runs.
_LIVE = weakref.WeakSet()


@atexit.register
def _close_iterators() -> None:
    for batches in list(_LIVE):
        batches.close()


def sample_rng(seed: int, global_index: int, stream: int = 0) -> np.random.Generator:
    """The random numbers of one place of the sequence: counter-based, so without a history.

    Args:
        seed: of the run.
        global_index: step * batch_size + slot.
        stream: numbers of another one are independent.
    """
    return np.random.Generator(
        np.random.Philox(key=[seed, global_index], counter=[0, 0, 0, stream])
    )


def train_dataset(
    source: Source | Mixture,
    *,
    batch_size: int,
    crop_size: tuple[int, int],
    seed: int,
    start_step: int = 0,
    scale_min: float = 0.5,
    scale_max: float = 2.1,
    scale_step: float = 0.1,
    flip: bool = True,
    brightness: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 0,
    prefetch: int = 2,
    service: Sequence[str] = (),
) -> tf.data.Dataset:
    """Augmented batches without end.

    Args:
        source: must have labels.
        batch_size: over all processes.
        crop_size: (height, width) of the samples.
        seed: of order and augmentation.
        start_step: the first batch is that of this step.
        scale_min: smallest factor of the random scale.
        scale_max: largest one, inclusive.
        scale_step: distance of the factors (official: 0.1); 0 draws from the whole interval.
        flip: mirror half of the samples left to right.
        brightness: add an integer in [-brightness, brightness] to all channels.
        process_index: of this process; it gets its contiguous slice of each batch.
        process_count: number of processes; must divide batch_size.
        threads: that make samples; 0: one for each core.
        prefetch: batches made ahead.
        service: HOST:PORT of servers that make the samples, see `hrnet_jax.data.service`.

    Returns:
        Dataset of {"image": uint8 [b, *crop_size, 3], "label": uint8 [b, *crop_size]} with train
        ids and 255 = ignore, b = batch_size / process_count.

    Raises:
        ValueError: for arguments that make no sense. Damaged files raise while iterating, with
            the file's name in the message; `iterate` makes plain ValueErrors of them.
    """
    mixture = Mixture.of(source)
    augmentation = Augmentation(
        tuple(int(c) for c in crop_size),
        scale_min=scale_min,
        scale_max=scale_max,
        scale_step=scale_step,
        flip=flip,
        brightness=brightness,
    )
    load = TrainingSamples(mixture, augmentation, seed)
    check_seed(seed)
    presence = [class_counts(s) > 0 for s in mixture.sources] if mixture.class_uniform else ()
    order = Order(
        [len(s) for s in mixture.sources],
        seed,
        weights=mixture.weights,
        class_uniform=mixture.class_uniform,
        presence=presence,
    )
    size = augmentation.crop_size
    return sample_dataset(
        lambda place: (load.description, *order.draw(place), place),
        load,
        {"image": ((*size, 3), tf.uint8), "label": (size, tf.uint8)},
        batch_size=batch_size,
        start_step=start_step,
        process_index=process_index,
        process_count=process_count,
        threads=threads,
        prefetch=prefetch,
        service=service,
    )


@dataclass(frozen=True)
class Augmentation:
    """The arguments of `train_dataset` of the same names.

    Raises:
        ValueError: for values that make no sense.
    """

    crop_size: tuple[int, int]
    scale_min: float
    scale_max: float
    scale_step: float
    flip: bool
    brightness: int

    def __post_init__(self):
        _check_augmentation(
            self.crop_size, self.scale_min, self.scale_max, self.scale_step, self.brightness
        )


@dataclass(frozen=True)
class TrainingSamples:
    """Makes the sample of a place of the sequence; called from several threads."""

    mixture: Mixture
    augmentation: Augmentation
    seed: int

    @cached_property
    def description(self) -> str:
        """What two of them that make the same samples have in common."""
        sets = ", ".join(f"{len(s)} of {s.name} {s.split}" for s in self.mixture.sources)
        return f"{sets}; seed {self.seed}; {self.augmentation}"

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
            FileNotFoundError, ValueError: naming a file that is not sound; or if the caller means
                other samples than these.
        """
        if (wanted := description.decode()) != self.description:
            raise ValueError(
                f"this data server makes samples of {self.description}, the run wants {wanted}: "
                "start it with the run's configuration"
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
            focus=pixel,
            **vars(self.augmentation),
        )
        window = augment.window(view, sample.size, crop_size)
        image, label = augment.apply_view(
            sample.image(window),
            sample.label(window),
            view,
            crop_size,
            size=sample.size,
            origin=(window[0].start, window[1].start),
        )
        return image, source.to_train_ids(label, index)


def _pixel_of(
    sample: Sample, source: Source, index: int, label: int, rng: np.random.Generator
) -> tuple[int, int]:
    """(row, column) of one of the pixels of a class."""
    train_ids = source.to_train_ids(sample.label(), index)
    found = np.flatnonzero(train_ids == label)
    if not len(found):
        raise ValueError(
            f"label {source.label_name(index)} has no pixel of {source.classes.names[label]!r}: it "
            "has changed since the classes were counted"
        )
    row, column = divmod(int(found[rng.integers(len(found))]), train_ids.shape[1])
    return row, column


def sample_dataset(
    draw: Callable[[tf.Tensor], tuple[tf.Tensor, ...]],
    load: Callable[..., tuple[np.ndarray, ...]],
    elements: Mapping[str, tuple[tuple[int, ...], tf.DType]],
    *,
    batch_size: int,
    start_step: int,
    process_index: int,
    process_count: int,
    threads: int = 0,
    prefetch: int = 2,
    service: Sequence[str] = (),
) -> tf.data.Dataset:
    """Batches without end of what `load` makes of what `draw` gives.

    Args:
        draw: place of the sequence, an int64 scalar -> what `load` needs to know.
        load: gives the arrays of the sample; called from several threads.
        elements: name -> (shape, type) of each of these arrays.
        batch_size: over all processes; the other arguments are those of `train_dataset`.

    Raises:
        ValueError: for arguments that make no sense.
    """
    local_batch = _local_batch(batch_size, process_index, process_count)
    if start_step < 0:
        raise ValueError(f"start_step must be 0 or more, got {start_step}")
    if threads < 0 or prefetch < 0:
        raise ValueError(f"threads and prefetch must be 0 or more, got {threads} and {prefetch}")
    threads = threads or _threads()
    first_slot = process_index * local_batch
    types = tuple(dtype for _, dtype in elements.values())

    servers = len(service) or 1
    call = call_on_server if service else tf.numpy_function

    def part(first: int) -> tf.data.Dataset:
        """Every `servers`-th batch."""

        @tf.autograph.experimental.do_not_convert
        def example(local_index: tf.Tensor) -> dict[str, tf.Tensor]:
            step = start_step + first + local_index // local_batch * servers
            global_index = step * batch_size + first_slot + local_index % local_batch
            arrays = call(load, draw(global_index), types)
            return {
                name: tf.ensure_shape(array, shape)
                for (name, (shape, _)), array in zip(elements.items(), arrays, strict=True)
            }

        dataset = tf.data.Dataset.counter()
        dataset = dataset.map(example, num_parallel_calls=threads, deterministic=True)
        return dataset.batch(local_batch, drop_remainder=True)

    dataset = part(0)
    if service:
        parts = [distribute(part(k), address) for k, address in enumerate(service)]
        turns = tf.data.Dataset.range(servers).repeat()
        dataset = tf.data.Dataset.choose_from_datasets(parts, turns)
    return dataset.prefetch(prefetch).with_options(_options(threads))


def eval_batches(
    source: Source, *, batch_size: int, process_index: int = 0, process_count: int = 1
) -> Iterator[dict[str, np.ndarray]]:
    """Every image exactly once, at its own size.

    Images of one size are batched together, sizes in the order they first occur; the last batch of
    a size is filled up with rows that do not count. All processes get the same number of batches
    with the same shapes, and contiguous slices of each.

    Args:
        source: without labels, all labels are 255.
        batch_size: over all processes.
        process_index: of this process.
        process_count: number of processes; must divide batch_size.

    Yields:
        {"image": uint8 [b, h, w, 3], "label": uint8 [b, h, w] train ids, "valid_mask": bool [b],
        "index": int32 [b], place in the source}; filled-up rows have valid_mask False, index -1
        and label 255.

    Raises:
        ValueError, FileNotFoundError: naming the file that is missing or not sound.
    """
    plan = [
        (size, rows)
        for size, members in sorted_by_size(source).items()
        for rows in batch_rows(members, batch_size, process_index, process_count)
    ]
    batches = read_ahead([rows for _, rows in plan], source.read)
    for (size, rows), samples in zip(plan, batches, strict=True):
        yield _collect(samples, size, rows)


def batch_rows(
    members: Sequence[int], batch_size: int, process_index: int, process_count: int
) -> list[list[int]]:
    """The samples of this process in each batch of `members`; -1 fills the last one up.

    Raises:
        ValueError: if the batch does not divide among the processes.
    """
    local_batch = _local_batch(batch_size, process_index, process_count)
    first = process_index * local_batch
    return [
        [*members[start : start + batch_size], *[-1] * batch_size][first : first + local_batch]
        for start in range(0, len(members), batch_size)
    ]


def sorted_by_size(source: Source) -> dict[tuple[int, int], list[int]]:
    """Image size -> indices, from the files' headers only.

    Raises:
        ValueError, FileNotFoundError: naming the file.
    """
    sizes: dict[tuple[int, int], list[int]] = {}
    with ThreadPoolExecutor(_threads()) as pool:
        found = pool.map(source.records.size, range(len(source)))
        for index, size in enumerate(found):
            sizes.setdefault(size, []).append(index)
    return sizes


def iterate(dataset: tf.data.Dataset) -> Iterator[dict[str, np.ndarray]]:
    """The batches as NumPy arrays, with errors about files as plain Python errors.

    Use this rather than the dataset's own iterators: those can hang when the program ends.

    Raises:
        FileNotFoundError, ValueError: naming the file that is gone or not sound.
    """
    batches = _iterate(dataset)
    _LIVE.add(batches)
    return batches


def _iterate(dataset: tf.data.Dataset) -> Iterator[dict[str, np.ndarray]]:
    batches = dataset.as_numpy_iterator()
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except tf.errors.OpError as error:
            message = error.message
            break
        yield batch
    # Outside the handler and without the iterator: an uncaught error keeps its traceback, and all
    # that hangs on it, until the very end.
    del batches
    # TensorFlow reports what our code raised as "KIND: MESSAGE" and a traceback.
    cause = re.search(r"(\w+Error): (.*?)\nTraceback \(most", message, re.DOTALL)
    if not cause:
        raise RuntimeError(f"the input pipeline failed: {message}")
    raise (FileNotFoundError if cause[1] == "FileNotFoundError" else ValueError)(cause[2])


def read_ahead(batches: Sequence[list[int]], read: Callable[[int], Any]) -> Iterator[list]:
    """What `read` gives of the samples of each batch, None for -1.

    Threads read one batch ahead while the caller works on the one before.
    """

    def submit(rows: list[int]) -> list:
        return [None if i < 0 else pool.submit(read, i) for i in rows]

    with ThreadPoolExecutor(_threads()) as pool:
        ahead = [submit(rows) for rows in batches[:1]]
        for k in range(len(batches)):
            ahead += [submit(rows) for rows in batches[k + 1 : k + 2]]
            yield [future and future.result() for future in ahead.pop(0)]


def _collect(samples: list, size: tuple[int, int], rows: list[int]) -> dict[str, np.ndarray]:
    batch = {
        "image": np.zeros((len(rows), *size, 3), np.uint8),
        "label": np.full((len(rows), *size), IGNORE_LABEL, np.uint8),
        "valid_mask": np.array([i >= 0 for i in rows]),
        "index": np.array(rows, np.int32),
    }
    for k, sample in enumerate(samples):
        if sample is not None:
            image, label = sample
            batch["image"][k] = image
            if label is not None:
                batch["label"][k] = label
    return batch


def _local_batch(batch_size: int, process_index: int, process_count: int) -> int:
    if batch_size < 1 or process_count < 1:
        raise ValueError(f"batch size {batch_size} on {process_count} processes: must be positive")
    if batch_size % process_count:
        raise ValueError(f"batch size {batch_size} is not divisible by {process_count} processes")
    if not 0 <= process_index < process_count:
        raise ValueError(f"process_index {process_index} must be in 0..{process_count - 1}")
    return batch_size // process_count


def _check_augmentation(
    crop_size: tuple[int, ...],
    scale_min: float,
    scale_max: float,
    scale_step: float,
    brightness: int,
) -> None:
    if len(crop_size) != 2 or min(crop_size) < 1:
        raise ValueError(f"crop_size must be (height, width), got {crop_size}")
    if not 0 < scale_min <= scale_max:
        raise ValueError(f"need 0 < scale_min <= scale_max, got {scale_min} and {scale_max}")
    if scale_step < 0:
        raise ValueError(f"scale_step must be 0 or more, got {scale_step}")
    if scale_step:
        steps = (scale_max - scale_min) / scale_step
        if abs(steps - round(steps)) > 1e-6:
            raise ValueError(
                f"scale_step {scale_step} does not divide the way from scale_min {scale_min} to "
                f"scale_max {scale_max}"
            )
    if isinstance(brightness, bool) or not 0 <= brightness <= 255:
        raise ValueError(f"brightness is the largest shift, 0..255, got {brightness!r}")


def check_seed(seed: int) -> None:
    """Raises ValueError for a seed that the order of samples cannot use."""
    if not 0 <= seed < 2**32:
        # The shuffle uses the low 32 bits only.
        raise ValueError(f"seed must be in 0..2**32 - 1, got {seed}")


def _threads() -> int:
    return os.cpu_count() or 1


def _options(threads: int) -> tf.data.Options:
    options = tf.data.Options()
    # Bits must not depend on timing.
    options.deterministic = True
    # Samples run in parallel; splitting one operation over threads as well only adds hand-overs.
    options.threading.max_intra_op_parallelism = 1
    options.threading.private_threadpool_size = threads
    # The parallelism is set above; tuning it costs a thread and can raise memory over time.
    options.autotune.enabled = False
    return options
