"""Checkpoints and files of weights, read for inference."""

import dataclasses
import logging
import os
from typing import Any

import jax
from etils import epath
from flax import traverse_util

from hrnet_jax.checkpoints import weights_file
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
from hrnet_jax.runtime import storage

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
      metric: its score (mIoU), None where it was not evaluated or not finite.
    """

    variables: dict[str, Any]
    metadata: dict[str, Any]
    step: int
    path: str
    metric: float | None


def load_checkpoint(
    path: str | os.PathLike, step: int | None = None, which: str = "best"
) -> Checkpoint:
    """Reads a checkpoint or a file of `weight_files` for inference, and logs which one it took.

    What was written is compared with its checksums. If a damaged step would be the choice, a
    warning names it and the next best one is taken; a step that was asked for has to be sound.

    Args:
      path: a run's folder, its `checkpoints` folder or the folder of one step; a file, or the name
        of one that comes with the package.
      step: a step's number; the default is chosen by `which`.
      which: "best" takes the highest score, or the newest step if none was evaluated; "latest" the
        newest.

    Raises:
      FileNotFoundError: if there is no such folder, file or name, or no complete checkpoint in it.
      ValueError: for a format this version does not know, an unknown `which`, or damaged contents.
    """
    if which not in ("best", "latest"):
        raise ValueError(f"unknown checkpoint choice {which!r}; known: ['best', 'latest']")
    if file := weights_file.find(path):
        return _read_file(file, step)
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
    scores = {s: m["score"] for s, m in complete_steps(root).items()}
    scored = [s for s in scores if scores[s] is not None]
    newest = sorted(scores, reverse=True)
    best = sorted(scored, key=lambda s: (scores[s], s), reverse=True) if which == "best" else []
    for candidate in [*best, *(s for s in newest if s not in best)]:
        folder = root / str(candidate)
        if not warn_of_damage(folder):
            return _read(folder, "the best by score" if candidate in best else "the newest")
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
    score = read_manifest(folder)["score"]
    logger.info("checkpoint %s (%s; %s; score %s)", folder, reason, part, score)
    device = jax.local_devices()[0]
    names = [name for name, _, _ in read_descriptions(folder, part)]
    arrays = [jax.device_put(array, device) for array in restore_arrays(folder, part)]
    try:
        variables = traverse_util.unflatten_dict(dict(zip(names, arrays, strict=True)), sep="/")
    except TypeError:  # a name that is the beginning of another one
        raise ValueError(f"{folder / part} lists names that form no tree") from None
    return Checkpoint(
        variables=variables,
        metadata=metadata,
        step=int(folder.name),
        path=str(folder),
        metric=score,
    )


def _read_file(file: epath.Path, step: int | None) -> Checkpoint:
    variables, metadata, found, score = weights_file.read(file)
    if step is not None and step != found:
        raise ValueError(f"step {step} was asked for, but {file} holds step {found}")
    logger.info("weights %s (step %d; score %s)", file, found, score)
    placed = jax.device_put(variables, jax.local_devices()[0])
    return Checkpoint(placed, metadata, found, str(file), score)
