"""Training batches from plain keyword arguments, for tests of both tasks."""

import dataclasses

from hrnet_jax.data.pipeline import classification, segmentation
from hrnet_jax.data.pipeline.augment import Augmentation
from hrnet_jax.data.pipeline.batches import BatchPlan, iterate
from hrnet_jax.data.pipeline.order import Shard

_PLAN = {field.name for field in dataclasses.fields(BatchPlan)}


def train_batches(source, *, shard=(0, 1), **options):
    """Batches without end; the options are fields of BatchPlan and of Augmentation."""
    return iterate(segmentation.train_dataset(source, *_split(Augmentation, shard, options)))


def train_image_batches(source, *, shard=(0, 1), **options):
    """The same for classification."""
    settings = _split(classification.CropAugmentation, shard, options)
    return iterate(classification.train_dataset(source, *settings))


def _split(augmentation, shard, options):
    plan = {name: options[name] for name in options if name in _PLAN}
    rest = {name: options[name] for name in options if name not in _PLAN}
    return augmentation(**rest), BatchPlan(shard=Shard(*shard), **plan)
