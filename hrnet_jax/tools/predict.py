"""Predicts images, folders and videos: an overlay and a label PNG for each.

python -m hrnet_jax.tools.predict --checkpoint=RUN --output=FOLDER PATH [PATH ...]
python -m hrnet_jax.tools.predict --checkpoint=RUN --serve

Writes FOLDER/NAME_overlay.png and FOLDER/NAME_labelIds.png (raw label ids of the dataset, or what
--label_form and --label_suffix say); for a video FOLDER/NAME_overlay.mp4,
FOLDER/NAME/000000_labelIds.png and so on. Folders are searched at any depth, without hidden files
and results of an earlier run. Files that cannot be read are skipped, listed at the end and lead to
exit code 1. --serve opens a local web page instead, on which images can be dropped.
"""

import sys

from absl import flags

from hrnet_jax.inference import file_job, label_form, web_demo
from hrnet_jax.inference.predictor import Predictor, load
from hrnet_jax.runtime import memory, sharding
from hrnet_jax.tools import label_flags, outputs, script, tta_flags, weights_flags

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A run, one of its steps, a weights file, or the name of shipped weights."
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the results.")
_OUTPUTS = flags.DEFINE_list(
    "save", ["overlay", "labels"], f"What to write: {', '.join(file_job.OUTPUTS)}."
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 1, "Images of one size that are predicted together.", 1
)
_SIZE_STEP = flags.DEFINE_integer(
    "size_step",
    1,
    "Pad images to multiples of this, so that images of many sizes need few compiled programs."
    " 64 is a good choice. Predictions of images of other sizes change.",
    1,
)
_ALPHA = flags.DEFINE_float("alpha", 0.55, "Strength of the colors in overlays, 0 to 1.", 0, 1)
_SERVE = flags.DEFINE_bool("serve", False, "Open a local web page on which images can be dropped.")
_PORT = flags.DEFINE_integer("port", 8000, "Port of --serve; 0 takes a free one.", 0, 65535)
flags.mark_flag_as_required("checkpoint")
for _module in (label_flags, tta_flags, weights_flags):
    flags.adopt_module_key_flags(_module)  # shown by --help


def _predictor() -> Predictor:
    return load(
        _CHECKPOINT.value,
        tta=tta_flags.tta(),
        space=tta_flags.space(),
        size_step=_SIZE_STEP.value,
        **weights_flags.options(),
    )


def run(arguments: list[str]) -> int:
    if _SERVE.value == bool(_OUTPUT.value):
        raise ValueError("set either --output=FOLDER and name the images, or --serve")
    if label_flags.are_used() and (_SERVE.value or "labels" not in _OUTPUTS.value):
        raise ValueError("--label_form and --label_suffix are for label files: --save=labels")
    memory.keep_freed_pages()
    sharding.use_compilation_cache()
    if _SERVE.value:
        # Opened before the network is loaded, so that a port in use is reported at once.
        with web_demo.listen(_PORT.value) as server:
            server.predictor = _predictor()
            print(f"Open {server.url} in a browser; Ctrl+C stops the server.", flush=True)
            server.run()
        return 0
    output = outputs.folder(_OUTPUT.value)
    form = label_form.get_form(
        label_flags.LABEL_FORM.value or "ids", label_flags.LABEL_SUFFIX.value
    )
    inputs, failures = file_job.list_inputs(arguments, output)
    job = file_job.FileJob(
        _predictor(),
        output,
        tuple(_OUTPUTS.value),
        _BATCH_SIZE.value,
        _ALPHA.value,
        failures=failures,
        form=form,
    )
    done = job.run(inputs)
    print(f"Wrote {done} of {done + len(failures)} predictions to {output}")
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    script.run(run, takes_arguments=True)
