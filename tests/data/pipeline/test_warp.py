"""Rotation, shear and perspective: by hand, against other packages, and in any window of it."""

import numpy as np
import pytest
from scipy import ndimage

from hrnet_jax.data.pipeline import warp
from hrnet_jax.data.pipeline.augment import Augmentation, View, apply_view, sample_view, window
from hrnet_jax.models import normalize

NO_CORNERS = np.zeros((4, 2))


def _pair(height, width, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    return image, rng.integers(0, 19, (height, width), np.uint8)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_quarter_turns_are_numpys(quarters):
    image, label = _pair(24, 24)
    turn = warp.matrix(90 * quarters, 0, NO_CORNERS, (12, 12), (24, 24))
    pixels, ids = apply_view(image, label, View((24, 24), (0, 0), False, 0, turn), (24, 24))
    np.testing.assert_array_equal(pixels, np.rot90(image, quarters))
    np.testing.assert_array_equal(ids, np.rot90(label, quarters))


def test_no_warp_is_the_crop_itself():
    image, label = _pair(40, 60)
    still = warp.matrix(0, 0, NO_CORNERS, (3, 4), (16, 24))
    # At the size of the image, so that the labels' nearest pixel is the same in both.
    for flip in (False, True):
        view = View((40, 60), (5, 7), flip, 9)
        got = apply_view(image, label, view._replace(matrix=still), (16, 24))
        for found, expected in zip(got, apply_view(image, label, view, (16, 24)), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_rotation_is_scipys_where_the_image_is():
    image, label = _pair(31, 31)
    turn = warp.matrix(20, 0, NO_CORNERS, (15.5, 15.5), (31, 31))
    pixels, ids = apply_view(image, label, View((31, 31), (0, 0), False, 0, turn), (31, 31))
    expected = ndimage.rotate(image.astype(float), 20, reshape=False, order=1, mode="nearest")
    assert np.abs(pixels - expected)[7:-7, 7:-7].max() <= 0.5 + 1e-3
    nearest = ndimage.rotate(label, 20, reshape=False, order=0, mode="nearest")
    np.testing.assert_array_equal(ids[7:-7, 7:-7], nearest[7:-7, 7:-7])


def test_shear_and_perspective_by_hand():
    # A lean of 45 degrees: each row above the pivot moves right by its distance to it.
    matrix = np.array(warp.matrix(0, 45, NO_CORNERS, (10, 5), (20, 30)))
    for (x, y), expected in (((5, 10), (5, 10)), ((7, 8), (5, 8)), ((5, 14), (9, 14))):
        np.testing.assert_allclose(matrix @ (x, y, 1), (*expected, 1), atol=1e-12)
    # The corners see what the moves say, up to the step that keeps the pivot at its place.
    moves = np.array([[0.1, 0.0], [-0.1, 0.05], [0.0, 0.1], [0.0, -0.1]])
    matrix = np.array(warp.matrix(0, 0, moves, (10, 15), (20, 30)))
    corners = np.array([[0, 0, 1], [30, 0, 1], [0, 20, 1], [30, 20, 1]])
    seen = corners @ matrix.T
    seen = seen[:, :2] / seen[:, 2:]
    step = seen - (corners[:, :2] + moves * (30, 20))
    np.testing.assert_allclose(step, np.tile(step[0], (4, 1)), atol=1e-9)
    center = matrix @ (15, 10, 1)
    np.testing.assert_allclose(center[:2] / center[2], (15, 10), atol=1e-12)


def test_outside_is_mean_color_and_ignored():
    assert np.abs(np.array(warp.OUTSIDE_COLOR) - normalize.MEAN * 255).max() <= 0.5
    image, label = np.zeros((16, 16, 3), np.uint8), np.zeros((16, 16), np.uint8)
    turn = warp.matrix(45, 0, NO_CORNERS, (8, 8), (16, 16))
    pixels, ids = apply_view(image, label, View((16, 16), (0, 0), False, 5, turn), (16, 16))
    outside = ids == 255
    assert outside[0, 0]
    assert not outside[4:12, 4:12].any()
    assert (pixels[outside] == warp.OUTSIDE_COLOR).all()
    assert (pixels[~outside] == 5).all()


def test_a_window_gives_the_bits_of_the_whole_and_holds_the_focus():
    image, label = _pair(100, 150)
    settings = Augmentation((64, 96), rotation=40, shear=20, perspective=0.2, brightness=3)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        focus = (int(rng.integers(100)), int(rng.integers(150))) if seed % 2 else None
        if focus:
            label = np.ones_like(label)
            label[focus] = 77
        view = sample_view(rng, label.shape, settings, focus)
        rows, columns = window(view, label.shape, (64, 96))
        whole = apply_view(image, label, view, (64, 96))
        part = apply_view(
            image[rows, columns],
            label[rows, columns],
            view,
            (64, 96),
            size=label.shape,
            origin=(rows.start, columns.start),
        )
        for found, expected in zip(part, whole, strict=True):
            np.testing.assert_array_equal(found, expected)
        assert (whole[1] != 255).mean() > 0.02
        if focus and view.scaled_size[0] >= 120:
            assert (whole[1] == 77).any()


def test_draws_are_in_range_and_leave_the_others_alone():
    plain = Augmentation((64, 96))
    assert not plain.warps
    settings = Augmentation((64, 96), rotation=30)
    angles = []
    for seed in range(300):
        size = (100, 150)
        view = sample_view(np.random.default_rng(seed), size, settings)
        same = sample_view(np.random.default_rng(seed), size, plain)
        assert view._replace(matrix=None) == same
        (cosine, minus, _), _, _ = view.matrix
        angles.append(np.degrees(np.arctan2(-minus, cosine)))
    assert -30 <= min(angles) < -29
    assert 29 < max(angles) <= 30
    assert abs(np.mean(angles)) < 5 * 30 / np.sqrt(3 * 300)
    for changes, message in (
        ({"rotation": 181}, r"rotation must be in 0\.\.180, got 181"),
        ({"shear": -1}, "shear"),
        ({"perspective": 0.3}, r"0\.\.0\.2, got 0\.3"),
    ):
        with pytest.raises(ValueError, match=message):
            Augmentation((64, 96), **changes)
