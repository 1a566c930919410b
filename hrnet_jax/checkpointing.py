"""Checkpoints, written during training, read to resume or for inference. Only this knows Orbax.

Layout of a run's folder:

    checkpoints/STEP/variables    parameters and batch statistics
                     ema          their moving averages (runs with EMA only)
                     training     step and optimizer state
                     metadata     JSON: everything that is needed to rebuild the model
                     metrics      JSON: {"miou": ...}, null where the step was not evaluated

Inference reads `ema` or `variables` and the metadata, never the optimizer's part, and no code is
loaded. The newest two steps and the best one by mIoU are kept.
"""

import dataclasses
import json
import logging
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import preservation_policy

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
FOLDER = "checkpoints"
METADATA_KEYS = ("format_version", "model", "classes", "config", "version")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What inference needs of a checkpoint.

    Attributes:
      variables: {"params", "batch_stats"}; the moving averages where the run kept any.
      metadata: "format_version", "model" {variant, num_classes, head, align_corners}, "classes",
        "config" and "version" of the package that wrote it.
      step: number of optimizer steps.
      path: the step's folder.
      metric: its mIoU, None where it was not evaluated or not finite.
    """

    variables: dict[str, Any]
    metadata: dict[str, Any]
    step: int
    path: str
    metric: float | None


def load_checkpoint(path: str, step: int | None = None, which: str = "best") -> Checkpoint:
    """Reads a checkpoint for inference, and logs which one it took.

    Args:
      path: a run's folder, its `checkpoints` folder or the folder of one step.
      step: a step's number; the default is chosen by `which`.
      which: "best" takes the highest mIoU, or the newest step if none was evaluated; "latest" the
        newest.

    Raises:
      FileNotFoundError: if there is no such folder or no complete checkpoint in it.
      ValueError: for a format this version does not know, an unknown `which`, or damaged contents.
    """
    if which not in ("best", "latest"):
        raise ValueError(f"unknown checkpoint choice {which!r}; known: ['best', 'latest']")
    root = epath.Path(path).expanduser().absolute()
    if not root.exists():
        raise FileNotFoundError(f"no checkpoint at {path}: the folder does not exist")
    if root.name.isdigit() and not (root / FOLDER).exists():
        reason = _defect(root)
        if reason:
            raise FileNotFoundError(f"no complete checkpoint at {root}: {reason}")
        if step is not None and step != int(root.name):
            raise ValueError(
                f"step {step} was asked for, but {root} is the folder of step {root.name}"
            )
        return _read(root, "as given")
    if (root / FOLDER).exists():
        root = root / FOLDER
    steps = _complete_steps(root)
    if not steps:
        raise FileNotFoundError(
            f"no complete checkpoint in {root}: expected folders named by step with 'variables' and"
            " 'metadata' in them; give the --workdir of a training run"
        )
    if step is not None:
        if step not in steps:
            raise FileNotFoundError(
                f"no complete checkpoint of step {step} in {root}; known: {steps}"
            )
        return _read(root / str(step), "as given")
    metrics = {s: _metric(root / str(s)) for s in steps}
    if which == "best" and any(metric is not None for metric in metrics.values()):
        best = max(steps, key=lambda s: (_rank(metrics[s]), s))
        return _read(root / str(best), "the best by mIoU")
    return _read(root / str(steps[-1]), "the newest")


class _StructureError(ValueError):
    """The checkpoint is sound, but that of another network or optimizer."""


class CheckpointStore:
    """Writes and restores the training states of one run."""

    def __init__(self, workdir: str):
        """Opens `workdir`/checkpoints; renames incomplete steps, so that they can be written."""
        self._root = epath.Path(workdir).expanduser().absolute() / FOLDER
        self._root.mkdir(parents=True, exist_ok=True)
        self._set_aside_damaged()
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        policies = [
            # Two, so that one remains if the newest turns out to be damaged.
            preservation_policy.LatestN(2),
            preservation_policy.BestN(
                n=1,
                get_metric_fn=lambda metrics: _rank(metrics["miou"]),
                keep_checkpoints_without_metrics=False,
            ),
        ]
        return ocp.CheckpointManager(
            self._root,
            options=ocp.CheckpointManagerOptions(
                # Orbax drops the metrics unless this is set, too.
                best_fn=lambda metrics: _rank(metrics["miou"]),
                preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
                cleanup_tmp_directories=True,
            ),
        )

    def steps(self) -> list[int]:
        """The complete steps in ascending order."""
        self._manager.wait_until_finished()
        return _complete_steps(self._root)

    def save(self, state: Any, metadata: Mapping[str, Any], miou: float | None = None) -> None:
        """Starts to write a `TrainState`; returns as soon as the arrays are copied to the host.

        Args:
          state: the training state; its own step names the checkpoint.
          metadata: all of `METADATA_KEYS`.
          miou: the validation score, where this step was evaluated.

        Raises:
          ValueError: if a key of the metadata is missing.
          Exception: the error of an earlier write that failed.
        """
        missing = set(METADATA_KEYS) - set(metadata)
        if missing:
            raise ValueError(f"checkpoint metadata lacks {sorted(missing)}")
        items = {name: ocp.args.StandardSave(tree) for name, tree in _items(state).items()}
        items["metadata"] = ocp.args.JsonSave(dict(metadata))
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(**items),
            # Always given, null if there is none: a NaN would evict the best checkpoint.
            metrics={"miou": float(miou) if miou is not None and math.isfinite(miou) else None},
            force=True,  # the caller decides when; Orbax would refuse steps below the newest one
        )

    def metadata(self) -> dict[str, Any] | None:
        """The metadata of the newest complete step, None for a new run."""
        steps = self.steps()
        return _metadata(self._root / str(steps[-1])) if steps else None

    def restore(self, template: Any) -> Any | None:
        """Restores the newest readable step, or returns None if there is none.

        Args:
          template: a `TrainState` of arrays or `jax.ShapeDtypeStruct`s with shardings, which say
            where the restored arrays go; they may have been on other devices when they were saved.

        Raises:
          ValueError: if names, shapes or dtypes of the checkpoint differ from the template.
        """
        for step in reversed(self.steps()):
            folder = self._root / str(step)
            wanted = _items(template)
            try:
                for name, tree in wanted.items():
                    _check_structure(folder, name, tree)
                return _from_items(
                    template, {name: _restore(folder / name, tree) for name, tree in wanted.items()}
                )
            except _StructureError:
                raise
            except Exception as error:  # whatever damaged bytes provoke in the reader
                logger.warning("skipping the damaged checkpoint %s: %s", folder, error)
                self._manager.close()
                self._set_aside(folder)
                self._manager = self._open()
        return None

    def wait(self) -> None:
        """Blocks until everything is written; raises the error of a write that failed."""
        self._manager.wait_until_finished()
        self._manager.check_for_errors()

    def close(self) -> None:
        """Waits and releases the writer's threads."""
        self._manager.close()

    def _set_aside_damaged(self) -> None:
        for folder, reason in _step_folders(self._root):
            if reason:
                logger.warning("skipping the incomplete checkpoint %s: %s", folder, reason)
                self._set_aside(folder)

    def _set_aside(self, folder: epath.Path) -> None:
        """Renames an unusable step: Orbax would refuse to write a step of that number again."""
        if jax.process_index() == 0:
            number = 0
            while (target := self._root / f"damaged-{folder.name}-{number}").exists():
                number += 1
            folder.rename(target)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"set aside {folder.name}")


def _items(state: Any) -> dict[str, Any]:
    """The parts of a training state, each of which becomes a folder."""
    items = {
        "variables": {"params": state.params, "batch_stats": state.batch_stats},
        "training": {"step": state.step, "opt_state": state.opt_state},
    }
    if state.ema is not None:
        items["ema"] = state.ema
    return items


def _from_items(template: Any, items: Mapping[str, Any]) -> Any:
    return template.replace(**items["variables"], **items["training"], ema=items.get("ema"))


def _restore(folder: epath.Path, template: Any) -> Any:
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=getattr(x, "sharding", None)),
        template,
    )
    return ocp.StandardCheckpointHandler().restore(folder, args=ocp.args.StandardRestore(abstract))


def _structure(folder: epath.Path) -> Any:
    return ocp.StandardCheckpointHandler().metadata(folder).tree


def _flat(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path): (
            tuple(leaf.shape),
            np.dtype(leaf.dtype).name,
        )
        for path, leaf in leaves
    }


def _check_structure(folder: epath.Path, name: str, template: Any) -> None:
    """Compares names, shapes and dtypes: Orbax casts dtypes in silence."""
    if not (folder / name).exists():
        raise _StructureError(
            f"checkpoint {folder} has no part {name!r}, which this configuration needs"
        )
    found, wanted = _flat(_structure(folder / name)), _flat(template)
    problems = [f"missing in the checkpoint: {key}" for key in wanted.keys() - found.keys()]
    problems += [f"unexpected in the checkpoint: {key}" for key in found.keys() - wanted.keys()]
    problems += [
        f"{key}: checkpoint has {found[key][1]}{list(found[key][0])},"
        f" expected {wanted[key][1]}{list(wanted[key][0])}"
        for key in wanted.keys() & found.keys()
        if found[key] != wanted[key]
    ]
    if problems:
        shown = "\n  ".join(sorted(problems)[:10])
        raise _StructureError(
            f"checkpoint {folder}/{name} does not fit, {len(problems)} differences:\n  {shown}"
        )


def _read(folder: epath.Path, reason: str) -> Checkpoint:
    metadata = _metadata(folder)
    part = "ema" if (folder / "ema").exists() else "variables"
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    template = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), _structure(folder / part)
    )
    metric = _metric(folder)
    logger.info("checkpoint %s (%s; %s; mIoU %s)", folder, reason, part, metric)
    return Checkpoint(
        variables=_restore(folder / part, template),
        metadata=metadata,
        step=int(folder.name),
        path=str(folder),
        metric=metric,
    )


def _metadata(folder: epath.Path) -> dict[str, Any]:
    metadata = json.loads((folder / "metadata" / "metadata").read_text())
    version = metadata.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"checkpoint {folder} has format version {version!r}; this hrnet_jax reads version"
            f" {FORMAT_VERSION} only"
        )
    return metadata


def _metric(folder: epath.Path) -> float | None:
    file = folder / "metrics" / "metrics"
    return json.loads(file.read_text())["miou"] if file.exists() else None


def _rank(miou: float | None) -> float:
    return -math.inf if miou is None else miou


def _defect(folder: epath.Path) -> str:
    """Why a step's folder cannot be a complete checkpoint; empty if nothing is seen."""
    for name in (
        "_CHECKPOINT_METADATA",
        "metadata/metadata",
        "variables/_METADATA",
        "training/_METADATA",
    ):
        if not (folder / name).exists():
            return f"{name} is missing"
    try:
        json.loads((folder / "metadata" / "metadata").read_text())
    except ValueError as error:
        return f"metadata/metadata is no JSON ({error})"
    return ""


def _step_folders(root: epath.Path) -> list[tuple[epath.Path, str]]:
    folders = (folder for folder in root.iterdir() if folder.name.isdigit() and folder.is_dir())
    return [(folder, _defect(folder)) for folder in sorted(folders, key=lambda f: int(f.name))]


def _complete_steps(root: epath.Path) -> list[int]:
    steps = []
    for folder, reason in _step_folders(root):
        if reason:
            logger.warning("skipping the incomplete checkpoint %s: %s", folder, reason)
        else:
            steps.append(int(folder.name))
    return steps
