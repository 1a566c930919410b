"""Evaluation of a classification network: top-1 and top-5 accuracy, every image once."""

import functools
import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from hrnet_jax.data.pipeline import classification as classification_data
from hrnet_jax.data.pipeline.order import Shard
from hrnet_jax.data.sources.image_folder import ImageSource
from hrnet_jax.evaluation import driver
from hrnet_jax.models import HRNetModel, normalize
from hrnet_jax.runtime import sharding


@dataclass(frozen=True)
class ClassificationResult:
    """The result of an evaluation.

    Attributes:
        ranks: int64 [N], the number of classes that score higher than the image's label; 0 is
            correct.
        labels: int64 [N], the classes of the images.
        ids: names of the images.
        names: names of the classes.
        seconds: wall time, including compilation.
    """

    ranks: np.ndarray
    labels: np.ndarray
    ids: tuple[str, ...]
    names: tuple[str, ...]
    seconds: float

    @property
    def top1(self) -> float:
        """Fraction of the images whose class has the highest score."""
        return float((self.ranks < 1).mean())

    @property
    def top5(self) -> float:
        """Fraction of the images whose class is among the five highest scores."""
        return float((self.ranks < 5).mean())

    @property
    def per_class_accuracy(self) -> dict[str, float | None]:
        """Fraction of correct images of each class; None for a class without images."""
        count = len(self.names)
        correct = np.bincount(self.labels, self.ranks == 0, count)
        images = np.bincount(self.labels, minlength=count)
        return {
            name: float(c / n) if n else None
            for name, c, n in zip(self.names, correct, images, strict=True)
        }

    def metrics(self, *, step: int, variant: str) -> dict[str, Any]:
        """The contents of metrics.json.

        Args:
            step: training step of the weights.
            variant: name of the variant.
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
    """The position of each label in a stable sort of the classes by decreasing logit.

    Args:
        logits: [N, C].
        labels: integers [N], 0 .. C - 1 (the result for other values is undefined).

    Returns:
        int32 [N]; C where a logit is NaN, so that a broken network is never counted as correct.
    """
    own = jnp.take_along_axis(logits, jnp.maximum(labels, 0)[:, None], axis=1)
    earlier = jnp.arange(logits.shape[1]) < labels[:, None]
    before = (logits > own) | ((logits == own) & earlier)
    broken = jnp.isnan(logits).any(1)
    return jnp.where(broken, logits.shape[1], before.sum(1, dtype=jnp.int32))


def _check_model(model: HRNetModel, source: ImageSource) -> None:
    if model.head != "classification":
        raise ValueError(f"a model with head {model.head!r} does not classify whole images")
    if model.num_classes != source.classes.num_classes:
        raise ValueError(
            f"the model has {model.num_classes} classes, {source.name!r} has"
            f" {source.classes.num_classes}"
        )


def evaluate(
    model: HRNetModel,
    variables: Any,
    source: ImageSource,
    *,
    batch_size: int,
    crop_size: tuple[int, int],
    short_side: int,
    mesh: Mesh,
    progress: bool = True,
) -> ClassificationResult:
    """Classifies the center crop of every image of a split, each once.

    Args:
        model: of `create_model`, with the head "classification".
        variables: parameters and batch statistics.
        source: the images.
        batch_size: images per step over all devices; rounded up to a multiple of the 'data' axis.
        crop_size: (height, width) of the center crop.
        short_side: length to which the short side is resized before the crop.
        mesh: of `sharding.make_mesh`.
        progress: show a progress bar (on the first process).

    Raises:
        ValueError: for a model with the wrong head or classes, or damaged files.
    """
    _check_model(model, source)
    start = time.perf_counter()
    batch_size = driver.round_batch_size(batch_size, mesh)
    variables = sharding.place_replicated(variables, mesh)
    found = np.full((2, len(source)), -1, np.int64)  # ranks, labels

    def compute(batch):
        inputs = {key: batch[key] for key in ("image", "label", "index")}
        return _jitted_ranks(mesh)(model, variables, sharding.place_batch(inputs, mesh))

    def collect(batch, result) -> int:
        index, *rows = (np.asarray(r) for r in result)
        found[:, index[index >= 0]] = np.stack(rows)[:, index >= 0]
        return int((index >= 0).sum())

    batches = classification_data.eval_batches(
        source,
        batch_size=batch_size,
        crop_size=crop_size,
        short_side=short_side,
        shard=Shard(*sharding.batch_shard(mesh)),
    )
    driver.run(batches, compute, collect, source, progress=progress)
    if (found < 0).any():
        raise RuntimeError(f"images not counted: {np.flatnonzero(found.min(0) < 0)[:10]}")
    return ClassificationResult(
        *found, source.ids, source.classes.names, time.perf_counter() - start
    )


@functools.cache
def _jitted_ranks(mesh: Mesh):
    # Created at the first call: the options depend on the backend, and an import must not start it.
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
