"""What the pipelines of all tasks share: the plan of the batches, the dataset and its iterator.

The order of training is a function of (seed, step, slot) alone: sample g = step * batch_size + slot
is image shuffle(g mod n, epoch = g div n), augmented with random numbers made from (seed, g). So
there is no state to save, resuming means starting at another step, each epoch visits each image
once, and the numbers of threads, processes and servers do not change the batches.
"""

import atexit
import os
import re
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from hrnet_jax.data.pipeline.order import WHOLE, Shard
from hrnet_jax.data.pipeline.service import call_on_server, distribute

# TensorFlow waits for pending samples before it frees an iterator, and samples cannot finish while
# the interpreter shuts down: an iterator that is still open then blocks the program forever. So
# all iterators are closed while Python still runs.
_LIVE = weakref.WeakSet()

# How TensorFlow reports an exception raised in a `tf.numpy_function`: "KIND: MESSAGE", then the
# traceback. The format is not documented; test_batches.py checks it. If it changes, `iterate`
# raises RuntimeError with TensorFlow's whole text.
_PYTHON_ERROR = re.compile(r"(\w+Error): (.*?)\nTraceback \(most", re.DOTALL)


@atexit.register
def _close_iterators() -> None:
    for batches in list(_LIVE):
        batches.close()


@dataclass(frozen=True)
class BatchPlan:
    """Which training batches a process gets, and how they are made.

    Attributes:
        batch_size: images of a batch over all processes.
        seed: seed of order and augmentation, 0 .. 2**32 - 1.
        start_step: step of the first batch.
        sample_offset: of the first sample of a step, added to step * batch_size; other than 0 in a
            run whose batch size has changed. May be negative.
        shard: this process gets the contiguous slice number `index` of `count` of each batch.
        threads: number of threads that make samples; 0: one for each core.
        prefetch: number of batches made ahead.
        service: HOST:PORT of servers that make the samples, see `hrnet_jax.data.pipeline.service`.

    Raises:
        ValueError: for a value out of range.
    """

    batch_size: int
    seed: int
    start_step: int = 0
    sample_offset: int = 0
    shard: Shard = WHOLE
    threads: int = 0
    prefetch: int = 2
    service: Sequence[str] = ()

    def __post_init__(self):
        self.shard.slots(self.batch_size)
        if not 0 <= self.seed < 2**32:
            # The shuffle uses the low 32 bits only.
            raise ValueError(f"seed must be in 0..2**32 - 1, got {self.seed}")
        for name, value in (
            ("start_step", self.start_step),
            ("threads", self.threads),
            ("prefetch", self.prefetch),
        ):
            if value < 0:
                raise ValueError(f"{name} must be 0 or more, got {value}")
        if self.start_step * self.batch_size + self.sample_offset < 0:
            raise ValueError(f"sample_offset {self.sample_offset} is before the first sample")


def sample_rng(seed: int, global_index: int, stream: int = 0) -> np.random.Generator:
    """The random numbers of one place of the sequence; counter-based, so without state.

    Args:
        seed: seed of the run.
        global_index: step * batch_size + slot.
        stream: different streams of one place are independent.
    """
    return np.random.Generator(
        np.random.Philox(key=[seed, global_index], counter=[0, 0, 0, stream])
    )


def sample_dataset(
    draw: Callable[[tf.Tensor], tuple[tf.Tensor, ...]],
    load: Callable[..., tuple[np.ndarray, ...]],
    elements: Mapping[str, tuple[tuple[int, ...], tf.DType]],
    plan: BatchPlan,
) -> tf.data.Dataset:
    """An endless dataset of batches.

    Args:
        draw: maps a place of the sequence, an int64 scalar, to the arguments of `load`.
        load: returns the arrays of one sample; called from several threads.
        elements: name -> (shape, type) of each of these arrays.
        plan: which batches.
    """
    threads = plan.threads or _threads()
    if plan.service:
        count = len(plan.service)
        parts = [
            distribute(_batches(draw, load, elements, plan, threads, first=k, every=count), address)
            for k, address in enumerate(plan.service)
        ]
        turns = tf.data.Dataset.range(count).repeat()
        dataset = tf.data.Dataset.choose_from_datasets(parts, turns)
    else:
        dataset = _batches(draw, load, elements, plan, threads)
    return dataset.prefetch(plan.prefetch).with_options(_options(threads))


def _batches(
    draw: Callable,
    load: Callable,
    elements: Mapping,
    plan: BatchPlan,
    threads: int,
    first: int = 0,
    every: int = 1,
) -> tf.data.Dataset:
    """The batches `first`, `first + every`, ... of the plan."""
    slots = plan.shard.slots(plan.batch_size)
    call = call_on_server if plan.service else tf.numpy_function
    types = tuple(dtype for _, dtype in elements.values())

    @tf.autograph.experimental.do_not_convert
    def sample(local_index: tf.Tensor) -> dict[str, tf.Tensor]:
        step = plan.start_step + first + local_index // len(slots) * every
        start = step * plan.batch_size + plan.sample_offset
        global_index = start + slots.start + local_index % len(slots)
        arrays = call(load, draw(global_index), types)
        return {
            name: tf.ensure_shape(array, shape)
            for (name, (shape, _)), array in zip(elements.items(), arrays, strict=True)
        }

    dataset = tf.data.Dataset.counter()
    dataset = dataset.map(sample, num_parallel_calls=threads, deterministic=True)
    return dataset.batch(len(slots), drop_remainder=True)


def iterate(dataset: tf.data.Dataset) -> Iterator[dict[str, np.ndarray]]:
    """The batches as NumPy arrays; errors about files are plain Python errors.

    Use this instead of the dataset's own iterators, which can block when the program ends.

    Raises:
        FileNotFoundError, ValueError: naming the file that is missing or damaged.
        RuntimeError: for any other failure of the pipeline, with TensorFlow's text.
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
    # Raised outside the handler and without the iterator: an uncaught error keeps its traceback,
    # and everything that the traceback refers to, until the program ends.
    del batches
    raise _python_error(message)


def _python_error(message: str) -> Exception:
    """The exception that TensorFlow reports in an error message."""
    cause = _PYTHON_ERROR.search(message)
    if not cause:
        return RuntimeError(f"the input pipeline failed: {message}")
    return (FileNotFoundError if cause[1] == "FileNotFoundError" else ValueError)(cause[2])


def batch_rows(members: Sequence[int], batch_size: int, shard: Shard) -> list[list[int]]:
    """The samples of this process in each batch of `members`; -1 fills up the last batch.

    Raises:
        ValueError: if the batch does not divide among the shards.
    """
    slots = shard.slots(batch_size)
    return [
        [*members[start : start + batch_size], *[-1] * batch_size][slots.start : slots.stop]
        for start in range(0, len(members), batch_size)
    ]


def read_ahead(rows: Sequence[list[int]], read: Callable[[int], Any]) -> Iterator[list]:
    """`read(i)` for the samples i of each batch; None for -1.

    Threads read the next batch while the caller works on the current one.
    """

    def submit(batch: list[int]) -> list:
        return [None if i < 0 else pool.submit(read, i) for i in batch]

    with ThreadPoolExecutor(_threads()) as pool:
        ahead = [submit(batch) for batch in rows[:1]]
        for k in range(len(rows)):
            ahead += [submit(batch) for batch in rows[k + 1 : k + 2]]
            yield [future and future.result() for future in ahead.pop(0)]


def _threads() -> int:
    return os.cpu_count() or 1


def _options(threads: int) -> tf.data.Options:
    options = tf.data.Options()
    # The batches must not depend on timing.
    options.deterministic = True
    # Samples already run in parallel; splitting single operations too only adds overhead.
    options.threading.max_intra_op_parallelism = 1
    options.threading.private_threadpool_size = threads
    # The parallelism is set above; tuning it costs a thread and can raise memory over time.
    options.autotune.enabled = False
    return options
