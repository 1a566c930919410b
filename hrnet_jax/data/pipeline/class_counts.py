"""How many pixels of each class every label of a source holds; counted once and kept.

Sampling by class needs it. Tiles bring the counts along; for files they are counted at the first
use and kept in the user's cache, under a name made of the files' names, sizes and times.
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
        FileNotFoundError, ValueError: naming a file that is gone or not sound.
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
    # Written under another name first: nobody reads half of it, and the last of several wins.
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        np.save(file, counts.astype(np.uint32))
    os.replace(file.name, path)
    return _by_class(source, counts)


def cache_folder() -> Path:
    """Where counts are kept: hrnet_jax in $XDG_CACHE_HOME or ~/.cache."""
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
