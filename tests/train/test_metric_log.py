"""The progress line's arithmetic, the stop at NaN and the log across a restart."""

import json
import math

import numpy as np
import pytest

from hrnet_jax.train import metric_log


def test_line_and_time_left(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(metric_log.time, "perf_counter", lambda: clock[0])
    pace = metric_log.Pace(batch_size=4, start_step=10, num_steps=30)
    metrics = {"loss": 2.0, "pixel_accuracy": 0.5, "grad_norm": 1.0, "learning_rate": 0.1}
    for step, wait in ((11, 3.0), (12, 0.5), (13, 0.5)):
        with pace.waiting():
            clock[0] += wait
        clock[0] += 1.5
        pace.add(step, {k: np.float32(v * (step - 10)) for k, v in metrics.items()})
        if step == 11:
            assert math.isnan(pace.scalars()["seconds_left"])
            pace.clear()
    scalars = pace.scalars()
    # Since step 11: two steps, four seconds, one of them waiting for data.
    assert scalars["images_per_second"] == 2.0
    assert scalars["data_wait"] == 0.25
    assert scalars["seconds_left"] == 17 * 2.0
    assert scalars["loss"] == 5.0
    assert scalars["learning_rate"] == pytest.approx(0.3)
    assert pace.line(1.25) == (
        "step 13/30  epoch 1.2  loss 5.0000  accuracy 1.250  lr 0.30000  2.0 images/s"
        "  data wait 25%  left 0:00:34"
    )


@pytest.mark.parametrize("bad", ["loss", "grad_norm"])
def test_not_finite_names_the_step(bad):
    metrics = {"loss": 2.0, "grad_norm": 1.0, "learning_rate": 0.1} | {bad: math.inf}
    with pytest.raises(
        metric_log.NonFiniteError, match=r"step 7: .*inf.* learning rate 0.1"
    ) as info:
        metric_log.Pace(batch_size=1, start_step=0, num_steps=9).add(7, metrics | {"probe": "x"})
    assert (info.value.step, info.value.probe) == (7, "x")


def test_some_steps_may_be_skipped_and_are_counted_across_restarts(caplog):
    good = {"loss": 2.0, "pixel_accuracy": 0.5, "grad_norm": 1.0, "learning_rate": 0.1}
    bad = good | {"loss": math.nan}
    pace = metric_log.Pace(batch_size=1, start_step=0, num_steps=9, skip_nonfinite=2)
    for step, metrics in enumerate((good, bad, good), start=1):
        pace.add(step, metrics)
    assert "step 2: the loss is nan" in caplog.text
    assert "skipped, 1 of at most 2" in caplog.text
    assert pace.scalars()["loss"] == 2.0
    history = json.loads(json.dumps(pace.history()))
    pace = metric_log.Pace(1, start_step=3, num_steps=9, skip_nonfinite=2, history=history)
    pace.add(4, bad)
    assert pace.scalars()["skipped_steps"] == 2
    with pytest.raises(metric_log.NonFiniteError):
        pace.add(5, bad)


def test_averages_go_on_across_a_restart():
    """The line after a restart in the middle is that of a run without one."""
    losses = np.random.default_rng(0).standard_normal(5).astype(np.float32)
    steps = [
        {"loss": x, "pixel_accuracy": x, "grad_norm": abs(x), "learning_rate": x} for x in losses
    ]
    whole, first = (metric_log.Pace(1, start_step=0, num_steps=5) for _ in range(2))
    for step, metrics in enumerate(steps, start=1):
        whole.add(step, metrics)
        if step <= 2:
            first.add(step, metrics)
    history = json.loads(json.dumps(first.history()))
    second = metric_log.Pace(1, start_step=2, num_steps=5, history=history)
    for step, metrics in enumerate(steps[2:], start=3):
        second.add(step, metrics)
    expected, actual = whole.scalars(), second.scalars()
    for name in steps[0]:
        assert actual[name] == expected[name]


def test_only_finite_steps_are_averaged():
    pace = metric_log.Pace(1, start_step=0, num_steps=9, skip_nonfinite=1)
    pace.add(1, {"loss": math.nan, "grad_norm": math.nan, "learning_rate": 0.1})
    assert math.isnan(pace.scalars()["loss"])
    assert "loss nan" in pace.line(0.5)


def test_log_drops_what_will_come_again(tmp_path):
    log = metric_log.RunLog(str(tmp_path), start_step=0)
    for step in (1, 2, 3):
        log.scalars(step, {"loss": math.nan if step == 2 else 1.0 / step})
    log.close()
    log = metric_log.RunLog(str(tmp_path), start_step=2)
    log.images(2, [np.zeros((8, 8, 3), np.uint8)])
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "train/loss": 1.0}, {"step": 2, "train/loss": None}]


def test_log_after_a_kill(tmp_path):
    lines = [
        '{"step": 1, "train/loss": 1.0}',
        '{"step": 2, "train/loss": 0.5}',
        '{"step": 2, "eval/miou": 0.5}',
        '{"step": 3, "tra',
    ]
    for evaluated, kept in ((True, lines[:3]), (False, lines[:2])):
        (tmp_path / "log.jsonl").write_text("\n".join(lines))
        metric_log.RunLog(str(tmp_path), start_step=2, evaluated=evaluated).close()
        assert (tmp_path / "log.jsonl").read_text().splitlines() == kept


def test_duration():
    assert metric_log.duration(59.6) == "0:01:00"
    assert metric_log.duration(36_061) == "10:01:01"
