"""Draws the predictions of several networks on the same images side by side.

python -m hrnet_jax.tools.side_by_side --checkpoints=A,B --output=FILE.png IMAGE [IMAGE ...]

A and B are runs, weights files or names of shipped weights; their classes may differ. --shipped
adds all shipped weights. If --output is a folder, the image is written to FOLDER/side_by_side.png.
"""

from absl import flags

from hrnet_jax.checkpoints import weights_file
from hrnet_jax.data.images.read import read_image
from hrnet_jax.inference import visualize
from hrnet_jax.inference.predictor import load
from hrnet_jax.runtime import sharding
from hrnet_jax.tools import outputs, script

_CHECKPOINTS = flags.DEFINE_list("checkpoints", [], "Networks, separated by commas.")
_SHIPPED = flags.DEFINE_bool(
    "shipped", False, "Add all networks that are shipped with the package."
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Image file to write (.png, .jpg, ...), or a folder for side_by_side.png."
)
_WIDTH = flags.DEFINE_integer("width", 480, "Largest width of each image in the file.", 32)
flags.mark_flag_as_required("output")


def run(arguments: list[str]) -> int:
    names = [*_CHECKPOINTS.value, *(weights_file.names() if _SHIPPED.value else ())]
    if not names or not arguments:
        raise ValueError("name the networks with --checkpoints=A,B, and at least one image")
    output = outputs.image(_OUTPUT.value, "side_by_side.png")
    sharding.use_compilation_cache()
    predictors = {name: load(name) for name in names}
    # Each network has its own rule for pictures of more than 8 bits; the first one's is drawn.
    first = predictors[names[0]]
    images = [read_image(path, first.classes.image_range) for path in arguments]
    drawn = []
    for path, image in zip(arguments, images, strict=True):
        seen = [(name, p.predict(path), p.classes) for name, p in predictors.items()]
        drawn.append(visualize.side_by_side(image, seen, width=_WIDTH.value))  # type: ignore[arg-type]
    visualize.save(output, visualize.grid(drawn, columns=1))
    print(f"Wrote {output}: {', '.join(names)} on {len(images)} image(s)")
    return 0


if __name__ == "__main__":
    script.run(run, takes_arguments=True)
