"""Exported files, used for prediction."""

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest

from hrnet_jax.data import Classes
from hrnet_jax.export import export
from hrnet_jax.inference.onnx_file import OnnxFile
from hrnet_jax.inference.predictor import Predictor
from hrnet_jax.models import create_model

CLASSES = Classes(("road", "sky", "boat"), ((1, 2, 3), (4, 5, 6), (7, 8, 9)), (0, 1, 2))
SIZE = (64, 96)


@pytest.fixture(scope="module")
def predictor(tiny):
    model = create_model(tiny, 3)
    variables = model.init(jax.random.key(3), jnp.zeros((1, *SIZE, 3)))
    return Predictor(model, variables, CLASSES, step=12)


@pytest.mark.parametrize("output", export.OUTPUTS)
def test_predicts_as_the_network_does(predictor, tmp_path, output):
    path = tmp_path / "net.onnx"
    options = {"size": SIZE, "batch_size": 2} if output == "labels" else {}
    export._write_onnx(predictor, path, export.Options(outputs=(output,), **options))
    file = OnnxFile(path)
    assert (file.size, file.batch_size) == ((SIZE, 2) if options else (None, None))
    assert file.runtime.endswith("CPUExecutionProvider")
    images = export.sample_images(SIZE, 3)
    found = file.predict_labels(images)
    assert (found.dtype, found.shape) == (np.uint8, (3, *SIZE))
    assert (found == np.stack(predictor.predict(list(images)))).mean() > 0.9999
    if options:
        with pytest.raises(ValueError, match=r"takes images of 64x96, not of 32x96"):
            file.predict_labels(images[:, :32])


def test_refuses_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.onnx"):
        OnnxFile(tmp_path / "none.onnx")
    path = tmp_path / "net.onnx"
    path.write_bytes(b"no graph")
    with pytest.raises(ValueError, match=r"net\.onnx: ONNX Runtime cannot load it"):
        OnnxFile(path)
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "other", [value], [out])
    onnx.save(onnx.helper.make_model(graph, ir_version=8), path)
    with pytest.raises(ValueError, match="was not written by export_model"):
        OnnxFile(path)
