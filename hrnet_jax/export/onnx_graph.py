"""Builds a segmentation network as an ONNX graph, from its specification and weights.

The graph follows the paper's description of the network: one Conv per convolution with its batch
normalization folded in (float64, then rounded once), Resize and Add where streams are fused. With
`image_statistics`, normalization is a group of nodes after the Conv instead. The head's 1x1
convolution is applied before upsampling, which is exact (see `layers.conv1x1_of_upsampled`).
Tracing the JAX program instead would split upsampling into dozens of small operations for which
runtimes have no fused kernels.

With a fixed size every number in the graph is a constant, and the scales of each Resize too:
quantizers and converters for other runtimes need that.

In float16 three things stay in float32, because float16 has 11 bits and ends at 65504: what is done
with pixels before the network and with logits after it, the statistics of each image, and OCR's
averages over regions, whose weights are about 1 / (H W).
"""

from typing import Any

import numpy as np
import onnx
from flax import traverse_util
from onnx import TensorProto, helper, numpy_helper

from hrnet_jax.models import HRNetModel, normalize
from hrnet_jax.models.heads import HEADS, OCR_KEY_CHANNELS
from hrnet_jax.models.layers import BN_EPSILON

# Versions of ONNX's operators that a graph can be written for. Per-channel quantization and Softmax
# over one axis need 13; nothing after 21 is used here. Runtimes released since 2023 support 18.
OPSETS = tuple(range(13, 22))
OPSET = 18
DTYPES = ("float32", "float16")
OUTPUTS = ("labels", "probabilities", "logits")
Sizes = tuple[tuple[int, int], tuple[int, int]]


def stays_float(node: str) -> bool:
    """Whether the node of this name stays in float32 when the graph is quantized.

    What is done with pixels and logits, and the statistics of each image.
    """
    return node.startswith(("image/", "logits")) or "/bn/" in node


class _Graph:
    """Collects nodes and constants; every method returns the name of the tensor that it adds."""

    def __init__(
        self, arrays: dict[str, np.ndarray], image_statistics: float, dtype: str, opset: int
    ):
        self.arrays, self.image_statistics = arrays, image_statistics
        self.dtype, self.opset = dtype, opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def node(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: Any, dtype: Any = None) -> str:
        array = np.asarray(value, dtype or self.dtype)
        self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def wide(self, x: str) -> str:
        """x in float32."""
        if self.dtype == "float32":
            return x
        return self.node("Cast", [x], f"{x}/float32", to=TensorProto.FLOAT)

    def narrow(self, x: str) -> str:
        """x of float32 in the network's type."""
        if self.dtype == "float32":
            return x
        return self.node("Cast", [x], f"{x}/float16", to=TensorProto.FLOAT16)

    def folded(self, path: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Kernel [k, k, in, out] and bias of a convolution, its batch normalization folded in.

        With `image_statistics` nothing is folded in; `normalized` then adds the normalization.
        """
        conv = f"{path}/conv" if f"{path}/conv/kernel" in self.arrays else path
        kernel = self.arrays[f"{conv}/kernel"].astype(np.float64)
        bias = self.arrays.get(f"{conv}/bias")
        if conv == path or self.image_statistics:
            return kernel, bias
        scale, shift, mean, var = (
            self.arrays[f"{path}/bn/{k}"].astype(np.float64)
            for k in ("scale", "bias", "mean", "var")
        )
        slope = scale / np.sqrt(var + BN_EPSILON)
        offset = -mean if bias is None else bias - mean
        return kernel * slope, offset * slope + shift

    def conv_of(
        self, x: str, name: str, kernel: np.ndarray, bias: np.ndarray | None, stride: int = 1
    ) -> str:
        k = kernel.shape[0]
        inputs = [x, self.constant(f"{name}/kernel", kernel.transpose(3, 2, 0, 1))]
        if bias is not None:
            inputs.append(self.constant(f"{name}/bias", bias))
        attributes = {"kernel_shape": [k, k], "strides": [stride] * 2, "pads": [k // 2] * 4}
        return self.node("Conv", inputs, name, **attributes)

    def conv(self, x: str, path: str, stride: int = 1, relu: bool = False) -> str:
        y = self.normalized(self.conv_of(x, path, *self.folded(path), stride), path)
        return self.relu(y) if relu else y

    def normalized(self, x: str, path: str) -> str:
        """`BatchNorm.of_images` of [N, C, H, W]; x itself where `folded` has included it."""
        if not self.image_statistics or f"{path}/bn/scale" not in self.arrays:
            return x
        fraction, name = self.image_statistics, f"{path}/bn"
        scale, shift, mean, var = (
            self.constant(f"{name}/{k}", values[:, None, None], np.float32)
            for k, values in (
                ("scale", self.arrays[f"{name}/scale"]),
                ("shift", self.arrays[f"{name}/bias"]),
                ("kept_mean", (1 - fraction) * self.arrays[f"{name}/mean"]),
                ("kept_var", (1 - fraction) * self.arrays[f"{name}/var"] + BN_EPSILON),
            )
        )
        x = self.wide(x)
        fraction = self.constant("fraction", fraction, np.float32)
        own_mean = self.mean_of_positions(x, f"{name}/own_mean")
        centered = self.node("Sub", [x, own_mean], f"{name}/centered")
        squares = self.node("Mul", [centered, centered], f"{name}/squares")
        own_var = self.mean_of_positions(squares, f"{name}/own_var")
        own_mean = self.node("Mul", [own_mean, fraction], f"{name}/own_mean_fraction")
        own_var = self.node("Mul", [own_var, fraction], f"{name}/own_var_fraction")
        mean = self.node("Add", [mean, own_mean], f"{name}/mixed_mean")
        std = self.node(
            "Sqrt", [self.node("Add", [var, own_var], f"{name}/mixed_var")], f"{name}/std"
        )
        slope = self.node("Div", [scale, std], f"{name}/slope")
        offset = self.node("Mul", [mean, slope], f"{name}/offset")
        offset = self.node("Sub", [shift, offset], f"{name}/intercept")
        y = self.node("Mul", [x, slope], f"{name}/scaled")
        return self.narrow(self.node("Add", [y, offset], f"{name}/normalized"))

    def mean_of_positions(self, x: str, name: str) -> str:
        """[N, C, H, W] -> [N, C, 1, 1]."""
        if self.opset < 18:  # later, the axes are an input
            return self.node("ReduceMean", [x], name, axes=[2, 3])
        axes = self.constant("positions", [2, 3], np.int64)
        return self.node("ReduceMean", [x, axes], name)

    def relu(self, x: str) -> str:
        return self.node("Relu", [x], f"{x}/relu")

    def sum(self, terms: list[str], name: str) -> str:
        total = terms[0]
        for k, term in enumerate(terms[1:], 1):
            total = self.node("Add", [total, term], name if k == 1 else f"{name}{k}")
        return total

    def part_of_shape(self, x: str, first: int, last: int) -> str:
        """int64: the sizes of the axes `first` to `last` of x, found at run time."""
        shape, name = f"{x}/shape", f"{x}/shape{first}{last}"
        known = {n.output[0] for n in self.nodes}
        if shape not in known:
            self.node("Shape", [x], shape)
        if name not in known:
            ends = [self.constant(f"axis{k}", [k], np.int64) for k in (first, last + 1)]
            self.node("Slice", [shape, *ends], name)
        return name

    def resize(self, x: str, like: str, align_corners: bool, sizes: Sizes | None, name: str) -> str:
        """[N, C, h, w] at the height and width of `like`, bilinear.

        Args:
            x: the maps.
            like: maps of the size that is wanted.
            align_corners: as in `models.resize`.
            sizes: (height, width) of x and of `like`; None where they are open.
            name: of the new tensor.
        """
        mode = "align_corners" if align_corners else "half_pixel"
        attributes = {"mode": "linear", "coordinate_transformation_mode": mode}
        if sizes is None:
            size = [self.part_of_shape(x, 0, 1), self.part_of_shape(like, 2, 3)]
            size = self.node("Concat", size, f"{name}/size", axis=0)
            return self.node("Resize", [x, "", "", size], name, **attributes)
        if sizes[0] == sizes[1]:
            return x
        # The batch may be open, so the factors are given and not the size. "axes" would need
        # opset 18, and few tools know it.
        factors = [1, 1, *(_factor(old, new) for old, new in zip(*sizes, strict=True))]
        constant = "by_" + "x".join(f"{f:.9g}" for f in factors[2:])
        factors = self.constant(constant, factors, np.float32)
        return self.node("Resize", [x, "", factors], name, **attributes)


def _factor(old: int, new: int) -> np.float32:
    """The float32 factor by which a runtime gets from the size `old` to `new`: it rounds down."""
    factor = np.float32(new / old)
    while float(factor) * old < new:
        factor = np.nextafter(factor, np.float32(np.inf))
    return factor


class _Network:
    """The layers of hrnet.py and heads.py, in their order and under their names."""

    def __init__(self, model: HRNetModel, graph: _Graph, size: tuple[int, int] | None):
        self.model, self.graph, self.size = model, graph, size

    def stream_size(self, k: int) -> tuple[int, int] | None:
        """(height, width) of stream k, at 1 / 2**(k + 2) of the image's; None if it is open."""
        if self.size is None:
            return None
        return -(-self.size[0] // 2 ** (k + 2)), -(-self.size[1] // 2 ** (k + 2))

    def resize(self, x: str, source: int, target: int, like: str) -> str:
        """x, of the size of stream `source`, at the size of stream `target`, which `like` has."""
        old, new = self.stream_size(source), self.stream_size(target)
        sizes = (old, new) if old and new else None
        return self.graph.resize(x, like, self.model.align_corners, sizes, f"{x}/at/{like}")

    def full_size(self, x: str) -> str:
        """Logits at 1/4 resolution, at the size of the image."""
        old = self.stream_size(0)
        sizes = (old, self.size) if old and self.size else None
        return self.graph.resize(x, "image/nchw", self.model.align_corners, sizes, "logits/full")

    def backbone(self, x: str) -> list[str]:
        """Normalized [N, 3, H, W] -> the four streams (or the first, as the head asks for)."""
        v, g, root = self.model.variant, self.graph, "backbone"
        for name in ("conv1", "conv2"):
            x = g.conv(x, f"{root}/stem/{name}", stride=2, relu=True)
        for k in range(v.layer1_blocks):
            x = self.bottleneck(x, f"{root}/layer1/block{k}")
        streams = [x]
        for k, num_modules in enumerate(v.num_modules):
            streams = self.transition(streams, k + 2, f"{root}/transition{k + 1}")
            for m in range(num_modules):
                path = f"{root}/stage{k + 2}/module{m}"
                last = HEADS[self.model.head].single_output and k == 2 and m == num_modules - 1
                streams = [self.branch(s, f"{path}/branch{b}") for b, s in enumerate(streams)]
                streams = [
                    self.fused(streams, i, f"{path}/fuse")
                    for i in range(1 if last else len(streams))
                ]
        return streams

    def bottleneck(self, x: str, path: str) -> str:
        g = self.graph
        y = g.conv(x, f"{path}/conv1", relu=True)
        y = g.conv(y, f"{path}/conv2", relu=True)
        y = g.conv(y, f"{path}/conv3")
        if f"{path}/downsample/conv/kernel" in g.arrays:
            x = g.conv(x, f"{path}/downsample")
        return g.relu(g.sum([y, x], f"{path}/sum"))

    def transition(self, streams: list[str], num_streams: int, path: str) -> list[str]:
        g, out = self.graph, []
        for k in range(num_streams):
            name = f"{path}/branch{k}"
            if f"{name}/conv/kernel" not in g.arrays:
                out.append(streams[k])
            elif k < len(streams):
                out.append(g.conv(streams[k], name, relu=True))
            else:
                out.append(g.conv(streams[-1], name, stride=2, relu=True))
        return out

    def branch(self, x: str, path: str) -> str:
        g = self.graph
        for k in range(self.model.variant.num_blocks):
            y = g.conv(x, f"{path}/block{k}/conv1", relu=True)
            y = g.conv(y, f"{path}/block{k}/conv2")
            x = g.relu(g.sum([y, x], f"{path}/block{k}/sum"))
        return x

    def fused(self, streams: list[str], target: int, path: str) -> str:
        g = self.graph
        terms = []
        for source, x in enumerate(streams):
            name = f"{path}/to{target}_from{source}_conv"
            if source > target:
                x = g.conv(x, f"{name}0")
                x = self.resize(x, source, target, streams[target])
            for k in range(target - source):
                x = g.conv(x, f"{name}{k}", stride=2, relu=k < target - source - 1)
            terms.append(x)
        return g.relu(g.sum(terms, f"{path}/to{target}"))

    def conv_of_upsampled(self, streams: list[str], path: str) -> str:
        """1x1 convolution of the joined streams, each multiplied at its own resolution."""
        g = self.graph
        kernel, bias = g.folded(path)
        widths = [self.model.variant.channels[k] for k in range(len(streams))]
        offsets = np.cumsum([0, *widths])
        terms = []
        for k, x in enumerate(streams):
            part = kernel[:, :, offsets[k] : offsets[k + 1]]
            y = g.conv_of(x, f"{path}/stream{k}", part, None if k else bias)
            terms.append(self.resize(y, k, 0, streams[0]) if k else y)
        return g.relu(g.normalized(g.sum(terms, f"{path}/sum"), path))

    def head(self, streams: list[str]) -> str:
        """Logits [N, C, h, w]."""
        g = self.graph
        if self.model.head == "ocr":
            return self.ocr(streams)
        return g.conv(self.conv_of_upsampled(streams, "head/hidden"), "head/classifier")

    def ocr(self, streams: list[str]) -> str:
        g, n, root = self.graph, self.graph.node, "head"
        classes = self.model.num_classes
        hidden = self.conv_of_upsampled(streams, f"{root}/aux_hidden")
        regions_of = g.conv(hidden, f"{root}/aux_classifier")  # [N, K, h, w]
        joined = [self.resize(s, k, 0, streams[0]) if k else s for k, s in enumerate(streams)]
        joined = n("Concat", joined, f"{root}/joined", axis=1)
        pixels = g.conv(joined, f"{root}/pixels", relu=True)  # [N, 512, h, w]

        flat = g.constant("flat", [0, 0, -1], np.int64)
        weights = n("Reshape", [g.wide(regions_of), flat], f"{root}/region_logits")
        weights = n("Softmax", [weights], f"{root}/region_weights", axis=2)  # [N, K, hw]
        rows = n("Reshape", [pixels, flat], f"{root}/pixel_rows")  # [N, 512, hw]
        columns = n("Transpose", [weights], f"{root}/region_columns", perm=[0, 2, 1])
        regions = n("MatMul", [g.wide(rows), columns], f"{root}/regions")  # [N, 512, K]
        as_map = g.constant("as_map", [0, 0, classes, 1], np.int64)
        regions = n("Reshape", [g.narrow(regions), as_map], f"{root}/region_maps")

        queries = g.conv(pixels, f"{root}/f_pixel0", relu=True)
        queries = g.conv(queries, f"{root}/f_pixel1", relu=True)  # [N, 256, h, w]
        keys = g.conv(regions, f"{root}/f_object0", relu=True)
        keys = g.conv(keys, f"{root}/f_object1", relu=True)
        keys = n("Reshape", [keys, flat], f"{root}/keys")  # [N, 256, K]
        keys = n("Transpose", [keys], f"{root}/key_rows", perm=[0, 2, 1])
        keys = n("Mul", [keys, g.constant("key_scale", OCR_KEY_CHANNELS**-0.5)], f"{root}/scaled")
        values = g.conv(regions, f"{root}/f_down", relu=True)
        values = n("Reshape", [values, flat], f"{root}/values")  # [N, 256, K]

        rows = n("Reshape", [queries, flat], f"{root}/query_rows")  # [N, 256, hw]
        scores = n("MatMul", [keys, rows], f"{root}/scores")  # [N, K, hw]
        scores = g.narrow(n("Softmax", [g.wide(scores)], f"{root}/attention", axis=1))
        context = n("MatMul", [values, scores], f"{root}/context")  # [N, 256, hw]
        context = n("Reshape", [context, self.as_stream0(queries)], f"{root}/context_map")
        context = g.conv(context, f"{root}/f_up", relu=True)
        both = n("Concat", [context, pixels], f"{root}/both", axis=1)
        return g.conv(g.conv(both, f"{root}/fuse", relu=True), f"{root}/classifier")

    def as_stream0(self, like: str) -> str:
        """The shape for Reshape that makes a map of the size of stream 0, which `like` has."""
        g, size = self.graph, self.stream_size(0)
        if size is not None:
            return g.constant("as_stream0", [0, 0, *size], np.int64)
        front = g.constant("front", [0, 0], np.int64)
        return g.node("Concat", [front, g.part_of_shape(like, 2, 3)], "as_stream0", axis=0)


def build(
    model: HRNetModel,
    variables: Any,
    *,
    size: tuple[int, int] | None,
    batch_size: int | None = None,
    outputs: tuple[str, ...] = ("labels",),
    metadata: dict[str, str] | None = None,
    dtype: str = "float32",
    opset: int = OPSET,
) -> onnx.ModelProto:
    """The graph of a segmentation network with pre- and postprocessing inside.

    Input `image`: uint8 RGB [N, H, W, 3], pixels as in the file. Outputs, as chosen:
    `labels` uint8 (int32 for more than 255 classes) [N, H, W], `probabilities` float32
    [N, H, W, C], `logits` float32 [N, ceil(H / 4), ceil(W / 4), C]. The graph always contains the
    tensor "logits".

    Args:
        model: from `create_model`, with a segmentation head.
        variables: its parameters and statistics.
        size: (height, width) of the images; None leaves both open.
        batch_size: None leaves it open.
        outputs: from OUTPUTS.
        metadata: strings to store in the file.
        dtype: of weights and arithmetic, from DTYPES; inputs and outputs do not change.
        opset: version of the operators, from OPSETS.

    Raises:
        ValueError: for unknown outputs, another dtype or opset.
    """
    check(outputs, dtype, opset)
    arrays = {
        k: np.asarray(v)
        for part in ("params", "batch_stats")
        for k, v in traverse_util.flatten_dict(variables[part], sep="/").items()
    }
    g = _Graph(arrays, model.policy.image_statistics, dtype, opset)
    label_type = TensorProto.INT32 if model.num_classes > 255 else TensorProto.UINT8
    _add_nodes(g, _Network(model, g, size), outputs, label_type)
    types = _types(model.num_classes, label_type, size, batch_size)
    values = {name: helper.make_tensor_value_info(name, *types[name]) for name in types}
    given, found = [values["image"]], [values[name] for name in outputs]
    name, constants = f"hrnet_{model.variant.name}", list(g.constants.values())
    graph = helper.make_graph(g.nodes, name, given, found, constants)
    opsets = [helper.make_opsetid("", opset)]
    proto = helper.make_model(
        graph,
        opset_imports=opsets,
        ir_version=helper.find_min_ir_version_for(opsets),
        producer_name="hrnet_jax",
    )
    helper.set_model_props(proto, metadata or {})
    onnx.checker.check_model(proto)
    return proto


def check(outputs: tuple[str, ...], dtype: str, opset: int) -> None:
    """Raises a ValueError for arguments that `build` does not know."""
    if not outputs or set(outputs) - set(OUTPUTS):
        raise ValueError(f"unknown outputs {outputs}; known: {OUTPUTS}")
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; known: {DTYPES}")
    if opset not in OPSETS:
        raise ValueError(f"opset {opset} is not supported; known: {OPSETS[0]} to {OPSETS[-1]}")


def _types(
    num_classes: int, label_type: int, size: tuple[int, int] | None, batch_size: int | None
) -> dict[str, tuple[int, list]]:
    """Type and shape of the input and the outputs; open sizes have names."""
    n = batch_size or "N"
    full = list(size or ("H", "W"))
    quarter = [-(-s // 4) for s in size] if size else ["h", "w"]
    return {
        "image": (TensorProto.UINT8, [n, *full, 3]),
        "labels": (label_type, [n, *full]),
        "probabilities": (TensorProto.FLOAT, [n, *full, num_classes]),
        "logits": (TensorProto.FLOAT, [n, *quarter, num_classes]),
    }


def _add_nodes(g: _Graph, network: _Network, outputs: tuple[str, ...], label_type: int) -> None:
    """Adds everything from the tensor `image` to the tensors `outputs` and `logits`."""
    x = g.node("Transpose", ["image"], "image/nchw", perm=[0, 3, 1, 2])
    x = g.node("Cast", [x], "image/float", to=TensorProto.FLOAT)
    scale, shift = 1 / (255 * normalize.STD), -normalize.MEAN / normalize.STD
    scale, shift = (
        g.constant(f"pixel_{name}", values[:, None, None], np.float32)
        for name, values in (("scale", scale), ("shift", shift))
    )
    x = g.node("Mul", [x, scale], "image/scaled")
    x = g.narrow(g.node("Add", [x, shift], "image/normalized"))
    maps = g.wide(network.head(network.backbone(x)))  # [N, C, h, w]
    g.node("Transpose", [maps], "logits", perm=[0, 2, 3, 1])
    if not set(outputs) - {"logits"}:
        return
    full = network.full_size(maps)
    if "labels" in outputs:
        best = g.node("ArgMax", [full], "best", axis=1, keepdims=0)
        g.node("Cast", [best], "labels", to=label_type)
    if "probabilities" in outputs:
        soft = g.node("Softmax", [full], "softmax", axis=1)
        g.node("Transpose", [soft], "probabilities", perm=[0, 2, 3, 1])
