"""From pixels to the network's input."""

import numpy as np

from hrnet_jax.models import normalize


def _images(n=4, size=(64, 8)):
    return np.random.default_rng(0).integers(0, 256, (n, *size, 3)).astype(np.uint8)


def test_normalize_takes_floats_as_well():
    images = _images(1)
    expected = (images / 255 - normalize.MEAN) / normalize.STD
    np.testing.assert_allclose(normalize.normalize(images), expected, atol=1e-6)
    np.testing.assert_array_equal(
        normalize.normalize(images.astype(np.float32)), normalize.normalize(images)
    )
