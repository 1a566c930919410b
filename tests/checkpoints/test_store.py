"""What is kept and what is restored, bit by bit, also across devices."""

import os
import resource
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from states import METADATA, assert_equal, make_state, write_steps

from hrnet_jax.checkpoints.load import load_checkpoint
from hrnet_jax.checkpoints.store import CheckpointStore, SaveError
from hrnet_jax.runtime import sharding

# All printable characters, and what is not ASCII.
NAMES = (
    "run[lr=0.01]", "a**b?", "back\\slash", "!\"#$%&'()+,-.", ":;<=>@^_`{|}~", " two  words ",
    "tab\tline\nfeed", "straße 道路", "%5Bx%5D", "file:x",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_any_name_of_a_folder_works(tmp_path, name):
    workdir = tmp_path / name
    write_steps(workdir, {1: 0.5, 2: None})
    assert load_checkpoint(workdir).step == 1
    store = CheckpointStore(workdir)
    assert_equal(store.restore(make_state(0)), make_state(2))
    store.close()
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["1", "2"]


def test_a_name_that_is_not_utf8_is_refused(tmp_path):
    workdir = os.fsdecode(os.fsencode(tmp_path) + b"/run\xff")
    with pytest.raises(ValueError, match=r"run\\xff' is not UTF-8"):
        CheckpointStore(workdir)


def test_what_cannot_be_opened_again_is_not_saved(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path)
    store.save(make_state(1), METADATA)
    store.wait()
    written = ocp.CompositeCheckpointHandler.finalize

    def lose(self, directory):
        written(self, directory)
        shutil.rmtree(directory / "variables.orbax-checkpoint-tmp", ignore_errors=True)
        for file in directory.glob("variables/*"):
            file.rmtree() if file.is_dir() else file.unlink()

    monkeypatch.setattr(ocp.CompositeCheckpointHandler, "finalize", lose)
    store.save(make_state(2), METADATA)
    with pytest.raises(SaveError, match=r"step 2 could not be written.*variables"):
        store.wait()
    assert store.steps() == [1]
    store.close()


def test_averages_are_preferred_and_all_comes_back_bitwise(tmp_path):
    write_steps(tmp_path, {7: None}, ema=True)
    assert_equal(load_checkpoint(tmp_path).variables, make_state(7, ema=True).ema)
    store = CheckpointStore(tmp_path)
    mesh = sharding.make_mesh(data=4, space=2)
    restored = store.restore(sharding.place_replicated(make_state(0, ema=True), mesh))
    assert_equal(restored, make_state(7, ema=True))
    assert restored.params["layer"]["kernel"].sharding.mesh == mesh
    assert store.metadata() == METADATA
    store.close()


def test_scores_are_kept_apart_from_steps_without(tmp_path):
    write_steps(tmp_path, {1: 0.5, 2: float("nan"), 3: None})
    store = CheckpointStore(tmp_path)
    assert [store.metric(step) for step in (1, 2, 3, 4)] == [(0.5,), (None,), None, None]
    store.close()


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    write_steps(tmp_path, {3: None})
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "3", folder / "4.orbax-checkpoint-tmp")
    shutil.copytree(folder / "3", folder / "1.removed")
    assert load_checkpoint(tmp_path).step == 3
    CheckpointStore(tmp_path).close()
    assert [p.name for p in folder.iterdir()] == ["3"]


# Orbax leaves a coroutine behind where a write fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_is_noticed_before_and_during_a_write(tmp_path, monkeypatch):
    write_steps(tmp_path, {1: None})
    store = CheckpointStore(tmp_path)
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(SaveError, match=r"no room .* step 2.*intact in .*\[1\]"):
            store.save(make_state(2), METADATA)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    large = make_state(2, shape=(512, 1024))
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
    store.save(make_state(2), METADATA)  # once there is room again
    store.close()
    assert load_checkpoint(tmp_path).step == 2


def test_a_failed_write_is_reported_by_the_next_check(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path)

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("hrnet_jax.checkpoints.store.write_manifest", fail)
    store.save(make_state(1), METADATA)
    store._checkpointer._async_manager._thread.join()
    with pytest.raises(SaveError, match=r"step 1 .* no space left.*no earlier one"):
        store.check()
    store.close()
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_a_donated_state_is_saved_as_it_was(tmp_path):
    """Saving is asynchronous: the next step reuses the buffers while the files are written."""
    change = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    state = jax.device_put(make_state(1, shape=(512, 1024)))
    expected = jax.tree.map(np.array, state)
    store = CheckpointStore(tmp_path)
    store.save(state, METADATA)
    for _ in range(3):
        state = change(state)
    store.close()
    store = CheckpointStore(tmp_path)
    assert_equal(store.restore(expected), expected)
    store.close()


def test_save_needs_all_metadata(tmp_path):
    store = CheckpointStore(tmp_path / "other")
    with pytest.raises(ValueError, match=r"lacks \['classes'\]"):
        store.save(make_state(), {k: v for k, v in METADATA.items() if k != "classes"})
    store.close()
