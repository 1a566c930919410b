"""BatchNorm's statistics of whole, unchanged images, in the place of those that training left.

While a network is trained, its running means and variances follow crops that are scaled, coloured
and mixed, and weights that have moved on since; averaged weights were never run at all. Evaluation
shows it other images. One more pass over the training images with the final weights mends both:
precise BatchNorm (arXiv 2105.07576, section 3; for averaged weights arXiv 1803.05407).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh

from hrnet_jax.data.pipeline import segmentation as segmentation_data
from hrnet_jax.data.sources.source import Source
from hrnet_jax.inference.multi_scale import check_model
from hrnet_jax.models import normalize
from hrnet_jax.models.layers import BN_MOMENTUM
from hrnet_jax.runtime import sharding
from hrnet_jax.runtime.progress import progress_bar


def measure(
    model: Any, variables: Any, source: Source, *, batch_size: int, mesh: Mesh, progress=True
) -> tuple[dict[str, Any], int]:
    """The statistics of a split's images, at their native size, in batches of a random order.

    Each batch is normalised by its own mean and variance, as in training. The result is the mean
    and the variance over all pixels of all batches. Only full batches of images of one size count.

    Args:
        model: of `create_model`.
        variables: its {"params", "batch_stats"}.
        source: a split; labels are not used.
        batch_size: images per step over all devices, rounded up to a multiple of the 'data' axis.
            The larger, the nearer a batch's statistics are to those of all images.
        mesh: of `sharding.make_mesh`, with space=1.
        progress: show a bar with rate and time left.

    Returns:
        The new "batch_stats", float32 NumPy arrays, and the number of images they are of.

    Raises:
        ValueError: if the network does not fit the classes, or no batch is full.
    """
    check_model(model, source.classes)
    batch_size = -(-batch_size // mesh.shape["data"]) * mesh.shape["data"]
    order = np.random.default_rng(0).permutation(len(source))
    function = functools.partial(_of_batch, model)
    of_batch = jax.jit(function, compiler_options=sharding.compiler_options())
    variables = sharding.place_replicated(variables, mesh)
    total, images = None, 0
    bar = progress_bar(
        total=len(source), desc=f"statistics of {source.split}", unit="image", disable=not progress
    )
    with bar:
        for batch in segmentation_data.eval_batches(
            source.take(order.tolist()), batch_size=batch_size
        ):
            bar.update(int(batch["valid_mask"].sum()))
            if not batch["valid_mask"].all():
                continue
            placed = sharding.place_batch({"image": batch["image"]}, mesh)
            found = traverse_util.flatten_dict(jax.device_get(of_batch(variables, **placed)))
            pixels = batch["image"].size
            # Sums weighted by pixels: of the means, and of the squares' means.
            moments = {
                (*layer, kind): (
                    pixels,
                    pixels * found[*layer, "mean"].astype(np.float64),
                    pixels * (found[*layer, "var"] + found[*layer, "mean"].astype(np.float64) ** 2),
                )
                for *layer, kind in found
                if kind == "mean"
            }
            total = moments if total is None else jax.tree.map(np.add, total, moments)
            images += batch_size
    if total is None:
        raise ValueError(
            f"batch_size={batch_size}: no size of image is as frequent among the {len(source)} of "
            f"{source.name} {source.split}; take a smaller one"
        )
    stats = {}
    for (*layer, _), (pixels, first, second) in total.items():
        mean = first / pixels
        stats[*layer, "mean"] = mean.astype(np.float32)
        stats[*layer, "var"] = (second / pixels - mean**2).astype(np.float32)
    return traverse_util.unflatten_dict(stats), images


def _of_batch(model, variables, image: jax.Array) -> Any:
    """The batch's own statistics: from zero, an update leaves 1 - BN_MOMENTUM times of them."""
    zeros = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
    _, updated = model.apply(
        {"params": variables["params"], "batch_stats": zeros},
        normalize.normalize(image, model.policy.dtype),
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": jax.random.key(0)},
    )
    return jax.tree.map(lambda x: x / (1 - BN_MOMENTUM), updated["batch_stats"])
