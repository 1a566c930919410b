import io
import zlib

import numpy as np
import pytest
from PIL import Image

from hrnet_jax.data.images import headers, png


def encoded(pixels, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", **options)
    return file.getvalue()


def decode(data, rows):
    return png.decode_rows(data, headers.parse_header(data, "a.png"), "a.png", rows)


def picture(*shape):
    rng = np.random.default_rng(len(shape))
    noise = rng.integers(0, 30, shape)
    return (noise + np.arange(shape[0])[(...,) + (None,) * (len(shape) - 1)]).astype(np.uint8)


@pytest.mark.parametrize("shape", [(70, 90, 3), (70, 90), (1, 1, 3), (300, 400, 3)])
def test_any_number_of_rows(shape):
    pixels = picture(*shape)
    data = encoded(pixels)
    for rows in {1, shape[0] // 2 or 1, shape[0]}:
        np.testing.assert_array_equal(decode(data, rows), pixels[:rows])


def test_what_is_left_to_other_decoders():
    def plain(data):
        return png.is_plain(data, headers.parse_header(data, "a.png"))

    assert plain(encoded(picture(5, 5)))
    assert plain(encoded(picture(5, 5, 3)))
    assert not plain(encoded(picture(5, 5, 4)))
    assert not plain(encoded(picture(5, 5).astype(np.uint16)))
    file = io.BytesIO()
    Image.fromarray(picture(5, 5)).convert("P").save(file, "PNG")
    assert not plain(file.getvalue())
    interlaced = bytearray(encoded(picture(5, 5)))
    interlaced[28] = 1
    assert not plain(bytes(interlaced))


@pytest.mark.parametrize("place", [0.5, 0.9, 0.99])
def test_damage_is_noticed_behind_the_last_row_needed(place):
    data = bytearray(encoded(picture(300, 400, 3)))
    data[int(len(data) * place)] ^= 4
    with pytest.raises(ValueError, match=r"a.png is damaged: wrong checksum of the chunk b'IDAT'"):
        decode(bytes(data), 3)


@pytest.mark.parametrize("cut", [13, 40, 1000])
def test_truncated(cut):
    data = encoded(picture(70, 90, 3))
    with pytest.raises(ValueError, match=r"a.png is damaged: it ends at byte"):
        decode(data[:-cut], 3)


def rebuilt(data, raw, claimed_rows=None):
    """The file with other pixels inside: checksums of chunks are right."""

    def chunk(kind, body):
        return len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4)

    header = data[16:20] + (claimed_rows or 70).to_bytes(4) + data[24:29]
    body = zlib.compress(raw)
    return data[:8] + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_wrong_amount_of_pixels():
    data, row = encoded(picture(70, 90, 3)), b"\0" + b"\7" * 270
    assert (decode(rebuilt(data, row * 70), 70) == 7).all()
    with pytest.raises(ValueError, match="its pixels end in row 30 of 70"):
        decode(rebuilt(data, row * 30), 70)
    with pytest.raises(ValueError, match="do not end with the last row"):
        decode(rebuilt(data, row * 71), 70)


def test_bomb_is_refused_by_its_header_and_inflated_no_further_than_it_says():
    data = encoded(picture(70, 90, 3))
    bomb = rebuilt(data, b"\0" * 100_000_000)
    with pytest.raises(ValueError, match="do not end with the last row"):
        decode(bomb, 70)
    huge = rebuilt(data, b"\0" * 1000, claimed_rows=2**31 - 1)
    with pytest.raises(ValueError, match=r"bomb.png is 2147483647x90 .* pixels are not decoded"):
        headers.parse_header(huge, "bomb.png")


def test_wrong_filter_and_wrong_checksum_of_the_rows():
    data = encoded(picture(70, 90, 3))
    with pytest.raises(ValueError, match=r"a.png is damaged"):
        decode(rebuilt(data, (b"\x09" + b"\7" * 270) * 70), 70)
