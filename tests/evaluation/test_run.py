"""The scripts from outside, on a checkpoint and a data set made here."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from PIL import Image

import hrnet_jax
from hrnet_jax.checkpoints import manifest
from hrnet_jax.checkpoints.load import load_checkpoint
from hrnet_jax.checkpoints.store import CheckpointStore
from hrnet_jax.data import Classes
from hrnet_jax.evaluation import metrics
from hrnet_jax.evaluation.run import Options, SegmentationRun, checkpoint_of
from hrnet_jax.export import export
from hrnet_jax.inference.label_form import get_form
from hrnet_jax.inference.multi_scale import TestTimeAugmentation
from hrnet_jax.inference.onnx_file import OnnxFile
from hrnet_jax.models import create_model
from hrnet_jax.runtime import storage
from hrnet_jax.train.step import TrainState

ROOT = Path(__file__).parents[2]
COLORS = ((128, 64, 128), (70, 130, 180), (0, 60, 100))
CLASSES = Classes(("road", "sky", "boat"), COLORS, (7, 23, 31), (0,))
SIZE = (32, 48)
IDS = ("city/0", "city/1", "city/2", "town/3", "town/4")
VARIANT = "w18_small_v1"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data set of the kind "folder"."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name in IDS:
        image = Image.fromarray(rng.integers(0, 256, (4, 6, 3)).astype(np.uint8))
        label = Image.fromarray(rng.choice([7, 23, 31, 0], SIZE).astype(np.uint8))
        for kind, picture in (("images", image.resize(SIZE[::-1])), ("labels", label)):
            path = root / kind / "val" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
    (root / "classes.json").write_text(json.dumps(CLASSES.to_json()))
    return root


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, data):
    """A training folder with one checkpoint of random weights, step 12."""
    folder = tmp_path_factory.mktemp("run")
    model = create_model(VARIANT, 3)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *SIZE, 3)))
    state = TrainState(jnp.int32(12), **variables, opt_state={"count": jnp.int32(12)})
    fields = {"variant": VARIANT, "num_classes": 3, "head": model.head, "align_corners": False}
    data_config = {"name": "folder", "root": str(data), "class_file": "", "eval_split": "val"}
    store = CheckpointStore(str(folder))
    store.save(
        state,
        {
            "format_version": manifest.FORMAT_VERSION,
            "model": fields,
            "classes": CLASSES.to_json(),
            "config": {"data": data_config},
            "version": hrnet_jax.__version__,
        },
    )
    store.set_metric(12, 0.25)
    store.close()
    lines = [{"step": s, "train/loss": 2.0 / s, "eval/miou": 0.1 * s} for s in (1, 2)]
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.fixture(scope="module")
def predictor(workdir):
    return hrnet_jax.load(workdir)


def test_labels_are_looked_at_before_the_network_runs(workdir, data, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(data, root)
    options = Options(output=epath.Path(tmp_path / "out"), data_root=str(root))
    checkpoint = load_checkpoint(workdir)
    assert SegmentationRun(checkpoint, options).doubts == ()
    for name in IDS:
        Image.fromarray(np.full(SIZE, 7, np.uint8)).save(root / "labels" / "val" / f"{name}.png")
    (doubt,) = SegmentationRun(checkpoint, options).doubts
    assert "hold one class only, 'road'" in doubt
    path = root / "labels" / "val" / f"{IDS[4]}.png"
    Image.fromarray(np.full(SIZE, 9, np.uint8)).save(path)
    os.utime(path, ns=(1, 1))
    with pytest.raises(ValueError, match=r"(?s)id 9: 1536 pixels in 1 images.*town/4\.png"):
        SegmentationRun(checkpoint, options)


def test_number_of_images_of_a_submission_is_checked_first(workdir, tmp_path, monkeypatch):
    form = dataclasses.replace(get_form("cityscapes"), counts={("folder", "val"): 7})
    monkeypatch.setattr(Options, "form_for", lambda self, dataset: form)
    options = Options(epath.Path(tmp_path), submission=True)
    with pytest.raises(ValueError, match="5 images, but the server requires all 7 of folder val"):
        SegmentationRun(load_checkpoint(workdir), options)


def test_another_dataset_with_the_same_classes(workdir, data, tmp_path, caplog):
    """Its own order and ids become those of the checkpoint."""
    shutil.copytree(data, tmp_path / "data")
    own = Classes(("boat", "road", "sky"), COLORS, (23, 31, 7), (0,))
    (tmp_path / "data" / "classes.json").write_text(json.dumps(own.to_json()))
    where = {"output": epath.Path(tmp_path / "out"), "data_root": str(tmp_path / "data")}
    source = SegmentationRun(
        load_checkpoint(workdir), Options(**where, data_name="folder", class_file="")
    ).source
    assert source.classes.names == ("road", "sky", "boat")
    raw = np.asarray(Image.open(data / "labels" / "val" / "city" / "0.png"))
    expected = np.select([raw == 31, raw == 7, raw == 23], [0, 1, 2], 255)
    np.testing.assert_array_equal(source.read(0)[1], expected)
    assert not caplog.records  # no class has got another name
    with pytest.raises(ValueError, match="--data_name=kitti needs its folder: --data_root"):
        SegmentationRun(load_checkpoint(workdir), Options(where["output"], data_name="kitti"))
    with pytest.raises(ValueError, match="name it with --data_name"):
        SegmentationRun(load_checkpoint(workdir), Options(**where, class_file="x.json"))


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"JAX_NUM_CPU_DEVICES": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def evaluated(workdir, tmp_path_factory):
    """(output folder, terminal output) of evaluate.py on two devices."""
    output = tmp_path_factory.mktemp("evaluation")
    (output / "overlays").mkdir()
    (output / "overlays" / "worst_3_of_an_older_run.png").touch()  # to be replaced
    flags = "--batch_size=2", "--num_overlays=2", "--submission", f"--output={output}"
    code, out, err = finish(start("evaluate.py", f"--checkpoint={workdir}", *flags))
    assert code == 0, err
    return output, out


def ground_truth(data, name):
    raw = np.asarray(Image.open(data / "labels/val" / f"{name}.png"))
    return CLASSES.lookup()[raw]


def test_loads_from_the_folder_alone(predictor, workdir):
    assert predictor.step == 12
    assert predictor.classes == CLASSES
    assert predictor.model.variant.name == VARIANT
    by_step = hrnet_jax.load(workdir / "checkpoints" / "12")
    for a, b in zip(
        jax.tree.leaves(predictor.variables), jax.tree.leaves(by_step.variables), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_metrics_are_those_of_the_predictor(evaluated, predictor, data):
    output, _ = evaluated
    found = json.loads((output / "metrics.json").read_text())
    confusion = np.zeros((3, 3), np.int64)
    for name in IDS:
        prediction = predictor.predict(data / "images/val" / f"{name}.png")
        labels = ground_truth(data, name)
        confusion += np.asarray(metrics.confusion_matrices(labels[None], prediction[None], 3)[0])
    expected = metrics.summarize(confusion, CLASSES)
    assert {
        "miou",
        "per_class_iou",
        "pixel_accuracy",
        "mean_accuracy",
        "confusion_matrix",
        "num_images",
        "num_pixels",
        "step",
        "variant",
    } <= set(found)
    low, high = found["intervals"]["miou"]
    assert low <= found["miou"] <= high
    assert found["confusion_matrix"] == confusion.tolist()
    assert found["num_pixels"] == confusion.sum()
    assert found["per_class_iou"] == pytest.approx(expected["per_class_iou"])
    for name in ("miou", "pixel_accuracy", "mean_accuracy"):
        assert found[name] == pytest.approx(expected[name])
    assert (found["num_images"], found["step"], found["variant"]) == (5, 12, VARIANT)


def test_predictions_are_written_in_label_ids(evaluated, predictor, data):
    folder = evaluated[0] / "predictions"
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.png"))
    assert files == [f"{name}_pred_labelIds.png" for name in IDS]
    for name in IDS:
        image = Image.open(folder / f"{name}_pred_labelIds.png")
        assert image.mode == "L"
        expected = predictor.predict(data / "images/val" / f"{name}.png")
        np.testing.assert_array_equal(np.asarray(image), np.array([7, 23, 31])[expected])


def test_submission_is_packed(evaluated):
    with zipfile.ZipFile(evaluated[0] / "submission.zip") as archive:
        assert archive.namelist() == [f"{Path(name).name}_pred_labelIds.png" for name in IDS]


def test_compares_with_checkpoints_and_earlier_evaluations(evaluated, workdir, tmp_path):
    """The network against itself: no difference, and the interval says so."""
    checkpoint = f"--checkpoint={workdir}", "--batch_size=2", "--num_overlays=0"
    others = {"checkpoint": workdir, "folder": evaluated[0], "file": evaluated[0] / "metrics.json"}
    runs = {
        name: start("evaluate.py", *checkpoint, f"--output={tmp_path}/{name}", f"--compare={other}")
        for name, other in others.items()
    }
    missing = start("evaluate.py", *checkpoint, f"--output={tmp_path}/x", "--compare=/no/such")
    for name, process in runs.items():
        code, out, err = finish(process)
        assert code == 0, err
        assert "difference" in out
        found = json.loads((tmp_path / name / "comparison.json").read_text())
        assert found["other"] == str(others[name])
        assert found["miou"]["difference"] == 0
        assert found["miou"]["interval"] == [0, 0]
        assert set(found["per_class_iou"]) == set(CLASSES.names)
        assert "Compared with" in (tmp_path / name / "report.html").read_text()
    code, _, err = finish(missing)
    assert code == 2
    assert "--compare=/no/such: no such file or folder" in err
    assert not (tmp_path / "x").exists()  # said before anything is evaluated


@pytest.fixture(scope="module")
def exported(predictor, tmp_path_factory):
    """Writes an ONNX file of the checkpoint, for images of some size."""
    folder = tmp_path_factory.mktemp("exported")

    def write(size, **options):
        path = folder / f"{size}{len(options)}.onnx"
        data = {"name": "folder", "class_file": "", "eval_split": "val"}
        values = {"size": size, "batch_size": 2, "data": data} | options
        export._write_onnx(predictor, path, export.Options(**values))
        return OnnxFile(path)

    return write


def test_an_exported_file_is_evaluated_like_the_checkpoint(evaluated, exported, data, tmp_path):
    file = exported(SIZE)
    checkpoint = checkpoint_of(file)
    output = storage.path(tmp_path / "out")
    options = Options(output=output, data_root=str(data), num_overlays=1, batch_size=3)
    work = SegmentationRun(checkpoint, options, file)
    result = work.evaluate()
    assert result.images_per_second > 0
    output.mkdir()
    written = work.write(result, None, None)
    assert written == ["metrics.json", "per_image.csv", "report.html", "overlays/ (2 images)"]
    found = json.loads((output / "metrics.json").read_text())
    expected = json.loads((evaluated[0] / "metrics.json").read_text())
    difference = np.subtract(found["confusion_matrix"], expected["confusion_matrix"])
    assert np.abs(difference).sum() <= 4  # of 7680 pixels
    assert (found["step"], found["variant"]) == (12, VARIANT)
    assert set(found) == set(expected)
    assert "CPUExecutionProvider, float32" in (output / "report.html").read_text()


def test_refuses_exported_files_that_do_not_fit(exported, data, tmp_path):
    options = {"output": storage.path(tmp_path / "out"), "data_root": str(data)}
    file = exported((64, 64))
    with pytest.raises(ValueError, match=r"takes images of 64x64, but .*0\.png has 32x48"):
        SegmentationRun(checkpoint_of(file), Options(**options), file)
    flip = Options(**options, tta=TestTimeAugmentation(flip=True))
    with pytest.raises(ValueError, match=r"predicts at one scale; scale 1, flip"):
        SegmentationRun(checkpoint_of(file), flip, file)
    with pytest.raises(ValueError, match=r"its metadata lacks \['data'\]; export it again"):
        checkpoint_of(exported(SIZE, data=None))


def test_pictures_report_and_table(evaluated):
    output, text = evaluated
    names = sorted(p.name[:7] for p in (output / "overlays").iterdir())
    assert names == ["best_1_", "best_2_", "worst_1", "worst_2"]
    page = (output / "report.html").read_text()
    assert page.count('"jpeg":') == len(IDS)
    assert page.count("<polyline") == 2
    assert "step 12 of" in page
    for word in ("road", "sky", "boat", "IoU", "mean"):
        assert word in text


def test_evaluate_refuses_with_one_line_and_code_2(workdir, tmp_path):
    checkpoint, output = f"--checkpoint={workdir}", f"--output={tmp_path}/out"
    cases = [
        ((f"--checkpoint={tmp_path}/none", output), "none: the folder does not exist"),
        ((checkpoint, output, "--data_root=/no/such"), "no dataset folder '/no/such'"),
        ((checkpoint, output, "--batchsize=2"), "'batchsize'"),
        ((checkpoint, output, "--onnx=net.onnx"), "give either --checkpoint=RUN or --onnx=FILE"),
        ((checkpoint, output, "--compare=camvid_w18_small_v1"), "was trained for the classes"),
    ]
    for process, (_, message) in zip(
        [start("evaluate.py", *arguments) for arguments, _ in cases], cases, strict=True
    ):
        code, _, err = finish(process)
        assert code == 2
        assert message in err
        assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_predict_does_what_it_can(workdir, predictor, data, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    (tmp_path / "nothing").mkdir()
    picture = data / "images/val/city/0.png"
    arguments = (f"--checkpoint={workdir}", f"--output={tmp_path}/out")
    tool = "-m", "hrnet_jax.tools.predict"
    bad = tmp_path / "bad.png", tmp_path / "nothing"
    done = start(*tool, *arguments, *bad, picture, data / "images/val/town")
    empty = start(*tool, *arguments)
    code, out, err = finish(done)
    assert code == 1
    assert "Wrote 3 of 5 predictions" in out
    assert f"failed: {tmp_path}/bad.png is no PNG, JPEG" in err
    assert f"failed: {tmp_path}/nothing: contains no images or videos" in err
    files = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert files == [f"{i}_{kind}.png" for i in (0, 3, 4) for kind in ("labelIds", "overlay")]
    labels = np.asarray(Image.open(tmp_path / "out" / "0_labelIds.png"))
    np.testing.assert_array_equal(labels, np.array([7, 23, 31])[predictor.predict(picture)])
    code, _, err = finish(empty)
    assert code == 2
    assert "no images given" in err


def test_help_shows_the_flags_that_scripts_share():
    scripts = {
        ("evaluate.py",): ("--scales", "--[no]flip", "--tile", "--average", "--coordinator"),
        ("-m", "hrnet_jax.tools.predict"): ("--scales", "--[no]flip", "--tile", "--average"),
        ("train.py",): ("--coordinator", "--num_processes"),
    }
    for process, shown in [(start(*script, "--help"), flags) for script, flags in scripts.items()]:
        _, out, _ = finish(process)
        assert all(f"\n  {flag}:" in out for flag in shown), out
