import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from hrnet_jax.data import Classes
from hrnet_jax.data.images.read import read_image
from hrnet_jax.inference import multi_scale
from hrnet_jax.inference.multi_scale import Method
from hrnet_jax.inference.predictor import Predictor, load, to_label_ids
from hrnet_jax.models import create_model, normalize
from hrnet_jax.models.resize import resize
from hrnet_jax.runtime import memory

CLASSES = Classes(("a", "b", "c"), ((1, 0, 0), (0, 1, 0), (0, 0, 1)), (7, 8, 11))
SIZE = (33, 47)


@dataclasses.dataclass(frozen=True)
class Pointwise:
    """A "network" whose logits are the image's channels, every `stride`-th pixel of them."""

    stride: int = 1
    num_classes: int = 3
    head: str = "segmentation"
    align_corners: bool = False

    def apply(self, variables, images, train):
        assert not train
        return {"logits": variables["gain"] * images[:, :: self.stride, :: self.stride]}


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def network(tiny):
    model = create_model(tiny, 3)
    variables = jax.jit(model.init)(jax.random.key(1), np.zeros((1, *SIZE, 3), np.float32))
    # The first classifier is almost 0: one class would win everywhere.
    classifier = variables["params"]["head"]["classifier"]
    classifier["kernel"] = 1000 * classifier["kernel"]
    return model, variables


@pytest.fixture(scope="module")
def predictor(network):
    return Predictor(*network, CLASSES, step=5)


@pytest.fixture(scope="module")
def image():
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3)).astype(np.uint8))
    return np.asarray(small.resize(SIZE[::-1], Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def expected_logits(network, image):
    """Full-size logits computed step by step."""
    model, variables = network
    x = normalize.normalize(image[None])
    logits = jax.jit(lambda v, x: model.apply(v, x, train=False)["logits"])(variables, x)
    assert logits.shape == (1, 9, 12, 3)
    return np.asarray(resize(logits, SIZE))[0]


def test_predict_is_the_argmax_of_resized_logits(predictor, image, expected_logits):
    labels = predictor.predict(image)
    assert labels.shape == SIZE
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, expected_logits.argmax(-1))
    assert len(np.unique(labels)) > 1


def test_probabilities_are_the_softmax_of_resized_logits(predictor, image, expected_logits):
    probabilities = predictor.predict_proba(image)
    assert probabilities.shape == (*SIZE, 3)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, softmax(expected_logits), atol=1e-5)
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-6)


def test_arrays_paths_and_lists_agree(predictor, image, tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(image).save(path)
    single = predictor.predict(image)
    other = image[::-1]
    results = predictor.predict([image, str(path), path, other])
    for result in results[:3]:
        np.testing.assert_array_equal(result, single)
    np.testing.assert_array_equal(results[3], predictor.predict(other))
    assert predictor.predict([]) == []
    np.testing.assert_array_equal(
        predictor.predict_proba([path])[0], predictor.predict_proba(image)
    )


@pytest.mark.parametrize("size", [(1, 1), (5, 70), (64, 33)])
def test_any_size(size):
    predictor = Predictor(Pointwise(stride=4), {"gain": 1.0}, CLASSES)
    assert predictor.predict(np.zeros((*size, 3), np.uint8)).shape == size


def test_align_corners_of_the_model_is_used(image):
    for align in (False, True):
        model = Pointwise(stride=4, align_corners=align)
        logits = np.asarray(normalize.normalize(image[None]))[:, ::4, ::4]
        expected = np.asarray(resize(logits, SIZE, align_corners=align))[0]
        result = multi_scale.predict_probabilities(model, {"gain": 1.0}, image[None])
        np.testing.assert_allclose(result[0], softmax(expected), atol=1e-5)


def views(model, variables, x, scale, average):
    """Logits of a view and of its mirror image turned back, at the view's size."""
    size = multi_scale.scaled_size(x.shape[1:3], scale)
    x = resize(x, size)
    return [
        np.asarray(resize(model.apply(variables, v, train=False)["logits"][:, :, ::t], size))
        for v, t in ((x, 1), (x[:, :, ::-1], -1))
    ]


def test_scales_and_flip_average_softmax(image):
    model, variables = Pointwise(stride=4), {"gain": 2.0}
    method = Method(scales=(0.5, 1.0, 1.3), flip=True)
    x = normalize.normalize(image[None])
    expected = 0
    for scale in method.scales:
        pair = views(model, variables, x, scale, "softmax")
        expected = expected + np.asarray(resize(sum(map(softmax, pair)) / 2, SIZE))
    expected /= expected.sum(-1, keepdims=True)
    result = multi_scale.predict_probabilities(model, variables, image[None], method)
    np.testing.assert_allclose(result, expected, atol=1e-5)
    labels = multi_scale.predict_labels(model, variables, image[None], method)
    np.testing.assert_array_equal(labels, expected.argmax(-1))
    single = multi_scale.predict_probabilities(model, variables, image[None])
    assert np.abs(single - result).max() > 0.01


def test_scales_and_flip_average_exp_as_the_official_test(image):
    model, variables = Pointwise(stride=4), {"gain": 2.0}
    method = Method(scales=(0.5, 1.0), flip=True, average="exp")
    x = normalize.normalize(image[None])
    expected = 0
    for scale in method.scales:
        logits = sum(views(model, variables, x, scale, "exp")) / 2
        expected = expected + np.asarray(resize(np.exp(logits), SIZE))
    expected /= expected.sum(-1, keepdims=True)
    result = multi_scale.predict_probabilities(model, variables, image[None], method)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_exp_of_large_logits_does_not_overflow(image):
    method = Method(scales=(0.5, 1.0), average="exp")
    result = multi_scale.predict_probabilities(Pointwise(), {"gain": 90.0}, image[None], method)
    assert np.isfinite(result).all()


@pytest.mark.parametrize("average", ["softmax", "exp"])
def test_tiles_of_a_pointwise_network_change_nothing(average):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 50, 81, 3)).astype(np.uint8)
    tiled = Method(scales=(1.0, 1.2), flip=True, tile=(32, 40), average=average)
    whole = dataclasses.replace(tiled, tile=None)
    model, variables = Pointwise(), {"gain": 1.0}
    np.testing.assert_allclose(
        multi_scale.predict_probabilities(model, variables, images, tiled),
        multi_scale.predict_probabilities(model, variables, images, whole),
        atol=1e-5,
    )


def test_tile_larger_than_the_image_is_not_used(image):
    model, variables = Pointwise(stride=4), {"gain": 1.0}
    method = Method(tile=(64, 64))
    np.testing.assert_array_equal(
        multi_scale.predict_labels(model, variables, image[None], method),
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
    assert multi_scale.scaled_size((33, 1), 0.5) == (17, 1)
    assert multi_scale.scaled_size((1024, 2048), 1.75) == (1792, 3584)
    assert multi_scale.scaled_size((3, 3), 0.01) == (1, 1)


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
def test_method_refuses(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Method(**kwargs)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4), np.uint8), r"\(4, 4\); repeat the grey channel"),
        (np.zeros((4, 4, 1), np.uint8), "repeat the grey channel"),
        (np.zeros((4, 4, 4), np.uint8), "drop the alpha channel"),
        (np.zeros((3, 4, 4 + 1), np.uint8), "channels come last"),
        (np.zeros((2, 4, 4, 3), np.uint8), "pass a list"),
        (np.zeros((0, 4, 3), np.uint8), r"\(0, 4, 3\)"),
        (np.zeros((4, 4, 3), np.float32), "float32; convert"),
        (np.zeros((4, 4, 3), np.uint16), "uint16; convert"),
    ],
)
def test_refuses_arrays(predictor, array, message):
    with pytest.raises(ValueError, match=message):
        predictor.predict(array)


def test_lossless_conversions_warn(tmp_path, image):
    grey = Image.fromarray(image).convert("L")
    opaque = Image.fromarray(image).convert("RGBA")
    palette = Image.fromarray(image).quantize(16)
    for kind, stored in (("grey", grey), ("opaque", opaque), ("palette", palette)):
        path = tmp_path / f"{kind}.png"
        stored.save(path)
        with pytest.warns(UserWarning, match=f"{kind}.png: converted from mode {stored.mode}"):
            result = read_image(path)
        np.testing.assert_array_equal(result, np.asarray(stored.convert("RGB")))


def test_refuses_files(tmp_path, image, predictor):
    transparent = np.dstack([image, np.full(SIZE, 128, np.uint8)])
    Image.fromarray(transparent).save(tmp_path / "transparent.png")
    Image.fromarray(np.full(SIZE, 3000, np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(image).convert("CMYK").save(tmp_path / "cmyk.jpg")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").touch()
    Image.fromarray(image).save(tmp_path / "cut.png")
    data = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    for name, message in (
        ("transparent.png", "transparent pixels"),
        ("deep.png", "mode 'I;16'"),
        ("cmyk.jpg", "mode 'CMYK'"),
        ("text.png", "cannot be read"),
        ("empty.png", "cannot be read"),
        ("cut.png", "cannot be read"),
        (".", "is a folder"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            predictor.predict(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        predictor.predict(tmp_path / "none.png")


def test_views_that_do_not_fit_into_memory_are_tiled_and_said(network, image, monkeypatch):
    model, variables = network
    large = jnp.asarray(np.tile(image, (12, 12, 1))[None, :300, :520])
    method = Method((0.5, 2.0))
    assert multi_scale.fitting_method(model, large, method) is method
    # The network on 600x1040 pixels needs 50 MB, the values of the classes 30.
    monkeypatch.setattr(memory, "free_bytes", lambda device: 64_000_000)
    with pytest.warns(UserWarning, match=r"300x520 at scale 2 .* in tiles of 300x520"):
        tiled = multi_scale.fitting_method(model, large, method)
    assert tiled == Method((0.5, 2.0), tile=(300, 520))
    assert multi_scale.fitting_method(model, large, Method(tile=(64, 64))).tile == (64, 64)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1_000_000)
    with pytest.raises(ValueError, match=r"300x520, tested at 600x1040, do not fit into 0\.0 GiB"):
        multi_scale.predict_labels(model, variables, large, method)
    monkeypatch.setattr(memory, "free_bytes", lambda device: None)
    assert multi_scale.fitting_method(model, large, method) is method


def test_refuses_models_that_do_not_fit():
    with pytest.raises(ValueError, match="head 'pose' gives no label maps"):
        Predictor(Pointwise(head="pose"), {}, CLASSES)
    with pytest.raises(ValueError, match="4 classes, the class list 3: a, b, c"):
        Predictor(Pointwise(num_classes=4), {}, CLASSES)


def test_many_classes_need_wider_labels():
    scores = np.zeros((1, 2, 300), np.float32)
    scores[0, 1, 299] = 1
    labels = multi_scale.labels_of(scores)
    assert labels.dtype == np.int32
    assert labels.tolist() == [[0, 299]]


def test_label_ids_are_the_data_sets():
    np.testing.assert_array_equal(
        to_label_ids(np.array([[0, 2, 1]], np.uint8), CLASSES), [[7, 11, 8]]
    )


def test_load_says_where_it_looked(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"at nothing_here: .*looked for /.*/nothing_here"):
        load("nothing_here")
