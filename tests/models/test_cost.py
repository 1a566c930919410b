"""Costs of the parts against counts by hand."""

import math

import jax.numpy as jnp
import pytest

from hrnet_jax.models import VARIANTS, cost, create_model
from hrnet_jax.models.cost import Cost


def by_hand(variant, size, num_classes, ocr=False):
    """{part: (parameters, multiply-accumulates, outputs)} from the paper's description."""
    # Positions of the maps at 1/2, 1/4, ... 1/32 resolution; sides are rounded up.
    positions = [math.prod(-(-s // 2**k) for s in size) for k in range(1, 6)]
    parts = {}

    def conv(part, level, k, i, o, *, bias=0, norm=2):
        """Adds a convolution whose output has 1 / 2**level of the image's resolution."""
        count, places = k * k * i * o, positions[level - 1] if level else num_classes
        p, m, a = parts.get(part, (0, 0, 0))
        parts[part] = p + count + (bias + norm) * o, m + count * places, a + o * places

    conv("stem", 1, 3, 3, 64)
    conv("stem", 2, 3, 64, 64)
    planes, width, c = variant.layer1_planes, 64, variant.channels
    for _ in range(variant.layer1_blocks):
        if width != 4 * planes:
            conv("layer1", 2, 1, width, 4 * planes)
        conv("layer1", 2, 1, width, planes)
        conv("layer1", 2, 3, planes, planes)
        conv("layer1", 2, 1, planes, 4 * planes)
        width = 4 * planes
    conv("transition1", 2, 3, width, c[0])
    conv("transition1", 3, 3, width, c[1])
    conv("transition2", 4, 3, c[1], c[2])
    conv("transition3", 5, 3, c[2], c[3])
    for branches, modules in zip((2, 3, 4), variant.num_modules, strict=True):
        stage = f"stage{branches}"
        for _ in range(modules):
            for k in range(branches):
                for _ in range(2 * variant.num_blocks):
                    conv(stage, k + 2, 3, c[k], c[k])
                for source in range(branches):
                    if source > k:
                        conv(stage, source + 2, 1, c[source], c[k])
                    for step in range(source, k):
                        conv(stage, step + 3, 3, c[source], c[k] if step == k - 1 else c[source])
    total = sum(c)
    conv("head", 2, 1, total, total, bias=1)
    conv("head", 2, 1, total, num_classes, bias=1, norm=0)
    if ocr:
        conv("head", 2, 3, total, 512, bias=1)
        for i, o, level in (
            (512, 256, 2), (256, 256, 2),  # queries, of each pixel
            (512, 256, 0), (256, 256, 0), (512, 256, 0),  # keys and values, of each class
            (256, 512, 2), (1024, 512, 2),
        ):  # fmt: skip
            conv("head", level, 1, i, o)
        conv("head", 2, 1, 512, num_classes, bias=1, norm=0)
        p, m, a = parts["head"]
        # Regions [K, hw] x [hw, 512], scores [hw, 256] x [256, K], context [hw, K] x [K, 256].
        parts["head"] = p, m + positions[1] * num_classes * (512 + 256 + 256), a
    return {name: Cost(*values) for name, values in parts.items()}


@pytest.mark.parametrize(("name", "parameters"), [("w18", 9_641_119), ("w48", 65_859_379)])
def test_parts_are_those_counted_by_hand(name, parameters):
    size = (512, 1024)
    found = cost.part_costs(create_model(name), size)
    assert found == by_hand(VARIANTS[name], size, 19)
    assert tuple(found) == cost.PARTS
    assert sum(part.parameters for part in found.values()) == parameters


def test_the_published_count_of_w48():
    """696.2 G at 1024x2048 in units of 2**30, as the official code counts, which adds a few more
    operations."""
    total = sum(part.macs for part in by_hand(VARIANTS["w48"], (1024, 2048), 19).values())
    assert total / 2**30 == pytest.approx(696.2, rel=5e-4)


def test_ocr_on_a_size_that_32_does_not_divide(tiny):
    size = (70, 90)
    found = cost.part_costs(create_model(tiny, 5, "ocr", scan="blocks", lanes=128), size)
    assert found == by_hand(tiny, size, 5, ocr=True)


def test_kept_maps_by_hand(tiny):
    """Each convolution's output and each activation's; a sum before an activation is not kept."""
    size, floats = (64, 96), 4
    found = cost.kept_bytes(create_model(tiny, 5), size)
    positions = [math.prod(s // 2**k for s in size) for k in range(1, 6)]
    assert found["stem"] == floats * 2 * 64 * (positions[0] + positions[1])
    # Planes 4: three convolutions and the shortcut put out 4, 4, 16, 16; activations 4, 4, 16.
    assert found["layer1"] == floats * positions[1] * (4 + 4 + 16 + 16 + 4 + 4 + 16)
    assert found["head"] == floats * positions[1] * 2 * (4 + 8 + 16 + 32)
    less = cost.kept_bytes(create_model(tiny, 5, dtype=jnp.bfloat16, remat="block"), size)
    assert less["stem"] == found["stem"] / 2
    # Of the block, its output only.
    assert less["layer1"] == floats / 2 * positions[1] * 16


def test_refuses_small_sizes(tiny):
    for count in (cost.part_costs, cost.kept_bytes):
        with pytest.raises(ValueError, match="size 16x64: height and width must be 32 or more"):
            count(create_model(tiny, 5), (16, 64))
