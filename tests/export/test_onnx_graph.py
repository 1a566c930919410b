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
        ("segmentation", False, (72, 104), True, 0.0),
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


@pytest.fixture(scope="module")
def ocr(tiny):
    """A network with every kind of node, and variables."""
    model = create_model(tiny, 5, "ocr", image_statistics=0.25)
    return model, random_variables(model, (64, 64))


@pytest.mark.parametrize("head", ["segmentation", "ocr"])
def test_a_fixed_size_is_fixed_in_every_node(tiny, head):
    model = create_model(tiny, 5, head, image_statistics=0.25)
    variables = random_variables(model, (64, 64))
    proto = onnx_graph.build(model, variables, size=(72, 104), batch_size=2)
    constants = {c.name for c in proto.graph.initializer}
    kinds = [n.op_type for n in proto.graph.node]
    assert not {"Shape", "Slice", "Gather"} & set(kinds)
    # Two for each upsampling of one step in the three exchange units, the head's, and the labels'.
    assert kinds.count("Resize") == 1 + 3 + 6 + 3 * (1 + (head == "ocr")) + 1
    for node in proto.graph.node:
        if node.op_type in ("Resize", "Reshape"):
            assert set(node.input[1:]) - {""} <= constants, node.name
    inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    shapes = {v.name: v.type.tensor_type.shape for v in inferred.graph.value_info}
    for node in inferred.graph.node:
        for name in set(node.output) - {"labels"}:
            assert all(d.dim_value > 0 for d in shapes[name].dim), name
    best = shapes["best"].dim
    assert [d.dim_value for d in best] == [2, 72, 104]


def test_factors_lead_to_the_size_that_is_wanted():
    for old in range(1, 200):
        for new in range(old, 2 * old + 1):
            factor = onnx_graph._factor(old, new)
            assert int(np.float32(old) * factor) == new
            assert int(old * float(factor)) == new


def test_every_opset_gives_the_same(ocr):
    images = export.sample_images((40, 72), 2)
    expected = None
    for opset in onnx_graph.OPSETS:
        proto = onnx_graph.build(*ocr, size=None, outputs=("logits",), opset=opset)
        onnx.checker.check_model(proto, full_check=True)
        assert [o.version for o in proto.opset_import] == [opset]
        found = answer(proto, images)["logits"]
        expected = found if expected is None else expected
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_float16_keeps_what_needs_more_in_float32(ocr):
    images = export.sample_images((64, 96), 2)
    sizes = {"size": (64, 96), "outputs": onnx_graph.OUTPUTS}
    expected = answer(onnx_graph.build(*ocr, **sizes), images)
    proto = onnx_graph.build(*ocr, **sizes, dtype="float16")
    onnx.checker.check_model(proto, full_check=True)
    kinds = {c.name: c.data_type for c in proto.graph.initializer}
    assert {v for k, v in kinds.items() if k.endswith(("/kernel", "conv/bias"))} == {
        onnx.TensorProto.FLOAT16
    }
    assert kinds["backbone/stem/conv1/bn/kept_var"] == onnx.TensorProto.FLOAT
    found = answer(proto, images)
    assert {k: v.dtype for k, v in found.items()} == {k: v.dtype for k, v in expected.items()}
    agreement = export.compare(expected, found)
    assert 1e-6 < agreement.logits < 5e-3
    assert agreement.labels > 0.98


@pytest.mark.parametrize(
    ("values", "message"),
    [({"dtype": "int4"}, "unknown dtype 'int4'"), ({"opset": 12}, "opset 12.*known: 13 to 21")],
)
def test_refuses_unknown_types_and_opsets(ocr, values, message):
    with pytest.raises(ValueError, match=message):
        onnx_graph.build(*ocr, size=None, **values)
