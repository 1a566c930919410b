"""Files of PyTorch in the place of a checkpoint: what they do not say has to be said."""

import logging
import os
from collections.abc import Mapping
from typing import Any

import hrnet_jax
from hrnet_jax.checkpoints import weights_file
from hrnet_jax.checkpoints.manifest import FORMAT_VERSION
from hrnet_jax.data.sources import camvid, cityscapes
from hrnet_jax.data.sources.class_file import read_class_file
from hrnet_jax.models import HRNetModel
from hrnet_jax.pytorch import convert, hub

logger = logging.getLogger(__name__)
_KNOWN = {"cityscapes": cityscapes.CLASSES, "camvid": camvid.CLASSES}
_HEADS = ("segmentation", "segmentation_v1", "ocr")


def is_foreign(path: str | os.PathLike) -> bool:
    """Whether this is a file of another layout than ours, or an address on the hub."""
    return hub.is_address(os.fspath(path)) or weights_file.is_foreign(path)


def read(
    path: str | os.PathLike, classes: str | None, *, key: str | None = None, weights: str = "auto"
) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Reads a file of PyTorch as a checkpoint: variables and metadata.

    Args:
      path: the file, or an address of `pytorch.hub`.
      classes: "cityscapes", "camvid" or a JSON class file.
      key, weights: which network, as for `pytorch.convert.from_torch`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: as `from_torch`; the classes are not said, or their number is another one.
    """
    converted = convert.convert(path, key=key, weights=weights)
    logger.info("%s", converted.report.summary())
    if classes is None and converted.model.head in _HEADS:
        count = converted.model.num_classes
        fitting = [name for name, known in _KNOWN.items() if known.num_classes == count]
        name = fitting[0] if fitting else "CLASSES.json"
        raise ValueError(
            f"{path} is a PyTorch file, which does not name its {count} classes: give"
            f" --classes={name} (Python: classes={name!r}; known: {sorted(_KNOWN)} and JSON class"
            f" files), or convert it once: python -m hrnet_jax.tools.convert_weights {path}"
            f" --classes={name} --output=DIR"
        )
    return converted.variables, describe(converted.model, os.fspath(path), classes)


def describe(model: HRNetModel, source: str, classes: str | None) -> dict[str, Any]:
    """What a checkpoint says about itself, of the weights of a PyTorch file.

    Raises:
      ValueError: the network does not label pixels, or the number of classes is another one.
    """
    if model.head not in _HEADS:
        raise ValueError(
            f"a checkpoint must be a segmentation network, but {source} has the head {model.head}; "
            "load it with hrnet_jax.from_torch, or start a training from it with "
            "--config.init_from"
        )
    found = _KNOWN[classes] if classes in _KNOWN else read_class_file(classes)
    if found.num_classes != model.num_classes:
        raise ValueError(
            f"{source} has {model.num_classes} classes, but {classes} has {found.num_classes}; "
            "give the classes of the file: --classes=cityscapes, camvid or a JSON class file"
        )
    return {
        "format_version": FORMAT_VERSION,
        "model": model.to_json(),
        "classes": found.to_json(),
        # What evaluate.py takes as defaults.
        "config": {"data": _data_config(classes), "converted_from": source},
        "version": hrnet_jax.__version__,
    }


def _data_config(classes: str) -> dict[str, str]:
    if classes in _KNOWN:
        return {"name": classes, "root": "", "eval_split": "val", "class_file": ""}
    return {"name": "folder", "root": "", "eval_split": "val", "class_file": classes}
