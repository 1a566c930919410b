"""Images given for prediction: files and arrays, checked."""

import io
import os
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from hrnet_jax.runtime import storage

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Reads an image file as uint8 RGB [H, W, 3], pixels as stored (no rotation by EXIF).

    Grey, palette and opaque RGBA files are converted without loss, with a warning.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it is not an image, damaged, or of an unsupported kind
            (16 bit, transparent, CMYK, ...).
    """
    if storage.in_store(path):
        data = storage.read_bytes(os.fspath(path))
        return decode_image(io.BytesIO(data), os.fspath(path))
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such image")
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not an image")
    return decode_image(path, str(path))


def decode_image(file: Path | BinaryIO, name: str) -> np.ndarray:
    """As `read_image`, of a file or stream that errors call `name`."""
    try:
        with Image.open(file) as image:
            image.load()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name}: cannot be read as an image: {error}") from error
    if image.mode == "RGB" and "transparency" not in image.info:
        return np.asarray(image)
    if image.mode not in ("L", "P", "LA", "RGBA", "RGB"):
        raise ValueError(f"{name}: mode {image.mode!r} is not supported; save it as 8-bit RGB")
    rgba = np.asarray(image.convert("RGBA"))
    if (rgba[..., 3] != 255).any():
        raise ValueError(f"{name}: has transparent pixels; put it on a background, save as RGB")
    warnings.warn(f"{name}: converted from mode {image.mode} to RGB", stacklevel=2)
    return rgba[..., :3]


def check_image(image: np.ndarray) -> np.ndarray:
    """The array itself if it is uint8 [H, W, 3]; else a ValueError that says how to correct it."""
    image = np.asarray(image)
    advice = ""
    if image.ndim == 4:
        advice = "; for several images pass a list of them"
    elif image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 1):
        advice = "; repeat the grey channel three times"
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
