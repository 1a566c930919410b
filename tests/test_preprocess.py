"""Colours: by hand, against the operations one after the other, the same on any devices."""

import jax
import numpy as np
import pytest

from hrnet_jax import preprocess, sharding


def _images(n=4, size=(64, 8)):
    return np.random.default_rng(0).integers(0, 256, (n, *size, 3)).astype(np.uint8)


def test_normalize_takes_floats_as_well():
    images = _images(1)
    expected = (images / 255 - preprocess.MEAN) / preprocess.STD
    np.testing.assert_allclose(preprocess.normalize(images), expected, atol=1e-6)
    np.testing.assert_array_equal(
        preprocess.normalize(images.astype(np.float32)), preprocess.normalize(images)
    )


def test_factors_of_one_change_nothing():
    images = _images()
    np.testing.assert_array_equal(preprocess.adjust_color(images, np.ones((4, 3))), images)


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        ((1.5, 1, 1), [[150, 0, 0], [60, 60, 60]]),
        ((3, 1, 1), [[255, 0, 0], [120, 120, 120]]),
        # Lumas 29.9 and 40, mean 34.95: half way to it.
        ((1, 0.5, 1), [[67.475, 17.475, 17.475], [37.475, 37.475, 37.475]]),
        ((1, 2, 1), [[165.05, 0, 0], [45.05, 45.05, 45.05]]),
        ((1, 1, 0), [[29.9, 29.9, 29.9], [40, 40, 40]]),
        ((1, 1, 2), [[170.1, 0, 0], [40, 40, 40]]),
        # 2x: [200, 0, 0] and 80; half way to the mean luma 69.9: [134.95, 34.95, 34.95], 74.95
        # with lumas 64.85 and 74.95; half way to those.
        ((2, 0.5, 0.5), [[99.9, 49.9, 49.9], [74.95, 74.95, 74.95]]),
    ],
)
def test_colours_by_hand(factors, expected):
    images = np.array([[[[100, 0, 0], [40, 40, 40]]]], np.uint8)
    got = preprocess.adjust_color(images, np.array([factors], np.float32))
    np.testing.assert_allclose(got[0, 0], expected, rtol=1e-6)


def test_factors_depend_on_seed_step_and_place_only():
    draw = jax.jit(preprocess.color_factors, static_argnums=(0, 2, 3))
    many = np.asarray(draw(7, 3, 64, 0.4))
    np.testing.assert_array_equal(draw(7, 3, 5, 0.4), many[:5])
    assert not np.any(np.asarray(draw(7, 4, 64, 0.4)) == many)
    assert not np.any(np.asarray(draw(8, 3, 64, 0.4)) == many)
    assert many.dtype == np.float32
    assert np.unique(many).size == many.size
    assert 0.6 <= many.min() < 0.63
    assert 1.37 < many.max() <= 1.4
    assert many.mean() == pytest.approx(1, abs=0.06)
    with jax.enable_x64(True):
        np.testing.assert_array_equal(draw(7, 3, 5, 0.4), many[:5])


def test_devices_make_no_difference():
    images = _images(8)

    def augment(images):
        return preprocess.adjust_color(images, preprocess.color_factors(0, 5, 8, 0.5))

    augment = jax.jit(augment, compiler_options=sharding.compiler_options())
    expected = np.asarray(augment(images))
    mesh = sharding.make_mesh(data=4, space=2)
    got = augment(sharding.place_batch({"image": images}, mesh)["image"])
    np.testing.assert_allclose(got, expected, rtol=3e-7)
    assert got.sharding.is_equivalent_to(sharding.batch_sharding(mesh), 4)
