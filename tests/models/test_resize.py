"""Resizing by hand, and its forms for the platforms against each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hrnet_jax.models import resize as resizing
from hrnet_jax.models.resize import resize


def _row(values):
    return jnp.asarray(values, jnp.float32).reshape(1, 1, -1, 1)


@pytest.mark.parametrize(
    ("size", "align_corners", "expected"),
    [
        # Half-pixel centres: outputs at -0.25, 0.25, 0.75, 1.25 with the edge repeated.
        (4, False, [0, 2, 6, 8]),
        (4, True, [0, 8 / 3, 16 / 3, 8]),
        # 2 -> 3: outputs at -1/6, 1/2, 7/6.
        (3, False, [0, 4, 8]),
        (3, True, [0, 4, 8]),
        (1, False, [4]),
        (1, True, [0]),
    ],
)
def test_bilinear_by_hand(size, align_corners, expected):
    out = resize(_row([0, 8]), (1, size), align_corners=align_corners)
    np.testing.assert_allclose(out[0, 0, :, 0], expected, rtol=1e-6)


def test_bilinear_shrinks_without_antialiasing():
    # 4 -> 2: outputs at 0.5 and 2.5; an antialiased resize would mix in all four.
    out = resize(_row([0, 2, 10, 30]), (1, 2))
    np.testing.assert_allclose(out[0, 0, :, 0], [1, 20], rtol=1e-6)


def test_nearest_rounds_down():
    out = resize(_row([1, 2, 3]), (1, 5), method="nearest")
    np.testing.assert_array_equal(out[0, 0, :, 0], [1, 1, 2, 2, 3])
    out = resize(_row([1, 2]), (1, 6), method="nearest")
    np.testing.assert_array_equal(out[0, 0, :, 0], [1, 1, 1, 2, 2, 2])


def test_resize_names_unknown_method():
    with pytest.raises(ValueError, match=r"'cubic'.*'bilinear', 'nearest'"):
        resize(_row([1, 2]), (1, 4), method="cubic")


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_whole_factors_agree_with_the_general_form(factor):
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 4))
    general = x
    for axis, out in ((1, 3 * factor), (2, 5 * factor)):
        general = resizing._interpolate_axis(general, axis, out, False)
    np.testing.assert_allclose(resize(x, (3 * factor, 5 * factor)), general, atol=2e-6)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", [(32, 16), (128, 64), (50, 20), (16, 16), (16, 24)])
def test_resizing_by_matrix_is_the_same(size, align_corners):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 8, 3)), jnp.float32)
    found = resizing._resize_by_matrix(x, size, align_corners)
    expected = resizing._resize(x, size, "bilinear", align_corners)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_only_tpus_resize_by_matrix(platform):
    x = jnp.zeros((1, 16, 8, 3))
    exported = jax.export.export(jax.jit(lambda x: resize(x, (32, 16))), platforms=[platform])
    # Matrices of eight parts of the height: four rows of two, and the neighbors' two.
    assert ("tensor<8x4x4xf32>" in exported(x).mlir_module()) == (platform == "tpu")


SIZES = [
    (32, 16),
    (128, 64),
    (64, 32),
    (50, 20),
    (16, 16),
    (16, 24),
    (17, 9),
    (31, 9),
    (5, 3),
    (1, 1),
]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.float64, 1e-14)], ids=["float32", "float64"]
)
def test_resizing_by_sums_is_the_same(size, align_corners, dtype, tolerance):
    """Values and gradients of the form for GPU against that for CPU, of maps of 16x8."""
    with jax.enable_x64(dtype == jnp.float64):
        rng = np.random.default_rng(0)
        x = jnp.asarray(rng.uniform(-1, 1, size=(2, 16, 8, 3)), dtype)
        gradient = jnp.asarray(rng.uniform(-1, 1, size=(2, *size, 3)), dtype)
        found, of_found = jax.vjp(lambda x: resizing._resize_by_sums(x, size, align_corners), x)
        by_axis = functools.partial(resizing._resize, method="bilinear")
        expected, of_expected = jax.vjp(lambda x: by_axis(x, size, align_corners=align_corners), x)
        assert found.dtype == dtype
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
        found, expected = of_found(gradient)[0], of_expected(gradient)[0]
        # A sum over up to so many products per old sample.
        terms = max(1, size[0] * size[1] // 128)
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * terms)


@pytest.mark.parametrize("size", [(3, 5), (7, 9), (14, 6)])
@pytest.mark.parametrize("align_corners", [False, True])
def test_resizing_by_sums_from_odd_sizes(size, align_corners):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 7, 3, 2)), jnp.float32)
    found = resizing._resize_by_sums(x, size, align_corners)
    expected = resizing._resize_by_matrix(x, size, align_corners)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_sums_of_bfloat16_are_rounded_once_per_axis():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 4, 3)), jnp.bfloat16)
    found = resizing._resize_by_sums(x, (16, 16), False)
    wide = resizing._resize_by_sums(x.astype(jnp.float32), (4, 16), False)
    wide = wide.astype(jnp.bfloat16).astype(jnp.float32)
    expected = resizing._resize_by_sums(wide, (16, 16), False).astype(jnp.bfloat16)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("factor", [1.5, 2])
@pytest.mark.parametrize("form", ["_resize", "_resize_by_sums", "_resize_by_matrix"])
def test_resizing_in_every_mode_of_differentiation(form, factor):
    """Forward and reverse, both orders, mapped: all equal to the product with the matrices."""
    rng = np.random.default_rng(0)
    height = resizing.HEIGHT_PARTS
    x, v = (jnp.asarray(rng.normal(size=(2, 2, height, 2, 1)), jnp.float32) for _ in range(2))
    extra = {"method": "bilinear"} if form == "_resize" else {}
    size = int(height * factor), 6
    resize_maps = functools.partial(
        getattr(resizing, form), size=size, align_corners=False, **extra
    )
    rows, columns = (resizing.interpolation_matrix(*n, False) for n in ((height, size[0]), (2, 6)))

    def ours(x):
        return jnp.sum(jax.vmap(resize_maps)(x) ** 3)

    def plain(x):
        return jnp.sum(jnp.einsum("oh,pw,bnhwc->bnopc", rows, columns, x) ** 3)

    for mode in (
        lambda f: jax.grad(f)(x),
        lambda f: jax.jvp(f, (x,), (v,))[1],
        lambda f: jax.linearize(f, x)[1](v),
        lambda f: jax.jvp(jax.grad(f), (x,), (v,))[1],
        lambda f: jax.grad(lambda x: jax.jvp(f, (x,), (v,))[1])(x),
    ):
        np.testing.assert_allclose(mode(ours), mode(plain), rtol=1e-4, atol=1e-4)
