import io
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from handmade import exif, saved, tiff
from PIL import Image

from hrnet_jax.data.images import decode, notes


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
    gray = decode.decode_image(encoded(ids), "a.png")
    np.testing.assert_array_equal(gray, np.repeat(ids[..., None], 3, -1))
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


GRAY, RGB, PALETTE, GRAY_ALPHA, RGBA = 0, 2, 3, 4, 6
SIXTEEN = struct.pack


@pytest.mark.parametrize(
    ("data", "ids"),
    [
        (png_file(8, 1, GRAY, b"\x53"), [0, 1, 0, 1, 0, 0, 1, 1]),
        (png_file(4, 2, GRAY, b"\x1b"), [0, 1, 2, 3]),
        (png_file(4, 4, GRAY, b"\x01\x7f"), [0, 1, 7, 15]),
        (png_file(3, 16, GRAY, SIXTEEN(">3H", 7, 300, 65535)), [7, 300, 65535]),
        # Id 4 is declared transparent.
        (png_file(2, 16, GRAY, SIXTEEN(">2H", 300, 4), transparent=b"\0\4"), [300, 4]),
        (png_file(8, 1, PALETTE, b"\x53", palette=bytes(6)), [0, 1, 0, 1, 0, 0, 1, 1]),
        (png_file(4, 2, PALETTE, b"\x1b", palette=bytes(12), transparent=b"\0"), [0, 1, 2, 3]),
        (png_file(2, 8, GRAY_ALPHA, bytes([3, 255, 4, 255])), [3, 4]),
        (png_file(2, 16, GRAY_ALPHA, SIXTEEN(">4H", 300, 65535, 4, 65535)), [300, 4]),
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
        (png_file(2, 8, GRAY_ALPHA, bytes([3, 255, 4, 0])), "a.png has transparent pixels"),
        (png_file(1, 16, RGBA, SIXTEEN(">4H", 3, 3, 3, 9)), "a.png has transparent pixels"),
        (png_file(4, 2, GRAY, b"\x1b")[:-20], "a.png is damaged"),
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
        # Gray is a color, too: a mask of black and white.
        (png_file(2, 8, GRAY, bytes([0, 255])), [[0] * 3, [255] * 3]),
        (png_file(2, 1, GRAY, b"\x40"), [[0] * 3, [255] * 3]),
    ],
)  # fmt: skip
def test_colors_of_labels(data, colors):
    assert decode.decode_label(data, "a.png", colors=True).tolist() == [colors]


@pytest.mark.parametrize(
    ("data", "ids"),
    [
        (saved(np.array([[3, 200]], np.uint8), "TIFF", compression="tiff_lzw"), [3, 200]),
        (saved(np.array([[3, 40000]], np.uint16), "TIFF"), [3, 40000]),
        (tiff((np.array([[3, 40000]], np.int32), {})), [3, 40000]),
        (saved(np.array([[3, 200]], np.uint8), "TIFF", "RGB"), [3, 200]),
        (saved(np.array([[3, 200]], np.uint8), "BMP"), [3, 200]),
        (saved(np.array([[3, 200]], np.uint8), "BMP", "RGB"), [3, 200]),
        (saved(np.array([[0, 255]], np.uint8), "BMP", "1"), [0, 1]),
    ],
)
def test_labels_as_tiff_and_bmp(data, ids):
    label = decode.decode_label(data, "a")
    assert label.tolist() == [ids]
    assert label.dtype == (np.uint16 if 40000 in ids else np.uint8)


@pytest.mark.parametrize("fmt", ["TIFF", "BMP"])
def test_colors_of_tiff_and_bmp(rgb, fmt):
    np.testing.assert_array_equal(decode.decode_label(saved(rgb, fmt), "a", colors=True), rgb)
    image = Image.fromarray(np.array([[1, 0]], np.uint8))
    image.putpalette([9, 8, 7, 4, 5, 6])
    file = io.BytesIO()
    image.save(file, fmt)
    assert decode.decode_label(file.getvalue(), "a").tolist() == [[1, 0]]
    colors = decode.decode_label(file.getvalue(), "a", colors=True)
    assert colors.tolist() == [[[4, 5, 6], [9, 8, 7]]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (saved(np.zeros((8, 8), np.uint8), "TIFF", compression="jpeg"), "compressed with loss"),
        (saved(np.zeros((8, 8), np.uint8), "WEBP"), "WEBP file, which may not keep values"),
        (saved(np.zeros((8, 8), np.uint8), "PPM"), "PPM file, which may not keep values"),
        (tiff((np.array([[3, -9]], np.int32), {})), "int32 values from -9 to 3"),
        (tiff((np.array([[3, 0.5]], np.float32), {})), "float32 values from 0.5 to 3"),
        (tiff(*[(np.zeros((2, 2), np.uint8), {})] * 2), "several pages"),
    ],
)
def test_files_that_are_no_labels(data, message):
    with pytest.raises(ValueError, match=f"label a .*{message}"):
        decode.decode_label(data, "a")


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


RNG = np.random.default_rng(3)
DEEP = RNG.integers(0, 4096, (5, 7, 3)).astype(np.uint16)
# 0..4095 -> 0..255 with halves to even, in whole numbers.
SCALED = np.array([round(Fraction(int(v) * 255, 4095)) for v in DEEP.ravel()], np.uint8)
SCALED = SCALED.reshape(DEEP.shape)


def ppm16(values):
    kind = "P6" if values.ndim == 3 else "P5"
    head = f"{kind}\n# 12 bits\n{values.shape[1]} {values.shape[0]}\n4095\n".encode()
    return head + values.astype(">u2").tobytes()


DEEP_FILES = {
    "png": lambda v: imagecodecs.png_encode(v),
    "png with alpha": lambda v: imagecodecs.png_encode(
        np.concatenate([v.reshape(5, 7, -1), np.full((5, 7, 1), 65535, np.uint16)], -1)
    ),
    "tiff": lambda v: tiff((v, {})),
    "tiff, big-endian, compressed": lambda v: imagecodecs.tiff_encode(
        v, byteorder=">", compression="deflate", photometric="rgb" if v.ndim == 3 else "minisblack"
    ),
    "tiff of floats": lambda v: tiff((v.astype(np.float32), {})),
    "tiff of doubles": lambda v: tiff((v.astype(np.float64), {})),
    "tiff of signed": lambda v: tiff((v.astype(np.int16), {})),
    "ppm": ppm16,
}


@pytest.mark.parametrize("kind", DEEP_FILES)
def test_more_than_eight_bits(kind):
    for values, expected in ((DEEP, SCALED), (DEEP[..., 1], SCALED[..., 1:2].repeat(3, 2))):
        data = DEEP_FILES[kind](values.copy())  # the encoder swaps the bytes of its input
        image = decode.decode_image(data, "a", image_range=(0, 4095))
        np.testing.assert_array_equal(image, expected)
        # What lies outside of the range becomes its nearer end.
        image = decode.decode_image(data, "a", image_range=(1000, 1001))
        part = values if values.ndim == 3 else values[..., None].repeat(3, 2)
        np.testing.assert_array_equal(image, np.where(part > 1000, 255, 0))
        with pytest.raises(ValueError, match=r'some/a has \d\d bits .*"image_range": \[0, 4095\]'):
            decode.decode_image(data, "some/a")


def test_planes_of_a_tiff():
    planes = np.ascontiguousarray(DEEP.transpose(2, 0, 1))
    data = imagecodecs.tiff_encode(planes, photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(decode.decode_image(data, "a", image_range=(0, 4095)), SCALED)
    planes = np.ascontiguousarray(SCALED.transpose(2, 0, 1))
    data = imagecodecs.tiff_encode(planes, photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(decode.decode_image(data, "a"), SCALED)


GRAY = SCALED[..., 0]
REPEATED = np.repeat(GRAY[..., None], 3, -1)
PALETTE = Image.fromarray(SCALED).quantize(16)
OPAQUE = np.dstack([SCALED, np.full((5, 7), 255, np.uint8)])
BITS = GRAY // 128 * 255


def file_of(image, fmt, **options):
    file = io.BytesIO()
    image.save(file, fmt, **options)
    return file.getvalue()


CONVERTED = {
    "gray png": (saved(GRAY, "PNG"), REPEATED, "gray"),
    "gray webp": (saved(SCALED, "WEBP", lossless=True), SCALED, ""),
    "gray tiff": (saved(GRAY, "TIFF"), REPEATED, "gray"),
    "white is zero": (tiff((255 - GRAY, {262: 0})), REPEATED, "gray"),
    "gray bmp": (saved(GRAY, "BMP"), REPEATED, "palette"),
    "gray ppm": (saved(GRAY, "PPM"), REPEATED, "gray"),
    "1 bit": (saved(BITS, "PNG", "1"), BITS[..., None].repeat(3, -1), "gray"),
    "1 bit tiff": (saved(BITS, "TIFF", "1"), BITS[..., None].repeat(3, -1), "gray"),
    "palette": (file_of(PALETTE, "PNG"), np.asarray(PALETTE.convert("RGB")), "palette"),
    "palette tiff": (file_of(PALETTE, "TIFF"), np.asarray(PALETTE.convert("RGB")), "palette"),
    "palette bmp": (file_of(PALETTE, "BMP"), np.asarray(PALETTE.convert("RGB")), "palette"),
    "opaque": (saved(OPAQUE, "PNG"), SCALED, "alpha"),
    "opaque tiff": (saved(OPAQUE, "TIFF"), SCALED, "alpha"),
    "gray+alpha": (saved(np.dstack([GRAY, OPAQUE[..., 3]]), "PNG"), REPEATED, "alpha"),
    "unused key": (saved(SCALED | 1, "PNG", transparency=(0, 0, 0)), SCALED | 1, ""),
    "rgb bmp": (saved(SCALED, "BMP"), SCALED, ""),
    "rgb tiff": (saved(SCALED, "TIFF", compression="tiff_lzw"), SCALED, ""),
    "rgb ppm": (saved(SCALED, "PPM"), SCALED, ""),
    "cmyk tiff": (saved(255 - SCALED, "TIFF", "CMYK"), 255 - SCALED, "CMYK"),
}


@pytest.mark.parametrize("kind", CONVERTED)
def test_conversions_are_exact_and_said_once(kind, caplog, monkeypatch):
    monkeypatch.setattr(notes, "_said", set())
    data, expected, said = CONVERTED[kind]
    for name in ("first", "second"):
        np.testing.assert_array_equal(decode.decode_image(data, name), expected)
    assert [r.args[0] for r in caplog.records] == (["first"] if said else [])
    assert said in caplog.text


def test_the_content_decides_not_the_name(rgb, caplog, monkeypatch):
    monkeypatch.setattr(notes, "_said", set())
    np.testing.assert_array_equal(decode.decode_image(encoded(rgb), "photo.JPG"), rgb)
    assert "photo.JPG: is named .jpg and read as the PNG file that it is" in caplog.text


CLEAR = OPAQUE.copy()
CLEAR[2, 3, 3] = 254
REFUSED = {
    "transparent": (saved(CLEAR, "PNG"), "has transparent pixels"),
    "transparent webp": (saved(CLEAR, "WEBP", lossless=True), "has transparent pixels"),
    "transparent tiff": (saved(CLEAR, "TIFF"), "has transparent pixels"),
    "deep and transparent": (
        imagecodecs.png_encode(CLEAR.astype(np.uint16) * 257),
        "has transparent pixels",
    ),
    "transparent color": (
        saved(SCALED, "PNG", transparency=tuple(map(int, SCALED[0, 0]))),
        "has transparent pixels",
    ),
    "pages": (tiff((SCALED, {}), (SCALED, {})), "several pages"),
    "bands": (tiff((np.zeros((5, 7, 4), np.uint8), {338: (0, 0)})), "holds 4 bands"),
    "floats": (tiff((np.full((5, 7), np.nan, np.float32), {})), "values that are not numbers"),
    "cut tiff": (saved(SCALED, "TIFF", compression="tiff_lzw")[:60], "damaged"),
    "cut webp": (saved(SCALED, "WEBP", lossless=True)[:60], "damaged"),
    "cut bmp": (saved(SCALED, "BMP")[:80], "damaged"),
    "cut ppm": (saved(SCALED, "PPM")[:60], "damaged"),
    "cut deep ppm": (ppm16(DEEP)[:60], "damaged"),
    "cut deep png": (imagecodecs.png_encode(DEEP)[:90], "damaged"),
    "cut deep tiff": (tiff((DEEP, {}))[:-50], "damaged"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_by_name(kind):
    data, message = REFUSED[kind]
    with pytest.raises(ValueError, match=rf"^some/a\b.*{message}"):
        decode.decode_image(data, "some/a", image_range=(0, 4095))


@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_jpeg_has_the_pixels_of_other_programs(rgb, subsampling):
    smooth = Image.fromarray(rgb).resize((61, 47), Image.Resampling.BICUBIC)
    for image in (smooth, smooth.convert("L"), smooth.convert("CMYK")):
        for progressive in (False, True):
            data = file_of(
                image, "JPEG", quality=85, progressive=progressive, subsampling=subsampling
            )
            expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
            np.testing.assert_array_equal(decode.decode_image(data, "a.jpg"), expected)


def test_jpeg_with_bytes_between_and_behind_its_segments(rgb):
    data = encoded(np.tile(rgb, (9, 9, 1)), fmt="JPEG")
    expected = decode.decode_image(data, "a.jpg")
    frame = data.find(b"\xff\xc0")
    for odd in (
        data[:2] + b"\0junk" + data[2:],
        data[:frame] + b"\x01\x02\x00" + data[frame:],
        data[:frame] + b"\xff\xff" + data[frame:],
        data + b"the film of a moving photo \xff\xda ...",
    ):
        np.testing.assert_array_equal(decode.decode_image(odd, "a.jpg"), expected)
    for cut in (data[:-2], data[: len(data) // 2]):
        with pytest.raises(ValueError, match=r"a.jpg is damaged: it ends at byte \d+, before"):
            decode.decode_image(cut, "a.jpg")
    # The end mark of a preview inside is not that of the image.
    preview = b"\xff\xe1" + (len(data) + 2).to_bytes(2) + data
    whole = data[:2] + preview + data[2:]
    np.testing.assert_array_equal(decode.decode_image(whole, "a.jpg"), expected)
    with pytest.raises(ValueError, match=r"a.jpg is damaged: it ends"):
        decode.decode_image(whole[:-50], "a.jpg")


def test_an_image_with_a_mark_and_its_label_without(make_source):
    source = make_source([(4, 6)])
    path = Path(source.image_paths[0])
    with Image.open(path) as image:
        image.save(path, exif=exif(6))
    with pytest.raises(ValueError, match=r"is 4x6 but its image .* is 6x4. The image has the orie"):
        source.read(0)
    with Image.open(source.label_paths[0]) as label:
        ids = np.array(label)
        label.save(source.label_paths[0], exif=exif(8))
    # Both turned, the label the other way.
    np.testing.assert_array_equal(source.read(0)[1], np.searchsorted([3, 5, 7], np.rot90(ids)))
    Image.fromarray(ids).save(source.label_paths[0], exif=exif(6))
    image, label = source.read(0)
    assert image.shape == (6, 4, 3)
    np.testing.assert_array_equal(label, np.searchsorted([3, 5, 7], np.rot90(ids, -1)))
