"""Images split over devices, by rows of the batch and by height: the same results, halos only.

With a network of two streams that has every kind of layer; a whole one takes minutes to compile for
eight devices.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import FAST_COMPILE, fast_jit

from hrnet_jax.models import create_model, resize
from hrnet_jax.models.backbone import Stage, Stem, Transition
from hrnet_jax.models.heads import make_head
from hrnet_jax.models.layers import Policy
from hrnet_jax.preflight import hlo
from hrnet_jax.runtime import sharding
from hrnet_jax.train import losses, optimizers
from hrnet_jax.train.step import create_state, make_train_step

SIZE, CLASSES = (64, 32), 5
SCHEDULE = optimizers.poly_schedule(0.1, 100)
OPTIMIZER = optimizers.make_optimizer(SCHEDULE)
# The usual programs, made in a fraction of the time: LLVM does not optimise them.
OPTIONS = sharding.compiler_options("cpu") | FAST_COMPILE
CASES = [
    ("segmentation", 8, 1),
    ("segmentation", 4, 2),
    ("segmentation", 2, 4),
    ("segmentation", 1, 8),
    ("ocr", 2, 4),
]


class TwoStreams(nn.Module):
    """Stem, one stage of two streams, a head: 1/4 and 1/8 resolution."""

    head: str
    align_corners: bool
    num_classes: int = CLASSES
    policy: Policy = Policy()

    @nn.compact
    def __call__(self, images, *, train=False):
        policy = self.policy
        x = Stem(policy, name="stem")(images.astype(policy.dtype), train=train)
        streams = Transition((8, 16), policy, name="transition")((x,), train=train)
        method = "bilinear"
        streams = Stage((8, 16), 1, 1, method, self.align_corners, policy=policy, name="stage")(
            streams, train=train
        )
        head = make_head(self.head, CLASSES, self.align_corners, 0.0, self.policy)
        return head(streams, train=train)


def _model(head):
    if head != "ocr":
        return TwoStreams(head, align_corners=False)
    # Its softmax over all positions amplifies the rounding of float32 beyond the tolerances.
    return TwoStreams(head, align_corners=True, policy=Policy(jnp.float64, jnp.float64))


def _batch():
    rng = np.random.default_rng(0)
    label = rng.integers(0, CLASSES, (8, *SIZE)).astype(np.uint8)
    label[:, :3] = 255
    return {"image": rng.integers(0, 256, (8, *SIZE, 3)).astype(np.uint8), "label": label}


@functools.cache
def _trained(head, data, space):
    with jax.enable_x64(head == "ocr"):
        return train_once(head, sharding.make_mesh(data, space), _batch())


def train_once(head, mesh, share):
    """The compiled step for this mesh, and its results from the same state and a batch of which
    this process has `share`."""
    model = _model(head)
    step = make_train_step(model, OPTIMIZER, SCHEDULE, losses.ohem_cross_entropy, seed=0)
    state = sharding.place_replicated(create_state(model, OPTIMIZER, seed=0), mesh)
    batch = sharding.place_batch(share, mesh)
    jitted = jax.jit(
        step,
        out_shardings=sharding.replicated(mesh),
        compiler_options=OPTIONS,
    )
    compiled = jitted.lower(state, batch).compile()
    after, measured = compiled(state, batch)
    return compiled, jax.device_get(after), jax.device_get(measured)


def _in_order(shape, shapes):
    """Gradients of kernels, also transposed or of some of a 1x1 kernel's rows, and what OCR sums
    per class: [N, classes, C], [N, 1, 1, classes], without N if that is 1 on the device."""
    if shape in shapes or (CLASSES in shape and (len(shape) < 4 or shape[1:3] == (1, 1))):
        return True
    return len(shape) == 2 and any(
        len(s) == 2 and max(shape) in s and min(shape) <= min(s) for s in shapes
    )


def _exchanged_maps(compiled, shapes):
    """Collectives on maps that are more than a halo, as text: none is wanted.

    Sums of gradients, of statistics, and of OCR's features per class are in order.
    """
    wrong = []
    for i in hlo.instructions(compiled.as_text()):
        if i.collective in ("", "collective-permute"):
            continue
        maps = [s for _, s in i.arrays if sum(n > 1 for n in s) > 1 and not _in_order(s, shapes)]
        if maps:
            wrong.append(f"{i.opcode} of {maps} in {i.op_name}")
    return wrong


@pytest.mark.parametrize(("head", "data", "space"), CASES)
def test_training_is_that_of_one_device(head, data, space):
    _, expected, measured = _trained(head, 1, 1)
    _, after, found = _trained(head, data, space)
    assert float(found["loss"]) == pytest.approx(float(measured["loss"]), rel=1e-5)
    assert float(found["pixel_accuracy"]) == float(measured["pixel_accuracy"])
    for a, e in zip(
        jax.tree.leaves(after.batch_stats), jax.tree.leaves(expected.batch_stats), strict=True
    ):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5 * np.abs(e).max())
    # After one step, SGD's momentum is the gradient and the weight decay's share.
    norm = float(measured["grad_norm"])
    for a, e in zip(
        jax.tree.leaves(after.opt_state), jax.tree.leaves(expected.opt_state), strict=True
    ):
        # As vectors: single entries near zero are made of rounding. Biases in front of a
        # normalisation have no gradient at all.
        assert np.linalg.norm(a - e) < 1e-4 * max(np.linalg.norm(e), 0.02 * norm)


@pytest.mark.parametrize(("head", "data", "space"), [("ocr", 2, 4), ("segmentation", 1, 8)])
def test_only_halos_are_exchanged(head, data, space):
    compiled, after, _ = _trained(head, data, space)
    shapes = {x.shape for x in jax.tree.leaves(after.params)}
    shapes |= {s[2:] for s in shapes if s[:2] == (1, 1)}  # 1x1 kernels are matrices
    assert not (wrong := _exchanged_maps(compiled, shapes)), "\n".join(wrong)
    assert "collective-permute" in hlo.collectives(hlo.instructions(compiled.as_text()))


@pytest.mark.parametrize("align_corners", [False, True])
def test_resizing_for_tpu_exchanges_rows_only(align_corners):
    split = sharding.batch_sharding(sharding.make_mesh(1, 8))

    def both_ways(x, gradient):
        y, vjp = jax.vjp(lambda x: resize._resize_by_matrix(x, (64, 16), align_corners), x)
        return y, vjp(gradient)

    shapes = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=split)
        for shape in ((2, 16, 4, 3), (2, 64, 16, 3))
    ]
    compiled = jax.jit(both_ways, out_shardings=split).lower(*shapes).compile()
    found = hlo.collectives(hlo.instructions(compiled.as_text()))
    # One row of [4, 3] of each of two images to and from either neighbour.
    assert {kind: entry["bytes"] for kind, entry in found.items()} == {
        "collective-permute": 4 * 2 * 4 * 3 * 4
    }


def test_the_check_sees_what_is_gathered():
    mesh = sharding.make_mesh(2, 4)
    x = jax.ShapeDtypeStruct((4, 8, 8, 3), jnp.float32, sharding=sharding.batch_sharding(mesh))
    weights = np.ones((6, 8), np.float32)
    mixed = jax.jit(lambda x: jnp.einsum("oh,nhwc->nowc", weights, x)).lower(x).compile()
    assert any("dot_general" in line for line in _exchanged_maps(mixed, set()))


def test_prediction_of_an_image_split_over_devices(tiny):
    """The same logits, and less memory on each device."""
    model = create_model(tiny, CLASSES)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    image = np.random.default_rng(0).normal(size=(1, 1024, 256, 3)).astype(np.float32)
    found, temporaries = [], []
    for space in (1, 8):
        mesh = sharding.make_mesh(1, space)
        split = sharding.batch_sharding(mesh)
        # Fused, as on accelerators: where a device adds the rows of its neighbours to its own, the
        # compiler masks them, and each of these steps would keep a map.
        jitted = fast_jit(
            lambda variables, x: model.apply(variables, x)["logits"],
            in_shardings=(sharding.replicated(mesh), split),
            out_shardings=split,
        )
        compiled = jitted.lower(variables, image).compile()
        temporaries.append(compiled.memory_analysis().temp_size_in_bytes)
        found.append(np.asarray(compiled(variables, image)))
    np.testing.assert_allclose(found[1], found[0], atol=1e-4 * np.abs(found[0]).max())
    assert temporaries[1] < temporaries[0] / 3
