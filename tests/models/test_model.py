"""The assembled network: parameter counts, sizes, dtypes, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import fast_jit

from hrnet_jax.models import VARIANTS, Variant, create_model


def _parameters(tree) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def _count_by_formula(v: Variant, num_classes: int) -> int:
    """HRNetV2's parameters added up from the architecture's description."""

    def conv(k, i, o):  # with batch normalisation, without bias
        return k * k * i * o + 2 * o

    planes, c = v.layer1_planes, v.channels
    total = conv(3, 3, 64) + conv(3, 64, 64)
    width = 64
    for _ in range(v.layer1_blocks):
        total += conv(1, width, planes) + conv(3, planes, planes) + conv(1, planes, 4 * planes)
        total += conv(1, width, 4 * planes) if width != 4 * planes else 0
        width = 4 * planes
    total += conv(3, width, c[0]) + conv(3, width, c[1]) + conv(3, c[1], c[2])
    total += conv(3, c[2], c[3])
    for branches, modules in zip((2, 3, 4), v.num_modules, strict=True):
        module = sum(v.num_blocks * 2 * conv(3, c[k], c[k]) for k in range(branches))
        for i in range(branches):
            for j in range(branches):
                if j > i:
                    module += conv(1, c[j], c[i])
                elif j < i:
                    module += (i - j - 1) * conv(3, c[j], c[j]) + conv(3, c[j], c[i])
        total += modules * module
    hidden = sum(c)
    return total + conv(1, hidden, hidden) + hidden + (hidden + 1) * num_classes


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_parameter_counts(name):
    model = create_model(name)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    count = _parameters(shapes["params"])
    assert count == _count_by_formula(VARIANTS[name], 19)
    official = {
        "w18_small_v1": 1_540_819,
        "w18_small_v2": 3_939_579,
        "w18": 9_641_119,
        "w48": 65_859_379,
    }
    assert count == official.get(name, count)


@pytest.mark.parametrize("head", ["segmentation", "segmentation_v1"])
@pytest.mark.parametrize("size", [(64, 96), (65, 97), (33, 47)])
def test_any_size_gives_a_quarter_rounded_up(tiny, head, size):
    model = create_model(tiny, 5, head)
    images = jnp.zeros((2, *size, 3))

    def run(key):
        return model.apply(model.init(key, images), images)

    logits = jax.eval_shape(run, jax.random.key(0))["logits"]
    assert logits.shape == (2, -(-size[0] // 4), -(-size[1] // 4), 5)
    assert logits.dtype == jnp.float32


def test_v1_head_reads_the_first_stream_only(tiny):
    model = create_model(tiny, 5, "segmentation_v1")
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    assert shapes["head"]["hidden"]["conv"]["kernel"].shape == (1, 1, 4, 4)
    last = shapes["backbone"]["stage4"]["module0"]["fuse"]
    assert {name.split("_")[0] for name in last} == {"to0"}


def test_bfloat16_computes_near_float32_and_keeps_float32_parameters(tiny):
    images = jax.random.normal(jax.random.key(0), (2, 64, 64, 3))
    wide, narrow = create_model(tiny, 5), create_model(tiny, 5, dtype=jnp.bfloat16)
    variables = fast_jit(narrow.init)(jax.random.key(1), images)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    a = fast_jit(wide.apply)(variables, images)["logits"]
    b = fast_jit(narrow.apply)(variables, images)["logits"]
    assert b.dtype == jnp.float32
    assert 0 < float(jnp.abs(a - b).max()) < 0.05 * float(jnp.abs(a).max())


def test_training_updates_statistics_and_is_independent_of_the_running_ones(tiny):
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    model = create_model(tiny, 5)
    variables = fast_jit(model.init)(jax.random.key(1), images)
    shifted = {**variables, "batch_stats": jax.tree.map(jnp.ones_like, variables["batch_stats"])}

    @fast_jit
    def run(variables):
        return model.apply(variables, images, train=True, mutable=["batch_stats"])

    (a, new), (b, _) = run(variables), run(shifted)
    np.testing.assert_array_equal(a["logits"], b["logits"])
    changed = jax.tree.map(
        lambda old, new: bool((old != new).any()), variables["batch_stats"], new["batch_stats"]
    )
    assert all(jax.tree.leaves(changed))


@pytest.mark.parametrize("scheme", ["kaiming", "normal"])
def test_initial_values(tiny, scheme):
    model = create_model(tiny, 5, init=scheme)
    images = jnp.zeros((1, 32, 32, 3))
    variables = model.init(jax.random.key(0), images)
    expected = jax.eval_shape(super(type(model), model).init, jax.random.key(0), images)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), variables) == jax.tree.map(
        lambda a: (a.shape, a.dtype), expected
    )
    stem = variables["params"]["backbone"]["stem"]["conv2"]
    std = {"kaiming": np.sqrt(2 / (9 * 64)), "normal": 0.001}[scheme]
    assert np.std(stem["conv"]["kernel"]) == pytest.approx(std, rel=0.02)
    classifier = variables["params"]["head"]["classifier"]["kernel"]
    assert np.std(classifier) == pytest.approx(0.001, rel=0.2)
    np.testing.assert_array_equal(stem["bn"]["scale"], np.ones(64))
    np.testing.assert_array_equal(stem["bn"]["bias"], np.zeros(64))
    bias = variables["params"]["head"]["hidden"]["conv"]["bias"]
    assert 0.8 / np.sqrt(60) < np.abs(bias).max() <= 1 / np.sqrt(60)
    stats = variables["batch_stats"]["backbone"]["stem"]["conv2"]["bn"]
    np.testing.assert_array_equal(stats["mean"], np.zeros(64))
    np.testing.assert_array_equal(stats["var"], np.ones(64))


def test_initial_values_follow_the_key_and_ignore_jit(tiny):
    model, images = create_model(tiny, 5), jnp.zeros((1, 32, 32, 3))
    a = model.init(jax.random.key(0), images)
    b = fast_jit(model.init)(jax.random.key(0), images)
    jax.tree.map(np.testing.assert_array_equal, a, b)
    other = model.init(jax.random.key(1), images)["params"]["head"]["classifier"]["kernel"]
    assert not np.array_equal(a["params"]["head"]["classifier"]["kernel"], other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("w19",), "unknown variant 'w19'.*w18_small_v1"),
        (("w18", 19, "segment"), "unknown head 'segment'.*segmentation"),
        (("w18", 0), "num_classes"),
    ],
)
def test_errors_name_the_choices(arguments, message):
    with pytest.raises(ValueError, match=message):
        create_model(*arguments)


def test_own_statistics_alone_are_those_of_a_batch_of_one(tiny):
    """Evaluation with image_statistics=1 is what training computes of each image by itself."""
    model = create_model(tiny, 3, image_statistics=1.0)
    x = jax.random.normal(jax.random.key(0), (2, 64, 96, 3))
    variables = model.init(jax.random.key(1), x)
    evaluated = fast_jit(lambda v, x: model.apply(v, x)["logits"])(variables, x)
    trained = fast_jit(
        lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"])[0]["logits"]
    )
    expected = jnp.concatenate([trained(variables, x[k : k + 1]) for k in range(2)])
    np.testing.assert_allclose(evaluated, expected, atol=1e-4 * np.abs(expected).max())
    together = trained(variables, x)
    assert np.abs(evaluated - together).max() > 1e-2 * np.abs(expected).max()


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_image_statistics_are_a_share(share):
    with pytest.raises(ValueError, match=f"image_statistics must be between 0 and 1, not {share}"):
        create_model("w18", image_statistics=share)
