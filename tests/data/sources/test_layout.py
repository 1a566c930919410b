import json

import pytest

from hrnet_jax.data import open_source
from hrnet_jax.data.sources.layout import Layout, split_of


@pytest.fixture
def dataset(tmp_path):
    """Writes files, empty ones, below a folder and opens a split by the rules of "files"."""

    def make(files, rules, split="train"):
        for name in files:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((files[name] if isinstance(files, dict) else 0) or b"")
        class_file = tmp_path / "classes.json"
        class_file.write_text(json.dumps({"names": ["a"], "files": rules}))
        source = open_source("folder", root=tmp_path, split=split)
        short = lambda paths: [p.removeprefix(f"{tmp_path}/") for p in paths]  # noqa: E731
        return list(source.ids), short(source.image_paths), short(source.label_paths)

    return make


def test_images_and_labels_in_one_folder(dataset):
    files = ["train/x.jpg", "train/x_mask.png", "train/b/y.png", "train/b/y_mask.png"]
    rules = {"images": "{split}", "labels": "{split}", "label_suffix": "_mask.png"}
    assert dataset(files, rules) == (
        ["b/y", "x"],
        ["train/b/y.png", "train/x.jpg"],
        ["train/b/y_mask.png", "train/x_mask.png"],
    )


def test_longer_image_suffix_in_one_folder(dataset, caplog):
    files = ["train/x_rgb.png", "train/x.PNG", "train/readme.txt"]
    rules = {"images": "{split}", "labels": "{split}", "image_suffix": "_rgb.png"}
    assert dataset(files, rules) == (["x"], ["train/x_rgb.png"], ["train/x.PNG"])
    (message,) = [record.getMessage() for record in caplog.records]
    assert "1 files" in message
    assert "['readme.txt']" in message


def test_suffixes_and_names_of_splits(dataset):
    files = [
        "left/training/c/1_left.png",
        "left/training/c/1_depth.png",
        "gt/training/c/1_ids.png",
    ]
    rules = {
        "images": "left/{split}",
        "labels": "gt/{split}",
        "image_suffix": "_left.png",
        "label_suffix": "_ids.png",
        "splits": {"train": "training"},
    }
    assert dataset(files, rules) == (["c/1"], [files[0]], [files[2]])
    with pytest.raises(ValueError, match=r"unknown split 'val'; known by \"files\": \['train'\]"):
        dataset(files, rules, "val")


def test_labels_below_the_images(dataset, caplog):
    files = ["train/x.png", "train/masks/x.png", "train/masks/z.png"]
    rules = {"images": "{split}", "labels": "{split}/masks"}
    assert dataset(files, rules) == (["x"], ["train/x.png"], ["train/masks/x.png"])
    (message,) = [record.getMessage() for record in caplog.records]
    assert "are labels without an image" in message
    assert "['z.png']" in message


def test_any_folder(dataset):
    files = [f"Train/{a}/{kind}/{n}.png" for a in ("Rural", "Urban") for n in (0, 1)
             for kind in ("images_png", "masks_png")]  # fmt: skip
    rules = {
        "images": "{split}/*/images_png",
        "labels": "{split}/*/masks_png",
        "splits": {"train": "Train"},
    }
    ids, images, labels = dataset([*files, "Train/.cache/images_png/0.png"], rules)
    assert ids == ["Rural/0", "Rural/1", "Urban/0", "Urban/1"]
    assert images[2] == "Train/Urban/images_png/0.png"
    assert labels[2] == "Train/Urban/masks_png/0.png"


def test_the_first_folder_that_exists(dataset):
    files = ["x/images/train/1.jpg", "labels/train/1.png"]
    rules = {"images": ["images/{split}", "x/images/{split}"], "labels": "labels/{split}"}
    assert dataset(files, rules) == (["1"], files[:1], files[1:])


def test_replaced_texts(dataset):
    files = ["train/img_1.png", "train/mask_1.png", "train/img_2.png", "train/mask_2.png"]
    rules = {"images": "{split}", "labels": "{split}", "replace": {"/img_": "/mask_"}}
    assert dataset(files, rules) == (
        ["img_1", "img_2"],
        ["train/img_1.png", "train/img_2.png"],
        ["train/mask_1.png", "train/mask_2.png"],
    )


def test_list_of_names(dataset):
    """As in Pascal VOC; lists may have Windows line ends and a byte-order mark."""
    files = {
        "JPEGImages/a.jpg": 0, "JPEGImages/b.jpg": 0, "JPEGImages/c d.jpg": 0,
        "SegmentationClass/a.png": 0, "SegmentationClass/c d.png": 0,
        "ImageSets/Segmentation/train.txt": b"\xef\xbb\xbfc d\r\na.jpg\r\n\r\n",
        "ImageSets/Segmentation/val.txt": b"b\n",
        "ImageSets/Segmentation/odd.txt": b"a\nzz\n",
        "ImageSets/Segmentation/empty.txt": b"\n",
    }  # fmt: skip
    rules = {
        "images": "JPEGImages",
        "labels": "SegmentationClass",
        "list": "ImageSets/Segmentation/{split}.txt",
    }
    assert dataset(files, rules) == (
        ["c d", "a"],
        ["JPEGImages/c d.jpg", "JPEGImages/a.jpg"],
        ["SegmentationClass/c d.png", "SegmentationClass/a.png"],
    )
    with pytest.raises(
        FileNotFoundError, match=r"1 of 1 images of folder 'val' have no label; looked for .*b.png"
    ):
        dataset(files, rules, "val")
    with pytest.raises(FileNotFoundError, match=r"1 of 2 names in .*odd.txt have no .* \['zz'\]"):
        dataset(files, rules, "odd")
    with pytest.raises(ValueError, match=r"empty.txt is empty"):
        dataset(files, rules, "empty")
    with pytest.raises(FileNotFoundError, match=r"no list .*test.txt; .* holds empty.txt, odd.txt"):
        dataset(files, rules, "test")


def test_list_of_pairs(dataset):
    """As in the official HRNet code."""
    files = {
        "img/train/a 1.png": 0, "img/b.png": 0, "gt/a 1_ids.png": 0, "gt/b.png": 0,
        "train.lst": b"img/train/a 1.png\tgt/a 1_ids.png\nimg/b.png\tgt/b.png\n",
        "val.lst": b"img/b.png  gt/b.png\n",
        "test.lst": b"img/b.png\n",
        "three.lst": b"img/b.png gt/b.png 1\n",
        "mixed.lst": b"img/b.png gt/b.png\nimg/b.png\n",
        "out.lst": b"../b.png gt/b.png\n",
        "gone.lst": b"img/c.png gt/b.png\n",
        "twice.lst": b"img/b.png gt/b.png\n" * 2,
    }  # fmt: skip
    rules = {"list": "{split}.lst"}
    assert dataset(files, rules) == (
        ["img/train/a 1", "img/b"],
        ["img/train/a 1.png", "img/b.png"],
        ["gt/a 1_ids.png", "gt/b.png"],
    )
    assert dataset(files, rules, "val") == (["img/b"], ["img/b.png"], ["gt/b.png"])
    assert dataset(files, rules, "test") == (["img/b"], ["img/b.png"], [])
    for split, message in (
        ("three", r"three.lst, line 1: need IMAGE LABEL or IMAGE, got 3 parts"),
        ("mixed", r"1 of 2 lines have no label, e.g. line 2"),
        ("out", r"out.lst, line 1: .* leaves the dataset's folder"),
        ("gone", r"1 of 1 images in .*gone.lst are missing, e.g. \['.*img/c.png'\]"),
        ("twice", r"listed twice: \['img/b'\]"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            dataset(files, rules, split)


def test_fractions(dataset):
    names = [f"{i:03d}" for i in range(200)]
    files = [f"{kind}/{name}.png" for kind in ("images", "masks") for name in names]
    rules = {"images": "images", "labels": "masks", "split": {"val": 0.2, "test": 0.1, "seed": 3}}
    splits = {split: dataset(files, rules, split)[0] for split in ("train", "val", "test")}
    assert sorted(name for found in splits.values() for name in found) == names
    assert 30 <= len(splits["val"]) <= 50
    assert 12 <= len(splits["test"]) <= 28
    # More files move none of the others.
    more = dataset([*files, "images/new.png", "masks/new.png"], rules, "val")[0]
    assert [name for name in more if name != "new"] == splits["val"]
    with pytest.raises(ValueError, match=r"unknown split 'field'; known .*'train', 'val', 'test'"):
        dataset(files, rules, "field")


def test_split_of_by_hand():
    """sha256 of "0/one" begins with 0xd970 (0.849), that of "0/two" with 0x1ac0 (0.104)."""
    layout = Layout(fractions=(("val", 0.1), ("test", 0.1)))
    assert split_of("one", layout) == "train"
    assert split_of("two", layout) == "test"
    assert split_of("two", Layout(fractions=(("val", 0.105),))) == "val"


def test_fractions_that_leave_a_split_empty(dataset):
    rules = {"images": "i", "labels": "i", "label_suffix": "_m.png", "split": {"val": 0.01}}
    with pytest.raises(ValueError, match=r"'val' of .* is empty: of 1 images .* fraction or seed"):
        dataset(["i/x.jpg", "i/x_m.png"], rules, "val")


def test_images_without_any_label(dataset, caplog):
    rules = {"images": "{split}", "labels": "{split}", "label_suffix": "_mask.png"}
    assert dataset(["train/x.jpg", "train/x_msk.gif"], rules) == (["x"], ["train/x.jpg"], [])
    assert "no labels: no file in" in caplog.text
    assert "_mask.png" in caplog.text
    with pytest.raises(
        FileNotFoundError, match=r"no images in split 'val': .*holds classes.json, t"
    ):
        dataset([], rules, "val")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([], '"files" must be a dict'),
        ({"image": "x"}, r"unknown keys \['image'\].*known: .*'images'"),
        ({"images": 3}, "'images' must be a text or a list of texts, got 3"),
        ({"label_suffix": ""}, "'label_suffix' must be a text"),
        ({"images": "x"}, r"all splits would be the same files.*\"split\""),
        ({"list": "train.txt"}, "all splits would be the same files"),
        ({"list": "{split}.txt", "label_suffix": "_m.png"}, r"\['label_suffix'\] need \"images\""),
        ({"split": {"val": 0.1}, "splits": {"val": "v"}}, r"\['val'\] are in both"),
        ({"images": "i", "labels": "l", "split": {"val": 1.5}}, r"each in 0\.\.1.*got"),
        ({"images": "i", "labels": "l", "split": {"val": 0.5, "test": 0.5}}, "less than 1"),
        ({"images": "i", "labels": "l", "split": {"train": 0.8}}, "which gets the rest"),
        ({"images": "{split}", "labels": "{split}"}, "in one folder both end in '.png'"),
        ({"images": "{split}/*/i", "labels": "{split}/l"}, r"the same number of \*"),
        ({"replace": ["a", "b"]}, "'replace' must be a dict of texts"),
    ],
)  # fmt: skip
def test_bad_rules(dataset, rules, message):
    with pytest.raises(ValueError, match=message):
        dataset([], rules)


def test_train_is_divided_where_only_val_is_missing(dataset):
    """Training images in a folder of their own beside those of the test, none for validation."""
    rules = {"split": {"val": 0.4}, "splits": {"train": "training", "test": "testing"}}
    files = [f"images/training/{k}.png" for k in range(20)] + ["images/testing/t.png"]
    files += [f"labels/training/{k}.png" for k in range(20)]
    train, val = (set(dataset(files, rules, split)[0]) for split in ("train", "val"))
    assert train | val == {str(k) for k in range(20)}
    assert not train & val
    assert val
    assert dataset([], rules, "test")[0] == ["t"]
    with pytest.raises(ValueError, match=r"split 'training'; known .*'train', 'val', 'test'"):
        dataset([], rules, "training")
