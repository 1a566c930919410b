"""What training has to know of its task: where data come from, which loss, how it is scored.

A network's head says its task. The training loop is the same for all; what differs is here.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
from jax.sharding import Mesh
from ml_collections import ConfigDict

from hrnet_jax.data import IMAGE_SOURCES, SOURCES, open_images, open_source
from hrnet_jax.data.pipeline import audit
from hrnet_jax.data.pipeline import classification as classification_data
from hrnet_jax.data.pipeline import segmentation as segmentation_data
from hrnet_jax.data.pipeline.mixture import Mixture, open_mixture
from hrnet_jax.data.sources.source import IGNORE_LABEL
from hrnet_jax.evaluation import classification, segmentation
from hrnet_jax.inference import visualize
from hrnet_jax.inference.multi_scale import SEGMENTATION_HEADS

# Labels or images looked at before the first step.
AUDITED_IMAGES = 500
NUM_PICTURES = 3


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores of a split.

    Attributes:
      score: ranks the checkpoints, higher is better.
      figures: scalars for the log.
      summary: the main ones as text.
      pictures: uint8 [H, W, 3] each.
    """

    score: float
    figures: dict[str, float]
    summary: str
    pictures: tuple[np.ndarray, ...] = ()


@dataclasses.dataclass(frozen=True)
class Task:
    """One kind of training.

    Attributes:
      sources: the values of config.data.name that have its kind of labels.
      losses: the values of config.loss.name that make sense.
      open: (config, split) -> source.
      mix: (config, source of the training split) -> what to train on.
      audit: source -> what was found in it, as text; raises for what is not sound.
      dataset: (config, source, start_step, share) -> endless batches of "image" and "label", of
        which share = (index, count) says the slice.
      label_shape: config -> shape of one image's label, and its type.
      ignore_label: the label that does not count.
      evaluate: (config, model, variables, source, mesh) -> Evaluation.
    """

    sources: tuple[str, ...]
    losses: tuple[str, ...]
    open: Callable[[ConfigDict, str], Any]
    mix: Callable[[ConfigDict, Any], Any]
    audit: Callable[[Any], str]
    dataset: Callable[[ConfigDict, Any, int, tuple[int, int]], tf.data.Dataset]
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


# ---- segmentation


def _open_segmentation(config: ConfigDict, split: str):
    data = config.data
    return open_source(data.name, root=data.root, split=split, class_file=data.class_file)


def _mix_segmentation(config: ConfigDict, source):
    return open_mixture(source, config.data.mix, config.data.class_uniform)


def _audit_segmentation(source) -> str:
    mixture = Mixture.of(source)
    tables = [audit.audit_labels(s, max_images=AUDITED_IMAGES).table() for s in mixture.sources]
    return "\n".join([f"training on {mixture.describe()}", *tables])


def _segmentation_dataset(
    config: ConfigDict, source, start_step: int, share: tuple[int, int]
) -> tf.data.Dataset:
    data = config.data
    return segmentation_data.train_dataset(
        source,
        batch_size=config.batch_size,
        crop_size=tuple(data.crop_size),
        seed=config.seed,
        start_step=start_step,
        scale_min=data.scale_min,
        scale_max=data.scale_max,
        scale_step=data.scale_step,
        flip=data.flip,
        brightness=data.brightness,
        threads=data.threads,
        prefetch=data.prefetch,
        service=data.service,
        process_index=share[0],
        process_count=share[1],
    )


def _evaluate_segmentation(config: ConfigDict, model, variables, source, mesh: Mesh) -> Evaluation:
    pictures = []

    def keep_pictures(batch, predictions):
        for row in np.flatnonzero(batch["valid_mask"]):
            if len(pictures) < NUM_PICTURES:
                pictures.append(
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
        mesh=mesh,
        on_batch=keep_pictures,
    )
    figures = {k: v for k, v in result.metrics.items() if isinstance(v, float)}
    miou, accuracy = figures["miou"], figures["pixel_accuracy"]
    return Evaluation(
        score=miou,
        figures=figures | {"seconds": result.seconds},
        summary=f"mIoU {miou:.4f}, pixel accuracy {accuracy:.4f} "
        + _speed(len(result.ids), result.seconds),
        pictures=tuple(pictures),
    )


# ---- classification


def _open_classification(config: ConfigDict, split: str):
    return open_images(config.data.name, root=config.data.root, split=split)


def _mix_classification(config: ConfigDict, source):
    for key in ("mix", "class_uniform", "class_mix", "service"):
        if config.data[key]:
            raise ValueError(f"config.data.{key}={config.data[key]!r} is for segmentation only")
    return source


def _audit_classification(source) -> str:
    return classification_data.audit_images(source, AUDITED_IMAGES)


def _classification_dataset(
    config: ConfigDict, source, start_step: int, share: tuple[int, int]
) -> tf.data.Dataset:
    data = config.data
    classification_data.check_center(tuple(data.crop_size), data.eval_short_side)
    return classification_data.train_dataset(
        source,
        batch_size=config.batch_size,
        crop_size=tuple(data.crop_size),
        seed=config.seed,
        start_step=start_step,
        area_min=data.area_min,
        aspect_max=data.aspect_max,
        flip=data.flip,
        threads=data.threads,
        prefetch=data.prefetch,
        process_index=share[0],
        process_count=share[1],
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
    figures = {"top1": result.top1, "top5": result.top5, "seconds": result.seconds}
    return Evaluation(
        score=result.top1,
        figures=figures,
        summary=f"top-1 {result.top1:.4f}, top-5 {result.top5:.4f} "
        + _speed(len(result.ids), result.seconds),
    )


def _speed(images: int, seconds: float) -> str:
    return f"({images} images, {images / seconds:.1f} images/s)"


_SEGMENTATION = Task(
    sources=("fake", *SOURCES),  # "fake" is replaced before it is opened
    losses=("cross_entropy", "ohem"),
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
