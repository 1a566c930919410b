"""Full-size predictions: single scale, or averaged over scales, mirror images and tiles.

The network is compiled once per input size and gives logits at a quarter of it; all that follows
(resizing, softmax, averaging) is compiled apart from it, so that mirror images and tiles cost no
further compilation of the network.
"""

import dataclasses
import functools
import math
import warnings
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hrnet_jax.inference import tile_fit
from hrnet_jax.models import normalize
from hrnet_jax.models.resize import resize
from hrnet_jax.runtime import memory, sharding

AVERAGES = ("softmax", "exp")
# Heads whose logits are maps of classes.
SEGMENTATION_HEADS = ("segmentation", "segmentation_v1", "ocr")
# Neighbouring tiles share at least this part of their size.
TILE_OVERLAP = 1 / 3


@dataclass(frozen=True)
class Method:
    """How an image becomes a prediction.

    Attributes:
        scales: the image is resized by each factor, its values back to full size and averaged.
            Published multi-scale figures use 0.5, 0.75, 1.0, 1.25, 1.5, 1.75 with flip.
        flip: average with the mirror image at every scale.
        tile: (height, width) of sliding windows for (scaled) images larger than that, or None.
            Windows overlap by a third or more and fade out towards their edges.
        average: "softmax" averages probabilities; "exp" adds exp(logits) with the logits of
            mirror images averaged before, as the official multi-scale test does.

    Raises:
        ValueError: for scales that are not positive, tiles too small or an unknown average.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    tile: tuple[int, int] | None = None
    average: str = "softmax"

    def __post_init__(self):
        if not self.scales or not all(math.isfinite(s) and s > 0 for s in self.scales):
            raise ValueError(f"scales must be positive numbers, got {self.scales}")
        if self.tile is not None and (len(self.tile) != 2 or min(self.tile) < 32):
            raise ValueError(f"tile must be (height, width), both >= 32, got {self.tile}")
        if self.average not in AVERAGES:
            raise ValueError(f"unknown average {self.average!r}; known: {sorted(AVERAGES)}")

    def __str__(self) -> str:
        parts = [f"scale {', '.join(f'{s:g}' for s in self.scales)}"]
        parts += ["flip"] if self.flip else []
        parts += [f"tiles {self.tile[0]}x{self.tile[1]}"] if self.tile else []
        return ", ".join(parts + ([] if self.is_single else [f"average of {self.average}"]))

    @property
    def is_single(self) -> bool:
        """One view of the image as it is: nothing to average."""
        return self.scales == (1.0,) and not self.flip and self.tile is None


SINGLE = Method()


def _network(model: Any, variables: Any, images: jax.Array) -> jax.Array:
    """Normalised [N, h, w, 3] -> logits [N, h / 4, w / 4, C]."""
    return _jitted_network()(model, variables, images)


@functools.cache
def _jitted_network():
    # Made at the first call: the options depend on the backend, which importing must not start.
    def network(model, variables, images):
        return model.apply(variables, images, train=False)["logits"]

    options = sharding.compiler_options()
    return jax.jit(network, static_argnames="model", compiler_options=options)


@functools.partial(jax.jit, static_argnames="size")
def _prepare(images: jax.Array, size: tuple[int, int]) -> jax.Array:
    """uint8 [N, H, W, 3] -> normalised [N, *size, 3]."""
    return resize(normalize.normalize(images), size)


@functools.partial(jax.jit, static_argnames=("size", "align_corners"))
def full_size_logits(logits: jax.Array, size: tuple[int, int], align_corners: bool) -> jax.Array:
    """Logits [N, h, w, C] resized to the image's size, bilinear as inside the network."""
    return resize(logits, size, align_corners=align_corners)


@functools.partial(jax.jit, static_argnames=("size", "align_corners"))
def _labels_of_logits(logits: jax.Array, size: tuple[int, int], align_corners: bool) -> jax.Array:
    return labels_of(full_size_logits(logits, size, align_corners))


@jax.jit
def labels_of(scores: jax.Array) -> jax.Array:
    """[..., C] -> index of the largest, uint8 (int32 where 255 is not enough)."""
    dtype = jnp.uint8 if scores.shape[-1] <= 255 else jnp.int32
    return jnp.argmax(scores, axis=-1).astype(dtype)


@functools.partial(jax.jit, static_argnames=("size", "align_corners", "average"))
def view_values(
    logits: jax.Array,
    mirrored: jax.Array | None,
    shift: jax.Array,
    size: tuple[int, int],
    align_corners: bool,
    average: str,
) -> jax.Array:
    """What one view of the image adds to the average.

    Args:
        logits: [N, h, w, C] of the view.
        mirrored: those of its mirror image, or None.
        shift: [N, 1, 1, 1], subtracted before exp against overflow; one value for all views.
        size: (height, width) of the view.
        align_corners: how logits are resized.
        average: see `Method`.

    Returns:
        [N, *size, C].
    """
    pair = [logits] if mirrored is None else [logits, mirrored[:, :, ::-1]]
    pair = [full_size_logits(x, size, align_corners) for x in pair]
    if average == "softmax":
        return sum(jax.nn.softmax(x) for x in pair) / len(pair)
    # Beyond e^80 float32 would turn to infinity, or to 0 for all classes.
    return jnp.exp(jnp.clip(sum(pair) / len(pair) - shift, -80, 80))


@functools.partial(jax.jit, static_argnames="size", donate_argnames="total")
def _add_view(total: jax.Array, values: jax.Array, size: tuple[int, int]) -> jax.Array:
    return total + resize(values, size)


@functools.partial(jax.jit, donate_argnames="total")
def _add_tile(
    total: jax.Array, values: jax.Array, weights: jax.Array, top: jax.Array, left: jax.Array
) -> jax.Array:
    start = (0, top, left, 0)
    window = jax.lax.dynamic_slice(total, start, values.shape)
    return jax.lax.dynamic_update_slice(total, window + values * weights[..., None], start)


@functools.partial(jax.jit, static_argnames="tile")
def _cut(images: jax.Array, top: jax.Array, left: jax.Array, tile: tuple[int, int]) -> jax.Array:
    n, _, _, channels = images.shape
    return jax.lax.dynamic_slice(images, (0, top, left, 0), (n, *tile, channels))


@jax.jit
def _normalized(total: jax.Array) -> jax.Array:
    return total / total.sum(-1, keepdims=True)


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """(height, width) times the scale, halves rounded up as in the official code."""
    height, width = (max(1, int(s * scale + 0.5)) for s in size)
    return height, width


def tile_starts(length: int, tile: int) -> list[int]:
    """First pixels of evenly spread tiles that cover `length` and overlap by TILE_OVERLAP."""
    if tile >= length:
        return [0]
    count = math.ceil((length - tile) / (tile * (1 - TILE_OVERLAP))) + 1
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def tile_weights(tile: tuple[int, int]) -> np.ndarray:
    """float32 [h, w], 1 in the middle and small but positive at the edges."""
    rows, columns = (np.minimum(np.arange(n) + 1, n - np.arange(n)) / ((n + 1) // 2) for n in tile)
    return np.outer(rows, columns).astype(np.float32)


def _view_logits(model: Any, variables: Any, view: jax.Array, flip: bool):
    mirrored = _network(model, variables, view[:, :, ::-1]) if flip else None
    return _network(model, variables, view), mirrored


def _tiled_values(
    model: Any, variables: Any, view: jax.Array, shift: jax.Array | None, method: Method
) -> tuple[jax.Array, jax.Array]:
    """Values of a view [N, h, w, 3] from tiles, and the shift they were made with."""
    n, height, width, _ = view.shape
    tile = min(method.tile[0], height), min(method.tile[1], width)
    weights = tile_weights(tile)
    coverage = np.zeros((height, width), np.float32)
    total = jnp.zeros((n, height, width, model.num_classes), jnp.float32)
    for top in tile_starts(height, tile[0]):
        for left in tile_starts(width, tile[1]):
            cut = _cut(view, top, left, tile)
            logits, mirrored = _view_logits(model, variables, cut, method.flip)
            shift = _shift(logits) if shift is None else shift
            values = view_values(logits, mirrored, shift, tile, model.align_corners, method.average)
            total = _add_tile(total, values, weights, top, left)
            coverage[top : top + tile[0], left : left + tile[1]] += weights
    return total / coverage[..., None], shift


def _shift(logits: jax.Array) -> jax.Array:
    return logits.max((1, 2, 3), keepdims=True)


def _averaged(model: Any, variables: Any, images: jax.Array, method: Method) -> jax.Array:
    """uint8 [N, H, W, 3] -> the sum of all views' values [N, H, W, C]."""
    size = images.shape[1:3]
    total = jnp.zeros((images.shape[0], *size, model.num_classes), jnp.float32)
    shift = None
    for scale in method.scales:
        view_size = scaled_size(size, scale)
        view = _prepare(images, view_size)
        if method.tile and (view_size[0] > method.tile[0] or view_size[1] > method.tile[1]):
            values, shift = _tiled_values(model, variables, view, shift, method)
        else:
            logits, mirrored = _view_logits(model, variables, view, method.flip)
            shift = _shift(logits) if shift is None else shift
            values = view_values(
                logits, mirrored, shift, view_size, model.align_corners, method.average
            )
        total = _add_view(total, values, size)
    return total


def fitting_method(model: Any, images: jax.Array, method: Method) -> Method:
    """The method, with tiles where its largest view would not fit into memory, and a warning.

    Raises:
        ValueError: if the image is too large for tiles, too.
    """
    # Several processes might decide differently, and then wait for each other for ever.
    if method.tile is not None or jax.process_count() > 1 or not hasattr(model, "variant"):
        return method
    free = memory.free_bytes(next(iter(images.devices())))
    if free is None:
        return method
    n, height, width, _ = images.sharding.shard_shape(images.shape)
    view = scaled_size((height, width), max(method.scales))
    tile = tile_fit.tile_that_fits(model, n, (height, width), view, free)
    if tile is None:
        return method
    warnings.warn(
        f"images of {height}x{width} at scale {max(method.scales):g} do not fit into the free "
        f"memory: tested in tiles of {tile[0]}x{tile[1]}",
        stacklevel=3,
    )
    return dataclasses.replace(method, tile=tile)


def predict_labels(
    model: Any, variables: Any, images: jax.Array, method: Method = SINGLE
) -> jax.Array:
    """Train ids of a batch at full size.

    Args:
        model: a segmentation network of `create_model`.
        variables: its parameters and statistics.
        images: uint8 [N, H, W, 3]; may be sharded over a mesh, as may the variables.
        method: single scale or an average.

    Returns:
        uint8 [N, H, W] on the device (int32 for more than 255 classes).
    """
    images = jnp.asarray(images)
    method = fitting_method(model, images, method)
    if not method.is_single:
        return labels_of(_averaged(model, variables, images, method))
    size = images.shape[1:3]
    logits = _network(model, variables, _prepare(images, size))
    return _labels_of_logits(logits, size, model.align_corners)


def predict_probabilities(
    model: Any, variables: Any, images: jax.Array, method: Method = SINGLE
) -> jax.Array:
    """Probabilities of a batch at full size, float32 [N, H, W, C]; see `predict_labels`."""
    images = jnp.asarray(images)
    method = fitting_method(model, images, method)
    return _normalized(_averaged(model, variables, images, method))


def check_model(model: Any, classes: Any = None) -> None:
    """ValueError unless the model gives maps of these classes."""
    if model.head not in SEGMENTATION_HEADS:
        raise ValueError(
            f"a model with head {model.head!r} gives no label maps; needed: {SEGMENTATION_HEADS}"
        )
    if classes is not None and len(classes.names) != model.num_classes:
        raise ValueError(
            f"the model has {model.num_classes} classes, the class list {len(classes.names)}: "
            f"{', '.join(classes.names)}"
        )
