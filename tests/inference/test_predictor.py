import pickle

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from networks import CLASSES, SIZE, Pointwise, random_network, smooth_image, softmax
from PIL import Image

from hrnet_jax.inference import multi_scale
from hrnet_jax.inference.predictor import Predictor, load
from hrnet_jax.models import normalize
from hrnet_jax.models.resize import resize


@pytest.fixture(scope="module")
def network(tiny):
    return random_network(tiny)


@pytest.fixture(scope="module")
def image():
    return smooth_image()


@pytest.fixture(scope="module")
def predictor(network):
    return Predictor(*network, CLASSES, step=5)


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


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 4), np.uint8), r"\(4, 4\); repeat the gray channel"),
        (np.zeros((4, 4, 1), np.uint8), "repeat the gray channel"),
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


def test_refuses_files(tmp_path, image, predictor):
    transparent = np.dstack([image, np.full(SIZE, 128, np.uint8)])
    Image.fromarray(transparent).save(tmp_path / "transparent.png")
    Image.fromarray(np.full(SIZE, 3000, np.uint16)).save(tmp_path / "deep.png")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").touch()
    Image.fromarray(image).save(tmp_path / "cut.png")
    data = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    for name, message in (
        ("transparent.png", "transparent pixels"),
        ("deep.png", "has 16 bits per channel"),
        ("text.png", "is no PNG, JPEG"),
        ("empty.png", "is empty"),
        ("cut.png", "is damaged"),
        (".", "is a folder"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            predictor.predict(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        predictor.predict(tmp_path / "none.png")


def test_refuses_models_that_do_not_fit():
    with pytest.raises(ValueError, match="head 'pose' predicts no label maps"):
        Predictor(Pointwise(head="pose"), {}, CLASSES)
    with pytest.raises(ValueError, match="4 classes, the class list 3: a, b, c"):
        Predictor(Pointwise(num_classes=4), {}, CLASSES)


def test_load_says_where_it_looked(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"at nothing_here: .*looked for /.*/nothing_here"):
        load("nothing_here")


def test_old_names_work_with_a_warning(network, image):
    """`Method` and the argument `method`, where they were before they were renamed."""
    with pytest.warns(DeprecationWarning, match="Method was renamed to TestTimeAugmentation"):
        from hrnet_jax.inference import Method
    with pytest.warns(DeprecationWarning, match="Method was renamed"):
        assert multi_scale.Method is Method is multi_scale.TestTimeAugmentation
    flip = Method(flip=True)
    with pytest.warns(DeprecationWarning, match="'method' were renamed to 'tta'"):
        old = Predictor(*network, CLASSES, method=flip)
    assert old.tta is flip
    with pytest.warns(DeprecationWarning, match="'method' were renamed to 'tta'"):
        assert old.method is flip
    with pytest.warns(DeprecationWarning, match="renamed"), pytest.raises(FileNotFoundError):
        load("nothing_here", method=flip)
    new = Predictor(*network, CLASSES, tta=flip)
    np.testing.assert_array_equal(old.predict(image), new.predict(image))


def test_survives_pickle(predictor, image):
    copy = pickle.loads(pickle.dumps(predictor))
    np.testing.assert_array_equal(copy.predict(image), predictor.predict(image))
    assert (copy.step, copy.classes, copy.tta, copy.size_step) == (5, CLASSES, predictor.tta, 1)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_predicts_in_a_program_with_a_mesh_of_its_own(predictor, image, kind):
    labels, probabilities = predictor.predict(image), predictor.predict_proba(image)
    with jax.set_mesh(jax.make_mesh((2,), ("x",), axis_types=(kind,))):
        np.testing.assert_array_equal(predictor.predict(image), labels)
        np.testing.assert_array_equal(predictor.predict_proba(image), probabilities)
        made_here = Predictor(predictor.model, predictor.variables, CLASSES)
        np.testing.assert_array_equal(made_here.predict(image), labels)


def test_padding_to_steps_needs_few_programs():
    """Exact for a network that looks at single pixels, whatever the size."""
    shapes = []

    class Recording(Pointwise):
        def apply(self, variables, images, train):
            shapes.append(images.shape[1:3])
            return super().apply(variables, images, train)

    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (33 + i, 40 + 2 * i, 3)).astype(np.uint8) for i in range(8)]
    plain = Predictor(Pointwise(), {"gain": 1.0}, CLASSES)
    padding = Predictor(Recording(), {"gain": 1.0}, CLASSES, size_step=32)
    for image in images:
        np.testing.assert_array_equal(padding.predict(image), plain.predict(image))
        probabilities = padding.predict_proba(image)
        np.testing.assert_allclose(probabilities, plain.predict_proba(image), atol=1e-6)
    assert shapes == [(64, 64)]  # traced once
    with pytest.raises(ValueError, match="size_step must be at least 1, got 0"):
        Predictor(Pointwise(), {}, CLASSES, size_step=0)


def test_padding_to_steps_leaves_multiples_alone(network, image, predictor):
    padding = Predictor(*network, CLASSES, size_step=32)
    multiple = np.ascontiguousarray(image[:32, :32])
    np.testing.assert_array_equal(
        padding.predict_proba(multiple), predictor.predict_proba(multiple)
    )
    assert padding.predict(image).shape == SIZE
