import numpy as np
import pytest
from PIL import ImageFont

from hrnet_jax.data.sources.source import Classes
from hrnet_jax.inference import fonts, visualize


@pytest.fixture(autouse=True)
def forget():
    """Each test searches anew."""
    cached = (fonts._font_of, fonts._warn, fonts._fonts_of_the_system)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


def test_english_names_are_drawn_as_before():
    assert fonts.find_font("traffic sign", 15).getname() == ImageFont.load_default(15).getname()


def test_a_font_of_the_system_is_found_by_its_glyphs(monkeypatch, tmp_path, caplog):
    real = [p for p in fonts._fonts_of_the_system() if p.endswith("DejaVuSans.ttf")]
    if not real:
        pytest.skip("DejaVu Sans is not installed")
    folder = tmp_path / "fonts" / "deep"
    folder.mkdir(parents=True)
    (folder / "A.ttf").write_bytes(b"damaged")
    (folder / "B.TTF").symlink_to(real[0])
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_DIRS", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    fonts._fonts_of_the_system.cache_clear()
    for text in ("Straße", "δρόμος", "дорога", "طريق"):
        assert fonts.find_font(text, 15).getname() == ("DejaVu Sans", "Book")
    assert not caplog.records


def test_missing_glyphs_are_named_once(monkeypatch, caplog):
    monkeypatch.setattr(fonts, "_fonts_of_the_system", lambda: ())
    classes = Classes(("道路", "sky"), ((1, 2, 3), (4, 5, 6)), (0, 1))
    first = visualize.legend(classes, 300)
    np.testing.assert_array_equal(visualize.legend(classes, 300), first)
    assert caplog.text.count("no font of this system has the glyphs 路 道, so pictures") == 1
