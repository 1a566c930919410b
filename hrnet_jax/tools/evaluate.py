"""Evaluates a checkpoint or an exported file: metrics with intervals, images and a report.

python evaluate.py --checkpoint=RUN --output=FOLDER [--data_root=FOLDER] [--split=val] [--flip]
    [--scales=0.5,1.0,1.5] [--tile=512x1024] [--average=exp] [--compare=OTHER]
    [--save_predictions] [--submission] [--label_form=ids] [--label_suffix=_mask.png]
python evaluate.py --onnx=FILE --output=FOLDER --data_root=FOLDER [--split=val] [--compare=RUN]

Every image is evaluated once, at its native size, on all devices. Exit code 2 means that an
argument or a file is wrong; the message names it.
"""

from hrnet_jax.tools import (  # isort: skip  # quiets TensorFlow
    label_flags,
    outputs,
    process_flags,
    script,
    tta_flags,
    weights_flags,
)

import math
import sys

import jax
import tensorflow as tf
from absl import flags
from rich.console import Console

from hrnet_jax.checkpoints.load import Checkpoint, load_checkpoint
from hrnet_jax.data.pipeline.odd_labels import framed
from hrnet_jax.evaluation import metrics, report
from hrnet_jax.evaluation.run import Options, SegmentationRun, checkpoint_of, classify
from hrnet_jax.inference.onnx_file import OnnxFile
from hrnet_jax.runtime import distributed, memory, sharding

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A run, one of its steps, a weights file, or the name of shipped weights."
)
_ONNX = flags.DEFINE_string(
    "onnx", "", "In place of --checkpoint: a file of export_model, which ONNX Runtime computes."
)
_STEP = flags.DEFINE_integer("step", None, "Step of the run; default: the best one by mIoU.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the results.")
_DATA_ROOT = flags.DEFINE_string(
    "data_root", "", "Folder of the dataset; default: the one used in training."
)
_SPLIT = flags.DEFINE_string(
    "split", "", "Split to evaluate; default: the one evaluated during training, usually val."
)
_DATA_NAME = flags.DEFINE_string(
    "data_name", "", "Another dataset than the one used in training, in --data_root, e.g. kitti."
)
_CLASS_FILE = flags.DEFINE_string(
    "class_file", "", "Class file of --data_name; default: the dataset's own classes."
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Images per step, over all devices.")
_SIZE_STEP = flags.DEFINE_integer(
    "size_step",
    0,
    "Pad images to multiples of this, so that many sizes need few compiled programs; 0: as in "
    "training (eval.size_step).",
    0,
)
_MAX_IMAGES = flags.DEFINE_integer(
    "max_images", 0, "Evaluate only so many images, evenly spread; 0: all."
)
_NUM_OVERLAYS = flags.DEFINE_integer(
    "num_overlays", 4, "Number of best and of worst images drawn at full size.", 0
)
_COMPARE = flags.DEFINE_string(
    "compare",
    "",
    "Compare with another checkpoint, which is evaluated in the same way, or with the output folder"
    " of an earlier evaluation of the same images.",
)
_SAVE_PREDICTIONS = flags.DEFINE_bool(
    "save_predictions",
    False,
    "Write label PNGs to the folder predictions, in the form of --label_form: by default as the "
    "dataset's test server reads them; also works without labels.",
)
_SUBMISSION = flags.DEFINE_bool(
    "submission", False, "Check the predictions and write submission.zip for the test server."
)
flags.mark_flags_as_required(["output"])
for _module in (label_flags, tta_flags, process_flags, weights_flags):
    flags.adopt_module_key_flags(_module)  # shown by --help

# Flags that do not apply to classifiers of whole images.
_FOR_SEGMENTATION = (
    "scales", "flip", "tile", "average", "save_predictions", "compare", "submission",
    "label_form", "label_suffix", "data_name", "class_file",
    "size_step",
)  # fmt: skip


def options() -> Options:
    """The evaluation that the flags describe."""
    return Options(
        output=outputs.folder(_OUTPUT.value),
        data_root=_DATA_ROOT.value,
        split=_SPLIT.value,
        data_name=_DATA_NAME.value,
        class_file=_CLASS_FILE.value,
        batch_size=_BATCH_SIZE.value,
        size_step=_SIZE_STEP.value,
        max_images=_MAX_IMAGES.value,
        tta=tta_flags.tta(),
        space=tta_flags.space(),
        num_overlays=_NUM_OVERLAYS.value,
        compare=_COMPARE.value,
        pytorch_file=weights_flags.options(),
        save_predictions=_SAVE_PREDICTIONS.value,
        submission=_SUBMISSION.value,
        label_form=label_flags.LABEL_FORM.value,
        label_suffix=label_flags.LABEL_SUFFIX.value,
    )


def evaluate_classifier(checkpoint: Checkpoint, chosen: Options) -> None:
    used = [name for name in _FOR_SEGMENTATION if not flags.FLAGS[name].using_default_value]
    if used:
        raise ValueError(
            f"--{used[0]} is for segmentation; {checkpoint.path} classifies whole images"
        )
    result, split = classify(checkpoint, chosen)
    print(
        f"top-1 {result.top1:.4f}, top-5 {result.top5:.4f} of {len(result.ids)} images of"
        f" {split} with checkpoint {checkpoint.path}\nWrote {chosen.output}: metrics.json"
    )


def print_doubts(doubts: tuple[str, ...]) -> None:
    for text in doubts if jax.process_index() == 0 else ():
        print(framed(text), flush=True)


def evaluate_segmentation(
    checkpoint: Checkpoint, chosen: Options, file: OnnxFile | None = None
) -> None:
    work = SegmentationRun(checkpoint, chosen, file)
    source = work.source
    chosen.output.mkdir(parents=True, exist_ok=True)
    print(
        f"{checkpoint.metadata['model']['variant']} on {source.name} {source.split}: "
        f"{len(source)} images, {'checkpoint' if file is None else file.runtime} {checkpoint.path}",
        flush=True,
    )
    print_doubts(work.doubts)
    result = work.evaluate()
    if work.compared:
        print(f"comparing with checkpoint {work.compared.path}", flush=True)
    comparison = work.compare(result)
    intervals = None
    if source.has_labels:
        intervals = metrics.intervals(result.image_counts, source.classes.names)
    first = jax.process_index() == 0
    if first and source.has_labels:
        console = Console()
        console.print(report.class_table(result, intervals))
        if comparison:
            console.print(report.comparison_table(comparison))
        print_doubts(work.doubts)  # again, next to the metrics
    written = work.write(result, intervals, comparison)
    if not source.has_labels:
        print(f"Split {source.split!r} has no labels, so there are no metrics.")
    if first:
        if not math.isnan(result.images_per_second):
            print(f"{result.images_per_second:.2f} images/s after the first batch")
        print(f"Wrote {chosen.output}: {', '.join(written)}")


def run() -> int:
    # TensorFlow only reads images; the accelerators are for JAX.
    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)
    memory.keep_freed_pages()  # before JAX starts
    process_flags.join()
    process_flags.check_same(sys.modules[__name__])
    sharding.use_compilation_cache()
    chosen = options()
    if bool(_CHECKPOINT.value) == bool(_ONNX.value):
        raise ValueError("give either --checkpoint=RUN or --onnx=FILE")
    if _ONNX.value:
        file = OnnxFile(_ONNX.value)
        evaluate_segmentation(checkpoint_of(file), chosen, file)
        return 0
    checkpoint = load_checkpoint(_CHECKPOINT.value, step=_STEP.value, **weights_flags.options())
    # While a run continues, its newest checkpoint may differ a moment later.
    distributed.check_same("checkpoints", {"step": checkpoint.step})
    if checkpoint.metadata["model"]["head"] == "classification":
        evaluate_classifier(checkpoint, chosen)
    else:
        evaluate_segmentation(checkpoint, chosen)
    return 0


if __name__ == "__main__":
    script.run(run)
