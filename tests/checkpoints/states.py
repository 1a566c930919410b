"""Small training states, and checkpoints of them, for the tests of this folder."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hrnet_jax.checkpoints import manifest
from hrnet_jax.checkpoints.store import CheckpointStore
from hrnet_jax.train import optimizers
from hrnet_jax.train.step import TrainState

METADATA = {
    "format_version": manifest.FORMAT_VERSION,
    "model": {"variant": "w18", "num_classes": 2, "head": "segmentation", "align_corners": False},
    "classes": {"names": ["a", "b"]},
    "config": {"seed": 0, "data": {"root": "x"}},
    "version": "0",
}


OPTIMIZER = optimizers.make_optimizer(optax.constant_schedule(0.1))


def make_state(step=0, ema=False, shape=(4, 3)):
    rng = np.random.default_rng(step)
    params = {"layer": {"kernel": jnp.asarray(rng.standard_normal(shape), jnp.float32)}}
    stats = {"layer": {"mean": jnp.asarray(rng.standard_normal(3), jnp.float32)}}
    opt_state = OPTIMIZER.init(params)
    _, opt_state = OPTIMIZER.update(jax.tree.map(jnp.cos, params), opt_state, params)
    averages = jax.tree.map(jnp.sin, {"params": params, "batch_stats": stats}) if ema else None
    return TrainState(jnp.asarray(step, jnp.int32), params, stats, opt_state, averages)


def write_steps(workdir, scores, **kwargs):
    store = CheckpointStore(workdir)
    for step, score in scores.items():
        store.save(make_state(step, **kwargs), METADATA)
        if score is not None:
            store.set_metric(step, score)
    store.close()


def assert_equal(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == e.dtype
        np.testing.assert_array_equal(a, e)


def newest_arrays(workdir):
    """The largest file of step 3's parameters: the arrays."""
    files = [p for p in (workdir / "checkpoints" / "3" / "variables").rglob("*") if p.is_file()]
    return max(files, key=lambda p: p.stat().st_size)


def flip_bit(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)
