"""Writes and restores the checkpoints of a training run.

Layout of a run's folder:

    checkpoints/STEP/variables      parameters and batch statistics
                     ema            their moving averages (runs with EMA only)
                     training       step and optimizer state
                     arrays         JSON: names, types and shapes in the three, in their order
                     metadata       JSON: everything that is needed to rebuild the model
                     manifest.json  size and checksum of every file; the metric ("score") once there
                                    is one

Each of the first three holds one long vector for each type of number, all arrays one after the
other (`vectors`): to write the thousands of small arrays of these networks one by one takes fifteen
times the processor time.

A step's folder gets its final name when it is complete, manifest included. Until then, and while it
is removed, it has another name. Orbax notices missing files but restores flipped bits without an
error. The checksums catch those (`manifest`): they are compared before anything is restored, and a
damaged step is named and skipped for the one before.

Only the first process writes; it has all arrays, since they are replicated. A save counts once all
files are written and each part was opened again.

A store such as gs:// cannot rename. There a step is written into a local folder and copied when it
is complete, the manifest last: a step without a manifest does not count.

Inference (`load`) reads `ema` or `variables` and the metadata, never the optimizer's part. Nothing
that is read is executed: all of it is JSON and plain arrays. The newest two steps and the best one
by metric are kept.
"""

import contextlib
import json
import logging
import math
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from hrnet_jax.checkpoints.manifest import (
    BLOCK,
    FOLDER,
    MANIFEST,
    METADATA_KEYS,
    checksum,
    complete_steps,
    first_line,
    paths_in,
    read_manifest,
    read_metadata,
    step_files,
    step_folders,
    warn_of_damage,
    write_manifest,
)
from hrnet_jax.checkpoints.vectors import (
    Entry,
    check_structure,
    describe_arrays,
    make_vectors,
    opened_part,
    pack,
    restore_arrays,
)
from hrnet_jax.runtime import sharding, storage

logger = logging.getLogger(__name__)

# Two, so that one remains if the newest turns out to be damaged.
NUM_NEWEST = 2
_UNFINISHED = ".orbax-checkpoint-tmp"
_REMOVED = ".removed"


class SaveError(OSError):
    """A checkpoint could not be written; the message says what is left."""


class CheckpointStore:
    """Writes and restores the training states of one run."""

    def __init__(self, workdir: str):
        """Opens `workdir`/checkpoints and makes sure that its newest step is sound.

        Steps newer than the first sound one are named in a warning and renamed, so that steps of
        these numbers can be written again. What a killed process left unfinished is removed.

        Raises:
          ValueError: if the folder has a layout of another version.
        """
        self._root = storage.absolute(workdir) / FOLDER
        self._first = jax.process_index() == 0
        self._in_store = storage.in_store(self._root)
        self._writing: int | None = None
        # Lists of the arrays, and the vectors into which they are copied: by structure, the last.
        self._described: dict[Any, tuple[dict[str, list[Entry]], dict[str, Any]]] = {}
        if self._first:
            self._root.mkdir(parents=True, exist_ok=True)
            self._tidy()
        _wait_for_all("checkpoints opened")
        # Where Orbax writes.
        self._staging = contextlib.ExitStack()
        self._local = epath.Path(
            self._staging.enter_context(
                tempfile.TemporaryDirectory(prefix="hrnet_jax-")
                if self._in_store
                else storage.plain(self._root)
            )
        )
        # The handler has to know, too, else it waits for the other processes.
        alone = ocp.options.MultiprocessingOptions(
            active_processes={jax.process_index()}, primary_host=jax.process_index()
        )
        self._checkpointer = ocp.AsyncCheckpointer(
            ocp.CompositeCheckpointHandler(
                composite_options=ocp.CompositeOptions(multiprocessing_options=alone)
            ),
            async_options=ocp.options.AsyncOptions(
                post_finalization_callback=self._complete,
            ),
            multiprocessing_options=alone,
        )

    def _tidy(self) -> None:
        if self._in_store:
            for folder in step_folders(self._root):
                if not (folder / MANIFEST).exists():
                    logger.info("removing %s, an unfinished save or removal", folder)
                    folder.rmtree()
        for path in paths_in(self._root):
            if _UNFINISHED in path.name:
                logger.info("removing %s, an unfinished save", path)
                path.rmtree()
            elif path.name.endswith(_REMOVED):
                path.rmtree()
        for folder in reversed(step_folders(self._root)):
            if not warn_of_damage(folder):
                break
            number = 0
            while (target := self._root / f"damaged-{folder.name}-{number}").exists():
                number += 1
            folder.rename(target)

    def steps(self) -> list[int]:
        """The complete steps in ascending order."""
        return sorted(complete_steps(self._root))

    def save(self, state: Any, metadata: Mapping[str, Any]) -> None:
        """Starts to write a `TrainState`; returns as soon as the arrays are copied to the host.

        Waits for the save before, and removes what is not kept any more.

        Args:
          state: the training state; its own step names the checkpoint.
          metadata: all of `METADATA_KEYS`.

        Raises:
          ValueError: if a key of the metadata is missing.
          SaveError: if an earlier write failed or the disk has no room for this one.
        """
        missing = set(METADATA_KEYS) - set(metadata)
        if missing:
            raise ValueError(f"checkpoint metadata lacks {sorted(missing)}")
        self.wait()
        items = _items(state)
        if not self._first:
            return
        self._check_room(int(state.step), items)
        leaves, structure = jax.tree.flatten(items)
        key = structure, *((leaf.shape, leaf.dtype) for leaf in leaves)
        if key not in self._described:  # once in a run: both take longer than copying
            entries = {name: describe_arrays(tree) for name, tree in items.items()}
            self._described = {key: (entries, {n: make_vectors(e) for n, e in entries.items()})}
        entries, vectors = self._described[key]
        for name, tree in items.items():
            pack(tree, entries[name], vectors[name])
        args = {name: ocp.args.StandardSave(vectors[name]) for name in items}
        args["arrays"] = ocp.args.JsonSave(entries)
        args["metadata"] = ocp.args.JsonSave(dict(metadata))
        self._writing = int(state.step)
        try:
            self._checkpointer.save(
                self._local / str(self._writing), args=ocp.args.Composite(**args)
            )
        except OSError as error:
            raise self._failure(error) from error

    def check(self) -> None:
        """Raises SaveError if the write under way has failed; does not wait for it."""
        try:
            self._checkpointer.check_for_errors()
        except Exception as error:  # whatever the writers raise
            raise self._failure(error) from error

    def wait(self) -> None:
        """Blocks until everything is written, then removes what is not kept.

        Raises:
          SaveError: if a write failed.
        """
        try:
            self._checkpointer.wait_until_finished()
        except Exception as error:  # whatever the writers raise
            raise self._failure(error) from error
        self._writing = None
        if self._in_store:
            for folder in self._local.iterdir():
                folder.rmtree()
        if self._first:
            self._prune()

    def close(self) -> None:
        """Waits and releases the writer's threads; logs a write that failed."""
        try:
            self.wait()
        except SaveError as error:
            logger.error("%s", error)
        self._checkpointer.close()
        self._staging.close()

    def metric(self, step: int) -> tuple[float | None] | None:
        """(metric,) if `step` was evaluated, None inside where it was not finite; else None."""
        manifest = complete_steps(self._root).get(step)
        return (manifest["score"],) if manifest and manifest["evaluated"] else None

    def set_metric(self, step: int, metric: float) -> None:
        """Records the validation metric of a saved step, by which the best one is kept.

        Raises:
          SaveError: if the step's write failed.
        """
        self.wait()
        if jax.process_index() == 0:
            folder = self._root / str(step)
            # A metric that is not finite counts as none: NaN must not win over numbers.
            finite = float(metric) if math.isfinite(metric) else None
            write_manifest(folder, read_manifest(folder) | {"score": finite, "evaluated": True})
        _wait_for_all(f"metric of step {step}")

    def metadata(self) -> dict[str, Any] | None:
        """The metadata of the newest complete step, None for a new run."""
        steps = self.steps()
        return read_metadata(self._root / str(steps[-1])) if steps else None

    def restore(self, template: Any) -> Any | None:
        """Restores the newest step, or returns None if there is none.

        Args:
          template: a `TrainState` of arrays or `jax.ShapeDtypeStruct`s with shardings, which say
            where the restored arrays go; they may have been on other devices when they were saved.

        Raises:
          ValueError: if names, shapes or dtypes of the checkpoint differ from the template.
        """
        steps = self.steps()
        if not steps:
            return None
        folder = self._root / str(steps[-1])
        wanted = _items(template)
        items = {}
        for name, tree in wanted.items():
            check_structure(folder, name, tree)
            leaves, treedef = jax.tree.flatten(tree)
            placed = map(_place, restore_arrays(folder, name), leaves)
            items[name] = jax.tree.unflatten(treedef, placed)
        return _from_items(template, items)

    def _complete(self) -> None:
        """Called when all files are written, before the folder gets its name."""
        folder = self._local / f"{self._writing}{_UNFINISHED}"
        for name in json.loads((folder / "arrays" / "metadata").read_text()):
            with opened_part(folder, name):
                pass
        files = {name: [size, checksum(file)] for name, file, size in step_files(folder)}
        write_manifest(folder, {"files": files, "score": None, "evaluated": False})
        if self._in_store:
            storage.upload(folder, self._root / str(self._writing), last=MANIFEST)

    def _prune(self) -> None:
        """Removes steps that are neither new nor the best."""
        manifests = complete_steps(self._root)
        metrics = {s: m["score"] for s, m in manifests.items() if m["score"] is not None}
        kept = sorted(manifests)[-NUM_NEWEST:]
        kept += [max(metrics, key=lambda s: (metrics[s], s))] if metrics else []
        for step in manifests.keys() - set(kept):
            # A killed removal must not look like a damaged checkpoint.
            folder = self._root / str(step)
            if self._in_store:
                (folder / MANIFEST).unlink()
            else:
                folder = folder.rename(self._root / f"{step}{_REMOVED}")
            folder.rmtree()

    def _check_room(self, step: int, items: Mapping[str, Any]) -> None:
        # Uncompressed, as random numbers would be.
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(items)) + BLOCK
        free = shutil.disk_usage(self._local).free
        if free < needed:
            raise SaveError(
                f"no room for the checkpoint of step {step}: it needs up to {needed / 1e6:.0f} MB,"
                f" the disk of {self._root} has {free / 1e6:.0f} MB free; {self._left()}"
            )

    def _failure(self, error: Exception) -> SaveError:
        step, self._writing = self._writing, None
        if self._first:
            with contextlib.suppress(OSError):  # other files of it may still be written
                (self._local / f"{step}{_UNFINISHED}").rmtree(missing_ok=True)
        return SaveError(
            f"the checkpoint of step {step} could not be written: {first_line(error)};"
            f" {self._left()}"
        )

    def _left(self) -> str:
        steps = self.steps()
        return f"intact in {self._root}: {steps}" if steps else "no earlier one exists"


# ---- the parts of a training state


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


def _place(array: np.ndarray, template: Any) -> jax.Array:
    """Puts an array where the template is, on any number of hosts."""
    where = getattr(template, "sharding", None)
    return jax.numpy.asarray(array) if where is None else sharding.place_whole(array, where)


def _wait_for_all(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
