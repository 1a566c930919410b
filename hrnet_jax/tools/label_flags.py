"""Flags for the form of label files, shared by tools that write predictions."""

from absl import flags

from hrnet_jax.inference.label_form import FORMS

LABEL_FORM = flags.DEFINE_enum(
    "label_form",
    "",
    ["", *FORMS],
    "What the label PNGs hold: ids of the dataset's label files, train_ids, colors (RGB), palette "
    "(ids with the colors as palette), or the form of a test server. Default: the form of the "
    "dataset's server (evaluate), ids (predict).",
)
LABEL_SUFFIX = flags.DEFINE_string(
    "label_suffix", "", "What follows the image's name in the names of label PNGs, e.g. _mask.png."
)


def are_used() -> bool:
    """Whether one of the two was given."""
    return bool(LABEL_FORM.value or LABEL_SUFFIX.value)
