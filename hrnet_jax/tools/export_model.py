"""Writes a checkpoint as a file that runs without this package: image in, label map out.

python -m hrnet_jax.tools.export_model --checkpoint=RUN --output=MODEL.onnx [--size=512x1024]
    [--batch_size=N] [--outputs=labels,probabilities,logits] [--dtype=float16] [--opset=17]
    [--dtype=int8 --calibration=IMAGES]

The suffix chooses the format: .onnx (size and batch may stay open), .stablehlo (jax.export; runs on
CPU, CUDA and TPU) or .savedmodel (TensorFlow). The file is compared with the checkpoint and kept
only if labels agree on 99.99 % of the pixels and logits within 0.1 %; for float16 99 % and 2 %, and
for int8 90 % of the labels.
"""

from typing import Any

from absl import flags

from hrnet_jax.checkpoints.load import load_checkpoint
from hrnet_jax.export import export
from hrnet_jax.inference.predictor import of_checkpoint
from hrnet_jax.runtime import sharding
from hrnet_jax.tools import outputs, script, weights_flags

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A run, one of its steps, a weights file, or the name of shipped weights."
)
_STEP = flags.DEFINE_integer("step", None, "Step of the run; default: the best one by mIoU.")
_OUTPUT = flags.DEFINE_string("output", None, f"File to write, ending in {export.SUFFIXES}.")
_SIZE = flags.DEFINE_string("size", "", "HEIGHTxWIDTH of the images; .onnx: open if not given.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "Images per call; default: open.", 1)
_OUTPUTS = flags.DEFINE_list("outputs", ["labels"], f"Outputs: {', '.join(export.OUTPUTS)}.")
_DTYPE = flags.DEFINE_enum(
    "dtype", "float32", export.DTYPES, ".onnx: type of weights and arithmetic."
)
_OPSET = flags.DEFINE_integer(
    "opset", None, ".onnx: version of the operators, 13 to 21; default: 18."
)
_CALIBRATION = flags.DEFINE_list(
    "calibration", [], "For int8: images like those to be predicted; a folder or files."
)
flags.mark_flags_as_required(["checkpoint", "output"])
flags.adopt_module_key_flags(weights_flags)  # shown by --help

# What `evaluate --onnx` needs to open the dataset; the folder is not written into the file.
_DATA_KEYS = ("name", "class_file", "eval_split")


def run() -> int:
    sharding.use_compilation_cache()
    options: dict[str, Any] = {
        "size": script.parse_size("size", _SIZE.value),
        "batch_size": _BATCH_SIZE.value,
        "outputs": tuple(_OUTPUTS.value),
        "dtype": _DTYPE.value,
        "opset": _OPSET.value,
        "calibration": tuple(_CALIBRATION.value),
    }
    output = outputs.file(_OUTPUT.value)
    export.Options(**options).check(output)  # before the checkpoint is read
    checkpoint = load_checkpoint(_CHECKPOINT.value, step=_STEP.value, **weights_flags.options())
    data = {key: checkpoint.metadata["config"]["data"][key] for key in _DATA_KEYS}
    print(f"Writing {output} and comparing it with the checkpoint ...", flush=True)
    try:
        agreement = export.export_model(of_checkpoint(checkpoint), output, data=data, **options)
    except export.Disagreement as error:
        return script.fail(error)
    print(f"Wrote {output}: {agreement}")
    return 0


if __name__ == "__main__":
    script.run(run)
