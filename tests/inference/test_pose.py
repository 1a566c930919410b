"""Decoding of heatmaps, cases by hand."""

import jax
import numpy as np
import pytest

from hrnet_jax.inference.pose import decode_heatmaps, merge_flipped


def _heatmap(points, size=(8, 10)):
    heatmap = np.zeros((1, *size, 1), np.float32)
    for (x, y), value in points.items():
        heatmap[0, y, x, 0] = value
    return heatmap


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ({(4, 3): 1.0, (5, 3): 0.5, (4, 2): 0.25}, (4.25, 2.75)),
        ({(4, 3): 1.0, (3, 3): 0.5, (5, 3): 0.5}, (4.0, 3.0)),
        ({(1, 3): 1.0, (2, 3): 0.5}, (1.0, 3.0)),  # too near the left edge
        ({(9, 3): 1.0, (8, 3): 0.5}, (9.0, 3.0)),  # at the right edge
        ({(8, 6): 1.0, (9, 6): 0.5, (8, 7): 0.5}, (8.25, 6.25)),  # the last that moves
        ({(0, 0): 1.0}, (0.0, 0.0)),
        ({}, (0.0, 0.0)),  # nothing positive
    ],
)
def test_decode(points, expected):
    keypoints, scores = jax.jit(decode_heatmaps)(_heatmap(points))
    assert keypoints.shape == (1, 1, 2)
    assert tuple(np.asarray(keypoints)[0, 0]) == expected
    assert float(scores[0, 0]) == max(points.values(), default=0.0)


def test_decode_keeps_images_and_keypoints_apart():
    heatmaps = np.zeros((2, 8, 10, 3), np.float32)
    for image, keypoint, x, y in [(0, 0, 3, 3), (0, 2, 6, 4), (1, 1, 5, 5)]:
        heatmaps[image, y, x, keypoint] = 1 + keypoint
    keypoints, scores = decode_heatmaps(heatmaps)
    np.testing.assert_array_equal(keypoints[0], [[3, 3], [0, 0], [6, 4]])
    np.testing.assert_array_equal(keypoints[1], [[0, 0], [5, 5], [0, 0]])
    np.testing.assert_array_equal(scores, [[1, 0, 3], [0, 2, 0]])


def test_merge_flipped():
    heatmaps = np.zeros((1, 1, 4, 3), np.float32)
    flipped = np.arange(12, dtype=np.float32).reshape(1, 1, 4, 3)
    # Mirrored, keypoints 0 and 1 swapped: columns 3, 2, 1, 0; then one to the right.
    mirrored = np.array([[10, 9, 11], [7, 6, 8], [4, 3, 5], [1, 0, 2]], np.float32)
    plain = merge_flipped(heatmaps, flipped, [(0, 1)], shift=False)
    np.testing.assert_array_equal(plain[0, 0], mirrored / 2)
    shifted = merge_flipped(heatmaps, flipped, [(0, 1)])
    np.testing.assert_array_equal(shifted[0, 0], mirrored[[0, 0, 1, 2]] / 2)


def test_merge_flipped_refuses():
    maps = np.zeros((1, 2, 2, 3), np.float32)
    with pytest.raises(ValueError, match="differ in shape"):
        merge_flipped(maps, maps[:, :1], [])
    with pytest.raises(ValueError, match=r"pair \(1, 3\) in 3 keypoints"):
        merge_flipped(maps, maps, [(1, 3)])
