"""What configurations may say: allowed values, what has to agree, what may change on continuing."""

import difflib
import math
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

import hrnet_jax
from hrnet_jax.data import IMAGE_SOURCES, SOURCES
from hrnet_jax.data.sources.source import Source
from hrnet_jax.models import HEADS, get_variant
from hrnet_jax.models.layers import REMAT, SCAN
from hrnet_jax.runtime import sharding
from hrnet_jax.train import optimizers
from hrnet_jax.train.tasks import task_of

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
    sharding.batch_shard(mesh)


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
