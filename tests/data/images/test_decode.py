import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hrnet_jax.data.images import decode


def encoded(pixels, mode=None, fmt="PNG"):
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(file, fmt)
    return file.getvalue()


@pytest.fixture
def rgb():
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


@pytest.fixture
def ids():
    return np.random.default_rng(1).choice(np.array([0, 3, 5, 7, 255], np.uint8), (5, 7))


def test_images(rgb, ids):
    np.testing.assert_array_equal(decode.decode_image(encoded(rgb), "a.png"), rgb)
    grey = decode.decode_image(encoded(ids), "a.png")
    np.testing.assert_array_equal(grey, np.repeat(ids[..., None], 3, -1))
    np.testing.assert_array_equal(decode.decode_image(encoded(rgb, "RGBA"), "a.png"), rgb)
    jpeg = decode.decode_image(encoded(np.full((8, 8, 3), 77, np.uint8), fmt="JPEG"), "a.jpg")
    assert jpeg.shape == (8, 8, 3)
    assert abs(jpeg.astype(int) - 77).max() <= 2


def test_labels_keep_their_values(ids):
    np.testing.assert_array_equal(decode.decode_label(encoded(ids), "a.png"), ids)


def png_file(width, bits, color, *rows, palette=b"", transparent=b""):
    """A PNG file from its raw bytes, of kinds that Pillow does not write."""

    def chunk(kind, body):
        checksum = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", width, len(rows), bits, color, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    data += chunk(b"PLTE", palette) if palette else b""
    data += chunk(b"tRNS", transparent) if transparent else b""
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return data + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
SIXTEEN = struct.pack


@pytest.mark.parametrize(
    ("data", "ids"),
    [
        (png_file(8, 1, GREY, b"\x53"), [0, 1, 0, 1, 0, 0, 1, 1]),
        (png_file(4, 2, GREY, b"\x1b"), [0, 1, 2, 3]),
        (png_file(4, 4, GREY, b"\x01\x7f"), [0, 1, 7, 15]),
        (png_file(3, 16, GREY, SIXTEEN(">3H", 7, 300, 65535)), [7, 300, 65535]),
        # Id 4 is declared transparent.
        (png_file(2, 16, GREY, SIXTEEN(">2H", 300, 4), transparent=b"\0\4"), [300, 4]),
        (png_file(8, 1, PALETTE, b"\x53", palette=bytes(6)), [0, 1, 0, 1, 0, 0, 1, 1]),
        (png_file(4, 2, PALETTE, b"\x1b", palette=bytes(12), transparent=b"\0"), [0, 1, 2, 3]),
        (png_file(2, 8, GREY_ALPHA, bytes([3, 255, 4, 255])), [3, 4]),
        (png_file(2, 16, GREY_ALPHA, SIXTEEN(">4H", 300, 65535, 4, 65535)), [300, 4]),
        (png_file(2, 8, RGB, bytes([3, 3, 3, 200, 200, 200])), [3, 200]),
        (png_file(2, 16, RGB, SIXTEEN(">6H", 300, 300, 300, 4, 4, 4)), [300, 4]),
        (png_file(2, 8, RGBA, bytes([3, 3, 3, 255, 4, 4, 4, 255])), [3, 4]),
    ],
)
def test_every_png_of_whole_numbers_is_ids(data, ids):
    label = decode.decode_label(data, "a.png")
    assert label.tolist() == [ids]
    assert label.dtype == (np.uint16 if data[24] == 16 else np.uint8)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (png_file(1, 8, RGB, bytes([3, 3, 4])), r'a.png is a color image \(rgb\).*"label_type"'),
        (png_file(2, 8, GREY_ALPHA, bytes([3, 255, 4, 0])), "a.png has transparent pixels"),
        (png_file(1, 16, RGBA, SIXTEEN(">4H", 3, 3, 3, 9)), "a.png has transparent pixels"),
        (png_file(4, 2, GREY, b"\x1b")[:-20], "a.png is damaged"),
    ],
)
def test_labels_without_clear_ids(data, message):
    with pytest.raises(ValueError, match=message):
        decode.decode_label(data, "a.png")


@pytest.mark.parametrize(
    ("data", "colors"),
    [
        (png_file(2, 8, RGB, bytes([3, 4, 5, 200, 0, 9])), [[3, 4, 5], [200, 0, 9]]),
        (png_file(1, 8, RGBA, bytes([3, 4, 5, 255])), [[3, 4, 5]]),
        (png_file(4, 2, PALETTE, b"\x40", palette=bytes([0, 1, 2, 3, 4, 5])),
         [[3, 4, 5], *[[0, 1, 2]] * 3]),
        # Grey is a color, too: a mask of black and white.
        (png_file(2, 8, GREY, bytes([0, 255])), [[0] * 3, [255] * 3]),
        (png_file(2, 1, GREY, b"\x40"), [[0] * 3, [255] * 3]),
    ],
)  # fmt: skip
def test_colors_of_labels(data, colors):
    assert decode.decode_label(data, "a.png", colors=True).tolist() == [colors]


def test_colors_of_classes_have_8_bits():
    with pytest.raises(ValueError, match=r"a.png has 16 bits per channel"):
        decode.decode_label(png_file(1, 16, RGB, bytes(6)), "a.png", colors=True)


@pytest.mark.parametrize("bits", [8, 4])
def test_palette_labels_give_indices(bits):
    ids = np.arange(15, dtype=np.uint8).reshape(3, 5)
    image = Image.new("P", (5, 3))
    image.putdata(ids.ravel().tolist())
    # Dark colours for high indices: a decoder that takes the palette for pixels shows.
    image.putpalette([v for k in range(2**bits) for v in (255 - k, 3 * k % 256, 7)])
    file = io.BytesIO()
    image.save(file, "PNG", bits=bits)
    assert file.getvalue()[24] == bits
    np.testing.assert_array_equal(decode.decode_label(file.getvalue(), "a.png"), ids)


@pytest.mark.parametrize("cut", [40, 60, 120])
def test_truncated_files_are_named(rgb, ids, cut):
    with pytest.raises(ValueError, match=r"some/a.png is damaged"):
        decode.decode_image(encoded(rgb)[:cut], "some/a.png")
    palette = encoded(np.tile(ids, (40, 40)), "P")
    for data in (encoded(np.tile(ids, (40, 40))), palette):
        with pytest.raises(ValueError, match=r"some/a.png is damaged"):
            decode.decode_label(data[:cut], "some/a.png")


def test_flipped_byte_is_noticed(rgb):
    data = bytearray(encoded(rgb))
    data[len(data) // 2] ^= 0x10
    with pytest.raises(ValueError, match=r"a.png is damaged"):
        decode.decode_image(bytes(data), "a.png")


def test_truncated_jpeg_is_named(rgb):
    data = encoded(np.tile(rgb, (20, 20, 1)), fmt="JPEG")
    with pytest.raises(ValueError, match=r"a.jpg is damaged"):
        decode.decode_image(data[: len(data) // 2], "a.jpg")


def test_sample(make_source):
    source = make_source([(5, 7)])
    image, label = source.read(0)
    np.testing.assert_array_equal(image, np.asarray(Image.open(source.image_paths[0])))
    raw = np.asarray(Image.open(source.label_paths[0]))
    np.testing.assert_array_equal(label, np.searchsorted([3, 5, 7], raw))


@pytest.mark.parametrize("window", [(slice(0, 3), slice(2, 5)), (slice(4, 5), slice(0, 7))])
def test_part_of_a_sample(make_source, window):
    source = make_source([(5, 7)])
    sample = source.records.open(0)
    assert sample.size == (5, 7)
    np.testing.assert_array_equal(sample.image(window), sample.image()[window])
    np.testing.assert_array_equal(sample.label(window), sample.label()[window])


def test_sizes_must_agree(make_source):
    source = make_source([(5, 7)], label=np.zeros((7, 5), np.uint8))
    with pytest.raises(
        ValueError, match=r"label000.png is 7x5 but its image .*image000.png is 5x7"
    ):
        source.read(0)


def test_unknown_ids_are_named(make_source):
    source = make_source([(1, 4)], label=np.array([[3, 9, 0, 200]], np.uint8))
    with pytest.raises(
        ValueError, match=r"label000.png holds the ids \[9, 200\].*known: \[3, 5, 7\]"
    ):
        source.read(0)


def test_image_size_comes_from_the_header(make_source):
    source = make_source([(6, 8)])
    data = Path(source.image_paths[0]).read_bytes()
    Path(source.image_paths[0]).write_bytes(data[:40])  # enough for the size, not for pixels
    assert source.records.size(0) == (6, 8)


def test_count_ids():
    label = np.array([[0, 7, 7], [255, 7, 34]], np.uint8)
    counts = decode.count_ids(label)
    assert {i: n for i, n in enumerate(counts.tolist()) if n} == {0: 1, 7: 3, 34: 1, 255: 1}
