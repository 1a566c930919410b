"""A trained network that predicts images of any size at full resolution."""

import os
import warnings
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from hrnet_jax.data.images.read import check_image, read_image
from hrnet_jax.data.sources.source import Classes
from hrnet_jax.inference.multi_scale import (
    SINGLE_SCALE,
    TestTimeAugmentation,
    check_model,
    predict_labels,
    predict_probabilities,
)
from hrnet_jax.models import HRNetModel, create_model
from hrnet_jax.runtime import sharding

if TYPE_CHECKING:
    from hrnet_jax.checkpoints.load import Checkpoint


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
        size_step: images are padded to multiples of this for the network; 1 for no padding.
    """

    def __init__(
        self,
        model: HRNetModel,
        variables: Any,
        classes: Classes,
        step: int = 0,
        tta: TestTimeAugmentation = SINGLE_SCALE,
        space: int = 1,
        *,
        size_step: int = 1,
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
            size_step: pad images at the bottom and on the right, by repeating their last row and
                column, to multiples of this, and cut the predictions to the size of the image. For
                images of many sizes, each of which would otherwise be compiled: with 64, sizes up
                to 1024x2048 need at most 512 programs, typically a few. Images whose sizes are
                multiples are predicted as without. Predictions of others change: the network
                sees the repeated pixels, OCR and image_statistics average over them, and feature
                maps have other sizes (camvid_w18_small_v1 at 341x469 with size_step=64: 5 % of the
                pixels of five images change, mIoU 66.2 -> 69.6).
            method: the old name of `tta`.

        Raises:
            ValueError: for a model that predicts no label maps or has other classes, or a size_step
                below 1.
        """
        check_model(model, classes)
        if size_step < 1:
            raise ValueError(f"size_step must be at least 1, got {size_step}")
        self.model = model
        self.mesh = sharding.make_mesh(1, space)
        self.variables = sharding.place_replicated(variables, self.mesh)
        self.classes = classes
        self.step = step
        self.size_step = size_step
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

    def pad(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, H, W, 3] padded to multiples of `size_step` at the bottom and on the right."""
        padding = [(0, -side % self.size_step) for side in images.shape[1:3]]
        return np.pad(images, [(0, 0), *padding, (0, 0)], mode="edge")

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
            return [self._each(one, function) for one in image]  # type: ignore[misc]
        if isinstance(image, str | os.PathLike):
            array = read_image(image, self.classes.image_range)
        else:
            array = check_image(image)
        height, width = array.shape[:2]
        images = self.pad(array[None])
        # The caller's program may have set a mesh of its own.
        with jax.set_mesh(self.mesh):
            result = function(self.model, self.variables, self.place(images), self.tta)
        return np.asarray(result)[0, :height, :width]

    def __getstate__(self) -> dict[str, Any]:
        # Devices cannot be pickled; the arguments of the constructor can.
        return {
            "model": self.model,
            "variables": jax.device_get(self.variables),
            "classes": self.classes,
            "step": self.step,
            "tta": self.tta,
            "space": self.mesh.shape["space"],
            "size_step": self.size_step,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def load(
    path_or_name: str | os.PathLike,
    *,
    step: int | None = None,
    which: str = "best",
    tta: TestTimeAugmentation = SINGLE_SCALE,
    classes: str | None = None,
    key: str | None = None,
    weights: str = "auto",
    space: int = 1,
    size_step: int = 1,
    method: TestTimeAugmentation | None = None,
) -> Predictor:
    """A predictor from a training folder, a weights file, or shipped weights.

    Args:
        path_or_name: a workdir, its checkpoints folder or the folder of one step; a file written
            by `tools.convert_weights --to=weights`; the name of shipped weights, such as
            "camvid_w18_small_v1" (`weights_file.names` lists them); or a PyTorch file or an address
            on the Hugging Face hub, as `from_torch` takes them.
        step: the step to load; None chooses by `which`.
        which: "best" (by mIoU) or "latest".
        tta: test-time augmentation of every prediction; single scale by default.
        classes: of a PyTorch file, which does not name them: "cityscapes", "camvid" or a JSON class
            file.
        key, weights: which network of a PyTorch file, as for `from_torch`.
        space: number of devices that divide the height of each image, for images that are too
            large for one.
        size_step: pad images to multiples of this, so that images of many sizes need few compiled
            programs; see `Predictor`, also for what it changes.
        method: the old name of `tta`.

    Raises:
        FileNotFoundError: if no such folder, file or name exists.
        ValueError: if the file is damaged, the checkpoint's head predicts no label maps, or the
            platform that JAX_PLATFORMS asks for is not there.
    """
    from hrnet_jax.checkpoints.load import load_checkpoint

    tta = _renamed(tta, method)  # first: it may raise
    checkpoint = load_checkpoint(
        path_or_name, step=step, which=which, classes=classes, key=key, weights=weights
    )
    return of_checkpoint(checkpoint, tta=tta, space=space, size_step=size_step)


def of_checkpoint(checkpoint: "Checkpoint", **options: Any) -> Predictor:
    """The predictor of a checkpoint that is already loaded.

    Args:
        checkpoint: of `load_checkpoint`.
        **options: further arguments of `Predictor`.

    Raises:
        ValueError: if its head predicts no label maps, and as `Predictor`.
    """
    return Predictor(
        create_model(**checkpoint.metadata["model"]),
        checkpoint.variables,
        Classes.from_json(checkpoint.metadata["classes"]),
        checkpoint.step,
        **options,
    )
