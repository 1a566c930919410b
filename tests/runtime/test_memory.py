import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from hrnet_jax.runtime import memory


def test_free_memory_is_known_on_linux():
    free = memory.free_bytes(jax.devices()[0])
    assert free is None or 2**20 < free < 2**50


def test_keeps_freed_pages():
    """In a process of its own, since there is no way back: memory that is freed and allocated
    again causes page faults only without it, and is known to be free with it."""
    script = """
import ctypes, resource, sys
from hrnet_jax.runtime import memory
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


@pytest.mark.parametrize(
    ("name", "instead_of", "arguments"),
    [
        ("train", "loop.train", ["--config=configs/fake_data.py", "--workdir=nowhere"]),
        ("evaluate", "load_checkpoint", ["--checkpoint=nowhere", "--output=nowhere"]),
    ],
)
def test_threads_of_xla_share_one_arena_in(name, instead_of, arguments):
    """Each script as it starts, with a small program in the place of its work; then the number of
    arenas by glibc's own account. What is larger than a thread's own arena takes, XLA's temporaries
    above all, is mapped anew each time where there are several."""
    script = """
import ctypes, importlib, sys
name, instead_of = sys.argv[1:3]
sys.argv = [name + ".py", *sys.argv[3:]]
import jax, jax.numpy as jnp
def measure(*_, **__):
    jax.jit(lambda x: x @ x.T)(jnp.ones((1000, 64))).block_until_ready()
    libc = ctypes.CDLL("libc.so.6")
    libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
    libc.fflush(None)
    sys.exit(0)
script = importlib.import_module(f"hrnet_jax.tools.{name}")
*modules, function = instead_of.split(".")
setattr(getattr(script, *modules) if modules else script, function, measure)
parse = {"parse": script.config_flag.parse} if name == "train" else {}
script.script.run(script.run, **parse)
"""
    if memory._of_glibc("malloc_info") is None:
        pytest.skip("the C library is not glibc")
    command = [sys.executable, "-c", script, name, instead_of, *arguments]
    environment = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    environment |= {"JAX_PLATFORMS": "cpu"}
    root = Path(__file__).parents[2]
    run = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("<heap nr=") == 1, run.stdout
