"""The training loop, from a configuration to a folder with checkpoints, logs and images.

`train` is the entry. A run has three phases: `prepare` checks and builds everything
that needs no compilation, `start` restores the state and compiles the step, `take_steps` trains.
"""

import contextlib
import dataclasses
import logging
import time
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from hrnet_jax.checkpoints.store import CheckpointStore, SaveError
from hrnet_jax.data.sources.source import Source
from hrnet_jax.models import HRNetModel
from hrnet_jax.runtime import distributed, run_lock, sharding
from hrnet_jax.train import build, nan_diagnosis, preemption, summary
from hrnet_jax.train.config import (
    check_class_weights,
    check_config,
    check_divisible,
    check_same_config,
    class_weights_rule,
    same_everywhere,
)
from hrnet_jax.train.metric_log import NonFiniteError, Pace, RunLog, duration
from hrnet_jax.train.step import TrainState
from hrnet_jax.train.tasks import task_of

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Timetable:
    """At which steps a run evaluates, saves and logs.

    Attributes:
      num_steps: the last step; it is evaluated, saved and logged in any case.
      evaluate_every: in steps; 0: after the last one only.
      has_eval_split: False: nothing is evaluated.
      save_every: in steps; every step that is evaluated is saved, too.
      log_every: in steps; the first step and every step that is saved are logged, too.
    """

    num_steps: int
    evaluate_every: int
    has_eval_split: bool
    save_every: int
    log_every: int

    def evaluates(self, step: int) -> bool:
        every = self.evaluate_every
        due = step == self.num_steps or (every > 0 and step % every == 0)
        return due and self.has_eval_split

    def saves(self, step: int) -> bool:
        return self.evaluates(step) or step % self.save_every == 0 or step == self.num_steps

    def logs(self, step: int) -> bool:
        return self.saves(step) or step % self.log_every == 0 or step == 1


@dataclasses.dataclass(frozen=True)
class Run:
    """What all steps of a run use.

    Attributes:
      config: the configuration, with a dataset that exists.
      workdir: the run's folder.
      mesh: the devices.
      train_source: what to train on.
      eval_source: what to evaluate on, or None.
      steps_per_epoch: not rounded.
      timetable: when to evaluate, save and log.
      model: the network.
      schedule: step -> learning rate.
      optimizer: with the schedule in it.
      initial_variables: the variables to start from, None for random ones.
      store: the checkpoints in `workdir`.
      metadata: what each checkpoint says about itself.
      progress: of the newest checkpoint, from `Pace.history`; None for a new run.
    """

    config: ConfigDict
    workdir: str
    mesh: Mesh
    train_source: Source
    eval_source: Source | None
    steps_per_epoch: float
    timetable: Timetable
    model: HRNetModel
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    initial_variables: Any
    store: CheckpointStore
    metadata: dict[str, Any]
    progress: dict[str, Any] | None


def train(config: ConfigDict, workdir: str) -> TrainState:
    """Trains as `config` says, or continues where the last run in `workdir` stopped.

    Writes into `workdir`: checkpoints/, tensorboard/ and log.jsonl (one line of scalars each).
    After SIGTERM or Ctrl-C it saves and ends, see `preemption`.

    Args:
      config: as `configs/common.py` describes it.
      workdir: the run's folder.

    Returns:
      The final state.

    Raises:
      ValueError, FileNotFoundError: for a configuration or data that cannot work, before anything
        is compiled; for a folder that another process uses.
      NonFiniteError: if the loss or a gradient is no longer finite.
      SaveError: if a checkpoint cannot be written.
      Preempted: after a signal, when everything is saved.
    """
    check_config(config)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.space)
    check_divisible(config, mesh)
    distributed.check_same("configurations", same_everywhere(config))
    first_host = jax.process_index() == 0
    with (
        preemption.Watch() as watch,
        run_lock.locked(workdir) if first_host else contextlib.nullcontext(),
    ):
        return _train(config, workdir, mesh, watch)


def _train(config: ConfigDict, workdir: str, mesh: Mesh, watch: preemption.Watch) -> TrainState:
    """Trains in a folder that no other process uses; see `train`."""
    started = time.perf_counter()
    run = prepare(config, workdir, mesh)
    num_steps = run.timetable.num_steps
    state, step_function = start(run, started)
    start_step = int(state.step)
    # The program ended between saving a step and evaluating it: the evaluation comes first now.
    resumes_evaluation = (
        run.timetable.evaluates(start_step) and start_step > 0 and not run.store.metric(start_step)
    )
    log = RunLog(workdir, start_step, evaluated=not resumes_evaluation)
    try:
        if resumes_evaluation:
            evaluate(run, state, log, watch)
        if step_function is None:
            logger.info("the run is complete: nothing to do")
            return state
        state = take_steps(run, state, step_function, log, watch)
        run.store.wait()
    except NonFiniteError as error:
        raise explained(run, error, state) from None
    finally:
        log.close()
        run.store.close()
    logger.info("done: %d steps in %s", num_steps, duration(time.perf_counter() - started))
    return state


def prepare(config: ConfigDict, workdir: str, mesh: Mesh) -> Run:
    """Opens the data and builds the parts of the run; checks all that needs no compilation.

    Raises:
      ValueError, FileNotFoundError: as `train`.
    """
    config = build.with_fake_data(config, workdir)
    train_source, eval_source = build.open_sources(config)
    check_class_weights(config, train_source)
    if len(train_source) < jax.process_count():
        raise ValueError(
            f"{train_source.name}: {len(train_source)} images are fewer than the"
            f" {jax.process_count()} processes"
        )
    num_steps, steps_per_epoch = build.run_length(config, len(train_source))
    schedule, optimizer = build.make_optimizer(config, num_steps, steps_per_epoch)
    model = build.make_model(config, train_source.classes.num_classes)
    initial_variables = build.load_initial_variables(config, model)
    metadata = build.make_metadata(config, model, train_source)
    store = CheckpointStore(workdir)
    saved = store.metadata()
    check_same_config(saved, metadata, workdir)
    # The pipeline checks its part of the configuration when it is built: now, not after compiling.
    build.make_batches(config, train_source, 0, mesh)

    summary.log_setting(config, mesh, train_source, eval_source, num_steps)
    logger.info("%s", task_of(config.head).audit(train_source))
    if class_weights_rule(config):
        weights = build.compute_class_weights(config, train_source, saved)
        metadata["class_weights"] = list(weights)
        config = build.with_class_weights(config, weights)
    timetable = Timetable(
        num_steps,
        evaluate_every=build.steps_per_evaluation(config, steps_per_epoch),
        has_eval_split=eval_source is not None,
        save_every=config.checkpoint_every_steps,
        log_every=config.log_every_steps,
    )
    return Run(
        config,
        workdir,
        mesh,
        train_source,
        eval_source,
        steps_per_epoch,
        timetable,
        model,
        schedule,
        optimizer,
        initial_variables,
        store,
        metadata,
        progress=saved and saved.get("progress"),
    )


def start(run: Run, started: float) -> tuple[TrainState, Any]:
    """The state to go on from, and the compiled step, which is None if no step is left.

    Args:
      run: the run.
      started: the time of its start, for the log.
    """
    config, num_steps = run.config, run.timetable.num_steps
    cache = sharding.use_compilation_cache(config.compilation_cache)
    state = build.make_state(config, run.model, run.optimizer, run.initial_variables, run.mesh)
    logger.info("%s", summary.parameter_table(state.params))
    restored = run.store.restore(state)
    if restored is not None:
        state = restored
        logger.info("continuing at step %d of %d", int(state.step), num_steps)
    if int(state.step) >= num_steps:
        return state, None
    logger.info("compiling the training step (compilation cache: %s)", cache)
    step_function, seconds = build.compile_step(
        config, run.model, run.optimizer, run.schedule, run.mesh, state
    )
    ready = time.perf_counter() - started
    logger.info("compiled in %.0f s, ready after %.0f s", seconds, ready)
    return state, step_function


def take_steps(
    run: Run, state: TrainState, step_function, log: RunLog, watch: preemption.Watch
) -> TrainState:
    """Trains from the state's step to the last one; logs, saves and evaluates on the way.

    Raises:
      NonFiniteError, SaveError, Preempted: as `train`.
    """
    config, mesh, timetable, store = run.config, run.mesh, run.timetable, run.store
    start_step, num_steps = int(state.step), timetable.num_steps
    pace = Pace(
        config.batch_size,
        start_step,
        num_steps,
        skip_nonfinite=config.optimizer.skip_nonfinite,
        history=run.progress,
    )
    pending = None  # the step whose metrics the device may still be computing
    batches = iter(build.make_batches(config, run.train_source, start_step, mesh))
    watch.save_first()
    for step in range(start_step + 1, num_steps + 1):
        with pace.waiting():
            batch = next(batches)
        state, metrics = step_function(state, sharding.place_batch(batch, mesh))
        # Read the metrics of the step before: meanwhile the device works on this one.
        if pending is not None:
            pace.add(*pending)
        pending = step, metrics
        store.check()
        signal = watch.requested()
        saves, logs = timetable.saves(step), timetable.logs(step)
        first = step == start_step + 1
        if logs or signal or first:
            pace.add(*pending)
            pending = None
        if logs or first:
            scalars = pace.scalars()
            logger.info("%s", pace.line(step / run.steps_per_epoch))
        if logs:
            log.scalars(step, {"epoch": step / run.steps_per_epoch, **scalars})
            pace.clear()
        if saves or signal:
            store.save(state, {**run.metadata, "progress": pace.history()})
        if signal and step < num_steps:
            store.wait()
            raise preemption.Preempted(f"{signal}: saved step {step} of {num_steps} and ended")
        if timetable.evaluates(step):
            store.wait()  # a signal during the evaluation may end the process at once
            evaluate(run, state, log, watch)
    return state


def evaluate(run: Run, state: TrainState, log: RunLog, watch: preemption.Watch) -> None:
    """Evaluates the weights that a checkpoint of this state gives, and records the metric with it.

    Everything is saved already, so a signal ends the process at once meanwhile.
    """
    step = int(state.step)
    variables = state.ema or {"params": state.params, "batch_stats": state.batch_stats}
    with watch.end_at_once():
        task = task_of(run.config.head)
        result = task.evaluate(run.config, run.model, variables, run.eval_source, run.mesh)
        log.scalars(step, result.metrics, prefix="eval")
        log.images(step, list(result.images))
        logger.info(
            "evaluated %s after step %d: %s%s",
            run.eval_source.split,
            step,
            result.summary,
            " with averaged weights" if state.ema is not None else "",
        )
    run.store.set_metric(step, result.metric)


def explained(run: Run, error: NonFiniteError, state: TrainState) -> NonFiniteError:
    """The error with the module where it began, and with what is saved.

    Args:
      run: the run.
      error: from `Pace.add`.
      state: a state of the run; only its structure is read.
    """
    where = nan_diagnosis.describe(run.model, error.probe, state)
    try:
        run.store.wait()  # a save in progress counts
        newest = max(run.store.steps(), default=0)
        kept = f"the newest checkpoint is that of step {newest}" if newest else "none was saved"
        kept += f" in {run.workdir}"
    except SaveError as failure:
        kept = str(failure)
    return NonFiniteError(f"{error}; {where}; {kept}", error.step, error.probe)
