"""Converts a dataset to tiles, from which training decodes only what a crop covers.

python -m hrnet_jax.tools.prepare_tiles --name=cityscapes --root=CITYSCAPES --output=DIR
    [--splits=train,val] [--verify]

It first prints the disk space needed. After an interruption the same command continues. Then give
DIR as --config.data.root or --data_root instead of the dataset's own folder: the pixels are the
same, and training is bit-identical.
"""

from absl import flags

from hrnet_jax.data import SOURCES, open_source
from hrnet_jax.data.tiles import prepare as tiles
from hrnet_jax.runtime import memory, storage
from hrnet_jax.tools import outputs, script

_NAME = flags.DEFINE_enum("name", None, SOURCES, "Dataset.")
_ROOT = flags.DEFINE_string("root", None, "Folder of the dataset.")
_CLASS_FILE = flags.DEFINE_string(
    "class_file",
    "",
    "JSON file with classes and layout; default: the dataset's own, for folder ROOT/classes.json.",
)
_SPLITS = flags.DEFINE_list("splits", ["train", "val"], "Splits to convert, separated by commas.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the tiles.")
_SHARD_IMAGES = flags.DEFINE_integer("shard_images", tiles.SHARD_IMAGES, "Images per shard.")
_VERIFY = flags.DEFINE_bool(
    "verify", False, "Only compare the files in --output with the manifest."
)
flags.mark_flags_as_required(["output"])


def run() -> int:
    output = outputs.folder(_OUTPUT.value)
    if _VERIFY.value:
        for split in _SPLITS.value:
            print(f"{split}: {tiles.verify(output, split)} files are unchanged")
        return 0
    if not _NAME.value or not _ROOT.value:
        raise ValueError(f"--name and --root are needed; datasets: {SOURCES}")
    # All are opened first, so that a misspelt split is found at once.
    sources = [
        open_source(_NAME.value, root=_ROOT.value, split=split, class_file=_CLASS_FILE.value)
        for split in _SPLITS.value
    ]
    memory.keep_freed_pages(single_arena=False)
    for source in sources:
        say = lambda text, split=source.split: print(f"{split}: {text}", flush=True)  # noqa: E731
        tiles.prepare(source, output, shard_images=_SHARD_IMAGES.value, say=say)
    print(f"Done. Train with --config.data.root={storage.absolute(output)}")
    return 0


if __name__ == "__main__":
    script.run(run)
