"""Parameters, multiply-accumulates and memory of a network and its parts, from shapes alone.

Layers are traced; nothing is computed.
"""

import dataclasses
import math
import re
from collections import Counter
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from hrnet_jax.models.heads import OCR_CHANNELS, OCR_KEY_CHANNELS, OCRHead
from hrnet_jax.models.layers import Conv
from hrnet_jax.models.model import HRNetModel


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a network, or a part of it, costs for one image.

    Attributes:
      parameters: numbers that training changes. The statistics of BatchNorm are not counted.
      macs: multiply-accumulates of the forward pass: one for each weight of a convolution or linear
        layer and each position of its output, and those of OCR's products of matrices. Those of
        normalization, activation, resizing, pooling and softmax are left out, as is usual.
      outputs: numbers that convolutions and linear layers put out ("activations" in arXiv
        2003.13678).
    """

    parameters: int
    macs: int
    outputs: int

    def __add__(self, other: "Cost") -> "Cost":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Cost(*(a + b for a, b in pairs))


# In the order of the computation.
PARTS = (
    "stem", "layer1", "transition1", "stage2", "transition2", "stage3", "transition3", "stage4",
    "head",
)  # fmt: skip


def part_costs(model: HRNetModel, size: tuple[int, int]) -> dict[str, Cost]:
    """The cost of each part for one image; their sum is the network's.

    The first 1x1 convolution of the segmentation heads is counted at 1/4 resolution, as in
    publications. Here it is applied to each stream at its own resolution, for an eighth of that.

    Args:
      model: of `create_model`.
      size: (height, width) of the image.

    Raises:
      ValueError: for a size below 32.
    """
    variables, macs, outputs = _trace(_plain(model), _images(size))
    parameters: Counter[str] = Counter()
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]):
        parameters[_part([key.key for key in path])] += math.prod(leaf.shape)
    return {name: Cost(parameters[name], macs[name], outputs[name]) for name in PARTS}


def kept_bytes(model: HRNetModel, size: tuple[int, int]) -> dict[str, int]:
    """Bytes of the maps that a training step keeps for the backward pass, per image and part.

    These are the maps [N, H, W, C] that JAX's differentiation of the network keeps, in the types of
    the network and with its `remat`. It is what the compiler is given, and not a measurement: the
    compiler may keep less. A step also needs memory for parameters, gradients, the optimizer,
    temporary arrays, the full-size logits and the loss. `tools.preflight` asks the compiler.

    Args:
      model: of `create_model`.
      size: (height, width) of the image.

    Raises:
      ValueError: for a size below 32.
    """
    model, batch_size = _plain(model), 2  # no kernel begins with 2
    images = _images(size, batch_size)
    variables = jax.eval_shape(
        lambda x: nn.Module.init(model, jax.random.key(0), x, train=False), images
    )

    def keep(params, stats, images):
        def forward(params):
            everything = {"params": params, "batch_stats": stats}
            key = {"dropout": jax.random.key(0)}
            return model.apply(everything, images, train=True, mutable=["batch_stats"], rngs=key)[0]

        return jax.tree.leaves(jax.vjp(forward, params)[1])

    traced = jax.make_jaxpr(keep)(variables["params"], variables["batch_stats"], images).jaxpr
    makers = {out: equation for equation in traced.eqns for out in equation.outvars}
    kept: Counter[str] = Counter()
    for out in {out for out in traced.outvars if not isinstance(out, Literal)} & set(makers):
        equation, shape = makers[out], out.aval.shape
        place = re.search(r"/(backbone/\w+|head)", str(equation.source_info.name_stack))
        # Resizing ("cond", over the platforms) keeps its weights only.
        is_map = len(shape) == 4 and shape[0] == batch_size and equation.primitive.name != "cond"
        if is_map and place:
            part = place[1].removeprefix("backbone/")
            kept[part] += math.prod(shape) * out.aval.dtype.itemsize // batch_size
    return {name: kept[name] for name in PARTS}


def _plain(model: HRNetModel) -> HRNetModel:
    """The network without loops and folded maps, in which a layer stands for others than itself."""
    return model.clone(policy=dataclasses.replace(model.policy, scan="none", lanes=0))


def _images(size: tuple[int, int], batch_size: int = 1) -> jax.ShapeDtypeStruct:
    if min(size) < 32:
        raise ValueError(f"size {size[0]}x{size[1]}: height and width must be 32 or more")
    return jax.ShapeDtypeStruct((batch_size, *size, 3), jnp.float32)


def _part(path: Any) -> str:
    """ "backbone", "stage2", ... -> "stage2"; "head", ... -> "head"."""
    return path[1] if path[0] == "backbone" else path[0]


def _trace(model: HRNetModel, images: Any) -> tuple[Any, Counter, Counter]:
    """Shapes of the variables; multiply-accumulates and outputs of each part."""
    macs: Counter[str] = Counter()
    outputs: Counter[str] = Counter()

    def add(next_function, args, kwargs, context):
        result = next_function(*args, **kwargs)
        module = context.module
        if context.method_name != "__call__":
            return result
        if isinstance(module, Conv | nn.Dense):
            kernel = module.variables["params"]["kernel"]
            macs[_part(module.path)] += math.prod(result.shape[:-1]) * math.prod(kernel.shape)
            outputs[_part(module.path)] += math.prod(result.shape)
        elif isinstance(module, OCRHead):
            # Features of the regions, similarity of pixels and regions, and the weighted regions.
            channels = OCR_CHANNELS + 2 * OCR_KEY_CHANNELS
            macs[_part(module.path)] += math.prod(result["logits"].shape) * channels
        return result

    def init(images):
        with nn.intercept_methods(add):
            # The class's own init traces; HRNetModel's draws the arrays.
            return nn.Module.init(model, jax.random.key(0), images, train=False)

    return jax.eval_shape(init, images), macs, outputs
