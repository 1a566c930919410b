"""Cuts a data set into tiles, from which training decodes only what a crop covers.

python -m hrnet_jax.tools.prepare_tiles --name=cityscapes --root=CITYSCAPES --output=DIR
    [--splits=train,val] [--verify]

Says beforehand how much disk it takes; killed or out of space, the same command continues. Then
give DIR as --config.data.root or --data_root in place of the data set's own folder: the pixels are
the same, and so is every bit of the training.
"""

from absl import flags

from hrnet_jax.data import SOURCES, open_source
from hrnet_jax.data.tiles import prepare as tiles
from hrnet_jax.runtime import memory, storage
from hrnet_jax.tools import script

_NAME = flags.DEFINE_enum("name", None, SOURCES, "Data set.")
_ROOT = flags.DEFINE_string("root", None, "Folder of the data set.")
_CLASS_FILE = flags.DEFINE_string("class_file", "", "Of --name=folder: instead of ROOT's own.")
_SPLITS = flags.DEFINE_list("splits", ["train", "val"], "Splits to cut, separated by commas.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the tiles.")
_SHARD_IMAGES = flags.DEFINE_integer("shard_images", tiles.SHARD_IMAGES, "Images per shard.")
_VERIFY = flags.DEFINE_bool(
    "verify", False, "Only compare the files in --output with the manifest."
)
flags.mark_flags_as_required(["output"])


def run() -> int:
    if _VERIFY.value:
        for split in _SPLITS.value:
            print(f"{split}: {tiles.verify(_OUTPUT.value, split)} files as they were written")
        return 0
    if not _NAME.value or not _ROOT.value:
        raise ValueError(f"--name and --root are needed; data sets: {SOURCES}")
    # Opened first: a misspelt split should not turn up after an hour.
    sources = [
        open_source(_NAME.value, root=_ROOT.value, split=split, class_file=_CLASS_FILE.value)
        for split in _SPLITS.value
    ]
    memory.keep_freed_pages(single_arena=False)
    for source in sources:
        say = lambda text, split=source.split: print(f"{split}: {text}", flush=True)  # noqa: E731
        tiles.prepare(source, _OUTPUT.value, shard_images=_SHARD_IMAGES.value, say=say)
    print(f"Done. Train with --config.data.root={storage.absolute(_OUTPUT.value)}")
    return 0


if __name__ == "__main__":
    script.run(run)
