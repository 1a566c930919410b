"""The configuration: its type, earlier names of keys, allowed values, comparison of two runs."""

import difflib
import logging
import math
import warnings
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

import hrnet_jax
from hrnet_jax.data import IMAGE_SOURCES, SOURCES
from hrnet_jax.data.sources.source import IGNORE_LABEL, Source
from hrnet_jax.models import HEADS, get_variant
from hrnet_jax.models.layers import REMAT, SCAN
from hrnet_jax.runtime import sharding
from hrnet_jax.train import class_weights, optimizers, param_groups
from hrnet_jax.train.tasks import LOSSES, Task, task_of

logger = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16", "float64")

# Earlier names of keys and values. They are still read, from configuration files, the command line
# and checkpoints. A key keeps its section; only its last part may have another name.
RENAMED_KEYS = {
    "optimizer.drop_epochs": "optimizer.milestones",
    "optimizer.drop_factor": "optimizer.gamma",
    "optimizer.accumulate": "optimizer.gradient_accumulation",
}
RENAMED_VALUES = {"optimizer.schedule": {"staircase": "multistep"}}

# Keys that may change when a run is continued, because they do not affect what is learned.
FREE_KEYS = (
    "log_every_steps", "checkpoint_every_steps", "compilation_cache", "init_from", "data.root",
    "data.class_file", "data.threads", "data.prefetch", "data.service", "data.eval_split",
    "data.audit_images", "data.allow_odd_labels",
    "data.eval_short_side", "mesh.data", "mesh.space",
    "distill.teacher",  # compared by its hash
    "model.remat", "model.scan",
    "eval.every_steps", "eval.every_epochs", "eval.batch_size", "eval.num_images",
    "eval.size_step",
    "extend", "eval.patience",
)  # fmt: skip

# Keys whose value is a dictionary with keys of the user's choice.
DICTIONARY_KEYS = ("optimizer.multipliers", "optimizer.decay_multipliers")

# Keys that runs of earlier versions do not have, with the values that those runs used.
LATER_KEYS = {
    "data.color_jitter": 0.0, "data.class_mix": 0.0, "loss.label_smoothing": 0.0,
    "data.photometric": 0.0, "data.blur": 0.0, "data.erasing": 0.0,
    "data.rotation": 0.0, "data.shear": 0.0, "data.perspective": 0.0,
    "model.image_statistics": 0.0, "loss.aux_weight": 0.4, "loss.main_weight": 1.0,
    "distill.temperature": 1.0, "distill.weight": 1.0, "distill.min_confidence": 0.0,
    "loss.function": "", "model.frozen_norm": "none", "optimizer.decay_norm_and_bias": True,
    "optimizer.clip_norm": 0.0, "optimizer.function": "", "optimizer.schedule_function": "",
    "optimizer.rise_fraction": 0.3, "optimizer.hold_fraction": 0.0,
    "loss.focal_gamma": 2.0, "loss.boundary_radius": 3, "loss.boundary_extra_weight": 4.0,
    "loss.lovasz_per_image": False, "loss.class_weights_beta": 0.999,
    **{f"loss.terms.{term}": None for term in LOSSES},
}  # fmt: skip

# Of a class list, what else decides what its labels and images mean. Names are always compared,
# colors where the label files hold them; categories are for reports. Keys with their default value
# are not in the list.
CLASS_KEYS = ("label_ids", "ignore_ids", "label_type", "ignore_colors", "image_range")
# Of the entries of data.mix, what may change as data.root and data.class_file may.
FREE_MIX_KEYS = ("root", "class_file")

# Numbers and their inclusive limits. An upper limit of infinity does not allow infinity itself.
RANGES = (
    ("batch_size", 1, math.inf),
    ("num_steps", 0, math.inf),
    ("log_every_steps", 1, math.inf),
    ("checkpoint_every_steps", 1, math.inf),
    ("optimizer.gradient_accumulation", 1, math.inf),
    ("optimizer.warmup_steps", 0, math.inf),
    ("optimizer.skip_nonfinite", 0, math.inf),
    ("optimizer.momentum", 0, 1),
    ("optimizer.beta2", 0, 1),
    ("optimizer.ema_decay", 0, 1),
    ("optimizer.weight_decay", 0, math.inf),
    ("optimizer.clip_norm", 0, math.inf),
    ("optimizer.rise_fraction", 0, 1),
    ("optimizer.poly_power", 0, math.inf),
    ("optimizer.hold_fraction", 0, 0.999),
    ("optimizer.gamma", 0, 1),
    ("data.color_jitter", 0, 1),
    ("data.class_mix", 0, 1),
    ("data.audit_images", 0, math.inf),
    ("data.photometric", 0, 1),
    ("data.blur", 0, 10),
    ("data.erasing", 0, 1),
    ("data.rotation", 0, 180),
    ("data.shear", 0, 60),
    ("data.perspective", 0, 0.2),
    ("model.image_statistics", 0, 1),
    ("loss.label_smoothing", 0, 1),
    ("loss.class_weights_beta", 0, 1),
    ("loss.focal_gamma", 0, math.inf),
    ("loss.boundary_radius", 1, math.inf),
    ("loss.boundary_extra_weight", 0, math.inf),
    ("loss.ohem_threshold", 0, 1),
    ("loss.main_weight", 0, math.inf),
    ("loss.aux_weight", 0, math.inf),
    ("distill.min_confidence", 0, 1),
    ("eval.every_steps", 0, math.inf),
    ("eval.every_epochs", 0, math.inf),
    ("eval.batch_size", 1, math.inf),
    ("eval.num_images", 0, math.inf),
    ("eval.size_step", 1, math.inf),
    ("eval.patience", 0, math.inf),
)
# Numbers that must be larger than 0, and finite.
POSITIVE = ("optimizer.learning_rate", "distill.temperature", "distill.weight")


class Config(ConfigDict):
    """A configuration or a section of one; also takes the earlier names of keys and values.

    An earlier name works wherever the new one does and causes a `FutureWarning` that names the new
    one. Setting a key that holds a tuple to None empties the tuple; a key that may be None
    (`config_dict.placeholder`) becomes None. A text in place of a tuple is a tuple of one.
    """

    def __getitem__(self, key):
        return super().__getitem__(self._current(key))

    def __setitem__(self, key, value):
        key = self._current(key)
        if isinstance(value, ConfigDict) and not isinstance(value, Config):
            value = Config(value)
        if value is None and isinstance(self._fields.get(key), tuple):
            value = ()
        if isinstance(value, str) and key in self._fields and self.get_type(key) is tuple:
            value = (value,)  # as on the command line, where one value is a tuple of one
        super().__setitem__(key, self._current_value(key, value))

    def get_type(self, key):
        return super().get_type(self._current(key))

    def _current(self, key: Any) -> Any:
        """The name of today of a key of this section."""
        for old, new in RENAMED_KEYS.items():
            # A section does not know its own name; the new key tells which one it is.
            old_name, new_name = old.rpartition(".")[2], new.rpartition(".")[2]
            if key == old_name and new_name in self._fields:
                _warn_of_rename(f"config.{old}", f"config.{new}")
                return new_name
        return key

    def _current_value(self, key: Any, value: Any) -> Any:
        for name, renamed in RENAMED_VALUES.items():
            if key == name.rpartition(".")[2] and isinstance(value, str) and value in renamed:
                _warn_of_rename(f"config.{name}={value!r}", repr(renamed[value]))
                return renamed[value]
        return value


def _warn_of_rename(old: str, new: str) -> None:
    # 4 levels up: the line of the configuration file that has the old name, or ml_collections'.
    warnings.warn(f"{old} is now {new}; change the name", FutureWarning, stacklevel=4)


def current_names(flat: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A flat configuration with the names of today, and which earlier ones it had, as "a -> b"."""
    keys = {old: new for old, new in RENAMED_KEYS.items() if old in flat}
    found = [f"{old} -> {new}" for old, new in keys.items()]
    flat = {keys.get(key, key): value for key, value in flat.items()}
    for key, renamed in RENAMED_VALUES.items():
        if isinstance(value := flat.get(key), str) and value in renamed:
            found.append(f"{key}={value!r} -> {renamed[value]!r}")
            flat[key] = renamed[value]
    return flat, found


def check_config(config: ConfigDict) -> None:
    """Checks all values that can be checked without data and devices.

    Raises:
      ValueError: naming the key, its value and what is allowed.
    """
    _check_choices(config)
    _check_numbers(config)
    _check_crop(config)
    _check_optimizer(config)
    _check_patience(config)
    if config.model.dtype == "float64" and not jax.config.jax_enable_x64:
        raise ValueError("config.model.dtype='float64' needs the environment's JAX_ENABLE_X64=1")
    if config.data.class_mix and config.batch_size < 2:
        raise ValueError(
            f"config.data.class_mix={config.data.class_mix} takes classes from another image of the"
            f" batch, but config.batch_size={config.batch_size}: set it to 2 or more, or class_mix"
            " to 0"
        )
    if not config.num_steps and not config.num_epochs > 0:
        raise ValueError("config.num_epochs must be positive, or set config.num_steps")


def _check_choices(config: ConfigDict) -> None:
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
    _check_terms(config, task)
    check_choice("optimizer.name", config.optimizer.name, optimizers.OPTIMIZERS)
    check_choice("optimizer.schedule", config.optimizer.schedule, optimizers.SCHEDULES)
    check_choice("model.dtype", config.model.dtype, DTYPES)
    check_choice("model.remat", config.model.remat, REMAT)
    check_choice("model.frozen_norm", config.model.frozen_norm, param_groups.FROZEN_NORM)
    check_choice("model.scan", config.model.scan, ("auto", *SCAN))


def _check_terms(config: ConfigDict, task: Task) -> None:
    """Checks that the losses exist for the task and that their weights add to something."""
    terms = loss_terms(config)
    if config.loss.function and set(config.loss.terms.values()) - {None}:
        raise ValueError(
            f"config.loss.function={config.loss.function!r} and config.loss.terms={terms} are both"
            " set: your function replaces the whole loss of the main output; set one of them"
        )
    for name, weight in terms.items():
        check_choice("loss.terms", name, task.losses)
        if not 0 <= weight < math.inf:
            raise ValueError(f"config.loss.terms.{name}={weight!r}: must be at least 0 and finite")
    if not sum(terms.values()) > 0:
        raise ValueError(
            f"config.loss.terms={terms} add to nothing: give one of them a weight above 0, or set"
            f" all to None for config.loss.name={config.loss.name!r} alone"
        )
    if config.head == "ocr" and not config.loss.main_weight + config.loss.aux_weight > 0:
        raise ValueError(
            "config.loss.main_weight and config.loss.aux_weight are both 0: nothing would be"
            " learned; the official recipe has 1 and 0.4"
        )
    smoothed = [name for name in ("cross_entropy", "ohem") if terms.get(name)]
    if config.loss.label_smoothing and not smoothed:
        raise ValueError(
            f"config.loss.label_smoothing={config.loss.label_smoothing} is for cross_entropy and"
            f" ohem; the losses of this run are {sorted(terms)}: set it to 0 or add one of the two"
        )


def loss_terms(config: ConfigDict) -> dict[str, float]:
    """The losses of the main output with their weights: those of loss.terms, else loss.name."""
    terms = {name: w for name, w in config.loss.terms.to_dict().items() if w is not None}
    return terms or {config.loss.name: 1.0}


def _check_numbers(config: ConfigDict) -> None:
    values = flatten(config.to_dict())
    for key, low, high in RANGES:
        value = values[key]
        if not low <= value <= high or value == math.inf:
            limit = f"in {low}..{high}" if high < math.inf else f"at least {low}"
            raise ValueError(f"config.{key}={value!r}: must be {limit}")
    for key in POSITIVE:
        if not 0 < values[key] < math.inf:
            raise ValueError(f"config.{key}={values[key]}: not > 0 and finite")


def _check_optimizer(config: ConfigDict) -> None:
    optimizer = config.optimizer
    for name in ("multipliers", "decay_multipliers"):
        for part, factor in optimizer[name].items():
            number = isinstance(factor, int | float) and not isinstance(factor, bool)
            if not number or not 0 <= factor < math.inf:
                raise ValueError(
                    f"config.optimizer.{name}: the factor of {part!r} is {factor!r}; it must be a"
                    " number, 0 or more"
                )
    if optimizer.function and (optimizer.decay_multipliers or not optimizer.decay_norm_and_bias):
        raise ValueError(
            f"config.optimizer.function={optimizer.function!r} does its own weight decay:"
            " decay_multipliers and decay_norm_and_bias have no effect on it; leave them out"
        )
    chosen = "schedule_function" if optimizer.schedule_function else "schedule"
    if optimizer.hold_fraction and (optimizer.schedule_function or optimizer.schedule != "poly"):
        raise ValueError(
            f"config.optimizer.hold_fraction={optimizer.hold_fraction} is for schedule='poly' and"
            f" has no effect on {chosen}={optimizer[chosen]!r}: set it to 0"
        )
    has_start = optimizer.schedule_function or optimizer.schedule == "one_cycle"
    if has_start and optimizer.warmup_steps:
        raise ValueError(
            f"config.optimizer.{chosen}={optimizer[chosen]!r} has its own start, and"
            f" config.optimizer.warmup_steps={optimizer.warmup_steps} would change it: set"
            " warmup_steps to 0"
        )


def _check_patience(config: ConfigDict) -> None:
    evaluation = config.eval
    if not evaluation.patience:
        return
    if not config.data.eval_split or not (evaluation.every_steps or evaluation.every_epochs):
        raise ValueError(
            f"config.eval.patience={evaluation.patience} needs evaluations during the run: set"
            " config.data.eval_split, and config.eval.every_steps or config.eval.every_epochs"
        )


def _check_crop(config: ConfigDict) -> None:
    crop = tuple(config.data.crop_size)
    if len(crop) != 2 or min(crop) < 32:
        raise ValueError(f"config.data.crop_size={crop}: must be (height, width), each 32 or more")
    if any(side % 32 for side in crop) and not config.data.allow_any_crop:
        near = tuple(max(32, round(side / 32) * 32) for side in crop)
        raise ValueError(
            f"config.data.crop_size={crop} is not divisible by 32, the network's coarsest stride;"
            f" use {near}, or allow it with --config.data.allow_any_crop"
        )


def check_choice(key: str, value: str, known: tuple[str, ...]) -> None:
    """Raises ValueError, with the nearest known value, if `value` is not one of `known`."""
    if value not in known:
        near = difflib.get_close_matches(value, known, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"unknown config.{key}={value!r}{hint}; known: {sorted(known)}")


def same_everywhere(config: ConfigDict) -> dict[str, Any]:
    """What must be the same in all processes; else they would hang or corrupt the run."""
    versions = {"hrnet_jax": hrnet_jax.__version__, "jax": jax.__version__}
    return flatten(config.to_dict()) | versions


def check_divisible(config: ConfigDict, mesh: Mesh) -> None:
    """Raises ValueError if a batch cannot be split over the devices."""
    data, space = mesh.shape["data"], mesh.shape["space"]
    parts = config.optimizer.gradient_accumulation
    if config.batch_size % (data * parts):
        raise ValueError(
            f"config.batch_size={config.batch_size} is not divisible by {data * parts}: mesh.data"
            f" has {data} devices and optimizer.gradient_accumulation is {parts}; change one"
            " of them"
        )
    if space > 1 and config.data.crop_size[0] % (32 * space):
        raise ValueError(
            f"the height of config.data.crop_size={tuple(config.data.crop_size)} is not divisible"
            f" by {32 * space}: mesh.space={space} devices divide it at 1/32 of its resolution"
        )
    sharding.batch_shard(mesh)


def check_class_weights(config: ConfigDict, source: Source) -> None:
    """Checks `config.loss.class_weights` against the classes of the training data.

    Raises:
      ValueError: unless there is one positive weight per class, the name of a way to compute them,
        or None.
    """
    weights, count = config.loss.class_weights, source.classes.num_classes
    if weights is None:
        return
    if rule := class_weights_rule(config):
        check_choice("loss.class_weights", rule, class_weights.RULES)
        if task_of(config.head).ignore_label != IGNORE_LABEL:
            raise ValueError(
                f"config.loss.class_weights={rule!r} is for segmentation only: give the weights as"
                " numbers, or None"
            )
        return
    numbers = [w for w in weights if isinstance(w, (int, float)) and math.isfinite(w) and w > 0]
    if len(weights) != count or len(numbers) != count:
        raise ValueError(
            f"config.loss.class_weights has {len(weights)} values, {source.name!r} has {count}"
            " classes; one positive weight for each is needed, or None, or one of"
            f" {', '.join(class_weights.RULES)}"
        )


def class_weights_rule(config: ConfigDict) -> str:
    """The rule by which the class weights are computed from the labels; "" if there is none."""
    weights = config.loss.class_weights
    one_name = weights is not None and len(weights) == 1 and isinstance(weights[0], str)
    return weights[0] if one_name else ""


def check_same_config(old: dict | None, new: dict, workdir: str) -> None:
    """Checks that a run is continued with its own configuration, classes and images.

    Args:
      old: metadata of the newest checkpoint in `workdir`, None if there is none.
      new: metadata of the run that starts now.
      workdir: the run's folder, for the message.

    Raises:
      ValueError: listing the keys that differ, with both values.
    """
    if old is None:
        return
    if differing := differences(old, new, workdir):
        other = "images" if all(line.startswith("images") for line in differing) else "values"
        raise ValueError(
            f"{workdir} holds a run with another configuration:\n  "
            + "\n  ".join(differing)
            + f"\nGive another --workdir (and --config.init_from={workdir} to start from its"
            f" weights), or the same {other} to continue that run."
        )


def differences(old: dict, new: dict, workdir: str) -> list[str]:
    """The keys whose values decide what is learned and differ, as "KEY: saved A, now B".

    Args:
      old: metadata of what is continued. Earlier names of keys and values count as those of today;
        a warning lists them. What earlier versions did not record is not compared.
      new: metadata of today.
      workdir: where the first one is from, for the warning.
    """
    images = "images" in old  # earlier versions did not record them
    flat = [
        flatten(
            {
                **_classes_of(m),
                **(_images_of(m) if images else {}),
                "hash of distill.teacher": m.get("teacher", {}).get("hash", ""),
                **m["config"],
            }
        )
        for m in (old, new)
    ]
    (before, renamed), (now, _) = map(current_names, flat)
    if renamed:
        logger.warning("%s was written with earlier names: %s", workdir, ", ".join(renamed))
    before, now = LATER_KEYS | before, LATER_KEYS | now
    for values in (before, now):
        values["data.mix"] = [_without(e, FREE_MIX_KEYS) for e in values.get("data.mix") or ()]
    return [
        f"{key}: saved {before.get(key)!r}, now {now.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if key not in FREE_KEYS and before.get(key) != now.get(key)
    ]


def _classes_of(metadata: dict) -> dict[str, Any]:
    """What is compared of a class list; `flatten` leaves it as it is."""
    classes = metadata["classes"]
    keys = (*CLASS_KEYS, "colors") if classes.get("label_type") == "colors" else CLASS_KEYS
    found = {f"classes.{key}": classes[key] for key in keys if key in classes}
    if isinstance(ignored := found.get("classes.ignore_ids"), list):
        found["classes.ignore_ids"] = sorted(ignored)
    return {"classes": classes["names"], **found}


def _images_of(metadata: dict) -> dict[str, Any]:
    """What is compared of the images trained on (`build.describe_images`), by their sources."""
    return {f"images[{k}]": about for k, about in enumerate(metadata["images"])}


def _without(entry: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in keys}


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    flat = {}
    for key, value in tree.items():
        flat |= (
            flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
    return flat
