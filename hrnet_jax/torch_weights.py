"""PyTorch checkpoints of HRNet to this package's parameters and back, strict both ways.

Every layout is a list of `Unit`s: one convolution with the normalisation behind it, under its
PyTorch name and its path here. The lists are generated from the variant, in the order of the
PyTorch modules, so that recognising, loading and writing all read the same table.
"""

import collections
import contextlib
import dataclasses
import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from absl import logging

from hrnet_jax.models import VARIANTS, HRNetModel, Variant, create_model, get_variant
from hrnet_jax.models.heads import (
    CLASSIFICATION_FEATURES,
    INCRE_PLANES,
    OCR_CHANNELS,
    OCR_KEY_CHANNELS,
)
from hrnet_jax.torch_files import Tensor, open_tensors

# What the in-place normalisation of the official PyTorch 0.4 code added to |weight|.
_INPLACE_EPSILON = 1e-5
# Keys named in one error message; the rest is counted.
_MAX_NAMED = 20

NONE, STORED, ABSENT = "none", "stored", "absent"


@dataclasses.dataclass(frozen=True)
class Unit:
    """A convolution (or linear layer) and the batch normalisation behind it, if any.

    Attributes:
      conv: the PyTorch module's name.
      bn: the normalisation's name, None where there is none.
      path: here; None for what a file may hold but no model here has.
      shape: (outputs, inputs, kernel size); a kernel size of 0 is a linear layer.
      bias: NONE, STORED, or ABSENT: the layer here has one and this layout does not.
    """

    conv: str
    bn: str | None
    path: tuple[str, ...] | None
    shape: tuple[int, int, int]
    bias: str = NONE


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array: its PyTorch key and shape, and its path in the variables here."""

    key: str
    shape: tuple[int, ...]
    path: tuple[str, ...] | None


Units = Iterator[Unit]


# ---- tables: the backbone


def _core(v: Variant, *, single_output: bool = False) -> Units:
    """The backbone, named alike by the official code, timm and mmsegmentation."""
    yield Unit("conv1", "bn1", ("stem", "conv1"), (64, 3, 3))
    yield Unit("conv2", "bn2", ("stem", "conv2"), (64, 64, 3))
    inputs = 64
    for k in range(v.layer1_blocks):
        yield from _bottleneck(f"layer1.{k}", ("layer1", f"block{k}"), inputs, v.layer1_planes)
        inputs = 4 * v.layer1_planes
    before = (inputs,)
    for s, num_modules in enumerate(v.num_modules):
        channels = v.channels[: s + 2]
        yield from _transition(s + 1, before, channels)
        for m in range(num_modules):
            single = single_output and s == 2 and m == num_modules - 1
            yield from _module(s + 2, m, channels, v.num_blocks, 1 if single else len(channels))
        before = channels


def _bottleneck(name: str, path: tuple[str, ...], inputs: int, planes: int) -> Units:
    yield Unit(f"{name}.conv1", f"{name}.bn1", (*path, "conv1"), (planes, inputs, 1))
    yield Unit(f"{name}.conv2", f"{name}.bn2", (*path, "conv2"), (planes, planes, 3))
    yield Unit(f"{name}.conv3", f"{name}.bn3", (*path, "conv3"), (4 * planes, planes, 1))
    if inputs != 4 * planes:
        down = f"{name}.downsample"
        yield Unit(f"{down}.0", f"{down}.1", (*path, "downsample"), (4 * planes, inputs, 1))


def _transition(number: int, before: tuple[int, ...], channels: tuple[int, ...]) -> Units:
    for k, features in enumerate(channels):
        path = (f"transition{number}", f"branch{k}")
        if k >= len(before):
            name = f"transition{number}.{k}.0"
            yield Unit(f"{name}.0", f"{name}.1", path, (features, before[-1], 3))
        elif before[k] != features:
            name = f"transition{number}.{k}"
            yield Unit(f"{name}.0", f"{name}.1", path, (features, before[k], 3))


def _module(stage: int, module: int, channels: tuple[int, ...], blocks: int, outputs: int) -> Units:
    here, there = (f"stage{stage}", f"module{module}"), f"stage{stage}.{module}"
    for k, features in enumerate(channels):
        for b in range(blocks):
            for c in (1, 2):
                name = f"{there}.branches.{k}.{b}"
                path = (*here, f"branch{k}", f"block{b}", f"conv{c}")
                yield Unit(f"{name}.conv{c}", f"{name}.bn{c}", path, (features, features, 3))
    for i in range(outputs):
        for j in range(len(channels)):
            name, path = f"{there}.fuse_layers.{i}.{j}", f"to{i}_from{j}_conv"
            if j > i:
                shape = (channels[i], channels[j], 1)
                yield Unit(f"{name}.0", f"{name}.1", (*here, "fuse", f"{path}0"), shape)
            for k in range(i - j):
                shape = (channels[i] if k == i - j - 1 else channels[j], channels[j], 3)
                step = (*here, "fuse", f"{path}{k}")
                yield Unit(f"{name}.{k}.0", f"{name}.{k}.1", step, shape)


def _under(units: Units, *, prefix: str = "", path: tuple[str, ...] = ()) -> Units:
    """The units inside another PyTorch module and another module here."""
    for u in units:
        yield dataclasses.replace(
            u,
            conv=prefix + u.conv,
            bn=None if u.bn is None else prefix + u.bn,
            path=None if u.path is None else path + u.path,
        )


# ---- tables: the heads


def _segmentation_head(features: int, num_classes: int) -> Units:
    yield Unit("last_layer.0", "last_layer.1", ("hidden",), (features, features, 1), STORED)
    yield Unit("last_layer.3", None, ("classifier",), (num_classes, features, 1), STORED)


def _mmseg_fcn_head(prefix: str, hidden: str, classifier: str, features: int, classes: int):
    yield Unit(f"{prefix}.conv_seg", None, (classifier,), (classes, features, 1), STORED)
    name = f"{prefix}.convs.0"
    yield Unit(f"{name}.conv", f"{name}.bn", (hidden,), (features, features, 1), ABSENT)


def _ocr_attention(names: Mapping[str, tuple[str, str]]) -> Units:
    """The 1x1 convolutions of the attention: ours -> the PyTorch names of convolution and BN."""
    c, k = OCR_CHANNELS, OCR_KEY_CHANNELS
    shapes = {
        "f_pixel0": (k, c, 1),
        "f_pixel1": (k, k, 1),
        "f_object0": (k, c, 1),
        "f_object1": (k, k, 1),
        "f_down": (k, c, 1),
        "f_up": (c, k, 1),
        "fuse": (c, 2 * c, 1),
    }
    for path, shape in shapes.items():
        yield Unit(*names[path], (path,), shape)


def _official_ocr_head(features: int, num_classes: int) -> Units:
    block, fuse = "ocr_distri_head.object_context_block", "ocr_distri_head.conv_bn_dropout"
    names = {
        "f_pixel0": (f"{block}.f_pixel.0", f"{block}.f_pixel.1.0"),
        "f_pixel1": (f"{block}.f_pixel.2", f"{block}.f_pixel.3.0"),
        "f_object0": (f"{block}.f_object.0", f"{block}.f_object.1.0"),
        "f_object1": (f"{block}.f_object.2", f"{block}.f_object.3.0"),
        "f_down": (f"{block}.f_down.0", f"{block}.f_down.1.0"),
        "f_up": (f"{block}.f_up.0", f"{block}.f_up.1.0"),
        "fuse": (f"{fuse}.0", f"{fuse}.1.0"),
    }
    c = OCR_CHANNELS
    yield Unit("conv3x3_ocr.0", "conv3x3_ocr.1", ("pixels",), (c, features, 3), STORED)
    yield from _ocr_attention(names)
    yield Unit("cls_head", None, ("classifier",), (num_classes, c, 1), STORED)
    yield Unit("aux_head.0", "aux_head.1", ("aux_hidden",), (features, features, 1), STORED)
    yield Unit("aux_head.3", None, ("aux_classifier",), (num_classes, features, 1), STORED)


def _mmseg_ocr_head(features: int, num_classes: int) -> Units:
    block, c = "decode_head.1.object_context_block", OCR_CHANNELS
    projections = {
        "f_pixel0": "query_project.0",
        "f_pixel1": "query_project.1",
        "f_object0": "key_project.0",
        "f_object1": "key_project.1",
        "f_down": "value_project",
        "f_up": "out_project",
        "fuse": "bottleneck",
    }
    names = {k: (f"{block}.{n}.conv", f"{block}.{n}.bn") for k, n in projections.items()}
    yield from _mmseg_fcn_head(
        "decode_head.0", "aux_hidden", "aux_classifier", features, num_classes
    )
    yield Unit("decode_head.1.conv_seg", None, ("classifier",), (num_classes, c, 1), STORED)
    yield from _ocr_attention(names)
    name = "decode_head.1.bottleneck"
    yield Unit(f"{name}.conv", f"{name}.bn", ("pixels",), (c, features, 3), ABSENT)


def _incre_modules(v: Variant) -> Units:
    for k, planes in enumerate(INCRE_PLANES):
        yield from _bottleneck(f"incre_modules.{k}.0", (f"incre{k}",), v.channels[k], planes)


def _classification_head(v: Variant, num_classes: int, bias: str) -> Units:
    yield from _incre_modules(v)
    for k in range(3):
        name, (a, b) = f"downsamp_modules.{k}", INCRE_PLANES[k : k + 2]
        yield Unit(f"{name}.0", f"{name}.1", (f"downsamp{k}",), (4 * b, 4 * a, 3), bias)
    shape = (CLASSIFICATION_FEATURES, 4 * INCRE_PLANES[-1], 1)
    yield Unit("final_layer.0", "final_layer.1", ("final",), shape, bias)
    shape = (num_classes, CLASSIFICATION_FEATURES, 0)
    yield Unit("classifier", None, ("classifier",), shape, STORED)


# ---- tables: the layouts


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one family of files names the parameters of one head's network.

    `units(variant, num_classes)` lists them in the order of the PyTorch module.
    """

    name: str
    head: str
    units: Callable[[Variant, int], list[Unit]]


def _official(head: str, name: str, head_units: Callable[[Variant, int], Units]) -> Layout:
    single = head in ("segmentation_v1", "pose")

    def units(v: Variant, num_classes: int) -> list[Unit]:
        return [
            *_under(_core(v, single_output=single), path=("backbone",)),
            *_under(head_units(v, num_classes), path=("head",)),
        ]

    return Layout(name, head, units)


def _mmseg(head: str, head_units: Callable[[Variant, int], Units]) -> Layout:
    def units(v: Variant, num_classes: int) -> list[Unit]:
        return [
            *_under(_core(v), prefix="backbone.", path=("backbone",)),
            *_under(head_units(v, num_classes), path=("head",)),
        ]

    return Layout("mmsegmentation", head, units)


def _width(v: Variant) -> int:
    return sum(v.channels)


LAYOUTS: tuple[Layout, ...] = (
    _official("segmentation", "official", lambda v, n: _segmentation_head(_width(v), n)),
    _official("segmentation_v1", "official", lambda v, n: _segmentation_head(v.width, n)),
    _official("ocr", "official", lambda v, n: _official_ocr_head(_width(v), n)),
    _official("classification", "official", lambda v, n: _classification_head(v, n, STORED)),
    _official(
        "pose",
        "official",
        lambda v, n: iter([Unit("final_layer", None, ("heatmaps",), (n, v.width, 1), STORED)]),
    ),
    _official("features", "official", lambda v, n: iter(())),
    # timm's models with SSLD weights, and its `features_only` ones.
    _official("classification", "timm_ssld", lambda v, n: _classification_head(v, n, ABSENT)),
    _official(
        "features",
        "timm_features",
        lambda v, n: (dataclasses.replace(u, path=None) for u in _incre_modules(v)),
    ),
    _mmseg(
        "segmentation",
        lambda v, n: _mmseg_fcn_head("decode_head", "hidden", "classifier", _width(v), n),
    ),
    _mmseg("ocr", lambda v, n: _mmseg_ocr_head(_width(v), n)),
)


def leaves(units: list[Unit]) -> list[Leaf]:
    """The arrays that a file of this layout holds, counters of batches aside."""
    result = []
    for u in units:
        out, in_, size = u.shape
        inner = None if u.path is None else (*u.path, "conv") if u.bn else u.path
        shape = (out, in_, size, size) if size else (out, in_)
        result.append(Leaf(f"{u.conv}.weight", shape, inner and ("params", *inner, "kernel")))
        if u.bias == STORED:
            result.append(Leaf(f"{u.conv}.bias", (out,), inner and ("params", *inner, "bias")))
        if u.bn:
            for key, collection, name in (
                ("weight", "params", "scale"),
                ("bias", "params", "bias"),
                ("running_mean", "batch_stats", "mean"),
                ("running_var", "batch_stats", "var"),
            ):
                path = u.path and (collection, *u.path, "bn", name)
                result.append(Leaf(f"{u.bn}.{key}", (out,), path))
    return result


@functools.cache
def _shapes(layout: Layout, variant: Variant) -> Mapping[str, tuple[int, ...]]:
    """Key -> shape, of networks with one class."""
    return {leaf.key: leaf.shape for leaf in leaves(layout.units(variant, 1))}


def _absent_biases(units: list[Unit]) -> list[tuple[tuple[str, ...], int]]:
    """(path, size) of the biases that the network here has and this layout has not."""
    return [(("params", *u.path, "conv", "bias"), u.shape[0]) for u in units if u.bias == ABSENT]


# ---- reading


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of every entry of a file.

    Attributes:
      source: the file's name, or "state dict".
      layout: which of the known layouts it is.
      variant, head, num_classes: of the network.
      align_corners: the resize mode, and where it was learnt from: "asked for", "the file" or
        "the head's default".
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
        for value in dict.fromkeys(self.filled.values()):
            keys = [k for k, v in self.filled.items() if v == value]
            lines.append(f"not in this layout, set to {value}: {_named(keys)}")
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
        otherwise True for OCR and False for the others, which is how the official ones were
        trained. Their files do not say.
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
    if jnp.dtype(param_dtype) == jnp.float64 and not jax.config.jax_enable_x64:
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
    flat, converted = {}, collections.Counter()
    for leaf in expected:
        if leaf.path is None:
            left_out[leaf.key] = "timm's wider feature maps; the plain ones are used here"
            continue
        value = _values(leaf.key, arrays[leaf.key], param_dtype, converted)
        if inplace_abn and leaf.path[-1] == "scale":
            value = np.abs(value) + value.dtype.type(_INPLACE_EPSILON)
        flat[leaf.path] = jnp.array(_to_ours(value), param_dtype)
    filled = {}
    for path, size in _absent_biases(units):
        flat[path] = jnp.zeros(size, param_dtype)
        filled["/".join(path)] = "0"

    said = align_corners if align_corners is not None else _config_align_corners(contents)
    model = create_model(
        found,
        num_classes,
        layout.head,
        align_corners=said,
        dtype=dtype,
        param_dtype=param_dtype,
    )
    reason = "the head's default" if said is None else "the file"
    report = Report(
        source=name,
        layout=layout.name,
        variant=found.name,
        head=layout.head,
        num_classes=num_classes,
        align_corners=(model.align_corners, "asked for" if align_corners is not None else reason),
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
    tensors, originals = {}, {}
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
        return len(keys ^ _shapes(layout, v).keys())

    layout, structure = min(
        ((layout, v) for layout in LAYOUTS for v in structures.values()), key=difference
    )
    expected = _shapes(layout, structure).keys()
    if len(expected & keys) < len(expected) / 2:
        known = sorted({f"{layout.name} {layout.head}" for layout in LAYOUTS})
        raise ValueError(
            f"not an HRNet of a known layout: of {len(keys)} arrays, among them "
            f"{_named(sorted(keys)[:5])}, {len(expected & keys)} fit the nearest one "
            f"({layout.name} {layout.head}, like {structure.name}). Known layouts: {known}"
        )

    def mismatches(v: Variant) -> int:
        shapes = _shapes(layout, v)
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
      NumPy arrays by PyTorch key; `torch.from_numpy` makes tensors of them.

    Raises:
      ValueError: the head has no such layout, or the variables are not those of the model.
    """
    choices = {x.name: x for x in LAYOUTS if x.head == model.head}
    if layout not in choices:
        raise ValueError(
            f"no layout {layout!r} for the {model.head} head; known: {sorted(choices)}"
        )
    units = choices[layout].units(model.variant, model.num_classes)
    flat = {
        tuple(str(p.key) for p in path): np.asarray(value)
        for path, value in jax.tree_util.tree_flatten_with_path(dict(variables))[0]
    }
    shapes = {leaf.path: leaf.shape for leaf in leaves(units) if leaf.path}
    shapes |= {path: (size,) for path, size in _absent_biases(units)}
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
