"""Which PyTorch name belongs to which array here: tables of every known layout.

Every layout is a list of `Unit`s: one convolution with the normalization behind it, under its
PyTorch name and its path here. The lists are generated from the variant, in the order of the
PyTorch modules, so that recognizing, loading and writing all read the same table.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

from hrnet_jax.models import VARIANTS, Variant
from hrnet_jax.models.heads import (
    CLASSIFICATION_FEATURES,
    HEADS,
    INCRE_PLANES,
    OCR_CHANNELS,
    OCR_KEY_CHANNELS,
)

NONE, STORED, ABSENT = "none", "stored", "absent"


@dataclasses.dataclass(frozen=True)
class Unit:
    """A convolution (or linear layer) and the batch normalization behind it, if any.

    Attributes:
      conv: the PyTorch module's name.
      bn: the normalization's name, None where there is none.
      path: here; None for what a file may hold but no model here has.
      shape: (outputs, inputs, kernel size); a kernel size of 0 is a linear layer.
      bias: NONE, STORED, or ABSENT: the layer here has one and this layout does not.
      statistics: what the normalization's mean and variance are called.
    """

    conv: str
    bn: str | None
    path: tuple[str, ...] | None
    shape: tuple[int, int, int]
    bias: str = NONE
    statistics: tuple[str, str] = ("running_mean", "running_var")


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
    for path, (conv, bn) in names.items():
        yield Unit(conv, bn, (path,), shapes[path])


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
        "f_object0": "key_project.0",
        "f_object1": "key_project.1",
        "f_pixel0": "query_project.0",
        "f_pixel1": "query_project.1",
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


def _unused(units: Iterable[Unit]) -> Units:
    """Layers that a file may hold and no network here has."""
    for u in units:
        yield dataclasses.replace(u, path=None)


# ---- tables: PaddleSeg


def _paddle_unit(u: Unit, name: str) -> Unit:
    return dataclasses.replace(
        u, conv=f"{name}._conv", bn=f"{name}._batch_norm", statistics=("_mean", "_variance")
    )


def _paddle_names(u: Unit) -> Unit:
    """A unit of the backbone, by the names of PaddleSeg's HRNet, which count from 1."""
    top, *inner = u.path
    numbers = [re.findall(r"\d+", part) for part in u.path]
    if top == "stem":
        return _paddle_unit(u, f"conv_layer1_{inner[0][-1]}")
    if top == "layer1":
        layer = "conv_down" if inner[1] == "downsample" else inner[1]
        return _paddle_unit(u, f"la1.bb_layer2_{int(numbers[1][0]) + 1}.{layer}")
    if top.startswith("transition"):
        n, branch = top[-1], int(numbers[1][0]) + 1
        return _paddle_unit(u, f"tr{n}.transition_tr{n}_layer_{branch}")
    stage, module = f"st{top[-1]}", int(numbers[1][0]) + 1
    name, place = f"{stage}.stage_{stage}_{module}", f"{stage}_{module}"
    if inner[1] == "fuse":
        to, source, step = map(int, numbers[3])
        last = f"_{step + 1}" if source < to else ""
        residual = f"residual_{place}_layer_{to + 1}_{source + 1}{last}"
        return _paddle_unit(u, f"{name}.fuse_func.{residual}")
    branch, block = int(numbers[2][0]) + 1, int(numbers[3][0]) + 1
    block_name = f"bb_{place}_branch_layer_{branch}_{block}"
    return _paddle_unit(u, f"{name}.branches_func.{block_name}.{inner[3]}")


def _paddle_fcn_head(features: int, num_classes: int) -> Units:
    hidden = Unit("", None, ("hidden",), (features, features, 1), STORED)
    yield _paddle_unit(hidden, "head.conv_1")
    yield Unit("head.cls", None, ("classifier",), (num_classes, features, 1), STORED)


# ---- tables: the layouts


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one family of files names the parameters of one head's network.

    Attributes:
      name: of the family.
      head: a key of `HEADS`.
      units: (variant, num_classes) -> the layers, in the order of the PyTorch module.
      align_corners: the way to resize that such networks were trained with.
      prefix: of the backbone's names inside the network.
      left_out: why the arrays without a path are not needed here.
      note: what the user should know about networks of this family.
      partial: whether it lacks arrays that the network here has.
    """

    name: str
    head: str
    units: Callable[[Variant, int], list[Unit]]
    align_corners: bool = False
    prefix: str = ""
    left_out: str = ""
    note: str = ""
    partial: bool = False

    @property
    def writable(self) -> bool:
        """Whether `to_torch` offers it: all arrays have values here, in the same network."""
        return not self.left_out and self.name != "paddleseg"


def _official(
    head: str, name: str, head_units: Callable[[Variant, int], Units], left_out: str = ""
) -> Layout:
    single = head in ("segmentation_v1", "pose")

    def units(v: Variant, num_classes: int) -> list[Unit]:
        return [
            *_under(_core(v, single_output=single), path=("backbone",)),
            *_under(head_units(v, num_classes), path=("head",)),
        ]

    return Layout(name, head, units, align_corners=head == "ocr", left_out=left_out)


def _mmseg(head: str, head_units: Callable[[Variant, int], Units]) -> Layout:
    def units(v: Variant, num_classes: int) -> list[Unit]:
        return [
            *_under(_core(v), prefix="backbone.", path=("backbone",)),
            *_under(head_units(v, num_classes), path=("head",)),
        ]

    return Layout("mmsegmentation", head, units, prefix="backbone.")


def _paddleseg(head: str, prefix: str, head_units: Callable[[Variant, int], Units]) -> Layout:
    def units(v: Variant, num_classes: int) -> list[Unit]:
        core = map(_paddle_names, _core(v))
        return [
            *_under(core, prefix=prefix, path=("backbone",)),
            *_under(head_units(v, num_classes), path=("head",)),
        ]

    note = (
        "PaddleSeg pads its stride-2 convolutions with padding='same', at the end only; here they"
        " are padded on both sides, as in PyTorch. The outputs differ: fine-tune these weights"
    )
    return Layout("paddleseg", head, units, prefix=prefix, note=note)


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
    # timm's models with SSLD weights, its `features_only` ones and those of `num_classes=0`.
    _official("classification", "timm_ssld", lambda v, n: _classification_head(v, n, ABSENT)),
    _official(
        "features",
        "timm_features",
        lambda v, n: _unused(_incre_modules(v)),
        "timm's wider feature maps; the plain ones are used here",
    ),
    _official(
        "features",
        "timm_pooled",
        lambda v, n: _unused(u for u in _classification_head(v, n, STORED) if u.bn),
        "ImageNet's head, which has no classifier",
    ),
    _mmseg(
        "segmentation",
        lambda v, n: _mmseg_fcn_head("decode_head", "hidden", "classifier", _width(v), n),
    ),
    _mmseg("ocr", lambda v, n: _mmseg_ocr_head(_width(v), n)),
    _paddleseg("segmentation", "backbone.", lambda v, n: _paddle_fcn_head(_width(v), n)),
    _paddleseg("features", "", lambda v, n: iter(())),
)
_NEAREST = (
    "timm and segmentation_models_pytorch get the backbone without the head, and resize inside it"
    " by nearest neighbors where this head was trained with bilinear resizing: fine-tune it there"
)


def _backbone(name: str, head: str, prefix: str) -> Layout:
    """The backbone of a network with any head, for another package."""

    def units(v: Variant, num_classes: int) -> list[Unit]:
        single = HEADS[head].single_output
        return list(_under(_core(v, single_output=single), prefix=prefix, path=("backbone",)))

    note = _NEAREST if HEADS[head].method != "nearest" else ""
    return Layout(name, head, units, prefix=prefix, note=note, partial=True)


def _smp_encoder(v: Variant, num_classes: int) -> list[Unit]:
    units = (*_under(_core(v), path=("backbone",)), *_under(_incre_modules(v), path=("head",)))
    return list(_under(iter(units), prefix="model."))


# Layouts that are written but not looked for: what is read as them is one of `LAYOUTS`, too.
WRITTEN: tuple[Layout, ...] = (
    _official("classification", "timm", lambda v, n: _classification_head(v, n, STORED)),
    Layout("smp", "classification", _smp_encoder, prefix="model.", partial=True),
    *(_backbone("timm", head, "") for head in ("segmentation", "ocr", "features", "pyramid")),
    *(_backbone("smp", head, "model.") for head in ("segmentation", "ocr", "features", "pyramid")),
)
# A unit's path in the backbone, of three that all HRNets have and that are far apart.
_ANCHORS = (
    ("layer1", "block0", "conv1"),
    ("stage2", "module0", "branch0", "block0", "conv1"),
    ("stage4", "module0", "branch0", "block0", "conv1"),
)


@functools.cache
def anchors(layout: Layout) -> tuple[str, ...]:
    """Keys by which a network of this layout is found, whatever its variant."""
    units = layout.units(VARIANTS["w18_small_v1"], 1)
    paths = {("backbone", *path) for path in _ANCHORS}
    return tuple(f"{u.conv}.weight" for u in units if u.path in paths)


@functools.cache
def first_names() -> frozenset[str]:
    """What keys of networks of the known layouts begin with, up to the first dot."""
    variant = VARIANTS["w18_small_v1"]
    return frozenset(key.partition(".")[0] for x in LAYOUTS for key in key_shapes(x, variant))


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
                (u.statistics[0], "batch_stats", "mean"),
                (u.statistics[1], "batch_stats", "var"),
            ):
                path = u.path and (collection, *u.path, "bn", name)
                result.append(Leaf(f"{u.bn}.{key}", (out,), path))
    return result


@functools.cache
def key_shapes(layout: Layout, variant: Variant) -> Mapping[str, tuple[int, ...]]:
    """Key -> shape, of networks with one class."""
    return {leaf.key: leaf.shape for leaf in leaves(layout.units(variant, 1))}


def absent_biases(units: list[Unit]) -> list[tuple[tuple[str, ...], int]]:
    """(path, size) of the biases that the network here has and this layout has not."""
    return [(("params", *u.path, "conv", "bias"), u.shape[0]) for u in units if u.bias == ABSENT]
