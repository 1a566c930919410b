"""A function over many items in threads, in order, with a progress bar."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from hrnet_jax.runtime.progress import progress_bar


def parallel(function: Callable, items: Iterable[int], what: str, progress: bool) -> Iterator:
    """Results in order, from threads (reading and decoding run outside the interpreter lock)."""
    items = list(items)
    threads = 2 * (os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        # A bounded number of items ahead, so that an error does not wait for the whole queue.
        futures: list[Future] = [pool.submit(function, i) for i in items[: 4 * threads]]
        hidden = not (progress and items)
        with progress_bar(total=len(items), desc=what, unit=" images", disable=hidden) as bar:
            for k in range(len(items)):
                result = futures[k].result()
                futures[k] = None
                if k + 4 * threads < len(items):
                    futures.append(pool.submit(function, items[k + 4 * threads]))
                bar.update()
                yield result
