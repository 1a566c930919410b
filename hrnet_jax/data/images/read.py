"""Images given for prediction: files and arrays, checked."""

import os
from pathlib import Path

import numpy as np

from hrnet_jax.data.images.decode import decode_image
from hrnet_jax.runtime import storage


def read_image(
    path: str | os.PathLike, image_range: tuple[float, float] | None = None
) -> np.ndarray:
    """Reads an image file as upright uint8 RGB [H, W, 3]; `decode_image` says how.

    Args:
        path: of the file, local or in a store.
        image_range: `Classes.image_range`, for files of more than 8 bits per channel.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it is not an image, damaged, or of a kind whose meaning is
            not clear (transparent, several pages, ...).
    """
    if not storage.in_store(path):
        if not Path(path).exists():
            raise FileNotFoundError(f"{path}: no such image")
        if Path(path).is_dir():
            raise ValueError(f"{path} is a folder, not an image")
    name = os.fspath(path)
    return decode_image(storage.read_bytes(name), name, image_range=image_range)


def check_image(image: np.ndarray) -> np.ndarray:
    """The array itself if it is uint8 [H, W, 3]; else a ValueError that says how to correct it."""
    image = np.asarray(image)
    advice = ""
    if image.ndim == 4:
        advice = "; for several images pass a list of them"
    elif image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 1):
        advice = "; repeat the gray channel three times"
    elif image.ndim == 3 and image.shape[2] == 4:
        advice = "; drop the alpha channel: image[..., :3]"
    elif image.ndim == 3 and image.shape[0] == 3 and image.shape[2] != 3:
        advice = "; channels come last: image.transpose(1, 2, 0)"
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"image must be [H, W, 3], got {image.shape}{advice}")
    if image.dtype != np.uint8:
        raise ValueError(
            f"image must be uint8 with values 0..255, got {image.dtype}; convert it first, "
            "e.g. (image * 255).round().astype('uint8') for floats in 0..1"
        )
    return image
