"""Prints the table of models: exact parameters, and multiply-accumulates of an image of 512x1024.

python docs/model_table.py [--head=segmentation] [--height=512 --width=1024]

Parameters are the sizes of the arrays that `create_model` describes, with 19 classes. One
multiply-accumulate (MAC) is counted for each weight of a convolution and each of its output pixels.
Normalization, resizing and OCR's attention are left out, as is usual in the literature. Shapes are
traced; nothing is computed.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import app, flags

from hrnet_jax.models import HEADS, VARIANTS, create_model
from hrnet_jax.models.layers import Conv

_HEAD = flags.DEFINE_enum("head", "segmentation", sorted(HEADS), "Head of the networks.")
_HEIGHT = flags.DEFINE_integer("height", 512, "Of the image, in pixels.", 32)
_WIDTH = flags.DEFINE_integer("width", 1024, "Of the image, in pixels.", 32)


def count(variant: str, head: str, size: tuple[int, int]) -> tuple[int, int]:
    """(parameters, multiply-accumulates of one image) of a network with 19 classes."""
    model = create_model(variant, num_classes=19, head=head)
    macs = 0

    def add(next_function, args, kwargs, context):
        nonlocal macs
        output = next_function(*args, **kwargs)
        if isinstance(context.module, Conv) and context.method_name == "__call__":
            kernel = context.module.variables["params"]["kernel"]
            macs += math.prod(output.shape[:-1]) * math.prod(kernel.shape)
        return output

    def run(images: jax.Array):
        with nn.intercept_methods(add):
            # The class's own init traces; HRNetModel's draws the arrays.
            return nn.Module.init(model, jax.random.key(0), images, train=False)

    variables = jax.eval_shape(run, jax.ShapeDtypeStruct((1, *size, 3), jnp.float32))
    parameters = sum(math.prod(x.shape) for x in jax.tree.leaves(variables["params"]))
    return parameters, macs


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    size = _HEIGHT.value, _WIDTH.value
    print(f"| variant | parameters | GMACs at {size[0]}x{size[1]} |")
    print("| --- | --- | --- |")
    for variant in VARIANTS:
        parameters, macs = count(variant, _HEAD.value, size)
        print(f"| {variant} | {parameters:,} | {macs / 1e9:.1f} |")


if __name__ == "__main__":
    app.run(main)
