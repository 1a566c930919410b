"""Reads a checkpoint or a file of weights for inference."""

import dataclasses
import logging
import os
from typing import Any

import jax
from etils import epath
from flax import traverse_util

from hrnet_jax.checkpoints import foreign, weights_file
from hrnet_jax.checkpoints.manifest import (
    FOLDER,
    complete_steps,
    find_damage,
    read_manifest,
    read_metadata,
    step_folders,
    warn_of_damage,
)
from hrnet_jax.checkpoints.vectors import read_descriptions, restore_arrays
from hrnet_jax.runtime import platforms, storage

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What inference needs of a checkpoint.

    Attributes:
      variables: {"params", "batch_stats"}; the moving averages where the run kept any.
      metadata: "format_version", "model" (`HRNetModel.to_json`), "classes",
        "config" and "version" of the package that wrote it.
      step: number of optimizer steps.
      path: the step's folder, or the file.
      metric: its validation metric (mIoU or top-1 accuracy, as a fraction); None where it was not
        evaluated or not finite.
    """

    variables: dict[str, Any]
    metadata: dict[str, Any]
    step: int
    path: str
    metric: float | None


def load_checkpoint(
    path: str | os.PathLike,
    step: int | None = None,
    which: str = "best",
    *,
    classes: str | None = None,
    key: str | None = None,
    weights: str = "auto",
) -> Checkpoint:
    """Reads a checkpoint or a file of `weight_files` for inference, and logs which one it took.

    What was written is compared with its checksums. If a damaged step would be the choice, a
    warning names it and the next best one is taken; a step that was asked for has to be sound.

    Args:
      path: a run's folder, its `checkpoints` folder or the folder of one step; a file, or the name
        of one that comes with the package; a file of PyTorch or an address on the Hugging Face
        hub (`pytorch.convert.from_torch`), whose classes are said by `classes`.
      step: a step's number; the default is chosen by `which`.
      which: "best" takes the highest metric, or the newest step if none was evaluated; "latest"
        takes the newest.
      classes: of a file of PyTorch, which does not say: "cityscapes", "camvid" or a JSON class
        file. Not used for other files, which say so themselves.
      key, weights: which network of a file of PyTorch, as for `from_torch`.

    Raises:
      FileNotFoundError: if there is no such folder, file or name, or no complete checkpoint in it.
      ValueError: for a format this version does not know, an unknown `which`, or damaged contents;
        if the platform that JAX_PLATFORMS asks for is not there.
    """
    platforms.check()
    if which not in ("best", "latest"):
        raise ValueError(f"unknown checkpoint choice {which!r}; known: ['best', 'latest']")
    if foreign.is_foreign(path):
        variables, metadata = foreign.read(path, classes, key=key, weights=weights)
        placed = jax.device_put(variables, jax.local_devices()[0])
        return Checkpoint(placed, metadata, 0, str(path), None)
    if file := weights_file.find(path):
        return _read_file(file, step)
    return _read_run(path, step, which)


def _read_run(path: str | os.PathLike, step: int | None, which: str) -> Checkpoint:
    """A checkpoint in a folder."""
    root = storage.absolute(path)
    if not root.exists():
        raise FileNotFoundError(
            f"no checkpoint at {path}: the folder does not exist (looked for {root});"
            f" {weights_file.known()}"
        )
    if root.name.isdigit() and not (root / FOLDER).exists():
        if step is not None and step != int(root.name):
            raise ValueError(
                f"step {step} was asked for, but {root} is the folder of step {root.name}"
            )
        return _read_given(root)
    if (root / FOLDER).exists():
        root = root / FOLDER
    if not step_folders(root):
        raise FileNotFoundError(
            f"no complete checkpoint in {root}: expected folders named by step with 'variables' and"
            " 'metadata' in them; give the --workdir of a training run"
        )
    if step is not None:
        if not (root / str(step)).exists():
            known = [int(folder.name) for folder in step_folders(root)]
            raise FileNotFoundError(
                f"no complete checkpoint of step {step} in {root}; known: {known}"
            )
        return _read_given(root / str(step))
    return _read_chosen(root, which)


def _read_chosen(root: epath.Path, which: str) -> Checkpoint:
    """The best or newest step that is sound."""
    metrics = {s: m["score"] for s, m in complete_steps(root).items()}
    evaluated = [s for s in metrics if metrics[s] is not None]
    newest = sorted(metrics, reverse=True)
    best = sorted(evaluated, key=lambda s: (metrics[s], s), reverse=True) if which == "best" else []
    for candidate in [*best, *(s for s in newest if s not in best)]:
        folder = root / str(candidate)
        if not warn_of_damage(folder):
            return _read(folder, "the best by metric" if candidate in best else "the newest")
    raise FileNotFoundError(
        f"no complete checkpoint in {root}: all of {[f.name for f in step_folders(root)]} are"
        " damaged"
    )


def _read_given(folder: epath.Path) -> Checkpoint:
    if reason := find_damage(folder):
        raise ValueError(f"no complete checkpoint at {folder}: {reason}")
    return _read(folder, "as given")


def _read(folder: epath.Path, reason: str) -> Checkpoint:
    metadata = read_metadata(folder)
    part = "ema" if (folder / "ema").exists() else "variables"
    metric = read_manifest(folder)["score"]
    logger.info("checkpoint %s (%s; %s; metric %s)", folder, reason, part, metric)
    device = jax.local_devices()[0]
    names = [name for name, _, _ in read_descriptions(folder, part)]
    arrays = [jax.device_put(array, device) for array in restore_arrays(folder, part)]
    try:
        variables = traverse_util.unflatten_dict(dict(zip(names, arrays, strict=True)), sep="/")
    except TypeError:  # a name that is the beginning of another one
        raise ValueError(f"{folder / part} lists array names that do not form a tree") from None
    return Checkpoint(
        variables=variables,
        metadata=metadata,
        step=int(folder.name),
        path=str(folder),
        metric=metric,
    )


def _read_file(file: epath.Path, step: int | None) -> Checkpoint:
    variables, metadata, found, metric = weights_file.read(file)
    if step is not None and step != found:
        raise ValueError(f"step {step} was asked for, but {file} holds step {found}")
    logger.info("weights %s (step %d; metric %s)", file, found, metric)
    placed = jax.device_put(variables, jax.local_devices()[0])
    return Checkpoint(placed, metadata, found, str(file), metric)
