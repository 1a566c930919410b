import pytest

from hrnet_jax.inference import tile_fit
from hrnet_jax.models import create_model


@pytest.fixture(scope="module")
def model():
    return create_model("w48", 19)


def test_estimate_is_above_what_xla_says(model):
    # 99.6 MB for one image of 256x512, by the compiled program's memory analysis.
    assert 1e8 < tile_fit.network_bytes(model, 1, (256, 512)) < 1.5e8
    assert tile_fit.network_bytes(create_model("w48", 19, "ocr"), 2, (256, 512)) > 3e8


def test_tiles_are_halved_until_they_fit(model):
    size, view = (1024, 2048), (2048, 4096)
    whole = tile_fit.network_bytes(model, 1, view)  # 8.05 GB, and 2.55 GB of values
    assert tile_fit.tile_that_fits(model, 1, size, view, 14 * 10**9) is None
    assert tile_fit.tile_that_fits(model, 1, size, view, 12 * 10**9) == (2048, 2048)
    assert tile_fit.tile_that_fits(model, 1, size, view, 5 * 10**9) == (1024, 1024)
    assert whole == 2048 * 4096 * 960
    with pytest.raises(ValueError, match=r"predicted at 2048x4096, do not fit into 2\.8 GiB"):
        tile_fit.tile_that_fits(model, 1, size, view, 3 * 10**9)
