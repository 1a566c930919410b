"""Rotation, shear and perspective of a crop: their matrices, and the resampling with one of them.

Points are (x, y) with pixel centers at half integers, so that the corners of an image are (0, 0)
and (width, height).
"""

import math
from collections.abc import Sequence

import numpy as np

from hrnet_jax.data.sources.source import IGNORE_LABEL

Matrix = tuple[tuple[float, float, float], ...]

# The mean of ImageNet's pixels, which the network's input has as 0 (`models.normalize.MEAN`).
OUTSIDE_COLOR = (124, 116, 104)
# Rows resampled at a time, so that the intermediate values stay in the cache.
_BLOCK = 32


def matrix(
    rotation: float,
    shear: float,
    corners: np.ndarray,
    pivot: Sequence[float],
    crop_size: tuple[int, int],
) -> Matrix:
    """From points of a warped crop to the points of the crop that are seen there.

    Args:
        rotation: angle in degrees by which the content turns counterclockwise, as it is seen.
        shear: angle in degrees by which vertical lines lean to the right.
        corners: [4, 2], where the corners (top left, top right, bottom left, bottom right) look
            instead: their moves (x, y) as fractions of the width and height. Below a quarter.
        pivot: (y, x) of the point that stays at its place.
        crop_size: (height, width).
    """
    angle, lean = math.radians(rotation), math.tan(math.radians(shear))
    turn = np.array(
        [[math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1]]
    )
    # To the right at the top: the content at (x, y) comes from (x + lean * y, y).
    slant = np.array([[1, lean, 0], [0, 1, 0], [0, 0, 1.0]])
    height, width = crop_size
    square = np.array([[0, 0], [width, 0], [0, height], [width, height]], float)
    seen = _homography(square, square + corners * (width, height))
    fixed = _points(seen, np.array([[pivot[1], pivot[0]]]))[0]
    around = _moved(pivot[1], pivot[0]) @ turn @ slant @ _moved(*-fixed) @ seen
    return tuple(tuple(float(x) for x in row) for row in around)


def window(
    to_image: np.ndarray, size: tuple[int, int], crop_size: tuple[int, int]
) -> tuple[slice, slice]:
    """The rows and columns of an image that a warped crop reads; at least one of each.

    Args:
        to_image: [3, 3], from points of the crop to points of the image.
        size: (height, width) of the image.
        crop_size: (height, width).
    """
    height, width = crop_size
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]], float)
    found = _points(to_image, corners)
    spans = []
    for values, length in ((found[:, 1], size[0]), (found[:, 0], size[1])):
        # One more pixel on each side: interpolation reads both neighbors.
        first = min(max(math.floor(values.min()) - 1, 0), length - 1)
        last = min(max(math.ceil(values.max()) + 1, first + 1), length)
        spans.append(slice(first, last))
    return spans[0], spans[1]


def apply(
    image: np.ndarray,
    label: np.ndarray,
    to_image: np.ndarray,
    crop_size: tuple[int, int],
    size: tuple[int, int],
    origin: tuple[int, int],
    shift: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Resamples the image bilinearly and takes the label that lies at each pixel's center.

    Args:
        image: uint8 [h, w, 3], the part of the image that `window` says.
        label: uint8 [h, w].
        to_image: [3, 3], from points of the crop to points of the image.
        crop_size: (height, width) of the result.
        size: (height, width) of the whole image.
        origin: (row, column) of the first given pixel in the whole image.
        shift: added to all channels inside the image.

    Returns:
        uint8 [*crop_size, 3] and uint8 [*crop_size]; OUTSIDE_COLOR and IGNORE_LABEL outside of the
        image.
    """
    pixels = np.empty((*crop_size, 3), np.uint8)
    ids = np.empty(crop_size, np.uint8)
    # Four bytes a pixel: gathering single numbers is NumPy's fast case.
    packed = np.zeros((*image.shape[:2], 4), np.uint8)
    packed[..., :3] = image
    packed, flat_label = packed.reshape(-1).view(np.uint32), label.ravel()
    columns = np.arange(crop_size[1]) + 0.5
    for start in range(0, crop_size[0], _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, crop_size[0]))[:, None] + 0.5
        x, y, w = (a * columns + b * rows + c for a, b, c in to_image)
        x, y = x / w, y / w
        outside = (x < 0) | (x >= size[1]) | (y < 0) | (y >= size[0])
        left, right, across = _neighbors(x, origin[1], size[1], image.shape[1])
        top, bottom, down = _neighbors(y, origin[0], size[0], image.shape[0])
        top, bottom = top * image.shape[1], bottom * image.shape[1]
        found = _mix(
            _mix(_colors(packed, top + left), _colors(packed, top + right), across),
            _mix(_colors(packed, bottom + left), _colors(packed, bottom + right), across),
            down,
        )
        found += np.float32(0.5 + shift)
        np.clip(found, 0, 255, out=found)
        block = pixels[start : start + len(rows)]
        block[:] = found[..., :3]
        block[outside] = OUTSIDE_COLOR
        # Clipped only where it is not used.
        row, column = (
            np.clip(p.astype(np.int64) - first, 0, length - 1)
            for p, first, length in zip((y, x), origin, label.shape, strict=True)
        )
        nearest = ids[start : start + len(rows)]
        np.take(flat_label, row * label.shape[1] + column, out=nearest, mode="clip")
        nearest[outside] = IGNORE_LABEL
    return pixels, ids


def _colors(packed: np.ndarray, index: np.ndarray) -> np.ndarray:
    """uint32 [n] pixels at the indices [...], as float32 [..., 4]."""
    return packed.take(index, mode="clip")[..., None].view(np.uint8).astype(np.float32)


def _neighbors(
    position: np.ndarray, first: int, size: int, given: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of the pixels before and after a position, and the weight of the one after.

    Beyond the outermost centers both are the pixel at the edge.
    """
    center = np.clip(position - 0.5, 0, size - 1)
    low = np.floor(center)
    before = np.clip(low.astype(np.int64) - first, 0, given - 1)
    return before, np.minimum(before + 1, given - 1), (center - low).astype(np.float32)


def _mix(before: np.ndarray, after: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Between two arrays, by the fraction of the second; overwrites the second."""
    after -= before
    after *= weight[..., None]
    after += before
    return after


def _homography(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The matrix [3, 3] that takes four points to four others."""
    rows, values = [], []
    for (x, y), (u, v) in zip(start, end, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.append(np.linalg.solve(np.array(rows), np.array(values)), 1.0).reshape(3, 3)


def _points(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """[n, 2] points, through the matrix."""
    x, y, w = matrix @ np.column_stack([points, np.ones(len(points))]).T
    return np.column_stack([x / w, y / w])


def _moved(x: float, y: float) -> np.ndarray:
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])
