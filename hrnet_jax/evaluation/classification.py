"""Top-1 and top-5 accuracy of a classifier: every image once, counted by rank."""

import functools
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from hrnet_jax.data.pipeline import classification as classification_data
from hrnet_jax.data.sources.image_folder import ImageSource
from hrnet_jax.models import normalize
from hrnet_jax.runtime import sharding


@dataclass(frozen=True)
class ClassificationResult:
    """What an evaluation found.

    Attributes:
        ranks: int64 [N], how many classes come before the image's own; 0 is right.
        labels: int64 [N], the classes of the images.
        ids: names of the images.
        names: of the classes.
        seconds: wall time, compilation included.
    """

    ranks: np.ndarray
    labels: np.ndarray
    ids: tuple[str, ...]
    names: tuple[str, ...]
    seconds: float

    @property
    def top1(self) -> float:
        """Share of the images whose class is the most likely one."""
        return float((self.ranks < 1).mean())

    @property
    def top5(self) -> float:
        """Share of the images whose class is among the five most likely ones."""
        return float((self.ranks < 5).mean())

    @property
    def per_class_accuracy(self) -> dict[str, float | None]:
        """Share of each class's images that are right; None for a class without images."""
        count = len(self.names)
        right = np.bincount(self.labels, self.ranks == 0, count)
        images = np.bincount(self.labels, minlength=count)
        return {
            name: float(r / n) if n else None
            for name, r, n in zip(self.names, right, images, strict=True)
        }

    def metrics(self, *, step: int, variant: str) -> dict[str, Any]:
        """The contents of metrics.json.

        Args:
            step: training step of the weights.
            variant: name of the network's size.
        """
        return {
            "top1": self.top1,
            "top5": self.top5,
            "per_class_accuracy": self.per_class_accuracy,
            "num_images": len(self.ids),
            "step": step,
            "variant": variant,
        }


def ranks(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """How many classes come before each image's own, as a stable sort would have it.

    Args:
        logits: [N, C].
        labels: integers [N], 0 .. C - 1 (others give some number).

    Returns:
        int32 [N]; C where a logit is NaN, so that a broken network is never right.
    """
    own = jnp.take_along_axis(logits, jnp.maximum(labels, 0)[:, None], axis=1)
    earlier = jnp.arange(logits.shape[1]) < labels[:, None]
    before = (logits > own) | ((logits == own) & earlier)
    broken = jnp.isnan(logits).any(1)
    return jnp.where(broken, logits.shape[1], before.sum(1, dtype=jnp.int32))


def evaluate(
    model: Any,
    variables: Any,
    source: ImageSource,
    *,
    batch_size: int,
    crop_size: tuple[int, int],
    short_side: int,
    mesh: Mesh,
    progress: bool = True,
) -> ClassificationResult:
    """Classifies the centre of every image of a split, each once.

    Args:
        model: of `create_model`, with the head "classification".
        variables: parameters and statistics.
        source: the images.
        batch_size: images per step over all devices; rounded up to a multiple of the 'data' axis.
        crop_size: see `classification_data.eval_batches`, as is `short_side`.
        short_side: to which images are resized.
        mesh: of `sharding.make_mesh`.
        progress: show a bar with rate and time left (on the first host).

    Raises:
        ValueError: for a model whose head or classes do not fit, or files that are not sound.
    """
    if model.head != "classification":
        raise ValueError(f"a model with head {model.head!r} does not classify whole images")
    if model.num_classes != source.classes.num_classes:
        raise ValueError(
            f"the model has {model.num_classes} classes, {source.name!r} has"
            f" {source.classes.num_classes}"
        )
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    start = time.perf_counter()
    batch_size = -(-batch_size // mesh.shape["data"]) * mesh.shape["data"]
    variables = sharding.place_replicated(variables, mesh)
    found = np.full((2, len(source)), -1, np.int64)
    bar = tqdm(
        total=len(source),
        desc=f"evaluating {source.split}",
        unit="image",
        disable=not progress or jax.process_index() != 0,
    )

    def finish(result) -> None:
        """Waits for a batch and keeps what counts of it."""
        index, *rows = (np.asarray(r) for r in result)
        found[:, index[index >= 0]] = np.stack(rows)[:, index >= 0]
        bar.update(int((index >= 0).sum()))

    share, shares = sharding.batch_shard(mesh)
    batches = classification_data.eval_batches(
        source,
        batch_size=batch_size,
        crop_size=crop_size,
        short_side=short_side,
        process_index=share,
        process_count=shares,
    )
    with bar:
        pending = None
        for batch in batches:
            del batch["valid_mask"]  # the index says it, too
            result = _jitted_ranks(mesh)(model, variables, sharding.place_batch(batch, mesh))
            # The device works on this batch while the host waits for the one before.
            if pending is not None:
                finish(pending)
            pending = result
        finish(pending)
    if (found < 0).any():
        raise RuntimeError(f"images never counted: {np.flatnonzero(found.min(0) < 0)[:10]}")
    return ClassificationResult(
        *found, source.ids, source.classes.names, time.perf_counter() - start
    )


@functools.cache
def _jitted_ranks(mesh: Mesh):
    # Made at the first call: the options depend on the backend, which importing must not start.
    def index_ranks_labels(model, variables, batch):
        images = normalize.normalize(batch["image"])
        logits = model.apply(variables, images, train=False)["logits"]
        return batch["index"], ranks(logits, batch["label"]), batch["label"]

    return jax.jit(
        index_ranks_labels,
        static_argnames="model",
        out_shardings=sharding.replicated(mesh),
        compiler_options=sharding.compiler_options(),
    )
