import numpy as np
import pytest
from PIL import Image

from hrnet_jax.data.images.read import read_image


def test_lossless_conversions_warn(tmp_path):
    small = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    image = np.asarray(Image.fromarray(small).resize((47, 33), Image.Resampling.BICUBIC))
    gray = Image.fromarray(image).convert("L")
    opaque = Image.fromarray(image).convert("RGBA")
    palette = Image.fromarray(image).quantize(16)
    for kind, stored in (("gray", gray), ("opaque", opaque), ("palette", palette)):
        path = tmp_path / f"{kind}.png"
        stored.save(path)
        with pytest.warns(UserWarning, match=f"{kind}.png: converted from mode {stored.mode}"):
            result = read_image(path)
        np.testing.assert_array_equal(result, np.asarray(stored.convert("RGB")))
