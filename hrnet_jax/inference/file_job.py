"""Predicts image files, folders and videos; writes overlays, label maps and probabilities."""

import contextlib
import itertools
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from tqdm import tqdm

from hrnet_jax.data.images.headers import IMAGE_SUFFIXES
from hrnet_jax.data.images.read import read_image
from hrnet_jax.data.sources.files import not_hidden
from hrnet_jax.inference import multi_scale, visualize
from hrnet_jax.inference.label_form import FORMS, LabelForm
from hrnet_jax.inference.predictor import Predictor
from hrnet_jax.inference.video import VIDEO_SUFFIXES, Frame, VideoReader, VideoWriter
from hrnet_jax.runtime import storage
from hrnet_jax.runtime.progress import progress_bar

logger = logging.getLogger(__name__)
SUFFIXES = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
OUTPUTS = ("overlay", "labels", "probabilities")
# How files that this module writes end, among those that could be inputs.
_RESULTS = (
    "_overlay.png", "_overlay.mp4", *(f.suffix for f in FORMS.values() if f.suffix != ".png"),
)  # fmt: skip
# Images read ahead of the network, and results waiting to be written after it.
_DEPTH = 4


class Input(NamedTuple):
    """An input file and the name of its outputs, which may contain folders."""

    path: epath.Path
    name: str

    @property
    def is_video(self) -> bool:
        return self.path.suffix.lower() in VIDEO_SUFFIXES


def list_inputs(
    given: Sequence[str | os.PathLike], output: str | os.PathLike | None = None
) -> tuple[list[Input], list[Exception]]:
    """The files to predict, and errors for those that cannot be.

    Folders, also linked ones, are searched at any depth for images and videos by their suffix in
    any case, without hidden files. Other files in them are counted in the log. Outputs of files
    in a folder are named by their path within it, those of single files by their stem; those that
    would have the same name, by as much of their path as makes them differ.

    Args:
        given: files and folders.
        output: folder of the results. Results of an earlier run in it are not inputs.

    Returns:
        The inputs, and an error for each path that does not exist and each folder without images,
        or with a link to a folder above it.

    Raises:
        ValueError: if `given` is empty.
    """
    if not given:
        raise ValueError("no images given; name image files, video files or folders")
    inputs: dict[str, Input] = {}
    failures: list[Exception] = []
    for path in map(storage.path, given):
        if not path.exists():
            failures.append(FileNotFoundError(f"{path}: no such image or folder"))
            continue
        found = [(path, path.stem)]
        if path.is_dir():
            try:
                found = _in_folder(path, output)
            except (ValueError, OSError) as error:
                failures.append(error)
                continue
        for file, name in found:
            inputs.setdefault(_absolute(file), Input(file, name))
    return name_apart(list(inputs.values())), failures


def _in_folder(folder: epath.Path, output: str | os.PathLike | None) -> list[tuple]:
    """Files and names of their outputs; raises FileNotFoundError if there are none."""
    names = not_hidden(storage.names_below(folder, follow_links=True))
    usable = [n for n in names if os.path.splitext(n)[1].lower() in SUFFIXES]
    skipped = Counter(os.path.splitext(n)[1].lower() for n in set(names) - set(usable))
    if skipped:
        kinds = ", ".join(f"{suffix or 'none'} ({n})" for suffix, n in skipped.most_common(8))
        logger.warning(
            "skipping %d files in %s whose suffixes are not those of images or videos: %s",
            *(skipped.total(), folder, kinds),
        )
    is_result = lambda n: n.endswith(_RESULTS) and _within(folder / n, output)  # noqa: E731
    if results := [n for n in usable if output and is_result(n)]:
        logger.warning(
            "%d files in %s are results of an earlier run and are not predicted, e.g. %s",
            *(len(results), output, results[0]),
        )
        usable = [n for n in usable if n not in set(results)]
    if not usable:
        raise FileNotFoundError(f"{folder}: contains no images or videos ({', '.join(SUFFIXES)})")
    return [(folder / name, os.path.splitext(name)[0]) for name in usable]


def _within(path: epath.Path, folder: str | os.PathLike) -> bool:
    """Whether a file is in a folder, symbolic links resolved."""
    real = _absolute if storage.in_store(folder) else os.path.realpath
    return f"{real(path.parent)}/".startswith(f"{real(folder)}/")


def name_apart(inputs: list[Input]) -> list[Input]:
    """The inputs with names that differ: longer ones for those that have the same.

    First the folder's name is put before the file's, then that of the folder above it, and so on;
    files that differ only in their suffix keep it.
    """
    stems = [os.path.splitext(_absolute(i.path))[0] for i in inputs]
    same_stem = {stem for stem, n in Counter(stems).items() if n > 1}
    names, paths = [i.name for i in inputs], stems
    for k, item in enumerate(inputs):
        if stems[k] in same_stem:
            suffix = item.path.suffix
            names[k], paths[k] = names[k] + suffix, paths[k] + suffix
    while repeated := {name for name, n in Counter(names).items() if n > 1}:
        for k, name in enumerate(names):
            if name in repeated:
                names[k] = "/".join(paths[k].split("/")[-(name.count("/") + 2) :])
    return [Input(i.path, name) for i, name in zip(inputs, names, strict=True)]


def _absolute(path: str | os.PathLike) -> str:
    return os.fspath(storage.absolute(path)) if storage.in_store(path) else os.path.abspath(path)


def _ahead(function: Callable, items: Iterable) -> Iterator[Future]:
    """Futures of `function(item)`, in order; a few are computed ahead."""
    items = iter(items)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(function, i) for i in itertools.islice(items, _DEPTH)]
        while waiting:
            yield waiting.pop(0)
            waiting += [pool.submit(function, i) for i in itertools.islice(items, 1)]


class _Writer:
    """Calls functions that write files on other threads; errors are raised by later calls."""

    def __init__(self, pool: ThreadPoolExecutor):
        self._pool, self._waiting = pool, []

    def save(self, function: Callable, *args: Any) -> None:
        self._waiting.append(self._pool.submit(function, *args))
        if len(self._waiting) > 2 * _DEPTH:
            self._waiting.pop(0).result()

    def finish(self) -> None:
        while self._waiting:
            self._waiting.pop(0).result()


def _save_array(path: epath.Path, array: np.ndarray) -> None:
    with storage.written(path) as file:
        np.savez_compressed(file, probabilities=array.astype(np.float16))


@dataclass(frozen=True)
class FileJob:
    """The prediction of many files.

    Attributes:
        predictor: the network.
        output: folder of the results.
        outputs: what to write, from OUTPUTS. For an image NAME: NAME_overlay.png,
            NAME_labelIds.png (or in another form) and NAME_probabilities.npz (float16 [H, W, C]).
            For a video NAME: NAME_overlay.mp4, and the others per frame in the folder NAME.
        batch_size: neighboring images of one size that are predicted together.
        alpha: strength of the colors in overlays, 0 to 1.
        progress: show a progress bar.
        failures: errors of the inputs that could not be predicted.
        form: of the label files.

    Raises:
        ValueError: for unknown outputs, a batch size below 1, or a form that does not fit the
            network's classes.
    """

    predictor: Predictor
    output: epath.Path
    outputs: tuple[str, ...] = ("overlay", "labels")
    batch_size: int = 1
    alpha: float = 0.55
    progress: bool = True
    failures: list[Exception] = field(default_factory=list)
    form: LabelForm = FORMS["ids"]

    def __post_init__(self):
        if not self.outputs or set(self.outputs) - set(OUTPUTS):
            raise ValueError(f"unknown outputs {self.outputs}; known: {OUTPUTS}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if "labels" in self.outputs:
            self.form.ids(self.predictor.classes)

    def run(self, inputs: Sequence[Input]) -> int:
        """Predicts all inputs; returns how many succeeded. Other inputs are in `failures`.

        Raises:
            ValueError: if a label file would replace an input.
        """
        self._check_paths(inputs)
        videos = [i for i in inputs if i.is_video]
        images = [i for i in inputs if not i.is_video]
        done = 0
        with ThreadPoolExecutor(2) as pool:
            writer = _Writer(pool)
            hidden = not (self.progress and images)
            with progress_bar(total=len(images), unit="image", disable=hidden) as bar:
                for group in self._groups(images, bar):
                    done += self._predict_images(group, writer)
                    bar.update(len(group))
            writer.finish()
            for video in videos:
                done += self._predict_video(video, writer)
        return done

    def _check_paths(self, inputs: Sequence[Input]) -> None:
        files = {storage.absolute(i.path): i for i in inputs if "labels" in self.outputs}
        for item in files.values():
            path = storage.absolute(self.output / (item.name + self.form.suffix))
            if path in files:
                raise ValueError(
                    f"the label file {path} would replace an input; choose another output folder "
                    f"or suffix than {self.form.suffix!r}"
                )

    def _groups(self, images: list[Input], bar: tqdm) -> Iterator[list[tuple[Input, np.ndarray]]]:
        """Consecutive images of one size, at most `batch_size`; unreadable files are failures."""
        group: list[tuple[Input, np.ndarray]] = []
        image_range = self.predictor.classes.image_range
        results = _ahead(lambda i: read_image(i.path, image_range), images)
        for item, future in zip(images, results, strict=True):
            try:
                image = future.result()
            except (ValueError, OSError) as error:
                self.failures.append(error)
                bar.update()
                continue
            if group and (group[0][1].shape != image.shape or len(group) == self.batch_size):
                yield group
                group = []
            group.append((item, image))
        if group:
            yield group

    def _predict_images(self, group: list[tuple[Input, np.ndarray]], writer: _Writer) -> int:
        try:
            results = self._predict([image for _, image in group])
            for (item, image), (labels, probabilities) in zip(group, results, strict=True):
                self._save(item.name, labels, probabilities, writer)
                if "overlay" in self.outputs:
                    path = self.output / f"{item.name}_overlay.png"
                    writer.save(self._save_overlay, path, image, labels)
        except (ValueError, jax.errors.JaxRuntimeError) as error:
            names = ", ".join(str(item.path) for item, _ in group)
            self.failures.append(ValueError(f"{names}: {error}"))
            return 0
        return len(group)

    def _predict_video(self, item: Input, writer: _Writer) -> int:
        try:
            with contextlib.ExitStack() as stack:
                frames = stack.enter_context(VideoReader(item.path))
                overlay = None
                if "overlay" in self.outputs:
                    path = self.output / f"{item.name}_overlay.mp4"
                    file = stack.enter_context(storage.written(path))
                    overlay = stack.enter_context(VideoWriter(file, frames.rate, frames.time_base))
                bar = stack.enter_context(
                    progress_bar(
                        total=frames.num_frames,
                        unit="frame",
                        desc=item.path.name,
                        disable=not self.progress,
                    )
                )
                if not self._predict_frames(item, iter(frames), overlay, writer, bar):
                    raise ValueError(f"{item.path}: the video has no frames")
            writer.finish()
        except (ValueError, OSError, jax.errors.JaxRuntimeError) as error:
            self.failures.append(error)
            return 0
        return 1

    def _predict_frames(self, item, frames, overlay, writer, bar) -> int:
        count = 0
        while batch := list(itertools.islice(frames, self.batch_size)):
            results = self._predict([frame.image for frame in batch])
            for frame, (labels, probabilities) in zip(batch, results, strict=True):
                self._save(f"{item.name}/{count:06}", labels, probabilities, writer)
                if overlay:
                    drawn = self._overlay(frame.image, labels)
                    overlay.add(Frame(drawn, frame.time, frame.duration))
                count += 1
            bar.update(len(batch))
        return count

    def _predict(self, images: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """Labels [H, W] and, if they are written, probabilities [H, W, C] of images of one size."""
        # Smaller groups are padded, since another batch size would be compiled again.
        batch = np.stack([*images, *[images[-1]] * (self.batch_size - len(images))])
        height, width = batch.shape[1:3]
        p = self.predictor
        arguments = p.model, p.variables, p.place(p.pad(batch)), p.tta
        # The caller's program may have set a mesh of its own.
        with jax.set_mesh(p.mesh):
            if "probabilities" not in self.outputs:
                labels = np.asarray(multi_scale.predict_labels(*arguments))
                return [(one, None) for one in labels[: len(images), :height, :width]]
            probabilities = multi_scale.predict_probabilities(*arguments)
            labels = np.asarray(multi_scale.labels_of(probabilities))
        cut = np.s_[:, :height, :width]
        pairs = zip(labels[cut], np.asarray(probabilities)[cut], strict=True)
        return list(itertools.islice(pairs, len(images)))

    def _overlay(self, image: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return visualize.overlay(image, labels, self.predictor.classes, self.alpha)

    def _save_overlay(self, path: epath.Path, image: np.ndarray, labels: np.ndarray) -> None:
        visualize.save(path, self._overlay(image, labels))

    def _save_labels(self, path: epath.Path, labels: np.ndarray) -> None:
        storage.write_bytes(path, self.form.encode(labels, self.predictor.classes))

    def _save(self, name, labels, probabilities, writer: _Writer) -> None:
        if "labels" in self.outputs:
            path = self.output / (name + self.form.suffix)
            writer.save(self._save_labels, path, labels)
        if probabilities is not None:
            writer.save(_save_array, self.output / f"{name}_probabilities.npz", probabilities)
