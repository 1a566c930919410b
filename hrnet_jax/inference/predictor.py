"""A trained network that predicts images of any size at full resolution."""

import os
import warnings
from typing import Any

import jax
import numpy as np

from hrnet_jax.data.images.read import check_image, read_image
from hrnet_jax.inference.multi_scale import (
    SINGLE_SCALE,
    TestTimeAugmentation,
    check_model,
    predict_labels,
    predict_probabilities,
)
from hrnet_jax.models import create_model
from hrnet_jax.runtime import sharding


def _renamed(tta: TestTimeAugmentation, method: TestTimeAugmentation | None):
    """The value of the argument `tta`, or that of its old name `method` with a warning."""
    if method is None:
        return tta
    warnings.warn(
        "the argument and attribute 'method' were renamed to 'tta'",
        DeprecationWarning,
        stacklevel=3,
    )
    return method


class Predictor:
    """A trained network that predicts images of any size at full resolution.

    Attributes:
        model: the Linen module, of `create_model`.
        variables: its parameters and batch statistics, on the devices of `mesh`.
        classes: names, colors and label ids (data.sources.source.Classes).
        step: the training step of the weights.
        tta: test-time augmentation of every prediction.
        mesh: the devices; the height of each image is divided among them.
    """

    def __init__(
        self,
        model: Any,
        variables: Any,
        classes: Any,
        step: int = 0,
        tta: TestTimeAugmentation = SINGLE_SCALE,
        space: int = 1,
        *,
        method: TestTimeAugmentation | None = None,
    ):
        """Puts the network on its devices.

        Args:
            model: of `create_model`, with a segmentation head.
            variables: {"params", "batch_stats"}.
            classes: as many as the model has.
            step: the training step of the weights.
            tta: test-time augmentation; single scale by default.
            space: number of devices that divide the height of each image, for images that are too
                large for one.
            method: the old name of `tta`.

        Raises:
            ValueError: for a model that predicts no label maps or has other classes.
        """
        check_model(model, classes)
        self.model = model
        self.mesh = sharding.make_mesh(1, space)
        self.variables = sharding.place_replicated(variables, self.mesh)
        self.classes = classes
        self.step = step
        self.tta = _renamed(tta, method)

    @property
    def method(self) -> TestTimeAugmentation:
        """The old name of `tta`."""
        return _renamed(self.tta, self.tta)

    def predict(self, image: Any) -> np.ndarray | list[np.ndarray]:
        """Train ids [H, W] of an image, at its own size.

        Args:
            image: uint8 array [H, W, 3], a path, or a list of these; sizes may differ. Each new
                size is compiled once.

        Returns:
            uint8 [H, W] (int32 for more than 255 classes; convert uint8 before arithmetic), or a
            list of them. Images of a list are predicted one by one.

        Raises:
            ValueError, FileNotFoundError: for an image that cannot be used; see `read_image`.
        """
        return self._each(image, predict_labels)

    def predict_proba(self, image: Any) -> np.ndarray | list[np.ndarray]:
        """Probabilities float32 [H, W, C] of an image, at its own size; as `predict` otherwise."""
        return self._each(image, predict_probabilities)

    def place(self, images: np.ndarray) -> jax.Array:
        """Puts uint8 [N, H, W, 3] on the devices, with H divided among them.

        Raises:
            ValueError: if H is not a multiple of 32 per device; the smallest feature map, at 1/32
                resolution, is divided by whole rows.
        """
        rows = 32 * self.mesh.shape["space"]
        if self.mesh.size > 1 and images.shape[1] % rows:
            raise ValueError(
                f"images of height {images.shape[1]} cannot be divided among {self.mesh.size}"
                f" devices: the height must be a multiple of {rows}; choose another space, or 1"
            )
        return jax.device_put(images, sharding.batch_sharding(self.mesh))

    def _each(self, image: Any, function: Any) -> np.ndarray | list[np.ndarray]:
        if isinstance(image, list | tuple):
            return [self._each(one, function) for one in image]
        array = read_image(image) if isinstance(image, str | os.PathLike) else check_image(image)
        result = function(self.model, self.variables, self.place(array[None]), self.tta)
        return np.asarray(result)[0]


def load(
    path_or_name: str | os.PathLike,
    *,
    step: int | None = None,
    which: str = "best",
    tta: TestTimeAugmentation = SINGLE_SCALE,
    space: int = 1,
    method: TestTimeAugmentation | None = None,
) -> Predictor:
    """A predictor from a training folder, a weights file, or shipped weights.

    Args:
        path_or_name: a workdir, its checkpoints folder or the folder of one step; a file written
            by `tools.convert_weights --to=weights`; or the name of shipped weights, such as
            "camvid_w18_small_v1" (`weights_file.names` lists them).
        step: the step to load; None chooses by `which`.
        which: "best" (by mIoU) or "latest".
        tta: test-time augmentation of every prediction; single scale by default.
        space: number of devices that divide the height of each image, for images that are too
            large for one.
        method: the old name of `tta`.

    Raises:
        FileNotFoundError: if no such folder, file or name exists.
        ValueError: if the file is damaged, or the checkpoint's head predicts no label maps.
    """
    from hrnet_jax.checkpoints.load import load_checkpoint
    from hrnet_jax.data.sources.source import Classes

    tta = _renamed(tta, method)
    checkpoint = load_checkpoint(path_or_name, step=step, which=which)
    classes = Classes.from_json(checkpoint.metadata["classes"])
    model = create_model(**checkpoint.metadata["model"])
    return Predictor(model, checkpoint.variables, classes, checkpoint.step, tta, space)
