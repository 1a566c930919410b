import json

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from hrnet_jax.data import Classes
from hrnet_jax.export import export
from hrnet_jax.inference.multi_scale import TestTimeAugmentation
from hrnet_jax.inference.predictor import Predictor
from hrnet_jax.models import create_model
from hrnet_jax.runtime import sharding

CLASSES = Classes(
    ("road", "sky", "boat"), ((128, 64, 128), (70, 130, 180), (0, 60, 100)), (7, 8, 9)
)
SIZE = (64, 96)


@pytest.fixture(scope="module")
def predictor(tiny):
    model = create_model(tiny, 3)
    variables = model.init(jax.random.key(3), jnp.zeros((1, *SIZE, 3)))
    return Predictor(model, variables, CLASSES, step=12)


@pytest.fixture(scope="module")
def images():
    return export.sample_images(SIZE, 2)


@pytest.fixture(scope="module")
def labels(predictor, images):
    forward = export._jitted_forward()
    return np.asarray(
        forward(predictor.model, predictor.variables, images, export.OUTPUTS)["labels"]
    )


def test_onnx_runs_alone_and_tells_its_classes(predictor, images, labels, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "OPEN_SIZE", SIZE)  # one program for all tests
    path = tmp_path / "made" / "net.onnx"
    agreement = export.export_model(predictor, path)
    assert agreement.labels >= 0.9999
    assert agreement.logits <= 1e-3
    session = onnxruntime.InferenceSession(path)
    for some in (images, images[:1]):
        (found,) = session.run(None, {"image": some})
        assert found.dtype == np.uint8
        assert (found == labels[: len(some)]).mean() >= 0.9999
    about = json.loads(session.get_modelmeta().custom_metadata_map["hrnet_jax"])
    assert Classes.from_json(about["classes"]) == CLASSES
    assert (about["step"], about["size"], about["outputs"]) == (12, None, ["labels"])
    assert [p.name for p in path.parent.iterdir()] == ["net.onnx"]


def test_stablehlo_needs_jax_only(predictor, images, labels, tmp_path):
    path = tmp_path / "net.stablehlo"
    outputs = ("labels", "probabilities")
    agreement = export.export_model(predictor, path, size=SIZE, outputs=outputs)
    assert agreement.is_good()
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert str(exported.in_avals[0].shape) == "(n, 64, 96, 3)"
    found = jax.jit(exported.call, compiler_options=sharding.compiler_options())(images)
    np.testing.assert_array_equal(found["labels"], labels)
    np.testing.assert_allclose(found["probabilities"].sum(-1), 1, rtol=1e-5)
    about = json.loads((tmp_path / "net.stablehlo.json").read_text())
    assert about["classes"]["names"] == ["road", "sky", "boat"]
    assert about["size"] == list(SIZE)


def test_savedmodel_is_refused_where_tensorflow_cannot_read_it(predictor, tmp_path, monkeypatch):
    monkeypatch.setattr(jax.version, "__version_info__", (0, 11, 0))
    with pytest.raises(ValueError, match=r"SavedModel needs JAX 0.10 with TensorFlow 2.21"):
        export.export_model(predictor, tmp_path / "net.savedmodel", size=SIZE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(
    jax.version.__version_info__ >= export.SAVEDMODEL_BEFORE_JAX, reason="TensorFlow cannot read it"
)
def test_savedmodel_serves(predictor, tmp_path):
    import tensorflow as tf

    path = tmp_path / "net.savedmodel"
    agreement = export.export_model(predictor, path, size=SIZE, outputs=("labels", "logits"))
    assert agreement.is_good()
    assert agreement.logits < 1e-4
    signature = tf.saved_model.load(str(path)).signatures["serving_default"]
    (image,) = signature.structured_input_signature[1].values()
    assert (image.name, image.dtype, image.shape.as_list()) == ("image", "uint8", [None, *SIZE, 3])
    assert signature.structured_outputs["labels"].dtype == tf.uint8


def test_a_file_that_disagrees_is_not_kept(predictor, tmp_path, monkeypatch):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"the good one of yesterday")
    build = export._write_onnx

    def spoiled(predictor, *args):
        variables = jax.tree.map(np.asarray, predictor.variables)
        kernel = variables["params"]["head"]["classifier"]["kernel"]
        variables["params"]["head"]["classifier"]["kernel"] = kernel + 0.1
        build(Predictor(predictor.model, variables, CLASSES), *args)

    monkeypatch.setitem(export._FORMATS, ".onnx", (spoiled, export._run_onnx))
    with pytest.raises(export.Disagreement, match=r"not kept.*labels agree on"):
        export.export_model(predictor, path)
    assert path.read_bytes() == b"the good one of yesterday"
    assert list(tmp_path.iterdir()) == [path]


def test_agreement_by_hand():
    ours = {"labels": np.array([0, 1, 1, 2]), "logits": np.array([[4.0, -2.0]])}
    theirs = {"labels": np.array([0, 1, 2, 2]), "logits": np.array([[4.0, -1.0]])}
    agreement = export.compare(ours, theirs)
    assert (agreement.labels, agreement.logits) == (0.75, 0.25)
    assert not agreement.is_good()
    only_labels = export.compare(ours, {"labels": ours["labels"]})
    assert only_labels.is_good()
    assert str(only_labels) == "labels agree on 100.0000 % of pixels"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("net.pb", {}, "unknown format '.pb'; known suffixes"),
        ("net.stablehlo", {}, "needs the size"),
        ("net.onnx", {"size": (16, 64)}, "32 or more"),
        ("net.onnx", {"outputs": ("masks",)}, "unknown outputs"),
        ("net.onnx", {"dtype": "int4"}, "unknown dtype 'int4'"),
        ("net.onnx", {"opset": 9}, "opset 9 is not supported; known: 13 to 21"),
        ("net.onnx", {"dtype": "int8"}, "int8 needs images to calibrate with"),
        ("net.onnx", {"dtype": "int8", "calibration": ["/none"]}, "/none: no such image or folder"),
        ("net.onnx", {"calibration": ["/none"]}, "for int8, not for float32"),
        ("net.stablehlo", {"size": (64, 64), "dtype": "float16"}, "dtype=float16.* need .onnx"),
    ],
)
def test_refuses(predictor, tmp_path, name, options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        export.export_model(predictor, tmp_path / name, **options)
    assert not list(tmp_path.iterdir())


def test_refuses_another_method_and_a_missing_package(predictor, tmp_path, monkeypatch):
    flipped = Predictor(
        predictor.model, predictor.variables, CLASSES, tta=TestTimeAugmentation(flip=True)
    )
    with pytest.raises(ValueError, match="at one scale, not scale 1, flip"):
        export.export_model(flipped, tmp_path / "net.onnx")
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(ValueError, match="pip install onnx onnxruntime"):
        export.export_model(predictor, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_a_fixed_shape_is_in_the_file(predictor, tmp_path):
    export.export_model(predictor, tmp_path / "net.onnx", size=SIZE, batch_size=2)
    proto = onnx.load(tmp_path / "net.onnx")
    onnx.checker.check_model(proto, full_check=True)
    shape = proto.graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_value for d in shape] == [2, *SIZE, 3]


@pytest.fixture
def pictures(tmp_path):
    """A folder with two images of SIZE."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for k, image in enumerate(export.sample_images(SIZE, 2)):
        Image.fromarray(image).save(folder / f"{k}.png")
    return folder


def test_int8_is_calibrated_with_images(predictor, pictures, tmp_path, capfd):
    path = tmp_path / "net.onnx"
    agreement = export.export_model(
        predictor, path, size=SIZE, dtype="int8", calibration=[pictures], data={"name": "camvid"}
    )
    assert 0.9 <= agreement.labels < 1  # of three random classes
    assert "calibration" not in capfd.readouterr().err  # ONNX Runtime's advice
    proto = onnx.load(path)
    constants = {c.name: onnx.numpy_helper.to_array(c) for c in proto.graph.initializer}
    kernels = [v for k, v in constants.items() if k.endswith("kernel_quantized")]
    assert kernels
    assert {kernel.dtype for kernel in kernels} == {np.dtype(np.int8)}
    # A scale for each channel.
    assert constants["backbone/stem/conv1/kernel_scale"].shape == (64,)
    session = onnxruntime.InferenceSession(path)
    (found,) = session.run(None, {"image": export.sample_images(SIZE, 3)})
    assert found.shape == (3, *SIZE)
    about = json.loads(session.get_modelmeta().custom_metadata_map["hrnet_jax"])
    assert (about["dtype"], about["data"]) == ("int8", {"name": "camvid"})


def test_images_to_calibrate_with_have_the_size_of_the_file(predictor, pictures, tmp_path):
    options = {"size": (64, 64), "dtype": "int8", "calibration": [pictures]}
    with pytest.raises(ValueError, match=r"0\.png has 64x96 pixels, but .* for 64x64"):
        export.export_model(predictor, tmp_path / "net.onnx", **options)
    (pictures / "1.png").write_bytes(b"no image")
    options = {"dtype": "int8", "calibration": [pictures]}
    with pytest.raises(ValueError, match=r"1\.png is no PNG, JPEG, WebP, TIFF, BMP or PPM file"):
        export.export_model(predictor, tmp_path / "net.onnx", **options)
    assert not (tmp_path / "net.onnx").exists()


def test_an_int8_file_that_disagrees_is_not_kept(predictor, pictures, tmp_path, monkeypatch):
    monkeypatch.setitem(export.LIMITS, "int8", (1.1, 0.0))
    options = {"size": SIZE, "dtype": "int8", "calibration": [pictures]}
    with pytest.raises(export.Disagreement, match=r"not kept.*calibrate with more images"):
        export.export_model(predictor, tmp_path / "net.onnx", **options)
    assert not (tmp_path / "net.onnx").exists()
