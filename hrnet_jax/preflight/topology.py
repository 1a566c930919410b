"""The devices to compile for: this machine's, or TPUs and GPUs that are described by a name."""

import dataclasses
import importlib.util
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from hrnet_jax.preflight.gpus import GPUS, target_config
from hrnet_jax.runtime import platforms

GIB = 2**30
LOCAL = "local"
# Memory of a TPU chip that its runtime keeps for itself.
TPU_RESERVED_BYTES = GIB // 4
# Fraction of a GPU's memory that JAX uses, unless XLA_PYTHON_CLIENT_MEM_FRACTION is set.
GPU_MEMORY_FRACTION = 0.75


@dataclasses.dataclass(frozen=True)
class Generation:
    """A kind of TPU chip.

    Attributes:
      hbm_bytes: memory of a chip.
      dimensions: of its topologies.
      example: a topology that exists.
      chip_config: the compiler's name for how JAX uses the cores of a chip. The two cores of a v4
        chip are one device on TPU machines; without "megacore" the compiler takes them for two
        devices with half the memory each. The cores of v5p are one device in both cases; the other
        chips have one core.
    """

    hbm_bytes: int
    dimensions: int
    example: str
    chip_config: str = "default"


GENERATIONS = {
    "v4": Generation(32 * GIB, 3, "v4:2x2x4", "megacore"),
    "v5e": Generation(16 * GIB, 2, "v5e:16x16"),
    "v5p": Generation(95 * GIB, 3, "v5p:2x2x4"),
    "v6e": Generation(32 * GIB, 2, "v6e:4x4"),
}
_TPUS = ", ".join(generation.example for generation in GENERATIONS.values())
KNOWN = (
    f"{_TPUS}; {', '.join(GPUS)} with the number of GPUs or hosts x GPUs, as in h100:8 and"
    f" h100:2x8; {LOCAL}"
)


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
      name: as given.
      platform: "tpu", "gpu", or that of this machine's devices.
      devices: described, not necessarily present.
      memory_bytes: what a program may use on one of them; None where that is unknown.
    """

    name: str
    platform: str
    devices: tuple[Any, ...]
    memory_bytes: int | None


def open_topology(name: str) -> Topology:
    """The devices for a name such as "v5e:16x16", "h100:8" or "local" (this machine's).

    Raises:
      ValueError: for a name that is malformed or unknown, or where the compiler is not installed.
        The message names the choices or the command that installs it.
    """
    if name == LOCAL:
        platforms.check()
        devices = tuple(jax.devices())
        limit = (devices[0].memory_stats() or {}).get("bytes_limit")
        return Topology(name, devices[0].platform, devices, limit)
    kind, _, shape = name.partition(":")
    if kind in GENERATIONS:
        return _open_tpu(name, GENERATIONS[kind], shape)
    if kind in GPUS:
        return _open_gpu(name, kind, shape)
    raise ValueError(f"unknown topology {name!r}; known: {KNOWN}")


def _open_tpu(name: str, generation: Generation, shape: str) -> Topology:
    if not re.fullmatch("x".join([r"[1-9]\d*"] * generation.dimensions), shape):
        raise ValueError(
            f"topology {name!r}: this TPU has {generation.dimensions} dimensions of chips, as in"
            f" {generation.example!r}"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("the compiler for TPUs, libtpu, is not installed: pip install libtpu")
    # Without these libtpu looks for a TPU in this machine, reports an error that there is none, and
    # refuses to be loaded twice. They do not change what is compiled.
    for variable, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-16"),
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
    ):
        os.environ.setdefault(variable, value)
    try:
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=name, chip_config_name=generation.chip_config
        )
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"the compiler does not know topology {name!r} ({reason}); known: {KNOWN}"
        ) from None
    limit = generation.hbm_bytes - TPU_RESERVED_BYTES
    return Topology(name, "tpu", tuple(described.devices), limit)


def _open_gpu(name: str, kind: str, shape: str) -> Topology:
    if not re.fullmatch(r"([1-9]\d*x)?[1-9]\d*", shape or "1"):
        raise ValueError(
            f"topology {name!r}: a GPU takes the number of GPUs or hosts x GPUs, as in {kind}:8 or"
            f" {kind}:2x8"
        )
    hosts, _, per_host = (shape or "1").rpartition("x")
    gpu = GPUS[kind]
    if int(per_host) > gpu.per_host:
        raise ValueError(
            f"topology {name!r}: machines with {kind} have at most {gpu.per_host} GPUs; more need"
            f" several hosts, as in {kind}:2x{gpu.per_host}"
        )
    install = "pip install 'jax[cuda12]' (or 'jax[cuda13]' with JAX 0.11 and later)"
    if not gpu_compiler():
        raise ValueError(
            f"the compiler for NVIDIA GPUs, JAX's CUDA plugin, is not installed: {install}"
        )
    # The plugin otherwise looks for a driver when JAX starts, and is dropped if there is none.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    try:
        described = topologies.get_topology_desc(
            name,
            "cuda",
            target_config=target_config(gpu),
            topology=f"1x{hosts or 1}x{per_host}",
        )
    except (jax.errors.JaxRuntimeError, NotImplementedError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"JAX's CUDA plugin cannot compile for {name!r} ({reason}); reinstall it with its"
            f" libraries: {install}"
        ) from None
    fraction = float(os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", GPU_MEMORY_FRACTION))
    return Topology(name, "gpu", tuple(described.devices), int(gpu.memory_bytes * fraction))


def gpu_compiler() -> str:
    """The module of JAX's CUDA plugin, which has the compiler; "" where none is installed."""
    if importlib.util.find_spec("jax_plugins") is None:
        return ""
    modules = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")
    return next((m for m in modules if importlib.util.find_spec(m) is not None), "")
