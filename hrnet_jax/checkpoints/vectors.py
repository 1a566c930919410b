"""Packs the arrays of a checkpoint into one long vector for each type of number.

Orbax writes and reads the vectors. The list "arrays" beside them says where in them each array is.
"""

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from hrnet_jax.checkpoints.manifest import first_line
from hrnet_jax.runtime import storage

DTYPES = ("float64", "float32", "bfloat16", "float16", "int64", "int32", "uint32", "uint8", "bool")
# 32 GiB: far more than the largest network with its optimizer. A list that claims more is refused.
MAX_BYTES = 2**35
# Name, type and shape of an array.
Entry = tuple[str, str, tuple[int, ...]]


def describe_arrays(tree: Any) -> list[Entry]:
    """Describes all arrays of a tree, in the order in which they are written."""
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
    """The number of elements of each type's vector."""
    lengths: dict[str, int] = {}
    for _, dtype, shape in entries:
        lengths[dtype] = lengths.get(dtype, 0) + math.prod(shape)
    return lengths


class _Lasting(np.ndarray):
    """An array that Orbax need not copy before `save` returns: it does not change meanwhile."""

    def __deepcopy__(self, memo: Any) -> "_Lasting":
        return self


def make_vectors(entries: list[Entry]) -> dict[str, np.ndarray]:
    """Allocates the vectors for the arrays, one for each type."""
    lengths = _lengths(entries).items()
    return {dtype: np.empty(n, np.dtype(dtype)).view(_Lasting) for dtype, n in lengths}


def pack(tree: Any, entries: list[Entry], vectors: dict[str, np.ndarray]) -> None:
    """Copies a tree of replicated arrays into the vectors."""
    leaves = jax.tree.leaves(tree)
    for leaf in leaves:
        if isinstance(leaf, jax.Array):
            leaf.copy_to_host_async()
    ends = dict.fromkeys(vectors, 0)
    for leaf, (_, dtype, shape) in zip(leaves, entries, strict=True):
        start, ends[dtype] = ends[dtype], ends[dtype] + math.prod(shape)
        vectors[dtype][start : ends[dtype]] = np.asarray(leaf).ravel()


def unpack(vectors: Mapping[str, np.ndarray], entries: list[Entry]) -> list[np.ndarray]:
    """The arrays in the vectors, as views, in the order of their descriptions."""
    ends, arrays = dict.fromkeys(vectors, 0), []
    for _, dtype, shape in entries:
        start, ends[dtype] = ends[dtype], ends[dtype] + math.prod(shape)
        arrays.append(vectors[dtype][start : ends[dtype]].reshape(shape))
    return arrays


def read_descriptions(folder: epath.Path, name: str) -> list[Entry]:
    """Reads which arrays a part of a checkpoint holds.

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
        raise ValueError(f"checkpoint {folder}: {first_line(error)}") from None
    return entries


def restore_arrays(folder: epath.Path, name: str) -> list[np.ndarray]:
    """The arrays of a part, in the order of its list.

    Raises:
      ValueError: naming the folder, if it does not hold what its list says.
    """
    with opened_part(folder, name) as (handler, part, template):
        vectors = handler.restore(part, args=ocp.args.StandardRestore(template))
    return unpack(vectors, read_descriptions(folder, name))


@contextlib.contextmanager
def opened_part(folder: epath.Path, name: str) -> Iterator[tuple[Any, epath.Path, dict[str, Any]]]:
    """Opens a part: yields Orbax's handler, the part's local folder and vectors to read into.

    Raises:
      ValueError: naming the folder, if the part cannot be opened or read, or does not hold what its
        list says.
    """
    wanted = {k: ((n,), np.dtype(k)) for k, n in _lengths(read_descriptions(folder, name)).items()}
    handler = ocp.StandardCheckpointHandler()
    try:
        with storage.local(folder / name) as part:
            part = epath.Path(part)
            found = {k: (x.shape, np.dtype(x.dtype)) for k, x in handler.metadata(part).items()}
            if found != wanted:
                raise ValueError(f"contains {found}, but its list says {wanted}")
            yield handler, part, {k: np.empty(*description) for k, description in wanted.items()}
    except Exception as error:  # damaged contents raise anything in Orbax and TensorStore
        raise ValueError(f"{folder / name} cannot be read: {first_line(error)}") from error


def check_structure(folder: epath.Path, name: str, template: Any) -> None:
    """Compares names, shapes and dtypes with those of the template."""
    found, wanted = (
        {path: (dtype, shape) for path, dtype, shape in entries}
        for entries in (read_descriptions(folder, name), describe_arrays(template))
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
