"""Going on with a run under other values: another length, batch size or learning rate.

A run is a function of its configuration; that is why it is continued with the same one only. With
`config.extend` the keys in `EXTENDABLE` may change at the newest checkpoint. Each change is kept in
the checkpoints' "history", so the run stays reproducible: the same commands give the same bits.

- The schedule is a function of the step and spans the new number of steps from step 0, as if the
  run had been that long from the start; it is entered at the step reached.
- The data go on at the sample reached. With another batch size the steps after it take other
  numbers of samples, and epochs count samples, before and after.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optax

from hrnet_jax.train.config import LATER_KEYS, current_names, flatten

logger = logging.getLogger(__name__)

# They do not change the arrays of a checkpoint, nor what is learned in principle.
EXTENDABLE = (
    "num_steps", "num_epochs", "batch_size",
    "optimizer.learning_rate", "optimizer.schedule", "optimizer.poly_power",
    "optimizer.hold_fraction", "optimizer.milestones", "optimizer.gamma",
    "optimizer.rise_fraction", "optimizer.warmup_steps",
    "optimizer.gradient_accumulation", "optimizer.clip_norm",
)  # fmt: skip

# Key -> [value before, value after].
Changes = dict[str, list[Any]]


@dataclass(frozen=True)
class Epochs:
    """Steps and epochs of a run whose batch size may have changed.

    Attributes:
      num_images: images of an epoch.
      spans: (first step, batch size) of each part of the run, the first one from step 0.
    """

    num_images: int
    spans: tuple[tuple[int, int], ...]

    @property
    def steps_per_epoch(self) -> float:
        """With the batch size of today; not rounded."""
        return self.num_images / self.spans[-1][1]

    @property
    def sample_offset(self) -> int:
        """The sample with which a step begins, less step * batch size."""
        first, batch_size = self.spans[-1]
        return self._samples_before(len(self.spans) - 1) - first * batch_size

    def at(self, step: int) -> float:
        """The epochs done after `step` steps."""
        k = max(k for k, (first, _) in enumerate(self.spans) if first <= step)
        first, batch_size = self.spans[k]
        before = self._samples_before(k) / self.num_images
        return before + (step - first) / (self.num_images / batch_size)

    def step_at(self, epoch: float) -> float:
        """The inverse of `at`."""
        starts = [self._samples_before(k) / self.num_images for k in range(len(self.spans))]
        k = max(k for k, start in enumerate(starts) if k == 0 or start <= epoch)
        first, batch_size = self.spans[k]
        return first + (epoch - starts[k]) * (self.num_images / batch_size)

    def _samples_before(self, span: int) -> int:
        """The samples seen before the first step of a span."""
        pairs = zip(self.spans[:span], self.spans[1:], strict=False)
        return sum((end - start) * size for (start, size), (end, _) in pairs)


def epochs_of(history: Sequence[Mapping[str, Any]], batch_size: int, num_images: int) -> Epochs:
    """The epochs of a run.

    Args:
      history: of its metadata, from `checked`.
      batch_size: that of today.
      num_images: images of an epoch.
    """
    changes = [(h["step"], h["changed"]["batch_size"]) for h in history
               if "batch_size" in h["changed"]]  # fmt: skip
    first = changes[0][1][0] if changes else batch_size
    return Epochs(num_images, ((0, first), *((step, new) for step, (_, new) in changes)))


def changes(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> Changes:
    """The keys of `EXTENDABLE` that differ between the metadata of a checkpoint and of a run."""
    if old is None:
        return {}
    before, now = (LATER_KEYS | current_names(flatten(m["config"]))[0] for m in (old, new))
    found = {key: [before.get(key), now.get(key)] for key in EXTENDABLE}
    return {key: values for key, values in found.items() if values[0] != values[1]}


def accept(old: Mapping[str, Any] | None, changed: Changes) -> dict[str, Any] | None:
    """The metadata of a checkpoint with the new values of the keys that may differ."""
    if old is None:
        return None
    config = {k: dict(v) if isinstance(v, Mapping) else v for k, v in old["config"].items()}
    # Under their names of today; the earlier ones are read, too, and would come first.
    for key, (_, value) in changed.items():
        section, _, name = key.rpartition(".")
        (config[section] if section else config)[name] = value
    return {**old, "config": config}


def check_allowed(changed: Changes, extend: bool, workdir: str) -> None:
    """Raises ValueError, naming the way out, if values differ and `config.extend` is not set."""
    if changed and not extend:
        lines = [f"{key}: saved {old!r}, now {new!r}" for key, (old, new) in changed.items()]
        raise ValueError(
            f"{workdir} holds a run with other values:\n  "
            + "\n  ".join(lines)
            + "\nGive the same values to continue that run as it was, --config.extend to continue"
            " with the new ones (explained in docs/finetune.md), or another --workdir."
        )


def history_of(old: Mapping[str, Any] | None, changed: Changes, step: int) -> list[dict[str, Any]]:
    """The history of a run with the changes of today, if there are any.

    Args:
      old: metadata of the newest checkpoint.
      changed: from `changes`.
      step: of that checkpoint.
    """
    history = list(old.get("history", [])) if old else []
    return [*history, {"step": step, "changed": changed}] if changed else history


def log_changes(
    changed: Changes, step: int, num_steps: int, epochs: Epochs, schedule: optax.Schedule
) -> None:
    """Says what the changes mean.

    Raises:
      ValueError: if the run is longer already than it is to be.
    """
    if not changed:
        return
    if num_steps < step:
        raise ValueError(
            f"the run is at step {step} already and cannot end after step {num_steps}: give a"
            " larger config.num_steps or config.num_epochs"
        )
    values = ", ".join(f"{key} {old!r} -> {new!r}" for key, (old, new) in changed.items())
    logger.info("extending the run at step %d: %s", step, values)
    logger.info(
        "  it now ends after step %d; the learning rate's schedule is that of a run of %d steps,"
        " entered at step %d: %g",
        num_steps,
        num_steps,
        step,
        float(schedule(step)),
    )
    if "batch_size" in changed:
        old, new = changed["batch_size"]
        logger.info(
            "  the data continue at sample %d of the sequence, with %d instead of %d samples per"
            " step; the learning rate is not adjusted (config.optimizer.learning_rate)",
            step * new + epochs.sample_offset,
            new,
            old,
        )
