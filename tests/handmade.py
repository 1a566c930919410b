"""Image files byte by byte, for marks and kinds that no encoder at hand writes."""

import io
import struct

import numpy as np
from PIL import Image


def exif(turn: int, order: str = ">") -> bytes:
    """An EXIF block that holds the orientation and nothing else."""
    sign = {">": b"MM", "<": b"II"}[order]
    entry = struct.pack(f"{order}HHIHH", 274, 3, 1, turn, 0)
    return sign + struct.pack(f"{order}HIH", 42, 8, 1) + entry + bytes(4)


def tiff(*pages: tuple[np.ndarray, dict[int, int | tuple[int, ...]]]) -> bytes:
    """A TIFF file of uncompressed pages: the pixels [H, W] or [H, W, C], and other tags."""
    data = b"II*\0" + struct.pack("<I", 8)
    for number, (pixels, tags) in enumerate(pages):
        height, width, count = (*pixels.shape, 1)[:3]
        bits = 8 * pixels.dtype.itemsize
        kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
        all_tags = {256: width, 257: height, 258: (bits,) * count, 259: 1, 277: count, 278: height}
        all_tags |= {262: 2 if count == 3 else 1, 339: (kind,) * count, 273: 0, 279: pixels.nbytes}
        all_tags |= tags
        behind = len(data) + 2 + 12 * len(all_tags) + 4
        lists = {t: v for t, v in all_tags.items() if isinstance(v, tuple) and len(v) > 2}
        places = {}
        for tag, values in lists.items():
            places[tag], behind = behind, behind + 2 * len(values)
        all_tags[273] = behind
        data += struct.pack("<H", len(all_tags))
        for tag, value in sorted(all_tags.items()):
            values = value if isinstance(value, tuple) else (value,)
            if tag in places:
                data += struct.pack("<HHII", tag, 3, len(values), places[tag])
            elif isinstance(value, tuple):
                short = struct.pack(f"<{len(values)}H", *values)
                data += struct.pack("<HHI4s", tag, 3, len(values), short)
            else:
                data += struct.pack("<HHII", tag, 4, 1, value)
        after = behind + pixels.nbytes
        data += struct.pack("<I", after if number + 1 < len(pages) else 0)
        for values in lists.values():
            data += struct.pack(f"<{len(values)}H", *values)
        data += pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    return data


def saved(pixels: np.ndarray, fmt: str, mode: str | None = None, **options) -> bytes:
    """The file that Pillow writes."""
    file, image = io.BytesIO(), Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(file, fmt, **options)
    return file.getvalue()
