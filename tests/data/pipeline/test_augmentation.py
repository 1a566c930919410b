"""What training gets, measured in its batches, against the official augmentation's draws."""

import itertools

import numpy as np
import pytest
from batching import train_batches
from PIL import Image
from scipy import stats

from hrnet_jax.data import Source
from hrnet_jax.data.sources.files import Files
from hrnet_jax.data.sources.source import Classes

SIZE, CROP, COUNT = (64, 128), (24, 48), 1600
SCALES = np.arange(17) / 10 + 0.5


@pytest.fixture(scope="module")
def views(tmp_path_factory):
    """(scale, top, left, flip) of many samples, and the labels in them.

    Red says the column and green the row, so that a sample shows what was done to it.
    """
    folder = tmp_path_factory.mktemp("ramp")
    pixels = np.zeros((*SIZE, 3), np.uint8)
    pixels[..., 0] = 2 * np.arange(SIZE[1])
    pixels[..., 1] = 4 * np.arange(SIZE[0])[:, None]
    label = np.random.default_rng(0).choice(np.array([3, 9, 200, 255], np.uint8), SIZE)
    Image.fromarray(pixels).save(folder / "image.png")
    Image.fromarray(label).save(folder / "label.png")
    classes = Classes(("a", "b", "c"), ((9, 0, 0), (0, 9, 0), (0, 0, 9)), (3, 9, 200))
    files = (str(folder / "image.png"),), (str(folder / "label.png"),)
    source = Source("ramp", "train", classes, ("image",), Files(*files))
    dataset = train_batches(source, batch_size=16, crop_size=CROP, seed=0)
    batches = list(itertools.islice(dataset, COUNT // 16))
    images = np.concatenate([b["image"] for b in batches]).astype(float)
    labels = {int(i) for b in batches for i in np.unique(b["label"])}
    return [_measure(image) for image in images], labels


def _measure(image):
    columns, rows = image[CROP[0] // 2, :, 0] / 2, image[:, CROP[1] // 2, 1] / 4
    flip = columns[0] > columns[-1]
    columns = columns[::-1] if flip else columns
    inside = (columns > 0) & (columns < SIZE[1] - 1)
    place = np.arange(CROP[1])
    slope = np.polyfit(place[inside], columns[inside], 1)[0]
    scale = SCALES[np.argmin(np.abs(1 / slope - SCALES))]
    return scale, _offset(rows, SIZE[0], scale), _offset(columns, SIZE[1], scale), flip


def _offset(values, length, scale):
    """Where the crop begins in the resized axis: the values are positions in the original."""
    inside = (values > 0) & (values < length - 1)
    resized = (values + 0.5) * round(length * scale) / length - 0.5
    return round(np.mean((resized - np.arange(len(values)))[inside]))


def test_scales_crops_and_flips_are_the_official_ones(views):
    scales, tops, lefts, flips = map(np.array, zip(*views[0], strict=True))
    counts = np.array([(scales == s).sum() for s in SCALES])
    assert stats.chisquare(counts).pvalue > 1e-3
    assert stats.binomtest(int(flips.sum()), COUNT).pvalue > 1e-3
    # The official code, written anew: one of 17 factors, then any place where the crop fits.
    rng = np.random.default_rng(1)
    expected = {"top": [], "left": []}
    for scale in 0.5 + rng.integers(0, 17, 20 * COUNT) / 10:
        for name, length, crop in zip(expected, SIZE, CROP, strict=True):
            expected[name].append(rng.integers(0, round(length * scale) - crop + 1))
    for found, name in ((tops, "top"), (lefts, "left")):
        assert stats.ks_2samp(found, expected[name]).pvalue > 1e-3, name
        # Both ends occur, at the smallest factor often enough to be seen.
        length, crop = (SIZE[0], CROP[0]) if name == "top" else (SIZE[1], CROP[1])
        room = length // 2 - crop
        assert found.min() == 0
        assert found[scales == 0.5].max() == room
    # The three are independent of each other.
    assert abs(np.corrcoef(scales, flips)[0, 1]) < 5 / np.sqrt(COUNT)
    large = scales > 1.5
    assert abs(np.corrcoef(tops[large], lefts[large])[0, 1]) < 5 / np.sqrt(large.sum()) + 0.1


def test_labels_are_never_interpolated(views):
    assert views[1] == {0, 1, 2, 255}
