"""The loop over a split that segmentation, classification and precise BatchNorm share."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from hrnet_jax.data.sources.source import Source
from hrnet_jax.runtime.progress import progress_bar

Batch = dict[str, np.ndarray]


def round_batch_size(batch_size: int, mesh: Mesh | None) -> int:
    """`batch_size`, rounded up to a multiple of the mesh's 'data' axis.

    Raises:
        ValueError: for less than 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if mesh is None:
        return batch_size
    return -(-batch_size // mesh.shape["data"]) * mesh.shape["data"]


def run(
    batches: Iterable[Batch],
    compute: Callable[[Batch], Any],
    collect: Callable[[Batch, Any], int],
    source: Source,
    *,
    doing: str = "evaluating",
    progress: bool = True,
) -> None:
    """Computes every batch and collects the results, one batch behind.

    Args:
        batches: of `eval_batches`.
        compute: starts the computation of a batch and returns its result without waiting for it.
        collect: takes a batch and its result, waits for it and adds it up; returns the number of
            images that the progress bar advances by.
        source: the split that the batches hold.
        doing: shown before the bar, with the name of the split.
        progress: show the bar (on the first process).
    """
    show = progress and jax.process_index() == 0
    text = f"{doing} {source.split}"
    with progress_bar(total=len(source), unit="image", desc=text, disable=not show) as bar:
        pending = None
        for batch in batches:
            result = compute(batch)
            # The devices compute this batch while the host collects the one before.
            if pending is not None:
                bar.update(collect(*pending))
            pending = batch, result
        if pending is not None:
            bar.update(collect(*pending))
