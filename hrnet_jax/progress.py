"""What a run says while it goes on: speed, time left, scalars and pictures for later."""

import json
import math
import time

import jax
import numpy as np
import tensorflow as tf
from etils import epath


class NonFiniteError(FloatingPointError):
    """Loss or gradient became infinite or NaN; the message names the step."""


class Pace:
    """Averages of the steps since the last line, and the speed."""

    def __init__(self, batch_size: int, start_step: int, num_steps: int):
        self._batch_size, self._num_steps = batch_size, num_steps
        self._first = self._step = start_step
        self._started = None  # after the first step, which also warms up
        self._metrics: list[dict[str, float]] = []
        self._reset()

    def _reset(self) -> None:
        self._since, self._waited = time.perf_counter(), 0.0

    def waiting(self):
        return _Stopwatch(self)

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Waits for a step and keeps its metrics.

        Raises:
          NonFiniteError: if its loss or gradient is not finite.
        """
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not all(math.isfinite(values[name]) for name in ("loss", "grad_norm")):
            raise NonFiniteError(
                f"step {step}: the loss is {values['loss']} and the gradient's norm"
                f" {values['grad_norm']}, at learning rate {values['learning_rate']:g}"
            )
        self._step = step
        self._metrics.append(values)

    def scalars(self) -> dict[str, float]:
        """Means since the last call; learning rate and step are the newest."""
        now = time.perf_counter()
        seconds = now - self._since
        values = {
            name: float(np.mean([m[name] for m in self._metrics])) for name in self._metrics[0]
        }
        values["learning_rate"] = self._metrics[-1]["learning_rate"]
        values["images_per_second"] = len(self._metrics) * self._batch_size / seconds
        values["data_wait"] = self._waited / seconds
        if self._started is None:
            self._started, self._first = now, self._step
        done = self._step - self._first
        values["seconds_left"] = (
            (now - self._started) / done * (self._num_steps - self._step) if done else math.nan
        )
        self._metrics = []
        self._last = values
        self._reset()
        return values

    def line(self, epoch: float) -> str:
        """The newest scalars as a line."""
        v = self._last
        left = "?" if math.isnan(v["seconds_left"]) else duration(v["seconds_left"])
        return (
            f"step {self._step}/{self._num_steps}  epoch {epoch:.1f}  loss {v['loss']:.4f}"
            f"  accuracy {v['pixel_accuracy']:.3f}  lr {v['learning_rate']:.5f}"
            f"  {v['images_per_second']:.1f} images/s  data wait {v['data_wait']:.0%}  left {left}"
        )


class _Stopwatch:
    def __init__(self, pace: Pace):
        self._pace = pace

    def __enter__(self):
        self._start = time.perf_counter()

    def __exit__(self, *_):
        self._pace._waited += time.perf_counter() - self._start


class RunLog:
    """TensorBoard events and log.jsonl; written by the first host only."""

    def __init__(self, workdir: str, start_step: int):
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        folder = epath.Path(workdir)
        self._file = folder / "log.jsonl"
        # Steps after the checkpoint that the run continues from will come again.
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        lines = [line for line in lines if json.loads(line)["step"] <= start_step]
        self._file.write_text("".join(line + "\n" for line in lines))
        self._summary = tf.summary.create_file_writer(str(folder / "tensorboard"))

    def scalars(self, step: int, values: dict[str, float], prefix: str = "train") -> None:
        """Writes scalars under PREFIX/NAME."""
        if not self._writes:
            return
        values = {f"{prefix}/{name}": value for name, value in values.items()}
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        with self._file.open("a") as file:
            file.write(json.dumps({"step": step} | finite) + "\n")
        with self._summary.as_default(step=step):
            for name, value in values.items():
                tf.summary.scalar(name, value)
        self._summary.flush()

    def pictures(self, step: int, pictures: list[np.ndarray]) -> None:
        """Writes uint8 [H, W, 3] pictures."""
        if self._writes:
            with self._summary.as_default(step=step):
                for number, picture in enumerate(pictures):
                    tf.summary.image(f"predictions/{number}", picture[None])

    def close(self) -> None:
        if self._writes:
            self._summary.close()


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
