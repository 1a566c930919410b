"""The training loop, from a configuration to a folder with checkpoints, logs and images.

`train` is the entry. A run has three phases: `prepare` checks and builds everything
that needs no compilation, `start` restores the state and compiles the step, `take_steps` trains.
"""

import contextlib
import dataclasses
import logging
import math
import time
from typing import Any

import jax
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from hrnet_jax.checkpoints.store import CheckpointStore, SaveError
from hrnet_jax.data.pipeline.odd_labels import framed
from hrnet_jax.data.pipeline.survey import Team
from hrnet_jax.data.sources.source import Source
from hrnet_jax.models import HRNetModel
from hrnet_jax.runtime import distributed, run_lock, sharding
from hrnet_jax.runtime.progress import progress_bar
from hrnet_jax.train import build, early_stopping, extend, nan_diagnosis, preemption, summary
from hrnet_jax.train.config import (
    check_class_weights,
    check_config,
    check_divisible,
    check_same_config,
    class_weights_rule,
    same_everywhere,
)
from hrnet_jax.train.extend import Epochs
from hrnet_jax.train.metric_log import NonFiniteError, Pace, RunLog, StepBar, duration
from hrnet_jax.train.step import TrainState
from hrnet_jax.train.tasks import task_of
from hrnet_jax.train.teacher import Teacher

logger = logging.getLogger(__name__)

_PATIENCE = "--config.eval.patience=0 trains to the last step"


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
      epochs: which epoch a step is in.
      timetable: when to evaluate, save and log.
      model: the network.
      schedule: step -> learning rate.
      optimizer: with the schedule in it.
      initial_variables: the variables to start from, None for random ones.
      teacher: the network to learn from, or None.
      store: the checkpoints in `workdir`.
      metadata: what each checkpoint says about itself.
      progress: of the newest checkpoint: `Pace.history` and "evaluations"; None for a new run.
      warnings: what may be wrong in the data.
    """

    config: ConfigDict
    workdir: str
    mesh: Mesh
    train_source: Source
    eval_source: Source | None
    epochs: Epochs
    timetable: Timetable
    model: HRNetModel
    schedule: optax.Schedule
    optimizer: optax.GradientTransformation
    initial_variables: Any
    teacher: Teacher | None
    store: CheckpointStore
    metadata: dict[str, Any]
    progress: dict[str, Any] | None
    warnings: tuple[str, ...] = ()


def train(
    config: ConfigDict, workdir: str, *, watch: preemption.Interrupts | None = None
) -> TrainState:
    """Trains as `config` says, or continues where the last run in `workdir` stopped.

    Writes into `workdir`: checkpoints/, tensorboard/ and log.jsonl (one line of scalars each).
    After Ctrl-C, or when its notebook cell is stopped, it saves and raises; a second Ctrl-C raises
    at once. The same call continues the run. Progress is a bar, or the log of `hrnet_jax` where
    that shows INFO.

    Args:
      config: as `configs/common.py` describes it.
      workdir: the run's folder.
      watch: handles signals. None: `preemption.Interrupts`, which ends no process.

    Returns:
      The final state.

    Raises:
      ValueError, FileNotFoundError: for a configuration or data that cannot work, before anything
        is compiled; for a folder that another process uses.
      NonFiniteError: if the loss or a gradient is no longer finite.
      SaveError: if a checkpoint cannot be written.
      Preempted: after a signal, when everything is saved. It is a KeyboardInterrupt.
      KeyboardInterrupt: after Ctrl-C while nothing is to be saved, as in compiling and evaluating,
        and after a second Ctrl-C.
    """
    check_config(config)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.space)
    check_divisible(config, mesh)
    distributed.check_same("configurations", same_everywhere(config))
    first_host = jax.process_index() == 0
    with (
        watch or preemption.Interrupts() as signals,
        run_lock.locked(workdir) if first_host else contextlib.nullcontext(),
    ):
        return _train(config, workdir, mesh, signals)


def _train(
    config: ConfigDict, workdir: str, mesh: Mesh, watch: preemption.Interrupts
) -> TrainState:
    """Trains in a folder that no other process uses; see `train`."""
    started = time.perf_counter()
    run = prepare(config, workdir, mesh)
    state, step_function = start(run, started)
    start_step = int(state.step)
    # The program ended between saving a step and evaluating it: the evaluation comes first now.
    resumes_evaluation = (
        run.timetable.evaluates(start_step) and start_step > 0 and not run.store.metric(start_step)
    )
    log = RunLog(workdir, start_step, evaluated=not resumes_evaluation)
    bar = StepBar(run.timetable.num_steps, show=shows_bars())
    evaluations = past_evaluations(run, start_step)
    try:
        if resumes_evaluation:
            evaluations.append(evaluate(run, state, log, bar, watch))
        if reason := early_stopping.reason_to_stop(evaluations, config.eval.patience):
            logger.info("the run has ended early at step %d: %s; %s", start_step, reason, _PATIENCE)
            return state
        if step_function is None:
            logger.info(
                "the run is complete: nothing to do. A larger --config.num_steps or"
                " --config.num_epochs with --config.extend trains on"
            )
            return state
        state = take_steps(run, state, step_function, log, bar, watch, evaluations)
        run.store.wait()
    except NonFiniteError as error:
        raise explained(run, error, state) from None
    finally:
        bar.close()
        log.close()
        run.store.close()
    logger.info("done: %d steps in %s", int(state.step), duration(time.perf_counter() - started))
    log_warnings(run.warnings)  # again: those before the first step are far above
    return state


def prepare(config: ConfigDict, workdir: str, mesh: Mesh) -> Run:
    """Opens the data and builds the parts of the run; checks all that needs no compilation.

    Raises:
      ValueError, FileNotFoundError: as `train`.
    """
    config = build.with_fake_data(config, workdir)
    train_source, eval_source = build.open_sources(config)
    classes = train_source.classes
    check_class_weights(config, train_source)
    check_every_process_has_images(train_source)
    model = build.make_model(config, classes.num_classes)
    build.check_groups(config, model)
    build.check_own_loss(config, classes.num_classes)
    teacher = build.load_teacher(config, classes.num_classes, classes.names)
    distributed.check_same("teachers", teacher.to_json() if teacher else {})
    metadata = build.make_metadata(config, model, train_source, teacher)
    metadata["images"] = build.describe_images(train_source)
    store = CheckpointStore(workdir)
    saved, step = store.metadata(), max(store.steps(), default=0)
    changed = check_continued(config, workdir, saved, metadata)
    if history := extend.history_of(saved, changed, step):
        metadata["history"] = history
    num_steps, epochs = build.run_length(config, len(train_source), history)
    schedule, optimizer = build.make_optimizer(
        config, num_steps, epochs.steps_per_epoch, epochs.step_at
    )
    extend.log_changes(changed, step, num_steps, epochs, schedule)
    initial_variables = build.load_initial_variables(config, model, classes.names)
    summary.log_setting(config, mesh, train_source, eval_source, num_steps)
    warnings = check_data(config, train_source, eval_source, mesh)
    if class_weights_rule(config):
        weights = build.compute_class_weights(config, train_source, saved)
        metadata["class_weights"] = list(weights)
        config = build.with_class_weights(config, weights)
    timetable = Timetable(
        num_steps,
        evaluate_every=build.steps_per_evaluation(config, epochs.steps_per_epoch),
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
        epochs,
        timetable,
        model,
        schedule,
        optimizer,
        initial_variables,
        teacher,
        store,
        metadata,
        progress=saved and saved.get("progress"),
        warnings=warnings,
    )


def check_every_process_has_images(source: Source) -> None:
    """Raises ValueError if there are more processes than images."""
    if len(source) < jax.process_count():
        raise ValueError(
            f"{source.name}: {len(source)} images are fewer than the {jax.process_count()}"
            " processes"
        )


def check_continued(
    config: ConfigDict, workdir: str, saved: dict[str, Any] | None, metadata: dict[str, Any]
) -> extend.Changes:
    """What differs between the newest checkpoint's configuration and that of the run.

    Args:
      config: the configuration.
      workdir: the run's folder.
      saved: metadata of the newest checkpoint, None if there is none.
      metadata: that of the run.

    Raises:
      ValueError: for a difference that is not allowed.
    """
    changed = extend.changes(saved, metadata)
    check_same_config(extend.accept(saved, changed), metadata, workdir)
    extend.check_allowed(changed, config.extend, workdir)
    return changed


def check_data(
    config: ConfigDict, train_source: Source, eval_source: Source | None, mesh: Mesh
) -> tuple[str, ...]:
    """Looks at the files of both splits and logs what they hold; returns what may be wrong.

    Raises:
      ValueError, FileNotFoundError: as `train`.
    """
    # The pipeline checks its part of the configuration when it is built: now, not after compiling,
    # and before the labels are read, unless it counts their classes itself.
    if not config.data.class_uniform:
        build.make_batches(config, train_source, 0, mesh)
    team = Team(jax.process_index(), jax.process_count(), distributed.gather)
    found = task_of(config.head).audit(config, train_source, eval_source, team)
    if config.data.class_uniform:
        build.make_batches(config, train_source, 0, mesh)
    logger.info("%s", found.text)
    log_warnings(found.warnings)
    return found.warnings


def shows_bars() -> bool:
    """Whether progress is shown as bars: the log has it, too, but here it is not shown."""
    return jax.process_index() == 0 and not logger.isEnabledFor(logging.INFO)


def log_warnings(warnings: tuple[str, ...]) -> None:
    """Logs them, once for all processes, so that they are seen."""
    for text in warnings if jax.process_index() == 0 else ():
        logger.warning("%s", framed(text))


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
    if groups := build.make_groups(config).describe(state.params):
        logger.info("%s", groups)
    restored = run.store.restore(state)
    if restored is not None:
        state = restored
        logger.info("continuing at step %d of %d", int(state.step), num_steps)
    step = int(state.step)
    past = past_evaluations(run, step)
    if step >= num_steps or early_stopping.reason_to_stop(past, config.eval.patience):
        return state, None
    logger.info("compiling the training step (compilation cache: %s)", cache)
    with progress_bar(total=1, desc="compiling", unit="program", disable=not shows_bars()) as bar:
        step_function, seconds = build.compile_step(
            config, run.model, run.optimizer, run.schedule, run.mesh, state, run.teacher
        )
        bar.update()
    ready = time.perf_counter() - started
    logger.info("compiled in %.0f s, ready after %.0f s", seconds, ready)
    return state, step_function


def past_evaluations(run: Run, step: int) -> list[early_stopping.Evaluation]:
    """The evaluations of the run up to the checkpoint of this step, which it continues."""
    before = (run.progress or {}).get("evaluations", [])
    evaluations = [(number, metric) for number, metric in before]
    if newest := run.store.metric(step):
        evaluations.append((step, newest[0]))
    return evaluations


def take_steps(
    run: Run,
    state: TrainState,
    step_function,
    log: RunLog,
    bar: StepBar,
    watch: preemption.Interrupts,
    evaluations: list[early_stopping.Evaluation],
) -> TrainState:
    """Trains from the state's step to the last one; logs, saves, and adds to `evaluations`.

    Raises:
      NonFiniteError, SaveError, Preempted: as `train`.
    """
    config, mesh, timetable, store = run.config, run.mesh, run.timetable, run.store
    start_step, num_steps = int(state.step), timetable.num_steps
    skips = config.optimizer.skip_nonfinite
    pace = Pace(config.batch_size, start_step, num_steps, skips, history=run.progress)
    pending = None  # the step whose metrics the device may still be computing
    batches = iter(
        build.make_batches(config, run.train_source, start_step, mesh, run.epochs.sample_offset)
    )
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
            logger.info("%s", pace.line(run.epochs.at(step)))
            bar.note("loss", scalars["loss"])
        if logs:
            log.scalars(step, {"epoch": run.epochs.at(step), **scalars})
            pace.clear()
        if saves or signal:
            progress = {**pace.history(), "evaluations": list(evaluations)}
            store.save(state, {**run.metadata, "progress": progress})
        if signal and step < num_steps:
            store.wait()
            raise preemption.Preempted(f"{signal}: saved step {step} of {num_steps} and ended")
        bar.update(step)
        if timetable.evaluates(step):
            store.wait()  # a signal during the evaluation may end the run at once
            evaluations.append(evaluate(run, state, log, bar, watch))
            reason = early_stopping.reason_to_stop(evaluations, config.eval.patience)
            if reason and step < num_steps:
                logger.info("ending early at step %d of %d: %s", step, num_steps, reason)
                break
    return state


def evaluate(
    run: Run, state: TrainState, log: RunLog, bar: StepBar, watch: preemption.Interrupts
) -> early_stopping.Evaluation:
    """Evaluates the weights that a checkpoint of this state gives, and records the metric with it.

    Everything is saved already, so a signal ends the run at once meanwhile.
    """
    step = int(state.step)
    variables = state.ema or {"params": state.params, "batch_stats": state.batch_stats}
    bar.close()  # the evaluation has its own
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
    metric = result.metric if math.isfinite(result.metric) else None
    bar.note("metric", metric)
    return step, metric


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
