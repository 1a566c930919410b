"""What is kept, what is chosen, what is refused; bitwise contents also across devices."""

import json
import os
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from etils import epath

from hrnet_jax.checkpoints import manifest
from hrnet_jax.checkpoints.load import load_checkpoint
from hrnet_jax.checkpoints.store import CheckpointStore, SaveError
from hrnet_jax.runtime import sharding
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


def _state(step=0, ema=False, shape=(4, 3)):
    rng = np.random.default_rng(step)
    params = {"layer": {"kernel": jnp.asarray(rng.standard_normal(shape), jnp.float32)}}
    stats = {"layer": {"mean": jnp.asarray(rng.standard_normal(3), jnp.float32)}}
    opt_state = OPTIMIZER.init(params)
    _, opt_state = OPTIMIZER.update(jax.tree.map(jnp.cos, params), opt_state, params)
    averages = jax.tree.map(jnp.sin, {"params": params, "batch_stats": stats}) if ema else None
    return TrainState(jnp.asarray(step, jnp.int32), params, stats, opt_state, averages)


def _write(workdir, scores, **kwargs):
    store = CheckpointStore(workdir)
    for step, score in scores.items():
        store.save(_state(step, **kwargs), METADATA)
        if score is not None:
            store.set_score(step, score)
    store.close()


def _equal(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.dtype == e.dtype
        np.testing.assert_array_equal(a, e)


def test_best_and_newest_are_kept_whatever_nan_says(tmp_path):
    _write(tmp_path, {1: 0.1, 2: 0.9, 3: float("nan"), 4: 0.5, 5: None, 6: None})
    best = load_checkpoint(tmp_path)
    assert (best.step, best.metric, best.metadata) == (2, 0.9, METADATA)
    newest = load_checkpoint(tmp_path, which="latest")
    assert (newest.step, newest.metric) == (6, None)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "5", "6"]


def test_without_scores_the_newest_is_taken_and_any_path_will_do(tmp_path):
    _write(tmp_path, {1: None, 2: float("inf")})
    for path in (tmp_path, str(tmp_path / "checkpoints"), tmp_path / "checkpoints" / "2"):
        checkpoint = load_checkpoint(path)
        assert checkpoint.step == 2
        state = _state(2)
        _equal(checkpoint.variables, {"params": state.params, "batch_stats": state.batch_stats})
    assert load_checkpoint(tmp_path, step=1).step == 1


# All printable characters, and what is not ASCII.
NAMES = (
    "run[lr=0.01]", "a**b?", "back\\slash", "!\"#$%&'()+,-.", ":;<=>@^_`{|}~", " two  words ",
    "tab\tline\nfeed", "straße 道路", "%5Bx%5D", "file:x",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_any_name_of_a_folder_works(tmp_path, name):
    workdir = tmp_path / name
    _write(workdir, {1: 0.5, 2: None})
    assert load_checkpoint(workdir).step == 1
    store = CheckpointStore(workdir)
    _equal(store.restore(_state(0)), _state(2))
    store.close()
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["1", "2"]


def test_a_name_that_is_not_utf8_is_refused(tmp_path):
    workdir = os.fsdecode(os.fsencode(tmp_path) + b"/run\xff")
    with pytest.raises(ValueError, match=r"run\\xff' is not UTF-8"):
        CheckpointStore(workdir)


def test_what_cannot_be_opened_again_is_not_saved(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path)
    store.save(_state(1), METADATA)
    store.wait()
    written = ocp.CompositeCheckpointHandler.finalize

    def lose(self, directory):
        written(self, directory)
        shutil.rmtree(directory / "variables.orbax-checkpoint-tmp", ignore_errors=True)
        for file in directory.glob("variables/*"):
            file.rmtree() if file.is_dir() else file.unlink()

    monkeypatch.setattr(ocp.CompositeCheckpointHandler, "finalize", lose)
    store.save(_state(2), METADATA)
    with pytest.raises(SaveError, match=r"step 2 could not be written.*variables"):
        store.wait()
    assert store.steps() == [1]
    store.close()


def test_averages_are_preferred_and_all_comes_back_bitwise(tmp_path):
    _write(tmp_path, {7: None}, ema=True)
    _equal(load_checkpoint(tmp_path).variables, _state(7, ema=True).ema)
    store = CheckpointStore(tmp_path)
    mesh = sharding.make_mesh(data=4, space=2)
    restored = store.restore(sharding.place_replicated(_state(0, ema=True), mesh))
    _equal(restored, _state(7, ema=True))
    assert restored.params["layer"]["kernel"].sharding.mesh == mesh
    assert store.metadata() == METADATA
    store.close()


def test_scores_are_kept_apart_from_steps_without(tmp_path):
    _write(tmp_path, {1: 0.5, 2: float("nan"), 3: None})
    store = CheckpointStore(tmp_path)
    assert [store.score(step) for step in (1, 2, 3, 4)] == [(0.5,), (None,), None, None]
    store.close()


def _newest_arrays(workdir):
    """The largest file of step 3's parameters: the arrays."""
    files = [p for p in (workdir / "checkpoints" / "3" / "variables").rglob("*") if p.is_file()]
    return max(files, key=lambda p: p.stat().st_size)


def _flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)


DAMAGES = {
    "byte flipped": (lambda w: _flip(_newest_arrays(w), -20), "its checksum is not what it was"),
    "file truncated": (
        lambda w: _newest_arrays(w).write_bytes(_newest_arrays(w).read_bytes()[:10]),
        "has 10 bytes",
    ),
    "file deleted": (lambda w: _newest_arrays(w).unlink(), "is missing"),
    "no manifest": (
        lambda w: (w / "checkpoints" / "3" / "manifest.json").unlink(),
        "manifest.json is missing: the save was not completed",
    ),
    "manifest flipped": (
        lambda w: _flip(w / "checkpoints" / "3" / "manifest.json", 40),
        "manifest.json is damaged",
    ),
    "metadata flipped": (
        lambda w: _flip(w / "checkpoints" / "3" / "metadata" / "metadata", 9),
        "metadata/metadata is damaged",
    ),
    "emptied": (
        lambda w: (
            shutil.rmtree(w / "checkpoints" / "3"),
            (w / "checkpoints" / "3").mkdir(),
        ),
        "manifest.json is missing",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_the_step_before_is_used(tmp_path, caplog, damage):
    _write(tmp_path, {1: 0.1, 2: 0.2, 3: 0.3})
    apply, message = DAMAGES[damage]
    apply(tmp_path)
    step = tmp_path / "checkpoints" / "3"
    assert load_checkpoint(tmp_path).step == 2
    assert load_checkpoint(tmp_path, which="latest").step == 2
    assert f"skipping the damaged checkpoint {step}" in caplog.text
    assert message in caplog.text
    for asked in ({"path": step}, {"path": tmp_path, "step": 3}):
        with pytest.raises(ValueError, match=r"no complete checkpoint at .*/3"):
            load_checkpoint(**asked)
    caplog.clear()
    store = CheckpointStore(tmp_path)
    assert message in caplog.text
    _equal(store.restore(_state()), _state(2))
    store.save(_state(3), METADATA)  # the number is free again
    store.close()
    assert load_checkpoint(tmp_path, which="latest").step == 3
    assert sorted(p.name for p in step.parent.iterdir()) == ["2", "3", "damaged-3-0"]


def test_every_byte_of_the_arrays_counts(tmp_path):
    _write(tmp_path, {3: None})
    folder = epath.Path(tmp_path / "checkpoints" / "3")
    assert not manifest.find_damage(folder)
    file = _newest_arrays(tmp_path)
    for place in range(0, file.stat().st_size, 7):
        _flip(file, place)
        assert "checksum" in manifest.find_damage(folder), place
        _flip(file, place)
    assert not manifest.find_damage(folder)


def test_all_damaged_is_an_error(tmp_path):
    _write(tmp_path, {3: None})
    _newest_arrays(tmp_path).unlink()
    with pytest.raises(FileNotFoundError, match=r"all of \['3'\] are damaged"):
        load_checkpoint(tmp_path)
    store = CheckpointStore(tmp_path)
    assert store.restore(_state()) is None
    store.close()


def test_other_versions_are_refused_by_number(tmp_path):
    _write(tmp_path, {3: None})
    folder = tmp_path / "checkpoints" / "3"
    file = folder / "metadata" / "metadata"
    file.write_text(json.dumps(METADATA | {"format_version": 1}))
    (folder / "manifest.json").unlink()  # version 1 had none
    for call in (load_checkpoint, CheckpointStore):
        with pytest.raises(ValueError, match=r"format version 1; this hrnet_jax reads version 2"):
            call(tmp_path)


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    _write(tmp_path, {3: None})
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "3", folder / "4.orbax-checkpoint-tmp")
    shutil.copytree(folder / "3", folder / "1.removed")
    assert load_checkpoint(tmp_path).step == 3
    CheckpointStore(tmp_path).close()
    assert [p.name for p in folder.iterdir()] == ["3"]


# Orbax leaves a coroutine behind where a write fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_is_noticed_before_and_during_a_write(tmp_path, monkeypatch):
    _write(tmp_path, {1: None})
    store = CheckpointStore(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(SaveError, match=r"no room .* step 2.*intact in .*\[1\]"):
            store.save(_state(2), METADATA)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    large = _state(2, shape=(512, 1024))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        store.save(large, METADATA)
        with pytest.raises(SaveError, match=r"step 2 .*: .*intact in .*\[1\]"):
            store.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert store.steps() == [1]
    store.close()
    store = CheckpointStore(tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["1"]
    store.save(_state(2), METADATA)  # once there is room again
    store.close()
    assert load_checkpoint(tmp_path).step == 2


def test_a_failed_write_is_reported_by_the_next_check(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path)

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("hrnet_jax.checkpoints.store.write_manifest", fail)
    store.save(_state(1), METADATA)
    store._checkpointer._async_manager._thread.join()
    with pytest.raises(SaveError, match=r"step 1 .* no space left.*no earlier one"):
        store.check()
    store.close()
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "[]",
        "{}",
        json.dumps(METADATA | {"model": {"variant": ["w18"]}}),
        json.dumps(METADATA | {"model": {"__class__": "os.system"}}),
        json.dumps(METADATA | {"model": "w18"}),
    ],
    ids=["deep", "list", "empty", "type", "key", "text"],
)
def test_metadata_of_strangers(tmp_path, text):
    """With a manifest to match: whoever can write the folder can write that, too."""
    _write(tmp_path, {3: None})
    folder = epath.Path(tmp_path / "checkpoints" / "3")
    (folder / "metadata" / "metadata").write_text(text)
    files = {n: [size, manifest.checksum(f)] for n, f, size in manifest.step_files(folder)}
    contents = manifest.read_manifest(folder) | {"files": files}
    manifest.write_manifest(folder, contents)
    with pytest.raises(ValueError, match=r"checkpoint .*/3"):
        load_checkpoint(folder)


def test_links_are_not_followed(tmp_path):
    _write(tmp_path, {3: None})
    (tmp_path / "checkpoints" / "3" / "up").symlink_to(tmp_path)
    (tmp_path / "checkpoints" / "3" / "root").symlink_to("/")
    assert load_checkpoint(tmp_path).step == 3
    file = _newest_arrays(tmp_path)
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="damaged"):
        load_checkpoint(tmp_path)


def test_nothing_is_read_outside_the_folder(tmp_path):
    _write(tmp_path, {3: None})
    folder = epath.Path(tmp_path / "checkpoints" / "3")
    contents = manifest.read_manifest(folder)
    contents["files"]["../../../../dev/zero"] = [0, "00000000"]
    manifest.write_manifest(folder, contents)
    with pytest.raises(ValueError, match="dev/zero is missing"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.replace(params=_state(shape=(4, 5)).params), r"expected float32\[4, 5\]"),
        (lambda s: s.replace(params={"other": s.params["layer"]}), "missing in the checkpoint"),
        (
            lambda s: s.replace(params=jax.tree.map(lambda x: x.astype(jnp.bfloat16), s.params)),
            "checkpoint has float32.*expected bfloat16",
        ),
        (lambda s: _state(ema=True), "there is no part 'ema'"),
    ],
)
def test_other_structures_are_refused(tmp_path, change, message):
    _write(tmp_path, {1: None})
    store = CheckpointStore(tmp_path)
    with pytest.raises(ValueError, match=message):
        store.restore(change(_state()))
    store.close()


def test_bad_requests(tmp_path):
    load = load_checkpoint
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
    store = CheckpointStore(tmp_path / "other")
    with pytest.raises(ValueError, match=r"lacks \['classes'\]"):
        store.save(_state(), {k: v for k, v in METADATA.items() if k != "classes"})
    store.close()


def test_a_donated_state_is_saved_as_it_was(tmp_path):
    """Saving is asynchronous: the next step reuses the buffers while the files are written."""
    change = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = jax.device_put(_state(1, shape=(512, 1024)))
    expected = jax.tree.map(np.array, state)
    store = CheckpointStore(tmp_path)
    store.save(state, METADATA)
    for _ in range(3):
        state = change(state)
    store.close()
    store = CheckpointStore(tmp_path)
    _equal(store.restore(expected), expected)
    store.close()
