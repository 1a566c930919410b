"""Layers against values computed by hand or by a second, plainer formulation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import fast_jit
from jax.test_util import check_grads

from hrnet_jax.models import layers
from hrnet_jax.models.backbone import Branch, Stem
from hrnet_jax.models.layers import BatchNorm, Conv, ConvBN, Policy, relu
from hrnet_jax.models.resize import resize
from hrnet_jax.runtime import sharding


def test_strided_convolution_pads_both_sides():
    x = jnp.arange(1.0, 5.0).reshape(1, 1, 4, 1)
    kernel = jnp.ones((3, 3, 1, 1))
    # Windows centred on columns 0 and 2: (0 + 1 + 2) and (2 + 3 + 4).
    np.testing.assert_allclose(layers.conv2d(x, kernel, 2)[0, 0, :, 0], [3, 9])


def test_pointwise_convolution_is_the_matrix_product():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
    kernel = jax.random.normal(jax.random.key(1), (1, 1, 5, 6))
    expected = np.asarray(x) @ np.asarray(kernel)[0, 0]
    np.testing.assert_allclose(layers.conv2d(x, kernel), expected, atol=1e-5)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("channels", [3, 18, 48])
def test_convolution_of_inference_is_the_same(k, channels):
    x = jax.random.normal(jax.random.key(0), (2, 5, 7, channels))
    kernel = jax.random.normal(jax.random.key(1), (k, k, channels, 6))
    found = fast_jit(layers.conv2d_of_inference)(x, kernel)
    np.testing.assert_allclose(found, layers.conv2d(x, kernel), atol=1e-4)


@pytest.mark.parametrize(("channels", "alone"), [(18, True), (48, False)])
def test_who_computes_convolutions_of_inference(channels, alone):
    block = layers.BasicBlock(channels)
    x = jnp.zeros((1, 32, 64, channels))
    variables = jax.eval_shape(functools.partial(block.init, train=False), jax.random.key(0), x)
    run = jax.jit(
        functools.partial(block.apply, train=False),
        compiler_options=sharding.compiler_options("cpu"),
    )
    entry = run.lower(variables, x).compile().as_text().split("ENTRY", 1)[1]
    # What the library computes stands in computations of its own.
    assert entry.count(" convolution(") == (2 if alone else 0)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("sizes", [((8, 16), (4, 8), (2, 4)), ((7, 9), (4, 5), (2, 3))])
def test_pointwise_convolution_commutes_with_upsampling(align_corners, sizes):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(2, *size, c) for size, c in zip(sizes, (3, 5, 7), strict=True)]
    streams = tuple(map(jax.random.normal, keys[:3], shapes))
    kernel = jax.random.normal(keys[3], (1, 1, 15, 6))
    upsampled = [resize(s, sizes[0], align_corners=align_corners) for s in streams]
    expected = layers.conv2d(jnp.concatenate(upsampled, axis=-1), kernel)
    actual = layers.conv1x1_of_upsampled(streams, kernel, align_corners)
    np.testing.assert_allclose(actual, expected, atol=2e-5)


def test_batch_norm_by_hand():
    # Mean 2, biased variance 4, unbiased 4 * 4 / 3.
    x = jnp.asarray([0.0, 4.0, 0.0, 4.0]).reshape(2, 1, 2, 1)
    bn = BatchNorm(1)
    variables = bn.init(jax.random.key(0), x)
    y, new = bn.apply(variables, x, mutable=["batch_stats"])
    std = np.sqrt(4 + 1e-5)
    np.testing.assert_allclose(y.ravel(), np.array([-2, 2, -2, 2]) / std, rtol=1e-6)
    np.testing.assert_allclose(new["batch_stats"]["mean"], [0.1 * 2], rtol=1e-6)
    np.testing.assert_allclose(new["batch_stats"]["var"], [0.9 + 0.1 * 16 / 3], rtol=1e-6)


def test_batch_norm_gradient_is_that_of_its_definition():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 5)) * 3 + 1
    weights = jax.random.normal(jax.random.key(1), x.shape)
    bn = BatchNorm(5)
    variables = bn.init(jax.random.key(2), x)

    def ours(x, params):
        y, _ = bn.apply({**variables, "params": params}, x, mutable=["batch_stats"])
        return jnp.sum(y * weights)

    def plain(x, params):
        centred = x - x.mean((0, 1, 2))
        y = centred / jnp.sqrt((centred**2).mean((0, 1, 2)) + 1e-5)
        return jnp.sum((y * params["scale"] + params["bias"]) * weights)

    actual = jax.grad(ours, (0, 1))(x, variables["params"])
    expected = jax.grad(plain, (0, 1))(x, variables["params"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), actual, expected)


@pytest.mark.parametrize("layer", ["relu", "batch_norm"])
def test_derivatives_of_both_modes_and_orders(layer):
    """Against differences, in float64; relu away from its corner, where it has no derivative."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = jnp.asarray(rng.uniform(0.5, 2, (2, 2, 2, 6)) * rng.choice([-1, 1], (2, 2, 2, 6)))
        scale, bias = jnp.asarray(rng.normal(size=(2, 3)))
        functions = {
            "relu": (lambda x: relu(x) ** 3, (x,)),
            # Six channels of three: the maps are folded.
            "batch_norm": (lambda *xs: layers.normalize_batch(*xs)[0] ** 2, (x, scale, bias)),
        }
        check_grads(*functions[layer], order=2, modes=("fwd", "rev"))


def test_statistics_of_images_by_hand():
    # Of the first image mean 2 and variance 4, of the second 7 and 1; the running ones are 4 and 8.
    x = jnp.asarray([0.0, 4.0, 6.0, 8.0]).reshape(2, 1, 2, 1)
    stats = {"mean": jnp.asarray([4.0]), "var": jnp.asarray([8.0])}
    variables = {
        "params": {"scale": jnp.asarray([3.0]), "bias": jnp.asarray([1.0])},
        "batch_stats": stats,
    }
    bn = BatchNorm(1, Policy(image_statistics=0.25))
    y = bn.apply(variables, x, method="of_images")
    first, second = np.sqrt(0.75 * 8 + 0.25 * 4 + 1e-5), np.sqrt(0.75 * 8 + 0.25 * 1 + 1e-5)
    expected = np.array([-3.5 / first, 0.5 / first, 1.25 / second, 3.25 / second])
    np.testing.assert_allclose(y.ravel(), 3 * expected + 1, rtol=1e-6)
    alone = bn.apply(variables, x[1:], method="of_images")
    np.testing.assert_array_equal(y[1:], alone)


def _random_like(tree, seed=0):
    rng = np.random.RandomState(seed)
    return jax.tree.map(lambda a: jnp.asarray(rng.uniform(0.5, 1.5, a.shape), a.dtype), tree)


@pytest.mark.parametrize("use_bias", [False, True])
def test_evaluation_folds_the_normalisation(use_bias):
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 3))
    layer = ConvBN(5, 3, relu=False, use_bias=use_bias)
    variables = _random_like(layer.init(jax.random.key(1), x, train=False))
    conv = variables["params"]["conv"]
    y = layers.conv2d(x, conv["kernel"]) + conv.get("bias", 0.0)
    bn, stats = variables["params"]["bn"], variables["batch_stats"]["bn"]
    expected = (y - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * bn["scale"] + bn["bias"]
    actual = layer.apply(variables, x, train=False)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_initial_kernels_and_biases():
    x = jnp.zeros((1, 4, 4, 64))
    kaiming = Conv(128, 3, use_bias=True).init(jax.random.key(0), x)["params"]
    assert np.std(kaiming["kernel"]) == pytest.approx(np.sqrt(2 / (9 * 128)), rel=0.02)
    bound = 1 / np.sqrt(9 * 64)
    assert 0.9 * bound < np.abs(kaiming["bias"]).max() <= bound
    normal = Conv(128, 3, policy=Policy(init="normal")).init(jax.random.key(0), x)["params"]
    assert np.std(normal["kernel"]) == pytest.approx(0.001, rel=0.02)


def test_relu_and_its_gradient():
    values, gradient = jax.value_and_grad(lambda x: relu(x) @ jnp.asarray([2.0, 3, 5, 7]))(
        jnp.asarray([-1.0, 0, 0.5, 4])
    )
    assert values == 0.5 * 5 + 4 * 7
    np.testing.assert_array_equal(gradient, [0, 0, 5, 7])


@pytest.mark.parametrize(("by", "share"), [(2, 0.0), (4, 0.0), (2, 0.5)])
def test_folded_branch(by, share):
    """Neighbours side by side in the channels: the same results, statistics and gradients."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 8, 3)), jnp.float32)
    plain = Branch(3, 2, Policy(image_statistics=share))
    variables = plain.init(jax.random.key(0), x, train=False)
    policy = Policy(lanes=3 * by + 1, image_statistics=share)
    assert policy.folds(x) == by

    def results(branch):
        def loss(params, x):
            y, updated = branch.apply(
                variables | {"params": params}, x, train=True, mutable=["batch_stats"]
            )
            return jnp.sum(y * jnp.cos(y)), updated

        evaluated = branch.apply(variables, x, train=False)
        return evaluated, jax.value_and_grad(loss, (0, 1), has_aux=True)(variables["params"], x)

    expected = jax.tree.leaves(fast_jit(lambda: results(plain))())
    found = jax.tree.leaves(fast_jit(lambda: results(Branch(3, 2, policy)))())
    for f, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(f, e, rtol=1e-4, atol=1e-5 * np.abs(e).max())


@pytest.mark.parametrize(("k", "by"), [(1, 2), (3, 2), (3, 4)])
def test_folded_kernels(k, by):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(1, 5, 8, 2)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(k, k, 2, 3)), jnp.float32)
    found = layers.conv2d(layers.fold(x, by), layers.fold_kernel(kernel, by))
    expected = layers.fold(layers.conv2d(x, kernel), by)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_stem_convolves_pairs():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 6, 8, 3)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 3, 5)), jnp.float32)
    expected = layers.conv2d(x, kernel, 2)
    found = layers.strided_conv_of_pairs(layers.fold(x, 2), kernel)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    conv = Conv(5, 3, 2, folded=2)
    found = conv.apply({"params": {"kernel": kernel}}, layers.fold(x, 2))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    plain = Stem()
    variables = plain.init(jax.random.key(0), x, train=False)
    stem = fast_jit(functools.partial(Stem(Policy(lanes=128)).apply, train=False))
    for width in (8, 7):  # an odd one has no pairs
        expected = plain.apply(variables, x[:, :, :width], train=False)
        np.testing.assert_allclose(stem(variables, x[:, :, :width]), expected, atol=1e-5)
        program = stem.lower(variables, x[:, :, :width]).as_text()
        assert ("tensor<2x6x4x6xf32>" in program) == (width == 8)


def test_what_is_folded():
    policy = Policy(lanes=128)
    shapes = [(1, 4, 256, 18), (1, 4, 256, 48), (1, 4, 255, 48), (1, 4, 256, 96), (1, 4, 256, 64)]
    assert [policy.folds(jnp.zeros(shape)) for shape in shapes] == [4, 2, 1, 1, 2]
    assert Policy().folds(jnp.zeros((1, 4, 256, 18))) == 1
