import json
import logging

import numpy as np
import pytest
from PIL import Image

from hrnet_jax.configs import common, imagenet
from hrnet_jax.data.pipeline.augment import Augmentation
from hrnet_jax.data.pipeline.classification import CropAugmentation
from hrnet_jax.data.pipeline.mixture import Mixture
from hrnet_jax.data.pipeline.survey import ALONE
from hrnet_jax.runtime import sharding
from hrnet_jax.train import build, loop
from hrnet_jax.train.tasks import augmentation_of, task_of


def test_augmentation_is_what_the_configuration_says():
    data = common.get_config().data
    data.crop_size, data.scale_max, data.brightness = (32, 48), 1.5, 7
    found = augmentation_of(data, Augmentation)
    assert found == Augmentation((32, 48), data.scale_min, 1.5, data.scale_step, data.flip, 7)
    data = imagenet.get_config().data
    data.area_min = 0.25
    found = augmentation_of(data, CropAugmentation)
    assert found == CropAugmentation(tuple(data.crop_size), 0.25, data.aspect_max, data.flip)


def test_errors_name_the_key():
    data = common.get_config().data
    data.brightness = 256
    with pytest.raises(ValueError, match=r"brightness is the largest shift, 0\.\.255, got 256"):
        augmentation_of(data, Augmentation)


@pytest.fixture
def masks(tmp_path):
    """The configuration of a folder with masks of 0 and 255 and two classes, 0 and 1."""
    for split, count in (("train", 3), ("val", 2)):
        for k in range(count):
            label = np.zeros((32, 32), np.uint8)
            label[: 4 + k if split == "train" else 9] = 255
            for kind, pixels in (("images", np.repeat(label[..., None], 3, -1)), ("labels", label)):
                path = tmp_path / kind / split / f"{k}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    (tmp_path / "classes.json").write_text(json.dumps({"names": ["background", "leaf"]}))
    config = common.get_config()
    values = {"data.name": "folder", "data.root": str(tmp_path), "data.crop_size": (32, 32)}
    config.update_from_flattened_dict(values | {"loss.class_weights": None, "batch_size": 1})
    return config


def test_odd_labels_stop_a_run_or_warn(masks, caplog):
    sources = build.open_sources(masks)
    mesh = sharding.make_mesh(1)
    with pytest.raises(ValueError, match=r"(?s)\[0, 255\], \"ignore.*data\.allow_odd_labels=True"):
        loop.check_data(masks, *sources, mesh)
    masks.data.allow_odd_labels = True
    caplog.set_level(logging.INFO, "hrnet_jax")
    warnings = loop.check_data(masks, *sources, mesh)
    assert [w.split(" hold ")[0] for w in warnings] == [
        "all 3 labels of 'folder', split 'train',",
        "all 2 labels of 'folder', split 'val',",
    ]
    assert "evaluating on:\nlabels of all 2 images of folder val" in caplog.text
    assert "\nWARNING: all 3 labels" in caplog.text


def test_a_correct_class_file_passes(masks, tmp_path):
    classes = {"names": ["background", "leaf"], "label_ids": [0, 255], "ignore_ids": []}
    (tmp_path / "classes.json").write_text(json.dumps(classes))
    # 75 of 96 rows are background.
    found = task_of("segmentation").audit(masks, *build.open_sources(masks), ALONE)
    assert "background  84.375%        3" in found.text
    assert not [w for w in found.warnings if "one class" in w]
    masks.data.audit_images = 2
    found = task_of("segmentation").audit(masks, *build.open_sources(masks), ALONE)
    assert "labels of 2 of 3 images of folder train" in found.text


def test_bad_files_of_the_validation_split_end_the_run_before_the_first_step(masks, tmp_path):
    path = tmp_path / "labels" / "val" / "1.png"
    Image.fromarray(np.full((32, 32), 9, np.uint8)).save(path)
    masks.data.allow_odd_labels = True
    with pytest.raises(ValueError, match=r"(?s)split 'val', hold ids .*id 9: 1024 pixels in 1"):
        task_of("segmentation").audit(masks, *build.open_sources(masks), ALONE)
    Image.fromarray(np.zeros((32, 31), np.uint8)).save(path)
    with pytest.raises(ValueError, match=r"val/1\.png is 32x31 but its image"):
        task_of("segmentation").audit(masks, *build.open_sources(masks), ALONE)


def test_one_class_is_refused(masks, tmp_path):
    (tmp_path / "classes.json").write_text(json.dumps({"names": ["leaf"]}))
    with pytest.raises(ValueError, match=r"one class only, 'leaf'.*\[\"background\", \"leaf\"\]"):
        build.open_sources(masks)


def test_images_are_described_by_source(masks):
    train, val = build.open_sources(masks)
    (alone,) = build.describe_images(train)
    assert (alone["split"], alone["number"]) == ("train", 3)
    assert build.describe_images(train.take([1, 0, 2]))[0]["names"] != alone["names"]
    mixed = val.with_classes(train.classes, {"background": "leaf", "leaf": ""})
    first, second = build.describe_images(Mixture((train, mixed), (0.5, 0.5)))
    assert first == alone
    assert second["ids"] == {"0": 1, "1": 255, "255": 255}
