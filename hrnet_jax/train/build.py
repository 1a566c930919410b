"""From a configuration to the parts of a run: sources, model, optimizer, state, compiled step."""

import functools
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

import hrnet_jax
from hrnet_jax.checkpoints import manifest
from hrnet_jax.data.pipeline.batches import iterate
from hrnet_jax.data.pipeline.mixture import Mixture
from hrnet_jax.data.pipeline.order import Shard
from hrnet_jax.data.sources import selection
from hrnet_jax.data.sources.source import UNKNOWN_LABEL, Source
from hrnet_jax.data.synthetic import write as synthetic
from hrnet_jax.models import HRNetModel, create_model
from hrnet_jax.runtime import sharding, storage
from hrnet_jax.train import (
    class_weights,
    extend,
    hooks,
    initial_weights,
    losses,
    optimizers,
    param_groups,
)
from hrnet_jax.train import teacher as teachers
from hrnet_jax.train.config import class_weights_rule, loss_terms
from hrnet_jax.train.distill import Distillation
from hrnet_jax.train.extend import Epochs
from hrnet_jax.train.param_groups import ParameterGroups
from hrnet_jax.train.step import TrainState, create_state, make_train_step
from hrnet_jax.train.tasks import task_of
from hrnet_jax.train.teacher import Teacher

logger = logging.getLogger(__name__)

# Warm-up of a run that is shorter than its recipe's warm-up, as a fraction of the run.
SHORT_RUN_WARMUP = 0.1


def with_fake_data(config: ConfigDict, workdir: str) -> ConfigDict:
    """Replaces the dataset "fake" by a tiny synthetic one in `workdir`; leaves others alone."""
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
    if opened[0].classes.num_classes < 2:
        raise ValueError(
            f"{opened[0].name!r} has one class only, {opened[0].classes.names[0]!r}: every pixel"
            " would be that class, with loss 0 and mIoU 1. Give the rest a class, too, as in"
            f' {{"names": ["background", "{opened[0].classes.names[0]}"]}}'
        )
    _warn_of_overlap(data)
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


def _warn_of_overlap(data: ConfigDict) -> None:
    """Warns if images of the evaluation are trained on, too."""
    same = [m for m in data.mix if (m.get("name"), m.get("root")) == (data.name, data.root)]
    trained_on = [data.train_split, *(m["split"] for m in same if m.get("split"))]
    shared = [selection.shared_splits(split, data.eval_split) for split in trained_on]
    if common := sorted(set().union(*shared)):
        logger.warning(
            "config.data.eval_split=%r is trained on, too (%s): the metric of %s says how well"
            " training images are remembered, not how good the network is. Do not choose"
            " checkpoints or stop a run by it; config.data.eval_split='' skips it",
            data.eval_split,
            "+".join(trained_on),
            "+".join(common),
        )


def run_length(
    config: ConfigDict, num_images: int, history: Sequence[Mapping[str, Any]] = ()
) -> tuple[int, Epochs]:
    """The steps of the run, and its epochs.

    Args:
      config: the configuration.
      num_images: images of an epoch.
      history: of a run that was extended, see `extend`.
    """
    epochs = extend.epochs_of(history, config.batch_size, num_images)
    return config.num_steps or max(1, int(epochs.step_at(config.num_epochs))), epochs


def steps_per_evaluation(config: ConfigDict, steps_per_epoch: float) -> int:
    """The steps from one evaluation to the next; 0: only the last step is evaluated."""
    return config.eval.every_steps or round(config.eval.every_epochs * steps_per_epoch)


def make_groups(config: ConfigDict) -> ParameterGroups:
    """Which parameters are trained, and how."""
    return ParameterGroups(
        multipliers=config.optimizer.multipliers.to_dict(),
        decay_multipliers=config.optimizer.decay_multipliers.to_dict(),
        decay_norm_and_bias=config.optimizer.decay_norm_and_bias,
        frozen_norm=config.model.frozen_norm,
    )


def check_groups(config: ConfigDict, model: HRNetModel) -> None:
    """Raises ValueError for parts that the network does not have; warns of random frozen ones."""
    groups = make_groups(config)
    if groups == param_groups.ALL_ALIKE:
        return
    images = jnp.zeros((1, 64, 64, 3))
    groups.check(jax.eval_shape(model.init, jax.random.key(0), images)["params"])
    if groups.frozen_norm_parts() and not config.init_from:
        logger.warning(
            "parts of the network or its normalization are frozen, but config.init_from is empty:"
            " frozen random weights and statistics learn nothing"
        )


def make_optimizer(
    config: ConfigDict,
    num_steps: int,
    steps_per_epoch: float,
    step_at: Callable[[float], float] | None = None,
) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """The schedule and the optimizer with it.

    Args:
      config: the configuration.
      num_steps: of the run.
      steps_per_epoch: not rounded.
      step_at: epoch -> step; None: epoch * steps_per_epoch.

    Raises:
      ValueError: for functions of the user's own that cannot be used, see `hooks`.
    """
    step_at = step_at or (lambda epoch: epoch * steps_per_epoch)
    optimizer, groups = config.optimizer, make_groups(config)
    if optimizer.schedule_function:
        schedule = hooks.load_schedule(
            optimizer.schedule_function,
            learning_rate=optimizer.learning_rate,
            num_steps=num_steps,
            steps_per_epoch=steps_per_epoch,
        )
    else:
        schedule = _make_schedule(config, num_steps, step_at)
    if optimizer.function:
        own = hooks.load_optimizer(optimizer.function, schedule)
        return schedule, param_groups.with_groups(own, groups)
    return schedule, optimizers.make_optimizer(
        schedule,
        name=optimizer.name,
        momentum=optimizer.momentum,
        beta2=optimizer.beta2,
        weight_decay=optimizer.weight_decay,
        nesterov=optimizer.nesterov,
        groups=groups,
    )


def _make_schedule(
    config: ConfigDict, num_steps: int, step_at: Callable[[float], float]
) -> optax.Schedule:
    """The schedule that `optimizer.schedule` names.

    A warm-up longer than the run is shortened, with a warning: recipes are written for long runs.
    """
    optimizer = config.optimizer
    rate, warmup_steps = optimizer.learning_rate, optimizer.warmup_steps
    if warmup_steps > num_steps:
        shortened = max(1, round(num_steps * SHORT_RUN_WARMUP))
        logger.warning(
            "config.optimizer.warmup_steps=%d is longer than the run of %d steps: using %d; set"
            " --config.optimizer.warmup_steps to choose another number",
            warmup_steps,
            num_steps,
            shortened,
        )
        warmup_steps = shortened
    match optimizer.schedule:
        case "multistep":
            return optimizers.multistep_schedule(
                rate,
                num_steps,
                milestones=[round(step_at(epoch)) for epoch in optimizer.milestones],
                gamma=optimizer.gamma,
                warmup_steps=warmup_steps,
            )
        case "cosine":
            return optimizers.cosine_schedule(rate, num_steps, warmup_steps=warmup_steps)
        case "one_cycle":
            return optimizers.one_cycle_schedule(
                rate, num_steps, rise_fraction=optimizer.rise_fraction
            )
    return optimizers.poly_schedule(
        rate,
        num_steps,
        power=optimizer.poly_power,
        warmup_steps=warmup_steps,
        hold_fraction=optimizer.hold_fraction,
    )


def make_model(config: ConfigDict, num_classes: int, platform: str | None = None) -> HRNetModel:
    """The network, as it is best compiled for a platform (None: that of this machine)."""
    return create_model(
        config.variant,
        num_classes,
        config.head,
        align_corners=config.model.align_corners,
        init=config.model.init,
        remat=config.model.remat,
        image_statistics=config.model.image_statistics,
        frozen_norm=make_groups(config).frozen_norm_parts(),
        **_compiled_form(config, platform),
    )


def _compiled_form(config: ConfigDict, platform: str | None) -> dict[str, Any]:
    """Options of `create_model` that do not change what a network computes, but for rounding."""
    platform = platform or jax.default_backend()
    scan = config.model.scan
    if scan == "auto":
        # XLA CPU's convolutions are slow inside loops. On GPU a loop's stacked arrays cost more
        # memory traffic than it saves in compilation (docs/scale.md); for TPU "blocks" is best.
        scan = "blocks" if platform == "tpu" else "none"
    return {
        "dtype": jnp.dtype(config.model.dtype),
        "param_dtype": jnp.float64 if config.model.dtype == "float64" else jnp.float32,
        "scan": scan,
        "lanes": 128 if platform == "tpu" else 0,
    }


def load_teacher(
    config: ConfigDict,
    num_classes: int,
    class_names: Sequence[str] | None,
    platform: str | None = None,
) -> Teacher | None:
    """The network of `config.distill.teacher`, None without one; see `teacher.load`."""
    if not config.distill.teacher:
        return None
    return teachers.load(
        config.distill.teacher,
        head=config.head,
        num_classes=num_classes,
        class_names=class_names,
        **_compiled_form(config, platform),
    )


def make_distillation(config: ConfigDict, teacher: Teacher | None) -> Distillation | None:
    """The loss on the teacher's predictions, None without one."""
    return teacher and Distillation(
        teacher.model,
        teacher.class_order,
        temperature=config.distill.temperature,
        weight=config.distill.weight,
        min_confidence=config.distill.min_confidence,
    )


def load_initial_variables(
    config: ConfigDict, model: HRNetModel, class_names: Sequence[str]
) -> Any | None:
    """The variables to start from if `config.init_from` is set, else None.

    Raises:
      FileNotFoundError, ValueError: as `initial_weights.load`.
    """
    if not config.init_from:
        return None
    return initial_weights.load(config.init_from, model, class_names, config.seed)


def make_metadata(
    config: ConfigDict, model: HRNetModel, source: Source, teacher: Teacher | None = None
) -> dict[str, Any]:
    """What a checkpoint says about itself; see `checkpoints.load.Checkpoint`."""
    metadata = {
        "format_version": manifest.FORMAT_VERSION,
        "model": model.to_json(),
        "classes": source.classes.to_json(),
        "config": config.to_dict(),
        "version": hrnet_jax.__version__,
    }
    if teacher is not None:
        metadata["teacher"] = teacher.to_json()
    return json.loads(json.dumps(metadata))  # as it will be read back: tuples are lists


def describe_images(source: Source | Mixture) -> list[dict[str, Any]]:
    """What, with the configuration, determines the sequence of samples; one entry for each source.

    A run is continued only with the same: another number or order of images changes the sequence
    of all samples after it.
    """
    described = []
    for part in source.sources if isinstance(source, Mixture) else (source,):
        names = hashlib.sha256("\n".join(part.ids).encode()).hexdigest()[:16]
        about = {"split": part.split, "number": len(part), "names": names}
        if described:  # the first source has the class list of the checkpoint
            table = part.lookup().tolist()
            about["ids"] = {str(i): k for i, k in enumerate(table) if k != UNKNOWN_LABEL}
        described.append(about)
    return described


def compute_class_weights(
    config: ConfigDict, source: Source | Mixture, saved: dict | None
) -> tuple[float, ...]:
    """The class weights by the rule that `config.loss.class_weights` names; logs them.

    Args:
      config: its class_weights is a rule of `class_weights.RULES`.
      source: the training data.
      saved: metadata of the newest checkpoint. A continued run has the weights that it started
        with, even if labels have changed since.
    """
    rule, names = class_weights_rule(config), source.classes.names
    if saved and (weights := saved.get("class_weights")):
        text = class_weights.table(names, None, weights)
        logger.info("class weights (%s), as the run was started with:\n%s", rule, text)
        return tuple(weights)
    weights, fractions = class_weights.from_labels(source, rule, config.loss.class_weights_beta)
    text = class_weights.table(names, fractions, weights)
    logger.info("class weights (%s), mean over the labeled pixels 1:\n%s", rule, text)
    if without := [name for name, f in zip(names, fractions, strict=True) if f == 0]:
        logger.warning("no labeled pixel of %s: weight 1", ", ".join(without))
    return weights


def with_class_weights(config: ConfigDict, weights: Sequence[float]) -> ConfigDict:
    """A copy of the configuration with these numbers as class weights."""
    config = config.copy_and_resolve_references()
    config.loss.class_weights = tuple(weights)
    return config


def make_batches(
    config: ConfigDict,
    source: Source,
    start_step: int,
    mesh: Mesh | None = None,
    sample_offset: int = 0,
) -> Iterator[dict]:
    """This process's slices of the batches; whole batches without a mesh.

    Args:
      config: the configuration.
      source: what to train on.
      start_step: step of the first batch.
      mesh: the devices.
      sample_offset: of a run whose batch size has changed, see `extend.Epochs`.
    """
    shard = Shard(*sharding.batch_shard(mesh))
    task = task_of(config.head)
    return iterate(task.dataset(config, source, start_step, shard, sample_offset))


def make_state(config: ConfigDict, model: HRNetModel, optimizer, initial, mesh: Mesh) -> TrainState:
    """A new state, a copy on every device."""
    state = create_state(
        model,
        optimizer,
        seed=config.seed,
        ema=config.optimizer.ema_decay > 0,
        variables=initial,
    )
    return sharding.place_replicated(state, mesh)


def compile_step(
    config: ConfigDict,
    model: HRNetModel,
    optimizer,
    schedule,
    mesh: Mesh,
    state: TrainState,
    teacher: Teacher | None = None,
):
    """Compiles the step ahead of time; returns (state, batch) -> (state, metrics) and the seconds
    that took."""
    start = time.perf_counter()
    compiled = lower_step(config, model, optimizer, schedule, mesh, state, teacher).compile()
    seconds = time.perf_counter() - start
    if teacher is None:
        return compiled, seconds
    variables = sharding.place_replicated(teacher.variables, mesh)
    return (lambda state, batch: compiled(state, batch, variables)), seconds


def lower_step(
    config: ConfigDict,
    model: HRNetModel,
    optimizer,
    schedule,
    mesh: Mesh,
    state: TrainState,
    teacher: Teacher | None = None,
):
    """The step for the mesh's devices, not compiled yet. `state` may be abstract.

    With a teacher, its variables are the step's third argument, a copy on every device.
    """
    make_groups(config).check(state.params)
    platform = mesh.devices.flat[0].platform
    step = make_train_step(
        model,
        optimizer,
        schedule,
        make_loss(config),
        seed=config.seed,
        gradient_accumulation=config.optimizer.gradient_accumulation,
        unroll=platform == "cpu",
        ema_decay=config.optimizer.ema_decay,
        ignore_label=task_of(config.head).ignore_label,
        skip_nonfinite=config.optimizer.skip_nonfinite > 0,
        color_jitter=config.data.color_jitter,
        class_mix=config.data.class_mix,
        clip_norm=config.optimizer.clip_norm,
        groups=make_groups(config),
        photometric=config.data.photometric,
        blur=config.data.blur,
        erasing=config.data.erasing,
        segmentation_loss=make_segmentation_loss(config),
        distillation=make_distillation(config, teacher),
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
    if teacher is None:
        return jitted.lower(state, batch)
    where = sharding.replicated(mesh)
    variables = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), teacher.variables
    )
    return jitted.lower(state, batch, variables)


def check_own_loss(config: ConfigDict, num_classes: int) -> None:
    """Raises ValueError if `loss.function` does not map logits and labels to one number."""
    if config.loss.function:
        if class_weights_rule(config):  # the weights are not known yet
            config = with_class_weights(config, (1.0,) * num_classes)
        label_shape, label_type = task_of(config.head).label_shape(config)
        hooks.check_loss(
            config.loss.function,
            make_loss(config),
            jax.ShapeDtypeStruct((1, *label_shape, num_classes), jnp.float32),
            jax.ShapeDtypeStruct((1, *label_shape), label_type),
        )


def make_loss(config: ConfigDict) -> losses.LossFunction:
    """The loss of the main output: one function, or the weighted sum of several.

    Raises:
      ValueError: for a function of the user's own that cannot be used, see `hooks`.
    """
    if config.loss.function:
        return hooks.load_loss(
            config.loss.function,
            ignore_label=task_of(config.head).ignore_label,
            class_weights=config.loss.class_weights,
        )
    functions = _loss_functions(config)
    terms = [(functions[name], w) for name, w in sorted(loss_terms(config).items()) if w]
    if len(terms) == 1 and terms[0][1] == 1:
        return terms[0][0]
    return functools.partial(losses.weighted_sum, terms=tuple(terms))


def _loss_functions(config: ConfigDict) -> dict[str, losses.LossFunction]:
    """Every loss by its name, with its options."""
    loss = config.loss
    options = {
        "ignore_label": task_of(config.head).ignore_label,
        "class_weights": loss.class_weights,
    }
    smoothed = options | {"label_smoothing": loss.label_smoothing}
    return {
        "cross_entropy": functools.partial(losses.cross_entropy, **smoothed),
        "ohem": functools.partial(
            losses.ohem_cross_entropy,
            threshold=loss.ohem_threshold,
            min_kept=loss.ohem_min_kept,
            **smoothed,
        ),
        "focal": functools.partial(losses.focal, gamma=loss.focal_gamma, **options),
        "boundary": functools.partial(
            losses.boundary_cross_entropy,
            radius=loss.boundary_radius,
            extra_weight=loss.boundary_extra_weight,
            **options,
        ),
        "dice": functools.partial(losses.dice, **options),
        "lovasz": functools.partial(
            losses.lovasz_softmax, per_image=loss.lovasz_per_image, **options
        ),
    }


def make_segmentation_loss(config: ConfigDict) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """`losses.segmentation_loss` with its options: cross-entropy for the auxiliary output."""
    return functools.partial(
        losses.segmentation_loss,
        aux_loss_function=_loss_functions(config)["cross_entropy"],
        aux_weight=config.loss.aux_weight,
        main_weight=config.loss.main_weight,
    )
