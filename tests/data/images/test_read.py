import numpy as np
import pytest
from handmade import exif, saved, tiff

from hrnet_jax.data.images.decode import decode_image
from hrnet_jax.data.images.read import read_image


def test_reads_as_training_does(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    for name, data in {
        "a.png": saved(pixels, "PNG"),
        "b.jpg": saved(pixels, "JPEG", exif=b"Exif\0\0" + exif(6)),
        "c.webp": saved(pixels, "WEBP"),
        "d.tif": tiff((pixels.astype(np.uint16), {274: 8})),
        "e.bmp": saved(pixels, "BMP"),
        "f.ppm": saved(pixels, "PPM"),
        "g.png": saved(pixels[..., 0], "PNG"),
    }.items():
        (tmp_path / name).write_bytes(data)
        image = read_image(tmp_path / name, (0, 255))
        np.testing.assert_array_equal(image, decode_image(data, name, image_range=(0, 255)))
        assert image.dtype == np.uint8
        assert image.shape == ((8, 6, 3) if name in ("b.jpg", "d.tif") else (6, 8, 3))
    with pytest.raises(ValueError, match=r"d.tif has 16 bits per channel"):
        read_image(tmp_path / "d.tif")
