"""Measures BatchNorm statistics on whole training images (precise BN); writes a weights file.

python -m hrnet_jax.tools.precise_bn --checkpoint=RUN --output=FILE.safetensors [--data_root=FOLDER]
    [--batch_size=8] [--max_images=N] [--dtype=float16] [--image_statistics=0.1]

Training leaves the statistics of augmented crops; those of whole images often give better metrics.
With --image_statistics the statistics of each predicted image are mixed in as well, which helps on
scenes and light that differ from training. FILE can be used wherever a run's folder can;
`evaluate.py --checkpoint=FILE --compare=RUN` measures the difference.
"""

from absl import flags

from hrnet_jax.checkpoints import weights_file
from hrnet_jax.checkpoints.load import load_checkpoint
from hrnet_jax.evaluation import precise_bn, segmentation
from hrnet_jax.models import create_model
from hrnet_jax.runtime import memory, sharding
from hrnet_jax.tools import script

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A run, one of its steps, a weights file, or the name of shipped weights."
)
_OUTPUT = flags.DEFINE_string("output", None, "The .safetensors file to write.")
_DATA_ROOT = flags.DEFINE_string(
    "data_root", "", "Folder of the dataset; default: the one used in training."
)
_SPLIT = flags.DEFINE_string(
    "split", "", "Split of the images; default: the training split of the run."
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Images per step, over all devices.", 1)
_MAX_IMAGES = flags.DEFINE_integer(
    "max_images", 0, "Use only so many images, evenly spread; 0: all.", 0
)
_IMAGE_STATISTICS = flags.DEFINE_float(
    "image_statistics",
    None,
    "Fraction of each predicted image's own statistics; default: that of the checkpoint.",
    0.0,
    1.0,
)
_DTYPE = flags.DEFINE_enum(
    "dtype", "float32", weights_file.DTYPES, "Type of the kernels in the file."
)
flags.mark_flags_as_required(["checkpoint", "output"])


def run() -> int:
    weights_file.check_path(_OUTPUT.value)
    memory.keep_freed_pages()
    sharding.use_compilation_cache()
    checkpoint = load_checkpoint(_CHECKPOINT.value)
    about = dict(checkpoint.metadata["model"])
    if _IMAGE_STATISTICS.value is not None:
        about["image_statistics"] = _IMAGE_STATISTICS.value
    model = create_model(**about)
    if model.head == "classification":
        raise ValueError(
            f"{checkpoint.path} classifies whole images; this tool is for segmentation"
        )
    data = checkpoint.metadata["config"]["data"]
    # Checkpoints converted from PyTorch do not say which split they were trained on.
    split = _SPLIT.value or data.get("train_split", "train")
    source = segmentation.open_split(checkpoint.metadata, root=_DATA_ROOT.value, split=split)
    stats, images = precise_bn.measure(
        model,
        checkpoint.variables,
        segmentation.spread(source, _MAX_IMAGES.value),
        batch_size=_BATCH_SIZE.value,
        mesh=sharding.make_mesh(),
    )
    variables = {"params": checkpoint.variables["params"], "batch_stats": stats}
    weights_file.write(
        _OUTPUT.value,
        variables,
        checkpoint.metadata | {"model": model.to_json()},
        step=checkpoint.step,
        metric=None,
        dtype=_DTYPE.value,
    )
    print(
        f"Wrote {_OUTPUT.value}: {checkpoint.path} with statistics of {images} of"
        f" {len(source)} images of {source.name} {source.split}"
    )
    return 0


if __name__ == "__main__":
    script.run(run)
