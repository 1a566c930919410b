import numpy as np
import pytest
from PIL import Image

from hrnet_jax.data import open_images
from hrnet_jax.data.sources.image_folder import ImageClasses


@pytest.fixture
def root(tmp_path):
    """Two classes; the file names differ in place, suffix and case."""
    for name in ("train/dog/b.JPEG", "train/dog/deep/a.png", "train/cat/x.jpg", "val/dog/y.jpeg"):
        write(tmp_path / name)
    write(tmp_path / "val/cat/z.png")
    return tmp_path


def write(path, size=(10, 12)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 90, np.uint8)).save(path)
    return path


def test_order_labels_and_bytes(root):
    (root / "train" / ".hidden").mkdir()
    (root / "train" / "dog" / ".ipynb_checkpoints").mkdir()
    (root / "train" / "dog" / ".ipynb_checkpoints" / "c.png").write_bytes(b"")
    (root / "train" / "dog" / "._b.JPEG").write_bytes(b"")
    (root / "train" / "readme.txt").write_text("no image")
    source = open_images("image_folder", root=root, split="train")
    assert source.classes.names == ("cat", "dog")
    assert source.ids == ("cat/x.jpg", "dog/b.JPEG", "dog/deep/a.png")
    assert [source.records.open(i).label for i in range(3)] == [0, 1, 1]
    assert source.records.open(1).data == (root / "train/dog/b.JPEG").read_bytes()
    assert source.image_name(2) == str(root / "train/dog/deep/a.png")
    part = source.take([2, 0])
    assert (len(part), part.ids) == (2, ("dog/deep/a.png", "cat/x.jpg"))
    assert [part.records.open(i).label for i in range(2)] == [1, 0]
    assert ImageClasses.from_json(source.classes.to_json()) == source.classes


def test_refuses_classes_without_images(root):
    for name in ("mouse", "bird"):
        (root / "train" / name).mkdir()
        (root / "train" / name / "note.txt").write_text("none yet")
    pattern = r"2 of 4 class folders in .*/train hold no images .*: \['bird', 'mouse'\]; .*note.txt"
    with pytest.raises(ValueError, match=pattern):
        open_images("image_folder", root=root, split="train")


def test_linked_folders_are_read_and_other_files_are_named(root, tmp_path, caplog):
    (root / "train" / "bird").symlink_to(write(tmp_path / "else" / "b.PNG").parent)
    (root / "train" / "dog" / "list.txt").write_text("b.JPEG")
    (root / "train" / "dog" / "deep" / "c.gif").write_bytes(b"GIF89a")
    source = open_images("image_folder", root=root, split="train")
    assert (source.classes.names[0], source.ids[0]) == ("bird", "bird/b.PNG")
    assert (
        f"2 files in {root}/train are no images with a known suffix and are not used, e.g. "
        "['dog/deep/c.gif', 'dog/list.txt']"
    ) in caplog.text


def test_refuses_other_layouts(root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"split 'test': looked for .*holds train, val"):
        open_images("image_folder", root=root, split="test")
    write(root / "train" / "stray.png")
    with pytest.raises(ValueError, match=r"1 images in .*/train are in no class folder.*stray.png"):
        open_images("image_folder", root=root, split="train")
    (root / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no class folders in"):
        open_images("image_folder", root=root, split="empty")
    write(root / "one" / "cat" / "a.png")
    with pytest.raises(ValueError, match="two or more classes"):
        open_images("image_folder", root=root, split="one")
    with pytest.raises(ValueError, match="unknown dataset of images 'cityscapes'; known"):
        open_images("cityscapes", root=root, split="train")
    with pytest.raises(ValueError, match=r"--config\.data\.root=DIR"):
        open_images("image_folder", root="", split="train")
