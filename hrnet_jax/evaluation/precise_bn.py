"""Precise BatchNorm: statistics of whole, unaugmented images replace those of training.

The running means and variances of training come from augmented crops and from earlier weights;
averaged weights have never been run at all. Evaluation uses whole images and the final weights.
One more pass over the training images with the final weights measures the statistics that fit
(arXiv 2105.07576, section 3; for averaged weights arXiv 1803.05407).
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from hrnet_jax.data.pipeline import segmentation as segmentation_data
from hrnet_jax.data.sources.source import Source
from hrnet_jax.evaluation import driver
from hrnet_jax.inference.multi_scale import check_model
from hrnet_jax.models import HRNetModel, normalize
from hrnet_jax.models.layers import BN_MOMENTUM
from hrnet_jax.runtime import sharding


def measure(
    model: HRNetModel,
    variables: Any,
    source: Source,
    *,
    batch_size: int,
    mesh: Mesh,
    progress: bool = True,
) -> tuple[dict[str, Any], int]:
    """Measures the statistics of the images of a split, at native size, in a random order.

    Each batch is normalized by its own mean and variance, as in training. The result is over all
    pixels of all full batches of images of one size.

    Args:
        model: of `create_model`.
        variables: its {"params", "batch_stats"}.
        source: a split; labels are not used.
        batch_size: images per step over all devices, rounded up to a multiple of the 'data' axis.
            The larger it is, the closer the statistics of a batch are to those of all images.
        mesh: of `sharding.make_mesh`, with space=1.
        progress: show a progress bar.

    Returns:
        The new "batch_stats", float32 NumPy arrays, and the number of images they are based on.

    Raises:
        ValueError: if the network does not fit the classes, or no batch is full.
    """
    check_model(model, source.classes)
    batch_size = driver.round_batch_size(batch_size, mesh)
    order = np.random.default_rng(0).permutation(len(source))
    of_batch = _jitted(model)
    variables = sharding.place_replicated(variables, mesh)
    moments = _Moments()

    def compute(batch):
        if not batch["valid_mask"].all():
            return None
        return of_batch(variables, **sharding.place_batch({"image": batch["image"]}, mesh))

    def collect(batch, stats) -> int:
        if stats is not None:
            moments.add(jax.device_get(stats), batch["image"].shape)
        return int(batch["valid_mask"].sum())

    driver.run(
        segmentation_data.eval_batches(source.take(order.tolist()), batch_size=batch_size),
        compute,
        collect,
        source,
        doing="statistics of",
        progress=progress,
    )
    if not moments.images:
        raise ValueError(
            f"batch_size={batch_size}: the {len(source)} images of {source.name} {source.split} "
            "fill no batch of one size; choose a smaller batch_size"
        )
    return moments.stats(), moments.images


def _jitted(model: HRNetModel):
    options = sharding.compiler_options()
    return jax.jit(functools.partial(_of_batch, model), compiler_options=options)


class _Moments:
    """Sums of means and mean squares over batches, weighted by pixels, in float64."""

    def __init__(self):
        self.images = 0
        self._sums: dict[tuple[str, ...], tuple[int, np.ndarray, np.ndarray]] = {}

    def add(self, stats: Any, shape: tuple[int, ...]) -> None:
        """Adds "batch_stats" of one batch of images of this shape [N, H, W, 3]."""
        found = traverse_util.flatten_dict(stats)
        pixels = math.prod(shape)
        for *layer, kind in found:
            if kind != "mean":
                continue
            mean = found[*layer, "mean"].astype(np.float64)
            terms = pixels, pixels * mean, pixels * (found[*layer, "var"] + mean**2)
            old = self._sums.get(tuple(layer), (0, 0.0, 0.0))
            self._sums[tuple(layer)] = tuple(a + b for a, b in zip(old, terms, strict=True))
        self.images += shape[0]

    def stats(self) -> dict[str, Any]:
        """The "batch_stats" of all batches, float32."""
        stats = {}
        for layer, (pixels, first, second) in self._sums.items():
            mean = first / pixels
            stats[*layer, "mean"] = mean.astype(np.float32)
            stats[*layer, "var"] = (second / pixels - mean**2).astype(np.float32)
        return traverse_util.unflatten_dict(stats)


def _of_batch(model, variables, image: jax.Array) -> Any:
    """The statistics of a batch: an update of zeros gives (1 - BN_MOMENTUM) times these."""
    zeros = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
    _, updated = model.apply(
        {"params": variables["params"], "batch_stats": zeros},
        normalize.normalize(image, model.policy.dtype),
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": jax.random.key(0)},
    )
    return jax.tree.map(lambda x: x / (1 - BN_MOMENTUM), updated["batch_stats"])
