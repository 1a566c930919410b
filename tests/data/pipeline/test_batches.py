import numpy as np
import pytest
import tensorflow as tf

from hrnet_jax.data.pipeline.batches import BatchPlan, iterate, sample_dataset
from hrnet_jax.data.pipeline.order import WHOLE, Shard

PLAN = BatchPlan(batch_size=1, seed=0)


def batches(load):
    return iterate(sample_dataset(lambda place: (place,), load, {"x": ((), tf.int32)}, PLAN))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (FileNotFoundError("a/b.png is gone"), FileNotFoundError),
        (ValueError("a/b.png is damaged: 3\nlines: of\ntext"), ValueError),
        (KeyError("a"), ValueError),
    ],
)
def test_errors_keep_kind_and_message(error, kind):
    """Depends on how TensorFlow words Python errors, which only `iterate` may read."""

    def load(place):
        if place == 2:
            raise error
        return (np.int32(place),)

    found = batches(load)
    assert [int(next(found)["x"][0]) for _ in range(2)] == [0, 1]
    with pytest.raises(kind) as caught:
        next(found)
    assert type(caught.value) is kind
    assert str(caught.value) == str(error)


def test_other_failures_show_the_whole_text():
    with pytest.raises(RuntimeError, match=r"the input pipeline failed: .*shape"):
        next(batches(lambda place: (np.zeros(3, np.int32),)))


def test_slots_of_shards():
    assert list(WHOLE.slots(4)) == [0, 1, 2, 3]
    assert [list(Shard(k, 2).slots(6)) for k in range(2)] == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size 0"),
        ({"shard": Shard(0, 0)}, "on 0 shards"),
        ({"shard": Shard(0, 3)}, "batch_size 4 is not divisible by 3 shards"),
        ({"shard": Shard(-1, 2)}, r"shard index -1 must be in 0\.\.1"),
        ({"seed": 2**32}, "seed must be in"),
        ({"start_step": -1}, "start_step must be 0 or more, got -1"),
        ({"threads": -1}, "threads must be 0 or more"),
        ({"prefetch": -2}, "prefetch must be 0 or more"),
    ],
)
def test_plan_rejects(change, message):
    with pytest.raises(ValueError, match=message):
        BatchPlan(**{"batch_size": 4, "seed": 0} | change)
