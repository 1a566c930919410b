import hashlib

import numpy as np
import pytest

from hrnet_jax.data.sources.cityscapes import CLASSES
from hrnet_jax.data.synthetic.scene import draw_scene


@pytest.mark.parametrize(
    ("number", "image_hash", "label_hash"),
    [
        (0, "93b6c3da5b7883e8", "1b917202d6454516"),
        (3, "7663dc1b0ffab1be", "57a605f961d88798"),
    ],
)
def test_scenes_stay_the_same(number, image_hash, label_hash):
    """The pixels of NumPy 2.4 and Pillow 13; other versions of these may draw others."""
    image, label = draw_scene(5, "val", number, 64, 96)
    assert hashlib.sha256(label.tobytes()).hexdigest()[:16] == label_hash
    assert hashlib.sha256(image.tobytes()).hexdigest()[:16] == image_hash


def test_scenes_differ():
    scenes = [
        draw_scene(seed, split, number, 32, 64)[0].tobytes()
        for seed, split, number in (
            (0, "train", 0),
            (0, "train", 1),
            (0, "val", 0),
            (1, "train", 0),
        )
    ]
    assert len(set(scenes)) == 4


def test_labels_are_classes_and_lie_where_they_belong():
    known = {*CLASSES.label_ids, 1}
    shares = np.zeros(256)
    top, bottom = np.zeros(256), np.zeros(256)
    for number in range(12):
        image, label = draw_scene(0, "train", number, 96, 192)
        assert image.shape == (96, 192, 3)
        assert image.dtype == label.dtype == np.uint8
        assert set(np.unique(label)) <= known
        shares += np.bincount(label.ravel(), minlength=256) / label.size / 12
        top += np.bincount(label[:32].ravel(), minlength=256)
        bottom += np.bincount(label[-32:].ravel(), minlength=256)
    share = dict(zip(CLASSES.names, shares[list(CLASSES.label_ids)], strict=True))
    assert 0.15 < share["road"] < 0.5
    assert 0.1 < share["building"] < 0.5
    assert min(share[n] for n in ("sidewalk", "vegetation", "sky", "car")) > 0.02
    assert min(share[n] for n in ("pole", "traffic sign", "person", "bicycle", "terrain")) > 1e-3
    assert (top[7], bottom[23]) == (0, 0)  # no road at the top, no sky at the bottom


def test_image_shows_the_classes_of_the_label():
    """Sky is brighter than road in daylight, and the colors vary."""
    image, label = draw_scene(0, "train", 0, 128, 256)
    assert image[label == 23].mean() > image[label == 7].mean() + 20
    assert image.std() > 25


def test_errors():
    with pytest.raises(ValueError, match="unknown split 'dev'"):
        draw_scene(0, "dev", 0, 64, 64)
    with pytest.raises(ValueError, match="at least 32"):
        draw_scene(0, "train", 0, 64, 31)
