import pytest

from hrnet_jax.configs import common, imagenet
from hrnet_jax.data.pipeline.augment import Augmentation
from hrnet_jax.data.pipeline.classification import CropAugmentation
from hrnet_jax.train.tasks import augmentation_of


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
