"""Converts weights between PyTorch files and checkpoints of this package.

python -m hrnet_jax.tools.convert_weights FILE.pth --output=DIR [--classes=NAME_OR_FILE]
python -m hrnet_jax.tools.convert_weights CHECKPOINT --to=official --output=FILE.pth

The first writes a checkpoint that evaluate.py, tools.predict and hrnet_jax.load take. FILE is an
official, timm or mmsegmentation .pth or .safetensors file; what it is gets recognised, and what
was loaded and left out is printed. The second writes a .pth or .safetensors file that loads
strictly in PyTorch; CHECKPOINT may also be a PyTorch file, of another layout for instance.
"""

from pathlib import Path

import numpy as np
from absl import flags

import hrnet_jax
from hrnet_jax import checkpointing, torch_files, torch_weights
from hrnet_jax.data import camvid, cityscapes
from hrnet_jax.data.folder import read_class_file
from hrnet_jax.data.source import Classes
from hrnet_jax.models import create_model
from hrnet_jax.tools import script
from hrnet_jax.train_step import TrainState

_KNOWN = {"cityscapes": cityscapes.CLASSES, "camvid": camvid.CLASSES}
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the checkpoint, or PyTorch file.")
_TO = flags.DEFINE_enum(
    "to", "checkpoint", ["checkpoint", "official", "mmsegmentation"], "What to write."
)
_CLASSES = flags.DEFINE_string(
    "classes", "cityscapes", "Classes of a checkpoint: cityscapes, camvid or a JSON class file."
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
    model, variables = _read(arguments[0])
    output = Path(_OUTPUT.value)
    if _TO.value == "checkpoint":
        _write_checkpoint(output, model, variables, source=arguments[0])
    else:
        state_dict = torch_weights.to_torch(model, variables, _TO.value)
        output.parent.mkdir(parents=True, exist_ok=True)
        torch_files.write_tensors(output, state_dict)
    print(f"Wrote {output}")
    return 0


def _read(path: str):
    if Path(path).is_dir():
        checkpoint = checkpointing.load_checkpoint(path)
        print(f"{checkpoint.path}: step {checkpoint.step}")
        return create_model(**checkpoint.metadata["model"]), checkpoint.variables
    converted = torch_weights.convert(
        path, align_corners=_ALIGN_CORNERS.value, inplace_abn=_INPLACE_ABN.value
    )
    print(converted.report.summary())
    return converted.model, converted.variables


def _write_checkpoint(output: Path, model, variables, *, source: str) -> None:
    if model.head not in ("segmentation", "segmentation_v1", "ocr"):
        raise ValueError(
            f"checkpoints hold networks that label pixels, {source} is one with the {model.head} "
            "head; load it with hrnet_jax.from_torch"
        )
    if (output / checkpointing.FOLDER).exists():
        raise ValueError(f"{output} holds checkpoints already; choose another --output")
    classes = _classes(_CLASSES.value)
    if classes.num_classes != model.num_classes:
        raise ValueError(
            f"{source} has {model.num_classes} classes, {_CLASSES.value} {classes.num_classes}; "
            "name the right ones: --classes=camvid or a JSON class file"
        )
    metadata = {
        "format_version": checkpointing.FORMAT_VERSION,
        "model": {
            "variant": model.variant.name,
            "num_classes": model.num_classes,
            "head": model.head,
            "align_corners": model.align_corners,
        },
        "classes": classes.to_json(),
        # What evaluate.py takes as defaults.
        "config": {"data": _data_config(_CLASSES.value), "converted_from": source},
        "version": hrnet_jax.__version__,
    }
    store = checkpointing.CheckpointStore(str(output))
    step = np.zeros((), np.int32)
    state = TrainState(step, variables["params"], variables["batch_stats"], opt_state=())
    store.save(state, metadata)
    store.wait()
    store.close()


def _classes(name: str) -> Classes:
    return _KNOWN[name] if name in _KNOWN else read_class_file(name)


def _data_config(name: str) -> dict[str, str]:
    if name in _KNOWN:
        return {"name": name, "root": "", "eval_split": "val", "class_file": ""}
    return {"name": "folder", "root": "", "eval_split": "val", "class_file": name}


if __name__ == "__main__":
    script.run(run)
