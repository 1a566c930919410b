"""Whether a scaled image fits into memory, and the size of tiles that do."""

from hrnet_jax.models import HRNetModel

# Bytes of intermediate results per image pixel and unit of the variant's width, in float32. XLA's
# memory analysis reports 16.6 to 17.8 for w18_small_v1, w18 and w48 on CPU.
_PER_WIDTH = 20
# Bytes per image pixel that OCR adds: 512 channels and all streams concatenated, at 1/4 resolution.
_OCR = 1000
# Full-size arrays of class values in memory at the same time while views are averaged.
_VALUES = 4
# Fraction of the free memory to plan with: other programs use it too, and it is fragmented.
_USABLE = 0.8
_MIN_TILE = 256


def network_bytes(model: HRNetModel, num_images: int, size: tuple[int, int]) -> int:
    """Estimated bytes the network needs for images of this (height, width), without weights."""
    per_pixel = _PER_WIDTH * model.variant.width + (_OCR if model.head == "ocr" else 0)
    return num_images * size[0] * size[1] * per_pixel


def tile_that_fits(
    model: HRNetModel, num_images: int, size: tuple[int, int], view: tuple[int, int], free: int
) -> tuple[int, int] | None:
    """The largest view, halved until the network fits, as (height, width) of tiles.

    Args:
        model: of `create_model`.
        num_images: per device.
        size: (height, width) of the image.
        view: (height, width) of its largest scaled version.
        free: free bytes on the device.

    Returns:
        (height, width) of the tiles, or None if the whole view fits.

    Raises:
        ValueError: if tiles of 256 pixels or the full-size values of all classes do not fit.
    """
    values = 4 * model.num_classes * num_images * _VALUES
    room = _USABLE * free - values * max(size[0] * size[1], view[0] * view[1])
    tile = view
    while network_bytes(model, num_images, tile) > room:
        if min(tile) <= _MIN_TILE:
            raise ValueError(
                f"{num_images} image(s) of {size[0]}x{size[1]}, predicted at {view[0]}x{view[1]}, "
                f"do not fit into {free / 2**30:.1f} GiB of free memory, even in tiles; "
                "use smaller images, a smaller batch or smaller scales"
            )
        tall = tile[0] > tile[1]
        tile = (-(-tile[0] // 2), tile[1]) if tall else (tile[0], -(-tile[1] // 2))
    return None if tile == view else tile
