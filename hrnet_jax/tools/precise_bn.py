"""Measures BatchNorm's statistics anew on whole training images and writes the weights with them.

python -m hrnet_jax.tools.precise_bn --checkpoint=RUN --output=FILE.safetensors [--data_root=DIR]
    [--batch_size=8] [--max_images=N] [--dtype=float16] [--image_statistics=0.1]

What training leaves are the statistics of crops, scaled, coloured and mixed; those of the images as
evaluation shows them often score better. With --image_statistics those of each image that is
predicted take part, too, which helps on streets and light that training did not show. FILE goes
wherever a run's folder goes; `evaluate.py --checkpoint=FILE --compare=RUN` says what it brings.
"""

from absl import flags

from hrnet_jax.checkpoints import weights_file
from hrnet_jax.checkpoints.load import load_checkpoint
from hrnet_jax.evaluation import precise_bn, segmentation
from hrnet_jax.models import create_model
from hrnet_jax.runtime import memory, sharding
from hrnet_jax.tools import script

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Folder of a run or of one of its steps, a file of weights, or a name."
)
_OUTPUT = flags.DEFINE_string("output", None, "The .safetensors file to write.")
_DATA_ROOT = flags.DEFINE_string("data_root", "", "Folder of the data set; default: training's.")
_SPLIT = flags.DEFINE_string("split", "", "Split of the images; default: the run's own.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Images per step, over all devices.", 1)
_MAX_IMAGES = flags.DEFINE_integer("max_images", 0, "Only so many, evenly spread; 0: all.", 0)
_IMAGE_STATISTICS = flags.DEFINE_float(
    "image_statistics",
    None,
    "Share of each image's own statistics when it is predicted; default: the checkpoint's.",
    0.0,
    1.0,
)
_DTYPE = flags.DEFINE_enum("dtype", "float32", weights_file.DTYPES, "Of the kernels in the file.")
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
        raise ValueError(f"{checkpoint.path} classifies whole images; this is for segmentation")
    data = checkpoint.metadata["config"]["data"]
    # What was converted from PyTorch's files does not say what it was trained on.
    split = _SPLIT.value or data.get("train_split", "train")
    source = segmentation.open_split(data, root=_DATA_ROOT.value, split=split)
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
        score=None,
        dtype=_DTYPE.value,
    )
    print(
        f"Wrote {_OUTPUT.value}: {checkpoint.path} with the statistics of {images} of"
        f" {len(source)} images of {source.name} {source.split}"
    )
    return 0


if __name__ == "__main__":
    script.run(run)
