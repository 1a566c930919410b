"""Data, workdirs and outputs in a bucket: gcsfs against an emulator of Google's storage."""

import importlib.util
import io
import json
import logging
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image
from stopping import stopped_at
from tiny_run import tiny_config

import hrnet_jax
from hrnet_jax.checkpoints import manifest, weights_file
from hrnet_jax.checkpoints.load import load_checkpoint
from hrnet_jax.checkpoints.store import CheckpointStore
from hrnet_jax.data import open_images, open_source
from hrnet_jax.data.synthetic import write as synthetic
from hrnet_jax.data.tiles import format as tile_format
from hrnet_jax.data.tiles import prepare as tiles
from hrnet_jax.evaluation import report, segmentation, submission
from hrnet_jax.inference import file_job
from hrnet_jax.runtime import run_lock, storage
from hrnet_jax.train import loop, optimizers
from hrnet_jax.train.step import TrainState


@pytest.fixture(scope="module")
def streets(bucket, tmp_path_factory):
    """The same set in the bucket and in a folder."""
    folder = tmp_path_factory.mktemp("streets")
    for root in (folder, f"{bucket}/streets"):
        synthetic.write_cityscapes(root, {"train": 4, "val": 2}, size=(48, 80), progress=False)
    return f"{bucket}/streets", str(folder)


def test_files(bucket, tmp_path):
    root = f"{bucket}/files"
    storage.write_bytes(f"{root}/a/x.bin", b"0123456789")
    storage.write_text(f"{root}/a/b/y.txt", "one")
    storage.append_text(f"{root}/a/b/y.txt", " two")
    with storage.written(f"{root}/c.d") as folder:
        folder.mkdir()
        (folder / "z").write_text("z")
    assert storage.read_bytes(f"{root}/a/b/y.txt") == b"one two"
    assert list(storage.read_spans(f"{root}/a/x.bin", [(2, 4), (6, 20)])) == [b"23", b"6789"]
    assert storage.size(f"{root}/a/x.bin") == 10
    assert sorted(storage.names_below(root)) == ["a/b/y.txt", "a/x.bin", "c.d/z"]
    assert storage.sizes_below(f"{root}/a") == {"b/y.txt": 7, "x.bin": 10}
    assert storage.files_in(root, "*/*.bin") == [f"{root}/a/x.bin"]
    assert storage.files_in(f"{root}/none", "*") == []
    given = [f"{root}/a/x.bin", f"{root}/a/none", f"{root}/none/x"]
    assert storage.missing(given) == given[1:]
    before = storage.stamps(given[:1])
    storage.write_bytes(f"{root}/a/x.bin", b"9876543210")
    assert storage.stamps(given[:1]) != before
    with storage.local(f"{root}/a") as copy:
        assert (copy / "b" / "y.txt").read_text() == "one two"
    with (
        pytest.raises(FileNotFoundError, match="no_such_file"),
        storage.written(f"{root}/half") as file,
    ):
        shutil.copy("no_such_file", file)
    assert not storage.path(f"{root}/half").exists()
    with pytest.raises(FileNotFoundError, match=f"{root}/none: no such file"):
        storage.read_bytes(f"{root}/none")


def test_stores_that_cannot_be_reached_say_what_is_missing(monkeypatch):
    with pytest.raises(ValueError, match=r"unknown store ftp://; known: \['gs://', 's3://'"):
        storage.path("ftp://host/run")
    monkeypatch.setitem(storage.PACKAGES, "s3", "no_such_package")
    monkeypatch.setattr(storage, "_store", storage._store.__wrapped__)
    with pytest.raises(ValueError, match=r"needs no_such_package.*pip install no_such_package"):
        storage.path("s3://bucket/run")
    assert importlib.util.find_spec("gcsfs")


def test_data_are_those_of_a_folder(bucket, streets, tmp_path):
    there, here = (open_source("cityscapes", root=root, split="train") for root in streets)
    assert (there.ids, there.label_paths[0]) == (
        here.ids,
        here.label_paths[0].replace(streets[1], streets[0]),
    )
    for index in range(len(here)):
        for a, b in zip(there.read(index), here.read(index), strict=True):
            np.testing.assert_array_equal(a, b)
    assert there.records.size(0) == (48, 80)
    storage.path(here.label_paths[1]).unlink()
    storage.path(there.label_paths[1]).unlink()
    for root in streets:
        with pytest.raises(FileNotFoundError, match=f"1 of 4 .* looked for {root}/gtFine/train"):
            open_source("cityscapes", root=root, split="train")
    for source in (there, here):
        with storage.written(source.label_paths[1]) as file:
            Image.fromarray(np.full((48, 80), 7, np.uint8)).save(file)
    with pytest.raises(FileNotFoundError, match=f"looked for {bucket}/none/leftImg8bit"):
        open_source("cityscapes", root=f"{bucket}/none", split="train")

    # Folders with a class file, and of whole images.
    image = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(image, "PNG")
    label = io.BytesIO()
    Image.fromarray(np.ones((8, 8), np.uint8)).save(label, "PNG")
    storage.write_bytes(f"{bucket}/mine/images/val/a/b.png", image.getvalue())
    storage.write_bytes(f"{bucket}/mine/labels/val/a/b.png", label.getvalue())
    storage.write_text(f"{bucket}/mine/classes.json", '{"names": ["no", "yes"]}')
    source = open_source("folder", root=f"{bucket}/mine", split="val")
    assert source.ids == ("a/b",)
    np.testing.assert_array_equal(source.read(0)[1], np.ones((8, 8)))
    for kind in ("cat", "dog"):
        storage.write_bytes(f"{bucket}/animals/train/{kind}/x/1.png", image.getvalue())
    source = open_images("image_folder", root=f"{bucket}/animals", split="train")
    assert source.ids == ("cat/x/1.png", "dog/x/1.png")
    assert source.records.open(1) == (image.getvalue(), 1)


def test_tiles(bucket, streets, tmp_path):
    local = tmp_path / "tiles"
    source = open_source("cityscapes", root=streets[0], split="train")
    for output in (local, f"{bucket}/tiles"):
        said = []
        tiles.prepare(source, output, shard_images=3, progress=False, say=said.append)
        tiles.prepare(source, output, shard_images=3, progress=False, say=said.append)
        assert said[-1].endswith("complete, nothing to do")
        assert tiles.verify(output, "train", progress=False) == 3
    names = storage.names_below(f"{bucket}/tiles")
    assert sorted(names) == sorted(storage.names_below(local))
    for name in names:
        if name.startswith(("tiles-", "tiles_")):
            assert storage.read_bytes(f"{bucket}/tiles/{name}") == (local / name).read_bytes()
    cut = open_source("cityscapes", root=f"{bucket}/tiles", split="train")
    assert isinstance(cut.records, tile_format.TileRecords)
    window = slice(5, 40), slice(10, 77)
    for index in range(4):
        cut_sample, sample = cut.records.open(index), source.records.open(index)
        np.testing.assert_array_equal(cut_sample.image(window), sample.image(window))
        np.testing.assert_array_equal(cut_sample.label(window), sample.label(window))


def _state(step):
    params = {"kernel": jnp.full((4, 3), step, jnp.float32)}
    optimizer = optimizers.make_optimizer(optax.constant_schedule(0.1))
    return TrainState(jnp.asarray(step, jnp.int32), params, {}, optimizer.init(params), None)


def test_checkpoints_that_are_half_there(bucket, caplog):
    model = {"variant": "w18", "num_classes": 2, "head": "segmentation", "align_corners": False}
    metadata = dict.fromkeys(manifest.METADATA_KEYS, "") | {
        "format_version": manifest.FORMAT_VERSION,
        "model": model,
    }
    workdir = f"{bucket}/half"
    store = CheckpointStore(workdir)
    for step, score in ((1, 0.5), (2, 0.9), (3, 0.1), (4, 0.2)):
        store.save(_state(step), metadata)
        store.set_metric(step, score)
    store.close()
    root = storage.path(workdir) / "checkpoints"
    assert sorted(p.name for p in root.iterdir()) == ["2", "3", "4"]
    assert load_checkpoint(workdir).step == 2

    (root / "3" / "manifest.json").unlink()  # as a killed save or removal leaves it
    name = next(n for n in storage.names_below(root / "2") if n.startswith("variables/d/"))
    storage.write_bytes(root / "2" / name, b"rotten")
    found = load_checkpoint(workdir)
    assert (found.step, float(found.variables["params"]["kernel"][0, 0])) == (4, 4.0)
    assert f"skipping the damaged checkpoint {root}/2" in caplog.text
    store = CheckpointStore(workdir)
    assert store.steps() == [2, 4]  # older steps are looked at when they are needed
    store.close()


def test_one_run_per_folder(bucket, monkeypatch):
    workdir = f"{bucket}/locked"
    with run_lock.locked(workdir):
        holder = json.loads(storage.read_bytes(f"{workdir}/{run_lock.FILE}"))
        assert holder["pid"] == os.getpid()
        monkeypatch.setattr(run_lock, "_changes", lambda *_: True)  # it gives signs of life
        refusal = pytest.raises(ValueError, match=f"{workdir} is in use by process {os.getpid()}")
        with refusal, run_lock.locked(workdir):
            pass
    with run_lock.locked(workdir):
        pass


def test_run_in_a_store(bucket, streets, quick, caplog, tmp_path):
    caplog.set_level(logging.INFO, "hrnet_jax")
    values = {
        "num_steps": 2,
        "log_every_steps": 1,
        "checkpoint_every_steps": 1,
        "eval.every_steps": 2,
    }
    config = tiny_config(streets[0], **values)
    workdir = f"{bucket}/run"

    with stopped_at(2):
        loop.train(config, workdir)
    resumed = loop.train(config, workdir)
    assert "continuing at step 1 of 2" in caplog.text
    config.data.root = streets[1]
    whole = loop.train(config, str(tmp_path / "run"))
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    lines = storage.read_bytes(f"{workdir}/log.jsonl").decode().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 2]
    assert storage.names_below(f"{workdir}/tensorboard")
    assert report.read_log(f"{workdir}/log.jsonl").keys() >= {"train/loss", "eval/miou"}

    # What can be done with it.
    predictor = hrnet_jax.load(workdir)
    source = open_source("cityscapes", root=streets[0], split="val")
    labels = [predictor.predict(path) for path in source.image_paths]
    inputs, failures = file_job.list_inputs([f"{streets[0]}/leftImg8bit/val", f"{bucket}/none"])
    assert [str(f) for f in failures] == [f"{bucket}/none: no such image or folder"]
    outputs = ("overlay", "labels", "probabilities")
    job = file_job.FileJob(predictor, storage.path(f"{bucket}/out"), outputs, progress=False)
    assert job.run(inputs) == 2
    assert len(storage.names_below(f"{bucket}/out")) == 6
    with submission.Writer(f"{bucket}/predictions", source) as writer:
        for index, one in enumerate(labels):
            writer.add(index, one)
    path = submission.pack(f"{bucket}/predictions", source, f"{bucket}/submission.zip")
    assert (str(path), path.exists()) == (f"{bucket}/submission.zip", True)
    result = segmentation.evaluate(
        predictor.model, predictor.variables, source, batch_size=1, progress=False
    )
    segmentation.save_image_metrics(f"{bucket}/scores.csv", result, source.classes.names)
    counts = segmentation.read_image_counts(
        f"{bucket}/scores.csv", source.ids, source.classes.names
    )
    np.testing.assert_array_equal(counts, result.image_counts)

    checkpoint = load_checkpoint(workdir)
    file = f"{bucket}/weights.safetensors"
    weights_file.write(
        file, checkpoint.variables, checkpoint.metadata, step=checkpoint.step, metric=None
    )
    again = hrnet_jax.load(file)
    np.testing.assert_array_equal(again.predict(source.image_paths[0]), labels[0])
