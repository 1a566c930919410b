"""Metrics of a cross-validation, by hand."""

import numpy as np
import pytest

from hrnet_jax.evaluation import folds, metrics

NAMES = ("road", "car", "sky")


def counts(*images):
    """One [N, 3, C] array of images (correct, ground truth, predicted)."""
    return np.array(images, np.int64)


# The first fold has no sky in the ground truth, but 2 pixels of road are predicted as sky.
NORTH = counts(
    ((6, 2, 0), (8, 2, 0), (6, 2, 2)),
    ((4, 0, 0), (4, 4, 0), (8, 0, 0)),
)
SOUTH = counts(((3, 0, 5), (5, 0, 5), (3, 2, 5)))
# road 10 / 14, car 2 / 6, no sky: two classes count.
NORTH_MIOU = (10 / 16 + 2 / 6) / 2
# road 3 / 5, no car in the ground truth, sky 5 / 5.
SOUTH_MIOU = (3 / 5 + 1) / 2
# Together: road 13 of 17 + 17 - 13, car 2 of 6 + 4 - 2, sky 5 of 5 + 7 - 5.
POOLED_MIOU = (13 / 21 + 2 / 8 + 5 / 7) / 3


def test_absent_classes_do_not_count():
    assert folds.present_miou(NORTH.sum(0)) == pytest.approx(NORTH_MIOU)
    # The usual convention counts the sky that is predicted in the first fold, as 0.
    assert metrics.miou_of_counts(NORTH.sum(0)) == pytest.approx(NORTH_MIOU * 2 / 3)
    assert np.isnan(folds.present_miou(np.zeros((3, 3), np.int64)))


def test_means_and_pooled_counts():
    result = folds.summarize({"north": [NORTH], "south": [SOUTH]}, NAMES)
    north, south = result["folds"]["north"], result["folds"]["south"]
    assert (north["images"], north["absent_classes"]) == (2, ["sky"])
    assert (south["images"], south["absent_classes"]) == (1, ["car"])
    assert north["miou"]["value"] == pytest.approx(NORTH_MIOU)
    assert north["pixel_accuracy"]["value"] == pytest.approx(12 / 18)
    assert north["per_class_iou"]["sky"]["value"] is None
    assert north["per_class_iou"]["sky"]["interval"] is None
    assert south["per_class_iou"]["road"]["value"] == pytest.approx(0.6)
    assert south["miou"]["interval"] == [pytest.approx(SOUTH_MIOU)] * 2  # there is one image
    assert result["mean_of_folds"]["value"] == pytest.approx((NORTH_MIOU + SOUTH_MIOU) / 2)
    assert result["pooled"]["miou"]["value"] == pytest.approx(POOLED_MIOU)
    assert result["pooled"]["pixel_accuracy"]["value"] == pytest.approx(20 / 28)
    assert north["miou"]["seed_deviation"] is None


def test_interval_draws_images_within_their_fold():
    # Of two images the resamples are both, or one of them twice: half, a quarter and a quarter of
    # all, so the 95 % in the middle reach from the worse image to the better one.
    one, two = (float(folds.present_miou(image)) for image in NORTH)
    assert one == pytest.approx((6 / 8 + 1) / 2)
    assert two == pytest.approx((4 / 8 + 0) / 2)
    result = folds.summarize({"north": [NORTH], "south": [SOUTH]}, NAMES)
    assert result["folds"]["north"]["miou"]["interval"] == pytest.approx([two, one])
    ends = [(v + SOUTH_MIOU) / 2 for v in (two, one)]
    assert result["mean_of_folds"]["interval"] == pytest.approx(ends)


def test_seeds_are_averaged_and_their_spread_is_told():
    better = NORTH.copy()
    better[1] = ((4, 4, 0), (4, 4, 0), (4, 4, 0))
    assert folds.present_miou(better.sum(0)) == pytest.approx((10 / 12 + 1) / 2)
    miou = folds.summarize({"north": [NORTH, better]}, NAMES)["folds"]["north"]["miou"]
    a, b = NORTH_MIOU, (10 / 12 + 1) / 2
    assert miou["by_seed"] == pytest.approx([a, b])
    assert miou["value"] == pytest.approx((a + b) / 2)
    assert miou["seed_deviation"] == pytest.approx((b - a) / 2**0.5)
    # The second image alone has 0.25 and 1; the first one 0.875 with both seeds.
    assert miou["interval"] == pytest.approx([(0.25 + 1) / 2, 0.875])


def test_nothing_differs_from_itself():
    both = {"north": [NORTH], "south": [SOUTH]}
    result = folds.compare(both, {"south": [SOUTH] * 2, "north": [NORTH] * 2}, NAMES)
    entries = [result["mean_of_folds"], *result["pooled"]["per_class_iou"].values()]
    entries += [fold["miou"] for fold in result["folds"].values()]
    assert all(e["difference"] == 0 and e["interval"] == [0, 0] for e in entries)
    assert result["folds"]["north"]["per_class_iou"]["sky"]["difference"] is None


def test_differences_are_paired():
    # In each image half as many pixels of road are correct: worse in every resample, although the
    # images differ by far more than that from each other.
    rng = np.random.default_rng(0)
    truth = rng.integers(10, 1000, 20) * 2
    good = np.zeros((20, 3, 3), np.int64)
    good[:, :, 0] = truth[:, None]
    bad = good.copy()
    bad[:, (0, 2), 0] //= 2
    difference = folds.compare({"a": [good]}, {"a": [bad]}, NAMES)["mean_of_folds"]
    assert difference["difference"] == pytest.approx(0.5)
    assert difference["interval"] == pytest.approx([0.5, 0.5])


def test_other_folds_cannot_be_compared():
    with pytest.raises(ValueError, match=r"\{'north': 2\} images with folds of \{'south': 1\}"):
        folds.compare({"north": [NORTH]}, {"south": [SOUTH]}, NAMES)
    with pytest.raises(ValueError, match="same number of seeds"):
        folds.summarize({"north": [NORTH], "south": [SOUTH, SOUTH]}, NAMES)


def test_tables():
    both = {"north": [NORTH, NORTH], "south": [SOUTH, SOUTH]}
    lines = folds.table(folds.summarize(both, NAMES), NAMES).splitlines()
    assert lines[0].endswith("| road | car | sky |")
    assert lines[2].startswith("| north | 2 | 47.9 | 25.0 .. 87.5 | 47.9, 47.9 (deviation 0.0) |")
    assert lines[2].endswith("| 62.5 | 33.3 | - |")
    assert lines[4].startswith("| **mean of folds** |  | 64.0 |")
    assert lines[5].startswith("| **all pixels together** | 3 | 52.8 |")
    assert "north has no pixel of sky: not in its mean." in lines
    table = folds.comparison_table(folds.compare(both, both, NAMES))
    assert "| mean of folds, mIoU | 64.0 | 64.0 | +0.0 | +0.0 .. +0.0 |" in table
