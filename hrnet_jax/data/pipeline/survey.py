"""What the files of a split hold: their headers, and the pixels of each id in the labels.

Both are read once and kept in the user's cache, in one file for each dataset folder. An entry
counts while its files have the same size and time, so new and changed files alone are read again.
Where the records store these counts (tiles), nothing is read.
"""

import dataclasses
import hashlib
import io
import json
import logging
import os
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hrnet_jax.data.images import decode
from hrnet_jax.data.images.headers import Header, check_pair, read_header
from hrnet_jax.data.pipeline.parallel import parallel
from hrnet_jax.data.sources.source import Source, spread_indices
from hrnet_jax.runtime import storage

logger = logging.getLogger(__name__)

# Part of the names of the cached files: with another number they are made again.
_FORMAT = 2


class Facts(NamedTuple):
    """What is known about a sample.

    Attributes:
        image: header of the image file, without `alpha` once it is known to be opaque; None if
            samples are not single files.
        label: header of the label file; None as above.
        ids: int64 [k, 2], each raw id in the label and its pixels; None if not counted.
    """

    image: Header | None = None
    label: Header | None = None
    ids: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Team:
    """The processes that share the work; each of them makes the same calls.

    Attributes:
        process: number of this one.
        count: how many there are.
        gather: a value -> the values of all processes, by their numbers.
    """

    process: int = 0
    count: int = 1
    gather: Callable[[Any], list[Any]] = lambda value: [value]


ALONE = Team()


def survey(
    source: Source, *, max_labels: int = 0, progress: bool = True, team: Team = ALONE
) -> list[Facts]:
    """The facts about each sample of a split with labels.

    Args:
        source: the split.
        max_labels: count the ids of this many labels, spread evenly over the split; 0: of all.
        progress: show bars with rate and time left.
        team: the processes that share the work. Those with other files in their cache than the
            rest do it alone.

    Raises:
        FileNotFoundError, ValueError: naming the file that is missing, damaged or refused, or a
            label of another size than its image; the same in all processes.
    """
    chosen = spread_indices(len(source), max_labels)
    if (stored := source.records.id_counts) is not None:
        facts = [Facts()] * len(source)
        for index in chosen:
            facts[index] = Facts(ids=_sparse(stored[index]))
        return facts
    cache = _Cache(source)
    facts = cache.read()
    work = _Work(source, facts, team, progress)
    before = list(facts)
    try:
        if source.image_paths:
            work.read_headers()
            _check_headers(source, facts)
            work.check_alpha()
        work.count_ids(chosen)
    except BaseException:  # also Ctrl-C: what was read until then is kept
        cache.write(facts)
        raise
    changed = any(new is not old for new, old in zip(facts, before, strict=True))
    if any(team.gather(changed)):
        cache.share(facts, team)
    return facts


def _check_headers(source: Source, facts: Sequence[Facts]) -> None:
    """Raises ValueError, naming the file, for images and labels that are refused or do not fit."""
    classes = source.records.classes
    image_range = classes.image_range if classes else None
    rows = zip(source.image_paths, source.label_paths, facts, strict=True)
    for image_path, label_path, (image, label, _) in rows:
        check_pair(image, label, image_path, label_path, image_range)


def _sparse(counts: np.ndarray) -> np.ndarray:
    """Pixels of each raw id -> int64 [k, 2], the ids that are there and their pixels."""
    ids = np.flatnonzero(counts)
    return np.stack([ids, counts[ids].astype(np.int64)], -1)


class _Work:
    """Fills in what is not known yet."""

    def __init__(self, source: Source, facts: list[Facts], team: Team, progress: bool):
        self._source, self._facts, self._team = source, facts, team
        self._progress = progress and team.process == 0

    def read_headers(self) -> None:
        """Reads those of image and label files."""
        images, labels = self._source.image_paths, self._source.label_paths

        def read(index: int) -> tuple[Header, Header]:
            return read_header(images[index]), read_header(labels[index])

        todo = [i for i, known in enumerate(self._facts) if known.image is None]
        for index, pair in self._each(read, todo, "checking files").items():
            self._facts[index] = Facts(*pair, self._facts[index].ids)

    def check_alpha(self) -> None:
        """Decodes images with alpha, which are refused unless they are opaque."""

        def check(index: int) -> None:
            self._source.records.open(index).image()

        todo = [i for i, known in enumerate(self._facts) if known.image.alpha]
        done: dict[int, None] = {}
        try:
            self._each(check, todo, "checking alpha", done)
        finally:
            for index in done:
                opaque = dataclasses.replace(self._facts[index].image, alpha=False)
                self._facts[index] = self._facts[index]._replace(image=opaque)

    def count_ids(self, chosen: Sequence[int]) -> None:
        """Counts the ids in the chosen labels."""

        def count(index: int) -> np.ndarray:
            return _sparse(decode.count_ids(self._source.records.label(index)))

        todo = [i for i in chosen if self._facts[i].ids is None]
        done: dict[int, np.ndarray] = {}
        try:
            self._each(count, todo, "counting labels", done)
        finally:
            for index, ids in done.items():
                self._facts[index] = self._facts[index]._replace(ids=ids)

    def _each(
        self,
        function: Callable[[int], Any],
        todo: list[int],
        what: str,
        done: dict[int, Any] | None = None,
    ) -> dict[int, Any]:
        """The results by index, added to `done` as they come; each process makes a part of them."""
        team, done = self._team, {} if done is None else done
        shared = len(set(team.gather(hash(tuple(todo))))) == 1
        mine = todo[team.process :: team.count] if shared else todo
        error = None
        try:
            results = parallel(function, mine, what, self._progress)
            for index, result in zip(mine, results, strict=True):
                done[index] = result
        except (OSError, ValueError) as caught:
            error = caught
        # Each process raises the first error of all, so that none waits for another.
        for part, failure in team.gather((done if shared else {}, error)):
            done.update(part)
            error = error or failure
        if error is not None:
            raise error
        return done


class _Cache:
    """The cached facts about the samples of one dataset folder."""

    def __init__(self, source: Source):
        samples = [source.records.files(index) for index in range(len(source))]
        paths = list(dict.fromkeys(path for files in samples for path in files))
        stamps = dict(zip(paths, map(str, storage.stamps(paths)), strict=True))
        full = {p: p if storage.in_store(p) else os.path.abspath(p) for p in paths}
        # Samples of one shard differ by their names.
        places = ("" if source.image_paths else source.image_name(i) for i in range(len(source)))
        self._keys = [
            "\0".join([*(full[f] for f in files), place])
            for files, place in zip(samples, places, strict=True)
        ]
        self._stamps = ["\0".join(stamps[f] for f in files) for files in samples]
        folder = os.path.commonpath({os.path.dirname(p) for p in full.values()})
        fields = [field.name for field in dataclasses.fields(Header)]
        identity = json.dumps([_FORMAT, fields, folder, source.records.label_format])
        digest = hashlib.sha256(identity.encode()).hexdigest()[:32]
        self.path = Path(storage.user_cache()) / f"survey_{digest}.npz"

    def read(self) -> list[Facts]:
        """The facts that are still valid, by index of the sample."""
        stored = _read(self.path)
        found = (stored.get(key, ("", Facts())) for key in self._keys)
        return [
            facts if stamp == now else Facts()
            for now, (stamp, facts) in zip(self._stamps, found, strict=True)
        ]

    def share(self, facts: list[Facts], team: Team) -> None:
        """Writes the facts, once where processes have the same cache folder."""
        if team.process == 0:
            self.write(facts)
        if team.count > 1:
            team.gather(None)  # process 0 has written
            if team.process > 0 and _known(self.read()) < _known(facts):
                self.write(facts)

    def write(self, facts: list[Facts]) -> None:
        """Adds the facts to the file; a failure is logged."""
        # Another program may have added samples meanwhile.
        entries = _read(self.path)
        entries |= dict(zip(self._keys, zip(self._stamps, facts, strict=True), strict=True))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Under another name first: no process reads an incomplete file, and of several that
            # write at the same time the last one replaces the file of the others.
            with tempfile.NamedTemporaryFile(dir=self.path.parent, delete=False) as file:
                file.write(_encode(entries))
            os.replace(file.name, self.path)
        except OSError as error:
            logger.warning("what was read of the labels is not kept for the next run: %s", error)


def _known(facts: list[Facts]) -> int:
    return sum(f.ids is not None for f in facts)


def _encode(entries: dict[str, tuple[str, Facts]]) -> bytes:
    """Key -> stamps and facts, as the bytes of an .npz file."""
    headers: dict[Header | None, int] = {None: -1}  # few differ
    places, lengths, rows = [], [], [np.zeros((0, 2), np.int64)]
    for _, facts in entries.values():
        pair = [headers.setdefault(h, len(headers) - 1) for h in (facts.image, facts.label)]
        places.append(pair)
        lengths.append(-1 if facts.ids is None else len(facts.ids))
        if facts.ids is not None:
            rows.append(facts.ids)
    names = [[key, stamp] for key, (stamp, _) in entries.items()]
    fields = [dataclasses.astuple(header) for header in headers if header is not None]
    file = io.BytesIO()
    np.savez_compressed(
        file,
        text=np.frombuffer(json.dumps([names, fields]).encode(), np.uint8),
        headers=np.array(places, np.int32),
        lengths=np.array(lengths, np.int32),
        ids=np.concatenate(rows).astype(np.uint32),
    )
    return file.getvalue()


def _read(path: Path) -> dict[str, tuple[str, Facts]]:
    """The inverse of `_encode`; empty if there is no such file, or it is damaged."""
    if not path.is_file():
        return {}
    try:
        with np.load(path) as arrays:
            names, fields = json.loads(arrays["text"].tobytes())
            headers, lengths = arrays["headers"].tolist(), arrays["lengths"]
            ids = arrays["ids"].astype(np.int64)
        known = [*(Header(*values) for values in fields), None]  # -1 is the last one
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("%s is damaged and is made again: %s", path, error)
        return {}
    ends = np.cumsum(np.maximum(lengths, 0))
    counted = [
        ids[end - length : end] if length >= 0 else None
        for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)
    ]
    return {
        key: (stamp, Facts(known[image], known[label], rows))
        for (key, stamp), (image, label), rows in zip(names, headers, counted, strict=True)
    }
