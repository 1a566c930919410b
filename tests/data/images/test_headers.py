import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from hrnet_jax.data.images.headers import Header, check_label_header, parse_header, read_header


def save(path, mode="RGB", size=(8, 6), **options):
    Image.new(mode, size).save(path, **options)
    return str(path)


def png_head(width, height, bits=8, color=0):
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk


def test_reads_png_and_jpeg(tmp_path):
    assert read_header(save(tmp_path / "a.png")) == Header("png", 6, 8, "rgb", 8)
    assert read_header(save(tmp_path / "b.png", "L")) == Header("png", 6, 8, "gray", 8)
    assert read_header(save(tmp_path / "c.png", "P")).kind == "palette"
    assert read_header(save(tmp_path / "d.png", "RGBA")).kind == "rgba"
    assert read_header(save(tmp_path / "e.png", "1")).bits == 1
    assert read_header(save(tmp_path / "f.png", "I;16")).bits == 16
    assert read_header(save(tmp_path / "g.jpg")) == Header("jpeg", 6, 8, "rgb", 8)
    assert read_header(save(tmp_path / "h.JPEG", "L", format="JPEG")).kind == "gray"
    # A progressive JPEG with a long comment ahead of the frame header.
    path = save(tmp_path / "i.jpg", progressive=True, comment=b"x" * 60000)
    assert read_header(path).size == (6, 8)


@pytest.mark.parametrize(
    ("data", "name", "message"),
    [
        (b"", "x.png", r"x.png is empty \(0 bytes\)"),
        (b"GIF89a", "x.png", "x.png is a GIF file: save it as PNG"),
        (b"what?", "x.png", r"x.png is no PNG, JPEG, .* file \(begins with b'what\?'\)"),
        (b"\0\0\0\x20ftypheic", "x.jpg", "x.jpg is a HEIC file: save it as JPEG"),
        (b"version https://git-lfs.github.com/spec/v1", "x.png", "run git lfs pull"),
        (b"\x89PNG\r\n\x1a\n", "x.png", "x.png is a damaged PNG"),
        (b"\xff\xd8\xff\xe0", "x.jpg", "x.jpg is a damaged JPEG"),
        (png_head(0, 6), "x.png", "x.png has no pixels: 6x0"),
        (png_head(8, 6, color=5), "x.png", "color type 5 does not exist"),
        (png_head(16384, 16384), "x.png", "x.png is 16384x16384 by its header: more than 67108864"),
    ],
)
def test_refuses(data, name, message):
    with pytest.raises(ValueError, match=message):
        parse_header(data, name)


def test_the_content_decides(tmp_path):
    path = save(tmp_path / "a.png", format="JPEG")
    assert read_header(path).format == "jpeg"
    with pytest.raises(ValueError, match=r"label .*a.png is a JPEG file"):
        check_label_header(read_header(path), path)


def test_largest_size_is_accepted():
    assert parse_header(png_head(8192, 8192), "x.png").size == (8192, 8192)


def test_labels(tmp_path):
    for mode in ("L", "P", "RGB", "LA", "I;16", "1"):
        check_label_header(read_header(save(tmp_path / "ok.png", mode)), "ok.png")
    with pytest.raises(ValueError, match="x is a JPEG file"):
        check_label_header(read_header(save(tmp_path / "bad.jpg", "L")), "x")


def test_size_is_height_then_width(tmp_path):
    Image.fromarray(np.zeros((3, 5), np.uint8)).save(tmp_path / "a.png")
    assert read_header(str(tmp_path / "a.png")).size == (3, 5)
