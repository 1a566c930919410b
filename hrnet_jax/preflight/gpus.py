"""GPUs that programs can be compiled for without having one.

XLA's compiler for NVIDIA GPUs needs a description of the chip, which it otherwise reads from the
driver. The table holds what differs between chips.

Sources: NVIDIA's data sheets and architecture white papers (memory, bandwidth, number of streaming
multiprocessors, L2 cache, boost clock); the table "Technical Specifications per Compute Capability"
of the CUDA C++ Programming Guide (threads and shared memory per multiprocessor); exact memory sizes
as the driver reports them (`cudaMemGetInfo`; L4: nvidia-smi).
"""

import dataclasses

GB = 10**9


@dataclasses.dataclass(frozen=True)
class Gpu:
    """One kind of GPU.

    Attributes:
      name: as the driver reports it.
      memory_bytes: memory of the device, as the driver reports it.
      bandwidth: of the memory, bytes per second.
      capability: CUDA compute capability (major, minor).
      cores: streaming multiprocessors.
      clock_ghz: boost clock.
      l2_bytes: size of the L2 cache.
      per_host: the most GPUs that machines with it usually have.
    """

    name: str
    memory_bytes: int
    bandwidth: int
    capability: tuple[int, int]
    cores: int
    clock_ghz: float
    l2_bytes: int
    per_host: int = 8


GPUS = {
    "a100": Gpu("NVIDIA A100-SXM4-80GB", 85100068864, 2039 * GB, (8, 0), 108, 1.41, 41943040, 16),
    "a100-40gb": Gpu(
        "NVIDIA A100-SXM4-40GB", 42331013120, 1555 * GB, (8, 0), 108, 1.41, 41943040, 16
    ),
    "a6000": Gpu("NVIDIA RTX A6000", 51041271808, 768 * GB, (8, 6), 84, 1.8, 6291456),
    "b200": Gpu("NVIDIA B200", 191514411008, 7672 * GB, (10, 0), 148, 1.965, 132644864),
    "h100": Gpu("NVIDIA H100 80GB HBM3", 84942979072, 3352 * GB, (9, 0), 132, 1.98, 52428800),
    "h200": Gpu("NVIDIA H200", 151397597184, 4800 * GB, (9, 0), 132, 1.98, 52428800),
    "l4": Gpu("NVIDIA L4", 24152899584, 300 * GB, (8, 9), 58, 2.04, 50331648),
}
# Per compute capability: threads, float32 units and bytes of shared memory per multiprocessor. A
# block can have 1024 bytes of shared memory less.
_CORES = {
    (8, 0): (2048, 64, 167936),
    (8, 6): (1536, 128, 102400),
    (8, 9): (1536, 128, 102400),
    (9, 0): (2048, 128, 233472),
    (10, 0): (2048, 128, 233472),
}


def target_config(gpu: Gpu) -> str:
    """The description of a chip as XLA's compiler reads it: a text of GpuTargetConfigProto."""
    threads, units, shared = _CORES[gpu.capability]
    major, minor = gpu.capability
    # Hopper and later: instructions of this generation only, such as wgmma. The driver's default.
    features = "ACCELERATED_FEATURES" if major >= 9 else "NONE"
    return f"""\
gpu_device_info {{
  name: "{gpu.name}"
  device_vendor: "NVIDIA Corporation"
  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {features} }}
  device_memory_size: {gpu.memory_bytes}
  memory_bandwidth: {gpu.bandwidth}
  core_count: {gpu.cores}
  clock_rate_ghz: {gpu.clock_ghz}
  l2_cache_size: {gpu.l2_bytes}
  fpus_per_core: {units}
  threads_per_core_limit: {threads}
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_core: {shared}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {shared - 1024}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
runtime_version {{ major: 12 minor: 9 patch: 0 }}
device_description_str: "{gpu.name}"
"""
