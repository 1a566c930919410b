import dataclasses
import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import fast_jit
from networks import SIZE, Pointwise, random_network, smooth_image, softmax

from hrnet_jax.inference import multi_scale
from hrnet_jax.inference.multi_scale import TestTimeAugmentation
from hrnet_jax.models import normalize
from hrnet_jax.models.resize import resize
from hrnet_jax.runtime import memory


@pytest.fixture(scope="module")
def network(tiny):
    return random_network(tiny)


@pytest.fixture(scope="module")
def image():
    return smooth_image()


def test_align_corners_of_the_model_is_used(image):
    for align in (False, True):
        model = Pointwise(stride=4, align_corners=align)
        logits = np.asarray(normalize.normalize(image[None]))[:, ::4, ::4]
        expected = np.asarray(resize(logits, SIZE, align_corners=align))[0]
        result = multi_scale.predict_probabilities(model, {"gain": 1.0}, image[None])
        np.testing.assert_allclose(result[0], softmax(expected), atol=1e-5)


def views(model, variables, x, scale, average):
    """Logits of a view and of its mirror image turned back, at the view's size."""
    size = multi_scale.size_at_scale(x.shape[1:3], scale)
    x = resize(x, size)
    return [
        np.asarray(resize(model.apply(variables, v, train=False)["logits"][:, :, ::t], size))
        for v, t in ((x, 1), (x[:, :, ::-1], -1))
    ]


def test_scales_and_flip_average_softmax(image):
    model, variables = Pointwise(stride=4), {"gain": 2.0}
    tta = TestTimeAugmentation(scales=(0.5, 1.0, 1.3), flip=True)
    x = normalize.normalize(image[None])
    expected = 0
    for scale in tta.scales:
        pair = views(model, variables, x, scale, "softmax")
        expected = expected + np.asarray(resize(sum(map(softmax, pair)) / 2, SIZE))
    expected /= expected.sum(-1, keepdims=True)
    result = multi_scale.predict_probabilities(model, variables, image[None], tta)
    np.testing.assert_allclose(result, expected, atol=1e-5)
    labels = multi_scale.predict_labels(model, variables, image[None], tta)
    np.testing.assert_array_equal(labels, expected.argmax(-1))
    single = multi_scale.predict_probabilities(model, variables, image[None])
    assert np.abs(single - result).max() > 0.01


def test_scales_and_flip_average_exp_as_the_official_test(image):
    model, variables = Pointwise(stride=4), {"gain": 2.0}
    tta = TestTimeAugmentation(scales=(0.5, 1.0), flip=True, average="exp")
    x = normalize.normalize(image[None])
    expected = 0
    for scale in tta.scales:
        logits = sum(views(model, variables, x, scale, "exp")) / 2
        expected = expected + np.asarray(resize(np.exp(logits), SIZE))
    expected /= expected.sum(-1, keepdims=True)
    result = multi_scale.predict_probabilities(model, variables, image[None], tta)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_exp_of_large_logits_does_not_overflow(image):
    tta = TestTimeAugmentation(scales=(0.5, 1.0), average="exp")
    result = multi_scale.predict_probabilities(Pointwise(), {"gain": 90.0}, image[None], tta)
    assert np.isfinite(result).all()


@pytest.mark.parametrize("average", ["softmax", "exp"])
def test_tiles_of_a_pointwise_network_change_nothing(average):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 50, 81, 3)).astype(np.uint8)
    tiled = TestTimeAugmentation(scales=(1.0, 1.2), flip=True, tile=(32, 40), average=average)
    whole = dataclasses.replace(tiled, tile=None)
    model, variables = Pointwise(), {"gain": 1.0}
    np.testing.assert_allclose(
        multi_scale.predict_probabilities(model, variables, images, tiled),
        multi_scale.predict_probabilities(model, variables, images, whole),
        atol=1e-5,
    )


def test_tile_larger_than_the_image_is_not_used(image):
    model, variables = Pointwise(stride=4), {"gain": 1.0}
    tta = TestTimeAugmentation(tile=(64, 64))
    np.testing.assert_array_equal(
        multi_scale.predict_labels(model, variables, image[None], tta),
        multi_scale.predict_labels(model, variables, image[None]),
    )


@pytest.mark.parametrize(("length", "tile"), [(100, 32), (33, 32), (2048, 1024), (32, 32), (5, 32)])
def test_tiles_cover_and_overlap(length, tile):
    starts = multi_scale.tile_starts(length, tile)
    assert starts[0] == 0
    assert starts[-1] == max(0, length - tile)
    steps = np.diff(starts)
    assert (steps > 0).all()
    assert (steps <= tile * 2 / 3 + 1).all()


def test_tile_weights_fade_but_never_vanish():
    np.testing.assert_allclose(
        multi_scale.tile_weights((4, 3)), np.outer([0.5, 1, 1, 0.5], [0.5, 1, 0.5])
    )


def test_scaled_sizes_round_halves_up():
    assert multi_scale.size_at_scale((33, 1), 0.5) == (17, 1)
    assert multi_scale.size_at_scale((1024, 2048), 1.75) == (1792, 3584)
    assert multi_scale.size_at_scale((3, 3), 0.01) == (1, 1)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"scales": ()}, "scales"),
        ({"scales": (1.0, 0.0)}, "scales"),
        ({"scales": (float("nan"),)}, "scales"),
        ({"tile": (16, 64)}, "tile"),
        ({"tile": (64,)}, "tile"),
        ({"average": "mean"}, r"unknown average 'mean'.*softmax"),
    ],
)
def test_refuses_augmentations(kwargs, message):
    with pytest.raises(ValueError, match=message):
        TestTimeAugmentation(**kwargs)


def test_views_that_do_not_fit_into_memory_are_tiled_and_said(network, image, monkeypatch):
    model, variables = network
    large = jnp.asarray(np.tile(image, (12, 12, 1))[None, :300, :520])
    tta = TestTimeAugmentation((0.5, 2.0))
    assert multi_scale.fit_to_memory(model, large, tta) is tta
    # The network on 600x1040 pixels needs 50 MB, the values of the classes 30.
    monkeypatch.setattr(memory, "free_bytes", lambda device: 64_000_000)
    with pytest.warns(UserWarning, match=r"300x520 at scale 2 .* in tiles of 300x520"):
        tiled = multi_scale.fit_to_memory(model, large, tta)
    assert tiled == TestTimeAugmentation((0.5, 2.0), tile=(300, 520))
    assert multi_scale.fit_to_memory(model, large, TestTimeAugmentation(tile=(64, 64))).tile == (
        64,
        64,
    )
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1_000_000)
    with pytest.raises(
        ValueError, match=r"300x520, predicted at 600x1040, do not fit into 0\.0 GiB"
    ):
        multi_scale.predict_labels(model, variables, large, tta)
    monkeypatch.setattr(memory, "free_bytes", lambda device: None)
    assert multi_scale.fit_to_memory(model, large, tta) is tta


def test_many_classes_need_wider_labels():
    scores = np.zeros((1, 2, 300), np.float32)
    scores[0, 1, 299] = 1
    labels = multi_scale.labels_of(scores)
    assert labels.dtype == np.int32
    assert labels.tolist() == [[0, 299]]


@pytest.mark.parametrize(
    "tta", [multi_scale.SINGLE_SCALE, TestTimeAugmentation((0.5, 1.0), True, (32, 32), "exp")]
)
def test_inside_jit_and_vmap(network, image, tta):
    model, variables = network
    images = np.stack([image, image[::-1]])
    expected = multi_scale.predict_probabilities(model, variables, images, tta)
    probabilities = fast_jit(lambda v, x: multi_scale.predict_probabilities(model, v, x, tta))
    np.testing.assert_allclose(probabilities(variables, images), expected, atol=1e-5)
    one = lambda x: multi_scale.predict_labels(model, variables, x[None], tta)[0]  # noqa: E731
    labels = jax.vmap(one)(images)
    # Rounding may decide between two classes of almost the same probability.
    top = np.sort(expected, axis=-1)
    clear = top[..., -1] - top[..., -2] > 1e-4
    np.testing.assert_array_equal(labels[clear], expected.argmax(-1)[clear])
    assert clear.mean() > 0.9


def test_old_sizes_are_dropped(monkeypatch):
    """Compiled networks of hundreds of sizes would fill the memory."""
    cache = functools.lru_cache(2)(multi_scale._jitted_network.__wrapped__)
    monkeypatch.setattr(multi_scale, "_jitted_network", cache)
    functions = []
    for height in (10, 11, 12):
        images = np.zeros((1, height, 12, 3), np.uint8)
        multi_scale.predict_labels(Pointwise(), {"gain": 1.0}, images)
        functions.append(weakref.ref(cache(images.shape, False)))
    gc.collect()
    assert [f() is None for f in functions] == [True, False, False]
