"""What the heads do; that they equal the official ones is shown in tests/parity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import fast_jit

from hrnet_jax.models import HEADS, create_model
from hrnet_jax.models.heads import OCRHead, PyramidHead, _region_features, make_head
from hrnet_jax.models.layers import Policy

KEY = jax.random.key(0)


def _streams(size, channels=(2, 3, 4, 5)):
    """Odd sizes round up at each halving."""
    rng, (h, w) = np.random.default_rng(0), size
    streams = []
    for c in channels:
        streams.append(jnp.asarray(rng.normal(size=(2, h, w, c)), jnp.float32))
        h, w = -(-h // 2), -(-w // 2)
    return tuple(streams)


def _variables(head, streams):
    """Random ones, drawn without compiling anything."""
    shapes = jax.eval_shape(lambda: head.init(KEY, streams, train=False))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.asarray(0.1 + 0.1 * rng.random(x.shape), x.dtype), shapes)


@pytest.mark.parametrize(
    ("head", "shapes"),
    [
        ("segmentation", {"logits": (2, 9, 13, 7)}),
        ("segmentation_v1", {"logits": (2, 9, 13, 7)}),
        ("ocr", {"logits": (2, 9, 13, 7), "aux_logits": (2, 9, 13, 7)}),
        ("classification", {"logits": (2, 7)}),
        ("pose", {"heatmaps": (2, 9, 13, 7)}),
        (
            "pyramid",
            {"features": [(2, 9, 13, 256), (2, 4, 6, 256), (2, 2, 3, 256), (2, 1, 1, 256)]},
        ),
        ("features", {"features": [(2, 9, 13, 4), (2, 5, 7, 8), (2, 3, 4, 16), (2, 2, 2, 32)]}),
    ],
)
def test_outputs(tiny, head, shapes):
    """Any input size; logits and heatmaps are float32, feature maps stay in the compute dtype."""
    model = create_model(tiny, 7, head, dtype=jnp.bfloat16)
    outputs, _ = jax.eval_shape(model.init_with_output, KEY, jnp.zeros((2, 33, 49, 3)))
    found = {k: [x.shape for x in v] if k == "features" else v.shape for k, v in outputs.items()}
    assert found == shapes
    expected = jnp.bfloat16 if "features" in outputs else jnp.float32
    assert all(x.dtype == expected for x in jax.tree.leaves(outputs))


def test_every_head_is_made():
    for name in HEADS:
        assert make_head(name, 3, False, 0.0, Policy()).name == "head"
    with pytest.raises(ValueError, match=r"unknown head 'fcn'; known: .*'pyramid'"):
        make_head("fcn", 3, False, 0.0, Policy())


def test_region_features_are_averages_over_positions():
    pixels = jnp.arange(8.0).reshape(1, 2, 2, 2)
    # Class 0 is the first pixel, class 1 the two lower ones in equal parts.
    logits = jnp.array([[[[50.0, 0.0], [0.0, 0.0]], [[0.0, 50.0], [0.0, 50.0]]]])
    expected = [[[0.0, 1.0], [5.0, 6.0]]]
    np.testing.assert_allclose(_region_features(pixels, logits), expected, rtol=1e-6, atol=1e-6)


def test_ocr_drops_whole_channels_in_training():
    assert create_model("w18", head="ocr").dropout == 0.05
    head, streams = OCRHead(3, dropout=0.5), _streams((4, 4))
    _, state = fast_jit(
        lambda v: head.apply(
            v,
            streams,
            train=True,
            mutable=["batch_stats", "intermediates"],
            rngs={"dropout": KEY},
            capture_intermediates=lambda m, _: m.name in ("fuse", "Dropout_0"),
        ),
    )(_variables(head, streams))
    found = state["intermediates"]
    before, after = (np.asarray(found[k]["__call__"][0]) for k in ("fuse", "Dropout_0"))
    kept = np.any(after > 0, axis=(1, 2))
    alive = np.any(before > 0, axis=(1, 2))
    assert 0.4 < kept.sum() / alive.sum() < 0.6
    np.testing.assert_allclose(after, before * 2 * kept[:, None, None], rtol=1e-6)
    assert np.any(kept[0] != kept[1])  # each image for itself


def test_pyramid_by_hand():
    """1x1 on the upsampled concatenation, average pooling, 3x3 at each level."""
    head, streams = PyramidHead(), _streams((9, 8))
    variables = _variables(head, streams)
    # On constant streams everything but the borders of the 3x3 is a matrix product.
    constant = tuple(jnp.full_like(s, k + 1.0) for k, s in enumerate(streams))
    apply = fast_jit(lambda v, s: head.apply(v, s, train=False)["features"])
    levels = apply(variables, constant)
    assert [x.shape for x in levels] == [(2, 9 // 2**k, 8 // 2**k, 256) for k in range(4)]
    params = variables["params"]
    joined = np.concatenate([np.full(s.shape[-1], k + 1.0) for k, s in enumerate(streams)])
    reduced = joined @ params["reduction"]["kernel"][0, 0] + params["reduction"]["bias"]
    for k, (row, column, seen) in enumerate(
        [
            (4, 4, np.s_[:, :]),
            (2, 2, np.s_[:, :]),
            (0, 1, np.s_[1:, :2]),  # a corner sees four
            (0, 0, np.s_[1:2, 1:2]),  # a single position sees itself
        ]
    ):
        kernel, bias = params[f"level{k}"]["kernel"], params[f"level{k}"]["bias"]
        expected = reduced @ np.sum(kernel[seen], (0, 1)) + bias
        np.testing.assert_allclose(levels[k][0, row, column], expected, rtol=1e-5)
    # Averages: the first stream alone, so that upsampling plays no part.
    alone = (streams[0], *(jnp.zeros_like(x) for x in streams[1:]))
    level = apply(variables, alone)[1]
    kernel = params["reduction"]["kernel"][0, 0, : streams[0].shape[-1]]
    reduced = np.asarray(streams[0][0, :8]) @ kernel + params["reduction"]["bias"]
    pooled = reduced.reshape(4, 2, 4, 2, 256).mean((1, 3))
    expected = np.einsum("abc,abcd->d", pooled[1:4, 0:3], params["level1"]["kernel"])
    np.testing.assert_allclose(level[0, 2, 1], expected + params["level1"]["bias"], rtol=1e-5)
