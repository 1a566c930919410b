"""Colors and class mixing: by hand, by their draws, and the same on any devices."""

import colorsys

import jax
import numpy as np
import pytest
from scipy import ndimage

from hrnet_jax.models import normalize
from hrnet_jax.runtime import sharding
from hrnet_jax.train import augment


def _images(n=4, size=(64, 8)):
    return np.random.default_rng(0).integers(0, 256, (n, *size, 3)).astype(np.uint8)


def test_factors_of_one_change_nothing():
    images = _images()
    np.testing.assert_array_equal(augment.adjust_color(images, np.ones((4, 3))), images)


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
def test_colors_by_hand(factors, expected):
    images = np.array([[[[100, 0, 0], [40, 40, 40]]]], np.uint8)
    got = augment.adjust_color(images, np.array([factors], np.float32))
    np.testing.assert_allclose(got[0, 0], expected, rtol=1e-6)


def test_factors_depend_on_seed_step_and_place_only():
    draw = jax.jit(augment.color_factors, static_argnums=(0, 2, 3))
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

    def adjust(images):
        return augment.adjust_color(images, augment.color_factors(0, 5, 8, 0.5))

    adjust = jax.jit(adjust, compiler_options=sharding.compiler_options())
    expected = np.asarray(adjust(images))
    mesh = sharding.make_mesh(data=4, space=2)
    got = adjust(sharding.place_batch({"image": images}, mesh)["image"])
    np.testing.assert_allclose(got, expected, rtol=3e-7)
    assert got.sharding.is_equivalent_to(sharding.batch_sharding(mesh), 4)


def _mixed(labels, share, step=3, seed=7):
    """Labels after mixing; images are checked to go with them."""
    images = np.repeat(labels[..., None], 3, axis=-1)
    mixed, got = jax.jit(augment.mix_classes, static_argnums=(2, 4))(
        images, labels, seed, step, share
    )
    np.testing.assert_array_equal(mixed, np.repeat(np.asarray(got)[..., None], 3, axis=-1))
    assert (mixed.dtype, got.dtype) == (images.dtype, labels.dtype)
    return np.asarray(got)


def test_mixing_takes_whole_classes_of_the_next_image_only():
    # Image n has the classes 20 n .. 20 n + 18, and pixels to be ignored.
    labels = np.random.default_rng(1).integers(0, 20, (4, 16, 24)).astype(np.uint8)
    labels += (20 * np.arange(4, dtype=np.uint8))[:, None, None]
    labels[labels % 20 == 19] = 255
    got = _mixed(labels, 1.0)
    following = np.roll(labels, -1, axis=0)
    pasted = got != labels
    np.testing.assert_array_equal(got[pasted], following[pasted])
    for place in range(4):
        taken = set(following[place][pasted[place]])
        assert 0 < len(taken) < 19
        assert 255 not in taken
        np.testing.assert_array_equal(pasted[place], np.isin(following[place], list(taken)))


def test_share_of_mixed_images_and_of_classes():
    # Two classes to a pair of images: 0 .. 63 above, 64 .. 127 below.
    n = 64
    labels = np.stack([np.full((n, 2), k) for k in (0, 64)], 1) + np.arange(n)[:, None, None]
    labels = labels.astype(np.uint8)
    np.testing.assert_array_equal(_mixed(labels, 0.0), labels)
    pasted = np.concatenate(
        [_mixed(labels, 0.5, step)[..., 0] != labels[..., 0] for step in range(8)]
    )
    # Each is taken with probability 1/4, both 1/8: 512 draws.
    assert pasted.mean() == pytest.approx(1 / 4, abs=0.05)
    assert pasted.all(axis=1).mean() == pytest.approx(1 / 8, abs=0.05)
    assert np.any(_mixed(labels, 0.5, 3) != _mixed(labels, 0.5, 4))
    assert np.any(_mixed(labels, 0.5, seed=7) != _mixed(labels, 0.5, seed=8))


def test_mixing_depends_on_the_place_not_on_the_batch_or_the_devices():
    labels = np.random.default_rng(2).integers(0, 11, (8, 64, 8)).astype(np.uint8)
    expected = _mixed(labels, 0.7)
    np.testing.assert_array_equal(_mixed(labels[:5], 0.7)[:4], expected[:4])
    images = np.repeat(labels[..., None], 3, axis=-1)
    mesh = sharding.make_mesh(data=4, space=2)
    batch = sharding.place_batch({"image": images, "label": labels}, mesh)
    mix = jax.jit(lambda image, label: augment.mix_classes(image, label, 7, 3, 0.7))
    mixed, got = mix(batch["image"], batch["label"])
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(mixed[..., 0], expected)
    assert mixed.sharding.is_equivalent_to(sharding.batch_sharding(mesh), 4)
    # Neighbours pass single images on.
    program = mix.lower(batch["image"], batch["label"]).compile().as_text()
    assert "collective-permute" in program
    assert "all-gather" not in program


def _distort(pixels, *numbers):
    """One image of one row through `distort_colors`."""
    image = np.array([[pixels]], np.float32)
    return np.asarray(augment.distort_colors(image, np.array([numbers], np.float32)))[0, 0]


def test_photometric_distortion_by_hand():
    # Shift by 30, then the contrast (last, as the fifth number is 0), each clipped.
    got = _distort([[100, 240, 0], [10, 20, 30]], 30, 0.5, 1, 0, 0)
    np.testing.assert_allclose(got, [[65, 127.5, 15], [20, 25, 30]], rtol=1e-6)
    # Contrast first: 2 * 200 is clipped before the saturation is taken away.
    got = _distort([[200, 100, 100]], 0, 2, 0, 0, 1)
    np.testing.assert_allclose(got, [[255, 255, 255]], rtol=1e-6)
    got = _distort([[200, 100, 100]], 0, 1.2, 0.5, 0, 1)
    np.testing.assert_allclose(got, [[240, 180, 180]], rtol=1e-6)
    # More saturation than there is room for ends at full saturation.
    got = _distort([[200, 100, 150]], 0, 1, 3, 0, 0)
    np.testing.assert_allclose(got, [[200, 0, 100]], atol=1e-4)
    got = _distort([[7, 7, 7]], 0, 1, 1.5, 0.1, 0)
    np.testing.assert_allclose(got, [[7, 7, 7]], rtol=1e-6)


@pytest.mark.parametrize("turn", [-0.1, 0.03, 0.1])
def test_hue_and_saturation_are_colorsys(turn):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 3))
    expected = []
    for pixel in pixels:
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
        changed = colorsys.hsv_to_rgb((hue + turn) % 1, min(1.3 * saturation, 1), value)
        expected.append(255 * np.array(changed))
    np.testing.assert_allclose(_distort(pixels, 0, 1, 1.3, turn, 0), expected, atol=1e-3)


def test_photometric_ranges_are_mmsegmentations():
    draw = jax.jit(augment.photometric_numbers, static_argnums=(0, 2, 3))
    numbers = np.asarray(draw(7, 3, 2000, 1.0))
    # brightness_delta 32, contrast_range and saturation_range (0.5, 1.5), hue_delta 18 of 180
    for column, (neutral, reach) in zip(
        numbers.T, ((0, 32), (1, 0.5), (1, 0.5), (0, 0.1)), strict=False
    ):
        changed = column[column != neutral]
        assert len(changed) / 2000 == pytest.approx(0.5, abs=0.06)
        assert abs(changed - neutral).max() <= reach * (1 + 1e-6)
        assert changed.min() < neutral - 0.99 * reach
        assert changed.max() > neutral + 0.99 * reach
    assert numbers[:, 4].mean() == pytest.approx(0.5, abs=0.06)
    half = np.asarray(draw(7, 3, 2000, 0.5))
    np.testing.assert_allclose(half[:, 0], numbers[:, 0] / 2, rtol=1e-6)


def test_blur_is_scipys():
    images = _images(3, (20, 12))
    sigmas = np.array([0.0, 1.2, 2.0], np.float32)
    got = np.asarray(augment.blur(images, sigmas, 2.0))
    np.testing.assert_array_equal(got[0], images[0])
    for k in (1, 2):
        expected = ndimage.gaussian_filter(
            images[k].astype(float), sigmas[k], mode="nearest", radius=6, axes=(0, 1)
        )
        np.testing.assert_allclose(got[k], expected, atol=1e-3)
    drawn = np.asarray(augment.blur_sigmas(0, 0, 500, 2.0))
    assert (drawn == 0).mean() == pytest.approx(0.5, abs=0.1)
    assert 1.9 < drawn.max() <= 2


def test_erased_boxes():
    boxes = np.asarray(augment.erased_boxes(0, 1, 2000, 0.7, (100, 200)))
    found = boxes[boxes[:, 2] > 0]
    assert len(found) / 2000 == pytest.approx(0.7, abs=0.05)
    assert not boxes[boxes[:, 2] == 0].any()
    top, left, height, width = found.T
    assert (top + height).max() == 100
    assert (left + width).max() == 200
    free = height < 100  # not cut at the image's height
    areas, aspects = (height * width / 20000)[free], (height / width)[free]
    assert 0.018 < areas.min() < 0.025
    assert areas.max() < 0.345
    assert 0.27 < aspects.min() < 0.35
    inside = np.asarray(augment.inside_boxes(np.array([[1, 2, 2, 3], [0, 0, 0, 0]]), (4, 6)))
    expected = np.zeros((2, 4, 6), bool)
    expected[0, 1:3, 2:5] = True
    np.testing.assert_array_equal(inside, expected)


def test_all_at_once_is_one_after_the_other_on_any_devices():
    images = _images(8)
    labels = np.random.default_rng(2).integers(0, 11, (8, 64, 8)).astype(np.uint8)
    settings = augment.Settings(0.3, 0.5, 1.0, 1.0, 0.8)

    def augmented(images, labels):
        batch = augment.draw(settings, {"image": images, "label": labels}, 5, 9)
        return augment.apply(settings, batch), batch["label"]

    augmented = jax.jit(augmented, compiler_options=sharding.compiler_options())
    got, got_labels = augmented(images, labels)

    @jax.jit
    def one_after_the_other(images, labels):
        images, labels = augment.mix_classes(images, labels, 5, 9, 0.5)
        images = augment.adjust_color(images, augment.color_factors(5, 9, 8, 0.3))
        images = augment.distort_colors(images, augment.photometric_numbers(5, 9, 8, 1.0))
        images = augment.blur(images, augment.blur_sigmas(5, 9, 8, 1.0), 1.0)
        boxes = augment.erased_boxes(5, 9, 8, 0.8, (64, 8))
        return images, labels, augment.inside_boxes(boxes, (64, 8))

    expected, expected_labels, inside = map(np.asarray, one_after_the_other(images, labels))
    assert 0 < inside.mean() < 0.4
    expected = np.where(inside[..., None], normalize.MEAN * 255, expected)
    np.testing.assert_allclose(got, expected, atol=1e-2)
    np.testing.assert_array_equal(got_labels, np.where(inside, 255, expected_labels))
    mesh = sharding.make_mesh(data=4, space=2)
    batch = sharding.place_batch({"image": images, "label": labels}, mesh)
    spread, spread_labels = augmented(batch["image"], batch["label"])
    np.testing.assert_allclose(spread, got, atol=1e-3)
    np.testing.assert_array_equal(spread_labels, got_labels)
    # Off: the images themselves, not float32.
    off = augment.draw(augment.Settings(), {"image": images, "label": labels}, 5, 9)
    assert augment.apply(augment.Settings(), off) is images
    # Classes of whole images stay.
    whole = augment.draw(
        augment.Settings(erasing=1.0), {"image": images, "label": labels[:, 0, 0]}, 0, 0
    )
    np.testing.assert_array_equal(whole["label"], labels[:, 0, 0])
