"""From a data set to figures: every image once, at its own size, counted on the device."""

import csv
import functools
import io
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from hrnet_jax.data import open_source
from hrnet_jax.data.pipeline import segmentation as segmentation_data
from hrnet_jax.data.sources.source import Source
from hrnet_jax.evaluation import metrics
from hrnet_jax.inference import multi_scale
from hrnet_jax.inference.multi_scale import Method, check_model
from hrnet_jax.runtime import sharding, storage

OnBatch = Callable[[dict[str, np.ndarray], np.ndarray], None]


@dataclass(frozen=True)
class EvalResult:
    """What an evaluation found.

    Attributes:
        confusion: int64 [C, C], rows true, columns predicted.
        figures: of `metrics.summarize`, and num_images.
        ids: names of the images, in the order of the source.
        image_counts: int64 [N, 3, C], per image and class the pixels that are right, true and
            predicted: enough for every image's scores and for resampling over images.
        seconds: wall time, compilation included.
    """

    confusion: np.ndarray
    figures: dict[str, Any]
    ids: tuple[str, ...]
    image_counts: np.ndarray
    seconds: float

    @property
    def image_miou(self) -> np.ndarray:
        """float64 [N]: each image's mean IoU; NaN where it has no labelled pixel."""
        return metrics.miou_of_counts(self.image_counts)

    @property
    def image_accuracy(self) -> np.ndarray:
        """float64 [N]: each image's pixel accuracy; NaN where it has no labelled pixel."""
        return metrics.accuracy_of_counts(self.image_counts)

    def ranking(self) -> np.ndarray:
        """Indices of the images with labels, from the worst mean IoU to the best."""
        order = np.argsort(self.image_miou, kind="stable")
        return order[~np.isnan(self.image_miou[order])]


# The file of scores per image, and its columns before those of the classes.
IMAGE_SCORES = "per_image.csv"
_SCORES = ("image", "miou", "pixel_accuracy")
_COUNTS = ("right", "true", "predicted")


def save_image_scores(path: str | os.PathLike, result: EvalResult, names: tuple[str, ...]) -> None:
    """Writes a CSV with a line per image: its scores, and per class the pixels that are right,
    true and predicted, which is enough to compare another evaluation with this one."""
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow([*_SCORES, *(f"{kind}:{n}" for kind in _COUNTS for n in names)])
    scores = zip(result.image_miou, result.image_accuracy, strict=True)
    for name, pair, counts in zip(result.ids, scores, result.image_counts, strict=True):
        shown = ("" if np.isnan(v) else f"{v:.6f}" for v in pair)
        writer.writerow([name, *shown, *counts.ravel().tolist()])
    storage.write_text(path, file.getvalue())


def read_image_counts(
    path: str | os.PathLike, ids: tuple[str, ...], names: tuple[str, ...]
) -> np.ndarray:
    """Counts int64 [N, 3, C] of the images `ids`, in this order, from `save_image_scores`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for another list of classes, or if images are missing.
    """
    text = storage.read_bytes(os.fspath(path)).decode()
    header, *rows = csv.reader(io.StringIO(text, newline=""))
    expected = [*_SCORES, *(f"{kind}:{n}" for kind in _COUNTS for n in names)]
    if header != expected:
        raise ValueError(f"{path}: its columns are not those of the classes {', '.join(names)}")
    found = {row[0]: row[len(_SCORES) :] for row in rows}
    if missing := [i for i in ids if i not in found]:
        raise ValueError(f"{path}: lacks {len(missing)} of the images: {', '.join(missing[:5])}")
    return np.array([found[i] for i in ids], np.int64).reshape(len(ids), 3, len(names))


def open_split(data: Mapping[str, Any], *, root: str, split: str) -> Source:
    """A split of the data set that a checkpoint was trained on.

    Args:
        data: the section "data" of the checkpoint's configuration.
        root: folder of the data set; "": training's.
        split: e.g. "val".

    Raises:
        FileNotFoundError, ValueError: if the folder or the split is not there.
    """
    root = root or data["root"]
    if not root or not storage.path(root).is_dir():
        raise FileNotFoundError(f"no data set folder {root!r}; name it with --data_root=DIR")
    return open_source(data["name"], root=root, split=split, class_file=data["class_file"])


def spread(source: Source, max_images: int) -> Source:
    """`max_images` samples, spread evenly over the source; 0 or too many: all of it.

    Raises:
        ValueError: for a negative number.
    """
    if max_images < 0:
        raise ValueError(f"max_images must be 0 (all) or more, got {max_images}")
    if max_images == 0 or max_images >= len(source):
        return source
    return source.take([i * len(source) // max_images for i in range(max_images)])


@functools.partial(jax.jit, static_argnames=("num_classes", "mesh"))
def _count(
    labels: jax.Array, predictions: jax.Array, index: jax.Array, num_classes: int, mesh: Mesh | None
) -> tuple[jax.Array, jax.Array]:
    """Confusion matrices [N, C, C] and index [N], readable on every host."""
    result = metrics.confusion_matrices(labels, predictions, num_classes), index
    if mesh is not None:
        result = jax.lax.with_sharding_constraint(result, sharding.replicated(mesh))
    return result


def _place(batch: dict[str, np.ndarray], mesh: Mesh | None) -> tuple[jax.Array, ...]:
    """image, label and index on the devices; a height that 'space' does not divide stays whole."""
    arrays = batch["image"], batch["label"], batch["index"]
    if mesh is None:
        return tuple(jax.device_put(a) for a in arrays)
    height = batch["image"].shape[1]
    rows = "space" if height % (32 * mesh.shape["space"]) == 0 else None
    specs = PartitionSpec("data", rows), PartitionSpec("data", rows), PartitionSpec("data")
    return tuple(
        sharding.place(array, mesh, NamedSharding(mesh, spec))
        for spec, array in zip(specs, arrays, strict=True)
    )


@functools.cache
def _rows_only(mesh: Mesh):
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec("data")))


def _local_rows(predictions: jax.Array, mesh: Mesh | None) -> np.ndarray:
    """The rows of a batch [N, H, W] that this process gave."""
    if mesh is None or predictions.is_fully_addressable:
        return np.asarray(predictions)
    whole = _rows_only(mesh)(predictions)
    shards = {s.index[0].start or 0: s.data for s in whole.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def evaluate(
    model: Any,
    variables: Any,
    source: Source,
    *,
    batch_size: int,
    mesh: Mesh | None = None,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    tile: tuple[int, int] | None = None,
    average: str = "softmax",
    progress: bool = True,
    max_images: int = 0,
    on_batch: OnBatch | None = None,
) -> EvalResult:
    """Evaluates a segmentation network on a split, each image once at its native size.

    Counting happens on the device and is exact; matrices are added on the host in int64, so the
    result does not depend on mesh, batch size or order.

    Args:
        model: of `create_model`.
        variables: parameters and statistics; put on the mesh if they are not there.
        source: a split with labels (without, only together with `on_batch`).
        batch_size: images per step over all devices; rounded up to a multiple of the 'data' axis.
        mesh: of `sharding.make_mesh`; None uses one device.
        scales: see `inference.Method`, as are `flip`, `tile` and `average`.
        flip: average with the mirror image.
        tile: (height, width) of sliding windows, or None.
        average: "softmax" or "exp".
        progress: show a bar with rate and time left (on the first host).
        max_images: see `spread`.
        on_batch: called with every batch of `segmentation_data.eval_batches` (this host's rows, of
            which those with valid_mask count) and its predictions uint8 [b, H, W].

    Raises:
        ValueError: for a model whose head or classes do not fit, a split without labels, or
            files that are not sound.
    """
    check_model(model, source.classes)
    if not source.has_labels and on_batch is None:
        raise ValueError(
            f"split {source.split!r} of {source.name!r} has no labels to evaluate against"
        )
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    method = Method(tuple(scales), flip, tile and tuple(tile), average)
    source = spread(source, max_images)
    if mesh is not None:
        batch_size = -(-batch_size // mesh.shape["data"]) * mesh.shape["data"]
        variables = sharding.place_replicated(variables, mesh)
    start = time.perf_counter()
    num_classes = model.num_classes
    confusion = np.zeros((num_classes, num_classes), np.int64)
    counts = np.zeros((len(source), 3, num_classes), np.int64)
    seen = np.zeros(len(source), np.int64)
    bar = tqdm(
        total=len(source),
        desc=f"evaluating {source.split}",
        unit="image",
        disable=not progress or jax.process_index() != 0,
    )

    def finish(batch, predictions, result) -> None:
        """Waits for a batch and adds it up."""
        matrices, index = (np.asarray(r) for r in result)
        if on_batch is not None:
            on_batch(batch, _local_rows(predictions, mesh))
        for matrix, i in zip(matrices.astype(np.int64), index, strict=True):
            if i >= 0:
                confusion[...] += matrix
                counts[i] = metrics.counts_of(matrix)
                seen[i] += 1
        bar.update(int((index >= 0).sum()))

    share = sharding.batch_shard(mesh)
    batches = segmentation_data.eval_batches(
        source,
        batch_size=batch_size,
        process_index=share[0],
        process_count=share[1],
    )
    with bar:
        pending = None
        for batch in batches:
            images, labels, index = _place(batch, mesh)
            predictions = multi_scale.predict_labels(model, variables, images, method)
            result = _count(labels, predictions, index, num_classes, mesh)
            # The device works on this batch while the host adds up the one before.
            if pending is not None:
                finish(*pending)
            pending = batch, predictions, result
        finish(*pending)
    if (seen != 1).any():
        raise RuntimeError(f"images counted other than once: {np.flatnonzero(seen != 1)[:10]}")
    figures = metrics.summarize(confusion, source.classes) | {"num_images": len(source)}
    return EvalResult(confusion, figures, source.ids, counts, time.perf_counter() - start)
