import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from hrnet_jax.data import Classes
from hrnet_jax.evaluation import metrics
from hrnet_jax.runtime import sharding


def make_classes(names, categories=()):
    n = len(names)
    return Classes(tuple(names), ((0, 0, 0),) * n, tuple(range(n)), (), tuple(categories))


def count(labels, predictions, num_classes, **options):
    """The confusion matrix of arrays of any shape."""
    pair = labels.reshape(1, -1), predictions.reshape(1, -1)
    return metrics.confusion_matrices(*pair, num_classes, **options)[0]


def reference(labels, predictions, num_classes):
    valid = labels < num_classes
    joint = labels[valid].astype(np.int64) * num_classes + predictions[valid]
    return np.bincount(joint, minlength=num_classes**2).reshape(num_classes, num_classes)


@pytest.fixture(scope="module")
def maps():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, (8, 8, 12)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.2] = 255
    return labels, rng.integers(0, 5, labels.shape).astype(np.uint8)


def test_counts_by_hand():
    labels = np.array([[0, 0, 1], [2, 255, 2]], np.uint8)
    predictions = np.array([[0, 1, 1], [0, 0, 2]], np.uint8)
    result = count(labels, predictions, 3)
    np.testing.assert_array_equal(result, [[1, 1, 0], [0, 1, 0], [1, 0, 1]])
    assert result.dtype == np.int32


def test_counts_by_image(maps):
    result = metrics.confusion_matrices(*maps, 5)
    for i in range(8):
        np.testing.assert_array_equal(result[i], reference(maps[0][i], maps[1][i], 5))
    np.testing.assert_array_equal(count(*maps, 5), reference(*maps, 5))


@pytest.mark.parametrize("method", [metrics._count_by_scatter, metrics._count_by_matmul])
def test_both_ways_to_count_agree(maps, method):
    labels = np.where(maps[0] == 255, -1, maps[0].astype(np.int32)).reshape(8, -1)
    result = jax.jit(method, static_argnums=2)(labels, maps[1].reshape(8, -1).astype(np.int32), 5)
    np.testing.assert_array_equal(np.sum(result, 0), reference(*maps, 5))


def test_values_outside_the_classes_count_nowhere():
    labels = np.array([0, 7, 1, 254, 1])
    predictions = np.array([0, 0, 9, 1, 1])
    result = count(labels, predictions, 2)
    np.testing.assert_array_equal(result, [[1, 0], [0, 1]])


def test_another_ignore_label():
    result = count(np.array([0, 1, 2]), np.array([0, 1, 1]), 3, ignore_label=0)
    np.testing.assert_array_equal(result, [[0, 0, 0], [0, 1, 0], [0, 1, 0]])


def test_counts_are_exact_beyond_float32():
    # 2**24 + 1 ones would be lost in float32.
    ones = np.ones((1, 2**24 + 3), np.uint8)
    assert int(count(ones, ones, 2)[1, 1]) == 2**24 + 3


@pytest.mark.parametrize(("data", "space"), [(8, 1), (2, 4)])
def test_sharded_batch_under_jit(maps, data, space):
    where = NamedSharding(sharding.make_mesh(data, space), PartitionSpec("data", "space"))
    arrays = [jax.device_put(m, where) for m in maps]
    counted = jax.jit(lambda *arrays: metrics.confusion_matrices(*arrays, 5).sum(0))
    np.testing.assert_array_equal(counted(*arrays), reference(*maps, 5))


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        (np.zeros((2, 3), int), np.zeros((2, 4), int), "the same shape"),
        (np.zeros((2, 3), int), np.zeros((2, 3)), "predictions must be integers"),
        (np.zeros((2, 3)), np.zeros((2, 3), int), "labels must be integers"),
    ],
)
def test_refuses(labels, predictions, message):
    with pytest.raises(ValueError, match=message):
        metrics.confusion_matrices(labels, predictions, 2)


def test_found_by_hand():
    # "d" is neither true nor predicted; "c" is only predicted.
    confusion = np.array([[6, 2, 0, 0], [1, 3, 4, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    found = metrics.summarize(confusion, make_classes("abcd"))
    assert found["per_class_iou"] == {"a": 6 / 9, "b": 3 / 10, "c": 0.0, "d": None}
    assert found["miou"] == pytest.approx((6 / 9 + 3 / 10 + 0) / 3)
    assert found["pixel_accuracy"] == pytest.approx(9 / 16)
    assert found["mean_accuracy"] == pytest.approx((6 / 8 + 3 / 8) / 2)
    assert found["per_class_accuracy"] == {"a": 6 / 8, "b": 3 / 8, "c": None, "d": None}
    assert found["num_pixels"] == 16
    assert "category_miou" not in found


def test_confusion_within_a_category_is_no_error_there():
    confusion = np.array([[1, 5, 2], [4, 1, 0], [3, 0, 4]])
    found = metrics.summarize(confusion, make_classes("abc", ["x", "x", "y"]))
    assert found["per_category_iou"] == {"x": 11 / 16, "y": 4 / 9}
    assert found["category_miou"] == pytest.approx((11 / 16 + 4 / 9) / 2)


def test_nothing_counted_gives_no_found():
    found = metrics.summarize(np.zeros((2, 2), int), make_classes("ab"))
    assert found["per_class_iou"] == {"a": None, "b": None}
    assert np.isnan([found[k] for k in ("miou", "pixel_accuracy", "mean_accuracy")]).all()


def test_found_of_a_training_pass_do_not_overflow():
    confusion = np.array([[3 * 10**9, 10**9], [0, 2 * 10**9]])
    found = metrics.summarize(confusion, make_classes("ab"))
    assert found["num_pixels"] == 6 * 10**9
    assert found["per_class_iou"]["a"] == 0.75


def test_refuses_matrices_that_do_not_fit():
    with pytest.raises(ValueError, match=r"\(2, 2\) does not fit 3 classes"):
        metrics.summarize(np.zeros((2, 2), int), make_classes("abc"))
    with pytest.raises(ValueError, match="integers"):
        metrics.summarize(np.zeros((2, 2)), make_classes("ab"))


def test_agrees_with_cityscapes_scripts():
    """The official evaluation's own functions, on a random matrix with an absent class."""
    pytest.importorskip("cityscapesscripts")
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
    from cityscapesscripts.helpers.labels import category2labels, id2label

    from hrnet_jax.data.sources.cityscapes import CLASSES

    confusion = np.random.default_rng(0).integers(0, 1000, (19, 19))
    confusion[14] = confusion[:, 14] = 0
    confusion[15] = 0
    args = official.args
    args.evalLabels = sorted(id2label)
    whole = np.zeros((max(id2label) + 1,) * 2, np.ulonglong)
    whole[np.ix_(CLASSES.label_ids, CLASSES.label_ids)] = confusion
    args.evalLabels = [i for i in args.evalLabels if i >= 0]
    found = metrics.summarize(confusion, CLASSES)
    for name, i in zip(CLASSES.names, CLASSES.label_ids, strict=True):
        expected = official.getIouScoreForLabel(i, whole, args)
        ours = found["per_class_iou"][name]
        assert (ours is None and np.isnan(expected)) or ours == pytest.approx(expected)
    for category, ours in found["per_category_iou"].items():
        assert category in category2labels
        expected = official.getIouScoreForCategory(category, whole, args)
        assert ours == pytest.approx(expected)


def test_resampling_is_of_whole_images_and_repeats():
    counts = np.array([[[1, 0], [2, 0], [1, 1]], [[0, 4], [0, 4], [0, 4]]])
    sets = metrics.resample(counts, resamples=50)
    np.testing.assert_array_equal(sets, metrics.resample(counts, resamples=50))
    # Two draws of two images: twice the first, twice the second, or both.
    kinds = {2 * correct[0] + correct[1] for correct, _, _ in sets.tolist()}
    assert kinds == {2 * 2 + 0, 2 * 0 + 8, 2 * 1 + 4}


def test_intervals_by_hand():
    # One image all right, one all wrong: a quarter of the pairs has IoU 1, a quarter 0.
    counts = np.array([[[8], [8], [8]], [[0], [8], [8]]])
    found = metrics.intervals(counts, ("a",))
    assert found["miou"] == [0.0, 1.0]
    assert found["pixel_accuracy"] == [0.0, 1.0]
    assert found["per_class_iou"] == {"a": [0.0, 1.0]}
    same = metrics.intervals(np.repeat(counts[:1] // 2, 9, axis=0), ("a",))
    assert same["miou"] == [1.0, 1.0]
    assert metrics.intervals(counts[:1], ("a",)) is None


def test_interval_of_a_mean_has_the_width_of_the_normal_one():
    rng = np.random.default_rng(0)
    right = rng.integers(0, 101, 400)
    counts = np.stack([right, np.full(400, 100), np.full(400, 100)], 1)[..., None]
    low, high = metrics.intervals(counts, ("a",))["pixel_accuracy"]
    deviation = (right / 100).std() / 20
    assert high - low == pytest.approx(2 * 1.96 * deviation, rel=0.1)
    assert low < (right / 100).mean() < high


def test_comparison_is_paired():
    # b is always one pixel of 100 better than a, while images differ much.
    right = np.arange(10, 90, 4)
    a, b = (
        np.stack([r, np.full(20, 100), np.full(20, 100)], 1)[..., None] for r in (right, right + 1)
    )
    found = metrics.compare(b, a, ("x",))
    entry = found["pixel_accuracy"]
    assert entry["difference"] == pytest.approx(0.01)
    assert entry["interval"] == [pytest.approx(0.01), pytest.approx(0.01)]
    assert entry["this"] == pytest.approx(entry["other"] + 0.01)
    low, high = metrics.intervals(a, ("x",))["pixel_accuracy"]
    assert high - low > 0.1
    nothing = metrics.compare(np.zeros_like(a), np.zeros_like(a), ("x",))["per_class_iou"]["x"]
    assert nothing == {"this": None, "other": None, "difference": None, "interval": None}
    with pytest.raises(ValueError, match="must have the same shape"):
        metrics.compare(a, b[1:], ("x",))
