"""Writes synthetic streets in the Cityscapes folder layout.

python -m hrnet_jax.data.synthetic --output=DIR [--train=200 --val=40 --height=256 --width=512]
"""

from absl import app, flags

from hrnet_jax.data.synthetic.scene import MIN_SIDE
from hrnet_jax.data.synthetic.write import write_cityscapes

_OUTPUT = flags.DEFINE_string("output", None, "Folder to write to.", required=True)
_TRAIN = flags.DEFINE_integer("train", 200, "Number of images of the train split.", lower_bound=0)
_VAL = flags.DEFINE_integer("val", 40, "Number of images of the val split.", lower_bound=0)
_HEIGHT = flags.DEFINE_integer("height", 256, "Height of the images.", lower_bound=MIN_SIDE)
_WIDTH = flags.DEFINE_integer("width", 512, "Width of the images.", lower_bound=MIN_SIDE)
_SEED = flags.DEFINE_integer("seed", 0, "Seed; equal seeds give equal files.", lower_bound=0)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    counts = {"train": _TRAIN.value, "val": _VAL.value}
    write_cityscapes(_OUTPUT.value, counts, size=(_HEIGHT.value, _WIDTH.value), seed=_SEED.value)
    print(f"{sum(counts.values())} street scenes written to {_OUTPUT.value}")


if __name__ == "__main__":
    app.run(main)
