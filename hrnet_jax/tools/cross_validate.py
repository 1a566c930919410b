"""Cross-validation over sequences, cities or folders: how good is a recipe on unseen ones?

hrnet cross_validate --config=configs/camvid.py:recipe=complete --config.data.root=DIR
    --workdir=OUT [--holdout=A,B,C] [--seeds=1,2] [--precise_bn] [--compare=OTHER]
    [--config.KEY=VALUE ...]

For each fold a network is trained without the images whose names begin with that of the fold, and
evaluated on these. The same command continues, and prints the results again when all is done. OUT
gets a folder for each training, results.json and results.md, with --compare also comparison.json
and comparison.md. Exit codes are those of `train`.
"""

from hrnet_jax.tools import config_flag, script, training  # isort: skip  # quiets TensorFlow

import json

from absl import flags
from etils import epath

from hrnet_jax.evaluation import folds
from hrnet_jax.runtime import storage
from hrnet_jax.train import cross_validation, preemption
from hrnet_jax.train.cross_validation import Plan

_CONFIG = config_flag.define()
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for all trainings and the results.")
_HOLDOUT = flags.DEFINE_list(
    "holdout",
    [],
    "What the names of the images of each fold begin with, separated by commas; default: every"
    " outermost folder or first part of the names in the training split.",
)
_SEEDS = flags.DEFINE_list(
    "seeds", [], "Seeds, separated by commas, of the trainings of each fold; default: config.seed."
)
_PRECISE_BN = flags.DEFINE_bool(
    "precise_bn", False, "Measure BatchNorm's statistics on the fold's training images at the end."
)
_COMPARE = flags.DEFINE_string(
    "compare", "", "Workdir of another, finished cross-validation of the same images."
)
flags.mark_flags_as_required(["config", "workdir"])


def parse_seeds(texts: list[str]) -> list[int]:
    """The numbers of --seeds.

    Raises:
        ValueError: for texts that are no integers of 0 or more.
    """
    if wrong := [text for text in texts if not text.strip().isdecimal()]:
        raise ValueError(f"--seeds: {wrong[0]!r} is no number; need e.g. --seeds=1,2")
    return [int(text) for text in texts]


def read_other(plan: Plan, workdir: str) -> folds.FoldCounts:
    """The counts of another cross-validation, for the images of the plan.

    Raises:
        FileNotFoundError: if it is not finished.
        ValueError: if it is of other images or classes.
    """
    other = storage.path(workdir)
    if not (other / "results.json").exists():
        raise FileNotFoundError(
            f"--compare={workdir}: no results.json; name the workdir of a finished cross-validation"
        )
    seeds = json.loads((other / "results.json").read_text())["seeds"]
    return cross_validation.read_counts(other, plan.held_out, seeds)


def write(folder: epath.Path, name: str, about: dict, table: str) -> None:
    """Writes NAME.json and NAME.md and prints the table."""
    storage.write_text(folder / f"{name}.json", json.dumps(about, indent=1, allow_nan=False) + "\n")
    storage.write_text(folder / f"{name}.md", table)
    print(f"\n{table}", end="")


def cross_validate() -> None:
    plan = cross_validation.make_plan(
        _CONFIG.value,
        _WORKDIR.value,
        names=_HOLDOUT.value,
        seeds=parse_seeds(_SEEDS.value),
        precise_bn=_PRECISE_BN.value,
    )
    other = read_other(plan, _COMPARE.value) if _COMPARE.value else None
    counts = cross_validation.run(plan, preemption.ProcessWatch)
    classes = plan.class_names
    result = folds.summarize(counts, classes)
    about = {"seeds": list(plan.seeds), "precise_bn": plan.precise_bn, **result}
    write(plan.workdir, "results", about, folds.table(result, classes))
    if other:
        difference = folds.compare(counts, other, classes)
        about = {"other": _COMPARE.value, **difference}
        write(plan.workdir, "comparison", about, folds.comparison_table(difference))


def run() -> int:
    training.begin()
    return training.exit_code(cross_validate)


if __name__ == "__main__":
    script.run(run, parse=config_flag.parse)
