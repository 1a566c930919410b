"""Flags of the tools that take a checkpoint: what a file of PyTorch does not say itself."""

from typing import Any

from absl import flags

_CLASSES = flags.DEFINE_string(
    "classes", None, "Classes of a PyTorch file: cityscapes, camvid or a JSON class file."
)
_KEY = flags.DEFINE_string(
    "key", None, "Which network of a PyTorch file that holds several; an error lists their keys."
)
_WEIGHTS = flags.DEFINE_enum(
    "weights", "auto", ["auto", "raw", "ema"],
    "Of a PyTorch file with two sets of weights; auto takes the averaged ones.",
)  # fmt: skip


def options() -> dict[str, Any]:
    """The flags as arguments of `load` and `load_checkpoint`."""
    return {"classes": _CLASSES.value, "key": _KEY.value, "weights": _WEIGHTS.value}
