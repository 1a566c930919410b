"""The ImageNet augmentation: values by hand, distributions, order, and files that are not sound."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from batching import train_image_batches
from PIL import Image
from scipy import stats

from hrnet_jax.data import open_images
from hrnet_jax.data.pipeline import classification as classification_data
from hrnet_jax.data.pipeline.classification import CropAugmentation, CropView
from hrnet_jax.data.pipeline.order import Shard

SETTINGS = {"crop_size": (16, 12), "area_min": 0.08, "aspect_max": 4 / 3, "flip": True}


@pytest.fixture
def root(tmp_path):
    """Seven images of three classes; the first channel tells which image it is."""
    rng = np.random.default_rng(0)
    for k in range(7):
        pixels = rng.integers(0, 256, (20 + k, 30 - k, 3), np.uint8)
        pixels[..., 0] = 30 * k
        path = tmp_path / "train" / "abc"[k % 3] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return tmp_path


@pytest.fixture
def source(root):
    return open_images("image_folder", root=root, split="train")


def take(source, batches, **options):
    options = {"batch_size": 4, "crop_size": (16, 12), "seed": 3} | options
    return list(itertools.islice(train_image_batches(source, **options), batches))


def numbers(batches):
    return [int(i) // 30 for b in batches for i in b["image"][:, 0, 0, 0]]


def draw(count, size, seed, **changes):
    rng = np.random.default_rng(seed)
    augmentation = CropAugmentation(**SETTINGS | changes)
    return [classification_data.sample_crop(rng, size, augmentation) for _ in range(count)]


def official_box(rng, height, width):
    """torchvision's RandomResizedCrop, written anew: top, left, height, width."""
    for _ in range(10):
        area = rng.uniform(0.08, 1) * height * width
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if w <= width and h <= height:
            return rng.integers(height - h + 1), rng.integers(width - w + 1), h, w
    ratio = width / height
    w = width if ratio <= 4 / 3 else round(height * 4 / 3)
    h = height if ratio >= 3 / 4 else round(width / (3 / 4))
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize("size", [(375, 500), (300, 90)])
def test_crops_are_distributed_like_the_official_ones(size):
    count = 4000
    ours = np.array(draw(count, size, 0), float)
    rng = np.random.default_rng(1)
    theirs = np.array([official_box(rng, *size) for _ in range(count)], float)
    features = {
        "height": lambda x: x[:, 2],
        "width": lambda x: x[:, 3],
        "area": lambda x: x[:, 2] * x[:, 3],
        "aspect": lambda x: x[:, 3] / x[:, 2],
        "top": lambda x: x[:, 0],
        "left": lambda x: x[:, 1],
        "middle": lambda x: x[:, 0] + x[:, 2] / 2,
    }
    for name, of in features.items():
        assert stats.ks_2samp(of(ours), of(theirs)).pvalue > 1e-3, name
    # The test can fail: another smallest area, or plain instead of logarithmic aspect ratios.
    other = np.array(draw(count, size, 2, area_min=0.12), float)
    assert stats.ks_2samp(other[:, 2] * other[:, 3], features["area"](theirs)).pvalue < 1e-6
    assert abs(ours[:, 4].mean() - 0.5) < 5 * 0.5 / math.sqrt(count)
    assert (ours[:, 0] + ours[:, 2] <= size[0]).all()
    assert (ours[:, 1] + ours[:, 3] <= size[1]).all()


def test_long_images_fall_back_to_the_largest_box_in_the_middle():
    views = draw(50, (1000, 10), 0, area_min=1.0)
    assert {v[:4] for v in views} == {((1000 - 13) // 2, 0, 13, 10)}
    views = draw(50, (12, 1000), 0, area_min=1.0)
    assert {v[:4] for v in views} == {(0, (1000 - 16) // 2, 12, 16)}


def test_settings_do_not_disturb_each_other():
    assert [v[:4] for v in draw(5, (40, 60), 0)] == [
        v[:4] for v in draw(5, (40, 60), 0, flip=False)
    ]
    assert not any(v.flip for v in draw(50, (40, 60), 0, flip=False))


def test_views_by_hand():
    pixels = np.zeros((4, 6, 3), np.uint8)
    pixels[1:3, 2:6, 0] = [[0, 10, 100, 200], [20, 30, 50, 70]]
    image = Image.fromarray(pixels)
    # Half the size with antialiasing: a triangle over two pixels each way, edges renormalised.
    view = classification_data.apply_crop(image, CropView(1, 2, 2, 4, False), (2, 4))
    np.testing.assert_array_equal(view, pixels[1:3, 2:6])
    flipped = classification_data.apply_crop(image, CropView(1, 2, 2, 4, True), (2, 4))
    np.testing.assert_array_equal(flipped, view[:, ::-1])
    rows = np.array([[0, 10, 100, 200], [20, 30, 50, 70]])
    half = classification_data.apply_crop(image, CropView(1, 2, 2, 4, False), (1, 2))[0, :, 0]
    weights = np.array([3, 3, 1]) / 7  # of pixels 0, 1, 2 for the first result
    expected = [rows.mean(0)[:3] @ weights, rows.mean(0)[1:] @ weights[::-1]]
    np.testing.assert_allclose(half, expected, atol=1)


def test_center_by_hand():
    pixels = np.arange(8 * 12, dtype=np.uint8).reshape(8, 12, 1).repeat(3, 2)
    got = classification_data.center_crop(Image.fromarray(pixels), 8, (4, 4))
    np.testing.assert_array_equal(got, pixels[2:6, 4:8])
    # (8 - 5) / 2 = 1.5 and (12 - 5) / 2 = 3.5, both rounded to even.
    got = classification_data.center_crop(Image.fromarray(pixels), 8, (5, 5))
    np.testing.assert_array_equal(got, pixels[2:7, 4:9])
    tall = Image.fromarray(np.zeros((500, 333, 3), np.uint8))
    assert classification_data.center_crop(tall, 256, (224, 224)).shape == (224, 224, 3)


def test_each_epoch_visits_each_image_once_with_its_class(source):
    batches = take(source, 7, batch_size=2)
    seen = numbers(batches)
    assert sorted(seen[:7]) == sorted(seen[7:]) == list(range(7))
    labels = [int(i) for b in batches for i in b["label"]]
    assert labels == [k % 3 for k in seen]
    assert batches[0]["label"].dtype == np.int32
    assert batches[0]["image"].dtype == np.uint8
    assert batches[0]["image"].shape == (2, 16, 12, 3)


def test_a_function_of_seed_step_and_slot(source):
    whole = take(source, 5)
    later = take(source, 2, start_step=3)
    parts = [take(source, 5, shard=(i, 2)) for i in range(2)]
    for key in ("image", "label"):
        for a, b in zip(whole[3:], later, strict=True):
            np.testing.assert_array_equal(a[key], b[key])
        for a, b, c in zip(whole, *parts, strict=True):
            np.testing.assert_array_equal(a[key], np.concatenate([b[key], c[key]]))
    assert (whole[0]["image"] != take(source, 1, seed=4)[0]["image"]).any()


def test_evaluation_sees_every_image_once(source):
    options = {"crop_size": (12, 8), "short_side": 16}
    batches = list(classification_data.eval_batches(source, batch_size=4, **options))
    assert [b["index"].tolist() for b in batches] == [[0, 1, 2, 3], [4, 5, 6, -1]]
    assert batches[1]["valid_mask"].tolist() == [True, True, True, False]
    assert batches[1]["label"][3] == -1
    for batch in batches:
        for row, index in enumerate(batch["index"][batch["valid_mask"]]):
            image, label = classification_data.read_image(source, index)
            expected = classification_data.center_crop(image, 16, (12, 8))
            np.testing.assert_array_equal(batch["image"][row], expected)
            assert batch["label"][row] == label
    parts = [
        list(classification_data.eval_batches(source, batch_size=4, shard=Shard(i, 2), **options))
        for i in range(2)
    ]
    for whole, *pair in zip(batches, *parts, strict=True):
        for key in whole:
            np.testing.assert_array_equal(whole[key], np.concatenate([p[key] for p in pair]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"area_min": 0}, "area_min must be above 0"),
        ({"area_min": 1.1}, "area_min must be above 0"),
        ({"aspect_max": 0.5}, "aspect_max must be 1 or more"),
        ({"crop_size": (0, 3)}, "crop_size must be"),
        ({"batch_size": 0}, "batch_size 0"),
        ({"seed": -1}, "seed must be"),
        ({"start_step": -1}, "start_step"),
        ({"service": ("host:5000",)}, "service .* is for segmentation only"),
    ],
)
def test_refuses(source, change, message):
    with pytest.raises(ValueError, match=message):
        take(source, 1, **change)


def test_centres_must_fit(source):
    with pytest.raises(ValueError, match=r"crops of \(32, 16\) do not fit .* side of 24"):
        next(
            classification_data.eval_batches(
                source, batch_size=1, crop_size=(32, 16), short_side=24
            )
        )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"GIF89a, but not", "is a GIF file"),
        ("cut", "is damaged"),
        ("small", "is 7x40: smaller than 8 pixels"),
    ],
)
def test_bad_files_are_named_and_never_skipped(source, content, message):
    path = Path(source.image_name(2))
    if content == "small":
        Image.new("RGB", (40, 7)).save(path)
    else:
        path.write_bytes(path.read_bytes()[:200] if content == "cut" else content)
    with pytest.raises(ValueError, match=f"{path} {message}") as caught:
        take(source, 7, batch_size=1)
    assert "Traceback" not in str(caught.value)
    with pytest.raises(ValueError, match=f"{path} {message}"):
        list(classification_data.eval_batches(source, batch_size=2, crop_size=(8, 8), short_side=8))
    with pytest.raises(ValueError, match=f"{path} {message}"):
        classification_data.audit_images(source, 500)


def test_a_file_that_is_gone(source):
    path = Path(source.image_name(2))
    path.unlink()
    with pytest.raises(FileNotFoundError, match=path.name):
        take(source, 7, batch_size=1)


def test_any_colour_mode_and_wrong_suffixes(tmp_path):
    """As in ImageNet itself: CMYK files, a PNG called .JPEG; palettes and gray besides."""
    for mode, kind in (("CMYK", "JPEG"), ("L", "JPEG"), ("P", "PNG"), ("RGBA", "PNG")):
        path = tmp_path / "x.JPEG"
        Image.new("RGB", (20, 20), (255, 255, 255)).convert(mode).save(path, kind)
        image = classification_data.decode_rgb(path.read_bytes(), str(path))
        assert (image.mode, image.size) == ("RGB", (20, 20))
        np.testing.assert_allclose(np.asarray(image), 255, atol=1)


def test_audit_says_what_there_is(source):
    text = classification_data.audit_images(source, 500)
    assert text == "7 images of 3 classes; looked at 7, of 3 classes: 20..26 high, 24..30 wide"
    assert "looked at 2, of" in classification_data.audit_images(source, 2)
