"""The graph against the network: every head, open and fixed sizes, both corner alignments."""

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest

from hrnet_jax.export import export, onnx_graph
from hrnet_jax.models import create_model


def random_variables(model, size):
    """Variables whose statistics are not the initial ones, so that folding shows."""
    variables = model.init(jax.random.key(0), jnp.zeros((1, *size, 3)))
    rng = np.random.default_rng(1)

    def draw(path, leaf):
        kind = path[-1].key
        if kind in ("var", "scale"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        if kind in ("mean", "bias"):
            return rng.normal(0, 0.2, leaf.shape).astype(np.float32)
        return np.asarray(leaf)

    return jax.tree_util.tree_map_with_path(draw, variables)


def answer(proto, images):
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, {"image": images}), strict=True))


@pytest.mark.parametrize(
    ("head", "align_corners", "size", "fixed", "share"),
    [
        ("segmentation", False, (64, 96), True, 0.0),
        ("segmentation", False, (64, 96), True, 0.25),
        ("segmentation_v1", False, (64, 96), True, 0.0),
        ("ocr", True, (40, 72), False, 0.0),
        ("ocr", True, (40, 72), False, 0.25),
    ],
)
def test_graph_computes_what_the_network_does(tiny, head, align_corners, size, fixed, share):
    model = create_model(tiny, 5, head, align_corners=align_corners, image_statistics=share)
    variables = random_variables(model, size)
    images = export.sample_images(size, 2)
    forward = jax.jit(lambda v, i: export.forward(model, v, i, export.OUTPUTS))
    expected = jax.device_get(forward(variables, images))
    proto = onnx_graph.build(
        model, variables, size=size if fixed else None, outputs=onnx_graph.OUTPUTS
    )
    found = answer(proto, images)
    assert found["labels"].dtype == np.uint8
    scale = np.abs(expected["logits"]).max()
    # OCR's attention amplifies rounding.
    close = (1e-4 if head == "ocr" else 2e-5) * scale
    np.testing.assert_allclose(found["logits"], expected["logits"], atol=close)
    np.testing.assert_allclose(found["probabilities"], expected["probabilities"], atol=close)
    agreement = export.compare(expected, found)
    assert agreement.labels >= 0.9999
    assert agreement.logits < 1e-4


def test_a_convolution_and_its_normalisation_are_one_node(tiny):
    model = create_model(tiny, 5)
    variables = random_variables(model, (32, 32))
    proto = onnx_graph.build(model, variables, size=(64, 64))
    kinds = [n.op_type for n in proto.graph.node]
    assert "BatchNormalization" not in kinds
    # Of a head's 1x1 convolution over four streams there are four.
    convolutions = sum(k[-1] == "kernel" for k, _ in _flat(variables["params"]))
    assert kinds.count("Conv") == convolutions + 3
    assert {o.version for o in proto.opset_import} == {onnx_graph.OPSET}
    onnx.checker.check_model(proto, full_check=True)


def _flat(tree):
    paths = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [([k.key for k in path], leaf) for path, leaf in paths]


def test_refuses_unknown_outputs(tiny):
    model = create_model(tiny, 5)
    with pytest.raises(ValueError, match="unknown outputs"):
        onnx_graph.build(model, {}, size=(64, 64), outputs=("masks",))
