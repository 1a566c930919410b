"""The flags that say how images are tested, shared by the scripts that predict."""

from absl import flags

from hrnet_jax.inference.multi_scale import AVERAGES, Method
from hrnet_jax.tools import script

_SCALES = flags.DEFINE_list("scales", ["1.0"], "Average over these scales, e.g. 0.5,1.0,1.5.")
_FLIP = flags.DEFINE_bool("flip", False, "Average with the mirror image.")
_TILE = flags.DEFINE_string(
    "tile", "", "HEIGHTxWIDTH of sliding tiles for (scaled) images larger than that."
)
_AVERAGE = flags.DEFINE_enum(
    "average", "softmax", AVERAGES, "What is averaged; exp is the official multi-scale test."
)
_SPACE = flags.DEFINE_integer(
    "space", 1, "Devices that share the height of each image, for images too large for one.", 1
)


def space() -> int:
    """Devices per image."""
    return _SPACE.value


def method() -> Method:
    """What the flags say.

    Raises:
        ValueError: naming the flag that cannot be understood.
    """
    try:
        scales = tuple(float(s) for s in _SCALES.value)
    except ValueError as error:
        raise ValueError(f"--scales={','.join(_SCALES.value)}: need numbers") from error
    return Method(scales, _FLIP.value, script.parse_size("tile", _TILE.value), _AVERAGE.value)
