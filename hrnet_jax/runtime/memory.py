"""Free memory, and freed memory that a process keeps for itself."""

import ctypes
import importlib.util
from pathlib import Path
from typing import Any

import jax

from hrnet_jax.runtime import distributed

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def _of_glibc(name: str) -> Any | None:
    """A function of this process's C library, or None if it has none of this name."""
    try:
        return getattr(ctypes.CDLL("libc.so.6"), name)
    except (OSError, AttributeError):
        return None


def keep_freed_pages(*, single_arena: bool | None = None) -> bool:
    """Lets this process keep the memory that it frees, where its C library is glibc.

    Large arrays are allocated and freed all the time: images in the input pipeline, and the
    temporaries that XLA CPU allocates in each call, 2 GB for a training step of w18_small_v1 with 8
    images of 360x480. By default glibc maps them from the kernel and returns them each time.
    Clearing and mapping the pages takes a fifth of that step, and a fifth of decoding a PNG. With
    this setting the process never becomes smaller, and may hold up to twice what it needs, since
    free memory is fragmented.

    Call it before JAX starts: XLA's threads choose their arenas when they start.

    Args:
      single_arena: one arena for all threads. XLA CPU's arrays are too large for the arenas of
        single threads, which would map them from the kernel in spite of the setting. The input
        pipeline is faster with one arena per thread. None: True if JAX will compute on CPU.

    Returns:
      Whether this is set; False with other C libraries.
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
    """Bytes that this process has freed and kept, see `keep_freed_pages`; 0 if not known."""
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
    # All CPU devices of a process use the same memory.
    return free // jax.local_device_count("cpu")
