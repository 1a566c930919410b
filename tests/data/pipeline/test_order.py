import numpy as np
import pytest
import tensorflow as tf

from hrnet_jax.data.pipeline.order import BLOCK, Order, block_counts, sample_order


def draws(order, places):
    """int64 [places, 3]: source, index, class."""
    places = tf.constant(list(places), tf.int64)
    drawn = tf.data.Dataset.from_tensor_slices(places).map(order.draw)
    return np.array([[int(value) for value in draw] for draw in drawn.as_numpy_iterator()])


@pytest.mark.parametrize("size", [1, 2, 3, 10, 101])
def test_order_is_a_permutation(size):
    places = tf.range(2 * size, dtype=tf.int64)
    order = tf.map_fn(lambda g: sample_order(size, 0, g), places).numpy()
    assert sorted(order[:size]) == sorted(order[size:]) == list(range(size))


def test_order_spreads_evenly():
    # The first image of 600 epochs of 6: each about 100 times, standard deviation 9.
    places = tf.range(0, 3600, 6, dtype=tf.int64)
    first = tf.map_fn(lambda g: sample_order(6, 1, g), places).numpy()
    assert (np.abs(np.bincount(first, minlength=6) - 100) < 46).all()


def test_one_source_comes_as_if_there_were_no_mixture():
    got = draws(Order([7], 3, weights=[1.0]), range(20))
    expected = [int(sample_order(7, 3, tf.constant(p, tf.int64))) for p in range(20)]
    assert got[:, 1].tolist() == expected
    assert set(got[:, 0]) == {0}
    assert set(got[:, 2]) == {-1}


@pytest.mark.parametrize(
    ("weights", "share", "expected"),
    [
        ((1,), 0, [1000, 0]),
        ((3, 1), 0, [750, 0, 250, 0]),
        ((1, 1, 1), 0, [334, 0, 333, 0, 333, 0]),
        ((0.8, 0.2), 0.5, [400, 400, 100, 100]),
        ((1,), 1, [0, 1000]),
    ],
)
def test_shares_of_a_block(weights, share, expected):
    assert block_counts(weights, share).tolist() == expected


@pytest.mark.parametrize("weights", [(1, 0), (1, -1), (1, float("nan")), (1, 1e-5)])
def test_weights_that_make_no_sense(weights):
    with pytest.raises(ValueError, match="weights"):
        block_counts(weights, 0)


def test_mixture_is_exact_and_each_source_in_turn():
    got = draws(Order([400, 90], 5, weights=[0.7, 0.3]), range(2 * BLOCK))
    for block in (got[:BLOCK], got[BLOCK:]):
        assert np.bincount(block[:, 0]).tolist() == [700, 300]
    # Mixed, not one after the other: 50 places hold 15 of the second, standard deviation 3.2.
    parts = (got[:, 0] == 1).reshape(-1, 50).sum(1)
    assert parts.min() >= 2
    assert parts.max() <= 29
    for source, size in ((0, 400), (1, 90)):
        # Within a block a source's places are shuffled among each other: whole blocks count.
        times = np.bincount(got[got[:, 0] == source, 1], minlength=size)
        assert times.max() - times.min() <= 1


def test_classes_come_equally_often():
    presence = np.zeros((6, 4), bool)
    presence[:, 0] = presence[2:4, 1] = presence[5, 3] = True  # class 2 does not occur
    order = Order([6], 1, weights=[1.0], class_uniform=1.0, presence=[presence])
    got = draws(order, range(900))
    assert np.bincount(got[:, 2], minlength=4).tolist() == [300, 300, 0, 300]
    assert presence[got[:, 1], got[:, 2]].all()
    for label, images in ((0, range(6)), (1, (2, 3)), (3, (5,))):
        times = np.bincount(got[got[:, 2] == label, 1], minlength=6)
        assert times[list(images)].tolist() == [300 // len(images)] * len(images)


def test_half_by_class():
    presence = np.ones((10, 2), bool)
    order = Order([10], 0, weights=[1.0], class_uniform=0.5, presence=[presence])
    got = draws(order, range(BLOCK))
    assert np.bincount(got[:, 2] + 1).tolist() == [500, 250, 250]
    assert np.bincount(got[got[:, 2] < 0, 1]).tolist() == [50] * 10
