"""The weights that a run starts from: a checkpoint or file, fitted to the network of the run."""

import logging
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from hrnet_jax.models import HRNetModel
from hrnet_jax.train import network_file

logger = logging.getLogger(__name__)


def load(path: str, model: HRNetModel, class_names: Sequence[str], seed: int) -> dict[str, Any]:
    """The variables to start from: those of the file where they fit, else random ones.

    Any head will do, ImageNet's, one of another package or none: the file has to have the whole
    backbone, and those arrays of the head that fit, by name and shape, are taken over. The rows of
    classifiers are taken by the name of their class. The log names what stays random.

    Args:
      path: a folder with a checkpoint, a file, an address on the hub or the name of weights in the
        package.
      model: the network of the run.
      class_names: of the classes to be trained.
      seed: of the random arrays.

    Raises:
      FileNotFoundError: if there is no such file or folder.
      ValueError: if an array of the backbone is missing, superfluous or of another shape.
    """
    variables, _, names = network_file.read("init_from", path, backbone_only=True)
    fresh = model.init(jax.random.key(seed), jnp.zeros((1, 64, 64, 3)))
    fresh, given = (traverse_util.flatten_dict(tree, sep="/") for tree in (fresh, variables))
    if names is not None and tuple(names) != tuple(class_names):
        given = given | rows_by_class(given, fresh, names, class_names)
    fitting = {k for k in fresh.keys() & given.keys() if fresh[k].shape == np.shape(given[k])}
    _check_backbone(path, model, fresh, given, fitting)
    parts = [
        sorted({"/".join(k.split("/")[1:3]) for k in keys - fitting}) or ["nothing"]
        for keys in (fresh.keys(), given.keys())
    ]
    logger.info(
        "starting from %s: %d of %d arrays, the whole backbone; random: %s; left out: %s",
        path,
        len(fitting),
        len(fresh),
        *(", ".join(names) for names in parts),
    )
    if names is None and any(_is_classifier(k) for k in fitting):
        logger.warning(
            "%s does not name its %d classes: they are assumed to be %s, in this order. If they are"
            " not, convert the file with tools.convert_weights and its own --classes, and start"
            " from the result: rows are then copied by name",
            path,
            len(class_names),
            ", ".join(class_names[:3]) + (", ..." if len(class_names) > 3 else ""),
        )
    merged = {
        k: jnp.asarray(given[k], value.dtype) if k in fitting else value
        for k, value in fresh.items()
    }
    return traverse_util.unflatten_dict(merged, sep="/")


def _check_backbone(path: str, model: HRNetModel, fresh: dict, given: dict, fitting: set) -> None:
    in_backbone = {k for k in fresh.keys() | given.keys() if k.split("/")[1] == "backbone"}
    if wrong := sorted(in_backbone - fitting):
        raise ValueError(
            f"config.init_from={path!r} does not fit the backbone of {model.variant.name!r} with"
            f" head {model.head!r}: {len(wrong)} arrays are missing, superfluous or of another"
            f" shape, such as {wrong[:4]}"
        )


def _is_classifier(path: str) -> bool:
    """Whether the last dimension of the array is that of the classes: OCR has two such layers."""
    return path.split("/")[-2].endswith("classifier")


def rows_by_class(
    given: dict[str, Any], fresh: dict[str, Any], old: Sequence[str], new: Sequence[str]
) -> dict[str, Any]:
    """The classifiers' arrays for the classes `new`: known classes keep their rows, others have
    random ones. None for an array of which nothing can be taken.

    Rows mean output channels: kernels are [..., classes], biases [classes].
    """
    rows = {k: list(old).index(name) for k, name in enumerate(new) if name in old}
    logger.info(
        "the file has other classes, or another order: rows of classifiers are copied by name."
        " Copied: %s. Random: %s. Left out: %s",
        ", ".join(new[k] for k in rows) or "none",
        ", ".join(name for name in new if name not in old) or "none",
        ", ".join(name for name in old if name not in new) or "none",
    )
    mapped: dict[str, Any] = {}
    for path in filter(_is_classifier, given.keys() & fresh.keys()):
        source, target = np.asarray(given[path]), np.array(fresh[path])
        mapped[path] = None
        if rows and source.shape[:-1] == target.shape[:-1]:
            target[..., list(rows)] = source[..., list(rows.values())]
            mapped[path] = target
    return mapped
