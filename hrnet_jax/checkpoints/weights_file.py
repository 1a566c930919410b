"""Weight files: a network's weights with everything needed to use them. Some are in the package.

A weight file is a .safetensors file. Its arrays have the names of the tree of variables, such as
params/backbone/stem/conv1/conv/kernel. They are float16 or float32 and are used in float32. The
header's metadata hold, as JSON under "hrnet_jax", the checkpoint's metadata, its step and its
metric ("score").
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import traverse_util

from hrnet_jax.models import create_model
from hrnet_jax.pytorch import files as torch_files
from hrnet_jax.runtime import storage

VERSION = 1
SUFFIX = ".safetensors"
# Those that come with the package.
FOLDER = Path(__file__).parents[1] / "weights"
DTYPES = ("float32", "float16")
_KEY = "hrnet_jax"
_METADATA_TYPES = {"model": dict, "classes": dict, "config": dict, "version": str}
# Of metadata["model"], which is `HRNetModel.to_json`.
MODEL_TYPES = {
    "variant": str, "num_classes": int, "head": str, "align_corners": bool,
    "image_statistics": float,
}  # fmt: skip
# Keys of a configuration with paths that mean nothing on another machine.
_PATHS = ("root", "class_file", "compilation_cache", "init_from", "converted_from", "teacher")


def names() -> tuple[str, ...]:
    """The names of the weights that come with the package."""
    return tuple(sorted(path.stem for path in FOLDER.glob(f"*{SUFFIX}")))


def find(path_or_name: str | os.PathLike) -> epath.Path | None:
    """The file of a path or of the name of shipped weights; None where it is neither."""
    path = storage.path(path_or_name)
    if path.exists():
        return path if path.is_file() else None
    return epath.Path(FOLDER / f"{path}{SUFFIX}") if str(path_or_name) in names() else None


def known() -> str:
    """The names of the weights in the package, for messages."""
    return f"weights that come with hrnet_jax: {', '.join(names()) or 'none in this version'}"


def is_foreign(path_or_name: str | os.PathLike) -> bool:
    """Whether this is a file that `write` has not written, perhaps one of PyTorch."""
    file = find(path_or_name)
    try:
        return file is not None and _KEY not in torch_files.safetensors_metadata(file)
    except ValueError:
        return True


def check_path(path: str | os.PathLike) -> epath.Path:
    """The path of a file to be written.

    Raises:
      ValueError: for another suffix.
    """
    path = storage.path(path)
    if path.suffix != SUFFIX:
        raise ValueError(f"{path}: weights are written to a {SUFFIX} file")
    return path


def write(
    path: str | os.PathLike,
    variables: Mapping[str, Any],
    metadata: Mapping[str, Any],
    *,
    step: int,
    metric: float | None,
    dtype: str = "float32",
) -> None:
    """Writes a file; it appears under its name when it is complete.

    Args:
      path: ends in `.safetensors`.
      variables: {"params", "batch_stats"}.
      metadata: of a checkpoint. Paths in its configuration are left out.
      step: optimizer steps of the weights.
      metric: mean IoU on the validation split, or None.
      dtype: of the kernels; statistics, scales and biases are few and stay float32.

    Raises:
      ValueError: for another suffix or type, or a kernel too large for float16.
    """
    path = check_path(path)
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; known: {DTYPES}")
    arrays = {}
    for name, value in traverse_util.flatten_dict(dict(variables), sep="/").items():
        value = np.asarray(value, np.float32)
        if dtype == "float16" and value.ndim > 1:
            if np.abs(value).max() > np.finfo(np.float16).max:
                raise ValueError(f"{name} has values too large for float16; write float32")
            value = value.astype(np.float16)
        arrays[name] = value
    about = {
        **{key: metadata[key] for key in _METADATA_TYPES},
        "config": _without_paths(metadata["config"]),
        "format_version": VERSION,
        "step": int(step),
        "score": metric,
    }
    torch_files.write_tensors(path, arrays, {_KEY: json.dumps(about, allow_nan=False)})


def read(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, Any], int, float | None]:
    """Reads a file: variables (float32, NumPy), metadata, step and metric.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: naming the file, if it is damaged, no file of ours, or does not hold exactly the
        arrays of the network it names.
    """
    found = torch_files.safetensors_metadata(path)
    if _KEY not in found:
        raise ValueError(
            f"{path} is not a weights file of hrnet_jax: it does not name its network. PyTorch "
            "files are read by hrnet_jax.from_torch and python -m hrnet_jax.tools.convert_weights"
        )
    try:
        about = json.loads(found[_KEY])
        _check(about)
        template = _shapes(about["model"])
    except Exception as error:  # a strange description raises anything in create_model
        raise ValueError(f"{path}: its description is damaged: {error}") from None
    with torch_files.open_tensors(path) as tensors:
        problems = [f"missing: {name}" for name in template.keys() - tensors.keys()]
        problems += [f"unexpected: {name}" for name in tensors.keys() - template.keys()]
        for name in template.keys() & tensors.keys():
            tensor = tensors[name]
            if tensor.shape != template[name] or tensor.dtype.name not in DTYPES:
                problems.append(
                    f"{name}: {tensor.dtype.name}{list(tensor.shape)}, expected"
                    f" {' or '.join(DTYPES)} of {list(template[name])}"
                )
        if problems:
            shown = "\n  ".join(sorted(problems)[:10])
            raise ValueError(
                f"{path} does not fit {about['model']['variant']}, {len(problems)} differences:"
                f"\n  {shown}"
            )
        arrays = {name: tensors[name].numpy().astype(np.float32) for name in template}
    step, metric = about.pop("step"), about.pop("score")
    return traverse_util.unflatten_dict(arrays, sep="/"), about, step, metric


def _check(about: Any) -> None:
    if about["format_version"] != VERSION:
        raise ValueError(f"version {about['format_version']!r}; this hrnet_jax reads {VERSION}")
    model = {"image_statistics": 0.0, **about["model"]}  # earlier files lack it
    for values, types in ((about, _METADATA_TYPES), (model, MODEL_TYPES)):
        if odd := [key for key, kind in types.items() if type(values.get(key)) is not kind]:
            raise ValueError(f"missing or of a wrong type: {odd}")
    if odd := sorted(model.keys() - MODEL_TYPES.keys()):
        raise ValueError(f"unknown in its model: {odd}")
    metric = about["score"]
    if type(about["step"]) is not int or not (metric is None or math.isfinite(metric)):
        raise ValueError("step or score is not a number")


def _shapes(model: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    network = create_model(**model)
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
    return {k: v.shape for k, v in traverse_util.flatten_dict(variables, sep="/").items()}


def _without_paths(config: Any) -> Any:
    if isinstance(config, Mapping):
        return {k: "" if k in _PATHS else _without_paths(v) for k, v in config.items()}
    return [_without_paths(v) for v in config] if isinstance(config, list | tuple) else config
