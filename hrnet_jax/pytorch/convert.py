"""PyTorch checkpoints of HRNet to this package's parameters and back, strict both ways.

The layouts' names are in `layouts`, the files in `files`; `networks` finds the network in a file.
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
import numpy as np
from absl import logging
from flax import traverse_util

from hrnet_jax.models import HRNetModel, Variant, create_model
from hrnet_jax.pytorch import hub, networks
from hrnet_jax.pytorch.files import open_tensors
from hrnet_jax.pytorch.fit import (
    COUNTER,
    Fit,
    check_complete,
    count_classes,
    expected_leaves,
    explain_unknown,
    fit_network,
    with_statistics,
    without_head,
)
from hrnet_jax.pytorch.layouts import (
    ABSENT,
    LAYOUTS,
    WRITTEN,
    Layout,
    Leaf,
    absent_biases,
    leaves,
)
from hrnet_jax.pytorch.networks import WEIGHTS, Network
from hrnet_jax.pytorch.report import Report, name_some
from hrnet_jax.pytorch.unpickle import Tensor

# What the in-place normalization of the official PyTorch 0.4 code added to |weight|.
_INPLACE_EPSILON = 1e-5

# ---- reading


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
    key: str | None = None,
    weights: str = "auto",
    dtype=jnp.float32,
    param_dtype=jnp.float32,
) -> tuple[HRNetModel, dict[str, Any]]:
    """Loads a PyTorch HRNet: finds out layout, variant, head and number of classes.

    Knows the official segmentation, OCR, ImageNet and pose checkpoints, timm's, mmsegmentation's
    FCN and OCR ones and PaddleSeg's. The network is found by structure: in containers of any name
    and depth, behind any prefix. PyTorch is not needed, and nothing in a file is executed.

    Args:
      source: a `.pth`, `.ckpt`, `.pdparams` or `.safetensors` file; an address on the Hugging Face
        hub, `hf://OWNER/NAME[@REVISION][/FILE]` or `timm:NAME` (see `hub`); or a state dictionary
        of arrays or tensors, with or without containers around it.
      variant: insist on this one instead of recognizing one of `VARIANTS`.
      align_corners: of the bilinear resizing. None: as an mmsegmentation file's own config says,
        otherwise as the networks of this layout were trained, of which the arrays say nothing:
        True for the official OCR; False for all others, mmsegmentation's OCR among them.
      inplace_abn: whether the scales of batch normalization are those of the in-place one of the
        official PyTorch 0.4 code, which computed with |weight| + 1e-5. None: no, but a file for
        which it matters (of PyTorch 0.4, with negative scales) is refused until it is said.
      key: which network, where a file holds several; an error lists their keys.
      weights: "raw", "ema" (averaged), or "auto": averaged weights where there are any.
      dtype: of the network's arithmetic.
      param_dtype: of the variables.

    Returns:
      (model, variables); what was loaded and left out is logged (`convert` returns it as well).

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: not a file of these kinds, not an HRNet, several networks, or any array is
        missing, superfluous inside the network, misshaped or not finite; every one is named.
    """
    converted = convert(
        source,
        variant=variant,
        align_corners=align_corners,
        inplace_abn=inplace_abn,
        key=key,
        weights=weights,
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
    key: str | None = None,
    weights: str = "auto",
    backbone_only: bool = False,
    dtype=jnp.float32,
    param_dtype=jnp.float32,
) -> Converted:
    """As `from_torch`, returning the report too.

    With `backbone_only` any head will do, also an unknown, incomplete or missing one: where it is
    none of the known heads, the model has the head "features".
    """
    if weights not in WEIGHTS:
        raise ValueError(f"unknown weights={weights!r}; known: {WEIGHTS}")
    if jnp.dtype(param_dtype) == jnp.float64 and not jax.config.jax_enable_x64:  # type: ignore[attr-defined]
        raise ValueError("float64 variables need jax.config.update('jax_enable_x64', True)")
    with contextlib.ExitStack() as stack:
        if isinstance(source, Mapping):
            name, contents = "state dict", source
        else:
            name = os.fspath(source)
            contents = stack.enter_context(open_tensors(hub.fetch(name)))
        try:
            fit, left_out, others, notes = _find(contents, variant, key, weights, backbone_only)
            model, reason = _model(fit, contents, align_corners, dtype, param_dtype)
            flat, details = _variables(fit, inplace_abn, param_dtype, left_out)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    report = Report(
        source=name,
        layout=fit.layout.name,
        variant=fit.variant.name,
        head=fit.layout.head,
        num_classes=model.num_classes,
        align_corners=(model.align_corners, reason),
        left_out=left_out,
        container=".".join(fit.network.path),
        prefix=fit.prefix,
        weights=fit.network.weights,
        others=others,
        notes=notes,
        **details,
    )
    return Converted(model, traverse_util.unflatten_dict(flat), report)


def _find(
    contents: Any,
    variant: str | Variant | None,
    key: str | None,
    weights: str,
    backbone_only: bool,
) -> tuple[Fit, dict[str, str], tuple[str, ...], tuple[str, ...]]:
    """(fit of the network that is meant, what is left out, other networks, notes)."""
    fits = [fit for n in networks.find(contents) if (fit := fit_network(n, variant)) is not None]
    known = [fit.network for fit in fits]
    if not known:
        raise ValueError(explain_unknown(contents, variant))
    notes = []
    buffers = networks.averaged_buffers(known[0]) if len(known) == 1 else {}
    network = networks.choose(known, key, "raw" if buffers else weights)
    (fit,) = (fit for fit in fits if fit.network is network)
    others = [n.describe() for n in known if n is not network]
    if buffers:
        if weights == "ema":
            network = dataclasses.replace(
                network, weights="ema", tensors={**network.tensors, **buffers}
            )
            fit = fit_network(network, variant)
        others.append(f"{len(buffers)} buffers named 'ema_...' (mmcv's second set of weights)")
        notes.append(
            "mmcv's hook exchanges the two sets at the end of an epoch: in files of runs by epoch"
            " the buffers may hold the raw weights, in files of runs by iteration the averaged ones"
        )
    if network.weights == "ema":
        fit, note = with_statistics(fit, [f for f in fits if f.network.weights == "raw"])
        notes += note
    if backbone_only:
        fit = without_head(fit)
    check_complete(fit)
    if fit.layout.note:
        notes.append(fit.layout.note)
    return fit, _left_out(contents, fit, known), tuple(others), tuple(notes)


def _left_out(contents: Any, fit: Fit, known: list[Network]) -> dict[str, str]:
    """Lists what a file holds beside the network, by the keys that lead to it."""
    left_out: dict[str, str] = {}
    node, path = contents, tuple[str, ...]()
    for key in fit.network.path:
        if isinstance(node, Mapping):
            for other in node:
                place = (*path, str(other))
                if str(other) != key:
                    second = any(n.path[: len(place)] == place for n in known)
                    reason = "another set of weights" if second else "training state, not weights"
                    left_out[".".join(place)] = reason
            node = node[key] if key in node else node[int(key)]
        else:
            node = node[int(key)]
        path = (*path, key)
    _, expected = expected_leaves(fit)
    used = {fit.prefix + leaf.key for leaf in expected}
    used |= {fit.prefix + k for k in fit.counters if not _beside(k, fit)}
    for key, value in fit.network.entries.items():
        if key not in used:
            tensor = networks.as_tensor(value) is not None
            left_out[key] = "beside the network" if tensor else "training state, not weights"
    return left_out


def _beside(counter: str, fit: Fit) -> bool:
    return f"{counter.removesuffix(COUNTER)}.weight" not in fit.arrays


def _model(
    fit: Fit, contents: Any, align_corners: bool | None, dtype, param_dtype
) -> tuple[HRNetModel, str]:
    """The model, and where its resize mode comes from."""
    said, reason = align_corners, "asked for"
    if said is None:
        said, reason = _config_align_corners(contents), "the file"
    if said is None:
        said, reason = fit.layout.align_corners, "the layout's default"
    model = create_model(
        fit.variant,
        count_classes(fit),
        fit.layout.head,
        align_corners=said,
        dtype=dtype,
        param_dtype=param_dtype,
    )
    return model, reason


def _variables(
    fit: Fit, inplace_abn: bool | None, param_dtype, left_out: dict[str, str]
) -> tuple[dict[tuple[str, ...], jax.Array], dict[str, Any]]:
    """The arrays by their paths, and what the report says about them."""
    units, expected = expected_leaves(fit)
    inplace_abn = _decide_inplace(inplace_abn, expected, fit)
    flat: dict[tuple[str, ...], jax.Array] = {}
    converted: collections.Counter[str] = collections.Counter()
    for leaf in expected:
        if leaf.path is None:
            left_out[leaf.key] = fit.layout.left_out
            continue
        value = _values(leaf.key, fit.arrays[leaf.key], param_dtype, converted)
        if inplace_abn and leaf.path[-1] == "scale":
            value = np.abs(value) + value.dtype.type(_INPLACE_EPSILON)
        flat[leaf.path] = jnp.array(_to_ours(value), param_dtype)
    filled = {}
    for path, size in absent_biases(units):
        flat[path] = jnp.zeros(size, param_dtype)
        filled["/".join(path)] = "0"
    return flat, {
        "loaded": tuple(leaf.key for leaf in expected if leaf.path),
        "filled": filled,
        "converted": dict(converted),
        "num_batches_tracked": max(
            (int(t.numpy()) for t in fit.counters.values() if t.shape == ()), default=None
        ),
    }


def _decide_inplace(inplace_abn: bool | None, expected: list[Leaf], fit: Fit) -> bool:
    if inplace_abn is not None:
        return inplace_abn
    if not fit.counters and fit.layout.name != "paddleseg":
        arrays = fit.arrays
        scales = [leaf.key for leaf in expected if leaf.path and leaf.path[-1] == "scale"]
        negative = [k for k in scales if np.any(np.asarray(arrays[k].numpy(), np.float64) < 0)]
        if negative:
            raise ValueError(
                "a PyTorch 0.4 file (without num_batches_tracked) with negative scales, in "
                f"{name_some(negative[:5])} and others: say inplace_abn=True if it was trained "
                "with in-place batch normalization (|weight| + 1e-5), as the official 0.4 code "
                "was, otherwise inplace_abn=False"
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
    text = config if isinstance(config, str) else ""
    said = set(re.findall(r"align_corners\s*=\s*(True|False)", text))
    return said == {"True"} if len(said) == 1 else None


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
      layout: "official", "mmsegmentation", "timm" or "smp" (segmentation_models_pytorch), or one
        that `from_torch` reported. Where a layout has no bias in front of a normalization, the
        bias is subtracted from the running mean, which gives the same network in evaluation.
        "timm" gives timm's classifier for the classification head, and for other heads the
        backbone alone, for `create_model(..., features_only=True, feature_location="")`. "smp"
        gives the same for the encoder of a model: of `smp.Unet("tu-hrnet_w18")` for the
        classification head, otherwise of one made with `feature_location=""`.
      num_batches_tracked: value of BatchNorm's counters, which are not kept here and which
        PyTorch does not use unless its momentum is None.

    Returns:
      NumPy arrays by PyTorch key; `torch.from_numpy` makes tensors of them. A warning says where
      their network is another one than ours: `image_statistics` is unknown there, timm resizes
      inside the backbone by nearest neighbors, and heads stay behind.

    Raises:
      ValueError: the head has no such layout, or the variables are not those of the model.
    """
    written = _written_layout(model, layout)
    units = written.units(model.variant, model.num_classes)
    flat = {k: np.asarray(v) for k, v in traverse_util.flatten_dict(dict(variables)).items()}
    shapes = {leaf.path: leaf.shape for leaf in leaves(units) if leaf.path}
    shapes |= {path: (size,) for path, size in absent_biases(units)}
    if written.partial:
        flat = {path: value for path, value in flat.items() if path in shapes}
    _check_variables(shapes, flat)
    for u in units:
        if u.bias == ABSENT:
            mean = ("batch_stats", *u.path, "bn", "mean")
            flat[mean] = flat[mean] - flat[("params", *u.path, "conv", "bias")]
    result = {}
    for u in units:
        for leaf in leaves([u]):
            result[leaf.key] = np.ascontiguousarray(_to_theirs(flat[leaf.path]))
        if u.bn:
            result[f"{u.bn}{COUNTER}"] = np.array(num_batches_tracked, np.int64)
    return result


def _written_layout(model: HRNetModel, name: str) -> Layout:
    """The layout to write; warns where the network there will be another one."""
    choices = {x.name: x for x in (*LAYOUTS, *WRITTEN) if x.head == model.head and x.writable}
    if name not in choices:
        raise ValueError(f"no layout {name!r} for the {model.head} head; known: {sorted(choices)}")
    if fraction := model.policy.image_statistics:
        warnings.warn(
            f"a PyTorch file cannot store image_statistics={fraction}: in PyTorch the network will"
            " normalize with the running statistics alone, which gives other results",
            stacklevel=3,
        )
    if choices[name].note:
        warnings.warn(choices[name].note, stacklevel=3)
    return choices[name]


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
            f"the variables are not those of the model; missing: {name_some(missing)}; "
            f"unexpected: {name_some(extra)}; misshaped: {name_some(misshaped)}"
        )
