"""Keypoints from heatmaps, decoded as in the official pose code (arXiv 1902.09212)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

# Left and right keypoints of COCO's 17: eyes, ears, shoulders, elbows, wrists, hips, knees, ankles.
COCO_FLIP_PAIRS = ((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16))


def decode_heatmaps(heatmaps: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The maximum of each heatmap, moved a quarter pixel towards its higher neighbors.

    Args:
      heatmaps: [N, H, W, K].

    Returns:
      keypoints [N, K, 2], (x, y) in heatmap pixels (times 4 in pixels of the input), and scores
      [N, K], the maxima. A keypoint whose maximum is not positive is (0, 0). Points in the first
      two rows or columns or in the last one are not moved, as in the official code.
    """
    n, height, width, k = heatmaps.shape
    flat = heatmaps.reshape(n, height * width, k)
    index = jnp.argmax(flat, axis=1)  # [N, K]
    scores = jnp.max(flat, axis=1)
    x, y = index % width, index // width
    inside = (x > 1) & (x < width - 1) & (y > 1) & (y < height - 1)

    def at(dx: int, dy: int) -> jax.Array:
        """The values next to the maxima; arbitrary values outside the heatmap."""
        beside = jnp.clip((y + dy) * width + x + dx, 0, height * width - 1)
        return jnp.take_along_axis(flat, beside[:, None], axis=1)[:, 0]

    offset = jnp.stack([jnp.sign(at(1, 0) - at(-1, 0)), jnp.sign(at(0, 1) - at(0, -1))], axis=-1)
    keypoints = jnp.stack([x, y], axis=-1).astype(heatmaps.dtype)
    keypoints = keypoints + jnp.where(inside[..., None], 0.25 * offset, 0)
    return jnp.where((scores > 0)[..., None], keypoints, 0), scores


def merge_flipped(
    heatmaps: jax.Array,
    flipped: jax.Array,
    pairs: Sequence[tuple[int, int]] = COCO_FLIP_PAIRS,
    *,
    shift: bool = True,
) -> jax.Array:
    """Flip test: the mean of the heatmaps of images and of their flips.

    Args:
      heatmaps: [N, H, W, K] of the images.
      flipped: [N, H, W, K] of the horizontally flipped images.
      pairs: left and right keypoints, which are exchanged by the flip.
      shift: move the flipped-back maps one pixel to the right, as the official code does, since
        samples at 1/4 resolution are off center and the flip mirrors that offset.

    Raises:
      ValueError: for different shapes, or a pair with a keypoint that does not exist.
    """
    if heatmaps.shape != flipped.shape:
        raise ValueError(f"heatmaps {heatmaps.shape} and flipped {flipped.shape} differ in shape")
    order = np.arange(heatmaps.shape[-1])
    for left, right in pairs:
        if not (0 <= left < len(order) and 0 <= right < len(order)):
            raise ValueError(f"pair {(left, right)} in {len(order)} keypoints")
        order[[left, right]] = order[[right, left]]
    back = flipped[:, :, ::-1, order]
    if shift:
        back = jnp.concatenate([back[:, :, :1], back[:, :, :-1]], axis=2)
    return (heatmaps + back) * 0.5
