import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from hrnet_jax.data import Classes, Source
from hrnet_jax.data.sources import camvid
from hrnet_jax.data.sources.files import Files
from hrnet_jax.evaluation import segmentation
from hrnet_jax.inference.multi_scale import TestTimeAugmentation
from hrnet_jax.models import create_model
from hrnet_jax.runtime import sharding

CLASSES = Classes(("a", "b", "c"), ((9, 0, 0), (0, 9, 0), (0, 0, 9)), (7, 8, 11), (0,))
# Two sizes, neither count divisible by the batches below.
SIZES = [(32, 40)] * 5 + [(17, 33)] * 2


@dataclasses.dataclass(frozen=True)
class Strongest:
    """A "network" that predicts the image's strongest channel."""

    num_classes: int = 3
    head: str = "segmentation"
    align_corners: bool = False

    def apply(self, variables, images, train):
        return {"logits": images * variables["gain"]}


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """(source, labels as train ids, predictions of `Strongest`)."""
    folder = tmp_path_factory.mktemp("split")
    rng = np.random.default_rng(0)
    images, paths, labels = [], [], []
    to_train = CLASSES.lookup()
    for i, size in enumerate(SIZES):
        raw = rng.choice([7, 8, 11, 0, 255], size).astype(np.uint8)
        image = rng.choice(np.array([0, 255], np.uint8), (*size, 3))
        image[..., 0] = np.where((image == image[..., :1]).all(-1), 128, image[..., 0])
        Image.fromarray(image).save(folder / f"{i}.png")
        Image.fromarray(raw).save(folder / f"{i}_label.png")
        paths.append((str(folder / f"{i}.png"), str(folder / f"{i}_label.png")))
        images.append(image)
        labels.append(to_train[raw])
    image_paths, label_paths = zip(*paths, strict=True)
    ids = tuple(f"city/{i}" for i in range(len(SIZES)))
    source = Source("test", "val", CLASSES, ids, Files(image_paths, label_paths))
    # What normalisation leaves of the order of channels.
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    predictions = [((i / 255 - mean) / std).argmax(-1) for i in images]
    return source, labels, predictions


def count(labels, predictions):
    valid = labels != 255
    joint = labels[valid].astype(int) * 3 + predictions[valid]
    return np.bincount(joint, minlength=9).reshape(3, 3)


def run(source, **kwargs):
    arguments = {"batch_size": 2, "progress": False} | kwargs
    return segmentation.evaluate(Strongest(), {"gain": jnp.ones(())}, source, **arguments)


@pytest.mark.parametrize(
    ("mesh_shape", "batch_size"), [(None, 1), (None, 3), ((8, 1), 4), ((3, 1), 4), ((2, 4), 2)]
)
def test_every_pixel_counts_once_on_any_mesh(split, mesh_shape, batch_size):
    source, labels, predictions = split
    mesh = mesh_shape and sharding.make_mesh(*mesh_shape)
    result = run(source, mesh=mesh, batch_size=batch_size)
    expected = [count(*pair) for pair in zip(labels, predictions, strict=True)]
    np.testing.assert_array_equal(result.confusion, sum(expected))
    assert result.confusion.dtype == np.int64
    for counts, matrix in zip(result.image_counts, expected, strict=True):
        np.testing.assert_array_equal(counts, [matrix.diagonal(), matrix.sum(1), matrix.sum(0)])
    assert result.metrics["num_images"] == 7
    assert result.metrics["num_pixels"] == sum(int((m != 255).sum()) for m in labels)


@pytest.mark.parametrize("mesh_shape", [None, (2, 4)])
def test_padding_does_not_count(split, mesh_shape):
    source, labels, predictions = split
    seen, shapes = {}, set()

    def on_batch(batch, predicted):
        rows = zip(batch["index"], batch["image"], batch["label"], predicted, strict=True)
        for i, image, label, prediction in rows:
            if i >= 0:
                seen[i] = prediction
                assert image.shape[:2] == label.shape == prediction.shape == SIZES[i]
                np.testing.assert_array_equal(label, labels[i])

    def record(*arguments, **options):
        shapes.add(arguments[2].shape)
        return predict_labels(*arguments, **options)

    predict_labels = segmentation.multi_scale.predict_labels
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmentation.multi_scale, "predict_labels", record)
        mesh = mesh_shape and sharding.make_mesh(*mesh_shape)
        result = run(source, mesh=mesh, batch_size=4, size_step=48, on_batch=on_batch)
    assert shapes == {(4, 48, 48, 3)}  # one program
    np.testing.assert_array_equal(result.confusion, run(source).confusion)
    for i, prediction in enumerate(predictions):
        np.testing.assert_array_equal(seen[i], prediction)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_network_gives_one_matrix_on_any_mesh(split, tiny, share):
    source = split[0].take(range(5))
    model = create_model(tiny, 3, image_statistics=share)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 40, 3)))
    results = [
        segmentation.evaluate(model, variables, source, batch_size=b, mesh=mesh, progress=False)
        for b, mesh in ((1, None), (3, sharding.make_mesh(8)))
    ]
    np.testing.assert_array_equal(results[0].confusion, results[1].confusion)
    assert results[0].confusion.sum() > 0


def test_scores_of_images_and_their_ranking(split):
    source, labels, predictions = split
    result = run(source)
    for i, (label, prediction) in enumerate(zip(labels, predictions, strict=True)):
        matrix = count(label, prediction)
        iou = matrix.diagonal() / (matrix.sum(0) + matrix.sum(1) - matrix.diagonal())
        assert result.image_miou[i] == pytest.approx(iou.mean())
        assert result.image_accuracy[i] == pytest.approx(matrix.trace() / matrix.sum())
    assert result.ranking().tolist() == np.argsort(result.image_miou).tolist()
    assert result.ids == source.ids


def test_images_without_labelled_pixels_are_not_ranked(split):
    counts = np.zeros((3, 3, 2), np.int64)
    counts[0] = [[1, 0], [2, 2], [2, 2]]
    counts[2] = [[1, 1], [2, 1], [2, 1]]
    result = segmentation.EvalResult(np.zeros((2, 2)), {}, ("x", "y", "z"), counts, 0.0)
    assert result.ranking().tolist() == [0, 2]
    assert np.isnan(result.image_miou[1])
    assert np.isnan(result.image_accuracy[1])


@pytest.mark.parametrize("mesh_shape", [None, (8, 1)])
def test_hook_sees_every_prediction(split, mesh_shape):
    source, labels, predictions = split
    seen = {}

    def hook(batch, predicted):
        assert predicted.dtype == np.uint8
        assert predicted.shape == batch["label"].shape
        for i, label, p in zip(batch["index"], batch["label"], predicted, strict=True):
            if i >= 0:
                assert i not in seen
                seen[int(i)] = label, p

    run(source, mesh=mesh_shape and sharding.make_mesh(*mesh_shape), on_batch=hook)
    assert sorted(seen) == list(range(7))
    for i in range(7):
        np.testing.assert_array_equal(seen[i][0], labels[i])
        np.testing.assert_array_equal(seen[i][1], predictions[i])


def test_scales_flip_and_tiles_reach_the_prediction(split):
    source, _, predictions = split
    seen = []
    hook = lambda batch, predicted: seen.extend(predicted)  # noqa: E731
    source = source.take([0])
    tta = TestTimeAugmentation(flip=True, tile=(32, 32), average="exp")
    run(source, batch_size=1, tta=tta, on_batch=hook)
    # Neither the mirror image nor tiles change a network that looks at single pixels; scales do.
    np.testing.assert_array_equal(seen[0], predictions[0])
    run(source, batch_size=1, tta=TestTimeAugmentation((0.5,)), on_batch=hook)
    assert (seen[1] != predictions[0]).mean() > 0.1


def test_some_images_are_spread_over_the_split(split):
    source = split[0]
    result = run(segmentation.spread(source, 3))
    assert result.ids == ("city/0", "city/2", "city/4")
    assert result.metrics["num_images"] == 3
    assert segmentation.spread(source, 0) is source
    assert segmentation.spread(source, 99) is source
    with pytest.raises(ValueError, match="max_images"):
        segmentation.spread(source, -1)


def test_a_split_without_labels_needs_a_hook(split):
    source = dataclasses.replace(split[0], records=Files(split[0].image_paths))
    with pytest.raises(ValueError, match="split 'val' of 'test' has no labels"):
        run(source)
    batches = []
    result = run(source, on_batch=lambda batch, predicted: batches.append(predicted))
    assert sum(len(b) for b in batches) == 8
    assert result.metrics["num_pixels"] == 0


def test_refuses_what_does_not_fit(split):
    source = split[0]
    for model, message in (
        (Strongest(num_classes=4), "4 classes, the class list 3"),
        (Strongest(head="pyramid"), "head 'pyramid' predicts no label maps"),
    ):
        with pytest.raises(ValueError, match=message):
            segmentation.evaluate(model, {"gain": 1.0}, source, batch_size=1)
    with pytest.raises(ValueError, match="batch_size"):
        run(source, batch_size=0)


def test_damaged_files_are_named(split, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    source = split[0].take([0, 1])
    images = source.image_paths[0], str(tmp_path / "bad.png")
    source = dataclasses.replace(source, records=Files(images, source.label_paths))
    with pytest.raises(ValueError, match=r"bad\.png"):
        run(source)


def test_metrics_per_image_survive_the_file(tmp_path):
    counts = np.arange(18).reshape(2, 3, 3)
    counts[1] = 0
    result = segmentation.EvalResult(np.zeros((3, 3)), {}, ("city/0", "city/1"), counts, 0.0)
    path = tmp_path / segmentation.IMAGE_METRICS
    segmentation.save_image_metrics(path, result, CLASSES.names)
    lines = path.read_text().splitlines()
    assert lines[0].startswith(
        "image,miou,pixel_accuracy,correct:a,correct:b,correct:c,ground_truth:a"
    )
    assert lines[2].startswith("city/1,,,0,")
    found = segmentation.read_image_counts(path, ("city/1", "city/0"), CLASSES.names)
    np.testing.assert_array_equal(found, counts[::-1])
    with pytest.raises(ValueError, match="1 images are missing: ulm/7"):
        segmentation.read_image_counts(path, ("city/0", "ulm/7"), CLASSES.names)
    with pytest.raises(ValueError, match="do not fit the classes x, b, c"):
        segmentation.read_image_counts(path, ("city/0",), ("x", "b", "c"))
    # Files from before the columns were renamed.
    old = lines[0].replace("correct:", "right:").replace("ground_truth:", "true:")
    path.write_text("\n".join([old, *lines[1:]]))
    found = segmentation.read_image_counts(path, ("city/0", "city/1"), CLASSES.names)
    np.testing.assert_array_equal(found, counts)


def test_a_known_dataset_gets_the_classes_of_the_checkpoint(tmp_path):
    """A run with fewer classes is evaluated without its class file."""
    for folder, pixels in (("val", np.zeros((2, 3, 3))), ("valannot", np.array([[3, 4, 8]] * 2))):
        (tmp_path / folder).mkdir()
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / folder / "a.png")
    colors = ((1, 1, 1), (2, 2, 2))
    fewer = Classes(("road", "car"), colors, ((3, 4), 8), (0, 1, 2, 5, 6, 7, 9, 10, 11))
    data = {"name": "camvid", "root": str(tmp_path), "class_file": "gone.json"}
    for classes, expected in ((fewer, [0, 0, 1]), (camvid.CLASSES, [3, 4, 8])):
        metadata = {"config": {"data": data}, "classes": classes.to_json()}
        source = segmentation.open_split(metadata, root="", split="val")
        assert source.classes == classes
        assert source.read(0)[1].tolist() == [expected] * 2
