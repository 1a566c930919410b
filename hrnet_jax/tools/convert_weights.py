"""Converts weights between PyTorch files and checkpoints of this package.

python -m hrnet_jax.tools.convert_weights FILE.pth --output=DIR [--classes=NAME_OR_FILE]
python -m hrnet_jax.tools.convert_weights CHECKPOINT --to=official --output=FILE.pth
python -m hrnet_jax.tools.convert_weights CHECKPOINT --to=weights --output=FILE.safetensors
    [--dtype=float16]

The first writes a checkpoint that evaluate.py, tools.predict and hrnet_jax.load take. FILE is an
official, timm or mmsegmentation .pth or .safetensors file; what it is gets recognised, and what
was loaded and left out is printed. The second writes a .pth or .safetensors file that loads
strictly in PyTorch; CHECKPOINT may also be a PyTorch file, of another layout for instance. The
third writes one file that evaluate.py, tools.predict and hrnet_jax.load take as they take a run.
"""

from typing import Any

import jax.numpy as jnp
from absl import flags
from etils import epath

import hrnet_jax
from hrnet_jax.checkpoints import manifest, weights_file
from hrnet_jax.checkpoints.load import load_checkpoint
from hrnet_jax.checkpoints.store import CheckpointStore
from hrnet_jax.data.sources import camvid, cityscapes
from hrnet_jax.data.sources.folder import read_class_file
from hrnet_jax.data.sources.source import Classes
from hrnet_jax.models import create_model
from hrnet_jax.pytorch import convert
from hrnet_jax.pytorch import files as torch_files
from hrnet_jax.runtime import storage
from hrnet_jax.tools import script
from hrnet_jax.train.step import TrainState

_KNOWN = {"cityscapes": cityscapes.CLASSES, "camvid": camvid.CLASSES}
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the checkpoint, or PyTorch file.")
_TO = flags.DEFINE_enum(
    "to", "checkpoint", ["checkpoint", "weights", "official", "mmsegmentation"], "What to write."
)
_CLASSES = flags.DEFINE_string(
    "classes", "cityscapes", "Classes of a checkpoint: cityscapes, camvid or a JSON class file."
)
_DTYPE = flags.DEFINE_enum(
    "dtype", "float32", weights_file.DTYPES, "Of the kernels in the file of --to=weights."
)
_ALIGN_CORNERS = flags.DEFINE_bool(
    "align_corners", None, "Resize mode of a PyTorch file; default: the head's official one."
)
_INPLACE_ABN = flags.DEFINE_bool(
    "inplace_abn", None, "Whether a PyTorch 0.4 file was trained with in-place normalisation."
)
flags.mark_flag_as_required("output")


def run(arguments: list[str]) -> int:
    if len(arguments) != 1:
        raise ValueError(f"one file or checkpoint to convert, not {arguments}; see --help")
    source, output = arguments[0], storage.path(_OUTPUT.value)
    if weights_file.is_foreign(source):
        model, variables = _read_foreign(source)
        checkpoint = None
    else:
        checkpoint = load_checkpoint(source)
        print(f"{checkpoint.path}: step {checkpoint.step}")
        model = create_model(**checkpoint.metadata["model"])
        variables = checkpoint.variables
    if _TO.value in ("official", "mmsegmentation"):
        state_dict = convert.to_torch(model, variables, _TO.value)
        torch_files.write_tensors(output, state_dict)
    else:
        metadata = checkpoint.metadata if checkpoint else _metadata(model, source)
        step, score = (checkpoint.step, checkpoint.metric) if checkpoint else (0, None)
        if _TO.value == "checkpoint":
            _write_checkpoint(output, variables, metadata, step)
        else:
            weights_file.write(
                output, variables, metadata, step=step, score=score, dtype=_DTYPE.value
            )
    size = f", {output.stat().length / 1e6:.1f} MB" if output.is_file() else ""
    print(f"Wrote {output}{size}")
    return 0


def _read_foreign(path: str):
    converted = convert.convert(
        path, align_corners=_ALIGN_CORNERS.value, inplace_abn=_INPLACE_ABN.value
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


def _metadata(model, source: str) -> dict[str, Any]:
    """What a checkpoint says about itself, of the weights of a PyTorch file."""
    if model.head not in ("segmentation", "segmentation_v1", "ocr"):
        raise ValueError(
            f"checkpoints hold networks that label pixels, {source} is one with the {model.head} "
            "head; load it with hrnet_jax.from_torch"
        )
    classes = _classes(_CLASSES.value)
    if classes.num_classes != model.num_classes:
        raise ValueError(
            f"{source} has {model.num_classes} classes, {_CLASSES.value} {classes.num_classes}; "
            "name the right ones: --classes=camvid or a JSON class file"
        )
    return {
        "format_version": manifest.FORMAT_VERSION,
        "model": model.to_json(),
        "classes": classes.to_json(),
        # What evaluate.py takes as defaults.
        "config": {"data": _data_config(_CLASSES.value), "converted_from": source},
        "version": hrnet_jax.__version__,
    }


def _classes(name: str) -> Classes:
    return _KNOWN[name] if name in _KNOWN else read_class_file(name)


def _data_config(name: str) -> dict[str, str]:
    if name in _KNOWN:
        return {"name": name, "root": "", "eval_split": "val", "class_file": ""}
    return {"name": "folder", "root": "", "eval_split": "val", "class_file": name}


if __name__ == "__main__":
    script.run(run, takes_arguments=True)
