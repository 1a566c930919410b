"""What --output names: a folder or a file, checked before any work."""

from etils import epath

from hrnet_jax.data.images.headers import IMAGE_SUFFIXES
from hrnet_jax.inference.video import VIDEO_SUFFIXES
from hrnet_jax.runtime import storage

# Names with these endings are files. A folder "lr0.01" has none of them.
_FILE_SUFFIXES = (
    *IMAGE_SUFFIXES, *VIDEO_SUFFIXES,
    ".csv", ".html", ".json", ".npz", ".onnx", ".pt", ".pth", ".safetensors", ".zip",
)  # fmt: skip


def folder(output: str) -> epath.Path:
    """The folder --output=OUTPUT, which need not exist.

    Raises:
        ValueError: for the name of a file.
    """
    path = storage.path(output)
    if path.is_dir():
        return path
    if path.exists() or path.suffix.lower() in _FILE_SUFFIXES:
        raise ValueError(f"--output={output} is the name of a file; name a folder for the results")
    return path


def file(output: str) -> epath.Path:
    """The file --output=OUTPUT, which need not exist.

    Raises:
        ValueError: for an existing folder.
    """
    path = storage.path(output)
    if path.is_dir():
        raise ValueError(f"--output={output} is a folder; name a file")
    return path


def image(output: str, name: str) -> epath.Path:
    """The image file --output=OUTPUT or, if OUTPUT has no image suffix, OUTPUT/NAME.

    Raises:
        ValueError: for an existing folder with an image suffix, or an existing file without one.
    """
    path = storage.path(output)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return file(output)
    return folder(output) / name
