"""Draws one training batch as the network would get it, labels over the images.

python -m hrnet_jax.tools.show_batch --config=configs/NAME.py --config.data.root=DIR --output=DIR
    [--step=N]

Writes batch_N.png: every sample of step N after scaling, cropping, mirroring, mixing and
colour changes, with a legend.
"""

import numpy as np
from absl import flags

from hrnet_jax.inference import visualize
from hrnet_jax.runtime import storage
from hrnet_jax.tools import config_flag, script
from hrnet_jax.train import augment, build

_CONFIG = config_flag.define()
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the picture.")
_STEP = flags.DEFINE_integer("step", 0, "Which batch of the run.", lower_bound=0)
flags.mark_flags_as_required(["config", "output"])


def run() -> int:
    config = build.with_fake_data(_CONFIG.value, _OUTPUT.value)
    source, _ = build.open_sources(config)
    batch = next(build.make_batches(config, source, _STEP.value))
    images, labels = batch["image"], batch["label"]
    if share := config.data.class_mix:
        mixed = augment.mix_classes(images, labels, config.seed, _STEP.value, share)
        images, labels = (np.asarray(x) for x in mixed)
    if strength := config.data.color_jitter:
        factors = augment.color_factors(config.seed, _STEP.value, len(images), strength)
        images = np.asarray(augment.adjust_color(images, factors).round()).astype(np.uint8)
    pairs = zip(images, labels, strict=True)
    panels = [
        visualize.panel(image, label, None, source.classes, title=f"step {_STEP.value}, slot {k}")
        for k, (image, label) in enumerate(pairs)
    ]
    path = storage.path(_OUTPUT.value) / f"batch_{_STEP.value}.png"
    visualize.save(path, visualize.grid(panels, columns=2))
    print(f"Wrote {len(panels)} samples to {path}")
    return 0


if __name__ == "__main__":
    script.run(run, parse=config_flag.parse)
