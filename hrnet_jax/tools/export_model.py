"""Writes a checkpoint as a file that runs without this package: image in, label map out.

python -m hrnet_jax.tools.export_model --checkpoint=RUN --output=MODEL.onnx [--size=512x1024]
    [--batch_size=N] [--outputs=labels,probabilities,logits]

The suffix chooses the format: .onnx (size and batch may stay open), .stablehlo (jax.export; runs on
CPU, CUDA and TPU) or .savedmodel (TensorFlow). The file is tried against the checkpoint and kept
only if labels agree on 99.99 % of the pixels and logits within 0.1 %.
"""

from absl import flags

from hrnet_jax.export import export
from hrnet_jax.inference.predictor import load
from hrnet_jax.runtime import sharding
from hrnet_jax.tools import outputs, script, weights_flags

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Folder of a run or of one of its steps, a file of weights, or a name."
)
_STEP = flags.DEFINE_integer("step", None, "Step of the run; default: the best one by mIoU.")
_OUTPUT = flags.DEFINE_string("output", None, f"File to write, ending in {export.SUFFIXES}.")
_SIZE = flags.DEFINE_string("size", "", "HEIGHTxWIDTH of the images; .onnx: open if not given.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Images per call; default: open.", 1)
_OUTPUTS = flags.DEFINE_list("outputs", ["labels"], f"What it gives: {', '.join(export.OUTPUTS)}.")
flags.mark_flags_as_required(["checkpoint", "output"])
flags.adopt_module_key_flags(weights_flags)  # shown by --help


def run() -> int:
    sharding.use_compilation_cache()
    size = script.parse_size("size", _SIZE.value)
    outputs.file(_OUTPUT.value)  # an existing folder is refused before any work
    predictor = load(_CHECKPOINT.value, step=_STEP.value, **weights_flags.options())
    print(f"Writing {_OUTPUT.value} and trying it against the checkpoint ...", flush=True)
    try:
        agreement = export.export_model(
            predictor,
            _OUTPUT.value,
            size=size,
            batch_size=_BATCH_SIZE.value,
            outputs=tuple(_OUTPUTS.value),
        )
    except export.Disagreement as error:
        return script.fail(error)
    print(f"Wrote {_OUTPUT.value}: {agreement}")
    return 0


if __name__ == "__main__":
    script.run(run)
