"""Metrics of a run while it trains: averages, speed, time left; log.jsonl and TensorBoard."""

import json
import logging
import math
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from hrnet_jax.runtime import storage
from hrnet_jax.runtime.progress import progress_bar

logger = logging.getLogger(__name__)

# Object stores cannot append to a file, so TensorBoard's files are uploaded whole, this often.
_COPY_SECONDS = 60.0


class NonFiniteError(FloatingPointError):
    """Loss or gradient became infinite or NaN; the message names the step.

    Attributes:
      step: the optimizer step.
      probe: "probe" of its metrics, see `nan_diagnosis`.
    """

    def __init__(self, message: str, step: int, probe: Any):
        super().__init__(message)
        self.step, self.probe = step, probe


class Pace:
    """Averages of the metrics since the last logged step, and the speed.

    Args:
      batch_size: images per step.
      start_step: steps done before.
      num_steps: steps of the whole run.
      skip_nonfinite: number of steps that may have a loss or gradient that is not finite. They are
        counted and left out of the averages.
      history: of the run that is continued, from `Pace.history`.
    """

    def __init__(
        self,
        batch_size: int,
        start_step: int,
        num_steps: int,
        skip_nonfinite: int = 0,
        history: Mapping[str, Any] | None = None,
    ):
        self._batch_size, self._num_steps = batch_size, num_steps
        self._first = self._step = start_step
        self._started = None  # the time after the first step, which also warms up
        self._skip_nonfinite = skip_nonfinite
        self._skipped = history["skipped"] if history else 0
        self._metrics: list[dict[str, float]] = list(history["metrics"]) if history else []
        self._reset()

    def history(self) -> dict[str, Any]:
        """What a continued run needs so that its averages equal those of an uninterrupted one."""
        return {"metrics": list(self._metrics), "skipped": self._skipped}

    def _reset(self) -> None:
        self._since, self._waited, self._timed = time.perf_counter(), 0.0, 0

    def waiting(self) -> "_Stopwatch":
        """A context whose time counts as waiting for data."""
        return _Stopwatch(self)

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Waits for a step and keeps its metrics.

        Raises:
          NonFiniteError: if its loss or gradient is not finite, and no more may be skipped.
        """
        scalars = {name: value for name, value in metrics.items() if name != "probe"}
        values = {name: float(value) for name, value in jax.device_get(scalars).items()}
        self._step = step
        self._timed += 1
        if all(math.isfinite(values[name]) for name in ("loss", "grad_norm")):
            self._metrics.append(values)
            return
        message = (
            f"step {step}: the loss is {values['loss']} and the gradient's norm"
            f" {values['grad_norm']}, at learning rate {values['learning_rate']:g}"
        )
        if self._skipped >= self._skip_nonfinite:
            raise NonFiniteError(message, step, metrics.get("probe"))
        self._skipped += 1
        logger.warning(
            "%s; skipped, %d of at most %d", message, self._skipped, self._skip_nonfinite
        )

    def scalars(self) -> dict[str, float]:
        """Means over the finite steps since the last `clear`; the learning rate is the newest one.

        Speed and waiting time are those since the last call.
        """
        now = time.perf_counter()
        seconds = now - self._since
        names = self._metrics[0] if self._metrics else ("loss", "pixel_accuracy", "learning_rate")
        values = {
            name: float(np.mean([m[name] for m in self._metrics])) if self._metrics else math.nan
            for name in names
        }
        if self._metrics:
            values["learning_rate"] = self._metrics[-1]["learning_rate"]
        if self._skip_nonfinite:
            values["skipped_steps"] = float(self._skipped)
        values["images_per_second"] = self._timed * self._batch_size / seconds
        values["data_wait"] = self._waited / seconds
        if self._started is None:
            self._started, self._first = now, self._step
        done = self._step - self._first
        values["seconds_left"] = (
            (now - self._started) / done * (self._num_steps - self._step) if done else math.nan
        )
        self._last = values
        self._reset()
        return values

    def clear(self) -> None:
        """Starts new averages."""
        self._metrics = []

    def line(self, epoch: float) -> str:
        """The scalars of the last call of `scalars`, as a line of text."""
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


class StepBar:
    """The steps of a run as a progress bar, with the newest values behind it.

    Args:
      num_steps: steps of the whole run.
      show: False: nothing is shown.
    """

    def __init__(self, num_steps: int, *, show: bool):
        self._num_steps, self._show = num_steps, show
        self._notes: dict[str, str] = {}
        self._bar: tqdm | None = None

    def note(self, name: str, value: float | None) -> None:
        """Shows a value from the next step on; None, for one that is not finite, is left out."""
        if value is not None:
            self._notes[name] = f"{value:.4f}"

    def update(self, step: int) -> None:
        """This step is done; opens the bar if it is closed. Its rate is that of the steps after."""
        if self._bar is None:
            self._bar = progress_bar(
                total=self._num_steps,
                initial=step,
                desc="training",
                unit="step",
                disable=not self._show,
            )
            self._bar.set_postfix(self._notes)
            return
        self._bar.set_postfix(self._notes, refresh=False)
        self._bar.update()

    def close(self) -> None:
        """Leaves the bar as it is; the next step opens a new one below."""
        if self._bar is not None:
            self._bar.close()
        self._bar = None


class RunLog:
    """TensorBoard events and log.jsonl; written by the first host only."""

    def __init__(self, workdir: str, start_step: int, *, evaluated: bool = True):
        """Opens the log and removes the lines of steps that will be repeated.

        Args:
          workdir: the run's folder.
          start_step: that of the checkpoint; later steps will be repeated.
          evaluated: whether that checkpoint has its metric; otherwise its evaluation is repeated.
        """
        self._writes = jax.process_index() == 0
        if not self._writes:
            return
        folder = storage.path(workdir)
        self._file = folder / "log.jsonl"
        text = self._file.read_text() if self._file.exists() else ""
        lines = [line for line in text.splitlines() if _is_before(line, start_step, evaluated)]
        storage.write_text(self._file, "".join(line + "\n" for line in lines))
        self._events = folder / "tensorboard"
        self._copied = time.monotonic()
        self._staging = None
        if storage.in_store(folder):
            self._staging = tempfile.TemporaryDirectory(prefix="hrnet_jax-")
        self._summary = tf.summary.create_file_writer(
            self._staging.name if self._staging else str(self._events)
        )

    def scalars(self, step: int, values: dict[str, float], prefix: str = "train") -> None:
        """Writes scalars under PREFIX/NAME."""
        if not self._writes:
            return
        values = {f"{prefix}/{name}": value for name, value in values.items()}
        finite = {k: v if math.isfinite(v) else None for k, v in values.items()}
        storage.append_text(self._file, json.dumps({"step": step} | finite) + "\n")
        with self._summary.as_default(step=step):
            for name, value in values.items():
                tf.summary.scalar(name, value)
        self._summary.flush()
        if self._staging and time.monotonic() - self._copied > _COPY_SECONDS:
            storage.upload(self._staging.name, self._events)
            self._copied = time.monotonic()

    def images(self, step: int, images: list[np.ndarray]) -> None:
        """Writes uint8 [H, W, 3] images to TensorBoard."""
        if self._writes:
            with self._summary.as_default(step=step):
                for number, image in enumerate(images):
                    tf.summary.image(f"predictions/{number}", image[None])

    def close(self) -> None:
        """Writes what is left to TensorBoard's files, and uploads them to a store."""
        if not self._writes:
            return
        self._summary.close()
        if self._staging:
            storage.upload(self._staging.name, self._events)
            self._staging.cleanup()


def _is_before(line: str, start_step: int, evaluated: bool) -> bool:
    try:
        values = json.loads(line)
    except ValueError:  # incomplete: the process was killed while it wrote
        return False
    if values["step"] == start_step and not evaluated:
        return not any(name.startswith("eval/") for name in values)
    return values["step"] <= start_step


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
