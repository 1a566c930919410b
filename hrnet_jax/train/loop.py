"""The training loop, from a configuration to a folder with checkpoints, logs and pictures.

`train` reads from top to bottom; the functions below it do its single steps, in the same order.
"""

import contextlib
import difflib
import functools
import json
import logging
import math
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

import hrnet_jax
from hrnet_jax.checkpoints import manifest, weights_file
from hrnet_jax.checkpoints.load import load_checkpoint
from hrnet_jax.checkpoints.store import CheckpointStore, SaveError
from hrnet_jax.data import IMAGE_SOURCES, SOURCES
from hrnet_jax.data.pipeline import segmentation as segmentation_data
from hrnet_jax.data.sources.source import Source
from hrnet_jax.data.synthetic import write as synthetic
from hrnet_jax.models import HEADS, HRNetModel, create_model, get_variant
from hrnet_jax.models.layers import REMAT, SCAN
from hrnet_jax.pytorch import convert
from hrnet_jax.runtime import distributed, run_lock, sharding, storage
from hrnet_jax.train import losses, nan_diagnosis, optimizers, preemption
from hrnet_jax.train.metric_log import NonFiniteError, Pace, RunLog, duration
from hrnet_jax.train.step import TrainState, create_state, make_train_step
from hrnet_jax.train.tasks import task_of

logger = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16", "float64")
SCHEDULES = ("poly", "staircase")
# What may differ when a run is continued: none of these changes what is learnt.
FREE_KEYS = (
    "log_every_steps", "checkpoint_every_steps", "compilation_cache", "init_from", "data.root",
    "data.class_file", "data.threads", "data.prefetch", "data.service", "data.eval_split",
    "data.eval_short_side", "mesh.data", "mesh.space",
    "model.remat", "model.scan",
    "eval.every_steps", "eval.every_epochs", "eval.batch_size", "eval.num_images",
)  # fmt: skip
# Keys that runs of earlier versions lack, and what those did.
LATER_KEYS = {
    "data.color_jitter": 0.0, "data.class_mix": 0.0, "loss.label_smoothing": 0.0,
    "model.image_statistics": 0.0,
}  # fmt: skip
BACKBONE_PARTS = (
    "stem", "layer1", "transition1", "stage2", "transition2", "stage3", "transition3", "stage4",
)  # fmt: skip


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
    resumes_evaluation = evaluates(start_step) and start_step > 0 and not store.score(start_step)
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
            store.set_score(start_step, score)
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
                store.set_score(step, score)
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


def check_config(config: ConfigDict) -> None:
    """Refuses values that cannot work.

    Raises:
      ValueError: naming the key, its value and what is allowed.
    """
    get_variant(config.variant)
    check_choice("head", config.head, tuple(HEADS))
    task = task_of(config.head)
    check_choice("data.name", config.data.name, ("fake", *SOURCES, *IMAGE_SOURCES))
    if config.data.name not in task.sources:
        raise ValueError(
            f"config.data.name={config.data.name!r} has no labels for config.head={config.head!r};"
            f" known for it: {sorted(task.sources)}"
        )
    check_choice("loss.name", config.loss.name, task.losses)
    check_choice("optimizer.name", config.optimizer.name, optimizers.OPTIMIZERS)
    check_choice("optimizer.schedule", config.optimizer.schedule, SCHEDULES)
    check_choice("model.dtype", config.model.dtype, DTYPES)
    check_choice("model.remat", config.model.remat, REMAT)
    check_choice("model.scan", config.model.scan, ("auto", *SCAN))
    if config.model.dtype == "float64" and not jax.config.jax_enable_x64:
        raise ValueError("config.model.dtype='float64' needs the environment's JAX_ENABLE_X64=1")
    for key, low, high in (
        ("batch_size", 1, math.inf),
        ("num_steps", 0, math.inf),
        ("log_every_steps", 1, math.inf),
        ("checkpoint_every_steps", 1, math.inf),
        ("optimizer.accumulate", 1, math.inf),
        ("optimizer.warmup_steps", 0, math.inf),
        ("optimizer.skip_nonfinite", 0, math.inf),
        ("optimizer.momentum", 0, 1),
        ("optimizer.beta2", 0, 1),
        ("optimizer.ema_decay", 0, 1),
        ("optimizer.weight_decay", 0, math.inf),
        ("optimizer.poly_power", 0, math.inf),
        ("optimizer.drop_factor", 0, 1),
        ("data.color_jitter", 0, 1),
        ("data.class_mix", 0, 1),
        ("model.image_statistics", 0, 1),
        ("loss.label_smoothing", 0, 1),
        ("loss.ohem_threshold", 0, 1),
        ("eval.every_steps", 0, math.inf),
        ("eval.every_epochs", 0, math.inf),
        ("eval.batch_size", 1, math.inf),
        ("eval.num_images", 0, math.inf),
    ):
        value = config
        for part in key.split("."):
            value = value[part]
        if not low <= value <= high or value == math.inf:
            limit = f"in {low}..{high}" if high < math.inf else f"at least {low}"
            raise ValueError(f"config.{key}={value!r}: must be {limit}")
    if not 0 < config.optimizer.learning_rate < math.inf:
        raise ValueError(
            f"config.optimizer.learning_rate={config.optimizer.learning_rate}: not > 0 and finite"
        )
    if config.data.class_mix and config.batch_size < 2:
        raise ValueError(
            f"config.data.class_mix={config.data.class_mix} takes classes from another image of the"
            f" batch, but config.batch_size={config.batch_size}: set it to 2 or more, or class_mix"
            " to 0"
        )
    if not config.num_steps and not config.num_epochs > 0:
        raise ValueError("config.num_epochs must be positive, or set config.num_steps")
    crop = tuple(config.data.crop_size)
    if len(crop) != 2 or min(crop) < 32:
        raise ValueError(f"config.data.crop_size={crop}: must be (height, width), each 32 or more")
    if any(side % 32 for side in crop) and not config.data.allow_any_crop:
        near = tuple(max(32, round(side / 32) * 32) for side in crop)
        raise ValueError(
            f"config.data.crop_size={crop} is not divisible by 32, the network's coarsest stride;"
            f" use {near}, or allow it with --config.data.allow_any_crop"
        )


def same_everywhere(config: ConfigDict) -> dict[str, Any]:
    """What all processes of a run have to agree on: a difference would hang or corrupt it."""
    versions = {"hrnet_jax": hrnet_jax.__version__, "jax": jax.__version__}
    return flatten(config.to_dict()) | versions


def check_choice(key: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"unknown config.{key}={value!r}{hint}; known: {sorted(known)}")


def check_divisible(config: ConfigDict, mesh: Mesh) -> None:
    """Raises ValueError if a batch cannot be split over the devices."""
    data, space = mesh.shape["data"], mesh.shape["space"]
    parts = config.optimizer.accumulate
    if config.batch_size % (data * parts):
        raise ValueError(
            f"config.batch_size={config.batch_size} is not divisible by {data * parts}: mesh.data"
            f" has {data} devices and optimizer.accumulate is {parts}; change one of them"
        )
    if space > 1 and config.data.crop_size[0] % (32 * space):
        raise ValueError(
            f"the height of config.data.crop_size={tuple(config.data.crop_size)} is not divisible"
            f" by {32 * space}: mesh.space={space} devices share it at 1/32 of its resolution"
        )
    sharding.share_of_batch(mesh)


def with_fake_data(config: ConfigDict, workdir: str) -> ConfigDict:
    """Replaces the data set "fake" by a tiny synthetic one in `workdir`; leaves others alone."""
    if config.data.name != "fake":
        return config
    config = config.copy_and_resolve_references()
    config.data.name = "cityscapes"
    root = storage.path(workdir) / "fake_data"
    config.data.root = str(root)
    if jax.process_index() == 0 and not root.exists():
        height, width = (int(side) for side in config.data.crop_size)
        with storage.written(root) as unfinished:
            synthetic.write_cityscapes(
                unfinished, {"train": 8, "val": 4}, size=(height, width), seed=config.seed
            )
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("data written")
    return config


def open_sources(config: ConfigDict) -> tuple[Source, Source | None]:
    """The splits to train on and, unless `data.eval_split` is empty, to evaluate on."""
    data = config.data
    task = task_of(config.head)
    opened = [
        task.open(config, split) if split else None for split in (data.train_split, data.eval_split)
    ]
    if opened[0] is None:
        raise ValueError("config.data.train_split is empty")
    if opened[1] is not None and not opened[1].has_labels:
        raise ValueError(
            f"config.data.eval_split={data.eval_split!r} has no labels to evaluate against;"
            " set it to '' to train without evaluation"
        )
    if opened[1] is not None and opened[1].classes != opened[0].classes:
        names = [set(source.classes.names) for source in opened]
        raise ValueError(
            f"{data.train_split!r} and {data.eval_split!r} of {data.root} have different classes:"
            f" only the first has {sorted(names[0] - names[1])[:5]}, only the second"
            f" {sorted(names[1] - names[0])[:5]}"
        )
    return task.mix(config, opened[0]), opened[1]


def check_class_weights(config: ConfigDict, source: Source) -> None:
    """Raises ValueError unless there is one positive weight per class, or none at all."""
    weights, count = config.loss.class_weights, source.classes.num_classes
    if weights is None:
        return
    if len(weights) != count or not all(math.isfinite(w) and w > 0 for w in weights):
        raise ValueError(
            f"config.loss.class_weights has {len(weights)} values, {source.name!r} has {count}"
            " classes; one positive weight for each is needed, or None"
        )


def make_optimizer(config: ConfigDict, num_steps: int, steps_per_epoch: float):
    """The schedule and the optimizer with it."""
    optimizer = config.optimizer
    rate, warmup_steps = optimizer.learning_rate, optimizer.warmup_steps
    if optimizer.schedule == "staircase":
        schedule = optimizers.staircase_schedule(
            rate,
            num_steps,
            drops=[round(epoch * steps_per_epoch) for epoch in optimizer.drop_epochs],
            factor=optimizer.drop_factor,
            warmup_steps=warmup_steps,
        )
    else:
        schedule = optimizers.poly_schedule(
            rate, num_steps, power=optimizer.poly_power, warmup_steps=warmup_steps
        )
    return schedule, optimizers.make_optimizer(
        schedule,
        name=optimizer.name,
        momentum=optimizer.momentum,
        beta2=optimizer.beta2,
        weight_decay=optimizer.weight_decay,
        nesterov=optimizer.nesterov,
    )


def make_model(config: ConfigDict, num_classes: int, platform: str | None = None) -> HRNetModel:
    """The network, as it is best compiled for a platform (None: that of this machine)."""
    platform = platform or jax.default_backend()
    scan = config.model.scan
    if scan == "auto":
        # Loops halve the time to compile. XLA CPU's convolutions are slow inside them; TPU's
        # compiler was asked about "blocks" (docs/scale.md).
        scan = {"cpu": "none", "tpu": "blocks"}.get(platform, "modules")
    return create_model(
        config.variant,
        num_classes,
        config.head,
        align_corners=config.model.align_corners,
        dtype=jnp.dtype(config.model.dtype),
        param_dtype=jnp.float64 if config.model.dtype == "float64" else jnp.float32,
        init=config.model.init,
        remat=config.model.remat,
        scan=scan,
        lanes=128 if platform == "tpu" else 0,
        image_statistics=config.model.image_statistics,
    )


def load_initial_variables(config: ConfigDict, model: HRNetModel) -> Any | None:
    """The variables to start from if `config.init_from` is set, else None.

    Any head will do, ImageNet's too: the file has to have the whole backbone, and those arrays of
    the head that fit, by name and shape, are taken over. The log names what stays random.

    Raises:
      FileNotFoundError: if there is no such file or folder.
      ValueError: if an array of the backbone is missing, superfluous or of another shape.
    """
    path = config.init_from
    if not path:
        return None
    if weights_file.find(path) is None and not storage.path(path).exists():
        raise FileNotFoundError(
            f"config.init_from={path!r}: no such file or folder; {weights_file.known()}"
        )
    if weights_file.is_foreign(path):
        _, variables = convert.from_torch(path)
    else:
        variables = load_checkpoint(path).variables
    fresh = model.init(jax.random.key(config.seed), jnp.zeros((1, 64, 64, 3)))
    fresh, given = (traverse_util.flatten_dict(tree, sep="/") for tree in (fresh, variables))
    fitting = {k for k in fresh.keys() & given.keys() if fresh[k].shape == given[k].shape}
    in_backbone = {k for k in fresh.keys() | given.keys() if k.split("/")[1] == "backbone"}
    if wrong := sorted(in_backbone - fitting):
        raise ValueError(
            f"config.init_from={path!r} does not fit the backbone of {config.variant!r} with head"
            f" {config.head!r}: {len(wrong)} arrays are missing, superfluous or of another shape,"
            f" such as {wrong[:4]}"
        )
    parts = [
        sorted({"/".join(k.split("/")[1:3]) for k in keys - fitting}) or ["nothing"]
        for keys in (fresh.keys(), given.keys())
    ]
    logger.info(
        "starting from %s: %d of %d arrays, the whole backbone; random: %s; left out: %s",
        path,
        len(fitting),
        len(fresh),
        *(", ".join(names) for names in parts),
    )
    merged = {
        k: jnp.asarray(given[k], value.dtype) if k in fitting else value
        for k, value in fresh.items()
    }
    return traverse_util.unflatten_dict(merged, sep="/")


def make_metadata(config: ConfigDict, model: HRNetModel, source: Source) -> dict[str, Any]:
    """What a checkpoint says about itself; see `checkpoints.load.Checkpoint`."""
    metadata = {
        "format_version": manifest.FORMAT_VERSION,
        "model": model.to_json(),
        "classes": source.classes.to_json(),
        "config": config.to_dict(),
        "version": hrnet_jax.__version__,
    }
    return json.loads(json.dumps(metadata))  # as it will be read back: tuples are lists


def check_same_config(old: dict | None, new: dict, workdir: str) -> None:
    """Raises ValueError if `workdir` holds a run with another configuration."""
    if old is None:
        return
    before, now = (
        LATER_KEYS | flatten({"classes": m["classes"]["names"], **m["config"]}) for m in (old, new)
    )
    differing = [
        f"{key}: {before.get(key)!r} there, {now.get(key)!r} now"
        for key in sorted(before.keys() | now.keys())
        if key not in FREE_KEYS and before.get(key) != now.get(key)
    ]
    if differing:
        raise ValueError(
            f"{workdir} holds a run with another configuration:\n  "
            + "\n  ".join(differing)
            + "\nGive another --workdir, or the same values to continue that run."
        )


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    flat = {}
    for key, value in tree.items():
        flat |= (
            flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat


def make_batches(
    config: ConfigDict, source: Source, start_step: int, mesh: Mesh | None = None
) -> Iterator[dict]:
    """This process's share of the batches; all of them without a mesh."""
    share = sharding.share_of_batch(mesh)
    return segmentation_data.iterate(
        task_of(config.head).dataset(config, source, start_step, share)
    )


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


def config_table(config: dict) -> str:
    """One line for the single values and one for each section."""
    single = {key: value for key, value in config.items() if not isinstance(value, dict)}
    sections = {"": single} | {k: v for k, v in config.items() if isinstance(v, dict)}
    return "\n".join(
        f"  {name + ':':<11} " + " ".join(f"{k}={v!r}" for k, v in sorted(values.items()))
        if name
        else "  " + " ".join(f"{k}={v!r}" for k, v in sorted(values.items()))
        for name, values in sections.items()
    )


def make_state(config, model, optimizer, initial, mesh: Mesh) -> TrainState:
    """A new state, a copy on every device."""
    state = create_state(
        model,
        optimizer,
        seed=config.seed,
        ema=config.optimizer.ema_decay > 0,
        variables=initial,
    )
    return sharding.place_replicated(state, mesh)


def parameter_table(params: Any) -> str:
    """Arrays and parameters of each part of the network, as text."""
    rows = []
    for top, tree in params.items():
        parts = {name: tree[name] for name in BACKBONE_PARTS} if top == "backbone" else {"": tree}
        for name, part in parts.items():
            leaves = jax.tree.leaves(part)
            rows.append((f"{top}/{name}".rstrip("/"), len(leaves), sum(x.size for x in leaves)))
    rows.append(("total", sum(r[1] for r in rows), sum(r[2] for r in rows)))
    width = max(len(row[0]) for row in rows)
    lines = [f"{'part':<{width}} {'arrays':>7} {'parameters':>12}"]
    return "\n".join(lines + [f"{name:<{width}} {n:>7} {size:>12,}" for name, n, size in rows])


def compile_step(config, model, optimizer, schedule, mesh: Mesh, state: TrainState):
    """Compiles the step ahead of time; returns it and the seconds that took."""
    start = time.perf_counter()
    lowered = lower_step(config, model, optimizer, schedule, mesh, state)
    return lowered.compile(), time.perf_counter() - start


def lower_step(config, model, optimizer, schedule, mesh: Mesh, state: TrainState):
    """The step for the mesh's devices, not compiled yet. `state` may be abstract."""
    platform = mesh.devices.flat[0].platform
    step = make_train_step(
        model,
        optimizer,
        schedule,
        make_loss(config),
        seed=config.seed,
        accumulate=config.optimizer.accumulate,
        unroll=platform == "cpu",
        ema_decay=config.optimizer.ema_decay,
        ignore_label=task_of(config.head).ignore_label,
        skip_nonfinite=config.optimizer.skip_nonfinite > 0,
        color_jitter=config.data.color_jitter,
        class_mix=config.data.class_mix,
    )
    label_shape, label_type = task_of(config.head).label_shape(config)
    image_shape = (config.batch_size, *config.data.crop_size, 3)
    batch = sharding.abstract_batch(
        {
            "image": (image_shape, jnp.uint8),
            "label": ((config.batch_size, *label_shape), label_type),
        },
        mesh,
    )
    jitted = jax.jit(
        step,
        donate_argnums=0,
        out_shardings=sharding.replicated(mesh),
        compiler_options=sharding.compiler_options(platform),
    )
    return jitted.lower(state, batch)


def make_loss(config: ConfigDict) -> losses.LossFunction:
    common = {
        "ignore_label": task_of(config.head).ignore_label,
        "class_weights": config.loss.class_weights,
        "label_smoothing": config.loss.label_smoothing,
    }
    if config.loss.name == "cross_entropy":
        return functools.partial(losses.cross_entropy, **common)
    return functools.partial(
        losses.ohem_cross_entropy,
        threshold=config.loss.ohem_threshold,
        min_kept=config.loss.ohem_min_kept,
        **common,
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
