"""With a tiny set of the same name and features, prepared here by TFDS itself."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from batching import train_image_batches

from hrnet_jax.data import open_images
from hrnet_jax.data.pipeline import classification as classification_data

COUNTS = {"train": 5, "validation": 3}


class Imagenet2012(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    name = "imagenet2012"
    VERSION = "5.1.0"

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="png"),
            "label": tfds.features.ClassLabel(names=["n01", "n02", "n03"]),
            "file_name": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in COUNTS}

    def _generate_examples(self, split):
        for k in range(COUNTS[split]):
            image = np.full((20 + k, 16, 3), 40 * k, np.uint8)
            yield k, {"image": image, "label": k % 3, "file_name": f"{k}.JPEG"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("imagenet")
    Imagenet2012(data_dir=root).download_and_prepare()
    return root


def test_every_image_with_its_class(prepared):
    source = open_images("tfds_imagenet", root=prepared, split="train")
    assert source.classes.names == ("n01", "n02", "n03")
    assert (len(source), source.ids[0]) == (5, "train/000000")
    seen = set()
    for index in (3, 0, 4, 1, 2):  # any order
        image, label = classification_data.read_image(source, index)
        number = int(np.asarray(image)[0, 0, 0]) // 40
        assert (image.size, label) == ((16, 20 + number), number % 3)
        seen.add(number)
    assert seen == set(range(5))
    assert len(open_images("tfds_imagenet", root=prepared, split="val")) == 3


def test_feeds_training_and_evaluation(prepared):
    source = open_images("tfds_imagenet", root=prepared, split="val")
    batch = next(train_image_batches(source, batch_size=3, crop_size=(8, 8), seed=0))
    assert [i // 40 for i in batch["image"][:, 0, 0, 0].tolist()] == batch["label"].tolist()
    batches = classification_data.eval_batches(source, batch_size=2, crop_size=(8, 8), short_side=8)
    assert [i for b in batches for i in b["index"]] == [0, 1, 2, -1]
    assert classification_data.audit_images(source, 9).startswith("3 images of 3 classes")


def test_says_how_to_prepare(prepared, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"not prepared.*tfds build imagenet2012 --data_dir"
    ):
        open_images("tfds_imagenet", root=tmp_path, split="train")
    with pytest.raises(ValueError, match="unknown split 'test'"):
        open_images("tfds_imagenet", root=prepared, split="test")
