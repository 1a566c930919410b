"""Whether a view of an image fits into memory, and tiles of which size do."""

from typing import Any

# Bytes of intermediate results per pixel of the image and unit of the variant's width, float32:
# XLA's own analysis says 16.6 to 17.8 for w18_small_v1, w18 and w48 on CPU.
_PER_WIDTH = 20
# OCR works with 512 channels and all streams joined, at 1/4 resolution.
_OCR = 1000
# Full-size arrays of class values that live at the same time while views are averaged.
_VALUES = 4
# Not all of the free memory: others use it, too, and it comes in pieces.
_USABLE = 0.8
_MIN_TILE = 256


def network_bytes(model: Any, num_images: int, size: tuple[int, int]) -> int:
    """About what the network needs for images of this size, without its weights."""
    per_pixel = _PER_WIDTH * model.variant.width + (_OCR if model.head == "ocr" else 0)
    return num_images * size[0] * size[1] * per_pixel


def tile_that_fits(
    model: Any, num_images: int, size: tuple[int, int], view: tuple[int, int], free: int
) -> tuple[int, int] | None:
    """Tiles for the largest view, halved until the network fits; None if it does as it is.

    Args:
        model: of `create_model`.
        num_images: on each device.
        size: (height, width) of the image.
        view: of its largest view.
        free: bytes on the device.

    Raises:
        ValueError: if not even the values of all classes at full size fit.
    """
    values = 4 * model.num_classes * num_images * _VALUES
    room = _USABLE * free - values * max(size[0] * size[1], view[0] * view[1])
    tile = view
    while network_bytes(model, num_images, tile) > room:
        if min(tile) <= _MIN_TILE:
            raise ValueError(
                f"{num_images} image(s) of {size[0]}x{size[1]}, tested at {view[0]}x{view[1]}, "
                f"do not fit into {free / 2**30:.1f} GiB of free memory, in tiles either; "
                "make them smaller or test fewer at a time or smaller scales"
            )
        tall = tile[0] > tile[1]
        tile = (-(-tile[0] // 2), tile[1]) if tall else (tile[0], -(-tile[1] // 2))
    return None if tile == view else tile
