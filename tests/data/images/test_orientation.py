"""Every container that says how the camera was held, in all eight ways."""

import struct
import zlib

import numpy as np
import pytest
from handmade import exif, saved, tiff

from hrnet_jax.data.images import orientation
from hrnet_jax.data.images.decode import decode_image, decode_label
from hrnet_jax.data.images.headers import read_header

STORED = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
# As defined by EXIF: the side that row 0 and column 0 of the stored pixels lie on.
UPRIGHT = {
    1: [[1, 2, 3], [4, 5, 6]],  # top, left
    2: [[3, 2, 1], [6, 5, 4]],  # top, right
    3: [[6, 5, 4], [3, 2, 1]],  # bottom, right
    4: [[4, 5, 6], [1, 2, 3]],  # bottom, left
    5: [[1, 4], [2, 5], [3, 6]],  # left, top
    6: [[4, 1], [5, 2], [6, 3]],  # right, top
    7: [[6, 3], [5, 2], [4, 1]],  # right, bottom
    8: [[3, 6], [2, 5], [1, 4]],  # left, bottom
}


def with_chunk(png, block, before=b"IEND"):
    place = png.rfind(before) - 4
    body = b"eXIf" + block
    chunk = struct.pack(">I", len(block)) + body + zlib.crc32(body).to_bytes(4)
    return png[:place] + chunk + png[place:]


@pytest.mark.parametrize("turn", UPRIGHT)
def test_by_hand(turn):
    np.testing.assert_array_equal(orientation.upright(STORED, turn), UPRIGHT[turn])
    for order in "<>":
        assert orientation.of_exif(exif(turn, order)) == turn
        assert orientation.of_exif(b"Exif\0\0" + exif(turn, order)) == turn


def test_marks_that_say_nothing():
    for block in (exif(0), exif(9), exif(6)[:-8], b"", b"MM", b"II*\0" + b"\xff" * 20, b"x" * 40):
        assert orientation.of_exif(block) == 1


CONTAINERS = {
    "png": lambda turn: saved(STORED, "PNG", exif=exif(turn)),
    "png, behind the pixels": lambda turn: with_chunk(saved(STORED, "PNG"), exif(turn, "<")),
    "png, palette": lambda turn: with_chunk(
        saved(np.stack([STORED] * 3, -1), "PNG"), exif(turn), b"IDAT"
    ),
    "webp": lambda turn: saved(
        np.stack([STORED] * 3, -1), "WEBP", lossless=True, exif=b"Exif\0\0" + exif(turn)
    ),
    "tiff": lambda turn: saved(STORED, "TIFF", tiffinfo={274: turn}),
    "tiff, compressed": lambda turn: saved(
        np.stack([STORED] * 3, -1), "TIFF", tiffinfo={274: turn}, compression="tiff_lzw"
    ),
    "tiff, 16 bits": lambda turn: tiff((STORED.astype(np.uint16), {274: turn})),
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_every_container(kind, tmp_path):
    for turn, expected in UPRIGHT.items():
        data = CONTAINERS[kind](turn)
        path = tmp_path / "a"
        path.write_bytes(data)
        expected = np.array(expected)
        header = read_header(str(path))
        assert (header.orientation, header.size) == (turn, expected.shape)
        image = decode_image(data, "a", image_range=(0, 255))
        np.testing.assert_array_equal(image, np.stack([expected] * 3, -1))
        if header.format == "png":
            np.testing.assert_array_equal(decode_label(data, "a"), expected)


@pytest.mark.parametrize("turn", UPRIGHT)
def test_jpeg(turn, tmp_path):
    large = (40 * STORED).repeat(16, 0).repeat(16, 1)
    data = saved(large, "JPEG", exif=b"Exif\0\0" + exif(turn), quality=95)
    (tmp_path / "a.jpg").write_bytes(data)
    expected = 40 * np.array(UPRIGHT[turn]).repeat(16, 0).repeat(16, 1)
    assert read_header(str(tmp_path / "a.jpg")).size == expected.shape
    image = decode_image(data, "a.jpg")
    np.testing.assert_allclose(image[..., 0], expected, atol=2)
    # Pixels that come from part of a file are those of the whole.
    np.testing.assert_array_equal(decode_image(data, "a.jpg", rows=5)[:5], image[:5])


def test_rows_of_a_turned_png():
    data = saved(STORED, "PNG", exif=exif(6))
    assert decode_image(data, "a.png", rows=1).shape == (3, 2, 3)
    np.testing.assert_array_equal(decode_label(data, "a.png", rows=1), UPRIGHT[6])
