"""Full-size predictions: single scale, or averaged over scales, flips and tiles.

The network is compiled once per input size and returns logits at 1/4 resolution. The steps after it
(resizing, softmax, averaging) are compiled separately, so flips and tiles reuse the compiled
network.
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

from hrnet_jax.data.sources.source import Classes
from hrnet_jax.inference import tile_fit
from hrnet_jax.models import HRNetModel, normalize
from hrnet_jax.models.resize import resize
from hrnet_jax.runtime import memory, sharding

AVERAGES = ("softmax", "exp")
# Heads whose logits are maps of classes.
SEGMENTATION_HEADS = ("segmentation", "segmentation_v1", "ocr")
# Compiled networks that are kept, one for each shape of images; the least recently used one is
# dropped. On CPU each takes about 40 MB.
MAX_COMPILED_SIZES = 32
# Neighboring tiles overlap by at least this fraction of their size.
TILE_OVERLAP = 1 / 3


@dataclass(frozen=True)
class TestTimeAugmentation:
    """Which versions of an image are predicted, and how the predictions are averaged.

    Attributes:
        scales: the image is resized by each factor; the predictions are resized back to full size
            and averaged. Published multi-scale results use 0.5, 0.75, 1.0, 1.25, 1.5, 1.75 with
            flip.
        flip: also predict the horizontally flipped image at every scale.
        tile: (height, width) of sliding windows, used for (scaled) images larger than that; None:
            whole images. Windows overlap by a third or more and their weights fall off towards
            the edges.
        average: "softmax" averages probabilities. "exp" adds exp(logits) after averaging the logits
            of an image and its flip, as the official multi-scale test does.

    Raises:
        ValueError: for scales that are not positive, tiles below 32 pixels or an unknown average.
    """

    __test__ = False  # pytest takes classes named Test* for tests

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
        """Whether the image is predicted once, unchanged, so that nothing is averaged."""
        return self.scales == (1.0,) and not self.flip and self.tile is None


SINGLE_SCALE = TestTimeAugmentation()


def __getattr__(name: str):
    if name == "Method":
        warnings.warn(
            "Method was renamed to TestTimeAugmentation (hrnet_jax.inference.multi_scale)",
            DeprecationWarning,
            stacklevel=2,
        )
        return TestTimeAugmentation
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _network(model: HRNetModel, variables: Any, images: jax.Array) -> jax.Array:
    """Normalized [N, h, w, 3] -> logits [N, h / 4, w / 4, C]."""
    traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((variables, images)))
    return _jitted_network(images.shape, traced)(model, variables, images)


@functools.lru_cache(MAX_COMPILED_SIZES)
def _jitted_network(shape: tuple[int, ...], traced: bool):
    # Created at the first call: the options depend on the backend, and an import must not start it.
    def network(model, variables, images):
        return model.apply(variables, images, train=False)["logits"]

    # Inside a caller's jit or vmap, the options are those of the outer program.
    options = None if traced else sharding.compiler_options()
    return jax.jit(network, static_argnames="model", compiler_options=options)


@functools.partial(jax.jit, static_argnames="size")
def _prepare(images: jax.Array, size: tuple[int, int]) -> jax.Array:
    """uint8 [N, H, W, 3] -> normalized [N, *size, 3]."""
    return resize(normalize.normalize(images), size)


@functools.partial(jax.jit, static_argnames=("size", "align_corners"))
def full_size_logits(logits: jax.Array, size: tuple[int, int], align_corners: bool) -> jax.Array:
    """Logits [N, h, w, C] resized to the image size [N, *size, C], bilinear as in the network."""
    return resize(logits, size, align_corners=align_corners)


@functools.partial(jax.jit, static_argnames=("size", "align_corners"))
def _labels_of_logits(logits: jax.Array, size: tuple[int, int], align_corners: bool) -> jax.Array:
    return labels_of(full_size_logits(logits, size, align_corners))


@jax.jit
def labels_of(scores: jax.Array) -> jax.Array:
    """[..., C] -> index of the largest score, uint8 [...] (int32 for more than 255 classes)."""
    dtype = jnp.uint8 if scores.shape[-1] <= 255 else jnp.int32
    return jnp.argmax(scores, axis=-1).astype(dtype)


@functools.partial(jax.jit, static_argnames=("size", "align_corners", "average"))
def view_values(
    logits: jax.Array,
    flipped: jax.Array | None,
    shift: jax.Array,
    size: tuple[int, int],
    align_corners: bool,
    average: str,
) -> jax.Array:
    """The values that one view (a scale or a tile) of the image adds to the average.

    Args:
        logits: [N, h, w, C] of the view.
        flipped: logits of the flipped view, not yet flipped back, or None.
        shift: [N, 1, 1, 1], subtracted before exp to avoid overflow; the same for all views.
        size: (height, width) of the view.
        align_corners: how logits are resized.
        average: see `TestTimeAugmentation`.

    Returns:
        [N, *size, C].
    """
    pair = [logits] if flipped is None else [logits, flipped[:, :, ::-1]]
    pair = [full_size_logits(x, size, align_corners) for x in pair]
    if average == "softmax":
        return sum(jax.nn.softmax(x) for x in pair) / len(pair)
    # Beyond e^80 float32 becomes infinite, below e^-80 it becomes 0 for all classes.
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


def size_at_scale(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """(height, width) times the scale; halves are rounded up as in the official code."""
    height, width = (max(1, int(s * scale + 0.5)) for s in size)
    return height, width


def tile_starts(length: int, tile: int) -> list[int]:
    """First pixels of evenly spaced tiles that cover `length` and overlap by TILE_OVERLAP."""
    if tile >= length:
        return [0]
    count = math.ceil((length - tile) / (tile * (1 - TILE_OVERLAP))) + 1
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def tile_weights(tile: tuple[int, int]) -> np.ndarray:
    """float32 [h, w], 1 in the middle and small but positive at the edges."""
    rows, columns = (np.minimum(np.arange(n) + 1, n - np.arange(n)) / ((n + 1) // 2) for n in tile)
    return np.outer(rows, columns).astype(np.float32)


def _view_logits(model: HRNetModel, variables: Any, view: jax.Array, flip: bool):
    flipped = _network(model, variables, view[:, :, ::-1]) if flip else None
    return _network(model, variables, view), flipped


def _tiled_values(
    model: HRNetModel,
    variables: Any,
    view: jax.Array,
    shift: jax.Array | None,
    tta: TestTimeAugmentation,
) -> tuple[jax.Array, jax.Array]:
    """Values [N, h, w, C] of a view [N, h, w, 3] from tiles, and the shift that was used."""
    n, height, width, _ = view.shape
    tile = min(tta.tile[0], height), min(tta.tile[1], width)
    weights = tile_weights(tile)
    coverage = np.zeros((height, width), np.float32)
    total = jnp.zeros((n, height, width, model.num_classes), jnp.float32)
    for top in tile_starts(height, tile[0]):
        for left in tile_starts(width, tile[1]):
            cut = _cut(view, top, left, tile)
            logits, flipped = _view_logits(model, variables, cut, tta.flip)
            shift = _shift(logits) if shift is None else shift
            values = view_values(logits, flipped, shift, tile, model.align_corners, tta.average)
            total = _add_tile(total, values, weights, top, left)
            coverage[top : top + tile[0], left : left + tile[1]] += weights
    return total / coverage[..., None], shift


def _shift(logits: jax.Array) -> jax.Array:
    return logits.max((1, 2, 3), keepdims=True)


def _averaged(
    model: HRNetModel, variables: Any, images: jax.Array, tta: TestTimeAugmentation
) -> jax.Array:
    """uint8 [N, H, W, 3] -> the sum of the values of all views [N, H, W, C]."""
    size = images.shape[1:3]
    total = jnp.zeros((images.shape[0], *size, model.num_classes), jnp.float32)
    shift = None
    for scale in tta.scales:
        view_size = size_at_scale(size, scale)
        view = _prepare(images, view_size)
        if tta.tile and (view_size[0] > tta.tile[0] or view_size[1] > tta.tile[1]):
            values, shift = _tiled_values(model, variables, view, shift, tta)
        else:
            logits, flipped = _view_logits(model, variables, view, tta.flip)
            shift = _shift(logits) if shift is None else shift
            values = view_values(
                logits, flipped, shift, view_size, model.align_corners, tta.average
            )
        total = _add_view(total, values, size)
    return total


def fit_to_memory(
    model: HRNetModel, images: jax.Array, tta: TestTimeAugmentation
) -> TestTimeAugmentation:
    """`tta`, with tiles added (and a warning) if its largest view would not fit into free memory.

    Args:
        model: of `create_model`.
        images: uint8 [N, H, W, 3] on the device.
        tta: returned unchanged if it has tiles, if several processes take part, if the images are
            traced by jit or vmap, or if the free memory is unknown.

    Raises:
        ValueError: if the image is too large even in tiles.
    """
    # Several processes could decide differently and would then wait for each other forever.
    if tta.tile is not None or jax.process_count() > 1 or not hasattr(model, "variant"):
        return tta
    if isinstance(images, jax.core.Tracer):
        return tta
    free = memory.free_bytes(next(iter(images.devices())))
    if free is None:
        return tta
    n, height, width, _ = images.sharding.shard_shape(images.shape)
    view = size_at_scale((height, width), max(tta.scales))
    tile = tile_fit.tile_that_fits(model, n, (height, width), view, free)
    if tile is None:
        return tta
    warnings.warn(
        f"images of {height}x{width} at scale {max(tta.scales):g} do not fit into the free "
        f"memory; they are predicted in tiles of {tile[0]}x{tile[1]}",
        stacklevel=3,
    )
    return dataclasses.replace(tta, tile=tile)


def predict_labels(
    model: HRNetModel, variables: Any, images: jax.Array, tta: TestTimeAugmentation = SINGLE_SCALE
) -> jax.Array:
    """Train ids of a batch of images, at full size.

    Args:
        model: a segmentation network of `create_model`.
        variables: its parameters and batch statistics.
        images: uint8 [N, H, W, 3]; images and variables may be sharded over a mesh.
        tta: how the image is augmented; single scale by default.

    Returns:
        uint8 [N, H, W] on the device (int32 for more than 255 classes).

    Raises:
        ValueError: if the images do not fit into the free memory, even in tiles.
    """
    images = jnp.asarray(images)
    tta = fit_to_memory(model, images, tta)
    if not tta.is_single:
        return labels_of(_averaged(model, variables, images, tta))
    size = images.shape[1:3]
    logits = _network(model, variables, _prepare(images, size))
    return _labels_of_logits(logits, size, model.align_corners)


def predict_probabilities(
    model: HRNetModel, variables: Any, images: jax.Array, tta: TestTimeAugmentation = SINGLE_SCALE
) -> jax.Array:
    """Probabilities of a batch at full size, float32 [N, H, W, C]; see `predict_labels`."""
    images = jnp.asarray(images)
    tta = fit_to_memory(model, images, tta)
    return _normalized(_averaged(model, variables, images, tta))


def check_model(model: HRNetModel, classes: Classes | None = None) -> None:
    """Checks that the model predicts label maps of these classes.

    Args:
        model: of `create_model`.
        classes: data.sources.source.Classes, or None to check only the head.

    Raises:
        ValueError: for another head or another number of classes.
    """
    if model.head not in SEGMENTATION_HEADS:
        raise ValueError(
            f"a model with head {model.head!r} predicts no label maps; "
            f"heads that do: {', '.join(SEGMENTATION_HEADS)}"
        )
    if classes is not None and len(classes.names) != model.num_classes:
        raise ValueError(
            f"the model has {model.num_classes} classes, the class list {len(classes.names)}: "
            f"{', '.join(classes.names)}"
        )
