"""Which checkpoint is chosen, and what is refused."""

import json
import shutil

import jax
import jax.numpy as jnp
import pytest
from states import METADATA, assert_equal, flip_bit, make_state, newest_arrays, write_steps

import hrnet_jax
from hrnet_jax import to_torch
from hrnet_jax.checkpoints.load import load_checkpoint
from hrnet_jax.checkpoints.store import CheckpointStore
from hrnet_jax.models import create_model
from hrnet_jax.pytorch.files import write_tensors


def test_best_and_newest_are_kept_whatever_nan_says(tmp_path):
    write_steps(tmp_path, {1: 0.1, 2: 0.9, 3: float("nan"), 4: 0.5, 5: None, 6: None})
    best = load_checkpoint(tmp_path)
    assert (best.step, best.metric, best.metadata) == (2, 0.9, METADATA)
    newest = load_checkpoint(tmp_path, which="latest")
    assert (newest.step, newest.metric) == (6, None)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["2", "5", "6"]


def test_without_scores_the_newest_is_taken_and_any_path_will_do(tmp_path):
    write_steps(tmp_path, {1: None, 2: float("inf")})
    for path in (tmp_path, str(tmp_path / "checkpoints"), tmp_path / "checkpoints" / "2"):
        checkpoint = load_checkpoint(path)
        assert checkpoint.step == 2
        state = make_state(2)
        assert_equal(
            checkpoint.variables, {"params": state.params, "batch_stats": state.batch_stats}
        )
    assert load_checkpoint(tmp_path, step=1).step == 1


DAMAGES = {
    "byte flipped": (lambda w: flip_bit(newest_arrays(w), -20), "its checksum does not match"),
    "file truncated": (
        lambda w: newest_arrays(w).write_bytes(newest_arrays(w).read_bytes()[:10]),
        "has 10 bytes",
    ),
    "file deleted": (lambda w: newest_arrays(w).unlink(), "is missing"),
    "no manifest": (
        lambda w: (w / "checkpoints" / "3" / "manifest.json").unlink(),
        "manifest.json is missing: the save was not completed",
    ),
    "manifest flipped": (
        lambda w: flip_bit(w / "checkpoints" / "3" / "manifest.json", 40),
        "manifest.json is damaged",
    ),
    "metadata flipped": (
        lambda w: flip_bit(w / "checkpoints" / "3" / "metadata" / "metadata", 9),
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
    write_steps(tmp_path, {1: 0.1, 2: 0.2, 3: 0.3})
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
    assert_equal(store.restore(make_state()), make_state(2))
    store.save(make_state(3), METADATA)  # the number is free again
    store.close()
    assert load_checkpoint(tmp_path, which="latest").step == 3
    assert sorted(p.name for p in step.parent.iterdir()) == ["2", "3", "damaged-3-0"]


def test_all_damaged_is_an_error(tmp_path):
    write_steps(tmp_path, {3: None})
    newest_arrays(tmp_path).unlink()
    with pytest.raises(FileNotFoundError, match=r"all of \['3'\] are damaged"):
        load_checkpoint(tmp_path)
    store = CheckpointStore(tmp_path)
    assert store.restore(make_state()) is None
    store.close()


def test_other_versions_are_refused_by_number(tmp_path):
    write_steps(tmp_path, {3: None})
    folder = tmp_path / "checkpoints" / "3"
    file = folder / "metadata" / "metadata"
    file.write_text(json.dumps(METADATA | {"format_version": 1}))
    (folder / "manifest.json").unlink()  # version 1 had none
    for call in (load_checkpoint, CheckpointStore):
        with pytest.raises(ValueError, match=r"format version 1; this hrnet_jax reads version 2"):
            call(tmp_path)


def test_files_of_pytorch(tmp_path, tiny, quick):
    """Their classes are not in them: they are said, or the message names what to do."""
    model = create_model("w18_small_v1", 19)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    state_dict = to_torch(model, variables)
    for suffix in ("pth", "safetensors"):
        file = tmp_path / f"x.{suffix}"
        write_tensors(file, {f"net.{k}": v for k, v in state_dict.items()})
        for path in (file, str(file)):
            checkpoint = load_checkpoint(path, classes="cityscapes")
            assert checkpoint.metadata["model"]["num_classes"] == 19
            assert checkpoint.metadata["config"]["data"]["name"] == "cityscapes"
            assert (checkpoint.step, checkpoint.metric, checkpoint.path) == (0, None, str(file))
            assert_equal(checkpoint.variables, variables)
        with pytest.raises(ValueError, match=r"does not name its 19 classes.*--classes=cityscapes"):
            load_checkpoint(file)
        with pytest.raises(
            ValueError, match=rf"tools\.convert_weights {file} --classes=cityscapes --output=DIR"
        ):
            hrnet_jax.load(file)
        with pytest.raises(ValueError, match="has 19 classes, but camvid has 11"):
            load_checkpoint(file, classes="camvid")
        predictor = hrnet_jax.load(file, classes="cityscapes")
        assert predictor.classes.names[0] == "road"


def test_bad_requests(tmp_path):
    load = load_checkpoint
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="--workdir"):
        load(tmp_path)
    write_steps(tmp_path, {1: None})
    with pytest.raises(ValueError, match="known: \\['best', 'latest'\\]"):
        load(tmp_path, which="worst")
    with pytest.raises(FileNotFoundError, match=r"step 5 .* known: \[1\]"):
        load(tmp_path, step=5)
    with pytest.raises(ValueError, match="step 5 was asked for"):
        load(tmp_path / "checkpoints" / "1", step=5)
