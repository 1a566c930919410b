"""The training loop, from a configuration to a folder with checkpoints, logs and pictures.

`train` reads from top to bottom; the functions below it do its single steps, in the same order.
"""

import contextlib
import logging
import time

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

import hrnet_jax
from hrnet_jax.checkpoints.store import CheckpointStore, SaveError
from hrnet_jax.runtime import distributed, run_lock, sharding
from hrnet_jax.train import nan_diagnosis, preemption
from hrnet_jax.train.build import (
    compile_step,
    load_initial_variables,
    make_batches,
    make_metadata,
    make_model,
    make_optimizer,
    make_state,
    open_sources,
    parameter_table,
    with_fake_data,
)
from hrnet_jax.train.config import (
    check_class_weights,
    check_config,
    check_divisible,
    check_same_config,
    config_table,
    same_everywhere,
)
from hrnet_jax.train.metric_log import NonFiniteError, Pace, RunLog, duration
from hrnet_jax.train.step import TrainState
from hrnet_jax.train.tasks import task_of

logger = logging.getLogger(__name__)


def train(config: ConfigDict, workdir: str) -> TrainState:
    """Trains as `config` says, or continues where the last run in `workdir` stopped.

    Writes into `workdir`: checkpoints/, tensorboard/ and log.jsonl (one line of scalars each).
    SIGTERM or Ctrl-C make it save and end, see `preemption`.

    Args:
      config: as `configs/common.py` describes it.
      workdir: the run's folder.

    Returns:
      The final state.

    Raises:
      ValueError, FileNotFoundError: for a configuration or data that cannot work, before anything
        is compiled; for a folder in which another run is at work.
      NonFiniteError: if the loss or a gradient is no longer finite.
      SaveError: if a checkpoint cannot be written.
      Preempted: when told to end, after saving.
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
        return run(config, workdir, mesh, watch)


def run(config: ConfigDict, workdir: str, mesh: Mesh, watch: preemption.Watch) -> TrainState:
    """The run itself, in a folder that is ours."""
    started = time.perf_counter()
    config = with_fake_data(config, workdir)
    train_source, eval_source = open_sources(config)
    classes = train_source.classes
    check_class_weights(config, train_source)
    if len(train_source) < jax.process_count():
        raise ValueError(
            f"{train_source.name}: {len(train_source)} images are fewer than the"
            f" {jax.process_count()} processes"
        )
    steps_per_epoch = len(train_source) / config.batch_size
    num_steps = config.num_steps or max(1, int(config.num_epochs * steps_per_epoch))
    schedule, optimizer = make_optimizer(config, num_steps, steps_per_epoch)
    model = make_model(config, classes.num_classes)
    initial = load_initial_variables(config, model)
    metadata = make_metadata(config, model, train_source)
    store = CheckpointStore(workdir)
    saved = store.metadata()
    check_same_config(saved, metadata, workdir)
    # Opened here already, so that its own checks of the configuration come first.
    make_batches(config, train_source, 0, mesh)

    log_setting(config, mesh, train_source, eval_source, num_steps)
    logger.info("%s", task_of(config.head).audit(train_source))

    cache = sharding.use_compilation_cache(config.compilation_cache)
    state = make_state(config, model, optimizer, initial, mesh)
    logger.info("%s", parameter_table(state.params))
    restored = store.restore(state)
    state = state if restored is None else restored
    start_step = int(state.step)
    if restored is not None:
        logger.info("continuing at step %d of %d", start_step, num_steps)
    if start_step < num_steps:
        logger.info("compiling the training step (programs are kept in %s)", cache)
        step_function, seconds = compile_step(config, model, optimizer, schedule, mesh, state)
        ready = time.perf_counter() - started
        logger.info("compiled in %.0f s, ready after %.0f s", seconds, ready)

    eval_every = config.eval.every_steps or round(config.eval.every_epochs * steps_per_epoch)

    def evaluates(step: int) -> bool:
        due = step == num_steps or (eval_every > 0 and step % eval_every == 0)
        return due and eval_source is not None

    # The program ended between saving a step and evaluating it: that comes first now.
    resumes_evaluation = evaluates(start_step) and start_step > 0 and not store.metric(start_step)
    log = RunLog(workdir, start_step, evaluated=not resumes_evaluation)
    pace = Pace(
        config.batch_size,
        start_step,
        num_steps,
        skip_nonfinite=config.optimizer.skip_nonfinite,
        history=saved and saved.get("progress"),
    )
    pending = None  # the step whose metrics the device may still be computing
    try:
        if resumes_evaluation:
            with watch.nothing_to_lose():
                score = evaluate(config, model, state, eval_source, mesh, log)
            store.set_metric(start_step, score)
        if start_step >= num_steps:
            logger.info("the run is complete: nothing to do")
            return state
        batches = iter(make_batches(config, train_source, start_step, mesh))
        watch.something_to_lose()
        for step in range(start_step + 1, num_steps + 1):
            with pace.waiting():
                batch = next(batches)
            state, metrics = step_function(state, sharding.place_batch(batch, mesh))
            # The metrics of the step before: the device meanwhile works on this one.
            if pending is not None:
                pace.add(*pending)
            pending = step, metrics
            store.check()
            signal = watch.requested()
            saves = (
                evaluates(step) or step % config.checkpoint_every_steps == 0 or step == num_steps
            )
            logs = saves or step % config.log_every_steps == 0 or step == 1
            if logs or signal or step == start_step + 1:
                pace.add(*pending)
                pending = None
            if logs or step == start_step + 1:
                scalars = pace.scalars()
                logger.info("%s", pace.line(step / steps_per_epoch))
            if logs:
                log.scalars(step, {"epoch": step / steps_per_epoch, **scalars})
                pace.clear()
            if saves or signal:
                store.save(state, {**metadata, "progress": pace.history()})
            if signal and step < num_steps:
                store.wait()
                raise preemption.Preempted(f"{signal}: saved step {step} of {num_steps} and ended")
            if evaluates(step):
                store.wait()  # so that there is nothing to lose
                with watch.nothing_to_lose():
                    score = evaluate(config, model, state, eval_source, mesh, log)
                store.set_metric(step, score)
        store.wait()
    except NonFiniteError as error:
        where = nan_diagnosis.describe(model, error.probe, state)
        try:
            store.wait()  # a save under way counts
            newest = max(store.steps(), default=0)
            kept = f"the newest checkpoint is that of step {newest}" if newest else "none was saved"
            kept += f" in {workdir}"
        except SaveError as failure:
            kept = str(failure)
        message = f"{error}; {where}; {kept}"
        raise NonFiniteError(message, error.step, error.probe) from None
    finally:
        log.close()
        store.close()
    logger.info("done: %d steps in %s", num_steps, duration(time.perf_counter() - started))
    return state


def log_setting(config, mesh: Mesh, train_source, eval_source, num_steps: int) -> None:
    logger.info("config\n%s", config_table(config.to_dict()))
    devices = mesh.devices.flat
    logger.info(
        "hrnet_jax %s on %d x %s, mesh data=%d space=%d, %d host(s)",
        hrnet_jax.__version__,
        mesh.size,
        devices[0].device_kind,
        mesh.shape["data"],
        mesh.shape["space"],
        jax.process_count(),
    )
    parts = config.optimizer.accumulate
    logger.info(
        "batch of %d images a step: %d device(s) x %d image(s)%s, crops of %dx%d",
        config.batch_size,
        mesh.shape["data"],
        config.batch_size // mesh.shape["data"] // parts,
        f" x {parts} parts" if parts > 1 else "",
        *config.data.crop_size,
    )
    logger.info(
        "%s: %d images to train on, %s to evaluate on; %d steps, %.1f epochs",
        train_source.name,
        len(train_source),
        "none" if eval_source is None else config.eval.num_images or len(eval_source),
        num_steps,
        num_steps * config.batch_size / len(train_source),
    )


def evaluate(config, model, state: TrainState, source, mesh: Mesh, log: RunLog) -> float:
    """Scores the weights that a checkpoint of this state would give; the more the better."""
    step = int(state.step)
    variables = state.ema or {"params": state.params, "batch_stats": state.batch_stats}
    result = task_of(config.head).evaluate(config, model, variables, source, mesh)
    log.scalars(step, result.figures, prefix="eval")
    log.pictures(step, list(result.pictures))
    logger.info(
        "evaluated %s after step %d: %s%s",
        source.split,
        step,
        result.summary,
        " with averaged weights" if state.ema is not None else "",
    )
    return result.score
