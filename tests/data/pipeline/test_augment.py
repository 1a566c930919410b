import collections

import numpy as np
import pytest

from hrnet_jax.data.pipeline.augment import Augmentation, View, apply_view, sample_view, scaled_size

OFFICIAL = {
    "crop_size": (60, 90),
    "scale_min": 0.5,
    "scale_max": 2.1,
    "scale_step": 0.1,
    "flip": True,
    "brightness": 0,
}


def resize_whole(image, label, size):
    """Plain and slow: the whole image at once, one output pixel after the other."""
    height, width = label.shape
    pixels = np.zeros((*size, 3))
    ids = np.zeros(size, np.uint8)
    for y in range(size[0]):
        for x in range(size[1]):
            v, u = (y + 0.5) * height / size[0] - 0.5, (x + 0.5) * width / size[1] - 0.5
            v0, u0 = int(np.floor(v)), int(np.floor(u))
            for dv, wv in ((0, v0 + 1 - v), (1, v - v0)):
                for du, wu in ((0, u0 + 1 - u), (1, u - u0)):
                    row, column = min(max(v0 + dv, 0), height - 1), min(max(u0 + du, 0), width - 1)
                    pixels[y, x] += wv * wu * image[row, column]
            ids[y, x] = label[y * height // size[0], x * width // size[1]]
    return pixels, ids


def random_pair(rng, height, width):
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    return image, rng.integers(0, 19, (height, width), np.uint8)


@pytest.mark.parametrize("scaled", [(11, 17), (5, 8), (23, 36), (16, 24), (3, 31)])
@pytest.mark.parametrize("flip", [False, True])
def test_equals_resizing_the_whole_image(scaled, flip):
    rng = np.random.default_rng(sum(scaled))
    image, label = random_pair(rng, 11, 17)
    expected, ids = resize_whole(image, label, scaled)
    crop = (6, 9)
    top, left = (max(0, s - c) // 2 for s, c in zip(scaled, crop, strict=True))
    part = expected[top : top + 6, left : left + 9]
    height, width = part.shape[:2]
    pixels = np.zeros((*crop, 3))
    pixels[:height, :width] = part
    padded = np.full(crop, 255, np.uint8)
    padded[:height, :width] = ids[top : top + 6, left : left + 9]
    got, got_ids = apply_view(image, label, View(scaled, (top, left), flip, 0), crop)
    if flip:
        pixels, padded = pixels[:, ::-1], padded[:, ::-1]
    assert got.dtype == got_ids.dtype == np.uint8
    # Rounded once, from single precision.
    assert np.abs(got - pixels).max() <= 0.5 + 1e-4
    np.testing.assert_array_equal(got_ids, padded)


def test_crop_is_the_same_bits_as_in_the_whole():
    rng = np.random.default_rng(5)
    image, label = random_pair(rng, 70, 130)
    for scaled in ((70, 130), (91, 169), (44, 81), (133, 247)):
        whole, whole_ids = apply_view(image, label, View(scaled, (0, 0), False, 0), scaled)
        for _ in range(5):
            top, left = (
                int(rng.integers(s - c + 1)) for s, c in zip(scaled, (33, 48), strict=True)
            )
            crop, ids = apply_view(image, label, View(scaled, (top, left), False, 0), (33, 48))
            np.testing.assert_array_equal(crop, whole[top : top + 33, left : left + 48])
            np.testing.assert_array_equal(ids, whole_ids[top : top + 33, left : left + 48])


def test_by_hand():
    image = np.array([[0, 40, 200]], np.uint8)[..., None].repeat(3, -1)
    label = np.array([[1, 2, 3]], np.uint8)
    # Twice the width: centres at -0.25 (edge), 0.25, 0.75, 1.25, 1.75, 2.25 (edge).
    pixels, ids = apply_view(image, label, View((1, 6), (0, 0), False, 0), (1, 6))
    assert pixels[0, :, 0].tolist() == [0, 10, 30, 80, 160, 200]
    assert ids[0].tolist() == [1, 1, 2, 2, 3, 3]
    # Two thirds: centres at 0.25 and 1.75; nearest floor(0) and floor(1.5). Padded by one.
    pixels, ids = apply_view(image, label, View((1, 2), (0, 0), False, 0), (2, 3))
    assert pixels[0, :, 0].tolist() == [10, 160, 0]
    assert ids.tolist() == [[1, 2, 255], [255, 255, 255]]
    assert not pixels[1].any()
    # The same mirrored: the padding moves to the left; the shift leaves the padding alone.
    pixels, ids = apply_view(image, label, View((1, 2), (0, 0), True, 100), (2, 3))
    assert pixels[0, :, 0].tolist() == [0, 255, 110]
    assert ids[0].tolist() == [255, 2, 1]
    pixels, _ = apply_view(image, label, View((1, 3), (0, 0), False, -41), (1, 3))
    assert pixels[0, :, 0].tolist() == [0, 0, 159]


def test_ignored_pixels_stay_ignored():
    label = np.array([[255, 3], [3, 255]], np.uint8)
    image = np.zeros((2, 2, 3), np.uint8)
    for scaled in ((2, 2), (5, 7), (9, 3)):
        _, ids = apply_view(image, label, View(scaled, (0, 0), False, 0), scaled)
        assert set(np.unique(ids)) == {3, 255}


def test_scaled_size_is_the_official_one():
    assert scaled_size((1024, 2048), 0.5) == (512, 1024)
    # int(2048 * 2.1 + 0.5), then int(1024 * 4301 / 2048 + 0.5) = int(2150.5 + 0.5).
    assert scaled_size((1024, 2048), 2.1) == (2151, 4301)
    assert scaled_size((360, 480), 0.7) == (252, 336)
    assert scaled_size((480, 360), 1.3) == (624, 468)
    assert scaled_size((1, 100), 0.1) == (1, 10)


def test_distribution():
    draws = 4000
    rng = np.random.default_rng(0)
    views = [sample_view(rng, (100, 200), Augmentation(**OFFICIAL)) for _ in range(draws)]
    widths = collections.Counter(v.scaled_size[1] for v in views)
    # 17 scales, 0.5 to 2.1, alike: 235 each, give or take 5 standard deviations of 15.
    assert sorted(widths) == [round(200 * k / 10) for k in range(5, 22)]
    assert all(160 < n < 310 for n in widths.values())
    flips = sum(v.flip for v in views) / draws
    assert abs(flips - 0.5) < 5 * 0.5 / np.sqrt(draws)
    assert {v.shift for v in views} == {0}
    # The crop is anywhere it fits, ends included, and at 0 where it does not.
    for scaled, room in (((100, 200), (40, 110)), ((50, 100), (0, 10))):
        offsets = np.array([v.offset for v in views if v.scaled_size == scaled])
        assert offsets.min(0).tolist() == [0, offsets[:, 1].min()]
        for axis in range(2):
            assert offsets[:, axis].max() <= room[axis]
            tolerance = 5 * room[axis] / np.sqrt(12 * len(offsets))
            assert abs(offsets[:, axis].mean() - room[axis] / 2) <= tolerance
    small = [v.offset[1] for v in views if v.scaled_size == (50, 100)]
    assert set(small) == set(range(11))


def test_continuous_scale_and_brightness():
    rng = np.random.default_rng(1)
    settings = OFFICIAL | {"scale_step": 0, "brightness": 10, "flip": False}
    views = [sample_view(rng, (500, 1000), Augmentation(**settings)) for _ in range(3000)]
    widths = np.array([v.scaled_size[1] for v in views])
    assert widths.min() >= 500
    assert widths.max() <= 2100
    assert len(np.unique(widths)) > 900
    assert abs(widths.mean() - 1300) < 5 * 1600 / np.sqrt(12 * 3000)
    assert {v.shift for v in views} == set(range(-10, 11))
    assert not any(v.flip for v in views)


def test_settings_do_not_disturb_each_other():
    def draw(**changes):
        rng = np.random.default_rng(3)
        return sample_view(rng, (100, 200), Augmentation(**OFFICIAL | changes))

    assert draw(brightness=9)._replace(shift=0) == draw()
    assert draw(flip=False)._replace(flip=draw().flip) == draw()
