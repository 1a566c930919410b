"""Predicts images, folders and videos: an overlay and a label PNG for each.

python -m hrnet_jax.tools.predict --checkpoint=RUN --output=DIR PATH [PATH ...]
python -m hrnet_jax.tools.predict --checkpoint=RUN --serve

Writes DIR/NAME_overlay.png and DIR/NAME_labelIds.png (raw label ids of the data set); of a video
DIR/NAME_overlay.mp4 and DIR/NAME/000000_labelIds.png and so on. What cannot be read is listed at
the end and gives exit code 1; the rest is done nevertheless. --serve shows a page in the browser to
drop pictures on instead.
"""

import sys

from absl import flags

from hrnet_jax.inference import file_job, web_demo
from hrnet_jax.inference.predictor import load
from hrnet_jax.runtime import memory, sharding, storage
from hrnet_jax.tools import method_flags, script

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Folder of a run or of one of its steps, a file of weights, or a name."
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the results.")
_OUTPUTS = flags.DEFINE_list(
    "save", ["overlay", "labels"], f"What to write: {', '.join(file_job.OUTPUTS)}."
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Images of one size at a time.", 1)
_ALPHA = flags.DEFINE_float("alpha", 0.55, "Strength of the colours in overlays, 0 to 1.", 0, 1)
_SERVE = flags.DEFINE_bool("serve", False, "Show a local web page to drop pictures on.")
_PORT = flags.DEFINE_integer("port", 8000, "Port of --serve; 0 takes a free one.", 0, 65535)
flags.mark_flag_as_required("checkpoint")
flags.adopt_module_key_flags(method_flags)  # shown by --help


def run(arguments: list[str]) -> int:
    if _SERVE.value == bool(_OUTPUT.value):
        raise ValueError("name either --output=DIR and the images, or --serve")
    memory.keep_freed_pages()
    sharding.use_compilation_cache()
    if _SERVE.value:
        # Before the network is loaded: a port in use is said at once.
        with web_demo.listen(_PORT.value) as server:
            server.predictor = load(
                _CHECKPOINT.value, method=method_flags.method(), space=method_flags.space()
            )
            print(f"Open {server.url} in a browser; Ctrl+C ends it.", flush=True)
            server.run()
        return 0
    inputs, failures = file_job.list_inputs(arguments)
    job = file_job.Job(
        load(_CHECKPOINT.value, method=method_flags.method(), space=method_flags.space()),
        storage.path(_OUTPUT.value),
        tuple(_OUTPUTS.value),
        _BATCH_SIZE.value,
        _ALPHA.value,
        failures=failures,
    )
    done = job.run(inputs)
    print(f"Wrote {done} of {done + len(failures)} predictions to {_OUTPUT.value}")
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    script.run(run, takes_arguments=True)
