import numpy as np
import pytest
from batching import train_batches

from hrnet_jax.data import Classes, open_source
from hrnet_jax.data.pipeline import segmentation as segmentation_data
from hrnet_jax.data.pipeline.class_counts import class_counts
from hrnet_jax.data.pipeline.mixture import Mixture, open_mixture

OTHER = Classes(("dirt", "leaves", "cloud", "bird"), ((0, 0, 0),) * 4, (1, 2, 4, 9), (6,))
CLASS_MAP = {"dirt": "ground", "leaves": "tree", "cloud": "sky", "bird": ""}


def test_mapped_classes(make_source):
    raw = np.array([[1, 2, 4, 9, 6, 255]], np.uint8)
    first = make_source([(2, 2)])
    other = make_source([(1, 6)], label=raw, classes=OTHER)
    mapped = other.with_classes(first.classes, CLASS_MAP)
    assert mapped.classes == first.classes
    assert mapped.lookup()[raw].tolist() == [[0, 1, 2, 255, 255, 255]]
    assert mapped.lookup()[3] == 254  # an id of the other set, unknown to this one
    assert mapped.take([0]).lookup()[9] == 255
    both = other.with_classes(first.classes, CLASS_MAP | {"leaves": "ground"})
    assert both.lookup()[raw].tolist() == [[0, 0, 2, 255, 255, 255]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drit": "ground"}, r"maps the unknown classes \['drit'\]; known: .*'dirt'"),
        ({"dirt": "grond"}, r"maps to the unknown classes \['grond'\]; known: .*'ground'"),
        ({"dirt": None}, r"lacks the classes \['dirt'\]"),
    ],
)
def test_wrong_class_maps(make_source, change, message):
    class_map = {k: v for k, v in (CLASS_MAP | change).items() if v is not None}
    source = make_source([(1, 6)], classes=OTHER)
    with pytest.raises(ValueError, match=message):
        source.with_classes(make_source([(2, 2)]).classes, class_map)


def test_sources_must_share_their_classes(make_source, streets):
    street = open_source("cityscapes", root=streets, split="train")
    with pytest.raises(
        ValueError,
        match=r"other classes than 'test'.*ready-made .*camvid to cityscapes",
    ):
        Mixture((make_source([(2, 2)]), street), (1, 1))
    with pytest.raises(ValueError, match="2 sources but 1 weights"):
        Mixture((street, street))
    test = open_source("cityscapes", root=streets, split="test")
    with pytest.raises(ValueError, match=r"'test' .* has no labels to train on"):
        Mixture((street, test), (1, 1))


def test_splits_without_labels_for_a_teacher(streets):
    street = open_source("cityscapes", root=streets, split="train")
    other = {"name": "cityscapes", "root": str(streets), "split": "test", "weight": 0.5}
    mixture = open_mixture(street, [other], 0.0, unlabeled=True)
    blank = mixture.sources[1]
    image, label = blank.read(0)
    expected, none = open_source("cityscapes", root=streets, split="test").read(0)
    np.testing.assert_array_equal(image, expected)
    assert none is None
    assert label.shape == image.shape[:2]
    assert (label == 255).all()
    assert blank.records.open(0).label((slice(2, 5), slice(1, 3))).shape == (3, 2)
    assert len(blank.take([0]).image_paths) == 1
    assert not class_counts(blank).any()
    alone = open_mixture(open_source("cityscapes", root=streets, split="test"), [], 0.0,
                         unlabeled=True)  # fmt: skip
    assert alone.has_labels
    with pytest.raises(ValueError, match=r"class_uniform=0\.5.*'test' of 'cityscapes' has none"):
        open_mixture(street, [other], 0.5, unlabeled=True)


def test_epoch_is_one_turn_of_the_first_source(streets):
    street = open_source("cityscapes", root=streets, split="train")
    mixture = Mixture((street, street.take([0, 1])), (0.7, 0.3))
    assert len(mixture) == 10
    assert mixture.describe().startswith("70.0% cityscapes train (7 images), 30.0% cityscapes")


def test_described_by_the_config(streets, camvid):
    street = open_source("cityscapes", root=streets, split="train")
    assert open_mixture(street, (), 0.0) is street
    entry = {"name": "camvid", "root": str(camvid), "split": "train", "weight": 0.25}
    # Without a class_map the ready-made one is taken, where there is one.
    ready = open_mixture(street, (entry,), 0.0).sources[1]
    assert ready.classes == street.classes
    assert ready.lookup()[4] == street.classes.names.index("sidewalk")  # CamVid's pavement
    names = open_source("camvid", root=camvid, split="train").classes.names
    class_map = {name: name if name in street.classes.names else "" for name in names}
    mixture = open_mixture(street, (entry | {"class_map": class_map},), 0.0)
    assert mixture.weights == (0.75, 0.25)
    assert (mixture.name, mixture.split, len(mixture)) == ("cityscapes", "train", 9)
    for change, message in (
        ({"wieght": 1}, r"unknown keys \['wieght'\]; known: "),
        ({"weight": 1.0}, "leave nothing for 'cityscapes'"),
        ({"weight": -1}, "must be positive"),
        ({"split": "extra"}, "unknown split 'extra'"),
    ):
        with pytest.raises(ValueError, match=message):
            open_mixture(street, (entry | {"class_map": class_map} | change,), 0.0)
    with pytest.raises(ValueError, match="each entry is a dict with"):
        open_mixture(street, ({"name": "camvid"},), 0.0)


def crops(source, batches, **options):
    options = {"batch_size": 4, "crop_size": (24, 40), "seed": 1} | options
    dataset = train_batches(source, **options)
    return [next(dataset) for _ in range(batches)]


def test_samples_by_class_hold_it_wherever_it_is(make_source, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    label = np.full((200, 300), 3, np.uint8)
    label[150:153, 260:264] = 7  # 12 pixels of 60,000
    source = make_source([(200, 300)] * 3, label=label)
    plain = crops(source, 10)
    hit = np.mean([(b["label"] == 2).any((1, 2)).mean() for b in plain])
    assert hit < 0.2
    chosen = crops(Mixture((source,), class_uniform=1.0), 10, scale_min=0.8)
    hit = [(b["label"] == 2).any((1, 2)) for b in chosen]
    assert np.sum(hit) >= 20  # two classes in turn
    # Counted once: the second time the labels are not read.
    assert len(list((tmp_path / "cache").rglob("survey_*.npz"))) == 1
    again = crops(Mixture((source,), class_uniform=1.0), 1, scale_min=0.8)
    np.testing.assert_array_equal(again[0]["image"], chosen[0]["image"])


def test_changed_labels_are_noticed(make_source, monkeypatch):
    monkeypatch.setattr(segmentation_data, "class_counts", lambda source: np.array([[1, 0, 0]]))
    source = make_source([(20, 30)], label=np.full((20, 30), 5, np.uint8))
    with pytest.raises(ValueError, match=r"label000.png has no pixel of 'ground'"):
        crops(Mixture((source,), class_uniform=1.0), 1)


@pytest.mark.parametrize("process_count", [2, 4])
def test_mixture_does_not_depend_on_hosts_or_threads(streets, camvid, process_count):
    street = open_source("cityscapes", root=streets, split="train")
    names = open_source("camvid", root=camvid, split="train").classes.names
    class_map = {name: name if name in street.classes.names else "" for name in names}
    entry = {"name": "camvid", "root": camvid, "split": "train", "weight": 0.4}
    mixture = open_mixture(street, (entry | {"class_map": class_map},), 0.3)
    whole = crops(mixture, 4)
    parts = [
        crops(mixture, 2, start_step=2, shard=(i, process_count), threads=3 - i) for i in range(2)
    ]
    parts += [
        crops(mixture, 2, start_step=2, shard=(i, process_count), threads=1)
        for i in range(2, process_count)
    ]
    for step in range(2):
        for key in ("image", "label"):
            joined = np.concatenate([part[step][key] for part in parts])
            np.testing.assert_array_equal(joined, whole[2 + step][key])
