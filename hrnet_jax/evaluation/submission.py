"""Predictions for a test server: label-id PNGs, checked and packed into a zip file."""

import io
import os
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from hrnet_jax.data.sources.source import Source
from hrnet_jax.inference import visualize
from hrnet_jax.runtime import storage

SUFFIX = "_pred_labelIds.png"
# Number of files that the test server requires; it rejects fewer after the upload.
OFFICIAL_COUNTS = {("cityscapes", "test"): 1525}


def file_name(sample_id: str) -> str:
    """Path of a prediction within its folder, with the suffix the Cityscapes script looks for."""
    return sample_id + SUFFIX


class Writer:
    """Writes predictions on another thread; a PNG takes as long to encode as a small network runs.

    Use it as a context manager: leaving it waits for the files and raises the first error.
    """

    def __init__(self, folder: str | os.PathLike, source: Source):
        self.folder, self.source = storage.path(folder), source
        self._worker = ThreadPoolExecutor(1)
        self._waiting: list[Any] = []

    def add(self, index: int, predictions: np.ndarray) -> None:
        """Writes the predicted train ids [H, W] of the sample `index` of the source."""
        raw = visualize.to_label_ids(predictions, self.source.classes)
        path = self.folder / file_name(self.source.ids[index])
        self._waiting.append(self._worker.submit(visualize.save, path, raw))

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        self._worker.shutdown(cancel_futures=kind is not None)
        if kind is None:
            for future in self._waiting:
                future.result()


def _problem(path: epath.Path, size: tuple[int, int], label_ids: Sequence[int]) -> str:
    """What is wrong with the PNG of a prediction, or ""; size is (width, height)."""
    with Image.open(io.BytesIO(storage.read_bytes(str(path)))) as image:
        mode, kind = ("L", "8-bit gray") if max(label_ids) <= 255 else ("I;16", "16-bit gray")
        if image.mode != mode:
            return f"{path}: mode {image.mode!r}, must be {mode!r} ({kind})"
        if image.size != size:
            found = f"{image.width}x{image.height}"
            return f"{path}: {found} pixels, but its image has {size[0]}x{size[1]}"
        unknown = sorted(set(np.unique(np.asarray(image)).tolist()) - set(label_ids))
    return f"{path}: values {unknown} are not label ids of the classes" if unknown else ""


def check(folder: str | os.PathLike, source: Source) -> None:
    """Checks predictions for what a test server would reject or count as wrong.

    Every sample needs one gray PNG (8 bits, 16 for ids above 255) with the name of `file_name`, the
    size of its image and label ids of the classes (not train ids). The folder may contain nothing
    else.

    Raises:
        ValueError: naming the first files that are missing, unexpected or wrong.
    """
    folder = storage.path(folder)
    expected_count = OFFICIAL_COUNTS.get((source.name.removeprefix("tfds_"), source.split))
    if expected_count and len(source) != expected_count:
        raise ValueError(
            f"{len(source)} images, but the server requires all {expected_count} of "
            f"{source.name} {source.split}"
        )
    expected = {file_name(i) for i in source.ids}
    found = set(storage.names_below(folder))
    for what, names in (("missing", expected - found), ("unexpected", found - expected)):
        if names:
            raise ValueError(
                f"{len(names)} files {what} in {folder}: {', '.join(sorted(names)[:5])}"
            )
    for index, sample_id in enumerate(source.ids):
        height, width = source.records.size(index)
        path = folder / file_name(sample_id)
        if problem := _problem(path, (width, height), source.classes.first_ids):
            raise ValueError(problem)


def pack(folder: str | os.PathLike, source: Source, path: str | os.PathLike) -> epath.Path:
    """Checks the predictions in `folder` and writes them to the zip file `path`, without folders.

    Returns:
        `path`.

    Raises:
        ValueError: as `check`, or if two files of different folders have the same name.
    """
    check(folder, source)
    names = [os.path.basename(file_name(i)) for i in source.ids]
    if len(set(names)) < len(names):
        twice = sorted({n for n in names if names.count(n) > 1})
        raise ValueError(f"file names that occur in more than one folder: {', '.join(twice[:5])}")
    # Stored uncompressed: PNGs do not get smaller.
    with (
        storage.written(path) as partial,
        zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive,
    ):
        for sample_id, name in zip(source.ids, names, strict=True):
            archive.writestr(
                name, storage.read_bytes(str(storage.path(folder) / file_name(sample_id)))
            )
    return storage.path(path)
