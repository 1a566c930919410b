"""Finds the networks in the contents of a checkpoint by structure: containers, prefixes, averages.

A network is found where the keys of a mapping, at any depth, end in keys that only HRNets have.
What precedes these is its prefix. Which of several networks is meant is said by the user (`key`)
or follows from the way in which trainers keep averaged weights beside the raw ones.
"""

import collections
import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from hrnet_jax.pytorch.layouts import LAYOUTS, Layout, anchors
from hrnet_jax.pytorch.unpickle import NumpyArray, Placeholder, Tensor

WEIGHTS = ("auto", "raw", "ema")
_MAX_DEPTH = 20
# Far more than any file has: each takes a while to be looked at.
_MAX_NETWORKS = 50
# Words in the keys of averaged weights, as timm, Lightning, YOLO, DETR, EDM and others name them.
_AVERAGE_WORDS = {"ema", "swa", "average", "averaged", "averages", "avg", "shadow", "polyak"}
_AVERAGED_BUFFER = "ema_"
_KINDS = {
    "raw": "raw weights",
    "ema": "averaged weights",
    "unstarted": "to be averaged later; still the first weights of the training",
}


@dataclasses.dataclass(frozen=True)
class Network:
    """A network in a checkpoint.

    Attributes:
      path: the keys that lead to the mapping that holds it.
      prefix: what the keys of its backbone begin with in the mapping.
      entries: the mapping.
      tensors: those entries that are tensors.
      fits: (layout, prefix of the whole network) of each layout that its backbone may belong to.
      weights: "raw", "ema", or "unstarted": averages that nothing has been added to.
    """

    path: tuple[str, ...]
    prefix: str
    entries: Mapping[str, Any] = dataclasses.field(repr=False)
    tensors: Mapping[str, Tensor] = dataclasses.field(repr=False)
    fits: tuple[tuple[Layout, str], ...] = dataclasses.field(repr=False)
    weights: str

    @property
    def key(self) -> str:
        """What chooses it among others."""
        return ".".join((*self.path, self.prefix.rstrip("."))).strip(".")

    def describe(self) -> str:
        """For messages."""
        return f"{self.key or 'the top level'!r} ({_KINDS[self.weights]})"


def find(contents: Any) -> list[Network]:
    """All networks, each mapping once, in the order of the file.

    Args:
      contents: nested mappings and lists with tensors, as `files.open_tensors` gives them.

    Raises:
      ValueError: more networks than any file has.
    """
    ends = tuple({anchor for layout in LAYOUTS for anchor in anchors(layout)})
    found = []
    for path, entries in mappings(contents):
        names = [k for k in entries if isinstance(k, str) and k.endswith(ends)]
        sites: dict[str, dict[tuple[Layout, str], None]] = {}
        for layout in LAYOUTS:
            for anchor in anchors(layout):
                for name in names:
                    if name == anchor or name.endswith(f".{anchor}"):
                        prefix = name.removesuffix(anchor)
                        sites.setdefault(prefix + layout.prefix, {})[layout, prefix] = None
        if sites:
            if len(found) + len(sites) > _MAX_NETWORKS:
                raise ValueError(f"holds more than {_MAX_NETWORKS} networks")
            tensors = {str(k): t for k, v in entries.items() if (t := as_tensor(v)) is not None}
            for prefix, fits in sites.items():
                weights = _kind(contents, path, prefix, entries)
                found.append(Network(path, prefix, entries, tensors, tuple(fits), weights))
    return found


def choose(networks: list[Network], key: str | None, weights: str) -> Network:
    """The network that is meant.

    Args:
      networks: all that fit.
      key: of the wanted one; a part of its path, from either end, does where it is unique.
      weights: "raw", "ema", or "auto", which prefers averaged weights.

    Raises:
      ValueError: none or several are meant; the message lists what there is.
    """
    listed = "; ".join(network.describe() for network in networks)
    if key is not None:
        exact = [n for n in networks if key in (n.key, ".".join(n.path))]
        networks = exact or [
            n for n in networks if f".{n.key}.".endswith(f".{key}.") or key in (*n.path, n.prefix)
        ]
        if not networks:
            raise ValueError(f"no network under key={key!r}; found: {listed}")
        if len(networks) == 1 and weights == "auto":
            return networks[0]
    of_kind = {kind: [n for n in networks if n.weights == kind] for kind in ("ema", "raw")}
    if weights == "auto":
        weights = "ema" if of_kind["ema"] else "raw"
        several = any(len(group) > 1 for group in of_kind.values())
    else:
        several = len(of_kind[weights]) > 1
    if several:
        raise ValueError(
            f"holds several networks: {listed}; say which: key='...' in Python, --key=... for a"
            " tool, or weights='raw' or 'ema'"
        )
    if not of_kind[weights]:
        raise ValueError(f"holds no {weights} weights (weights={weights!r}); found: {listed}")
    return of_kind[weights][0]


def averaged_buffers(network: Network) -> dict[str, Tensor]:
    """The second set of weights that mmcv keeps in buffers; empty where there is none.

    Its hook names them after the parameters, with "ema_" in front and "_" for each dot. They and
    the parameters are exchanged at the end of every epoch of an epoch-based run, so that which set
    is the averaged one depends on the kind of run and on the hooks' order.
    """
    names = {k: _AVERAGED_BUFFER + k.replace(".", "_") for k in network.tensors}
    return {k: network.tensors[name] for k, name in names.items() if name in network.tensors}


def as_tensor(value: Any) -> Tensor | None:
    """A tensor of a file, of NumPy or of PyTorch; None for anything else."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, NumpyArray):
        return value.tensor
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], NumpyArray):
        return value[1].tensor  # PaddlePaddle's (name, array)
    if isinstance(value, Placeholder | Mapping | str | int | float | list | tuple | None):
        return None
    if hasattr(value, "detach"):  # a PyTorch tensor
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":  # NumPy has no such type
            dtype = np.dtype(ml_dtypes.bfloat16)
            return Tensor(dtype, tuple(value.shape), lambda: value.float().numpy())
    array = np.asarray(value)
    return None if array.dtype == object else Tensor(array.dtype, array.shape, lambda: array)


def kind_name(value: Any) -> str:
    """What to call a value that is no tensor in a message."""
    return value.name if isinstance(value, Placeholder) else type(value).__name__


def mappings(contents: Any) -> Iterator[tuple[tuple[str, ...], Mapping]]:
    """Every mapping once, with the keys that lead to it; those further out come first."""
    pending, seen = collections.deque([((), contents)]), set()
    while pending:
        path, node = pending.popleft()
        if id(node) in seen or len(path) > _MAX_DEPTH:
            continue
        seen.add(id(node))
        if isinstance(node, Mapping):
            yield path, node
        inner = node.items() if isinstance(node, Mapping) else enumerate(node)
        pending += [
            ((*path, str(k)), value)
            for k, value in inner
            if isinstance(value, Mapping | list | tuple) and isinstance(k, str | int)
        ]


def _kind(contents: Any, path: tuple[str, ...], prefix: str, entries: Mapping) -> str:
    """Whether weights are raw or averaged, by the way in which trainers keep them."""
    parent: Any = contents
    for key in path[:-1]:
        parent = parent[int(key)] if isinstance(parent, list | tuple) else _get(parent, key)
    last = path[-1] if path else ""
    if isinstance(parent, Mapping) and path:
        # mmengine's hook exchanges the two when it saves: what loads by default is the average.
        other = parent.get("ema_state_dict")
        if isinstance(other, Mapping) and "steps" in other and _is_mmengine(contents):
            return {"state_dict": "ema", "ema_state_dict": "raw"}.get(last, "raw")
        # Lightning's WeightAveraging does the same.
        if "current_model_state" in parent and "averaging_state" in parent:
            return "ema" if last == "state_dict" else "raw"
    # torch.optim.swa_utils.AveragedModel, and Lightning's StochasticWeightAveraging around it.
    for mapping in (entries, parent if path[:-1] else {}):
        if isinstance(mapping, Mapping) and "n_averaged" in mapping:
            return "ema" if _count(mapping["n_averaged"]) else "unstarted"
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", " ".join((*path, prefix)))
    return "ema" if _AVERAGE_WORDS & {word.lower() for word in words} else "raw"


def _count(value: Any) -> int:
    """The value of a counter, a number or a tensor of one."""
    tensor = as_tensor(value)
    if tensor is None:
        return value if isinstance(value, int) else 0
    return int(tensor.numpy()) if tensor.shape == () else 1


def _get(mapping: Mapping, key: str) -> Any:
    return mapping[key] if key in mapping else mapping[int(key)]


def _is_mmengine(contents: Any) -> bool:
    if not isinstance(contents, Mapping):
        return False
    meta = contents.get("meta")
    return "message_hub" in contents or (isinstance(meta, Mapping) and "mmengine_version" in meta)
