import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from batching import train_batches
from PIL import Image
from tiny_run import tiny_config

from hrnet_jax.data import open_source
from hrnet_jax.data.pipeline import audit
from hrnet_jax.data.pipeline import segmentation as segmentation_data
from hrnet_jax.data.pipeline.class_counts import class_counts
from hrnet_jax.data.tiles import format as tile_format
from hrnet_jax.data.tiles import prepare as tiles
from hrnet_jax.runtime import run_lock
from hrnet_jax.train import loop

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def prepared(streets, tmp_path_factory) -> Path:
    """Tiles of all splits of the street set, two images per shard."""
    folder = tmp_path_factory.mktemp("tiles")
    for split in ("train", "val", "test"):
        source = open_source("cityscapes", root=streets, split=split)
        tiles.prepare(source, folder, shard_images=2, progress=False)
    return folder


@pytest.fixture
def copied(prepared, tmp_path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "tiles"))


def both(streets, prepared, split="train"):
    return (open_source("cityscapes", root=root, split=split) for root in (streets, prepared))


def crops(source, batches, **options):
    options = {"batch_size": 4, "crop_size": (48, 96), "seed": 1} | options
    dataset = train_batches(source, **options)
    return [next(dataset) for _ in range(batches)]


def assert_same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for key in x:
            np.testing.assert_array_equal(x[key], y[key])


@pytest.mark.parametrize("tile", [(4, 5), (16, 16), (64, 256)])
def test_any_window_of_any_tiling(tile, make_source, tmp_path, monkeypatch):
    monkeypatch.setattr(tile_format, "TILE", tile)
    monkeypatch.setattr(tile_format.encode_tiles, "__defaults__", (tile,))
    sizes = [(37, 53), (1, 1), (16, 16), (33, 16), (5, 64)]
    source = make_source(sizes)
    tiles.prepare(source, tmp_path / "tiles", shard_images=3, progress=False)
    cut = tile_format.open_tiles(tmp_path / "tiles", "test", "train")
    rng = np.random.default_rng(0)
    for index, size in enumerate(sizes):
        expected, got = source.records.open(index), cut.records.open(index)
        assert got.size == size == cut.records.size(index)
        np.testing.assert_array_equal(got.image(), expected.image())
        np.testing.assert_array_equal(got.label(), expected.label())
        for _ in range(20):
            spans = [sorted(rng.choice(n + 1, 2, replace=False).tolist()) for n in size]
            window = tuple(slice(*span) for span in spans)
            np.testing.assert_array_equal(got.image(window), expected.image()[window])
            np.testing.assert_array_equal(got.label(window), expected.label()[window])


def test_same_crops_and_same_evaluation_as_files(streets, prepared):
    files, cut = both(streets, prepared)
    assert (files.ids, files.classes, len(files)) == (cut.ids, cut.classes, len(cut))
    assert_same(crops(files, 6), crops(cut, 6))
    assert_same(crops(files, 6)[4:], crops(cut, 2, start_step=4, threads=1, prefetch=0))
    for split in ("val", "test"):
        files, cut = both(streets, prepared, split)
        assert files.has_labels == cut.has_labels == (split == "val")
        assert_same(*(list(segmentation_data.eval_batches(s, batch_size=2)) for s in (files, cut)))


def test_the_rest_of_a_source(streets, prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    files, cut = both(streets, prepared)
    np.testing.assert_array_equal(class_counts(files, progress=False), class_counts(cut))
    np.testing.assert_array_equal(class_counts(cut.take([3, 0])), class_counts(cut)[[3, 0]])
    assert cut.take([5, 2]).ids == (cut.ids[5], cut.ids[2])
    assert_same(crops(files.take([5, 2]), 2), crops(cut.take([5, 2]), 2))
    tables = [audit.audit_labels(s, progress=False).table() for s in (files, cut)]
    assert tables[0] == tables[1]
    with pytest.raises(ValueError, match="are tiles already"):
        tiles.prepare(cut, tmp_path / "again")


def test_description_for_tfds(streets, prepared):
    builder = tfds.builder_from_directory(str(prepared))
    assert {k: v.num_examples for k, v in builder.info.splits.items()} == {
        "train": 7,
        "val": 3,
        "test": 1,
    }
    files = open_source("cityscapes", root=streets, split="train")
    ids = [e["id"].decode() for e in tfds.as_numpy(builder.as_dataset(split="train"))]
    assert tuple(ids) == files.ids


def test_tfds_builder(streets, prepared, tmp_path):
    builder = tiles.Tiles(data_dir=tmp_path, config="cityscapes")
    config = tfds.download.DownloadConfig(manual_dir=str(streets))
    builder.download_and_prepare(download_config=config)
    for split in ("train", "val"):
        ours, theirs = (
            open_source("cityscapes", root=r, split=split) for r in (prepared, tmp_path)
        )
        assert ours.ids == theirs.ids
        assert_same(crops(ours, 2), crops(theirs, 2))
    assert tiles.verify(Path(builder.data_dir), "train", progress=False) == 2


def test_training_from_tiles_is_the_same_step_by_step(camvid, tmp_path, quick):
    for split in ("train", "val"):
        source = open_source("camvid", root=camvid, split=split)
        tiles.prepare(source, tmp_path / "tiles", shard_images=4, progress=False)
    logs = []
    for root in (camvid, tmp_path / "tiles"):
        values = {
            "batch_size": 4,
            "num_steps": 4,
            "log_every_steps": 1,
            "data.name": "camvid",
            "eval.every_steps": 4,
        }
        config = tiny_config(root, **values)
        workdir = tmp_path / f"run_{len(logs)}"
        loop.train(config, str(workdir))
        lines = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
        keys = ("step", "train/loss", "train/grad_norm", "train/pixel_accuracy", "eval/miou")
        logs.append([{k: line[k] for k in keys if k in line} for line in lines])
    assert logs[0] == logs[1]
    assert [line["step"] for line in logs[0] if "train/loss" in line] == [1, 2, 3, 4]
    assert logs[0][-1]["eval/miou"] >= 0


def test_memory_and_start_do_not_grow_with_the_set(streets, prepared):
    """What is held of an image: its rows of the index and its name."""
    _, cut = both(streets, prepared)
    size = sum(a.nbytes for a in cut.records.index.values()) / len(cut)
    assert size < 1100  # here id_count is nearly all: 25,000 images make 28 MB


# ---- interrupted, damaged, full


def command(root, output, *options):
    return [
        *(sys.executable, "-m", "hrnet_jax.tools.prepare_tiles", "--name=cityscapes"),
        *(f"--root={root}", f"--output={output}", "--splits=train", "--shard_images=2", *options),
    ]


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".json"}


def test_continues_after_being_killed(streets, prepared, tmp_path):
    output, said = tmp_path / "tiles", []
    with subprocess.Popen(command(streets, output), cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        while not list(output.glob("tiles-*-of-00004")) and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    # Killed before the manifest was there, or just after: then it never was in danger.
    finished = process.returncode == 0
    if not finished:
        with pytest.raises(FileNotFoundError, match=r"'train' is not prepared \(begun, not fin"):
            tile_format.open_tiles(output, "cityscapes", "train")
    complete = {p: p.stat().st_mtime_ns for p in output.glob("tiles-*-of-00004")}
    (output / ".tiles-train.partial.tfrecord-00003-of-00004").write_bytes(b"half")
    source = open_source("cityscapes", root=streets, split="train")
    tiles.prepare(source, output, shard_images=2, progress=False, say=said.append)
    assert finished or f"continuing: {len(complete)} of 4 shards are complete" in said
    assert all(p.stat().st_mtime_ns == t for p, t in complete.items())
    assert contents(output) == {k: v for k, v in contents(prepared).items() if "train" in k}
    tiles.prepare(source, output, shard_images=2, progress=False, say=said.append)
    assert "complete, nothing to do" in said[-1]


def test_full_disk(streets, tmp_path):
    source = open_source("cityscapes", root=streets, split="train")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"0 of 4 shards are complete and stay; make room"):
            tiles.prepare(source, tmp_path, shard_images=2, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.glob("tiles*"))
    tiles.prepare(source, tmp_path, shard_images=2, progress=False)
    assert tiles.verify(tmp_path, "train", progress=False) == 5


def test_too_small_a_disk_is_refused_beforehand(streets, tmp_path, monkeypatch):
    source = open_source("cityscapes", root=streets, split="train")
    free = shutil._ntuple_diskusage(10**6, 10**6 - 1000, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(ValueError, match=r"has 0.00 GB free, .* GB are needed"):
        tiles.prepare(source, tmp_path, progress=False)


def test_one_at_a_time_and_only_what_was_begun(streets, tmp_path):
    source = open_source("cityscapes", root=streets, split="train")
    work = tile_format.unfinished_folder(tmp_path, "train")
    work.mkdir()
    with run_lock.locked(work), pytest.raises(ValueError, match=r"is in use by .* wait until"):
        tiles.prepare(source, tmp_path, progress=False)
    (work / "plan").write_text("other")
    with pytest.raises(ValueError, match="unfinished preparation of other files"):
        tiles.prepare(source, tmp_path, progress=False)
    shutil.rmtree(work)
    tiles.prepare(source, tmp_path, progress=False)
    with pytest.raises(ValueError, match="tiles of other files or with other options"):
        tiles.prepare(source.take([0]), tmp_path, progress=False)


def first(folder, pattern):
    return sorted(folder.glob(pattern))[0]


def test_every_damaged_byte_of_pixels_is_noticed(copied):
    source = open_source("cityscapes", root=copied, split="train")
    path = Path(source.records.paths[0])
    data = path.read_bytes()
    index = source.records.index
    spans = [
        (int(index[f"{kind}_start"][0]), int(index[f"{kind}_length"][0]))
        for kind in ("image", "label")
    ]
    for start, length in spans:
        for place in range(start, start + length, max(1, length // 50)):
            path.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
            with pytest.raises(ValueError, match=r"tile \(0, 0\) of .*00000-of-00004 is damaged"):
                source.read(0)
    with pytest.raises(ValueError, match=r"00000-of-00004 is damaged: another checksum"):
        tiles.verify(copied, "train", progress=False)


def test_damage_stops_training_and_evaluation(copied):
    source = open_source("cityscapes", root=copied, split="train")
    path = Path(source.records.paths[1])
    path.write_bytes(bytes(path.stat().st_size))
    for batches in (
        lambda: crops(source, 3),
        lambda: list(segmentation_data.eval_batches(source, batch_size=3)),
    ):
        with pytest.raises(ValueError, match=r"00001-of-00004 is damaged") as caught:
            batches()
        assert "Traceback" not in str(caught.value)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="00001-of-00004"):
        crops(source, 3)


def cut_off(folder):
    path = first(folder, "tiles-train*")
    path.write_bytes(path.read_bytes()[:-1])


def exchange_index(folder):
    (folder / "tiles_train.npz").write_bytes((folder / "tiles_val.npz").read_bytes())


def edit(**change):
    def apply(folder):
        path = folder / "tiles_train.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_off, r"tfrecord-00000-of-00004 has \d+ bytes, .*tiles_train.json says \d+"),
        (lambda f: first(f, "tiles-train*").unlink(), r"00000-of-00004 is missing"),
        (exchange_index, r"tiles_train.npz (has|is not the file)"),
        (lambda f: (f / "tiles_train.npz").unlink(), r"tiles_train.npz is missing"),
        (lambda f: (f / "tiles_train.json").write_text("{"), r"tiles_train.json is damaged"),
        (edit(format_version=9), r"tiles_train.json is of version 9, this program reads 1"),
        (edit(name="camvid"), r"is of the dataset 'camvid', not 'cityscapes'"),
        (edit(ids=["a"]), r"tiles_train.json lists 1 images, .*npz 7"),
        (lambda f: (f / "tiles_train.json").unlink(), r"prepared are \['test', 'val'\]"),
    ],
)
def test_manifest_that_does_not_match(copied, damage, message):
    damage(copied)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_source("cityscapes", root=copied, split="train")
    assert len(open_source("cityscapes", root=copied, split="val")) == 3


@pytest.mark.parametrize("kind", ["image", "label", "id"])
def test_bad_files_stop_the_preparation_by_name(make_source, tmp_path, kind):
    source = make_source([(20, 30)] * 4)
    if kind == "id":
        Image.fromarray(np.full((20, 30), 77, np.uint8)).save(source.label_paths[2])
        message = r"label002.png holds the ids \[77\]"
    else:
        path = Path((source.image_paths if kind == "image" else source.label_paths)[2])
        path.write_bytes(path.read_bytes()[:-20])
        message = rf"{kind}002.png is damaged"
    with pytest.raises(ValueError, match=message):
        tiles.prepare(source, tmp_path / "tiles", shard_images=1, progress=False)
    assert not (tmp_path / "tiles" / "tiles_train.json").exists()
    assert not list((tmp_path / "tiles").glob("*partial*"))


def test_command_names_what_is_missing(streets, tmp_path):
    done = subprocess.run(
        command(tmp_path, tmp_path / "out"), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "no Cityscapes images" in done.stderr
    assert "Traceback" not in done.stderr
    assert not os.path.exists(tmp_path / "out")
