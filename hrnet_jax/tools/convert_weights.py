"""Converts weights between PyTorch files and checkpoints of this package.

python -m hrnet_jax.tools.convert_weights FILE --output=DIR [--classes=NAME_OR_FILE]
    [--key=KEY] [--weights=raw|ema]
python -m hrnet_jax.tools.convert_weights CHECKPOINT --to=LAYOUT --output=FILE.pth|FILE.safetensors
python -m hrnet_jax.tools.convert_weights CHECKPOINT --to=weights --output=FILE.safetensors
    [--dtype=float16]

The first writes a checkpoint that evaluate.py, tools.predict and hrnet_jax.load take. FILE is a
.pth, .ckpt, .pdparams or .safetensors file of any of the known layouts, in containers of any name,
or an address on the Hugging Face hub (hf://OWNER/NAME, timm:NAME). Layout, variant and
head are recognized; the tool prints what was loaded and left out.

The second writes a file that loads strictly in PyTorch; LAYOUT is official, mmsegmentation, timm or
smp (segmentation_models_pytorch's encoder). CHECKPOINT may also be a PyTorch file, of another
layout for instance. The third writes one file that evaluate.py, tools.predict and hrnet_jax.load
take as they take a run.
"""

import jax.numpy as jnp
from absl import flags
from etils import epath

from hrnet_jax.checkpoints import foreign, manifest, weights_file
from hrnet_jax.checkpoints.load import load_checkpoint
from hrnet_jax.checkpoints.store import CheckpointStore
from hrnet_jax.models import create_model
from hrnet_jax.pytorch import convert
from hrnet_jax.pytorch import files as torch_files
from hrnet_jax.tools import outputs, script, weights_flags
from hrnet_jax.train.step import TrainState

_LAYOUTS = ("official", "mmsegmentation", "timm", "smp")
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "Folder of the checkpoint to write; with another --to, the file to write.",
)
_TO = flags.DEFINE_enum("to", "checkpoint", ["checkpoint", "weights", *_LAYOUTS], "What to write.")
_DTYPE = flags.DEFINE_enum(
    "dtype", "float32", weights_file.DTYPES, "Type of the kernels in the file of --to=weights."
)
_ALIGN_CORNERS = flags.DEFINE_bool(
    "align_corners", None, "Resize mode of a PyTorch file; default: the head's official one."
)
_INPLACE_ABN = flags.DEFINE_bool(
    "inplace_abn", None, "Whether a PyTorch 0.4 file was trained with in-place normalization."
)
flags.mark_flag_as_required("output")
flags.adopt_module_key_flags(weights_flags)  # shown by --help


def run(arguments: list[str]) -> int:
    if len(arguments) != 1:
        raise ValueError(f"one file or checkpoint to convert, not {arguments}; see --help")
    source = arguments[0]
    kind = outputs.folder if _TO.value == "checkpoint" else outputs.file
    output = kind(_OUTPUT.value)
    if foreign.is_foreign(source):
        model, variables = _read_foreign(source)
        checkpoint = None
    else:
        checkpoint = load_checkpoint(source)
        print(f"{checkpoint.path}: step {checkpoint.step}")
        model = create_model(**checkpoint.metadata["model"])
        variables = checkpoint.variables
    if _TO.value in _LAYOUTS:
        state_dict = convert.to_torch(model, variables, _TO.value)
        torch_files.write_tensors(output, state_dict)
    else:
        classes = weights_flags.options()["classes"] or "cityscapes"
        metadata = checkpoint.metadata if checkpoint else foreign.describe(model, source, classes)
        step, metric = (checkpoint.step, checkpoint.metric) if checkpoint else (0, None)
        if _TO.value == "checkpoint":
            _write_checkpoint(output, variables, metadata, step)
        else:
            weights_file.write(
                output, variables, metadata, step=step, metric=metric, dtype=_DTYPE.value
            )
    size = f", {output.stat().length / 1e6:.1f} MB" if output.is_file() else ""
    print(f"Wrote {output}{size}")
    return 0


def _read_foreign(path: str):
    chosen = weights_flags.options()
    converted = convert.convert(
        path,
        align_corners=_ALIGN_CORNERS.value,
        inplace_abn=_INPLACE_ABN.value,
        key=chosen["key"],
        weights=chosen["weights"],
    )
    print(converted.report.summary())
    return converted.model, converted.variables


def _write_checkpoint(output: epath.Path, variables, metadata, step: int) -> None:
    if (output / manifest.FOLDER).exists():
        raise ValueError(f"{output} holds checkpoints already; choose another --output")
    store = CheckpointStore(str(output))
    state = TrainState(
        jnp.asarray(step, jnp.int32), variables["params"], variables["batch_stats"], opt_state=()
    )
    store.save(state, metadata | {"format_version": manifest.FORMAT_VERSION})
    store.wait()
    store.close()


if __name__ == "__main__":
    script.run(run, takes_arguments=True)
