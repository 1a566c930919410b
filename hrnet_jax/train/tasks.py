"""The tasks: what differs between training for segmentation and for classification.

The head of a network determines its task. The training loop is the same for all tasks.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf
from jax.sharding import Mesh
from ml_collections import ConfigDict

from hrnet_jax.data import IMAGE_SOURCES, SOURCES, open_images, open_source
from hrnet_jax.data.pipeline import audit, odd_labels
from hrnet_jax.data.pipeline import classification as classification_data
from hrnet_jax.data.pipeline import segmentation as segmentation_data
from hrnet_jax.data.pipeline.augment import Augmentation
from hrnet_jax.data.pipeline.batches import BatchPlan
from hrnet_jax.data.pipeline.mixture import Mixture, open_mixture
from hrnet_jax.data.pipeline.order import Shard
from hrnet_jax.data.pipeline.survey import Team
from hrnet_jax.data.sources.source import IGNORE_LABEL
from hrnet_jax.data.sources.unlabeled import is_unlabeled
from hrnet_jax.evaluation import classification, segmentation
from hrnet_jax.inference import visualize
from hrnet_jax.inference.multi_scale import SEGMENTATION_HEADS
from hrnet_jax.train import augment

# Images of classification that are decoded before the first step: there may be millions.
DECODED_IMAGES = 500
# Losses of segmentation: the values of config.loss.name and the keys of config.loss.terms.
LOSSES = ("cross_entropy", "ohem", "focal", "boundary", "dice", "lovasz")
# Panels of image, label and prediction that TensorBoard gets from each evaluation.
NUM_IMAGES = 3

_Settings = TypeVar(
    "_Settings", Augmentation, classification_data.CropAugmentation, augment.Settings
)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The result on a split.

    Attributes:
      metric: ranks the checkpoints, higher is better.
      metrics: scalars for the log.
      summary: the main ones as text.
      images: uint8 [H, W, 3] each, for TensorBoard.
    """

    metric: float
    metrics: dict[str, float]
    summary: str
    images: tuple[np.ndarray, ...] = ()


@dataclasses.dataclass(frozen=True)
class Findings:
    """What was found in the data before the first step.

    Attributes:
      text: for the log.
      warnings: what may be wrong in it.
    """

    text: str
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Task:
    """One kind of training.

    Attributes:
      sources: the values of config.data.name that have its kind of labels.
      losses: the values of config.loss.name and keys of config.loss.terms that it allows.
      open: (config, split) -> source.
      mix: (config, source of the training split) -> what to train on.
      audit: (config, what to train on, what to evaluate on or None, the processes) -> Findings;
        raises ValueError for data that cannot be trained on, the same in all processes.
      dataset: (config, source, start_step, shard, sample_offset) -> endless batches of "image" and
        "label".
      label_shape: config -> shape of one image's label, and its type.
      ignore_label: label of the pixels or images that are left out.
      evaluate: (config, model, variables, source, mesh) -> Evaluation.
    """

    sources: tuple[str, ...]
    losses: tuple[str, ...]
    open: Callable[[ConfigDict, str], Any]
    mix: Callable[[ConfigDict, Any], Any]
    audit: Callable[[ConfigDict, Any, Any, Team], Findings]
    dataset: Callable[[ConfigDict, Any, int, Shard, int], tf.data.Dataset]
    label_shape: Callable[[ConfigDict], tuple[tuple[int, ...], Any]]
    ignore_label: int
    evaluate: Callable[[ConfigDict, Any, Any, Any, Mesh], Evaluation]


def task_of(head: str) -> Task:
    """The task of a head.

    Raises:
      ValueError: for a head that cannot be trained here.
    """
    if head not in _TASKS:
        raise ValueError(f"config.head={head!r} cannot be trained here; known: {sorted(_TASKS)}")
    return _TASKS[head]


def heads_of_same_task(head: str) -> list[str]:
    """The heads whose task is that of `head`. Raises as `task_of`."""
    task = task_of(head)
    return sorted(other for other, its_task in _TASKS.items() if its_task is task)


def augmentation_of(data: ConfigDict, kind: type[_Settings]) -> _Settings:
    """The augmentation that config.data describes; its keys have the names of the fields.

    Raises:
      ValueError: for a value out of range.
    """
    return kind(**{field.name: data[field.name] for field in dataclasses.fields(kind)})


def _batch_plan(config: ConfigDict, start_step: int, shard: Shard, sample_offset: int) -> BatchPlan:
    return BatchPlan(
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start_step,
        sample_offset=sample_offset,
        shard=shard,
        threads=config.data.threads,
        prefetch=config.data.prefetch,
        service=config.data.service,
    )


# ---- segmentation


def _open_segmentation(config: ConfigDict, split: str):
    data = config.data
    return open_source(data.name, root=data.root, split=split, class_file=data.class_file)


def _mix_segmentation(config: ConfigDict, source):
    return open_mixture(
        source,
        config.data.mix,
        config.data.class_uniform,
        unlabeled=bool(config.distill.teacher),
    )


def _audit_segmentation(config: ConfigDict, source, eval_source, team: Team) -> Findings:
    mixture = Mixture.of(source)
    count = config.data.audit_images
    train = [
        audit.audit_labels(s, max_images=count, team=team)
        for s in mixture.sources
        if not is_unlabeled(s)
    ]
    unlabeled = [_check_unlabeled(s) for s in mixture.sources if is_unlabeled(s)]
    val = eval_source and audit.audit_labels(eval_source, max_images=count, team=team)
    stops = odd_labels.reasons_to_stop(train[0]) if train else []
    if stops and not config.data.allow_odd_labels:
        raise ValueError(
            "\n".join(stops) + "\nIf the labels are correct, --config.data.allow_odd_labels=True"
            " trains on them"
        )
    for other in (*train[1:], *([val] if val else [])):
        stops += odd_labels.reasons_to_stop(other)
    doubts = odd_labels.reasons_to_doubt(train, val) if train else []
    tables = (*(a.table() for a in train), *unlabeled)
    return Findings(
        "\n".join([f"training on {mixture.describe()}", *tables])
        + (f"\nevaluating on:\n{val.table()}" if val else ""),
        (*stops, *doubts),
    )


def _check_unlabeled(source) -> str:
    audit.check_images(source)
    return f"{source.name} {source.split}: no labels, learned from the teacher alone"


def _segmentation_dataset(
    config: ConfigDict, source, start_step: int, shard: Shard, sample_offset: int
) -> tf.data.Dataset:
    augmentation = augmentation_of(config.data, Augmentation)
    return segmentation_data.train_dataset(
        source, augmentation, _batch_plan(config, start_step, shard, sample_offset)
    )


def _evaluate_segmentation(config: ConfigDict, model, variables, source, mesh: Mesh) -> Evaluation:
    images = []

    def keep_images(batch, predictions):
        for row in np.flatnonzero(batch["valid_mask"]):
            if len(images) < NUM_IMAGES:
                images.append(
                    visualize.panel(
                        batch["image"][row],
                        batch["label"][row],
                        predictions[row],
                        source.classes,
                        columns=3,
                    )
                )

    result = segmentation.evaluate(
        model,
        variables,
        segmentation.spread(source, config.eval.num_images),
        batch_size=config.eval.batch_size,
        size_step=config.eval.size_step,
        mesh=mesh,
        on_batch=keep_images,
    )
    metrics = {k: v for k, v in result.metrics.items() if isinstance(v, float)}
    miou, accuracy = metrics["miou"], metrics["pixel_accuracy"]
    return Evaluation(
        metric=miou,
        metrics=metrics | {"seconds": result.seconds},
        summary=f"mIoU {miou:.4f}, pixel accuracy {accuracy:.4f} "
        + _speed(len(result.ids), result.seconds),
        images=tuple(images),
    )


# ---- classification


def _open_classification(config: ConfigDict, split: str):
    return open_images(config.data.name, root=config.data.root, split=split)


def _mix_classification(config: ConfigDict, source):
    warps = ("rotation", "shear", "perspective")
    for key in ("mix", "class_uniform", "class_mix", "service", *warps):
        if config.data[key]:
            raise ValueError(f"config.data.{key}={config.data[key]!r} is for segmentation only")
    return source


def _audit_classification(config: ConfigDict, source, eval_source, team: Team) -> Findings:
    count = config.data.audit_images or DECODED_IMAGES
    sources = [s for s in (source, eval_source) if s is not None]
    return Findings("\n".join(classification_data.audit_images(s, count) for s in sources))


def _classification_dataset(
    config: ConfigDict, source, start_step: int, shard: Shard, sample_offset: int
) -> tf.data.Dataset:
    augmentation = augmentation_of(config.data, classification_data.CropAugmentation)
    classification_data.check_center(augmentation.crop_size, config.data.eval_short_side)
    return classification_data.train_dataset(
        source, augmentation, _batch_plan(config, start_step, shard, sample_offset)
    )


def _evaluate_classification(
    config: ConfigDict, model, variables, source, mesh: Mesh
) -> Evaluation:
    result = classification.evaluate(
        model,
        variables,
        segmentation.spread(source, config.eval.num_images),
        batch_size=config.eval.batch_size,
        crop_size=tuple(config.data.crop_size),
        short_side=config.data.eval_short_side,
        mesh=mesh,
    )
    return Evaluation(
        metric=result.top1,
        metrics={"top1": result.top1, "top5": result.top5, "seconds": result.seconds},
        summary=f"top-1 {result.top1:.4f}, top-5 {result.top5:.4f} "
        + _speed(len(result.ids), result.seconds),
    )


def _speed(images: int, seconds: float) -> str:
    return f"({images} images, {images / seconds:.1f} images/s)"


_SEGMENTATION = Task(
    sources=("fake", *SOURCES),  # "fake" is replaced before it is opened
    losses=LOSSES,
    open=_open_segmentation,
    mix=_mix_segmentation,
    audit=_audit_segmentation,
    dataset=_segmentation_dataset,
    label_shape=lambda config: (tuple(config.data.crop_size), np.uint8),
    ignore_label=IGNORE_LABEL,
    evaluate=_evaluate_segmentation,
)
_CLASSIFICATION = Task(
    sources=IMAGE_SOURCES,
    losses=("cross_entropy",),
    open=_open_classification,
    mix=_mix_classification,
    audit=_audit_classification,
    dataset=_classification_dataset,
    label_shape=lambda config: ((), np.int32),
    ignore_label=-1,
    evaluate=_evaluate_classification,
)
_TASKS = {
    "classification": _CLASSIFICATION,
    **dict.fromkeys(SEGMENTATION_HEADS, _SEGMENTATION),
}
