import jax
import numpy as np
import pytest
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
