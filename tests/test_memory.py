import os
import subprocess
import sys

import jax
import pytest

from hrnet_jax import memory
from hrnet_jax.models import create_model


@pytest.fixture(scope="module")
def model():
    return create_model("w48", 19)


def test_free_memory_is_known_on_linux():
    free = memory.free_bytes(jax.devices()[0])
    assert free is None or 2**20 < free < 2**50


def test_estimate_is_above_what_xla_says(model):
    # 99.6 MB for one image of 256x512, by the compiled program's memory analysis.
    assert 1e8 < memory.network_bytes(model, 1, (256, 512)) < 1.5e8
    assert memory.network_bytes(create_model("w48", 19, "ocr"), 2, (256, 512)) > 3e8


def test_tiles_are_halved_until_they_fit(model):
    size, view = (1024, 2048), (2048, 4096)
    whole = memory.network_bytes(model, 1, view)  # 8.05 GB, and 2.55 GB of values
    assert memory.tile_that_fits(model, 1, size, view, 14 * 10**9) is None
    assert memory.tile_that_fits(model, 1, size, view, 12 * 10**9) == (2048, 2048)
    assert memory.tile_that_fits(model, 1, size, view, 5 * 10**9) == (1024, 1024)
    assert whole == 2048 * 4096 * 960
    with pytest.raises(ValueError, match=r"tested at 2048x4096, do not fit into 2\.8 GiB"):
        memory.tile_that_fits(model, 1, size, view, 3 * 10**9)


def test_keeps_freed_pages():
    """In a process of its own, since there is no way back: memory that is freed and allocated
    again causes page faults only without it, and is known to be free with it."""
    script = """
import ctypes, resource, sys
from hrnet_jax import memory
if sys.argv[1] == "keep" and not memory.keep_freed_pages(single_arena=True):
    sys.exit("no glibc")
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
def use():
    block = libc.malloc(ctypes.c_size_t(64 << 20))
    ctypes.memset(block, 1, 64 << 20)
    libc.free(block)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, memory.kept_bytes())
"""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    faults, kept = {}, {}
    for how in ("keep", "hand back"):
        command = [sys.executable, "-c", script, how]
        run = subprocess.run(command, env=environment, capture_output=True, text=True)
        if run.stderr.strip().endswith("no glibc"):
            pytest.skip("the C library is not glibc")
        faults[how], kept[how] = map(int, run.stdout.split())
    assert faults["keep"] < 100 < 10_000 < faults["hand back"], faults
    assert kept["hand back"] + (48 << 20) < kept["keep"], kept
