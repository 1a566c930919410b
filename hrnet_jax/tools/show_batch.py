"""Draws one training batch as the network sees it, with labels over the images and a legend.

python -m hrnet_jax.tools.show_batch --config=configs/NAME.py --config.data.root=FOLDER
    --output=FILE.png [--step=N]

The batch is that of step N, after all augmentation, on the host and on the device. If
--output is a folder, the image is written to FOLDER/batch_N.png.
"""

import numpy as np
from absl import flags

from hrnet_jax.inference import visualize
from hrnet_jax.tools import config_flag, outputs, script
from hrnet_jax.train import augment, build
from hrnet_jax.train.tasks import augmentation_of

_CONFIG = config_flag.define()
_OUTPUT = flags.DEFINE_string(
    "output", None, "Image file to write (.png, .jpg, ...), or a folder for batch_STEP.png."
)
_STEP = flags.DEFINE_integer("step", 0, "Training step of the batch.", lower_bound=0)
flags.mark_flags_as_required(["config", "output"])


def run() -> int:
    path = outputs.image(_OUTPUT.value, f"batch_{_STEP.value}.png")
    config = build.with_fake_data(_CONFIG.value, str(path.parent))
    source, _ = build.open_sources(config)
    batch = next(build.make_batches(config, source, _STEP.value))
    settings = augmentation_of(config.data, augment.Settings)
    batch = augment.draw(settings, batch, config.seed, _STEP.value)
    images = np.asarray(augment.apply(settings, batch)).round().astype(np.uint8)
    labels = np.asarray(batch["label"])
    pairs = zip(images, labels, strict=True)
    panels = [
        visualize.panel(image, label, None, source.classes, title=f"step {_STEP.value}, slot {k}")
        for k, (image, label) in enumerate(pairs)
    ]
    visualize.save(path, visualize.grid(panels, columns=2))
    print(f"Wrote {len(panels)} samples to {path}")
    return 0


if __name__ == "__main__":
    script.run(run, parse=config_flag.parse)
