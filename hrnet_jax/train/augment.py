"""Augmentation on the device, inside the jitted step: color jitter and class mixing.

Random numbers depend on the seed, the step and an image's place in the batch and on nothing else:
neither on the devices nor on the size of the batch.
"""

import jax
import jax.numpy as jnp

# Brightness of RGB as in ITU-R BT.601, which both Pillow and torchvision take.
LUMA = (0.299, 0.587, 0.114)
# The random numbers must be those of no step's dropout: steps are below 2 ** 31.
_COLOR_STREAM = 2**32 - 1
_MIX_STREAM = 2**32 - 2


def color_factors(seed: int, step: jax.Array | int, count: int, strength: float) -> jax.Array:
    """Factors of brightness, contrast and saturation, uniform in [1 - strength, 1 + strength].

    Args:
      seed: of the run.
      step: the optimizer step, an integer scalar.
      count: number of images.
      strength: 0..1.

    Returns:
      float32 [count, 3].
    """
    return jax.vmap(
        lambda key: jax.random.uniform(key, (3,), jnp.float32, 1 - strength, 1 + strength)
    )(_keys(seed, _COLOR_STREAM, step, count))


def _keys(seed: int, stream: int, step: jax.Array, count: int) -> jax.Array:
    """One key for each place in the batch."""
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), step)
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))


def adjust_color(images: jax.Array, factors: jax.Array) -> jax.Array:
    """Changes brightness, contrast and saturation as torchvision's ColorJitter does.

    With L the luma of a pixel and M the mean luma of its image, brightness b maps x to b * x,
    contrast c to c * x + (1 - c) * M, saturation s to s * x + (1 - s) * L. Their order does not
    matter, since values are neither rounded nor clipped in between, only clipped at the end;
    ColorJitter, which does both after each, is the same in a random order but for that.

    Args:
      images: uint8 RGB [N, H, W, 3]; fewer than 2 ** 24 pixels each.
      factors: [N, 3], as `color_factors` gives them. Ones leave an image as it is.

    Returns:
      float32 [N, H, W, 3] in 0..255.
    """
    n, height, width, _ = images.shape
    # A sum of integers, rows first, which is fast: the same bits however images are split.
    rows = jnp.sum(images.reshape(n, height, width * 3), axis=1, dtype=jnp.uint32)
    means = jnp.sum(rows.reshape(n, width, 3), axis=1, dtype=jnp.uint32) / (height * width)
    mean_luma = sum(means[:, i].astype(jnp.float32) * LUMA[i] for i in range(3))
    brightness, contrast, saturation = (factors[:, i] for i in range(3))
    # All three at once: own * x + shared * L + shift.
    own = (saturation * contrast * brightness)[:, None, None]
    shared = ((1 - saturation) * contrast * brightness)[:, None, None]
    shift = ((1 - contrast) * brightness * mean_luma)[:, None, None]
    # Channel by channel: fewer and smaller arrays where XLA does not fuse them (CPU).
    planes = [images[..., i].astype(jnp.float32) for i in range(3)]
    common = shared * sum(plane * LUMA[i] for i, plane in enumerate(planes)) + shift
    return jnp.stack([jnp.clip(own * plane + common, 0, 255) for plane in planes], axis=-1)


def mix_classes(
    images: jax.Array,
    labels: jax.Array,
    seed: int,
    step: jax.Array | int,
    fraction: float,
    ignore_label=255,
) -> tuple[jax.Array, jax.Array]:
    """Pastes some classes of the next image of the batch over an image, with their labels.

    The pixels of each of the next image's classes are taken with probability 1/2, all or none of
    them, at their own place; those to be ignored are not. The last image's next one is the first.
    This is ClassMix (arXiv 2007.07936) with true labels in the place of predicted ones: classes
    appear in surroundings that no frame shows.

    Args:
      images: [N, H, W, 3], N > 1.
      labels: [N, H, W] integers.
      seed: of the run.
      step: the optimizer step, an integer scalar.
      fraction: probability that an image gets anything pasted, 0..1.
      ignore_label: label of no class.

    Returns:
      Images and labels, of the same shapes and types.
    """

    def draw(key):
        chosen, numbers = jax.random.split(key)
        chosen = jax.random.uniform(chosen, (), jnp.float32) < fraction
        return chosen, jax.random.bits(numbers, (2,), jnp.uint32)

    chosen, numbers = jax.vmap(draw)(_keys(seed, _MIX_STREAM, step, len(images)))
    chosen, factor, shift = (x[:, None, None] for x in (chosen, numbers[:, 0] | 1, numbers[:, 1]))
    next_images, next_labels = jnp.roll(images, -1, axis=0), jnp.roll(labels, -1, axis=0)
    # The top bit of a random odd multiple says whether a class is taken, so that there is no table
    # of classes to be looked up for each pixel.
    taken = (next_labels.astype(jnp.uint32) * factor + shift) >> 31 == 1
    pasted = chosen & taken & (next_labels != ignore_label)
    return (
        jnp.where(pasted[..., None], next_images, images),
        jnp.where(pasted, next_labels, labels),
    )
