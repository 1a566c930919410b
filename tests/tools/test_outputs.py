import pytest

from hrnet_jax.tools import outputs


def test_folders(tmp_path):
    assert outputs.folder(str(tmp_path)).name == tmp_path.name
    for name in ("new", "lr0.01", "runs/v1.5"):
        assert str(outputs.folder(str(tmp_path / name))) == str(tmp_path / name)
    (tmp_path / "old.json").mkdir()
    outputs.folder(str(tmp_path / "old.json"))  # exists as a folder
    (tmp_path / "README").touch()
    for name in ("out.png", "metrics.JSON", "film.mp4", "net.pth", "README"):
        with pytest.raises(ValueError, match=rf"--output=.*{name} is the name of a file; name a f"):
            outputs.folder(str(tmp_path / name))


def test_files(tmp_path):
    assert outputs.file(str(tmp_path / "a.json")).name == "a.json"
    with pytest.raises(ValueError, match="is a folder; name a file"):
        outputs.file(str(tmp_path))


def test_an_image_suffix_decides(tmp_path):
    assert str(outputs.image(str(tmp_path / "a.JPG"), "x.png")) == str(tmp_path / "a.JPG")
    for name in ("", "new", "lr0.01"):
        assert outputs.image(str(tmp_path / name), "x.png") == tmp_path / name / "x.png"
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ValueError, match=r"folder\.png is a folder; name a file"):
        outputs.image(str(tmp_path / "folder.png"), "x.png")
