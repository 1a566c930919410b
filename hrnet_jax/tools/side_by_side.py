"""Draws what several networks see in the same pictures, one next to the other.

python -m hrnet_jax.tools.side_by_side --checkpoints=A,B --output=FILE.png PICTURE [PICTURE ...]

A and B are runs, files of weights or names of weights that come with the package, of any classes;
--shipped adds all of the latter.
"""

from absl import flags

from hrnet_jax.checkpoints import weights_file
from hrnet_jax.data.images.read import read_image
from hrnet_jax.inference import visualize
from hrnet_jax.inference.predictor import load
from hrnet_jax.runtime import sharding, storage
from hrnet_jax.tools import script

_CHECKPOINTS = flags.DEFINE_list("checkpoints", [], "Networks, separated by commas.")
_SHIPPED = flags.DEFINE_bool("shipped", False, "And those that come with the package.")
_OUTPUT = flags.DEFINE_string("output", None, "The picture to write.")
_WIDTH = flags.DEFINE_integer("width", 480, "Of each picture in it, at most.", 32)
flags.mark_flag_as_required("output")


def run(arguments: list[str]) -> int:
    names = [*_CHECKPOINTS.value, *(weights_file.names() if _SHIPPED.value else ())]
    if not names or not arguments:
        raise ValueError("name the networks with --checkpoints=A,B and at least one picture")
    sharding.use_compilation_cache()
    images = [read_image(path) for path in arguments]
    predictors = {name: load(name) for name in names}
    drawn = []
    for image in images:
        seen = [(name, p.predict(image), p.classes) for name, p in predictors.items()]
        drawn.append(visualize.side_by_side(image, seen, width=_WIDTH.value))  # type: ignore[arg-type]
    output = storage.path(_OUTPUT.value)
    visualize.save(output, visualize.grid(drawn, columns=1))
    print(f"Wrote {output}: {', '.join(names)} on {len(images)} picture(s)")
    return 0


if __name__ == "__main__":
    script.run(run, takes_arguments=True)
