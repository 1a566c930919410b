"""Checkpoints, written during training, read to resume or for inference. Only this knows Orbax.

Layout of a run's folder:

    checkpoints/STEP/variables      parameters and batch statistics
                     ema            their moving averages (runs with EMA only)
                     training       step and optimizer state
                     arrays         JSON: names, types and shapes in the three, in their order
                     metadata       JSON: everything that is needed to rebuild the model
                     manifest.json  size and checksum of every file, and the score once there is one

Each of the first three holds one long vector for each type of number, all arrays one after the
other: writing the thousands of small arrays of these networks one by one takes fifteen times the
processor time.

A step's folder gets its name when it is complete, manifest included; until then, and while it is
removed, it has another one. Orbax notices missing files but restores flipped bits in silence, hence
the checksums: they are compared before anything is restored, and a damaged step is named and passed
over for the one before.

The first process writes: every process has all arrays. A save counts once all files are written and
each part could be opened again.

In a store such as gs:// nothing can be renamed. There a step is written into a local folder, and
copied when it is complete, the manifest last: a step without one is none.

Inference reads `ema` or `variables` and the metadata, never the optimizer's part, and no code is
loaded: all is JSON and plain arrays. The newest two steps and the best one by score are kept.
"""

import contextlib
import dataclasses
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import xxhash
from etils import epath
from flax import traverse_util
from jax.experimental import multihost_utils

from hrnet_jax.checkpoints import weights_file
from hrnet_jax.runtime import sharding, storage

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2
FOLDER = "checkpoints"
MANIFEST = "manifest.json"
METADATA_KEYS = ("format_version", "model", "classes", "config", "version")
# Two, so that one remains if the newest turns out to be damaged.
NUM_NEWEST = 2
DTYPES = ("float64", "float32", "bfloat16", "float16", "int64", "int32", "uint32", "uint8", "bool")
# Far more than the largest network with its optimizer; what claims to be larger is not restored.
MAX_BYTES = 2**35
# Name, type and shape of an array.
Entry = tuple[str, str, tuple[int, ...]]
_UNFINISHED = ".orbax-checkpoint-tmp"
_REMOVED = ".removed"
_BLOCK = 2**20


class SaveError(OSError):
    """A checkpoint could not be written; the message says what is left."""


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


def load_checkpoint(path: str, step: int | None = None, which: str = "best") -> Checkpoint:
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
    if not _step_folders(root):
        raise FileNotFoundError(
            f"no complete checkpoint in {root}: expected folders named by step with 'variables' and"
            " 'metadata' in them; give the --workdir of a training run"
        )
    if step is not None:
        if not (root / str(step)).exists():
            known = [int(folder.name) for folder in _step_folders(root)]
            raise FileNotFoundError(
                f"no complete checkpoint of step {step} in {root}; known: {known}"
            )
        return _read_given(root / str(step))
    scores = {s: m["score"] for s, m in _complete_steps(root).items()}
    scored = [s for s in scores if scores[s] is not None]
    newest = sorted(scores, reverse=True)
    best = sorted(scored, key=lambda s: (scores[s], s), reverse=True) if which == "best" else []
    for candidate in [*best, *(s for s in newest if s not in best)]:
        folder = root / str(candidate)
        if not _warn_of_damage(folder):
            return _read(folder, "the best by score" if candidate in best else "the newest")
    raise FileNotFoundError(
        f"no complete checkpoint in {root}: all of {[f.name for f in _step_folders(root)]} are"
        " damaged"
    )


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
                post_finalization_callback=self._write_manifest,
            ),
            multiprocessing_options=alone,
        )

    def _tidy(self) -> None:
        if self._in_store:
            for folder in _step_folders(self._root):
                if not (folder / MANIFEST).exists():
                    logger.info("removing %s, which was not written or removed to the end", folder)
                    folder.rmtree()
        for path in _inside(self._root):
            if _UNFINISHED in path.name:
                logger.info("removing %s, a save that was not finished", path)
                path.rmtree()
            elif path.name.endswith(_REMOVED):
                path.rmtree()
        for folder in reversed(_step_folders(self._root)):
            if not _warn_of_damage(folder):
                break
            number = 0
            while (target := self._root / f"damaged-{folder.name}-{number}").exists():
                number += 1
            folder.rename(target)

    def steps(self) -> list[int]:
        """The complete steps in ascending order."""
        return sorted(_complete_steps(self._root))

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
            entries = {name: _entries(tree) for name, tree in items.items()}
            self._described = {key: (entries, {n: _vectors(e) for n, e in entries.items()})}
        entries, vectors = self._described[key]
        for name, tree in items.items():
            _pack(tree, entries[name], vectors[name])
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

    def score(self, step: int) -> tuple[float | None] | None:
        """(score,) if `step` was evaluated, None inside where it was not finite; else None."""
        manifest = _complete_steps(self._root).get(step)
        return (manifest["score"],) if manifest and manifest["evaluated"] else None

    def set_score(self, step: int, score: float) -> None:
        """Records the validation score of a saved step, by which the best one is kept.

        Raises:
          SaveError: if the step's write failed.
        """
        self.wait()
        if jax.process_index() == 0:
            folder = self._root / str(step)
            # A score that is not finite is as good as none: it must not win over others.
            finite = float(score) if math.isfinite(score) else None
            _write_manifest(folder, _manifest(folder) | {"score": finite, "evaluated": True})
        _wait_for_all(f"score of step {step}")

    def metadata(self) -> dict[str, Any] | None:
        """The metadata of the newest complete step, None for a new run."""
        steps = self.steps()
        return _metadata(self._root / str(steps[-1])) if steps else None

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
            _check_structure(folder, name, tree)
            leaves, treedef = jax.tree.flatten(tree)
            placed = map(_place, _restore(folder, name), leaves)
            items[name] = jax.tree.unflatten(treedef, placed)
        return _from_items(template, items)

    def _write_manifest(self) -> None:
        """Called when all files are written, before the folder gets its name."""
        folder = self._local / f"{self._writing}{_UNFINISHED}"
        for name in json.loads((folder / "arrays" / "metadata").read_text()):
            with _opened(folder, name):
                pass
        files = {name: [size, _checksum(file)] for name, file, size in _files(folder)}
        _write_manifest(folder, {"files": files, "score": None, "evaluated": False})
        if self._in_store:
            storage.upload(folder, self._root / str(self._writing), last=MANIFEST)

    def _prune(self) -> None:
        """Removes steps that are neither new nor the best."""
        manifests = _complete_steps(self._root)
        scores = {s: m["score"] for s, m in manifests.items() if m["score"] is not None}
        kept = sorted(manifests)[-NUM_NEWEST:]
        kept += [max(scores, key=lambda s: (scores[s], s))] if scores else []
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
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(items)) + _BLOCK
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
            f"the checkpoint of step {step} could not be written: {_first_line(error)};"
            f" {self._left()}"
        )

    def _left(self) -> str:
        steps = self.steps()
        return f"intact in {self._root}: {steps}" if steps else "no earlier one exists"


# ---- manifests


def _files(folder: epath.Path) -> Iterator[tuple[str, epath.Path, int]]:
    """(name inside the folder, file, size), in order of names, of all that we read.

    Neither the manifest itself nor Orbax's file of times, which it completes after the manifest.
    """
    if storage.in_store(folder):
        for name, size in sorted(storage.sizes_below(str(folder)).items()):
            if not name.startswith((MANIFEST, "_CHECKPOINT_METADATA")):
                yield name, folder / name, size
        return
    pending = [(path.name, path) for path in folder.iterdir()]
    while pending:
        name, path = min(pending)
        pending.remove((name, path))
        if os.path.islink(path):  # no checkpoint has any; one may lead anywhere
            continue
        if path.is_dir():
            pending += [(f"{name}/{inside.name}", inside) for inside in path.iterdir()]
        elif path.is_file() and not name.startswith((MANIFEST, "_CHECKPOINT_METADATA")):
            yield name, path, path.stat().length


def _checksum(file: epath.Path) -> str:
    """XXH3: against rot, not against intent. It takes a third of the time of CRC-32."""
    value = xxhash.xxh3_64()
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK):
            value.update(block)
    return value.hexdigest()


def _write_manifest(folder: epath.Path, manifest: dict[str, Any]) -> None:
    body = json.dumps(manifest, sort_keys=True)
    text = json.dumps({"manifest": manifest, "checksum": xxhash.xxh3_64_hexdigest(body.encode())})
    storage.write_text(folder / MANIFEST, text)


def _manifest(folder: epath.Path) -> dict[str, Any]:
    """Reads a step's manifest.

    Raises:
      ValueError: saying what is wrong with it.
    """
    file = folder / MANIFEST
    if not file.is_file():
        _refuse_other_version(folder)
        raise ValueError(f"{MANIFEST} is missing: the save was not completed")
    try:
        contents = json.loads(file.read_text())
        manifest = contents["manifest"]
        body = json.dumps(manifest, sort_keys=True)
        if contents["checksum"] != xxhash.xxh3_64_hexdigest(body.encode()):
            raise ValueError("it does not have its checksum")
        well_formed = (
            isinstance(manifest["evaluated"], bool)
            and (manifest["score"] is None or math.isfinite(manifest["score"]))
            and all(type(n) is int and type(c) is str for n, c in manifest["files"].values())
        )
        if not well_formed:
            raise ValueError("malformed")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{MANIFEST} is damaged: {_first_line(error)}") from None
    return manifest


def _damage(folder: epath.Path) -> str:
    """What is wrong with a step's folder; empty if it is as it was written."""
    try:
        expected = _manifest(folder)["files"]
    except _OtherVersionError:
        raise
    except ValueError as error:
        return str(error)
    # Names come from the folder, so that a manifest cannot send us to read elsewhere.
    found = {name: (file, size) for name, file, size in _files(folder)}
    for name, (size, checksum) in sorted(expected.items()):
        if name not in found:
            return f"{name} is missing"
        if found[name][1] != size:
            return f"{name} has {found[name][1]} bytes, {size} were written"
        if _checksum(found[name][0]) != checksum:
            return f"{name} is damaged: its checksum is not what it was"
    for name in ("variables/_METADATA", "arrays/metadata", "metadata/metadata"):
        if name not in expected:
            return f"{name} is missing"
    return ""


def _warn_of_damage(folder: epath.Path) -> str:
    reason = _damage(folder)
    if reason:
        logger.warning("skipping the damaged checkpoint %s: %s", folder, reason)
    return reason


class _OtherVersionError(ValueError):
    """A checkpoint in a layout that this version does not read."""


def _refuse_other_version(folder: epath.Path) -> None:
    file = folder / "metadata" / "metadata"
    try:
        version = json.loads(file.read_text()).get("format_version")
    except (OSError, ValueError, AttributeError, RecursionError):
        return
    if version != FORMAT_VERSION:
        raise _OtherVersionError(
            f"checkpoint {folder} has format version {version!r}; this hrnet_jax reads version"
            f" {FORMAT_VERSION} only"
        )


def _inside(folder: epath.Path) -> list[epath.Path]:
    """What lies in a folder; stores have none that is empty."""
    return list(folder.iterdir()) if folder.exists() else []


def _step_folders(root: epath.Path) -> list[epath.Path]:
    """In ascending order, whatever is in them."""
    folders = (folder for folder in _inside(root) if folder.name.isdigit() and folder.is_dir())
    return sorted(folders, key=lambda folder: int(folder.name))


def _complete_steps(root: epath.Path) -> dict[int, dict[str, Any]]:
    """Step -> manifest, in ascending order; names the others in a warning."""
    manifests = {}
    for folder in _step_folders(root):
        try:
            manifests[int(folder.name)] = _manifest(folder)
        except _OtherVersionError:
            raise
        except ValueError as error:
            logger.warning("skipping the damaged checkpoint %s: %s", folder, error)
    return manifests


# ---- contents


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


def _entries(tree: Any) -> list[Entry]:
    """All arrays of a tree, in the order in which they are written."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [
        (
            "/".join(
                str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path
            ),
            np.dtype(leaf.dtype).name,
            tuple(np.shape(leaf)),
        )
        for path, leaf in leaves
    ]


def _lengths(entries: list[Entry]) -> dict[str, int]:
    """Elements of the vector of each type."""
    lengths: dict[str, int] = {}
    for _, dtype, shape in entries:
        lengths[dtype] = lengths.get(dtype, 0) + math.prod(shape)
    return lengths


class _Lasting(np.ndarray):
    """Says to Orbax, which copies arrays before it returns, that this one stays as it is."""

    def __deepcopy__(self, memo: Any) -> "_Lasting":
        return self


def _vectors(entries: list[Entry]) -> dict[str, np.ndarray]:
    """Room for the arrays, one vector for each type."""
    lengths = _lengths(entries).items()
    return {dtype: np.empty(n, np.dtype(dtype)).view(_Lasting) for dtype, n in lengths}


def _pack(tree: Any, entries: list[Entry], vectors: dict[str, np.ndarray]) -> None:
    """Copies a tree of arrays, which each host has whole, into the vectors."""
    leaves = jax.tree.leaves(tree)
    for leaf in leaves:
        if isinstance(leaf, jax.Array):
            leaf.copy_to_host_async()
    ends = dict.fromkeys(vectors, 0)
    for leaf, (_, dtype, shape) in zip(leaves, entries, strict=True):
        start, ends[dtype] = ends[dtype], ends[dtype] + math.prod(shape)
        vectors[dtype][start : ends[dtype]] = np.asarray(leaf).ravel()


def _unpack(vectors: Mapping[str, np.ndarray], entries: list[Entry]) -> list[np.ndarray]:
    ends, arrays = dict.fromkeys(vectors, 0), []
    for _, dtype, shape in entries:
        start, ends[dtype] = ends[dtype], ends[dtype] + math.prod(shape)
        arrays.append(vectors[dtype][start : ends[dtype]].reshape(shape))
    return arrays


def _read_entries(folder: epath.Path, name: str) -> list[Entry]:
    """What a part of a checkpoint holds, by its list.

    Raises:
      ValueError: naming the folder, if there is no such part or its list is malformed.
    """
    try:
        parts = json.loads((folder / "arrays" / "metadata").read_text())
        if name not in parts:
            raise ValueError(f"there is no part {name!r}, which this configuration needs")
        entries = [(str(path), dtype, tuple(shape)) for path, dtype, shape in parts[name]]
        for path, dtype, shape in entries:
            if dtype not in DTYPES or any(type(n) is not int or n < 0 for n in shape):
                raise ValueError(f"{path!r} is an array {dtype}{list(shape)}")
        size = sum(n * np.dtype(dtype).itemsize for dtype, n in _lengths(entries).items())
        if size > MAX_BYTES:
            raise ValueError(f"{size} bytes of arrays, more than any network has")
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"checkpoint {folder}: {_first_line(error)}") from None
    return entries


def _restore(folder: epath.Path, name: str) -> list[np.ndarray]:
    """The arrays of a part, in the order of its list.

    Raises:
      ValueError: naming the folder, if it does not hold what its list says.
    """
    with _opened(folder, name) as (handler, part, template):
        vectors = handler.restore(part, args=ocp.args.StandardRestore(template))
    return _unpack(vectors, _read_entries(folder, name))


@contextlib.contextmanager
def _opened(folder: epath.Path, name: str) -> Iterator[tuple[Any, epath.Path, dict[str, Any]]]:
    """A part opened for reading: Orbax's handler, where the part is and room for its vectors.

    Raises:
      ValueError: naming the folder, if the part cannot be opened or read, or does not hold what its
        list says.
    """
    wanted = {k: ((n,), np.dtype(k)) for k, n in _lengths(_read_entries(folder, name)).items()}
    handler = ocp.StandardCheckpointHandler()
    try:
        with storage.local(folder / name) as part:
            part = epath.Path(part)
            found = {k: (x.shape, np.dtype(x.dtype)) for k, x in handler.metadata(part).items()}
            if found != wanted:
                raise ValueError(f"holds {found}, its list says {wanted}")
            yield handler, part, {k: np.empty(*description) for k, description in wanted.items()}
    except Exception as error:  # whatever contents that are none provoke in the reader
        raise ValueError(f"{folder / name} cannot be read: {_first_line(error)}") from error


def _place(array: np.ndarray, template: Any) -> jax.Array:
    """Puts an array where the template is, on any number of hosts."""
    where = getattr(template, "sharding", None)
    return jax.numpy.asarray(array) if where is None else sharding.place_whole(array, where)


def _check_structure(folder: epath.Path, name: str, template: Any) -> None:
    """Compares names, shapes and dtypes with those of the template."""
    found, wanted = (
        {path: (dtype, shape) for path, dtype, shape in entries}
        for entries in (_read_entries(folder, name), _entries(template))
    )
    problems = [f"missing in the checkpoint: {key}" for key in wanted.keys() - found.keys()]
    problems += [f"unexpected in the checkpoint: {key}" for key in found.keys() - wanted.keys()]
    problems += [
        f"{key}: checkpoint has {found[key][0]}{list(found[key][1])},"
        f" expected {wanted[key][0]}{list(wanted[key][1])}"
        for key in wanted.keys() & found.keys()
        if found[key] != wanted[key]
    ]
    if problems:
        shown = "\n  ".join(sorted(problems)[:10])
        raise ValueError(
            f"checkpoint {folder}/{name} does not fit, {len(problems)} differences:\n  {shown}"
        )


def _read_given(folder: epath.Path) -> Checkpoint:
    if reason := _damage(folder):
        raise ValueError(f"no complete checkpoint at {folder}: {reason}")
    return _read(folder, "as given")


def _read(folder: epath.Path, reason: str) -> Checkpoint:
    metadata = _metadata(folder)
    part = "ema" if (folder / "ema").exists() else "variables"
    score = _manifest(folder)["score"]
    logger.info("checkpoint %s (%s; %s; score %s)", folder, reason, part, score)
    device = jax.local_devices()[0]
    names = [name for name, _, _ in _read_entries(folder, part)]
    arrays = [jax.device_put(array, device) for array in _restore(folder, part)]
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


def _metadata(folder: epath.Path) -> dict[str, Any]:
    """A step's metadata.

    Raises:
      ValueError: naming the folder, if they are not what a training run writes.
    """
    _refuse_other_version(folder)
    try:
        metadata = json.loads((folder / "metadata" / "metadata").read_text())
        if missing := set(METADATA_KEYS) - metadata.keys():
            raise ValueError(f"lacks {sorted(missing)}")
        known = weights_file.MODEL_TYPES
        if odd := [k for k, v in metadata["model"].items() if type(v) is not known.get(k)]:
            raise ValueError(f"unknown or of a wrong type in its model: {odd}")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"metadata of checkpoint {folder}: {_first_line(error)}") from None
    return metadata


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _wait_for_all(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
