"""The network in other people's programs: differentiated, mapped, tabulated, under any mesh.

A plain Linen module of the same kind is the control: what works with it has to work with ours.
"""

import contextlib
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import fast_jit
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from hrnet_jax.models import create_model
from hrnet_jax.train import losses

SIZE, CLASSES = (32, 16), 3


class Control(nn.Module):
    """Convolutions, batch normalization and resizing of Flax and JAX alone."""

    @nn.compact
    def __call__(self, images, *, train=False):
        x = nn.Conv(4, (3, 3), strides=(2, 2))(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        y = jax.image.resize(nn.Conv(4, (3, 3), strides=(2, 2))(x), x.shape, "bilinear")
        return {"logits": nn.Conv(CLASSES, (1, 1))(x + y)}


def _loss_of(model, variables, images, labels, *, train, loss_function=losses.cross_entropy):
    """(parameters, images) -> scalar."""

    def loss(params, images):
        outputs = model.apply(
            {**variables, "params": params},
            images,
            train=train,
            mutable=["batch_stats"] if train else False,
        )
        outputs = outputs[0] if train else outputs
        return losses.segmentation_loss(outputs, labels, loss_function, align_corners=False)[0]

    return loss


def _inputs(dtype, n=2):
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(n, *SIZE, 3)), dtype)
    return images, jnp.asarray(rng.integers(0, CLASSES, (n, *SIZE)))


@pytest.mark.parametrize(("head", "train"), [("segmentation", True), ("ocr", False)])
def test_every_mode_of_differentiation(tiny, head, train):
    """The whole network has them; their values are tested layer by layer."""
    model = create_model(tiny, CLASSES, head=head)
    images, labels = _inputs(jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)

    def modes(variables, images, changes):
        smoothed = functools.partial(losses.cross_entropy, label_smoothing=0.1)
        loss = _loss_of(model, variables, images, labels, train=train, loss_function=smoothed)
        at, by = (variables["params"], images), changes
        return (
            jax.linearize(loss, *at)[1](*by),
            # Hessian-vector products: forward over reverse, reverse over forward.
            jax.jvp(jax.grad(loss, (0, 1)), at, by)[1],
            jax.grad(lambda at: jax.jvp(loss, at, by)[1])(at),
        )

    changes = variables["params"], images
    change, forward, reverse = jax.eval_shape(modes, variables, images, changes)
    assert change.shape == ()
    shapes = jax.tree.map(jnp.shape, changes)
    assert jax.tree.map(jnp.shape, forward) == jax.tree.map(jnp.shape, reverse) == shapes


def test_vectors_of_jacobians_are_mapped(tiny):
    model = create_model(tiny, CLASSES)
    images, labels = _inputs(jnp.float32)
    variables = model.init(jax.random.key(0), images)
    loss = _loss_of(model, variables, images, labels, train=False)

    def of_one(image, label):
        one = _loss_of(model, variables, image[None], label[None], train=False)
        return jax.grad(one)(variables["params"], image[None])

    mapped = fast_jit(jax.vmap(of_one))(images, labels)
    mean = jax.tree.map(lambda g: g.mean(0), mapped)
    expected = fast_jit(jax.grad(loss))(variables["params"], images)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), mean, expected
    )


def test_tabulate(tiny):
    model = create_model(tiny, CLASSES)
    text = model.tabulate(jax.random.key(0), jnp.zeros((1, 64, 64, 3)), depth=1)
    assert "backbone" in text
    assert "HRNetModel" in text


MESHES = [
    ("context", AxisType.Auto),
    ("context", AxisType.Explicit),
    ("arrays", AxisType.Auto),
]


@pytest.mark.parametrize("name", ["control", "ours"])
@pytest.mark.parametrize(("how", "axis_type"), MESHES)
def test_meshes_of_other_programs(tiny, name, how, axis_type):
    """`apply` and `grad` give the same under a mesh that the caller has set, or that the images
    carry, with its own names of axes."""
    model = create_model(tiny, CLASSES) if name == "ours" else Control()
    images, _ = _inputs(jnp.float32, n=4)
    variables = model.init(jax.random.key(0), images)

    def both(variables, images):
        def loss(params, images):
            outputs, _ = model.apply(
                {**variables, "params": params}, images, train=True, mutable=["batch_stats"]
            )
            return jnp.mean(jnp.sin(outputs["logits"]))

        logits = model.apply(variables, images, train=False)["logits"]
        return logits, jax.grad(loss)(variables["params"], images)

    expected = fast_jit(both)(variables, images)
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(axis_type,), devices=jax.devices()[:2])
    context = jax.set_mesh(mesh) if how == "context" else contextlib.nullcontext()
    with context:
        if how == "arrays":
            images = jax.device_put(images, NamedSharding(mesh, PartitionSpec("batch")))
            variables = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
        found = fast_jit(both)(variables, images)
    norm = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected))
    for f, e in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(f), e, rtol=1e-3, atol=1e-4 * norm)
