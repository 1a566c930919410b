import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from batching import train_batches
from PIL import Image

from hrnet_jax.data import open_source
from hrnet_jax.data.pipeline import batches
from hrnet_jax.data.pipeline import segmentation as segmentation_data
from hrnet_jax.data.pipeline.augment import Augmentation
from hrnet_jax.data.pipeline.batches import BatchPlan
from hrnet_jax.data.pipeline.order import Shard

PLAIN = {"scale_min": 1.0, "scale_max": 1.0, "scale_step": 0, "flip": False}


def take(source, batches, **options):
    options = {"batch_size": 4, "crop_size": (16, 24), "seed": 3} | options
    return list(itertools.islice(train_batches(source, **options), batches))


def numbers(batches):
    """Which images they were: make_source writes the number into the first pixel."""
    return [int(i) for b in batches for i in b["image"][:, 0, 0, 0]]


def assert_same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x["image"], y["image"])
        np.testing.assert_array_equal(x["label"], y["label"])


def test_shapes_and_values(streets):
    source = open_source("cityscapes", root=streets, split="train")
    (batch,) = take(source, 1, crop_size=(48, 96))
    assert batch["image"].shape == (4, 48, 96, 3)
    assert batch["label"].shape == (4, 48, 96)
    assert batch["image"].dtype == batch["label"].dtype == np.uint8
    assert set(np.unique(batch["label"])) <= {*range(19), 255}
    spec = segmentation_data.train_dataset(
        source, Augmentation((48, 96)), BatchPlan(batch_size=4, seed=0)
    ).element_spec
    assert spec["image"].shape == (4, 48, 96, 3)


def test_unaugmented_crop_is_the_image(make_source):
    source = make_source([(16, 24)])
    (batch,) = take(source, 1, batch_size=1, **PLAIN)
    np.testing.assert_array_equal(batch["image"][0], np.asarray(Image.open(source.image_paths[0])))
    raw = np.asarray(Image.open(source.label_paths[0]))
    np.testing.assert_array_equal(batch["label"][0], np.searchsorted([3, 5, 7], raw))


def test_each_epoch_visits_each_image_once(make_source):
    source = make_source([(16, 24)] * 7)
    seen = numbers(take(source, 7, batch_size=3, **PLAIN))
    epochs = [seen[k : k + 7] for k in range(0, 21, 7)]
    assert all(sorted(e) == list(range(7)) for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert seen != numbers(take(source, 7, batch_size=3, **PLAIN, seed=4))


def test_resuming_continues(make_source):
    source = make_source([(20, 30)] * 5)
    whole = take(source, 6)
    assert_same(whole[4:], take(source, 2, start_step=4))


def test_hosts_take_slices_of_one_batch(make_source):
    source = make_source([(20, 30)] * 5)
    whole = take(source, 3)
    for count in (2, 4):
        parts = [take(source, 3, shard=(i, count)) for i in range(count)]
        joined = [
            {k: np.concatenate([p[k] for p in batch]) for k in ("image", "label")}
            for batch in zip(*parts, strict=True)
        ]
        assert_same(whole, joined)


def test_parallelism_changes_nothing(make_source, monkeypatch):
    source = make_source([(20, 30)] * 5)
    runs = []
    for threads in (1, 2, 8):
        monkeypatch.setattr(batches, "_threads", lambda n=threads: n)
        runs.append(take(source, 4))
    assert_same(runs[0], runs[1])
    assert_same(runs[0], runs[2])


def test_seed_and_epoch_change_the_augmentation(make_source):
    source = make_source([(20, 30)])
    first, second = take(source, 2, batch_size=1)
    assert (first["image"] != second["image"]).any()
    assert (first["image"] != take(source, 1, batch_size=1, seed=4)[0]["image"]).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size 0"),
        ({"batch_size": -4}, "batch_size -4"),
        ({"batch_size": 5, "shard": (0, 2)}, "5 is not divisible by 2 shards"),
        ({"shard": (2, 2)}, r"shard index 2 must be in 0\.\.1"),
        ({"crop_size": (0, 4)}, "crop_size must be"),
        ({"crop_size": (4,)}, "crop_size must be"),
        ({"scale_min": 0}, "0 < scale_min"),
        ({"scale_min": 3}, "scale_min <= scale_max"),
        ({"scale_step": -1}, "scale_step must be 0 or more"),
        ({"scale_step": 0.7}, "scale_step 0.7 does not divide"),
        ({"brightness": -1}, "brightness"),
        ({"brightness": True}, "brightness"),
        ({"start_step": -1}, "start_step"),
        ({"seed": -1}, "seed"),
    ],
)
def test_refuses(make_source, change, message):
    with pytest.raises(ValueError, match=message):
        take(make_source([(4, 4)]), 1, **change)


def test_unlabelled_split(streets):
    source = open_source("cityscapes", root=streets, split="test")
    with pytest.raises(ValueError, match=r"split 'test' .* has no labels to train on"):
        take(source, 1)


def damage(path, how):
    data = Path(path).read_bytes()
    if how == "gone":
        Path(path).unlink()
    elif how == "jpeg":
        Image.open(path).convert("L").save(path, "JPEG")
    elif how == "colour":
        Image.new("RGB", (30, 20), (3, 5, 7)).save(path)
    else:
        flipped = data[:60] + bytes([data[60] ^ 1]) + data[61:]
        content = {"empty": b"", "cut": data[: len(data) // 2], "flipped": flipped}
        Path(path).write_bytes(content[how])


@pytest.mark.parametrize(
    ("kind", "how", "error"),
    [
        ("image", "empty", ValueError),
        ("image", "cut", ValueError),
        ("image", "flipped", ValueError),
        ("image", "gone", FileNotFoundError),
        ("label", "empty", ValueError),
        ("label", "cut", ValueError),
        ("label", "gone", FileNotFoundError),
        ("label", "jpeg", ValueError),
        ("label", "colour", ValueError),
    ],
)
def test_bad_files_are_named_and_never_skipped(make_source, kind, how, error):
    source = make_source([(20, 30)] * 3)
    path = (source.image_paths if kind == "image" else source.label_paths)[1]
    damage(path, how)
    with pytest.raises(error, match=path) as caught:
        take(source, 3, batch_size=1)
    assert "Traceback" not in str(caught.value)
    with pytest.raises(error, match=path):
        list(segmentation_data.eval_batches(source, batch_size=2))


@pytest.mark.parametrize("damaged", [False, True])
def test_program_ends_with_samples_under_way(make_source, damaged):
    """TensorFlow would wait for ever for Python code that cannot run during the shutdown."""
    source = make_source([(400, 400)] * 8)
    if damaged:
        damage(source.image_paths[5], "cut")
    code = f"""
from hrnet_jax.data import Classes, Source
from hrnet_jax.data.pipeline.augment import Augmentation
from hrnet_jax.data.pipeline.batches import BatchPlan, iterate
from hrnet_jax.data.pipeline.segmentation import train_dataset
from hrnet_jax.data.sources.files import Files
classes = Classes.from_json({source.classes.to_json()})
source = Source("x", "train", classes, {source.ids}, {source.records})
batches = iterate(
    train_dataset(source, Augmentation((800, 800)), BatchPlan(batch_size=8, seed=0))
)
first = next(batches)
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=False, timeout=90, capture_output=True, text=True)
    assert done.returncode == damaged, done.stderr
    assert ("image005.png is damaged" in done.stderr) == damaged


def test_unknown_id_stops_at_the_record(make_source):
    label = np.full((20, 30), 3, np.uint8)
    label[10:, 20:] = 77
    source = make_source([(20, 30)], label=label)
    with pytest.raises(ValueError, match=r"label000.png holds the ids \[77\].*known: \[3, 5, 7\]"):
        take(source, 1, crop_size=(20, 30), **PLAIN)


SIZES = [(6, 8), (6, 8), (4, 9), (6, 8), (4, 9), (6, 8), (6, 8)]


def test_evaluation_sees_every_image_once(make_source):
    source = make_source(SIZES)
    batches = list(segmentation_data.eval_batches(source, batch_size=2))
    assert [b["image"].shape[1:3] for b in batches] == [(6, 8)] * 3 + [(4, 9)]
    assert [b["index"].tolist() for b in batches] == [[0, 1], [3, 5], [6, -1], [2, 4]]
    assert batches[2]["valid_mask"].tolist() == [True, False]
    assert batches[0]["valid_mask"].dtype == bool
    assert batches[0]["index"].dtype == np.int32
    assert (batches[2]["label"][1] == 255).all()
    for batch in batches:
        for k, index in enumerate(batch["index"]):
            if index >= 0:
                expected = np.asarray(Image.open(source.image_paths[index]))
                np.testing.assert_array_equal(batch["image"][k], expected)
                raw = np.asarray(Image.open(source.label_paths[index]))
                np.testing.assert_array_equal(batch["label"][k], np.searchsorted([3, 5, 7], raw))


@pytest.mark.parametrize("count", [2, 4])
def test_evaluation_on_several_processes_lines_up(make_source, count):
    source = make_source(SIZES)
    whole = list(segmentation_data.eval_batches(source, batch_size=4))
    parts = [
        list(segmentation_data.eval_batches(source, batch_size=4, shard=Shard(i, count)))
        for i in range(count)
    ]
    assert len({len(p) for p in parts}) == 1
    for expected, *got in zip(whole, *parts, strict=True):
        for key in expected:
            np.testing.assert_array_equal(expected[key], np.concatenate([g[key] for g in got]))


def test_evaluation_pads_to_steps(make_source):
    source = make_source(SIZES)
    batches = list(segmentation_data.eval_batches(source, batch_size=4, size_step=8))
    assert [b["image"].shape[1:3] for b in batches] == [(8, 8)] * 2 + [(8, 16)]
    assert [b["index"].tolist() for b in batches] == [[0, 1, 3, 5], [6, -1, -1, -1], [2, 4, -1, -1]]
    assert batches[2]["size"][:2].tolist() == [[4, 9], [4, 9]]
    image = np.asarray(Image.open(source.image_paths[4]))
    padded = np.pad(image, [(0, 4), (0, 7), (0, 0)], mode="edge")
    np.testing.assert_array_equal(batches[2]["image"][1], padded)
    label = batches[2]["label"][1]
    assert (label[:4, :9] < 3).all()
    assert (label[4:] == 255).all()
    assert (label[:, 9:] == 255).all()
    with pytest.raises(ValueError, match="size_step must be at least 1, got 0"):
        list(segmentation_data.eval_batches(source, batch_size=4, size_step=0))


def test_evaluation_without_labels(streets):
    source = open_source("cityscapes", root=streets, split="test")
    (batch,) = segmentation_data.eval_batches(source, batch_size=1)
    assert batch["valid_mask"].tolist() == [True]
    assert (batch["label"] == 255).all()
