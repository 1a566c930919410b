"""Cross-validation: how good is a recipe on sequences, cities or folders that it has not seen?

Each fold holds out the images of one group of the training split (`sources.selection`), trains on
the others and counts the pixels of the held-out images with the weights of the last step. During
training the held-out images are not opened, so nothing can be chosen by them.

    WORKDIR/settings.json              what all runs in the folder have in common
    WORKDIR/NAME_seedN/                a run, see `loop.train`
    WORKDIR/NAME_seedN/per_image.csv   the counts of its held-out images, once it is done
"""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from hrnet_jax.checkpoints.load import load_checkpoint
from hrnet_jax.data.pipeline import audit
from hrnet_jax.data.pipeline.mixture import Mixture
from hrnet_jax.data.sources import selection
from hrnet_jax.data.sources.source import Source
from hrnet_jax.evaluation import precise_bn, segmentation
from hrnet_jax.evaluation.folds import FoldCounts
from hrnet_jax.inference.multi_scale import SEGMENTATION_HEADS
from hrnet_jax.models import create_model
from hrnet_jax.runtime import sharding, storage
from hrnet_jax.train import build, loop, preemption
from hrnet_jax.train.config import check_config, differences
from hrnet_jax.train.metric_log import duration
from hrnet_jax.train.tasks import task_of

logger = logging.getLogger(__name__)

SETTINGS = "settings.json"
# Images per step while BatchNorm's statistics are measured.
_STATISTICS_BATCH = 8
# A guess of the groups that leaves fewer images in each, on average, is no grouping.
_MIN_IMAGES = 2


@dataclass(frozen=True)
class Plan:
    """A cross-validation: one training for each fold and seed.

    Attributes:
      config: of all runs; the seed and the splits are those of the fold.
      workdir: folder of all runs.
      held_out: name of each fold -> its images. Their names begin with that of the fold.
      seeds: of the trainings of each fold.
      precise_bn: whether BatchNorm's statistics are measured again after each training.
      settings: what all runs in the folder have in common, as JSON.
    """

    config: ConfigDict
    workdir: epath.Path
    held_out: Mapping[str, Source]
    seeds: tuple[int, ...]
    precise_bn: bool
    settings: Mapping[str, Any]

    @property
    def class_names(self) -> tuple[str, ...]:
        return next(iter(self.held_out.values())).classes.names

    def config_of(self, name: str, seed: int) -> ConfigDict:
        """The configuration of one training, which does not open the held-out images."""
        config = self.config.copy_and_resolve_references()
        config.seed = seed
        config.data.train_split, _ = selection.held_out(config.data.train_split, name)
        config.data.eval_split = ""
        return config


def make_plan(
    config: ConfigDict,
    workdir: str,
    *,
    names: Sequence[str] = (),
    seeds: Sequence[int] = (),
    precise_bn: bool = False,
) -> Plan:
    """Opens and checks the data, and compares the settings with those of the folder.

    Args:
      config: of all runs.
      workdir: folder of all runs.
      names: what the names of the images of each fold begin with; empty: every sequence or folder
        of the training split (`selection.groups`).
      seeds: of the trainings; empty: that of the configuration.
      precise_bn: whether BatchNorm's statistics are measured again after each training.

    Raises:
      ValueError, FileNotFoundError: for configurations and data that cannot work, names that fit
        no image, every image or the same images, and settings that differ from the folder's.
    """
    check_config(config)
    _check_allowed(config)
    seeds = tuple(seeds or (config.seed,))
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds {list(seeds)}: each is to be given once")
    source = task_of(config.head).open(config, config.data.train_split)
    held_out = {name: source.take(part) for name, part in _parts(source, names).items()}
    trained_on = task_of(config.head).mix(config, source)
    for name, part in held_out.items():
        _check_unseen(name, part, config.data, Mixture.of(trained_on).sources[1:])
    folder, settings = storage.path(workdir), _settings(config, source, precise_bn)
    _check_settings(folder, settings)
    if known := config.init_from or config.distill.teacher:
        logger.warning(
            "all folds learn from %s: their metrics are those of images not seen only if it has"
            " not been trained on these images either",
            known,
        )
    # A damaged label that is found after hours of training comes too late.
    audit.audit_labels(source, max_images=config.data.audit_images)
    return Plan(config, folder, held_out, seeds, precise_bn, settings)


def _check_allowed(config: ConfigDict) -> None:
    """Raises ValueError for what a cross-validation cannot do."""
    if config.head not in SEGMENTATION_HEADS:
        raise ValueError(
            f"config.head={config.head!r}: cross-validation is for segmentation, with a head of"
            f" {SEGMENTATION_HEADS}"
        )
    if config.data.name == "fake":
        raise ValueError("config.data.name='fake' has no sequences to hold out: name a dataset")
    if config.eval.patience:
        raise ValueError(
            f"config.eval.patience={config.eval.patience} would choose the last step by the"
            " held-out images: set it to 0"
        )
    if config.extend:
        raise ValueError("config.extend: the runs of a cross-validation are not extended")


def _parts(source: Source, names: Sequence[str]) -> dict[str, list[int]]:
    """The indices of the images of each fold."""
    there = f"names in {source.split!r} of {source.name!r} begin with: "
    there += selection.describe(source.ids)
    if not names:
        names = tuple(selection.groups(source.ids))
        if len(names) < 2 or len(source) < _MIN_IMAGES * len(names):
            raise ValueError(
                f"the names of the images do not say which belong together; {there}; name the"
                " folds: --holdout=A,B,C"
            )
    fold_of: dict[int, str] = {}
    parts: dict[str, list[int]] = {}
    for name in names:
        selection.held_out(source.split, name)
        parts[name] = [k for k, i in enumerate(source.ids) if selection.begins(i, name)]
        if not parts[name]:
            raise ValueError(f"--holdout: no image's name begins with {name!r}; {there}")
        if len(parts[name]) == len(source):
            raise ValueError(
                f"--holdout: all names begin with {name!r}, which leaves no image to train on;"
                f" {there}"
            )
        if twice := [k for k in parts[name] if k in fold_of]:
            raise ValueError(
                f"--holdout: {source.ids[twice[0]]!r} is held out by {fold_of[twice[0]]!r} and by"
                f" {name!r}; {there}"
            )
        fold_of |= dict.fromkeys(parts[name], name)
    return parts


def _check_unseen(name: str, held_out: Source, data: ConfigDict, mixed: Sequence[Source]) -> None:
    """Raises ValueError if the datasets of `data.mix` have images that are held out.

    Of the same dataset these are all images of the group, also those of another split.
    """
    unseen = {held_out.image_name(k) for k in range(len(held_out))}
    for entry, source in zip(data.mix, mixed, strict=True):
        same = (entry["name"], entry["root"]) == (data.name, data.root)
        for k, sample_id in enumerate(source.ids):
            if (same and selection.begins(sample_id, name)) or source.image_name(k) in unseen:
                raise ValueError(
                    f"config.data.mix: {source.split!r} of {source.name!r} has"
                    f" {source.image_name(k)}, which the fold {name!r} holds out; take another"
                    " split, or a part of it"
                )


def _settings(config: ConfigDict, source: Source, precise_bn: bool) -> dict[str, Any]:
    """What decides the results of all folds, in the form of the metadata of a checkpoint."""
    own = {"precise_bn": precise_bn}
    # A run may be continued with others of these; a cross-validation may not.
    own |= {"init_from": config.init_from, "teacher": config.distill.teacher}
    settings = {
        "classes": source.classes.to_json(),
        "config": {**config.to_dict(), "seed": None, "cross_validation": own},
        "images": build.describe_images(source),
    }
    return json.loads(json.dumps(settings))


def _check_settings(folder: epath.Path, settings: dict[str, Any]) -> None:
    """Raises ValueError if the settings differ from those of the runs in the folder."""
    if not (folder / SETTINGS).exists():
        return
    old = json.loads(storage.read_bytes(str(folder / SETTINGS)))
    if differing := differences(old, settings, str(folder)):
        raise ValueError(
            f"{folder} holds a cross-validation with other settings:\n  "
            + "\n  ".join(differing)
            + "\nGive another --workdir, or the same values to continue."
        )


def run(
    plan: Plan, make_watch: Callable[[], preemption.Interrupts] = preemption.Interrupts
) -> FoldCounts:
    """Trains and evaluates every fold and seed that is not done; returns the counts of all.

    Args:
      plan: of `make_plan`.
      make_watch: makes what handles signals during one training, see `loop.train`.

    Raises:
      As `loop.train`. The same call continues.
    """
    plan.workdir.mkdir(parents=True, exist_ok=True)
    storage.write_text(plan.workdir / SETTINGS, json.dumps(plan.settings, indent=1) + "\n")
    pairs = [(name, seed) for name in plan.held_out for seed in plan.seeds]
    missing = [pair for pair in pairs if not counts_file(plan.workdir, *pair).exists()]
    if len(missing) < len(pairs):
        logger.info("%d of %d trainings are done already", len(pairs) - len(missing), len(pairs))
    started = time.perf_counter()
    for k, (name, seed) in enumerate(missing):
        logger.info(
            "training %d of %d: %s held out (%d images), seed %d",
            k + 1, len(missing), name, len(plan.held_out[name]), seed,
        )  # fmt: skip
        _run_fold(plan, name, seed, make_watch)
        each = (time.perf_counter() - started) / (k + 1)
        left = len(missing) - k - 1
        logger.info(
            "%d of %d trainings done, %s each, about %s left",
            k + 1, len(missing), duration(each), duration(left * each),
        )  # fmt: skip
    return read_counts(plan.workdir, plan.held_out, plan.seeds)


def _run_fold(
    plan: Plan, name: str, seed: int, make_watch: Callable[[], preemption.Interrupts]
) -> None:
    """Trains one network, evaluates it on the held-out images and writes their counts."""
    config, file = plan.config_of(name, seed), counts_file(plan.workdir, name, seed)
    state = loop.train(config, str(file.parent), watch=make_watch())
    checkpoint = load_checkpoint(file.parent, step=int(state.step))
    model, variables = create_model(**checkpoint.metadata["model"]), checkpoint.variables
    if plan.precise_bn:
        stats, _ = precise_bn.measure(
            model,
            variables,
            task_of(config.head).open(config, config.data.train_split),
            batch_size=_STATISTICS_BATCH,
            mesh=sharding.make_mesh(config.mesh.data),
        )
        variables = {"params": variables["params"], "batch_stats": stats}
    held_out = plan.held_out[name]
    result = segmentation.evaluate(
        model,
        variables,
        held_out,
        batch_size=config.eval.batch_size,
        mesh=sharding.make_mesh(config.mesh.data, config.mesh.space),
    )
    segmentation.save_image_metrics(file, result, held_out.classes.names)


def counts_file(workdir: epath.Path, name: str, seed: int) -> epath.Path:
    """The file with the counts of a fold; the folder of it is that of its run."""
    return workdir / f"{name.replace('/', '_')}_seed{seed}" / segmentation.IMAGE_METRICS


def read_counts(
    workdir: epath.Path, held_out: Mapping[str, Source], seeds: Sequence[int]
) -> FoldCounts:
    """The counts of the folds in a folder, as `evaluation.folds` takes them.

    Raises:
      FileNotFoundError: if one is not done.
      ValueError: if one has other images or classes.
    """
    return {
        name: [
            segmentation.read_image_counts(
                counts_file(workdir, name, seed), source.ids, source.classes.names
            )
            for seed in seeds
        ]
        for name, source in held_out.items()
    }
