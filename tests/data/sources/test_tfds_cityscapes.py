"""With a tiny set of the same name and features, prepared here by TFDS itself."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from batching import train_batches

from hrnet_jax.data import open_source
from hrnet_jax.data.pipeline import segmentation as segmentation_data
from hrnet_jax.data.pipeline.audit import audit_labels
from hrnet_jax.data.sources.cityscapes import CLASSES

SIZE = (12, 20)
COUNTS = {"train": 5, "validation": 3, "test": 2}


class Cityscapes(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    name = "cityscapes"
    BUILDER_CONFIGS = (tfds.core.BuilderConfig(name="semantic_segmentation", version="1.0.0"),)

    def _info(self):
        features = {
            "image_id": tfds.features.Text(),
            "image_left": tfds.features.Image(shape=(*SIZE, 3), encoding_format="png"),
            "segmentation_label": tfds.features.Image(shape=(*SIZE, 1), encoding_format="png"),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in COUNTS}

    def _generate_examples(self, split):
        for k in range(COUNTS[split]):
            image, label = picture(split, k)
            yield k, {"image_id": f"{k}", "image_left": image, "segmentation_label": label}


def picture(split, number):
    rng = np.random.default_rng([list(COUNTS).index(split), number])
    image = rng.integers(0, 256, (*SIZE, 3), np.uint8)
    return image, rng.choice(np.array(CLASSES.label_ids, np.uint8), (*SIZE, 1))


@pytest.fixture(scope="module", params=["tfrecord", "array_record"])
def prepared(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    builder = Cityscapes(data_dir=root, config="semantic_segmentation", file_format=request.param)
    config = tfds.download.DownloadConfig(num_shards=2)
    builder.download_and_prepare(download_config=config)
    return root


def test_every_sample_once_and_exactly(prepared):
    source = open_source("tfds_cityscapes", root=prepared, split="train")
    assert len(source) == 5
    assert source.ids[:2] == ("train/000000", "train/000001")
    expected = {picture("train", k)[0].tobytes(): picture("train", k)[1][..., 0] for k in range(5)}
    for index in (3, 0, 4, 1, 2):  # any order
        sample = source.records.open(index)
        np.testing.assert_array_equal(sample.label(), expected.pop(sample.image().tobytes()))
    assert not expected


def test_splits(prepared):
    assert len(open_source("tfds_cityscapes", root=prepared, split="val")) == 3
    both = open_source("tfds_cityscapes", root=prepared, split="trainval")
    assert both.ids[4:6] == ("train/000004", "validation/000000")
    test = open_source("tfds_cityscapes", root=prepared, split="test")
    assert not test.has_labels
    assert test.read(1)[1] is None
    with pytest.raises(ValueError, match="unknown split 'validation'"):
        open_source("tfds_cityscapes", root=prepared, split="validation")


def test_folder_of_the_version_itself(prepared):
    version = prepared / "cityscapes" / "semantic_segmentation" / "1.0.0"
    assert len(open_source("tfds_cityscapes", root=version, split="val")) == 3


def test_feeds_training_evaluation_and_audit(prepared):
    source = open_source("tfds_cityscapes", root=prepared, split="val")
    batch = next(train_batches(source, batch_size=2, crop_size=(8, 8), seed=0))
    assert batch["image"].shape == (2, 8, 8, 3)
    indices = [i for b in segmentation_data.eval_batches(source, batch_size=2) for i in b["index"]]
    assert indices == [0, 1, 2, -1]
    assert audit_labels(source, progress=False).counts.sum() == 3 * 12 * 20
    assert audit_labels(source.take([1]), progress=False).num_images == 1


def test_says_how_to_prepare(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is not prepared.*tfds build cityscapes/sem"):
        open_source("tfds_cityscapes", root=tmp_path, split="train")


def test_damaged_shards_are_named(prepared):
    source = open_source("tfds_cityscapes", root=prepared, split="val")
    path = source.records.shards.paths[0]
    with open(path, "rb") as file:
        data = file.read()
    try:
        with open(path, "wb") as file:
            file.write(data[:-30])
        with pytest.raises(ValueError, match=f"shard {path} is damaged"):
            open_source("tfds_cityscapes", root=prepared, split="val")
    finally:
        with open(path, "wb") as file:
            file.write(data)
