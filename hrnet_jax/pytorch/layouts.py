"""Which PyTorch name belongs to which array here: tables of every known layout.

Every layout is a list of `Unit`s: one convolution with the normalisation behind it, under its
PyTorch name and its path here. The lists are generated from the variant, in the order of the
PyTorch modules, so that recognising, loading and writing all read the same table.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping

from hrnet_jax.models import Variant
from hrnet_jax.models.heads import (
    CLASSIFICATION_FEATURES,
    INCRE_PLANES,
    OCR_CHANNELS,
    OCR_KEY_CHANNELS,
)

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


# ---- tables: the layouts


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one family of files names the parameters of one head's network.

    `units(variant, num_classes)` lists them in the order of the PyTorch module. `align_corners` is
    the way to resize that such networks were trained with.
    """

    name: str
    head: str
    units: Callable[[Variant, int], list[Unit]]
    align_corners: bool = False


def _official(head: str, name: str, head_units: Callable[[Variant, int], Units]) -> Layout:
    single = head in ("segmentation_v1", "pose")

    def units(v: Variant, num_classes: int) -> list[Unit]:
        return [
            *_under(_core(v, single_output=single), path=("backbone",)),
            *_under(head_units(v, num_classes), path=("head",)),
        ]

    return Layout(name, head, units, align_corners=head == "ocr")


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
def key_shapes(layout: Layout, variant: Variant) -> Mapping[str, tuple[int, ...]]:
    """Key -> shape, of networks with one class."""
    return {leaf.key: leaf.shape for leaf in leaves(layout.units(variant, 1))}


def absent_biases(units: list[Unit]) -> list[tuple[tuple[str, ...], int]]:
    """(path, size) of the biases that the network here has and this layout has not."""
    return [(("params", *u.path, "conv", "bias"), u.shape[0]) for u in units if u.bias == ABSENT]
