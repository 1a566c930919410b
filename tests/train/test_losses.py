"""Losses against hand-computed values, the official definition in numpy, finite differences."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import fast_jit
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from hrnet_jax.configs import common
from hrnet_jax.runtime import sharding
from hrnet_jax.train import build, losses


def _batch(seed=0, shape=(2, 6, 8), classes=5, ignored=0.2, scale=3.0):
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal((*shape, classes)) * scale).astype(np.float32)
    labels = rng.integers(0, classes, shape).astype(np.uint8)
    labels[rng.random(shape) < ignored] = 255
    return logits, labels, rng.uniform(0.5, 1.5, classes).astype(np.float32)


def _official_ohem(logits, labels, threshold, min_kept, weights):
    """With an explicit sort, in float64."""
    logits = logits.astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    valid = labels != 255
    true = labels[valid].astype(int)
    nll = -log_p[valid][np.arange(true.size), true]
    order = np.argsort(np.exp(-nll), kind="stable")
    p = np.exp(-nll)[order]
    threshold = max(threshold, p[min(max(1, min_kept), p.size - 1)])
    return (nll * weights[true])[order][p < threshold].mean()


def test_cross_entropy_by_hand():
    logits = jnp.log(jnp.array([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [1.0, 1.0, 1.0]]]))
    labels = jnp.array([[0, 1, 255]])
    expected = (math.log(2) + math.log(10)) / 2
    assert float(losses.cross_entropy(logits, labels)) == pytest.approx(expected, rel=1e-6)
    weighted = (3 * math.log(2) + 1 * math.log(10)) / (3 + 1)
    got = losses.cross_entropy(logits, labels, class_weights=(3.0, 1.0, 7.0))
    assert float(got) == pytest.approx(weighted, rel=1e-6)


def test_label_smoothing_by_hand():
    """All as `torch.nn.CrossEntropyLoss(weight, ignore_index=255, label_smoothing=0.3)`."""
    p = np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [0.2, 0.3, 0.5]])
    logits, labels = jnp.log(jnp.asarray(p, jnp.float32))[None], jnp.array([[0, 1, 255]])
    nll = -np.log(p)
    for weights in (np.ones(3), np.array([3.0, 1.0, 0.5])):
        own = 0.7 * (weights[0] * nll[0, 0] + weights[1] * nll[1, 1])
        spread = 0.3 * (np.mean(weights * nll[0]) + np.mean(weights * nll[1]))
        expected = (own + spread) / (weights[0] + weights[1])
        got = losses.cross_entropy(logits, labels, class_weights=weights, label_smoothing=0.3)
        assert float(got) == pytest.approx(expected, rel=1e-6)
        # The first pixel is easy at this threshold; the mean is over the count.
        got = losses.ohem_cross_entropy(
            logits, labels, 0.4, 0, class_weights=weights, label_smoothing=0.3
        )
        own, spread = 0.7 * weights[1] * nll[1, 1], 0.3 * np.mean(weights * nll[1])
        assert float(got) == pytest.approx(own + spread, rel=1e-6)


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.ohem_cross_entropy])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_gradient_is_that_of_the_definition(loss, label_smoothing):
    """By automatic differentiation of log_softmax and a gather, in float64."""
    with jax.enable_x64(True):
        logits, labels, weights = _batch(shape=(1, 4, 4))
        logits, weights = jnp.asarray(logits, jnp.float64), weights.astype(np.float64)
        target = np.eye(5)[np.where(labels == 255, 0, labels)]
        smooth = target * (1 - label_smoothing) * (target @ weights)[..., None]
        smooth += label_smoothing * weights / 5
        smooth[labels == 255] = 0

        def definition(logits):
            total = -jnp.sum(jax.nn.log_softmax(logits) * smooth)
            pixels = (labels != 255).sum()
            return total / ((target @ weights)[labels != 255].sum() if mean else pixels)

        mean = loss is losses.cross_entropy
        options = {} if mean else {"threshold": 1.0}  # all are hard
        got = jax.grad(loss)(
            logits, labels, class_weights=weights, label_smoothing=label_smoothing, **options
        )
        np.testing.assert_allclose(got, jax.grad(definition)(logits), atol=1e-12)


def test_label_smoothing_out_of_range():
    logits, labels, _ = _batch()
    with pytest.raises(ValueError, match=r"label_smoothing must be in 0..1, got 1\.5"):
        losses.cross_entropy(logits, labels, label_smoothing=1.5)


def test_cross_entropy_of_large_logits_is_finite():
    logits = jnp.array([[[1e4, -1e4], [3e38, 0.0]]])
    assert float(losses.cross_entropy(logits, jnp.array([[1, 0]]))) == 1e4


def test_other_ignore_label():
    logits, labels, _ = _batch()
    expected = losses.cross_entropy(logits, labels)
    signed = np.where(labels == 255, -1, labels.astype(np.int32))
    assert float(losses.cross_entropy(logits, signed, ignore_label=-1)) == float(expected)


# The whole list for what every loss has to do.
ALL = [
    losses.cross_entropy,
    losses.ohem_cross_entropy,
    losses.focal,
    losses.boundary_cross_entropy,
    losses.dice,
    losses.lovasz_softmax,
    functools.partial(losses.lovasz_softmax, per_image=True),
]


# Compiled once, since several tests have the same shapes.
COMPILED = [jax.jit(jax.value_and_grad(loss)) for loss in ALL]


@pytest.mark.parametrize("loss", COMPILED)
def test_nothing_valid_gives_zero_and_no_gradient(loss):
    logits, labels, _ = _batch()
    value, gradient = loss(logits, np.full_like(labels, 255))
    assert float(value) == 0
    assert not np.any(np.asarray(gradient))


@pytest.mark.parametrize("loss", COMPILED)
def test_bad_labels_and_logits_show_as_nan(loss):
    logits, labels, _ = _batch()
    assert np.isnan(loss(logits, np.where(labels == 0, 254, labels))[0])
    logits[0, labels[0] != 255] = np.nan
    assert np.isnan(loss(logits, labels)[0])


@pytest.mark.parametrize("loss", ALL)
def test_shape_errors(loss):
    logits, labels, weights = _batch()
    with pytest.raises(ValueError, match="resize the logits"):
        loss(logits[:, ::2], labels)
    with pytest.raises(ValueError, match=r"class_weights has shape \(4,\), expected \(5,\)"):
        loss(logits, labels, class_weights=weights[:4])


@pytest.mark.parametrize(
    ("threshold", "min_kept"),
    [(0.9, 10), (0.1, 30), (0.3, 1), (0.0, 5), (0.5, 10_000), (0.7, 0), (0.05, 76), (0.05, 1)],
)
def test_ohem_equals_the_sorted_form(threshold, min_kept):
    logits, labels, weights = _batch(seed=min_kept)
    got = losses.ohem_cross_entropy(logits, labels, threshold, min_kept, class_weights=weights)
    expected = _official_ohem(logits, labels, threshold, min_kept, weights)
    assert float(got) == pytest.approx(expected, rel=2e-6)


def test_ohem_by_hand():
    p = np.array([0.95, 0.2, 0.6, 0.99])  # of class 0
    logits = jnp.log(jnp.asarray(np.stack([p, 1 - p], axis=-1)[None], jnp.float32))
    labels = jnp.zeros((1, 4), jnp.int32)
    # Sorted .2 .6 .95 .99: position 1 is .6, so the threshold stays .9 and keeps .2 and .6.
    got = losses.ohem_cross_entropy(logits, labels, 0.9, 1)
    assert float(got) == pytest.approx(-(math.log(0.2) + math.log(0.6)) / 2, rel=1e-6)
    # Position 3 raises it to .99, which itself is not below the threshold.
    got = losses.ohem_cross_entropy(logits, labels, 0.9, 3)
    assert float(got) == pytest.approx(-sum(math.log(q) for q in (0.2, 0.6, 0.95)) / 3, rel=1e-6)
    # Mean over the count: with weight 2 everywhere it doubles, unlike a weighted mean.
    got = losses.ohem_cross_entropy(logits, labels, 0.9, 1, class_weights=(2.0, 1.0))
    assert float(got) == pytest.approx(-(math.log(0.2) + math.log(0.6)), rel=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kth_smallest_equals_sort(dtype):
    with jax.enable_x64(dtype == "float64"):
        rng = np.random.default_rng(1)
        values = rng.random((4, 9, 7)).astype(dtype) ** 8
        values[0, :3] = values[0, 3]  # ties
        values[1, 0, :3] = (0.0, 1.0, 1e-40 if dtype == "float32" else 5e-324)
        valid = rng.random(values.shape) < 0.8
        valid[1, 0, :3] = True
        expected = np.sort(values[valid])
        find = jax.jit(losses.kth_smallest)
        for k in (0, 1, 2, 17, 100, expected.size - 2, expected.size - 1):
            assert np.asarray(find(values, valid, k)) == expected[k]


NAMED = {
    "cross_entropy": losses.cross_entropy,
    "smoothed": functools.partial(losses.cross_entropy, label_smoothing=0.2),
    "ohem": functools.partial(losses.ohem_cross_entropy, threshold=0.2, min_kept=12),
    "focal": functools.partial(losses.focal, gamma=0.7),
    "boundary": functools.partial(losses.boundary_cross_entropy, radius=1),
    "dice": losses.dice,
    "lovasz": losses.lovasz_softmax,
}


@pytest.mark.parametrize("name", list(NAMED))
def test_derivatives_by_finite_differences(name):
    """Forward and reverse mode, and each of both over the other."""
    logits, labels, weights = _batch(shape=(2, 2, 3))
    with jax.enable_x64(True):
        weights = weights.astype(np.float64)
        loss = functools.partial(NAMED[name], labels=labels, class_weights=weights)
        assert jax.eval_shape(jax.grad(loss), jnp.asarray(logits, jnp.float64)).dtype == jnp.float64
        check_grads(
            jax.jit(loss), (jnp.asarray(logits, jnp.float64),), order=2, modes=("fwd", "rev")
        )


@pytest.mark.parametrize("loss", COMPILED)
def test_bfloat16_logits_are_promoted(loss):
    logits, labels, _ = _batch()
    low = jnp.asarray(logits, jnp.bfloat16)
    value, gradient = loss(low, labels)
    assert (value.dtype, gradient.dtype) == (jnp.float32, jnp.bfloat16)
    assert float(value) == pytest.approx(float(loss(low.astype(jnp.float32), labels)[0]), rel=1e-6)


@pytest.mark.parametrize("loss", COMPILED)
def test_extreme_logits_and_one_class_are_finite(loss):
    """A certain network, right or wrong, and labels of a single class."""
    logits, labels, _ = _batch()
    logits[:] = np.where(np.arange(5) == 0, 3e4, -3e4)
    for label in (0, 1):
        value, gradient = loss(logits, np.full_like(labels, label))
        assert np.isfinite(float(value))
        assert np.all(np.isfinite(gradient))
        assert (float(value) > 0.9) == (label == 1)


@pytest.mark.parametrize("loss", ALL)
def test_sharded_batch_gives_the_global_loss(loss):
    logits, labels, _ = _batch(shape=(4, 8, 6))
    labels[:2] = 255  # devices see very different numbers of valid pixels
    labels[0, 0, 0] = 1
    hard = functools.partial(losses.ohem_cross_entropy, threshold=0.2, min_kept=20)
    function = hard if loss is losses.ohem_cross_entropy else loss
    one_loss, one_gradient = jax.jit(jax.value_and_grad(function))(logits, labels)
    mesh = sharding.make_mesh(data=4, space=2)
    batch = sharding.place_batch({"logits": logits, "labels": labels}, mesh)
    step = jax.jit(jax.value_and_grad(function), compiler_options=sharding.compiler_options())
    value, gradient = step(batch["logits"], batch["labels"])
    assert float(value) == pytest.approx(float(one_loss), rel=1e-6)
    np.testing.assert_allclose(gradient, one_gradient, atol=1e-7)
    assert gradient.sharding.is_equivalent_to(sharding.batch_sharding(mesh), 4)


@pytest.mark.parametrize("name", list(NAMED))
def test_axes_that_are_explicit(name):
    """In a program whose mesh has explicit axes: types show how arrays are split."""
    logits, labels, weights = _batch(shape=(4, 3, 4))
    loss = fast_jit(jax.value_and_grad(functools.partial(NAMED[name], class_weights=weights)))
    expected = loss(logits, labels)
    mesh = jax.make_mesh(
        (2,), ("batch",), axis_types=(AxisType.Explicit,), devices=jax.devices()[:2]
    )
    with jax.set_mesh(mesh):
        where = NamedSharding(mesh, PartitionSpec("batch"))
        value, gradient = loss(*jax.device_put((logits, labels), where))
    assert float(value) == pytest.approx(float(expected[0]), rel=1e-6)
    np.testing.assert_allclose(gradient, expected[1], atol=1e-7)
    assert gradient.sharding.is_equivalent_to(where, 4)


def _four_classes():
    """The random numbers behind the expected values of other packages."""
    rng = np.random.RandomState(7)
    logits = 3 * rng.standard_normal((2, 5, 6, 4))
    labels = rng.randint(0, 5, (2, 5, 6))
    return logits, np.where(labels == 4, 255, labels)


# Value and norm of the gradient in float64, by torch 2.13.0 and
#   authors: the code of github.com/bermanmaxim/LovaszSoftmax with .float() read as .double()
#   smp: segmentation_models_pytorch 0.6.0, DiceLoss("multiclass", smooth=0, eps=0)
#   monai: MONAI 1.6.1, DiceLoss(softmax, batch, smooth 0) and FocalLoss(use_softmax), as means
#     over the pixels; it computes in float32
_ANOTHER = {  # labels: "ignored" as they are, "absent" without class 3, "full" with 0 for ignored
    ("lovasz authors", "ignored"): (0.8660815805382983, 0.015505604647409976),
    ("lovasz per_image authors", "ignored"): (0.8676089939747633, 0.015653169872953537),
    ("lovasz authors", "absent"): (0.8512255811644692, 0.01814885322740878),
    ("dice smp", "ignored"): (0.8076499322645088, 0.02355868647926631),
    # smp divides by all four classes, of which one is absent.
    ("dice smp", "absent"): (0.580641619964872 * 4 / 3, 0.020305038059628886 * 4 / 3),
    ("dice monai", "full"): (0.8105489706394553, 0.019364355306235755),
    ("focal 0.5 monai", "full"): (0.12343461811542511 * 30, 0.004955021489496869 * 30),
    ("focal 2 monai", "full"): (0.11872191727161407 * 30, 0.005179794387324582 * 30),
    ("focal 2 weighted monai", "full"): (0.1177196881127736 * 30, 0.0059446180694578965 * 30),
}


@pytest.mark.parametrize(("name", "kind"), _ANOTHER)
def test_equal_to_other_packages(name, kind):
    logits, labels = _four_classes()
    if kind == "absent":
        labels = np.where(labels == 3, 255, labels)
    if kind == "full":
        labels = np.where(labels == 255, 0, labels)
    loss = {
        "lovasz": losses.lovasz_softmax,
        "lovasz per_image": functools.partial(losses.lovasz_softmax, per_image=True),
        "dice": losses.dice,
        "focal 0.5": functools.partial(losses.focal, gamma=0.5),
        "focal 2": losses.focal,
        "focal 2 weighted": functools.partial(losses.focal, class_weights=(0.5, 1, 2, 1.5)),
    }[name.rsplit(" ", 1)[0]]
    value, norm = _ANOTHER[name, kind]
    bound = 1e-7 if "focal" in name else 1e-12
    with jax.enable_x64(True):
        got, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(logits), labels)
        assert float(got) == pytest.approx(value, rel=bound)
        assert float(jnp.linalg.norm(gradient.ravel())) == pytest.approx(norm, rel=bound)


# Probabilities of class 0 in four pixels, of which the last one is ignored.
_P = np.array([0.9, 0.6, 0.2, 0.5])
_LABELS = np.array([[0, 0, 1, 255]])
_LOGITS = np.log(np.stack([_P, 1 - _P], -1))[None].astype(np.float32)


def test_dice_by_hand():
    # Class 0: overlap 0.9 + 0.6, sizes 1.7 and 2; class 1: overlap 0.8, sizes 1.3 and 1.
    first, second = 1 - 2 * 1.5 / 3.7, 1 - 2 * 0.8 / 2.3
    assert float(losses.dice(_LOGITS, _LABELS)) == pytest.approx((first + second) / 2, rel=1e-6)
    got = losses.dice(_LOGITS, _LABELS, class_weights=(3.0, 1.0))
    assert float(got) == pytest.approx((3 * first + second) / 4, rel=1e-6)
    # Without class 1: sizes 1.5 and 2.
    got = losses.dice(_LOGITS, np.where(_LABELS == 1, 255, _LABELS), class_weights=(3.0, 1.0))
    assert float(got) == pytest.approx(1 - 3 / 3.5, rel=1e-6)


def test_lovasz_by_hand():
    # Class 0: errors .4 (true), .2 (false), .1 (true); Jaccard losses 1/2, 2/3, 1.
    first = 0.4 / 2 + 0.2 * (2 / 3 - 1 / 2) + 0.1 * (1 - 2 / 3)
    # Class 1: errors .4 (false), .2 (true), .1 (false); Jaccard losses 1/2, 1, 1.
    second = 0.4 / 2 + 0.2 / 2
    lovasz = jax.jit(losses.lovasz_softmax, static_argnames="per_image")
    got = lovasz(_LOGITS, _LABELS)
    assert float(got) == pytest.approx((first + second) / 2, rel=1e-6)
    got = lovasz(_LOGITS, _LABELS, class_weights=(3.0, 1.0))
    assert float(got) == pytest.approx((3 * first + second) / 4, rel=1e-6)
    # A second image without labels does not count, per image as over the batch.
    logits, labels = np.tile(_LOGITS, (2, 1, 1)), np.concatenate([_LABELS, 0 * _LABELS + 255])
    for per_image in (False, True):
        got = lovasz(logits, labels, per_image=per_image)
        assert float(got) == pytest.approx((first + second) / 2, rel=1e-6)


def test_lovasz_keeps_its_digits_in_single_precision():
    """The derivatives are differences of Jaccard losses that are 1e-5 apart."""
    rng = np.random.default_rng(3)
    logits = rng.standard_normal((1, 200, 300, 2)).astype(np.float32)
    labels = (rng.random((1, 200, 300)) < 0.3).astype(np.uint8)
    gradient = jax.jit(jax.grad(losses.lovasz_softmax))
    single = np.asarray(gradient(logits, labels))
    with jax.enable_x64(True):
        double = np.asarray(gradient(jnp.asarray(logits, jnp.float64), labels))
    difference = np.linalg.norm(single - double) / np.linalg.norm(double)
    assert difference < 2e-6


def test_focal_by_hand():
    nll = -np.log([0.9, 0.6, 0.8])
    expected = (np.array([0.1, 0.4, 0.2]) ** 2 * nll).mean()
    assert float(losses.focal(_LOGITS, _LABELS)) == pytest.approx(expected, rel=1e-5)
    got = losses.focal(_LOGITS, _LABELS, gamma=0, class_weights=(3.0, 1.0))
    plain = losses.cross_entropy(_LOGITS, _LABELS, class_weights=(3.0, 1.0))
    assert float(got) == pytest.approx(float(plain), rel=1e-6)
    with pytest.raises(ValueError, match="gamma must be 0 or more, got -1"):
        losses.focal(_LOGITS, _LABELS, gamma=-1)


def test_boundary_by_hand():
    labels = np.array([[[0, 0, 0, 1, 255, 2], [0, 0, 0, 1, 255, 2]]])
    near = losses.near_boundary(jnp.asarray(labels), jnp.asarray(labels != 255), 1)
    # The ignored column belongs to no boundary and separates 1 from 2 at this radius.
    assert np.asarray(near).astype(int).tolist() == [[[0, 0, 1, 1, 0, 0]] * 2]
    near = losses.near_boundary(jnp.asarray(labels), jnp.asarray(labels != 255), 2)
    assert np.asarray(near).astype(int).tolist() == [[[0, 1, 1, 1, 0, 1]] * 2]
    logits = np.random.default_rng(0).standard_normal((1, 2, 6, 3)).astype(np.float32)
    weights = np.where(np.arange(6) % 6 == 4, 0.0, np.array([1, 1, 5, 5, 0, 1.0])).repeat(2)
    weights = weights.reshape(6, 2).T * np.array([1, 3, 0.5])[np.where(labels == 255, 0, labels)[0]]
    nll = -np.log(_numpy_softmax(logits[0].astype(np.float64)))
    nll = np.take_along_axis(nll, np.where(labels == 255, 0, labels)[0][..., None], -1)[..., 0]
    got = losses.boundary_cross_entropy(
        logits, labels, radius=1, extra_weight=4.0, class_weights=(1, 3, 0.5)
    )
    assert float(got) == pytest.approx((weights * nll).sum() / weights.sum(), rel=1e-6)
    with pytest.raises(ValueError, match="radius must be 1 or more"):
        losses.boundary_cross_entropy(logits, labels, radius=0)


def test_near_boundary_is_scipys_filter():
    from scipy import ndimage

    labels = np.random.default_rng(0).integers(0, 3, (2, 9, 4)).repeat(3, 2)
    for radius in (1, 2):
        got = losses.near_boundary(jnp.asarray(labels), jnp.ones(labels.shape, bool), radius)
        size = (1, 2 * radius + 1, 2 * radius + 1)
        around = [f(labels, size) for f in (ndimage.maximum_filter, ndimage.minimum_filter)]
        np.testing.assert_array_equal(got, around[0] != around[1])


def test_segmentation_loss_resizes_and_adds_the_auxiliary_loss():
    logits, labels, _ = _batch(shape=(1, 8, 8))
    small = jnp.broadcast_to(jnp.asarray(logits[:, :1, :1]), (1, 2, 2, 5))
    full = jnp.broadcast_to(small[:, :1, :1], logits.shape)
    plain = losses.cross_entropy(full, labels)
    outputs = {"logits": small, "aux_logits": -small}
    loss, resized = losses.segmentation_loss(
        outputs, labels, losses.cross_entropy, align_corners=False
    )
    np.testing.assert_allclose(resized, full, rtol=1e-6)
    expected = float(plain) + 0.4 * float(losses.cross_entropy(-full, labels))
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    del outputs["aux_logits"]
    loss, _ = losses.segmentation_loss(outputs, labels, losses.cross_entropy, align_corners=True)
    assert float(loss) == pytest.approx(float(plain), rel=1e-6)


def test_pixel_accuracy():
    logits = jnp.array([[[1.0, 2.0], [2.0, 1.0], [3.0, 0.0], [0.0, 5.0]]])
    assert float(losses.pixel_accuracy(logits, jnp.array([[1, 1, 0, 255]]))) == pytest.approx(2 / 3)
    assert float(losses.pixel_accuracy(logits, jnp.full((1, 4), 255))) == 0


def _numpy_softmax(logits):
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def test_ocr_with_ohem_is_cross_entropy_on_the_auxiliary_output():
    """Value and gradients against sums written out in NumPy, in float64."""
    rng = np.random.default_rng(5)
    shape, classes = (2, 6, 8), 4
    main, aux = (3 * rng.standard_normal((*shape, classes)) for _ in range(2))
    labels = rng.integers(0, classes + 1, shape)
    labels[labels == classes] = 255
    class_weights = np.array([0.5, 1.0, 2.0, 1.5])
    threshold, min_kept, main_weight, aux_weight = 0.2, 50, 1.25, 0.4

    valid = labels != 255
    targets = labels[valid]
    weights = class_weights[targets]
    one_hot = np.eye(classes)[targets]
    p_main, p_aux = _numpy_softmax(main[valid]), _numpy_softmax(aux[valid])
    own_main, own_aux = ((p * one_hot).sum(-1) for p in (p_main, p_aux))
    kept = own_main < max(threshold, np.sort(own_main)[min(min_kept, len(own_main) - 1)])
    assert 0 < kept.sum() < len(kept)
    ohem = (weights * -np.log(own_main))[kept].mean()
    cross_entropy = (weights * -np.log(own_aux)).sum() / weights.sum()
    expected = main_weight * ohem + aux_weight * cross_entropy
    to_main, to_aux = np.zeros_like(main), np.zeros_like(aux)
    to_main[valid] = main_weight * (p_main - one_hot) * (weights * kept / kept.sum())[:, None]
    to_aux[valid] = aux_weight * (p_aux - one_hot) * (weights / weights.sum())[:, None]

    config = common.get_config()
    config.head, config.loss.name = "ocr", "ohem"
    config.loss.class_weights = tuple(class_weights)
    config.loss.ohem_threshold, config.loss.ohem_min_kept = threshold, min_kept
    config.loss.main_weight, config.loss.aux_weight = main_weight, aux_weight

    def loss(outputs):
        loss_of = build.make_segmentation_loss(config)
        return loss_of(outputs, labels, build.make_loss(config), align_corners=True)[0]

    with jax.enable_x64(True):
        outputs = {"logits": jnp.asarray(main), "aux_logits": jnp.asarray(aux)}
        value, gradients = jax.value_and_grad(loss)(outputs)
        np.testing.assert_allclose(value, expected, rtol=1e-12)
        np.testing.assert_allclose(gradients["logits"], to_main, rtol=1e-10, atol=1e-15)
        np.testing.assert_allclose(gradients["aux_logits"], to_aux, rtol=1e-10, atol=1e-15)


def test_terms_are_a_weighted_sum_in_place_of_the_name():
    logits, labels, weights = _batch()
    config = common.get_config()
    config.loss.name, config.loss.class_weights = "focal", tuple(weights)
    config.loss.ohem_threshold, config.loss.ohem_min_kept = 0.2, 12
    assert build.make_loss(config).func is losses.focal
    config.loss.terms.update({"ohem": 1, "lovasz": 0.5, "dice": 0})
    got = jax.jit(build.make_loss(config))(logits, labels)
    ohem = losses.ohem_cross_entropy(logits, labels, 0.2, 12, class_weights=weights)
    lovasz = jax.jit(losses.lovasz_softmax)(logits, labels, class_weights=weights)
    assert float(got) == pytest.approx(float(ohem) + 0.5 * float(lovasz), rel=1e-6)
    # One term of weight 1 is that loss itself, and what the name alone gives.
    config.loss.terms = {"boundary": 1.0}
    alone = build.make_loss(config)
    config.loss.terms = {}
    config.loss.name = "boundary"
    assert alone.func is build.make_loss(config).func is losses.boundary_cross_entropy
    assert alone.keywords == build.make_loss(config).keywords
    assert alone.keywords["radius"] == 3
