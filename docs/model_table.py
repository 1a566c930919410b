"""Prints the table of models: exact parameters, and multiply-accumulates of an image of 512x1024.

python docs/model_table.py [--head=segmentation] [--height=512 --width=1024]

Both are counted by `hrnet_jax.models.cost`, which says what counts, with 19 classes.
"""

from absl import app, flags

from hrnet_jax.models import HEADS, VARIANTS, cost, create_model

_HEAD = flags.DEFINE_enum("head", "segmentation", sorted(HEADS), "Head of the networks.")
_HEIGHT = flags.DEFINE_integer("height", 512, "Of the image, in pixels.", 32)
_WIDTH = flags.DEFINE_integer("width", 1024, "Of the image, in pixels.", 32)


def count(variant: str, head: str, size: tuple[int, int]) -> tuple[int, int]:
    """(parameters, multiply-accumulates of one image) of a network with 19 classes."""
    parts = cost.part_costs(create_model(variant, num_classes=19, head=head), size).values()
    return sum(part.parameters for part in parts), sum(part.macs for part in parts)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    size = _HEIGHT.value, _WIDTH.value
    print(f"| variant | parameters | GMACs at {size[0]}x{size[1]} |")
    print("| --- | --- | --- |")
    for variant in VARIANTS:
        parameters, macs = count(variant, _HEAD.value, size)
        print(f"| {variant} | {parameters:,} | {macs / 1e9:.1f} |")


if __name__ == "__main__":
    app.run(main)
