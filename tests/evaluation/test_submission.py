import zipfile

import numpy as np
import pytest
from PIL import Image

from hrnet_jax.data import Classes, Source
from hrnet_jax.data.sources.files import Files
from hrnet_jax.evaluation import submission
from hrnet_jax.evaluation.run import Options
from hrnet_jax.inference.label_form import get_form
from hrnet_jax.runtime import storage

CLASSES = Classes(("road", "sky"), ((9, 0, 0), (0, 9, 0)), (7, 23))


@pytest.fixture
def source(tmp_path):
    paths = []
    for i in range(3):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(paths[-1])
    ids = ("bonn/b_0", "bonn/b_1", "ulm/u_0")
    return Source("set", "test", CLASSES, ids, Files(tuple(map(str, paths))))


@pytest.fixture
def folder(tmp_path, source):
    labels = np.array([[0, 1, 0, 1, 0, 1]] * 4, np.uint8)
    with submission.Writer(tmp_path / "predictions", source) as writer:
        for i in range(3):
            writer.add(i, labels)
    return tmp_path / "predictions"


def test_archive_holds_label_ids_side_by_side(folder, source, tmp_path):
    path = submission.pack(folder, source, tmp_path / "submission.zip")
    assert path == tmp_path / "submission.zip"
    with zipfile.ZipFile(path) as archive:
        names = ["b_0_pred_labelIds.png", "b_1_pred_labelIds.png", "u_0_pred_labelIds.png"]
        assert archive.namelist() == names
        with archive.open(names[0]) as file, Image.open(file) as image:
            assert image.mode == "L"
            assert np.unique(np.asarray(image)).tolist() == [7, 23]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: f.unlink(), "1 files missing in"),
        (lambda f: f.with_name("more.png").write_bytes(b""), r"1 files unexpected in .*more\.png"),
        (lambda f: Image.new("L", (6, 5), 7).save(f), "6x5 pixels, but its image has 6x4"),
        (lambda f: Image.new("L", (6, 4), 1).save(f), r"values \[1\] are not label ids"),
        (lambda f: Image.new("RGB", (6, 4)).save(f), "mode 'RGB', must be 'L'"),
    ],
)
def test_refuses_what_a_server_would(folder, source, tmp_path, spoil, message):
    spoil(folder / "ulm" / "u_0_pred_labelIds.png")
    with pytest.raises(ValueError, match=message):
        submission.pack(folder, source, tmp_path / "submission.zip")
    assert not (tmp_path / "submission.zip").exists()


def test_form_of_kitti_lies_in_its_folder_under_the_names_of_the_images(source, tmp_path):
    kitti = Source(
        "kitti", "train", CLASSES, ("000000_10", "000001_10", "000002_10"), source.records
    )
    form = get_form("kitti")
    with submission.Writer(tmp_path / "kitti", kitti, form) as writer:
        for i in range(3):
            writer.add(i, np.ones((4, 6), np.uint8))
    path = submission.pack(tmp_path / "kitti", kitti, tmp_path / "kitti.zip", form)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist()[0] == "semantic/000000_10.png"
    test = Source("kitti", "test", CLASSES, kitti.ids, kitti.records)
    with pytest.raises(ValueError, match="3 images, but the server requires all 200 of kitti test"):
        submission.check(tmp_path / "kitti", test, form)


def test_refuses_a_part_of_the_official_test_set(folder, source):
    part = Source("cityscapes", "test", CLASSES, source.ids, Files(source.image_paths))
    with pytest.raises(ValueError, match="3 images, but the server requires all 1525"):
        submission.check(folder, part)


def test_errors_in_writing_are_raised(source, tmp_path):
    (tmp_path / "predictions").write_text("in the way")
    with pytest.raises(OSError), submission.Writer(tmp_path / "predictions", source) as writer:  # noqa: PT011
        writer.add(0, np.zeros((4, 6), np.uint8))


def test_forms_by_dataset_and_by_option(tmp_path):
    output = storage.path(tmp_path)
    assert Options(output).form_for("kitti") == get_form("kitti")
    assert Options(output).form_for("camvid") == get_form("cityscapes")
    chosen = Options(output, save_predictions=True, label_form="colors", label_suffix="_c.png")
    assert chosen.form_for("kitti") == get_form("colors", "_c.png")
    with pytest.raises(ValueError, match=r"--label_form and --label_suffix are for label files"):
        Options(output, label_form="ids")
