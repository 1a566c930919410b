"""PyTorch checkpoints of HRNet to this package's parameters and back, strict both ways.

The names are in torch_layouts.py, the files in torch_files.py.
"""

import collections
import contextlib
import dataclasses
import os
import re
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from absl import logging

from hrnet_jax.models import VARIANTS, HRNetModel, Variant, create_model, get_variant
from hrnet_jax.pytorch.files import Tensor, open_tensors
from hrnet_jax.pytorch.layouts import ABSENT, LAYOUTS, Layout, absent_biases, key_shapes, leaves

# What the in-place normalisation of the official PyTorch 0.4 code added to |weight|.
_INPLACE_EPSILON = 1e-5
# Keys named in one error message; the rest is counted.
_MAX_NAMED = 20

# ---- reading


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of every entry of a file.

    Attributes:
      source: the file's name, or "state dict".
      layout: which of the known layouts it is.
      variant, head, num_classes: of the network.
      align_corners: the resize mode, and where it was learnt from: "asked for", "the file" or
        "the layout's default".
      loaded: keys whose values the network now holds.
      left_out: key -> why it is not needed.
      filled: path here -> the value that stands in for what this layout does not store.
      converted: "float16 -> float32" -> number of arrays.
      num_batches_tracked: the value of BatchNorm's counters; None in files of PyTorch 0.4.
    """

    source: str
    layout: str
    variant: str
    head: str
    num_classes: int
    align_corners: tuple[bool, str]
    loaded: tuple[str, ...]
    left_out: Mapping[str, str]
    filled: Mapping[str, str]
    converted: Mapping[str, int]
    num_batches_tracked: int | None

    def summary(self) -> str:
        """A few lines for people."""
        value, reason = self.align_corners
        lines = [
            f"{self.source}: {self.layout} layout, HRNet {self.variant}, {self.head} head"
            + (f", {self.num_classes} classes" if self.num_classes else ""),
            f"align_corners={value} ({reason})",
            f"loaded {len(self.loaded)} arrays, missing 0",
        ]
        for reason in dict.fromkeys(self.left_out.values()):
            keys = [k for k, why in self.left_out.items() if why == reason]
            lines.append(f"left out {len(keys)} ({reason}): {_named(keys)}")
        for filling in dict.fromkeys(self.filled.values()):
            keys = [k for k, v in self.filled.items() if v == filling]
            lines.append(f"not in this layout, set to {filling}: {_named(keys)}")
        for change, count in self.converted.items():
            lines.append(f"converted {count} arrays {change}")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Converted:
    """A network, its variables, and the report of how they came about."""

    model: HRNetModel
    variables: dict[str, Any]
    report: Report


def from_torch(
    source: str | os.PathLike | Mapping[str, Any],
    *,
    variant: str | Variant | None = None,
    align_corners: bool | None = None,
    inplace_abn: bool | None = None,
    dtype=jnp.float32,
    param_dtype=jnp.float32,
) -> tuple[HRNetModel, dict[str, Any]]:
    """Loads a PyTorch HRNet: finds out layout, variant, head and number of classes.

    Knows the official segmentation, OCR, ImageNet and pose checkpoints, timm's, and
    mmsegmentation's FCN and OCR ones. PyTorch is not needed, and files are not executed.

    Args:
      source: a `.pth` or `.safetensors` file, or a state dictionary of arrays or tensors; a
        dictionary with the state dictionary under "state_dict" also does.
      variant: insist on this one instead of recognising one of `VARIANTS`.
      align_corners: of the bilinear resizing. None: as an mmsegmentation file's own config says,
        otherwise as the networks of this layout were trained, of which the arrays say nothing:
        True for the official OCR; False for all others, mmsegmentation's OCR among them.
      inplace_abn: whether the scales of batch normalisation are those of the in-place one of the
        official PyTorch 0.4 code, which computed with |weight| + 1e-5. None: no, but a file for
        which it matters (of PyTorch 0.4, with negative scales) is refused until it is said.
      dtype: of the network's arithmetic.
      param_dtype: of the variables.

    Returns:
      (model, variables); what was loaded and left out is logged (`convert` returns it as well).

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: not a file of these kinds, not an HRNet, or any array is missing, superfluous,
        misshaped or not finite; every one is named.
    """
    converted = convert(
        source,
        variant=variant,
        align_corners=align_corners,
        inplace_abn=inplace_abn,
        dtype=dtype,
        param_dtype=param_dtype,
    )
    logging.info("%s", converted.report.summary())
    return converted.model, converted.variables


def convert(
    source: str | os.PathLike | Mapping[str, Any],
    *,
    variant: str | Variant | None = None,
    align_corners: bool | None = None,
    inplace_abn: bool | None = None,
    dtype=jnp.float32,
    param_dtype=jnp.float32,
) -> Converted:
    """As `from_torch`, returning the report too."""
    if jnp.dtype(param_dtype) == jnp.float64 and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise ValueError("float64 variables need jax.config.update('jax_enable_x64', True)")
    with contextlib.ExitStack() as stack:
        if isinstance(source, Mapping):
            name, contents = "state dict", source
        else:
            name, contents = os.fspath(source), stack.enter_context(open_tensors(source))
        try:
            return _convert(name, contents, variant, align_corners, inplace_abn, dtype, param_dtype)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


def _convert(name, contents, variant, align_corners, inplace_abn, dtype, param_dtype) -> Converted:
    tensors, left_out = _state_dict(contents)
    counters = {k: t for k, t in tensors.items() if k.endswith(".num_batches_tracked")}
    arrays = {k: t for k, t in tensors.items() if k not in counters}
    layout, found = _recognise(arrays, variant)
    num_classes = _count_classes(layout, found, arrays)
    units = layout.units(found, num_classes)
    expected = leaves(units)
    _check_complete(f"HRNet {found.name}, {layout.head} head", expected, units, arrays, counters)

    inplace_abn = _decide_inplace(inplace_abn, expected, arrays, counters)
    flat: dict[tuple[str, ...], jax.Array] = {}
    converted: collections.Counter[str] = collections.Counter()
    for leaf in expected:
        if leaf.path is None:
            left_out[leaf.key] = "timm's wider feature maps; the plain ones are used here"
            continue
        value = _values(leaf.key, arrays[leaf.key], param_dtype, converted)
        if inplace_abn and leaf.path[-1] == "scale":
            value = np.abs(value) + value.dtype.type(_INPLACE_EPSILON)
        flat[leaf.path] = jnp.array(_to_ours(value), param_dtype)
    filled = {}
    for path, size in absent_biases(units):
        flat[path] = jnp.zeros(size, param_dtype)
        filled["/".join(path)] = "0"

    said, reason = align_corners, "asked for"
    if said is None:
        said, reason = _config_align_corners(contents), "the file"
    if said is None:
        said, reason = layout.align_corners, "the layout's default"
    model = create_model(
        found,
        num_classes,
        layout.head,
        align_corners=said,
        dtype=dtype,
        param_dtype=param_dtype,
    )
    report = Report(
        source=name,
        layout=layout.name,
        variant=found.name,
        head=layout.head,
        num_classes=num_classes,
        align_corners=(said, reason),
        loaded=tuple(leaf.key for leaf in expected if leaf.path),
        left_out=left_out,
        filled=filled,
        converted=dict(converted),
        num_batches_tracked=max((int(t.numpy()) for t in counters.values()), default=None),
    )
    return Converted(model, _nested(flat), report)


def _state_dict(contents: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors by their bare names, and what was left out."""
    left_out = {}
    if isinstance(contents, Mapping):
        for key in ("state_dict", "model"):
            if isinstance(contents.get(key), Mapping):
                left_out = {k: "training state, not weights" for k in contents if k != key}
                contents = contents[key]
                break
    if not isinstance(contents, Mapping) or not contents:
        raise ValueError(f"holds a {type(contents).__name__} instead of a state dictionary")
    tensors: dict[str, Tensor] = {}
    originals: dict[str, str] = {}
    for key, value in contents.items():
        bare = re.sub(r"^(module\.|model\.)+", "", str(key))
        if bare.startswith("loss."):
            left_out[key] = "the loss, not the network"
            continue
        if bare in tensors:
            raise ValueError(f"{originals[bare]!r} and {key!r} are the same parameter")
        tensors[bare], originals[bare] = _tensor(key, value), key
    return tensors, left_out


def _tensor(key: Any, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if hasattr(value, "detach"):  # a PyTorch tensor
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":  # NumPy has no such type
            dtype = np.dtype(ml_dtypes.bfloat16)
            return Tensor(dtype, tuple(value.shape), lambda: value.float().numpy())
    array = np.asarray(value)
    if array.dtype == object:
        raise ValueError(f"{key!r} is a {type(value).__name__}, not a tensor")
    return Tensor(array.dtype, array.shape, lambda: array)


def _recognise(
    arrays: Mapping[str, Tensor], variant: str | Variant | None
) -> tuple[Layout, Variant]:
    """The layout and variant that fit best; whether they fit is checked afterwards."""
    variants = VARIANTS.values() if variant is None else (get_variant(variant),)
    # Variants that differ in width only have the same keys.
    structures = {(v.layer1_blocks, v.num_modules, v.num_blocks): v for v in variants}
    keys = set(arrays)

    def difference(candidate: tuple[Layout, Variant]) -> int:
        layout, v = candidate
        return len(keys ^ key_shapes(layout, v).keys())

    layout, structure = min(
        ((layout, v) for layout in LAYOUTS for v in structures.values()), key=difference
    )
    expected = key_shapes(layout, structure).keys()
    if len(expected & keys) < len(expected) / 2:
        known = sorted({f"{layout.name} {layout.head}" for layout in LAYOUTS})
        raise ValueError(
            f"not an HRNet of a known layout: of {len(keys)} arrays, among them "
            f"{_named(sorted(keys)[:5])}, {len(expected & keys)} fit the nearest one "
            f"({layout.name} {layout.head}, like {structure.name}). Known layouts: {known}"
        )

    def mismatches(v: Variant) -> int:
        shapes = key_shapes(layout, v)
        return sum(k in arrays and arrays[k].shape != shape for k, shape in shapes.items())

    same = [
        v
        for v in variants
        if (v.layer1_blocks, v.num_modules, v.num_blocks)
        == (structure.layer1_blocks, structure.num_modules, structure.num_blocks)
    ]
    return layout, min(same, key=mismatches)


def _count_classes(layout: Layout, variant: Variant, arrays: Mapping[str, Tensor]) -> int:
    """By the majority of the classifiers' arrays, so that a single wrong one can be named."""
    sizes = collections.Counter(
        arrays[leaf.key].shape[0]
        for leaf in leaves(layout.units(variant, 0))
        if leaf.shape[0] == 0 and leaf.key in arrays and arrays[leaf.key].shape
    )
    return sizes.most_common(1)[0][0] if sizes else 0


def _check_complete(what, expected, units, arrays, counters) -> None:
    """Refuses any difference between the expected and the found arrays, by name."""
    shapes = {leaf.key: leaf.shape for leaf in expected}
    # PyTorch 0.4 had no counters: all are there or none.
    wanted = [f"{u.bn}.num_batches_tracked" for u in units if u.bn] if counters else []
    missing = [k for k in shapes if k not in arrays] + [k for k in wanted if k not in counters]
    extra = [k for k in arrays if k not in shapes] + sorted(set(counters) - set(wanted))
    misshaped = [
        f"{k}: {arrays[k].shape} instead of {shape}"
        for k, shape in shapes.items()
        if k in arrays and arrays[k].shape != shape
    ]
    problems = [
        f"{kind}: {_named(keys)}"
        for kind, keys in (("missing", missing), ("unexpected", extra), ("misshaped", misshaped))
        if keys
    ]
    if problems:
        raise ValueError(f"does not fit {what}; {'; '.join(problems)}")


def _decide_inplace(inplace_abn, expected, arrays, counters) -> bool:
    if inplace_abn is not None:
        return inplace_abn
    if not counters:
        scales = [leaf.key for leaf in expected if leaf.path and leaf.path[-1] == "scale"]
        negative = [k for k in scales if np.any(np.asarray(arrays[k].numpy(), np.float64) < 0)]
        if negative:
            raise ValueError(
                "a PyTorch 0.4 file (without num_batches_tracked) with negative scales, in "
                f"{_named(negative[:5])} and others: say inplace_abn=True if it was trained with "
                "in-place batch normalisation (|weight| + 1e-5), as the official 0.4 code was, "
                "otherwise inplace_abn=False"
            )
    return False


def _values(key: str, tensor: Tensor, param_dtype, converted: collections.Counter) -> np.ndarray:
    target = np.dtype(param_dtype)
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise ValueError(f"{key!r} holds {tensor.dtype} numbers, weights are floating-point")
    if tensor.dtype != target:
        converted[f"{tensor.dtype.name} -> {target.name}"] += 1
    with np.errstate(over="ignore"):
        value = tensor.numpy().astype(target)
    if not np.all(np.isfinite(value)):
        raise ValueError(f"{key!r} holds numbers that are not finite (in {target.name})")
    return value


def _to_ours(value: np.ndarray) -> np.ndarray:
    """[out, in, k, k] -> [k, k, in, out]; [out, in] -> [in, out]; vectors stay."""
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def _to_theirs(value: np.ndarray) -> np.ndarray:
    return value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T


def _config_align_corners(contents: Any) -> bool | None:
    """What the training config inside an mmsegmentation file says, if it says one thing."""
    meta = contents.get("meta") if isinstance(contents, Mapping) else None
    config = meta.get("config", meta.get("cfg")) if isinstance(meta, Mapping) else None
    said = set(re.findall(r"align_corners\s*=\s*(True|False)", config or ""))
    return said == {"True"} if len(said) == 1 else None


def _nested(flat: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        node = tree
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = value
    return tree


def _named(keys: list[str]) -> str:
    rest = len(keys) - _MAX_NAMED
    return ", ".join(map(str, keys[:_MAX_NAMED])) + (f" and {rest} more" if rest > 0 else "")


# ---- writing


def to_torch(
    model: HRNetModel,
    variables: Mapping[str, Any],
    layout: str = "official",
    *,
    num_batches_tracked: int = 0,
) -> dict[str, np.ndarray]:
    """The variables as a PyTorch state dictionary, in the order of the PyTorch module.

    Args:
      model: the network.
      variables: its "params" and "batch_stats".
      layout: "official" (or a timm one, see `LAYOUTS`) or "mmsegmentation". Where the latter has
        no bias in front of a normalisation, the bias is subtracted from the running mean, which
        gives the same network in evaluation.
      num_batches_tracked: value of BatchNorm's counters, which are not kept here and which
        PyTorch does not use unless its momentum is None.

    Returns:
      NumPy arrays by PyTorch key; `torch.from_numpy` makes tensors of them. A warning says where
      their network is another one than ours: `image_statistics` is unknown there.

    Raises:
      ValueError: the head has no such layout, or the variables are not those of the model.
    """
    choices = {x.name: x for x in LAYOUTS if x.head == model.head}
    if layout not in choices:
        raise ValueError(
            f"no layout {layout!r} for the {model.head} head; known: {sorted(choices)}"
        )
    if share := model.policy.image_statistics:
        warnings.warn(
            f"image_statistics={share} has no place in a PyTorch file: there the network will"
            " normalise with the running statistics alone, which gives other results",
            stacklevel=2,
        )
    units = choices[layout].units(model.variant, model.num_classes)
    flat = {
        tuple(str(p.key) for p in path): np.asarray(value)
        for path, value in jax.tree_util.tree_flatten_with_path(dict(variables))[0]
    }
    shapes = {leaf.path: leaf.shape for leaf in leaves(units) if leaf.path}
    shapes |= {path: (size,) for path, size in absent_biases(units)}
    _check_variables(shapes, flat)
    for u in units:
        if u.bias == ABSENT:
            mean = ("batch_stats", *u.path, "bn", "mean")
            flat[mean] = flat[mean] - flat[("params", *u.path, "conv", "bias")]
    result = {}
    for u in units:
        for leaf in leaves([u]):
            if leaf.path is None:
                raise ValueError(f"layout {layout!r} holds {leaf.key!r}, which this network lacks")
            result[leaf.key] = np.ascontiguousarray(_to_theirs(flat[leaf.path]))
        if u.bn:
            result[f"{u.bn}.num_batches_tracked"] = np.array(num_batches_tracked, np.int64)
    return result


def _check_variables(shapes: Mapping, flat: Mapping) -> None:
    missing = ["/".join(p) for p in shapes if p not in flat]
    extra = ["/".join(p) for p in flat if p not in shapes]
    misshaped = [
        f"{'/'.join(p)}: {flat[p].shape}"
        for p, shape in shapes.items()
        if p in flat and _to_theirs(flat[p]).shape != shape
    ]
    if missing or extra or misshaped:
        raise ValueError(
            f"the variables are not those of the model; missing: {_named(missing)}; "
            f"unexpected: {_named(extra)}; misshaped: {_named(misshaped)}"
        )
