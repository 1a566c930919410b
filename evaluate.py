"""Evaluates a checkpoint on a split: per-class IoU, metrics.json, pictures and a report.

python evaluate.py --checkpoint=RUN --output=DIR [--data_root=DIR] [--split=val] [--flip]
    [--scales=0.5,1.0,1.5] [--tile=512x1024] [--save_predictions]

Every image counts once, at its native size, on all devices. Exit code 2 means that an argument or a
file is at fault; the message names it.
"""

import json
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported

import jax
import tensorflow as tf
from absl import flags
from rich.console import Console

from hrnet_jax import checkpointing, evaluation, inference, report, sharding, visualize
from hrnet_jax.data import open_source
from hrnet_jax.data.source import Classes
from hrnet_jax.models import create_model
from hrnet_jax.tools import method_flags, script

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Folder of a run or of one of its steps.")
_STEP = flags.DEFINE_integer("step", None, "Step of the run; default: the best one by mIoU.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the results.")
_DATA_ROOT = flags.DEFINE_string("data_root", "", "Folder of the data set; default: training's.")
_SPLIT = flags.DEFINE_string("split", "", "Split to evaluate; default: the run's own (mostly val).")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Images per step, over all devices.")
_MAX_IMAGES = flags.DEFINE_integer("max_images", 0, "Evaluate only so many, evenly spread; 0: all.")
_NUM_OVERLAYS = flags.DEFINE_integer(
    "num_overlays", 4, "Pictures of as many best and worst images."
)
_SAVE_PREDICTIONS = flags.DEFINE_bool(
    "save_predictions",
    False,
    "Write predictions/ID_pred_labelIds.png with raw label ids, which is what the Cityscapes"
    " evaluation script and test server read; works without labels, too.",
)
flags.mark_flags_as_required(["checkpoint", "output"])


def run(arguments: list[str]) -> int:
    if arguments:
        raise ValueError(f"unexpected arguments {arguments}; options start with --")
    # TensorFlow only reads images; the accelerators are JAX's.
    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)
    sharding.use_compilation_cache()
    method = method_flags.method()
    if _NUM_OVERLAYS.value < 0:
        raise ValueError(f"--num_overlays={_NUM_OVERLAYS.value}: must be 0 or more")
    output = Path(_OUTPUT.value)
    checkpoint = checkpointing.load_checkpoint(_CHECKPOINT.value, step=_STEP.value)
    classes = Classes.from_json(checkpoint.metadata["classes"])
    model = create_model(**checkpoint.metadata["model"])
    data = checkpoint.metadata["config"]["data"]
    root = _DATA_ROOT.value or data["root"]
    if not Path(root).is_dir() or not root:
        raise FileNotFoundError(f"no data set folder {root!r}; name it with --data_root=DIR")
    source = open_source(
        data["name"],
        root=root,
        split=_SPLIT.value or data["eval_split"],
        class_file=data["class_file"],
    )
    if source.classes.names != classes.names:
        raise ValueError(
            f"checkpoint {checkpoint.path} was trained for the classes {classes.names}, the data "
            f"has {source.classes.names}"
        )
    source = evaluation.spread(source, _MAX_IMAGES.value)
    output.mkdir(parents=True, exist_ok=True)
    name = f"{model.variant.name} on {source.name} {source.split}"
    print(f"{name}: {len(source)} images, checkpoint {checkpoint.path}", flush=True)

    def evaluate(part, **kwargs) -> evaluation.EvalResult:
        return evaluation.evaluate(
            model,
            checkpoint.variables,
            part,
            batch_size=_BATCH_SIZE.value,
            mesh=sharding.make_mesh(),
            scales=method.scales,
            flip=method.flip,
            tile=method.tile,
            average=method.average,
            **kwargs,
        )

    def save_predictions(batch, predictions) -> None:
        for i, prediction in zip(batch["index"], predictions, strict=True):
            if i >= 0:
                path = output / "predictions" / f"{source.ids[i]}_pred_labelIds.png"
                visualize.save(path, inference.to_label_ids(prediction, classes))

    result = evaluate(source, on_batch=save_predictions if _SAVE_PREDICTIONS.value else None)
    if not source.has_labels:
        print(f"Split {source.split!r} has no labels, hence no figures. Wrote predictions/")
        return 0
    figures = result.figures
    contents = report.metrics_json(
        figures, result.confusion, step=checkpoint.step, variant=model.variant.name
    )
    (output / "metrics.json").write_text(json.dumps(contents, indent=1, allow_nan=False) + "\n")
    Console().print(report.class_table(figures, result.confusion))

    def examples(indices) -> list[report.Example]:
        found = {}

        def keep(batch, predictions) -> None:
            rows = zip(batch["index"], batch["image"], batch["label"], predictions, strict=True)
            found.update({int(i): (image, label, p) for i, image, label, p in rows if i >= 0})

        if len(indices):
            evaluate(source.take(indices), on_batch=keep, progress=False)
        scores = result.image_miou, result.image_accuracy
        return [
            report.Example(source.ids[i], *found[k], *(float(s[i]) for s in scores))
            for k, i in enumerate(indices)
        ]

    ranking = result.ranking().tolist()
    # Of a small split, no image in both rows.
    count = min(_NUM_OVERLAYS.value, (len(ranking) + 1) // 2)
    worst = examples(ranking[:count])
    best = examples(ranking[count:][::-1][:count])
    report.save_overlays(output / "overlays", worst, best, classes)
    page = report.build_report(
        title=name,
        subtitle=f"step {checkpoint.step:,} of {checkpoint.path}; {method}; "
        f"{result.seconds:.0f} s on {jax.device_count()} {jax.default_backend()} device(s)",
        figures=figures,
        confusion=result.confusion,
        classes=classes,
        worst=worst,
        best=best,
        curves=report.read_log(Path(checkpoint.path).parent.parent / "log.jsonl"),
    )
    (output / "report.html").write_text(page, encoding="utf-8")
    print(f"Wrote {output}: metrics.json, report.html, overlays/ ({len(worst) + len(best)} images)")
    return 0


if __name__ == "__main__":
    script.run(run)
