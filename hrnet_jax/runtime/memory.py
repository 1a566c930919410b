"""Whether a view of an image fits into memory, tiles of which size do, and memory that is kept."""

import ctypes
import importlib.util
from pathlib import Path
from typing import Any

import jax

from hrnet_jax.runtime import distributed

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


# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def _of_glibc(name: str) -> Any | None:
    """A function of this process's C library, or None where it has no such one."""
    try:
        return getattr(ctypes.CDLL("libc.so.6"), name)
    except (OSError, AttributeError):
        return None


def keep_freed_pages(*, single_arena: bool | None = None) -> bool:
    """Lets this process keep the memory that it frees, where its C library is glibc.

    Large arrays come and go: those of images in the input pipeline, and the temporaries that XLA
    CPU allocates anew in each call, 2 GB for a training step of w18_small_v1 with 8 images of
    360x480. glibc would map them from the kernel and hand them back each time, and clearing and
    mapping the pages takes a fifth of that step, and of decoding a PNG. The process then stays as
    large as it has been, up to twice its need, since free memory comes in pieces.

    Call it before JAX starts: XLA's threads take their arenas when they do, and keep them.

    Args:
      single_arena: all threads share one. What XLA CPU allocates is too large for the arenas of
        single threads, which then map it from the kernel after all; the input pipeline is faster
        with those. None: if JAX will compute on CPU.

    Returns:
      Whether it will; False with other C libraries.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is None:
        return False
    settings = [(_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1)]
    if _will_compute_on_cpu() if single_arena is None else single_arena:
        settings.append((_M_ARENA_MAX, 1))
    return all([mallopt(name, value) for name, value in settings])


def _will_compute_on_cpu() -> bool:
    """By what is installed: asking JAX for its devices would start its threads."""
    platforms = jax.config.jax_platforms
    if platforms:
        return platforms.split(",")[0] == "cpu"
    return not distributed.on_tpu() and importlib.util.find_spec("jax_plugins") is None


class _MallocInfo(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd",
            "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


def kept_bytes() -> int:
    """What this process has freed and kept, see `keep_freed_pages`; 0 where nobody counts it."""
    mallinfo = _of_glibc("mallinfo2")  # since 2.33
    if mallinfo is None:
        return 0
    mallinfo.restype = _MallocInfo
    return mallinfo().fordblks


def free_bytes(device: jax.Device) -> int | None:
    """Free memory of a device, or None where it cannot be known."""
    statistics = device.memory_stats() or {}
    if "bytes_limit" in statistics:
        return statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)
    meminfo = Path("/proc/meminfo")
    if device.platform != "cpu" or not meminfo.exists():
        return None
    lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024 + kept_bytes()
    # The devices of a process, if it has several, share it.
    return free // jax.local_device_count("cpu")


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
