"""The progress line's arithmetic, the stop at NaN and the log across a restart."""

import json
import math

import numpy as np
import pytest

from hrnet_jax import progress


def test_line_and_time_left(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock[0])
    pace = progress.Pace(batch_size=4, start_step=10, num_steps=30)
    metrics = {"loss": 2.0, "pixel_accuracy": 0.5, "grad_norm": 1.0, "learning_rate": 0.1}
    for step, wait in ((11, 3.0), (12, 0.5), (13, 0.5)):
        with pace.waiting():
            clock[0] += wait
        clock[0] += 1.5
        pace.add(step, {k: np.float32(v * (step - 10)) for k, v in metrics.items()})
        if step == 11:
            assert math.isnan(pace.scalars()["seconds_left"])
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
    with pytest.raises(progress.NonFiniteError, match=r"step 7: .*inf.* learning rate 0.1"):
        progress.Pace(batch_size=1, start_step=0, num_steps=9).add(7, metrics)


def test_log_drops_what_will_come_again(tmp_path):
    log = progress.RunLog(str(tmp_path), start_step=0)
    for step in (1, 2, 3):
        log.scalars(step, {"loss": math.nan if step == 2 else 1.0 / step})
    log.close()
    log = progress.RunLog(str(tmp_path), start_step=2)
    log.pictures(2, [np.zeros((8, 8, 3), np.uint8)])
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "train/loss": 1.0}, {"step": 2, "train/loss": None}]


def test_duration():
    assert progress.duration(59.6) == "0:01:00"
    assert progress.duration(36_061) == "10:01:01"
