"""Finds the steps of a run that are complete and undamaged: manifests, checksums, metadata.

A step without a manifest is incomplete. A step whose files differ from their checksums is damaged.
"""

import json
import logging
import math
import os
from collections.abc import Iterator
from typing import Any

import xxhash
from etils import epath

from hrnet_jax.checkpoints import weights_file
from hrnet_jax.runtime import storage

logger = logging.getLogger(__name__)
FORMAT_VERSION = 2
FOLDER = "checkpoints"
MANIFEST = "manifest.json"
METADATA_KEYS = ("format_version", "model", "classes", "config", "version")
BLOCK = 2**20


def step_files(folder: epath.Path) -> Iterator[tuple[str, epath.Path, int]]:
    """Yields (name inside the folder, file, bytes) of every file that is read, sorted by name.

    Leaves out the manifest itself, and Orbax's file of times, which Orbax completes after the
    manifest is written.
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
        if os.path.islink(path):  # a checkpoint has none, and a link may lead outside the folder
            continue
        if path.is_dir():
            pending += [(f"{name}/{inside.name}", inside) for inside in path.iterdir()]
        elif path.is_file() and not name.startswith((MANIFEST, "_CHECKPOINT_METADATA")):
            yield name, path, path.stat().length


def checksum(file: epath.Path) -> str:
    """The XXH3 checksum of a file, in a third of the time of CRC-32.

    It detects damage. It does not protect against somebody who changes file and checksum.
    """
    value = xxhash.xxh3_64()
    with file.open("rb") as stream:
        while block := stream.read(BLOCK):
            value.update(block)
    return value.hexdigest()


def write_manifest(folder: epath.Path, manifest: dict[str, Any]) -> None:
    """Writes a step's manifest with a checksum of its own."""
    body = json.dumps(manifest, sort_keys=True)
    text = json.dumps({"manifest": manifest, "checksum": xxhash.xxh3_64_hexdigest(body.encode())})
    storage.write_text(folder / MANIFEST, text)


def read_manifest(folder: epath.Path) -> dict[str, Any]:
    """Reads a step's manifest.

    Returns:
      "files": name -> [bytes, checksum]; "score": the metric or None; "evaluated": whether there
      was an evaluation (its metric may have been NaN, which is kept as None).

    Raises:
      OtherVersionError: if the checkpoint has another format version.
      ValueError: if the manifest is missing or damaged.
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
            raise ValueError("its checksum does not match")
        well_formed = (
            isinstance(manifest["evaluated"], bool)
            and (manifest["score"] is None or math.isfinite(manifest["score"]))
            and all(type(n) is int and type(c) is str for n, c in manifest["files"].values())
        )
        if not well_formed:
            raise ValueError("malformed")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{MANIFEST} is damaged: {first_line(error)}") from None
    return manifest


def find_damage(folder: epath.Path) -> str:
    """Says what is wrong with a step's folder; empty if it is as it was written."""
    try:
        expected = read_manifest(folder)["files"]
    except OtherVersionError:
        raise
    except ValueError as error:
        return str(error)
    # Names come from the folder, so that a manifest cannot send us to read elsewhere.
    found = {name: (file, size) for name, file, size in step_files(folder)}
    for name, (size, written) in sorted(expected.items()):
        if name not in found:
            return f"{name} is missing"
        if found[name][1] != size:
            return f"{name} has {found[name][1]} bytes, {size} were written"
        if checksum(found[name][0]) != written:
            return f"{name} is damaged: its checksum does not match"
    for name in ("variables/_METADATA", "arrays/metadata", "metadata/metadata"):
        if name not in expected:
            return f"{name} is missing"
    return ""


def warn_of_damage(folder: epath.Path) -> str:
    """As `find_damage`, and logs a warning."""
    reason = find_damage(folder)
    if reason:
        logger.warning("skipping the damaged checkpoint %s: %s", folder, reason)
    return reason


class OtherVersionError(ValueError):
    """A checkpoint in a layout that this version does not read."""


def _refuse_other_version(folder: epath.Path) -> None:
    file = folder / "metadata" / "metadata"
    try:
        version = json.loads(file.read_text()).get("format_version")
    except (OSError, ValueError, AttributeError, RecursionError):
        return
    if version != FORMAT_VERSION:
        raise OtherVersionError(
            f"checkpoint {folder} has format version {version!r}; this hrnet_jax reads version"
            f" {FORMAT_VERSION} only"
        )


def paths_in(folder: epath.Path) -> list[epath.Path]:
    """The contents of a folder; empty where there is no folder, for stores keep no empty ones."""
    return list(folder.iterdir()) if folder.exists() else []


def step_folders(root: epath.Path) -> list[epath.Path]:
    """The folders named by a number, in ascending order, complete or not."""
    folders = (folder for folder in paths_in(root) if folder.name.isdigit() and folder.is_dir())
    return sorted(folders, key=lambda folder: int(folder.name))


def complete_steps(root: epath.Path) -> dict[int, dict[str, Any]]:
    """Step -> manifest, in ascending order; a warning names the steps that are incomplete."""
    manifests = {}
    for folder in step_folders(root):
        try:
            manifests[int(folder.name)] = read_manifest(folder)
        except OtherVersionError:
            raise
        except ValueError as error:
            logger.warning("skipping the damaged checkpoint %s: %s", folder, error)
    return manifests


def read_metadata(folder: epath.Path) -> dict[str, Any]:
    """A step's metadata.

    Raises:
      ValueError: naming the folder, if it is not what a training run writes.
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
        raise ValueError(f"metadata of checkpoint {folder}: {first_line(error)}") from None
    return metadata


def first_line(error: Exception) -> str:
    """The first line of an error's message, at most 300 characters; its class if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
