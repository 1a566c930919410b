"""Evaluation of a segmentation network: every image once, at its own size."""

import csv
import functools
import io
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hrnet_jax.data import open_source
from hrnet_jax.data.pipeline import segmentation as segmentation_data
from hrnet_jax.data.pipeline.order import Shard
from hrnet_jax.data.sources import class_maps
from hrnet_jax.data.sources.source import Classes, Source, spread_indices
from hrnet_jax.evaluation import driver, metrics
from hrnet_jax.inference import multi_scale
from hrnet_jax.inference.multi_scale import SINGLE_SCALE, TestTimeAugmentation, check_model
from hrnet_jax.models import HRNetModel
from hrnet_jax.runtime import sharding, storage

OnBatch = Callable[[dict[str, Any], Any], None]


@dataclass(frozen=True)
class EvalResult:
    """The result of an evaluation.

    Attributes:
        confusion: int64 [C, C], rows ground truth, columns predictions.
        metrics: of `metrics.summarize`, and "num_images".
        ids: names of the images, in the order of the source.
        image_counts: int64 [N, 3, C], per image and class the number of pixels that are correct, in
            the ground truth, and in the prediction; enough for the metrics of every image and for
            resampling over images.
        seconds: wall time, including compilation.
        images_per_second: after the first batch, which compiles the network; files are read
            meanwhile. NaN if there is one batch only.
    """

    confusion: np.ndarray
    metrics: dict[str, Any]
    ids: tuple[str, ...]
    image_counts: np.ndarray
    seconds: float
    images_per_second: float = float("nan")

    @property
    def image_miou(self) -> np.ndarray:
        """float64 [N]: mean IoU of each image; NaN if it has no labeled pixel."""
        return metrics.miou_of_counts(self.image_counts)

    @property
    def image_accuracy(self) -> np.ndarray:
        """float64 [N]: pixel accuracy of each image; NaN if it has no labeled pixel."""
        return metrics.accuracy_of_counts(self.image_counts)

    def ranking(self) -> np.ndarray:
        """Indices of the images with labeled pixels, by increasing mean IoU."""
        order = np.argsort(self.image_miou, kind="stable")
        return order[~np.isnan(self.image_miou[order])]


# The file of metrics per image; its first columns, and the kinds of its columns "KIND:CLASS".
IMAGE_METRICS = "per_image.csv"
_FIRST_COLUMNS = ("image", "miou", "pixel_accuracy")
_COUNTS = ("correct", "ground_truth", "predicted")
_OLD_COUNTS = ("right", "true", "predicted")  # read, no longer written


def _columns(kinds: tuple[str, ...], names: tuple[str, ...]) -> list[str]:
    return [*_FIRST_COLUMNS, *(f"{kind}:{name}" for kind in kinds for name in names)]


def save_image_metrics(path: str | os.PathLike, result: EvalResult, names: tuple[str, ...]) -> None:
    """Writes a CSV file with a line per image: metrics, and the pixel counts of each class.

    The counts are those of `EvalResult.image_counts`; `read_image_counts` reads them to compare
    another evaluation with this one.
    """
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(_columns(_COUNTS, names))
    values = zip(result.image_miou, result.image_accuracy, strict=True)
    for name, pair, counts in zip(result.ids, values, result.image_counts, strict=True):
        shown = ("" if np.isnan(v) else f"{v:.6f}" for v in pair)
        writer.writerow([name, *shown, *counts.ravel().tolist()])
    storage.write_text(path, file.getvalue())


def read_image_counts(
    path: str | os.PathLike, ids: tuple[str, ...], names: tuple[str, ...]
) -> np.ndarray:
    """Reads counts int64 [N, 3, C] of the images `ids`, in this order, from `save_image_metrics`.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: for other classes, or if images are missing.
    """
    text = storage.read_bytes(os.fspath(path)).decode()
    header, *rows = csv.reader(io.StringIO(text, newline=""))
    if header not in (_columns(_COUNTS, names), _columns(_OLD_COUNTS, names)):
        raise ValueError(f"{path}: its columns do not fit the classes {', '.join(names)}")
    found = {row[0]: row[len(_FIRST_COLUMNS) :] for row in rows}
    if missing := [i for i in ids if i not in found]:
        raise ValueError(f"{path}: {len(missing)} images are missing: {', '.join(missing[:5])}")
    return np.array([found[i] for i in ids], np.int64).reshape(len(ids), 3, len(names))


def open_split(
    metadata: Mapping[str, Any], *, root: str, split: str, name: str = "", class_file: str = ""
) -> Source:
    """Opens a split of the dataset that a checkpoint was trained on, or of another one.

    A dataset whose ids are known gets the classes of the checkpoint, so that its class file is not
    needed again. Classes of another dataset are put in the order of the checkpoint's, or mapped to
    them by a ready-made map (`class_maps`).

    Args:
        metadata: of the checkpoint.
        root: folder of the dataset; "" for the one used in training.
        split: e.g. "val".
        name: another dataset, one of `hrnet_jax.data.SOURCES`; "" for the one used in training.
        class_file: of the other dataset, as `open_source` takes it.

    Raises:
        FileNotFoundError, ValueError: if the folder or the split does not exist, or if a class file
            is given without a name.
    """
    if name:
        return _open_other(metadata, name, root, split, class_file)
    if class_file:
        raise ValueError("--class_file is for another dataset; name it with --data_name")
    data = metadata["config"]["data"]
    root = root or data["root"]
    if not root or not storage.path(root).is_dir():
        raise FileNotFoundError(f"no dataset folder {root!r}; set it with --data_root=DIR")
    if data["name"] == "folder":
        return open_source(data["name"], root=root, split=split, class_file=data["class_file"])
    source = open_source(data["name"], root=root, split=split)
    classes = Classes.from_json(metadata["classes"])
    raw = source.classes.stores_raw_ids and classes.stores_raw_ids
    same = source.classes.names == classes.names
    return replace(source, classes=classes) if raw and not same else source


def _open_other(
    metadata: Mapping[str, Any], name: str, root: str, split: str, class_file: str
) -> Source:
    if not root:
        raise ValueError(f"--data_name={name} needs its folder: --data_root=DIR")
    source = open_source(name, root=root, split=split, class_file=class_file)
    classes = Classes.from_json(metadata["classes"])
    class_map = class_maps.find(source.classes.names, classes.names)
    if class_map is None:
        return source
    changed = ", ".join(f"{a} -> {b or 'ignored'}" for a, b in class_map.items() if a != b)
    if changed:
        logging.warning("%s: classes become those of the checkpoint: %s", name, changed)
    return source.with_classes(classes, class_map)


def spread(source: Source, max_images: int) -> Source:
    """`max_images` samples, evenly spread over the source; 0 or more than there are: all.

    Raises:
        ValueError: for a negative number.
    """
    if max_images < 0:
        raise ValueError(f"max_images must be 0 (all) or more, got {max_images}")
    if max_images == 0 or max_images >= len(source):
        return source
    return source.take(spread_indices(len(source), max_images))


@functools.partial(jax.jit, static_argnames=("num_classes", "mesh"))
def _count(
    labels: jax.Array, predictions: jax.Array, index: jax.Array, num_classes: int, mesh: Mesh | None
) -> tuple[jax.Array, jax.Array]:
    """Confusion matrices int32 [N, C, C] and index [N], replicated so that every host has all."""
    result = metrics.confusion_matrices(labels, predictions, num_classes), index
    if mesh is not None:
        result = jax.lax.with_sharding_constraint(result, sharding.replicated(mesh))
    return result


def _place(batch: dict[str, np.ndarray], mesh: Mesh | None) -> tuple[jax.Array, ...]:
    """image, label and index on the devices; a height not divisible by 'space' is not split."""
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
    """The rows of predictions [N, H, W] that belong to the part of the batch of this process."""
    if mesh is None or predictions.is_fully_addressable:
        return np.asarray(predictions)
    whole = _rows_only(mesh)(predictions)
    shards = {s.index[0].start or 0: s.data for s in whole.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def _without_padding(batch: dict[str, Any], predictions: np.ndarray) -> tuple[dict[str, Any], Any]:
    """The batch and its predictions, as lists of arrays if they are padded."""
    sizes = batch["size"].tolist()
    if (batch["size"] == batch["image"].shape[1:3]).all():
        return batch, predictions

    def cut(arrays):
        return [a[:height, :width] for a, (height, width) in zip(arrays, sizes, strict=True)]

    return {**batch, **{k: cut(batch[k]) for k in ("image", "label")}}, cut(predictions)


class _Totals:
    """Confusion matrix and counts of a split, added up in int64."""

    def __init__(self, num_images: int, num_classes: int):
        self.confusion = np.zeros((num_classes, num_classes), np.int64)
        self.image_counts = np.zeros((num_images, 3, num_classes), np.int64)
        self._seen = np.zeros(num_images, np.int64)

    def add(self, matrices: np.ndarray, index: np.ndarray) -> int:
        """Adds matrices [N, C, C] of the images `index` [N], -1 for padding; returns the count."""
        for matrix, i in zip(matrices.astype(np.int64), index, strict=True):
            if i >= 0:
                self.confusion += matrix
                self.image_counts[i] = metrics.counts_of(matrix)
                self._seen[i] += 1
        return int((index >= 0).sum())

    def result(self, source: Source, seconds: float, images_per_second: float) -> EvalResult:
        """The result after all images of the source."""
        if (self._seen != 1).any():
            raise RuntimeError(f"images not counted once: {np.flatnonzero(self._seen != 1)[:10]}")
        summary = metrics.summarize(self.confusion, source.classes) | {"num_images": len(source)}
        return EvalResult(
            self.confusion, summary, source.ids, self.image_counts, seconds, images_per_second
        )


def _check_labels(source: Source) -> None:
    if not source.has_labels:
        raise ValueError(f"split {source.split!r} of {source.name!r} has no labels to evaluate on")


def evaluate(
    model: HRNetModel,
    variables: Any,
    source: Source,
    *,
    batch_size: int,
    size_step: int = 1,
    mesh: Mesh | None = None,
    tta: TestTimeAugmentation = SINGLE_SCALE,
    progress: bool = True,
    on_batch: OnBatch | None = None,
) -> EvalResult:
    """Evaluates a segmentation network on a split, each image once at its native size.

    Pixels are counted on the device, exactly, and added up on the host in int64, so the result
    does not depend on mesh, batch size or order.

    Args:
        model: of `create_model`.
        variables: parameters and batch statistics; placed on the mesh if necessary.
        source: a split with labels (without labels only together with `on_batch`).
        batch_size: images per step over all devices; rounded up to a multiple of the 'data' axis.
        size_step: images are padded to multiples of this for the network, so that many sizes need
            few compiled programs; the padding does not count. 1 for no padding. What it changes:
            see `Predictor`.
        mesh: of `sharding.make_mesh`; None uses one device.
        tta: test-time augmentation; single scale by default.
        progress: show a progress bar (on the first process).
        on_batch: called with every batch of `segmentation_data.eval_batches` (the rows of this
            process, of which those with valid_mask count) and its predictions uint8 [b, H, W]. With
            padding, images, labels and predictions are lists of arrays without it.

    Raises:
        ValueError: for a model with the wrong head or classes, a split without labels, or damaged
            files.
    """
    check_model(model, source.classes)
    if on_batch is None:
        _check_labels(source)
    batch_size = driver.round_batch_size(batch_size, mesh)
    if mesh is not None:
        variables = sharding.place_replicated(variables, mesh)

    def compute(batch):
        images, labels, index = _place(batch, mesh)
        predictions = multi_scale.predict_labels(model, variables, images, tta)
        return predictions, *_count(labels, predictions, index, model.num_classes, mesh)

    return _run(source, compute, batch_size, mesh, progress, on_batch, size_step)


def evaluate_function(
    predict: Callable[[np.ndarray], np.ndarray],
    source: Source,
    *,
    batch_size: int,
    progress: bool = True,
    on_batch: OnBatch | None = None,
) -> EvalResult:
    """As `evaluate`, of any function from images to labels, in one process.

    Args:
        predict: uint8 [N, H, W, 3] -> train ids [N, H, W].
        source, batch_size, progress, on_batch: as for `evaluate`.

    Raises:
        ValueError: for a split without labels, damaged files, or what `predict` raises.
    """
    if on_batch is None:
        _check_labels(source)
    batch_size = driver.round_batch_size(batch_size, None)

    def compute(batch):
        predictions = predict(batch["image"])
        labels, index = batch["label"], batch["index"]
        return predictions, *_count(labels, predictions, index, source.classes.num_classes, None)

    return _run(source, compute, batch_size, None, progress, on_batch)


def _run(
    source: Source,
    compute: Callable[[dict[str, np.ndarray]], tuple],
    batch_size: int,
    mesh: Mesh | None,
    progress: bool,
    on_batch: OnBatch | None,
    size_step: int = 1,
) -> EvalResult:
    """Computes (predictions, confusion matrices, index) of every batch and adds them up."""
    start = time.perf_counter()
    totals = _Totals(len(source), source.classes.num_classes)
    first: list[tuple[float, int]] = []  # when the first batch was done, and its images

    def compute_timed(batch):
        result = compute(batch)
        if not first:
            *_, index = jax.block_until_ready(result)
            first.append((time.perf_counter(), int((np.asarray(index) >= 0).sum())))
        return result

    def collect(batch, result) -> int:
        predictions, matrices, index = result
        if on_batch is not None:
            on_batch(*_without_padding(batch, _local_rows(predictions, mesh)))
        return totals.add(np.asarray(matrices), np.asarray(index))

    shard = Shard(*sharding.batch_shard(mesh))
    batches = segmentation_data.eval_batches(
        source, batch_size=batch_size, shard=shard, size_step=size_step
    )
    driver.run(batches, compute_timed, collect, source, progress=progress)
    (when, count), end = first[0], time.perf_counter()
    rest = len(source) - count
    speed = rest / (end - when) if rest else float("nan")
    return totals.result(source, end - start, speed)
