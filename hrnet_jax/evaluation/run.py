"""Evaluates a checkpoint on a split and writes metrics, comparison, predictions and a report.

`SegmentationRun` has the steps for segmentation; `classify` is all of it for classification.
"""

import collections
import contextlib
import dataclasses
import functools
import json
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from hrnet_jax.checkpoints import foreign, weights_file
from hrnet_jax.checkpoints.load import Checkpoint, load_checkpoint
from hrnet_jax.data import open_images
from hrnet_jax.data.pipeline import audit, odd_labels
from hrnet_jax.data.pipeline.segmentation import sorted_by_size
from hrnet_jax.data.pipeline.survey import Team
from hrnet_jax.data.sources import selection
from hrnet_jax.data.sources.image_folder import ImageClasses
from hrnet_jax.data.sources.source import Classes, Source
from hrnet_jax.evaluation import classification, metrics, report, segmentation, submission
from hrnet_jax.inference.label_form import LabelForm, form_of_dataset, get_form
from hrnet_jax.inference.multi_scale import SINGLE_SCALE, TestTimeAugmentation
from hrnet_jax.inference.onnx_file import OnnxFile
from hrnet_jax.models import create_model
from hrnet_jax.runtime import distributed, sharding, storage


@dataclasses.dataclass(frozen=True)
class Options:
    """How a checkpoint is evaluated, and what is written.

    Attributes:
        output: folder of the results.
        data_root: folder of the dataset; "" for the one used in training.
        split: the split to evaluate; "" for the one evaluated during training.
        data_name: another dataset than the one used in training; "" for that one.
        class_file: of the other dataset; "" for its own classes.
        batch_size: images per step, over all devices.
        size_step: pad images to multiples of this, see `segmentation.evaluate`; 0 for the one used
            in training.
        max_images: evaluate only so many images, evenly spread; 0 for all.
        tta: test-time augmentation.
        space: number of devices that divide the height of each image.
        num_overlays: number of best and of worst images that are drawn at full size.
        compare: another checkpoint, which is evaluated in the same way, or the output folder of an
            earlier evaluation of the same images; "" for none.
        pytorch_file: arguments of `load_checkpoint` for a PyTorch file in `compare`.
        save_predictions: write label PNGs to output/predictions.
        submission: also check them and write output/submission.zip.
        label_form: of label_form.FORMS; "" for that of the dataset's test server.
        label_suffix: of the label PNGs; "" for that of the form.

    Raises:
        ValueError: for a negative number of overlays or size_step, or an unknown form.
    """

    output: epath.Path
    data_root: str = ""
    split: str = ""
    data_name: str = ""
    class_file: str = ""
    batch_size: int = 1
    size_step: int = 0
    max_images: int = 0
    tta: TestTimeAugmentation = SINGLE_SCALE
    space: int = 1
    num_overlays: int = 4
    compare: str = ""
    pytorch_file: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    save_predictions: bool = False
    submission: bool = False
    label_form: str = ""
    label_suffix: str = ""

    def __post_init__(self):
        for name in ("num_overlays", "size_step"):
            if (value := getattr(self, name)) < 0:
                raise ValueError(f"{name} must be 0 or more, got {value}")
        self.form_for("")
        if (self.label_form or self.label_suffix) and not self.writes_predictions:
            raise ValueError(
                "--label_form and --label_suffix are for label files; write them with "
                "--save_predictions or --submission"
            )

    def form_for(self, dataset: str) -> LabelForm:
        """The form of the label PNGs of a dataset."""
        name = self.label_form or form_of_dataset(dataset)
        return get_form(name, self.label_suffix)

    @property
    def writes_predictions(self) -> bool:
        return self.save_predictions or self.submission


def _write_json(path: epath.Path, contents: dict[str, Any]) -> None:
    storage.write_text(path, json.dumps(contents, indent=1, allow_nan=False) + "\n")


# ---- segmentation


class SegmentationRun:
    """The evaluation of a segmentation checkpoint: `evaluate`, `compare`, `write`, in this order.

    All processes of a job take part in each step.

    Attributes:
        checkpoint: what is evaluated; of `checkpoint_of` for an ONNX file.
        options: how.
        file: the ONNX file that predicts in place of the checkpoint, or None.
        source: the split.
        compared: the checkpoint to compare with; None for an earlier evaluation or no comparison.
        doubts: what may be wrong in the labels.
    """

    def __init__(self, checkpoint: Checkpoint, options: Options, file: OnnxFile | None = None):
        """Opens the split and checks everything that can be checked before the network runs.

        Raises:
            FileNotFoundError, ValueError: for a dataset, split, classes or comparison that do not
                exist or do not fit.
        """
        self.checkpoint, self.options, self.file = checkpoint, options, file
        self.source = _open_split(checkpoint, options)
        if file is None:
            self._evaluate = _evaluator(checkpoint, self.source, options)
        else:
            _check_classes(checkpoint, self.source)
            check_file(file, options)
            _check_sizes(file, self.source)
            self._evaluate = functools.partial(
                segmentation.evaluate_function, file.predict_labels, batch_size=options.batch_size
            )
        _check_labels(self.source, options)
        self.compared: Checkpoint | None = None
        self._other_counts: np.ndarray | None = None
        self._form = options.form_for(self.source.name)
        if options.writes_predictions:
            self._form.ids(self.source.classes)  # raises now what would end the run later
        if options.submission:
            submission.check_count(self.source, self._form)
        if options.compare:
            self._other_counts = _earlier_counts(options.compare, self.source)
            if self._other_counts is None:
                self.compared = load_checkpoint(options.compare, **options.pytorch_file)
                _check_classes(self.compared, self.source)
        self._gallery = report.Gallery()
        # A damaged file or an unknown id would end a long evaluation late.
        self.doubts = _audit(self.source)

    def evaluate(self) -> segmentation.EvalResult:
        """Evaluates the split; writes predictions and submission.zip where the options say so."""
        folder = self.options.output / "predictions"
        with contextlib.ExitStack() as stack:
            writer = None
            if self.options.writes_predictions:
                writer = stack.enter_context(submission.Writer(folder, self.source, self._form))

            def on_batch(batch, predictions) -> None:
                rows = zip(batch["index"], batch["image"], batch["label"], predictions, strict=True)
                for i, image, label, prediction in rows:
                    if i >= 0 and self.source.has_labels:
                        self._gallery.add(int(i), self.source.ids[i], image, label, prediction)
                    if i >= 0 and writer:
                        writer.add(int(i), prediction)

            result = self._evaluate(self.source, on_batch=on_batch)
        multihost_utils.sync_global_devices("predictions are written")
        if self.options.submission and jax.process_index() == 0:
            archive = self.options.output / "submission.zip"
            submission.pack(folder, self.source, archive, self._form)
        return result

    def compare(self, result: segmentation.EvalResult) -> dict[str, Any] | None:
        """Evaluates the other checkpoint if necessary; the result of `metrics.compare`, or None."""
        counts = self._other_counts
        if self.compared is not None:
            counts = _evaluator(self.compared, self.source, self.options)(self.source).image_counts
        if counts is None:
            return None
        return metrics.compare(result.image_counts, counts, self.source.classes.names)

    def write(
        self,
        result: segmentation.EvalResult,
        intervals: dict[str, Any] | None,
        comparison: dict[str, Any] | None,
    ) -> list[str]:
        """Writes metrics.json, per_image.csv, comparison.json, report.html and overlays.

        Args:
            result: of `evaluate`; for a split without labels nothing is written.
            intervals: of `metrics.intervals`.
            comparison: of `compare`.

        Returns:
            The names of all files and folders of the evaluation, predictions included.
        """
        written = ["predictions/"] if self.options.writes_predictions else []
        if self.options.submission:
            written.append(f"submission.zip ({len(self.source)} files checked)")
        if not self.source.has_labels:
            return written
        thumbnails = _gather_thumbnails(self._gallery, result.ranking().tolist())
        if jax.process_index() == 0:
            self._write_metrics(result, intervals, comparison)
            page = self._report(result, intervals, comparison, thumbnails)
            storage.write_text(self.options.output / "report.html", page)
        chosen = _choose_overlays(result, self.options.num_overlays)
        self._save_overlays(result, chosen)
        files = ["metrics.json", segmentation.IMAGE_METRICS, "report.html"]
        return [
            *written,
            *files,
            f"overlays/ ({len(chosen)} images)",
            *(["comparison.json"] if comparison else []),
        ]

    def _write_metrics(self, result, intervals, comparison) -> None:
        output, names = self.options.output, self.source.classes.names
        contents = report.metrics_json(
            result,
            step=self.checkpoint.step,
            variant=self.checkpoint.metadata["model"]["variant"],
            intervals=intervals,
        )
        _write_json(output / "metrics.json", contents)
        segmentation.save_image_metrics(output / segmentation.IMAGE_METRICS, result, names)
        if comparison:
            _write_json(output / "comparison.json", {"other": self.options.compare, **comparison})

    def _report(self, result, intervals, comparison, thumbnails) -> str:
        about, checkpoint = self.checkpoint.metadata["model"], self.checkpoint
        statistics = about.get("image_statistics")
        return report.build_report(
            title=f"{about['variant']} on {self.source.name} {self.source.split}",
            subtitle=f"step {checkpoint.step:,} of {checkpoint.path}; {self.options.tta}; "
            f"{f'image_statistics={statistics:g}; ' if statistics else ''}"
            f"{result.seconds:.0f} s on {self._where()}",
            result=result,
            classes=self.source.classes,
            intervals=intervals,
            comparison=comparison,
            other=self.options.compare,
            thumbnails=thumbnails,
            curves=report.read_log(storage.path(checkpoint.path).parent.parent / "log.jsonl"),
        )

    def _where(self) -> str:
        """What has computed the predictions."""
        if self.file is not None:
            return f"{self.file.runtime}, {self.file.about['dtype']}"
        return f"{jax.device_count()} {jax.default_backend()} device(s)"

    def _save_overlays(self, result: segmentation.EvalResult, chosen: dict[str, int]) -> None:
        """Predicts the chosen images again; each process draws the images that it has loaded."""
        folder = self.options.output / "overlays"
        # Before any process can draw one: all take part in the prediction below.
        if jax.process_index() == 0:
            report.remove_overlays(folder)
        places, images = list(chosen), list(chosen.values())
        miou, accuracy, source = result.image_miou, result.image_accuracy, self.source

        def save(batch, predictions) -> None:
            rows = zip(batch["index"], batch["image"], batch["label"], predictions, strict=True)
            for k, *maps in rows:
                if k >= 0:
                    i = images[k]
                    values = float(miou[i]), float(accuracy[i])
                    example = report.Example(source.ids[i], *maps, *values)
                    report.save_overlay(folder, places[k], example, source.classes)

        if images:
            self._evaluate(source.take(images), on_batch=save, progress=False)


def checkpoint_of(file: OnnxFile) -> Checkpoint:
    """What an ONNX file says about itself, in the form of a checkpoint without arrays.

    Raises:
        ValueError: for a file that was written by an earlier version and says too little.
    """
    about = file.about
    if missing := sorted({"model", "data", "dtype"} - set(about)):
        raise ValueError(
            f"{file.path}: its metadata lacks {missing}; export it again with export_model of this"
            " version"
        )
    metadata = {
        "model": about["model"],
        "classes": about["classes"],
        "config": {"data": {"root": "", **about["data"]}},
    }
    return Checkpoint({}, metadata, about["step"], file.path, None)


def check_file(file: OnnxFile, options: Options) -> None:
    """Raises a ValueError for options that only checkpoints have."""
    if not options.tta.is_single:
        raise ValueError(
            f"{file.path} predicts at one scale; {options.tta} needs a checkpoint (--checkpoint)"
        )
    if options.size_step > 1:
        raise ValueError(
            f"--size_step={options.size_step} needs a checkpoint (--checkpoint); {file.path} takes"
            " images as they are"
        )
    if options.space != 1 or jax.process_count() > 1:
        raise ValueError(
            f"{file.path} runs in one process, on one device; several need a checkpoint"
            " (--checkpoint)"
        )


def _check_sizes(file: OnnxFile, source: Source) -> None:
    """Raises a ValueError, naming an image, if the file is for another size."""
    if file.size is None:
        return
    wanted = "x".join(map(str, file.size))
    for size, members in sorted_by_size(source).items():
        found = "x".join(map(str, size))
        if found != wanted:
            raise ValueError(
                f"{file.path} takes images of {wanted}, but {source.image_name(members[0])} has"
                f" {found} (as {len(members)} of {len(source)} images): export it with"
                f" --size={found}, or without --size for any size"
            )


def _open_split(checkpoint: Checkpoint, options: Options) -> Source:
    data = checkpoint.metadata["config"]["data"]
    split = options.split or data["eval_split"]
    trained_on = data.get("train_split", "")
    # After a training on several splits at once; the training split alone is known as such.
    several = not options.data_name and len(selection.parse(trained_on).splits) > 1
    if several and (common := selection.shared_splits(trained_on, split)):
        warnings.warn(
            f"{checkpoint.path} was trained on {trained_on}: metrics of"
            f" {'+'.join(common)} say how well training images are remembered, not how good the"
            " network is",
            UserWarning,
            stacklevel=2,
        )
    source = segmentation.open_split(
        checkpoint.metadata,
        root=options.data_root,
        split=split,
        name=options.data_name,
        class_file=options.class_file,
    )
    return segmentation.spread(source, options.max_images)


def _check_classes(checkpoint: Checkpoint, source: Source) -> None:
    names = Classes.from_json(checkpoint.metadata["classes"]).names
    if source.classes.names != names:
        raise ValueError(
            f"checkpoint {checkpoint.path} was trained for the classes {names}, the data "
            f"has {source.classes.names}"
        )


def _check_labels(source: Source, options: Options) -> None:
    if source.has_labels:
        return
    if not options.writes_predictions:
        raise ValueError(
            f"split {source.split!r} has no labels to evaluate on; --save_predictions or "
            "--submission writes predictions without them"
        )
    if options.compare:
        raise ValueError(f"--compare: split {source.split!r} has no labels to compare on")


def _audit(source: Source) -> tuple[str, ...]:
    """Reads all headers and label ids, raises ValueError for bad ones; what may be wrong in them.

    The labels of a split are read once, see `survey`.
    """
    if not source.has_labels:
        return ()
    team = Team(jax.process_index(), jax.process_count(), distributed.gather)
    found = audit.audit_labels(source, team=team)
    doubts = odd_labels.reasons_to_stop(found) or odd_labels.reasons_to_doubt([found], None)
    return tuple(doubts)


def _evaluator(
    checkpoint: Checkpoint, source: Source, options: Options
) -> Callable[..., segmentation.EvalResult]:
    """`segmentation.evaluate` of this checkpoint by the options."""
    _check_classes(checkpoint, source)
    trained = checkpoint.metadata["config"].get("eval", {})
    return functools.partial(
        segmentation.evaluate,
        create_model(**checkpoint.metadata["model"]),
        checkpoint.variables,
        batch_size=options.batch_size,
        size_step=options.size_step or trained.get("size_step", 1),
        mesh=sharding.make_mesh(space=options.space),
        tta=options.tta,
    )


def _earlier_counts(path: str, source: Source) -> np.ndarray | None:
    """The counts per image of an earlier evaluation; None if `path` names a checkpoint.

    Raises:
        FileNotFoundError, ValueError: if there is neither, or the images or classes differ.
    """
    folder, file = storage.path(path), weights_file.find(path)
    if file is None and not folder.exists():
        raise FileNotFoundError(f"--compare={path}: no such file or folder; {weights_file.known()}")
    table = (folder.parent if folder.is_file() else folder) / segmentation.IMAGE_METRICS
    if table.exists() and (file is None or foreign.is_foreign(file)):
        return segmentation.read_image_counts(table, source.ids, source.classes.names)
    return None


def _choose_overlays(result: segmentation.EvalResult, count: int) -> dict[str, int]:
    """The worst and the best images, each once: "worst_1", "best_1" and so on -> index."""
    ranking = result.ranking().tolist()
    count = min(count, (len(ranking) + 1) // 2)
    ends = {"worst": ranking[:count], "best": ranking[count:][::-1][:count]}
    return {f"{kind}_{k}": i for kind, images in ends.items() for k, i in enumerate(images, 1)}


def _gather_thumbnails(
    gallery: report.Gallery, ranking: list[int]
) -> list[tuple[int, report.Thumbnail]]:
    """The thumbnails of the report with their indices; each process made those of its images."""
    mine = gallery.finish()
    num_bytes = {i: thumbnail.num_bytes for i, thumbnail in mine.items()}
    num_bytes = collections.ChainMap(*distributed.gather(num_bytes))
    chosen = report.choose_thumbnails(ranking, num_bytes)
    # Only the chosen ones are sent between the processes.
    found = distributed.gather({i: mine[i] for i in chosen if i in mine})
    thumbnails = collections.ChainMap(*found)
    return [(i, thumbnails[i]) for i in chosen]


# ---- classification


def classify(
    checkpoint: Checkpoint, options: Options
) -> tuple[classification.ClassificationResult, str]:
    """Evaluates a classifier of whole images and writes metrics.json with top-1 and top-5.

    Args:
        checkpoint: with the head "classification".
        options: those about segmentation are ignored.

    Returns:
        The result and the name of the split.

    Raises:
        FileNotFoundError, ValueError: for a dataset, split or classes that do not exist or fit.
    """
    data = checkpoint.metadata["config"]["data"]
    split = options.split or data["eval_split"]
    source = open_images(data["name"], root=options.data_root or data["root"], split=split)
    names = ImageClasses.from_json(checkpoint.metadata["classes"]).names
    if source.classes.names != names:
        raise ValueError(
            f"checkpoint {checkpoint.path} was trained for {len(names)} classes, {names[:3]} ..., "
            f"the data has {len(source.classes.names)}, {source.classes.names[:3]} ..."
        )
    result = classification.evaluate(
        create_model(**checkpoint.metadata["model"]),
        checkpoint.variables,
        segmentation.spread(source, options.max_images),
        batch_size=options.batch_size,
        crop_size=tuple(data["crop_size"]),
        short_side=data["eval_short_side"],
        mesh=sharding.make_mesh(),
    )
    variant = checkpoint.metadata["model"]["variant"]
    options.output.mkdir(parents=True, exist_ok=True)
    contents = result.metrics(step=checkpoint.step, variant=variant)
    _write_json(options.output / "metrics.json", contents)
    return result, split
