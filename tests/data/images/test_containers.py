import io
import struct

import numpy as np
import pytest
from handmade import tiff
from imagecodecs import tiff_encode
from PIL import Image

from hrnet_jax.data.images.containers import Header, InFile, InMemory, parse
from hrnet_jax.data.images.headers import read_header


def saved(fmt, mode="RGB", size=(8, 6), **options):
    file = io.BytesIO()
    Image.new(mode, size).save(file, fmt, **options)
    return file.getvalue()


RGB = np.zeros((6, 8, 3), np.uint8)

FILES = {
    "png": (saved("PNG"), Header("png", 6, 8, "rgb", 8)),
    "png rgba": (saved("PNG", "RGBA"), Header("png", 6, 8, "rgba", 8, alpha=True)),
    "png key": (saved("PNG", transparency=(1, 2, 3)), Header("png", 6, 8, "rgb", 8, alpha=True)),
    "jpeg": (saved("JPEG"), Header("jpeg", 6, 8, "rgb", 8)),
    "jpeg cmyk": (saved("JPEG", "CMYK"), Header("jpeg", 6, 8, "cmyk", 8)),
    "webp lossy": (saved("WEBP", size=(300, 6)), Header("webp", 6, 300, "rgb", 8)),
    "webp lossless": (saved("WEBP", lossless=True), Header("webp", 6, 8, "rgb", 8)),
    "webp rgba": (
        saved("WEBP", "RGBA", lossless=True),
        Header("webp", 6, 8, "rgba", 8, alpha=True),
    ),
    "tiff": (saved("TIFF"), Header("tiff", 6, 8, "rgb", 8)),
    "tiff gray": (saved("TIFF", "L"), Header("tiff", 6, 8, "gray", 8)),
    "tiff 16": (saved("TIFF", "I;16"), Header("tiff", 6, 8, "gray", 16)),
    "tiff float": (saved("TIFF", "F"), Header("tiff", 6, 8, "gray", 32)),
    "tiff rgba": (saved("TIFF", "RGBA"), Header("tiff", 6, 8, "rgba", 8, alpha=True)),
    "tiff cmyk": (saved("TIFF", "CMYK"), Header("tiff", 6, 8, "cmyk", 8)),
    "tiff palette": (saved("TIFF", "P"), Header("tiff", 6, 8, "palette", 8)),
    "tiff big": (
        tiff_encode(np.zeros((6, 8), np.uint8), bigtiff=True),
        Header("tiff", 6, 8, "gray", 8),
    ),
    "tiff bands": (
        tiff((np.zeros((6, 8, 5), np.uint8), {338: (0, 0, 0, 0)})),
        Header("tiff", 6, 8, "5 bands", 8),
    ),
    "tiff rgb+infrared": (
        saved("TIFF", "RGBX"),
        Header("tiff", 6, 8, "4 bands", 8),
    ),
    "bmp": (saved("BMP"), Header("bmp", 6, 8, "rgb", 8)),
    "bmp palette": (saved("BMP", "P"), Header("bmp", 6, 8, "palette", 8)),
    "ppm": (saved("PPM"), Header("ppm", 6, 8, "rgb", 8)),
    "ppm gray": (b"P5 # a\n# b 7\n 8 6\n65535\n" + bytes(96), Header("ppm", 6, 8, "gray", 16)),
}


@pytest.mark.parametrize("kind", FILES)
def test_headers(kind, tmp_path):
    data, expected = FILES[kind]
    (tmp_path / "a").write_bytes(data)
    assert parse(InMemory(data)) == parse(InFile(str(tmp_path / "a"))) == expected
    # Cut anywhere, a header is read as it is or refused.
    for length in range(len(data)):
        try:
            found = parse(InMemory(data[:length]))
        except ValueError as error:
            assert "damaged" in str(error)  # noqa: PT017
        else:
            assert found is None or found.size == expected.size


def frames(fmt, **options):
    file = io.BytesIO()
    pages = [Image.new("RGB", (8, 6), c) for c in ("red", "blue", "green")]
    pages[0].save(file, fmt, save_all=True, append_images=pages[1:], **options)
    return file.getvalue()


def test_pages_and_frames():
    assert parse(InMemory(frames("TIFF"))).pages == 2  # or more
    assert parse(InMemory(frames("WEBP", lossless=True))).pages == 3
    assert parse(InMemory(frames("PNG"))).pages == 3
    assert parse(InMemory(tiff((RGB, {}), (RGB, {})))).pages == 2
    # A smaller version of the first page is no page.
    assert parse(InMemory(tiff((RGB, {}), (RGB, {254: 1})))).pages == 1
    assert parse(InMemory(tiff((RGB, {254: 1}), (RGB, {})))).kind == "a preview of another page"


def test_a_directory_that_leads_to_itself():
    data = bytearray(tiff((RGB, {})))
    (entries,) = struct.unpack_from("<H", data, 8)
    struct.pack_into("<I", data, 10 + 12 * entries, 8)
    assert parse(InMemory(bytes(data))).pages == 1


def test_little_is_read_of_a_large_file(tmp_path, monkeypatch):
    from hrnet_jax.runtime import storage

    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3)).astype(np.uint8)
    read, real = [], storage.read_spans

    def counted(path, spans):
        for data in real(path, spans):
            read.append(len(data))
            yield data

    monkeypatch.setattr(storage, "read_spans", counted)
    for fmt, most in (("png", 40_000), ("jpeg", 20_000), ("tiff", 40_000), ("webp", 40_000)):
        path = tmp_path / f"a.{fmt}"
        exif = Image.Exif()
        exif[274] = 6
        Image.fromarray(noise).save(path, exif=exif, quality=100)
        read.clear()
        assert read_header(str(path)).size == (900, 900)
        assert sum(read) <= most, fmt
        assert path.stat().st_size > 500_000
