"""Each check with labels that are odd, and with correct ones that look similar."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from hrnet_jax.data.pipeline.audit import audit_labels
from hrnet_jax.data.pipeline.odd_labels import (
    MANY_IMAGES,
    framed,
    reasons_to_doubt,
    reasons_to_stop,
)
from hrnet_jax.data.sources.cityscapes import CLASSES as CITYSCAPES
from hrnet_jax.data.sources.source import Classes

MASKS = Classes(("background", "leaf"), ((0, 0, 0), (0, 160, 60)), (0, 1))


@pytest.fixture
def audit(make_source):
    """An audit of labels with these {id: pixels} each."""

    def make(*labels, classes=MASKS, split="train"):
        rows = [np.repeat(list(ids), list(ids.values())).astype(np.uint8)[None] for ids in labels]
        source = make_source([row.shape for row in rows], classes=classes)
        for path, row in zip(source.label_paths, rows, strict=True):
            Image.fromarray(row).save(path)
        return dataclasses.replace(audit_labels(source, progress=False), split=split)

    return make


def test_masks_of_0_and_255(audit):
    (message,) = reasons_to_stop(audit({0: 90, 255: 10}, {0: 100}))
    assert "hold one class only, 'background'; ids found: [0, 255]" in message
    assert 'if it is \'leaf\', write "label_ids": [0, 255], "ignore_ids": []' in message
    right = dataclasses.replace(MASKS, label_ids=(0, 255))
    assert reasons_to_stop(audit({0: 90, 255: 10}, classes=right)) == []
    # 255 is a border between the classes.
    assert reasons_to_stop(audit({0: 90, 255: 10}, {1: 100})) == []


def test_masks_whose_foreground_is_the_first_class(audit):
    classes = Classes(("leaf", "soil"), ((0, 160, 60), (0, 0, 0)), (1, 2), ignore_ids=(0,))
    (message,) = reasons_to_stop(audit({0: 90, 1: 10}, classes=classes))
    assert 'if it is \'soil\', write "label_ids": [1, 0], "ignore_ids": []' in message


def test_one_of_many_classes(audit):
    (message,) = reasons_to_stop(audit({7: 100}, classes=CITYSCAPES))
    assert "hold one class only, 'road'" in message
    assert "only a part of the dataset?" in message
    (message,) = reasons_to_stop(audit({7: 90, 0: 10}, classes=CITYSCAPES))
    assert "it must be in label_ids and not in ignore_ids" in message


def test_train_ids_where_label_ids_belong(audit):
    # road, sidewalk, building, pole, vegetation, sky, person, car as train ids
    train_ids = {0: 40, 1: 6, 2: 20, 5: 1, 8: 15, 10: 4, 11: 1, 13: 8, 255: 5}
    (message,) = reasons_to_stop(audit(train_ids, classes=CITYSCAPES))
    assert "these look like train ids 0..18 where label ids belong" in message
    assert '"label_ids": [0, 1, 2, 3,' in message
    own = dataclasses.replace(CITYSCAPES, label_ids=tuple(range(19)), ignore_ids=())
    assert reasons_to_stop(audit(train_ids, classes=own)) == []


@pytest.mark.parametrize(
    "ids",
    [
        {7: 40, 8: 6, 11: 20, 1: 5, 21: 10},  # one real image with the car's hood
        {7: 90, 11: 5, 1: 5},  # a small part of it, without vegetation, sky and cars
        {1: 30, 7: 40, 8: 30},  # much is ignored, but one id only
        {7: 40, 26: 30, 0: 15, 3: 15},
    ],
)
def test_label_ids_of_a_few_images(audit, ids):
    assert reasons_to_stop(audit(ids, classes=CITYSCAPES)) == []


def test_an_absent_class_beside_many_ignored_pixels(audit):
    classes = Classes(("soil", "leaf", "stone"), ((0, 0, 0), (0, 9, 0), (9, 9, 9)), (1, 2, 3), (4,))
    (message,) = reasons_to_doubt([audit({1: 40, 2: 30, 4: 30}, classes=classes)], None)
    assert "have no pixel of 'stone', but 30% of all pixels are ignored (ids [4])" in message
    assert reasons_to_doubt([audit({1: 50, 2: 30, 4: 20}, classes=classes)], None) == []
    assert reasons_to_doubt([audit({1: 40, 2: 20, 3: 1, 4: 39}, classes=classes)], None) == []
    # The other dataset of a mixture has the class.
    both = [audit({1: 40, 2: 30, 4: 30}, classes=classes), audit({3: 9}, classes=classes)]
    assert reasons_to_doubt(both, None) == []


def test_copies_of_one_label(audit):
    (message,) = reasons_to_doubt([audit(*[{0: 6, 1: 4}] * MANY_IMAGES)], None)
    assert "all hold the same ids with the same numbers of pixels" in message
    assert reasons_to_doubt([audit(*[{0: 6, 1: 4}] * (MANY_IMAGES - 1))], None) == []
    labels = [{0: 6, 1: 4}] * MANY_IMAGES + [{0: 5, 1: 5}]
    assert reasons_to_doubt([audit(*labels)], None) == []


def test_a_class_that_is_evaluated_only(audit):
    train, val = audit({0: 9}), audit({0: 5, 1: 4}, split="val")
    (message,) = reasons_to_doubt([train], val)
    assert message.startswith("classes with pixels in the labels of 'val' but none in those of")
    assert "'leaf'. They cannot" in message
    assert reasons_to_doubt([val], dataclasses.replace(train, split="val")) == []


def test_the_same_images_in_both_splits(audit):
    labels = [{0: 6, 1: 4}, {0: 7, 1: 3}, {0: 8, 1: 2}]
    train = audit(*labels)
    (message,) = reasons_to_doubt([train], dataclasses.replace(train, split="val"))
    assert "3 of 3 labels of 'val' are in 'train', too" in message
    assert reasons_to_doubt([train], train) == []  # the training split was chosen
    others = audit({0: 1, 1: 9}, {0: 2, 1: 8}, {0: 8, 1: 2}, split="val")
    assert reasons_to_doubt([train], others) == []  # equal names


def test_frame():
    assert framed("here").splitlines()[2] == "WARNING: here"
