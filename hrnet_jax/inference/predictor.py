"""A trained network that takes images as they are and answers at their size."""

import os
from typing import Any

import jax
import numpy as np

from hrnet_jax.data.images.read import check_image, read_image
from hrnet_jax.inference.multi_scale import (
    SINGLE,
    Method,
    check_model,
    predict_labels,
    predict_probabilities,
)
from hrnet_jax.models import create_model
from hrnet_jax.runtime import sharding


def to_label_ids(labels: np.ndarray, classes: Any) -> np.ndarray:
    """Train ids -> uint8 raw ids as in the data set's own label files (what test servers want)."""
    return np.asarray(classes.label_ids, np.uint8)[labels]


class Predictor:
    """A trained network that takes images as they are and answers at their size.

    Attributes:
        model: the Linen module.
        variables: its parameters and statistics, on the device.
        classes: names, colours and label ids (data.source.Classes).
        step: the training step of the weights.
        method: how images are tested; see `Method`.
        mesh: the devices that share the height of each image.
    """

    def __init__(
        self,
        model: Any,
        variables: Any,
        classes: Any,
        step: int = 0,
        method: Method = SINGLE,
        space: int = 1,
    ):
        check_model(model, classes)
        self.model = model
        self.mesh = sharding.make_mesh(1, space)
        self.variables = sharding.place_replicated(variables, self.mesh)
        self.classes = classes
        self.step = step
        self.method = method

    def predict(self, image: Any) -> np.ndarray | list[np.ndarray]:
        """Train ids [H, W] of an image, at its size.

        Args:
            image: uint8 array [H, W, 3], a path, or a list of these, of any sizes. Compiles
                once per new size.

        Returns:
            uint8 [H, W] (int32 for more than 255 classes; widen uint8 before computing with it),
            or a list of them. A list gives what its images would give alone.

        Raises:
            ValueError, FileNotFoundError: for what is no such image; see `read_image`.
        """
        return self._each(image, predict_labels)

    def predict_proba(self, image: Any) -> np.ndarray | list[np.ndarray]:
        """Probabilities float32 [H, W, C] of an image, at its size; arguments as in `predict`."""
        return self._each(image, predict_probabilities)

    def place(self, images: np.ndarray) -> jax.Array:
        """uint8 [N, H, W, 3] on the devices, H divided among them.

        Raises:
            ValueError: if H does not divide: each needs whole rows at 1/32 of the resolution.
        """
        rows = 32 * self.mesh.shape["space"]
        if self.mesh.size > 1 and images.shape[1] % rows:
            raise ValueError(
                f"images of height {images.shape[1]} cannot be divided among {self.mesh.size}"
                f" devices: {rows} has to divide the height; choose another space, or 1"
            )
        return jax.device_put(images, sharding.batch_sharding(self.mesh))

    def _each(self, image: Any, function: Any) -> np.ndarray | list[np.ndarray]:
        if isinstance(image, list | tuple):
            return [self._each(one, function) for one in image]  # type: ignore[misc]
        array = read_image(image) if isinstance(image, str | os.PathLike) else check_image(image)
        return np.asarray(
            function(self.model, self.variables, self.place(array[None]), self.method)
        )[0]


def load(
    path_or_name: str | os.PathLike,
    *,
    step: int | None = None,
    which: str = "best",
    method: Method = SINGLE,
    space: int = 1,
) -> Predictor:
    """A predictor from a training folder, a file of weights, or weights that come with the package.

    Args:
        path_or_name: a workdir, its checkpoints folder or the folder of one step; a file that
            `tools.convert_weights --to=weights` wrote; or the name of one that is in the package,
            such as "camvid_w18_small_v1" (`weights_file.names` lists them).
        step: the step to take; None chooses by `which`.
        which: "best" (by mIoU) or "latest".
        method: how images are tested; single scale by default.
        space: devices that share the height of each image, for images too large for one.

    Raises:
        FileNotFoundError: if there is no such folder, file or name.
        ValueError: if it is damaged, or the checkpoint's head gives no label maps.
    """
    from hrnet_jax.checkpoints.load import load_checkpoint
    from hrnet_jax.data.sources.source import Classes

    checkpoint = load_checkpoint(path_or_name, step=step, which=which)
    classes = Classes.from_json(checkpoint.metadata["classes"])
    model = create_model(**checkpoint.metadata["model"])
    return Predictor(model, checkpoint.variables, classes, checkpoint.step, method, space)
