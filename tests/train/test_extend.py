"""Another length or batch size: epochs, samples, what is allowed, what is kept."""

import logging

import optax
import pytest

from hrnet_jax.configs import common
from hrnet_jax.train import build, extend
from hrnet_jax.train.config import check_same_config
from hrnet_jax.train.extend import Epochs


def test_epochs_count_samples():
    """10 images; 4 a step for 5 steps (2 epochs), then 2 a step."""
    epochs = Epochs(10, ((0, 4), (5, 2)))
    assert [epochs.at(step) for step in (0, 3, 5, 10)] == pytest.approx([0, 1.2, 2, 3])
    assert [epochs.step_at(e) for e in (0, 1.2, 2, 3)] == pytest.approx([0, 3, 5, 10])
    assert epochs.steps_per_epoch == 5
    # Step 5 begins with sample 20, step 6 with sample 22.
    assert [step * 2 + epochs.sample_offset for step in (5, 6)] == [20, 22]
    plain = Epochs(367, ((0, 8),))
    assert (plain.sample_offset, plain.steps_per_epoch) == (0, 367 / 8)
    # To the last bit what runs have without changes.
    assert [plain.at(step) for step in range(50)] == [step / (367 / 8) for step in range(50)]
    assert plain.step_at(60.0) == 60.0 * (367 / 8)


def _metadata(**values):
    config = common.get_config()
    config.update_from_flattened_dict(values)
    return {"classes": {"names": ["road"]}, "config": config.to_dict()}


def test_changes_are_allowed_knowingly_and_kept(caplog):
    caplog.set_level(logging.INFO, "hrnet_jax")
    old, new = _metadata(num_steps=20), _metadata(num_steps=50, batch_size=6)
    assert extend.changes(None, new) == extend.changes(new, new) == {}
    changed = extend.changes(old, new)
    assert changed == {"num_steps": [20, 50], "batch_size": [12, 6]}
    check_same_config(extend.accept(old, changed), new, "RUN")
    with pytest.raises(ValueError, match=r"(?s)RUN holds.*num_steps: saved 20, now 50\n.*--config"):
        extend.check_allowed(changed, False, "RUN")
    extend.check_allowed(changed, True, "RUN")
    history = extend.history_of(old, changed, 20)
    assert history == [{"step": 20, "changed": changed}]
    # The same command again, and later a plain one.
    assert extend.history_of({**new, "history": history}, {}, 30) == history
    config = common.get_config()
    config.update_from_flattened_dict({"num_steps": 50, "batch_size": 6})
    num_steps, epochs = build.run_length(config, 120, history)
    assert (num_steps, epochs) == (50, Epochs(120, ((0, 12), (20, 6))))
    config.num_steps, config.num_epochs = 0, 3
    assert build.run_length(config, 120, history)[0] == 40  # 20 * 12 + 20 * 6 = 3 * 120

    schedule = optax.constant_schedule(0.1)
    extend.log_changes(changed, 20, 50, epochs, schedule)
    assert "at step 20: num_steps 20 -> 50, batch_size 12 -> 6" in caplog.text
    assert "a run of 50 steps, entered at step 20: 0.1" in caplog.text
    assert "continue at sample 240 of the sequence, with 6 instead of 12" in caplog.text
    with pytest.raises(ValueError, match="at step 20 already and cannot end after step 10"):
        extend.log_changes({"num_steps": [20, 10]}, 20, 10, epochs, schedule)


def test_other_keys_need_a_new_run():
    old, new = _metadata(), _metadata(variant="w18", num_steps=7)
    changed = extend.changes(old, new)
    assert list(changed) == ["num_steps"]
    with pytest.raises(ValueError, match=r"(?s)variant: saved 'w48'.*init_from=RUN to start from"):
        check_same_config(extend.accept(old, changed), new, "RUN")


def test_milestones_follow_the_samples():
    config = common.get_config()
    config.update_from_flattened_dict(
        {"optimizer.schedule": "multistep", "optimizer.milestones": (1, 3), "optimizer.gamma": 0.5}
    )
    epochs = Epochs(10, ((0, 4), (5, 2)))
    schedule, _ = build.make_optimizer(config, 20, epochs.steps_per_epoch, epochs.step_at)
    rates = [float(schedule(step)) / 0.01 for step in (1, 2, 9, 10)]  # epoch 1 is step 2.5
    assert rates == pytest.approx([1, 0.5, 0.5, 0.25])
