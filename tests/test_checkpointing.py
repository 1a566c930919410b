"""What is kept, what is chosen, what is refused; bitwise contents also across devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hrnet_jax import checkpointing, optim, sharding
from hrnet_jax.train_step import TrainState

METADATA = {
    "format_version": 1,
    "model": {"variant": "w18", "num_classes": 2, "head": "segmentation", "align_corners": False},
    "classes": {"names": ["a", "b"]},
    "config": {"seed": 0, "data": {"root": "x"}},
    "version": "0",
}
OPTIMIZER = optim.make_optimizer(optax.constant_schedule(0.1))


def _state(step=0, ema=False, shape=(4, 3)):
    rng = np.random.default_rng(step)
    params = {"layer": {"kernel": jnp.asarray(rng.standard_normal(shape), jnp.float32)}}
    stats = {"layer": {"mean": jnp.asarray(rng.standard_normal(3), jnp.float32)}}
    opt_state = OPTIMIZER.init(params)
    _, opt_state = OPTIMIZER.update(jax.tree.map(jnp.cos, params), opt_state, params)
    averages = jax.tree.map(jnp.sin, {"params": params, "batch_stats": stats}) if ema else None
    return TrainState(jnp.asarray(step, jnp.int32), params, stats, opt_state, averages)


def _write(workdir, scores, **kwargs):
    store = checkpointing.CheckpointStore(workdir)
    for step, score in scores.items():
        store.save(_state(step, **kwargs), METADATA, score)
    store.close()


def _equal(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == e.dtype
        np.testing.assert_array_equal(a, e)


def test_best_and_newest_are_kept_whatever_nan_says(tmp_path):
    _write(tmp_path, {1: 0.1, 2: 0.9, 3: float("nan"), 4: 0.5, 5: None, 6: None})
    best = checkpointing.load_checkpoint(tmp_path)
    assert (best.step, best.metric, best.metadata) == (2, 0.9, METADATA)
    newest = checkpointing.load_checkpoint(tmp_path, which="latest")
    assert (newest.step, newest.metric) == (6, None)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "5", "6"]


def test_without_scores_the_newest_is_taken_and_any_path_will_do(tmp_path):
    _write(tmp_path, {1: None, 2: float("inf")})
    for path in (tmp_path, str(tmp_path / "checkpoints"), tmp_path / "checkpoints" / "2"):
        checkpoint = checkpointing.load_checkpoint(path)
        assert checkpoint.step == 2
        state = _state(2)
        _equal(checkpoint.variables, {"params": state.params, "batch_stats": state.batch_stats})
    assert checkpointing.load_checkpoint(tmp_path, step=1).step == 1


def test_averages_are_preferred_and_all_comes_back_bitwise(tmp_path):
    _write(tmp_path, {7: None}, ema=True)
    _equal(checkpointing.load_checkpoint(tmp_path).variables, _state(7, ema=True).ema)
    store = checkpointing.CheckpointStore(tmp_path)
    mesh = sharding.make_mesh(data=4, space=2)
    restored = store.restore(sharding.place_replicated(_state(0, ema=True), mesh))
    _equal(restored, _state(7, ema=True))
    assert restored.params["layer"]["kernel"].sharding.mesh == mesh
    assert store.metadata() == METADATA
    store.close()


def test_incomplete_steps_are_named_and_skipped(tmp_path, caplog):
    _write(tmp_path, {1: None, 2: None})
    folder = tmp_path / "checkpoints"
    (folder / "100").mkdir()
    assert checkpointing.load_checkpoint(tmp_path).step == 2
    assert "checkpoints/100: _CHECKPOINT_METADATA is missing" in caplog.text
    store = checkpointing.CheckpointStore(tmp_path)
    assert int(store.restore(_state()).step) == 2
    store.save(_state(100), METADATA)  # the number is free again
    store.close()
    assert checkpointing.load_checkpoint(tmp_path).step == 100


def test_damaged_newest_step_falls_back_to_the_one_before(tmp_path, caplog):
    _write(tmp_path, {1: None, 2: None})
    for file in (tmp_path / "checkpoints" / "2" / "training").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(file.read_bytes()[:10])
    store = checkpointing.CheckpointStore(tmp_path)
    restored = store.restore(_state())
    store.close()
    _equal(restored, _state(1))
    assert "skipping the damaged checkpoint" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.replace(params=_state(shape=(4, 5)).params), r"expected float32\[4, 5\]"),
        (lambda s: s.replace(params={"other": s.params["layer"]}), "missing in the checkpoint"),
        (
            lambda s: s.replace(params=jax.tree.map(lambda x: x.astype(jnp.bfloat16), s.params)),
            "checkpoint has float32.*expected bfloat16",
        ),
        (lambda s: _state(ema=True), "has no part 'ema'"),
    ],
)
def test_other_structures_are_refused(tmp_path, change, message):
    _write(tmp_path, {1: None})
    store = checkpointing.CheckpointStore(tmp_path)
    with pytest.raises(ValueError, match=message):
        store.restore(change(_state()))
    store.close()


def test_bad_requests(tmp_path):
    load = checkpointing.load_checkpoint
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="--workdir"):
        load(tmp_path)
    _write(tmp_path, {1: None})
    with pytest.raises(ValueError, match="known: \\['best', 'latest'\\]"):
        load(tmp_path, which="worst")
    with pytest.raises(FileNotFoundError, match=r"step 5 .* known: \[1\]"):
        load(tmp_path, step=5)
    with pytest.raises(ValueError, match="step 5 was asked for"):
        load(tmp_path / "checkpoints" / "1", step=5)
    metadata = tmp_path / "checkpoints" / "1" / "metadata" / "metadata"
    metadata.write_text(metadata.read_text().replace('"format_version": 1', '"format_version": 9'))
    with pytest.raises(ValueError, match="format version 9"):
        load(tmp_path)
    store = checkpointing.CheckpointStore(tmp_path / "other")
    with pytest.raises(ValueError, match=r"lacks \['classes'\]"):
        store.save(_state(), {k: v for k, v in METADATA.items() if k != "classes"})
    store.close()


def test_a_donated_state_is_saved_as_it_was(tmp_path):
    """Saving is asynchronous: the next step reuses the buffers while the files are written."""
    change = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = jax.device_put(_state(1, shape=(512, 1024)))
    expected = jax.tree.map(np.array, state)
    store = checkpointing.CheckpointStore(tmp_path)
    store.save(state, METADATA)
    for _ in range(3):
        state = change(state)
    store.close()
    store = checkpointing.CheckpointStore(tmp_path)
    _equal(store.restore(expected), expected)
    store.close()
