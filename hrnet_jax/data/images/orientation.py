"""The mark that says how a camera was held (EXIF orientation, TIFF tag 274), and turning by it.

    1 as stored             5 transposed
    2 mirrored left-right   6 turned by 90 degrees clockwise
    3 turned by 180         7 transposed across the other diagonal
    4 mirrored top-bottom   8 turned by 90 degrees counterclockwise

The number says what has to be done to the stored pixels (EXIF 2.3, 4.6.4; TIFF 6.0, page 36).
"""

import struct
from collections.abc import Callable, Iterator

import numpy as np

TAG = 274
# Values of these TIFF types are read: BYTE, SHORT, LONG, LONG8.
_TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}
_MAX_VALUES = 64  # of an entry; no tag that is needed here has more
_MAX_ENTRIES = 1024

# (start, length) -> these bytes of a file, fewer where it ends.
Read = Callable[[int, int], bytes]


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels [H, W, ...] as they are meant to be seen: [H, W, ...] or [W, H, ...]."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def of_exif(block: bytes) -> int:
    """The orientation in an EXIF block, with or without its first six bytes; 1 if it has none."""
    block = block.removeprefix(b"Exif\0\0")
    try:
        first = next(directories(lambda start, length: block[start : start + length]), {})
    except ValueError:
        return 1  # damaged notes of a camera do not make the picture unreadable
    return of_tags(first)


def of_tags(tags: dict[int, tuple[int, ...]]) -> int:
    """The orientation in a directory; 1 without one, or for a number that does not exist."""
    (value,) = tags.get(TAG, ())[:1] or (1,)
    return value if value in range(1, 9) else 1


def directories(read: Read) -> Iterator[dict[int, tuple[int, ...]]]:
    """The directories (IFDs) of a TIFF file or EXIF block: the whole numbers of each tag.

    Raises:
        ValueError: if it is not TIFF, or ends too early.
    """
    head = read(0, 16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    version = struct.unpack(f"{order}H", head[2:4])[0] if order and len(head) >= 8 else 0
    if version not in (42, 43):
        raise ValueError("it does not begin with a TIFF header")
    big = version == 43  # BigTIFF: 8 bytes for positions and counts
    word, count, size = ("Q", "Q", 20) if big else ("I", "H", 12)
    take = lambda form, start: _unpack(read, order + form, start)  # noqa: E731
    (position,) = take(word, 8 if big else 4)
    seen = set()
    while position and position not in seen:
        seen.add(position)
        (entries,) = take(count, position)
        if entries > _MAX_ENTRIES:
            raise ValueError(f"a directory of {entries} entries")
        start = position + struct.calcsize(count)
        tags = {}
        for k in range(entries):
            entry = start + k * size
            tag, kind, number = take(f"HH{word}", entry)
            if kind in _TYPES and 0 < number <= _MAX_VALUES:
                form = f"{number}{_TYPES[kind]}"
                place = entry + 4 + struct.calcsize(word)
                if struct.calcsize(order + form) > struct.calcsize(word):
                    (place,) = take(word, place)
                tags[tag] = take(form, place)
        yield tags
        (position,) = take(word, start + entries * size)


def _unpack(read: Read, form: str, start: int) -> tuple[int, ...]:
    data = read(start, struct.calcsize(form))
    if len(data) < struct.calcsize(form):
        raise ValueError(f"it ends at byte {start + len(data)}, inside a directory")
    return struct.unpack(form, data)
