"""Reads the trained network of `config.distill.teacher` and checks that it can teach."""

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xxhash
from flax import traverse_util

from hrnet_jax.models import HRNetModel, create_model
from hrnet_jax.train import distill, network_file
from hrnet_jax.train.tasks import heads_of_same_task

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained network that a run learns from.

    Attributes:
      name: as the configuration gives it.
      model: the network.
      variables: {"params", "batch_stats"}.
      fingerprint: a hash of all that decides its predictions: network, weights, order of classes.
      class_order: see `distill.Distillation`.
    """

    name: str
    model: HRNetModel
    variables: Mapping[str, Any]
    fingerprint: str
    class_order: tuple[int, ...] | None

    def to_json(self) -> dict[str, str]:
        """What a student's checkpoint says about it."""
        return {"name": self.name, "hash": self.fingerprint}


def load(
    path: str,
    *,
    head: str,
    num_classes: int,
    class_names: Sequence[str] | None,
    **model_options: Any,
) -> Teacher:
    """Reads a teacher from anything that `network_file.read` takes.

    A PyTorch file does not name its classes. They are taken for those of the dataset, in its
    order, and the log says so.

    Args:
      path: a run's folder, a file, an address on the hub, or the name of shipped weights.
      head: of the student.
      num_classes: of the student.
      class_names: of the student; None: only their number is compared.
      **model_options: of `create_model`: what may differ from the file, such as the dtype.

    Raises:
      FileNotFoundError: there is no such folder, file or name.
      ValueError: for a network of another task or with other classes, or a damaged file.
    """
    what = f"config.distill.teacher={path!r}"
    variables, about, names = network_file.read("distill.teacher", path)
    heads = heads_of_same_task(head)
    if about["head"] not in heads:
        raise ValueError(
            f"{what} has the head {about['head']!r}, the run trains {head!r}: the teacher must"
            f" have one of the heads {heads}"
        )
    order = _class_order(what, about["num_classes"], names, num_classes, class_names)
    model = create_model(**about, **model_options)
    fingerprint = fingerprint_of({**about, "class_order": order}, variables)
    variables = jax.tree.map(lambda x: jnp.asarray(x, model.policy.param_dtype), dict(variables))
    logger.info("teacher: %s, %s with head %s", path, about["variant"], about["head"])
    return Teacher(path, model, variables, fingerprint, order)


def _class_order(what, count, names, num_classes, class_names):
    advice = "take a teacher that was trained with the dataset's classes"
    if count != num_classes and (names is None or class_names is None):
        raise ValueError(f"{what} has {count} classes, the dataset {num_classes}: {advice}")
    if class_names is None:
        return None
    if names is None:
        logger.warning(
            "%s does not name its %d classes: they are taken for those of the dataset in this"
            " order: %s",
            what,
            count,
            ", ".join(class_names),
        )
        return None
    try:
        order = distill.class_order(class_names, names)
    except ValueError as error:
        raise ValueError(f"{what} has other classes than the dataset: {error}; {advice}") from None
    if order is not None:
        logger.info("the teacher has the classes in another order: they are mapped by name")
    return order


def fingerprint_of(about: Mapping[str, Any], variables: Mapping[str, Any]) -> str:
    """A hash of a description (JSON values) and of all names, shapes and values.

    Values are taken in float32: a file of float16 weights and a checkpoint of the same values
    have the same hash.
    """
    digest = xxhash.xxh3_128(json.dumps(about, sort_keys=True).encode())
    for name, value in sorted(traverse_util.flatten_dict(dict(variables), sep="/").items()):
        array = np.ascontiguousarray(value, np.float32)
        digest.update(f"{name} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
