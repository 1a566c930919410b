"""The forms in which predicted labels are written to files: their values and their names."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from hrnet_jax.data.sources import public
from hrnet_jax.data.sources.source import Classes
from hrnet_jax.inference import visualize

# What the pixels hold: raw label ids, train ids, the colors of the classes (RGB), or raw label ids
# with the colors as the file's palette.
VALUES = ("ids", "train_ids", "colors", "palette")


@dataclass(frozen=True)
class LabelForm:
    """How predicted labels are written.

    Attributes:
        values: of VALUES.
        suffix: follows the name of the image, which has lost its own suffix.
        server: a public dataset, for the form of its test server: its ids are written, for the
            classes of the same names; "" writes the ids of the network's own classes.
        folder: of the files in an archive for the server.
        counts: number of images that the server requires: (dataset, split) -> number.

    Raises:
        ValueError: for unknown values, or a suffix that is not one of PNG files.
    """

    values: str
    suffix: str
    server: str = ""
    folder: str = ""
    counts: Mapping[tuple[str, str], int] = field(default_factory=dict)

    def __post_init__(self):
        if self.values not in VALUES:
            raise ValueError(f"unknown values {self.values!r} of label files; known: {VALUES}")
        if not self.suffix.lower().endswith(".png"):
            raise ValueError(f"label suffix {self.suffix!r}: labels are written as PNG; end it so")
        if "/" in self.suffix:
            raise ValueError(f"label suffix {self.suffix!r}: must not name a folder")

    def ids(self, classes: Classes) -> tuple[int, ...]:
        """What is written for each train id; for "colors" the train id.

        Raises:
            ValueError: for a class that the server does not have, or ids that do not fit.
        """
        if self.values in ("train_ids", "colors"):
            return tuple(range(classes.num_classes))
        ids = classes.first_ids
        if self.server:
            known = public.read(self.server).classes
            if unknown := sorted(set(classes.names) - set(known.names)):
                raise ValueError(
                    f"the label form of {self.server} needs its classes; it has none named "
                    f"{unknown[:5]}, known: {', '.join(known.names[:30])}"
                )
            ids = tuple(known.first_ids[known.names.index(name)] for name in classes.names)
        if self.values == "palette" and max(ids) > 255:
            raise ValueError(f"label id {max(ids)} does not fit into a palette PNG; use 'ids'")
        return ids

    def encode(self, labels: np.ndarray, classes: Classes) -> bytes:
        """Train ids [H, W], without ignored pixels, as the bytes of a PNG file."""
        if self.values == "colors":
            image = Image.fromarray(visualize.color_labels(labels, classes))
        else:
            ids = self.ids(classes)
            raw = np.asarray(ids, np.uint8 if max(ids) <= 255 else np.uint16)[labels]
            image = Image.fromarray(raw)
            if self.values == "palette":
                palette = np.zeros((256, 3), np.uint8)
                palette[list(ids)] = classes.colors
                image.putpalette(palette.tobytes())
        file = io.BytesIO()
        image.save(file, "PNG")
        return file.getvalue()

    def problem(self, data: bytes, size: tuple[int, int], classes: Classes) -> str:
        """What is wrong with the PNG of a prediction, or ""; size is (height, width)."""
        ids = self.ids(classes)
        modes = {"colors": "RGB", "palette": "P"}
        mode = modes.get(self.values, "L" if max(ids) <= 255 else "I;16")
        with Image.open(io.BytesIO(data)) as image:
            if image.mode != mode:
                return f"mode {image.mode!r}, must be {mode!r}"
            if image.size != size[::-1]:
                return f"{image.width}x{image.height} pixels, but its image has {size[1]}x{size[0]}"
            pixels = np.asarray(image)
        if self.values == "colors":
            found = {tuple(c) for c in np.unique(pixels.reshape(-1, 3), axis=0).tolist()}
            unknown = sorted(found - {tuple(c) for c in classes.colors})
            return f"colors {unknown[:5]} are not colors of the classes" if unknown else ""
        unknown = sorted(set(np.unique(pixels).tolist()) - set(ids))
        return f"values {unknown[:20]} are not label ids of the classes" if unknown else ""


FORMS: Mapping[str, LabelForm] = {
    "ids": LabelForm("ids", "_labelIds.png"),
    "train_ids": LabelForm("train_ids", "_labelTrainIds.png"),
    "colors": LabelForm("colors", "_color.png"),
    "palette": LabelForm("palette", "_palette.png"),
    # As evaluation script and test server of Cityscapes read them.
    "cityscapes": LabelForm("ids", "_pred_labelIds.png", counts={("cityscapes", "test"): 1525}),
    # https://www.cvlibs.net/datasets/kitti/eval_semseg.php: named as the images, Cityscapes' ids.
    "kitti": LabelForm(
        "ids", ".png", server="kitti", folder="semantic", counts={("kitti", "test"): 200}
    ),
    # https://github.com/CSAILVision/sceneparsing: named as the images, 1 to 150.
    "ade20k": LabelForm("ids", ".png", server="ade20k"),
}
# Forms of test servers, which are named after their datasets.
SERVERS = ("cityscapes", "kitti", "ade20k")


def get_form(name: str, suffix: str = "") -> LabelForm:
    """One of FORMS, with another suffix if it is not empty.

    Raises:
        ValueError: for an unknown name or an invalid suffix.
    """
    if name not in FORMS:
        raise ValueError(f"unknown label form {name!r}; known: {', '.join(FORMS)}")
    return replace(FORMS[name], suffix=suffix) if suffix else FORMS[name]


def form_of_dataset(name: str) -> str:
    """The form that evaluation writes for a dataset: that of its test server, or Cityscapes'."""
    return name if name in SERVERS else "cityscapes"
