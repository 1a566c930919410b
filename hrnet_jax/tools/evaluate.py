"""Evaluates a checkpoint on a split: IoU with its intervals, metrics.json, pictures and a report.

python evaluate.py --checkpoint=RUN --output=DIR [--data_root=DIR] [--split=val] [--flip]
    [--scales=0.5,1.0,1.5] [--tile=512x1024] [--average=exp] [--compare=OTHER]
    [--save_predictions] [--submission]

Every image counts once, at its native size, on all devices. Exit code 2 means that an argument or a
file is at fault; the message names it.
"""

from hrnet_jax.tools import method_flags, process_flags, script  # isort: skip  # quiets TensorFlow

import collections
import contextlib
import functools
import json
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import tensorflow as tf
from absl import flags
from etils import epath
from jax.experimental import multihost_utils
from rich.console import Console

from hrnet_jax.checkpoints import weights_file
from hrnet_jax.checkpoints.load import Checkpoint, load_checkpoint
from hrnet_jax.data import open_images
from hrnet_jax.data.sources.image_folder import ImageClasses
from hrnet_jax.data.sources.source import Classes, Source
from hrnet_jax.evaluation import classification, metrics, report, segmentation, submission
from hrnet_jax.models import create_model
from hrnet_jax.runtime import distributed, memory, sharding, storage

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Folder of a run or of one of its steps, a file of weights, or a name."
)
_STEP = flags.DEFINE_integer("step", None, "Step of the run; default: the best one by mIoU.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the results.")
_DATA_ROOT = flags.DEFINE_string("data_root", "", "Folder of the data set; default: training's.")
_SPLIT = flags.DEFINE_string("split", "", "Split to evaluate; default: the run's own (mostly val).")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Images per step, over all devices.")
_MAX_IMAGES = flags.DEFINE_integer("max_images", 0, "Evaluate only so many, evenly spread; 0: all.")
_NUM_OVERLAYS = flags.DEFINE_integer(
    "num_overlays", 4, "Full-size pictures of as many best and worst images."
)
_COMPARE = flags.DEFINE_string(
    "compare",
    "",
    "Compare with this: another checkpoint, which is evaluated in the same way, or the folder that"
    " an evaluation of the same images left behind.",
)
_SAVE_PREDICTIONS = flags.DEFINE_bool(
    "save_predictions",
    False,
    "Write predictions/ID_pred_labelIds.png with raw label ids, which is what the Cityscapes"
    " evaluation script and test server read; works without labels, too.",
)
_SUBMISSION = flags.DEFINE_bool(
    "submission", False, "Write submission.zip for the test server; checked before it is packed."
)
flags.mark_flags_as_required(["checkpoint", "output"])
for _module in (method_flags, process_flags):
    flags.adopt_module_key_flags(_module)  # shown by --help

# Flags that mean nothing to a classifier of whole images.
_FOR_MAPS = (
    "scales", "flip", "tile", "average", "save_predictions", "compare", "submission",
)  # fmt: skip

# Of an evaluation: evaluate(source, on_batch=..., progress=...).
Evaluate = Callable[..., segmentation.EvalResult]


def open_split(checkpoint: Checkpoint) -> Source:
    """The split that the flags and the checkpoint's configuration name."""
    data = checkpoint.metadata["config"]["data"]
    source = segmentation.open_split(
        data, root=_DATA_ROOT.value, split=_SPLIT.value or data["eval_split"]
    )
    return segmentation.spread(source, _MAX_IMAGES.value)


def evaluator(checkpoint: Checkpoint, source: Source) -> Evaluate:
    """`segmentation.evaluate` of this checkpoint, by the method of the flags."""
    classes = Classes.from_json(checkpoint.metadata["classes"])
    if source.classes.names != classes.names:
        raise ValueError(
            f"checkpoint {checkpoint.path} was trained for the classes {classes.names}, the data "
            f"has {source.classes.names}"
        )
    method = method_flags.method()
    return functools.partial(
        segmentation.evaluate,
        create_model(**checkpoint.metadata["model"]),
        checkpoint.variables,
        batch_size=_BATCH_SIZE.value,
        mesh=sharding.make_mesh(space=method_flags.space()),
        scales=method.scales,
        flip=method.flip,
        tile=method.tile,
        average=method.average,
    )


def other_counts(path: str, source: Source) -> Callable[[], np.ndarray]:
    """What gives the counts per image of what --compare names, which is opened at once."""
    folder, file = storage.path(path), weights_file.find(path)
    if file is None and not folder.exists():
        raise FileNotFoundError(f"--compare={path}: no such file or folder; {weights_file.known()}")
    scores = (folder.parent if folder.is_file() else folder) / segmentation.IMAGE_SCORES
    if scores.exists() and (file is None or weights_file.is_foreign(file)):
        known = segmentation.read_image_counts(scores, source.ids, source.classes.names)
        return lambda: known
    checkpoint = load_checkpoint(path)
    evaluate = evaluator(checkpoint, source)

    def counts() -> np.ndarray:
        print(f"comparing with checkpoint {checkpoint.path}", flush=True)
        return evaluate(source).image_counts

    return counts


def choose_overlays(result: segmentation.EvalResult) -> dict[str, int]:
    """The worst and the best images, each once: worst_1, best_1 and so on -> index."""
    ranking = result.ranking().tolist()
    count = min(_NUM_OVERLAYS.value, (len(ranking) + 1) // 2)
    ends = {"worst": ranking[:count], "best": ranking[count:][::-1][:count]}
    return {f"{kind}_{k}": i for kind, images in ends.items() for k, i in enumerate(images, 1)}


def save_overlays(
    folder: epath.Path,
    chosen: dict[str, int],
    evaluate: Evaluate,
    source: Source,
    result: segmentation.EvalResult,
) -> None:
    """Predicts the chosen images once more and draws them, each process those it has loaded."""
    # Before any other process has predicted one, since all take part in that.
    if jax.process_index() == 0:
        report.remove_overlays(folder)
    places, images = list(chosen), list(chosen.values())
    miou, accuracy = result.image_miou, result.image_accuracy

    def save(batch, predictions) -> None:
        rows = zip(batch["index"], batch["image"], batch["label"], predictions, strict=True)
        for k, *maps in rows:
            if k >= 0:
                i = images[k]
                example = report.Example(source.ids[i], *maps, float(miou[i]), float(accuracy[i]))
                report.save_overlay(folder, places[k], example, source.classes)

    if images:
        evaluate(source.take(images), on_batch=save, progress=False)


def pictures_of_all(
    gallery: report.Gallery, ranking: list[int]
) -> list[tuple[int, report.Picture]]:
    """The report's pictures by index, out of those that each process has made of its images."""
    mine = gallery.finish()
    num_bytes = {i: picture.num_bytes for i, picture in mine.items()}
    num_bytes = collections.ChainMap(*distributed.gather(num_bytes))
    chosen = report.choose_pictures(ranking, num_bytes)
    # Only these travel between the processes.
    found = distributed.gather({i: mine[i] for i in chosen if i in mine})
    pictures = collections.ChainMap(*found)
    return [(i, pictures[i]) for i in chosen]


def write_results(
    output: epath.Path,
    checkpoint: Checkpoint,
    source: Source,
    result: segmentation.EvalResult,
    comparison: dict[str, Any] | None,
    pictures: list[tuple[int, report.Picture]],
) -> None:
    """metrics.json, per_image.csv, comparison.json, report.html, and tables on the terminal."""
    classes, figures = source.classes, result.figures
    variant = checkpoint.metadata["model"]["variant"]
    own = checkpoint.metadata["model"].get("image_statistics")
    intervals = metrics.intervals(result.image_counts, classes.names)
    contents = report.metrics_json(
        figures, result.confusion, step=checkpoint.step, variant=variant, intervals=intervals
    )
    write_json(output / "metrics.json", contents)
    segmentation.save_image_scores(output / segmentation.IMAGE_SCORES, result, classes.names)
    console = Console()
    console.print(report.class_table(figures, result.confusion, intervals))
    if comparison:
        write_json(output / "comparison.json", {"other": _COMPARE.value, **comparison})
        console.print(report.comparison_table(comparison))
    page = report.build_report(
        title=f"{variant} on {source.name} {source.split}",
        subtitle=f"step {checkpoint.step:,} of {checkpoint.path}; {method_flags.method()}; "
        f"{f'image_statistics={own:g}; ' if own else ''}"
        f"{result.seconds:.0f} s on {jax.device_count()} {jax.default_backend()} device(s)",
        figures=figures,
        confusion=result.confusion,
        classes=classes,
        intervals=intervals,
        comparison=comparison,
        other=_COMPARE.value,
        pictures=[(picture, result.image_counts[i]) for i, picture in pictures],
        curves=report.read_log(storage.path(checkpoint.path).parent.parent / "log.jsonl"),
    )
    storage.write_text(output / "report.html", page)


def write_json(path: epath.Path, contents: dict[str, Any]) -> None:
    storage.write_text(path, json.dumps(contents, indent=1, allow_nan=False) + "\n")


def classify(checkpoint: Checkpoint, output: epath.Path) -> int:
    """Evaluates a classifier of whole images: metrics.json with top-1 and top-5."""
    used = [name for name in _FOR_MAPS if not flags.FLAGS[name].using_default_value]
    if used:
        raise ValueError(
            f"--{used[0]} is for segmentation; {checkpoint.path} classifies whole images"
        )
    data = checkpoint.metadata["config"]["data"]
    split = _SPLIT.value or data["eval_split"]
    source = open_images(data["name"], root=_DATA_ROOT.value or data["root"], split=split)
    names = ImageClasses.from_json(checkpoint.metadata["classes"]).names
    if source.classes.names != names:
        raise ValueError(
            f"checkpoint {checkpoint.path} was trained for {len(names)} classes, {names[:3]} ..., "
            f"the data has {len(source.classes.names)}, {source.classes.names[:3]} ..."
        )
    result = classification.evaluate(
        create_model(**checkpoint.metadata["model"]),
        checkpoint.variables,
        segmentation.spread(source, _MAX_IMAGES.value),
        batch_size=_BATCH_SIZE.value,
        crop_size=tuple(data["crop_size"]),
        short_side=data["eval_short_side"],
        mesh=sharding.make_mesh(),
    )
    contents = result.metrics(step=checkpoint.step, variant=checkpoint.metadata["model"]["variant"])
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "metrics.json", contents)
    print(
        f"top-1 {result.top1:.4f}, top-5 {result.top5:.4f} of {len(result.ids)} images of"
        f" {split} with checkpoint {checkpoint.path}\nWrote {output}: metrics.json"
    )
    return 0


def run() -> int:
    # TensorFlow only reads images; the accelerators are JAX's.
    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)
    memory.keep_freed_pages()  # before JAX starts
    process_flags.join()
    process_flags.check_same(sys.modules[__name__])
    sharding.use_compilation_cache()
    if _NUM_OVERLAYS.value < 0:
        raise ValueError(f"--num_overlays={_NUM_OVERLAYS.value}: must be 0 or more")
    output = storage.path(_OUTPUT.value)
    checkpoint = load_checkpoint(_CHECKPOINT.value, step=_STEP.value)
    # The newest one of a run that is going on may be another one a moment later.
    distributed.check_same("checkpoints", {"step": checkpoint.step})
    if checkpoint.metadata["model"]["head"] == "classification":
        return classify(checkpoint, output)
    source = open_split(checkpoint)
    evaluate = evaluator(checkpoint, source)
    saves = _SAVE_PREDICTIONS.value or _SUBMISSION.value
    if not source.has_labels and not saves:
        raise ValueError(
            f"split {source.split!r} has no labels to evaluate against; --save_predictions or "
            "--submission writes predictions without them"
        )
    if _COMPARE.value and not source.has_labels:
        raise ValueError(f"--compare: split {source.split!r} has no labels to compare by")
    compared = other_counts(_COMPARE.value, source) if _COMPARE.value else None
    output.mkdir(parents=True, exist_ok=True)
    print(
        f"{checkpoint.metadata['model']['variant']} on {source.name} {source.split}: "
        f"{len(source)} images, checkpoint {checkpoint.path}",
        flush=True,
    )
    gallery = report.Gallery()
    folder = output / "predictions"
    with contextlib.ExitStack() as stack:
        writer = stack.enter_context(submission.Writer(folder, source)) if saves else None

        def on_batch(batch, predictions) -> None:
            rows = zip(batch["index"], batch["image"], batch["label"], predictions, strict=True)
            for i, image, label, prediction in rows:
                if i >= 0 and source.has_labels:
                    gallery.add(int(i), source.ids[i], image, label, prediction)
                if i >= 0 and writer:
                    writer.add(int(i), prediction)

        result = evaluate(source, on_batch=on_batch)
    written = ["predictions/"] if saves else []
    multihost_utils.sync_global_devices("predictions are written")
    if _SUBMISSION.value and jax.process_index() == 0:
        path = submission.pack(folder, source, output / "submission.zip")
        written.append(f"{path.name} ({len(source)} files checked)")
    if source.has_labels:
        comparison = None
        if compared:
            comparison = metrics.compare(result.image_counts, compared(), source.classes.names)
        pictures = pictures_of_all(gallery, result.ranking().tolist())
        if jax.process_index() == 0:
            write_results(output, checkpoint, source, result, comparison, pictures)
        chosen = choose_overlays(result)
        save_overlays(output / "overlays", chosen, evaluate, source, result)
        files = "metrics.json", "per_image.csv", "report.html"
        written += [*files, f"overlays/ ({len(chosen)} images)"]
        written += ["comparison.json"] if _COMPARE.value else []
    else:
        print(f"Split {source.split!r} has no labels, hence no figures.")
    if jax.process_index() == 0:
        print(f"Wrote {output}: {', '.join(written)}")
    return 0


if __name__ == "__main__":
    script.run(run)
