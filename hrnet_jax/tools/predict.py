"""Predicts images and folders of images: an overlay and a label PNG for each.

python -m hrnet_jax.tools.predict --checkpoint=RUN --output=DIR PATH [PATH ...]

Writes DIR/NAME_overlay.png and DIR/NAME_labelIds.png (raw label ids of the data set). Images that
cannot be read are listed at the end and give exit code 1; the others are done nevertheless.
"""

import sys
from pathlib import Path

from absl import flags
from tqdm import tqdm

from hrnet_jax import inference, sharding, visualize
from hrnet_jax.tools import method_flags, script

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Folder of a run or of one of its steps.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the results.")
_ALPHA = flags.DEFINE_float("alpha", 0.55, "Strength of the colours in overlays, 0 to 1.", 0, 1)
flags.mark_flags_as_required(["checkpoint", "output"])


def run(paths: list[str]) -> int:
    sharding.use_compilation_cache()
    images = inference.list_images(paths)
    predictor = inference.load(_CHECKPOINT.value, method=method_flags.method())
    output, failures = Path(_OUTPUT.value), []
    for path, name in tqdm(images.items(), unit="image"):
        try:
            image = inference.read_image(path)
        except (ValueError, OSError) as error:
            failures.append(error)
            continue
        labels = predictor.predict(image)
        overlay = visualize.overlay(image, labels, predictor.classes, _ALPHA.value)
        visualize.save(output / f"{name}_overlay.png", overlay)
        raw = inference.to_label_ids(labels, predictor.classes)
        visualize.save(output / f"{name}_labelIds.png", raw)
    print(f"Wrote {len(images) - len(failures)} of {len(images)} predictions to {output}")
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    script.run(run)
