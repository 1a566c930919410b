"""Resizing by hand, and its forms for the platforms against each other."""

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
    # Matrices of eight parts of the height: four rows of two, and the neighbours' two.
    assert ("tensor<8x4x4xf32>" in exported(x).mlir_module()) == (platform == "tpu")
