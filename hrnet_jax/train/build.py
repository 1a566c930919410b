"""From a configuration to the parts of a run: sources, model, optimizer, state, compiled step."""

import functools
import json
import logging
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
from hrnet_jax.data.pipeline import segmentation as segmentation_data
from hrnet_jax.data.sources.source import Source
from hrnet_jax.data.synthetic import write as synthetic
from hrnet_jax.models import HRNetModel, create_model
from hrnet_jax.pytorch import convert
from hrnet_jax.runtime import sharding, storage
from hrnet_jax.train import losses, optimizers
from hrnet_jax.train.step import TrainState, create_state, make_train_step
from hrnet_jax.train.tasks import task_of

logger = logging.getLogger(__name__)
BACKBONE_PARTS = (
    "stem", "layer1", "transition1", "stage2", "transition2", "stage3", "transition3", "stage4",
)  # fmt: skip


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


def make_batches(
    config: ConfigDict, source: Source, start_step: int, mesh: Mesh | None = None
) -> Iterator[dict]:
    """This process's share of the batches; all of them without a mesh."""
    share = sharding.batch_shard(mesh)
    return segmentation_data.iterate(
        task_of(config.head).dataset(config, source, start_step, share)
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
