"""Pixels of each class in every label of a source, for sampling by class.

Tiles store the counts. For files they are counted once and kept in the user's cache, in a file
whose name is a hash of the label files' names, sizes and times.
"""

import hashlib
import logging
import os
import tempfile
from pathlib import Path

import numpy as np

from hrnet_jax.data.pipeline import audit
from hrnet_jax.data.sources.source import Source
from hrnet_jax.runtime import storage

logger = logging.getLogger(__name__)


def class_counts(source: Source, *, progress: bool = True) -> np.ndarray:
    """Pixels of each class in each label, int64 [samples, classes].

    Raises:
        FileNotFoundError, ValueError: naming a file that is missing or damaged.
    """
    if (known := source.records.id_counts) is not None:
        return _by_class(source, known)
    path = cache_folder() / f"class_counts_{_fingerprint(source)}.npy"
    if path.is_file():
        logger.info("classes counted before: %s", path)
        return _by_class(source, np.load(path))
    indices = range(len(source))
    count = lambda index: audit.count_ids(source, index)  # noqa: E731
    counts = np.array(list(audit.parallel(count, indices, "counting classes", progress)))
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written under another name first: no process reads an incomplete file. Several processes may
    # count at the same time; the last one replaces the file of the others.
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        np.save(file, counts.astype(np.uint32))
    os.replace(file.name, path)
    return _by_class(source, counts)


def cache_folder() -> Path:
    """The folder of the counts: hrnet_jax in $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hrnet_jax"


def _by_class(source: Source, counts: np.ndarray) -> np.ndarray:
    """Counts of raw ids [samples, 256] -> of classes [samples, classes]."""
    return np.array([audit.count_classes(source, ids) for ids in counts])


def _fingerprint(source: Source) -> str:
    digest = hashlib.sha256()
    if source.label_paths:
        for path, stamp in zip(source.label_paths, storage.stamps(source.label_paths), strict=True):
            digest.update(f"{path} {stamp}\n".encode())
    else:
        for index in range(len(source)):
            digest.update(f"{source.label_name(index)}\n".encode())
    return digest.hexdigest()[:32]
