"""Small networks and images for the tests of this folder."""

import dataclasses

import jax
import numpy as np
from PIL import Image

from hrnet_jax.data import Classes
from hrnet_jax.models import create_model

CLASSES = Classes(("a", "b", "c"), ((1, 0, 0), (0, 1, 0), (0, 0, 1)), (7, 8, 11))
SIZE = (33, 47)


@dataclasses.dataclass(frozen=True)
class Pointwise:
    """A "network" whose logits are the image's channels, every `stride`-th pixel of them."""

    stride: int = 1
    num_classes: int = 3
    head: str = "segmentation"
    align_corners: bool = False

    def apply(self, variables, images, train):
        assert not train
        return {"logits": variables["gain"] * images[:, :: self.stride, :: self.stride]}


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def random_network(variant):
    """(model, variables) with random weights that predict all classes."""
    model = create_model(variant, 3)
    variables = jax.jit(model.init)(jax.random.key(1), np.zeros((1, *SIZE, 3), np.float32))
    # The first classifier is almost 0: one class would win everywhere.
    classifier = variables["params"]["head"]["classifier"]
    classifier["kernel"] = 1000 * classifier["kernel"]
    return model, variables


def smooth_image():
    """uint8 [*SIZE, 3]."""
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3)).astype(np.uint8))
    return np.asarray(small.resize(SIZE[::-1], Image.Resampling.BICUBIC))
