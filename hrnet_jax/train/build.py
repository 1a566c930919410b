"""From a configuration to the parts of a run: sources, model, optimizer, state, compiled step."""

import functools
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

import hrnet_jax
from hrnet_jax.checkpoints import foreign, manifest, weights_file
from hrnet_jax.checkpoints.load import load_checkpoint
from hrnet_jax.data.pipeline.batches import iterate
from hrnet_jax.data.pipeline.mixture import Mixture
from hrnet_jax.data.pipeline.order import Shard
from hrnet_jax.data.sources.source import Source
from hrnet_jax.data.synthetic import write as synthetic
from hrnet_jax.models import HRNetModel, create_model
from hrnet_jax.pytorch import convert, hub
from hrnet_jax.runtime import sharding, storage
from hrnet_jax.train import class_weights, losses, optimizers
from hrnet_jax.train.config import class_weights_rule, loss_terms
from hrnet_jax.train.step import TrainState, create_state, make_train_step
from hrnet_jax.train.tasks import task_of

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


def run_length(config: ConfigDict, num_images: int) -> tuple[int, float]:
    """The steps of the run and those of an epoch; the latter are not rounded."""
    steps_per_epoch = num_images / config.batch_size
    return config.num_steps or max(1, int(config.num_epochs * steps_per_epoch)), steps_per_epoch


def steps_per_evaluation(config: ConfigDict, steps_per_epoch: float) -> int:
    """The steps from one evaluation to the next; 0: only the last step is evaluated."""
    return config.eval.every_steps or round(config.eval.every_epochs * steps_per_epoch)


def make_optimizer(
    config: ConfigDict, num_steps: int, steps_per_epoch: float
) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """The schedule and the optimizer with it.

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
    if optimizer.schedule == "multistep":
        schedule = optimizers.multistep_schedule(
            rate,
            num_steps,
            milestones=[round(epoch * steps_per_epoch) for epoch in optimizer.milestones],
            gamma=optimizer.gamma,
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
        # XLA CPU's convolutions are slow inside loops. On GPU a loop's stacked arrays cost more
        # memory traffic than it saves in compilation (docs/scale.md); for TPU "blocks" is best.
        scan = "blocks" if platform == "tpu" else "none"
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

    Any head will do, ImageNet's, one of another package or none: the file has to have the whole
    backbone, and those arrays of the head that fit, by name and shape, are taken over.
    The log names what stays random.

    Raises:
      FileNotFoundError: if there is no such file or folder.
      ValueError: if an array of the backbone is missing, superfluous or of another shape.
    """
    path = config.init_from
    if not path:
        return None
    known = hub.is_address(path) or weights_file.find(path) or storage.path(path).exists()
    if not known:
        raise FileNotFoundError(
            f"config.init_from={path!r}: no such file or folder; {weights_file.known()}"
        )
    if foreign.is_foreign(path):
        converted = convert.convert(path, backbone_only=True)
        logger.info("%s", converted.report.summary())
        variables = converted.variables
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
    config: ConfigDict, source: Source, start_step: int, mesh: Mesh | None = None
) -> Iterator[dict]:
    """This process's slices of the batches; whole batches without a mesh."""
    shard = Shard(*sharding.batch_shard(mesh))
    return iterate(task_of(config.head).dataset(config, source, start_step, shard))


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
    config: ConfigDict, model: HRNetModel, optimizer, schedule, mesh: Mesh, state: TrainState
):
    """Compiles the step ahead of time; returns it and the seconds that took."""
    start = time.perf_counter()
    lowered = lower_step(config, model, optimizer, schedule, mesh, state)
    return lowered.compile(), time.perf_counter() - start


def lower_step(
    config: ConfigDict, model: HRNetModel, optimizer, schedule, mesh: Mesh, state: TrainState
):
    """The step for the mesh's devices, not compiled yet. `state` may be abstract."""
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
        photometric=config.data.photometric,
        blur=config.data.blur,
        erasing=config.data.erasing,
        segmentation_loss=make_segmentation_loss(config),
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
    """The loss of the main output: one function, or the weighted sum of several."""
    terms = loss_terms(config)
    functions = {name: _loss_function(config, name) for name in terms}
    if terms == {(name := next(iter(terms))): 1.0}:
        return functions[name]
    pairs = tuple((functions[name], weight) for name, weight in sorted(terms.items()) if weight)
    return functools.partial(losses.weighted_sum, terms=pairs)


def _loss_function(config: ConfigDict, name: str) -> losses.LossFunction:
    """The loss of this name with its options."""
    loss = config.loss
    options = {
        "ignore_label": task_of(config.head).ignore_label,
        "class_weights": loss.class_weights,
    }
    smoothed = options | {"label_smoothing": loss.label_smoothing}
    functions = {
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
    return functions[name]


def make_segmentation_loss(config: ConfigDict) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """`losses.segmentation_loss` with its options: cross-entropy for the auxiliary output."""
    return functools.partial(
        losses.segmentation_loss,
        aux_loss_function=_loss_function(config, "cross_entropy"),
        aux_weight=config.loss.aux_weight,
        main_weight=config.loss.main_weight,
    )
