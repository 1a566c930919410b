"""The flags of test-time augmentation, shared by the scripts that predict."""

from absl import flags

from hrnet_jax.inference.multi_scale import AVERAGES, TestTimeAugmentation
from hrnet_jax.tools import script

_SCALES = flags.DEFINE_list(
    "scales", ["1.0"], "Average predictions over these scales, e.g. 0.5,1.0,1.5."
)
_FLIP = flags.DEFINE_bool("flip", False, "Average with the prediction of the flipped image.")
_TILE = flags.DEFINE_string(
    "tile", "", "HEIGHTxWIDTH of sliding windows, for images that are larger after scaling."
)
_AVERAGE = flags.DEFINE_enum(
    "average",
    "softmax",
    AVERAGES,
    "Average probabilities (softmax) or exp(logits); exp is the official multi-scale test.",
)
_SPACE = flags.DEFINE_integer(
    "space", 1, "Devices that divide the height of each image, for images too large for one.", 1
)


def space() -> int:
    """Number of devices per image."""
    return _SPACE.value


def tta() -> TestTimeAugmentation:
    """The test-time augmentation that the flags describe.

    Raises:
        ValueError: naming the flag with an invalid value.
    """
    try:
        scales = tuple(float(s) for s in _SCALES.value)
    except ValueError as error:
        raise ValueError(f"--scales={','.join(_SCALES.value)}: need numbers") from error
    return TestTimeAugmentation(
        scales, _FLIP.value, script.parse_size("tile", _TILE.value), _AVERAGE.value
    )
