"""From uint8 pixels to the network's input."""

import jax
import jax.numpy as jnp
import numpy as np

# ImageNet statistics of RGB in [0, 1], as in the official code.
MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])


def normalize(images: jax.Array, dtype=jnp.float32) -> jax.Array:
    """RGB [..., 3], uint8 or floats in 0..255, to zero mean and unit variance in `dtype`."""
    # One multiplication and one addition per value, computed in at least float32.
    wide = jnp.promote_types(dtype, jnp.float32)
    scale, shift = 1 / (255 * STD), -MEAN / STD
    return (images.astype(wide) * scale.astype(wide) + shift.astype(wide)).astype(dtype)
