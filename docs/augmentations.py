"""Draws docs/augmentations.png: one street with each augmentation, as training sees it.

python docs/augmentations.py

Each panel is made by the functions of the pipeline and of the training step, with one setting on.
"""

import pathlib
import tempfile

import numpy as np
from PIL import Image, ImageDraw

from hrnet_jax.configs import common
from hrnet_jax.data import open_source
from hrnet_jax.data.sources.source import IGNORE_LABEL
from hrnet_jax.data.synthetic import write
from hrnet_jax.train import augment, build
from hrnet_jax.train.tasks import augmentation_of

PAGE = pathlib.Path(__file__).resolve().parent / "augmentations.png"
CROP = (192, 384)
STEPS = 12
# Panels: setting and value; the others are off.
PANELS = (
    ("", 0), ("brightness", 60), ("color_jitter", 0.6), ("photometric", 1.0),
    ("scale_max", 2.1), ("rotation", 15.0), ("shear", 25.0), ("perspective", 0.2),
    ("blur", 2.0), ("erasing", 1.0), ("class_mix", 1.0), ("flip", 1),
)  # fmt: skip


def panel(source, name: str, value: float) -> np.ndarray:
    """The first image of a batch over its labels, uint8 [2 * height, width, 3].

    Of the steps that show the same image, the one in which the setting changes most.
    """
    off = [sample(source, "", 0, step) for step in range(STEPS)]
    same = [step for step in range(STEPS) if np.array_equal(off[step][0], off[0][0])]
    samples = [sample(source, name, value, step) for step in same]
    change = [np.abs(image.astype(float) - off[0][0]).mean() for image, _ in samples]
    image, label = samples[int(np.argmax(change))]
    colors = np.zeros((256, 3), np.uint8)
    colors[: source.classes.num_classes] = source.classes.colors
    colors[IGNORE_LABEL] = 255
    both = Image.fromarray(np.concatenate([image, colors[label]]))
    title = f"data.{name}={value:g}" if name else "all off"
    ImageDraw.Draw(both).text((6, 4), title, "yellow", stroke_width=2, stroke_fill="black")
    return np.asarray(both)


def sample(source, name: str, value: float, step: int) -> tuple[np.ndarray, np.ndarray]:
    """The first image and label of the batch of a step, with one setting on."""
    config = common.get_config()
    data = config.data
    data.crop_size, data.flip, data.scale_step = CROP, False, 0.0
    data.scale_min = data.scale_max = 1.0
    config.batch_size = 2
    if name:
        data[name] = type(data[name])(value)
    settings = augmentation_of(data, augment.Settings)
    batch = next(build.make_batches(config, source, step))
    drawn = augment.draw(settings, batch, config.seed, step)
    image = np.asarray(augment.apply(settings, drawn)[0]).round().astype(np.uint8)
    return image, np.asarray(drawn["label"][0])


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder) / "streets"
        write.write_cityscapes(root, {"train": 2}, size=CROP, seed=3)
        source = open_source("cityscapes", root=str(root), split="train")
        panels = [panel(source, name, value) for name, value in PANELS]
    rows = [np.concatenate(panels[i : i + 4], axis=1) for i in range(0, len(panels), 4)]
    Image.fromarray(np.concatenate(rows)).quantize(192).save(PAGE, optimize=True)
    print(f"Wrote {PAGE} ({PAGE.stat().st_size / 1e3:.0f} kB)")


if __name__ == "__main__":
    main()
