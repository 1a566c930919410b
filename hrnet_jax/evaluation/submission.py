"""Predictions for a test server: label PNGs in its form, checked and packed into a zip file."""

import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from etils import epath

from hrnet_jax.data.sources.source import Source
from hrnet_jax.inference.label_form import FORMS, LabelForm
from hrnet_jax.runtime import storage


class Writer:
    """Writes predictions on another thread; a PNG takes as long to encode as a small network runs.

    Use it as a context manager: leaving it waits for the files and raises the first error.

    Raises:
        ValueError: if the form does not fit the classes of the source.
    """

    def __init__(
        self, folder: str | os.PathLike, source: Source, form: LabelForm = FORMS["cityscapes"]
    ):
        self.folder, self.source, self.form = storage.path(folder), source, form
        form.ids(source.classes)
        self._worker = ThreadPoolExecutor(1)
        self._waiting: list[Any] = []

    def add(self, index: int, predictions: np.ndarray) -> None:
        """Writes the predicted train ids [H, W] of the sample `index` of the source."""
        path = self.folder / (self.source.ids[index] + self.form.suffix)
        self._waiting.append(self._worker.submit(self._write, path, predictions))

    def _write(self, path: epath.Path, predictions: np.ndarray) -> None:
        storage.write_bytes(path, self.form.encode(predictions, self.source.classes))

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        self._worker.shutdown(cancel_futures=kind is not None)
        if kind is None:
            for future in self._waiting:
                future.result()


def check_count(source: Source, form: LabelForm) -> None:
    """Raises a ValueError if the server requires another number of images than the source has.

    It would reject them only after the upload.
    """
    required = form.counts.get((source.name.removeprefix("tfds_"), source.split))
    if required and len(source) != required:
        raise ValueError(
            f"{len(source)} images, but the server requires all {required} of "
            f"{source.name} {source.split}"
        )


def check(folder: str | os.PathLike, source: Source, form: LabelForm = FORMS["cityscapes"]) -> None:
    """Checks predictions for what a test server would reject or count as wrong.

    Every sample needs one PNG of the form, named after it, with the size of its image. The folder
    may contain nothing else.

    Raises:
        ValueError: naming the first files that are missing, unexpected or wrong.
    """
    check_count(source, form)
    folder = storage.path(folder)
    expected = {i + form.suffix for i in source.ids}
    found = set(storage.names_below(folder))
    for what, names in (("missing", expected - found), ("unexpected", found - expected)):
        if names:
            raise ValueError(
                f"{len(names)} files {what} in {folder}: {', '.join(sorted(names)[:5])}"
            )
    for index, sample_id in enumerate(source.ids):
        path = folder / (sample_id + form.suffix)
        data = storage.read_bytes(str(path))
        if problem := form.problem(data, source.records.size(index), source.classes):
            raise ValueError(f"{path}: {problem}")


def pack(
    folder: str | os.PathLike,
    source: Source,
    path: str | os.PathLike,
    form: LabelForm = FORMS["cityscapes"],
) -> epath.Path:
    """Checks the predictions in `folder` and writes them to the zip file `path`.

    All files are in one folder of it, which the form names.

    Returns:
        `path`.

    Raises:
        ValueError: as `check`, or if two files of different folders have the same name.
    """
    check(folder, source, form)
    names = [os.path.basename(i) + form.suffix for i in source.ids]
    if len(set(names)) < len(names):
        twice = sorted({n for n in names if names.count(n) > 1})
        raise ValueError(f"file names that occur in more than one folder: {', '.join(twice[:5])}")
    # Stored uncompressed: PNGs do not get smaller.
    with (
        storage.written(path) as partial,
        zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive,
    ):
        for sample_id, name in zip(source.ids, names, strict=True):
            data = storage.read_bytes(str(storage.path(folder) / (sample_id + form.suffix)))
            archive.writestr(f"{form.folder}/{name}" if form.folder else name, data)
    return storage.path(path)
