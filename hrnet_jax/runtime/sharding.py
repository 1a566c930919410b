"""Where arrays live and how programs are compiled: one mesh, ('data', 'space'), for every program.

Batches are split over 'data' and the height of every image over 'space'; parameters are
replicated. The step functions are plain `jax.jit` over global arrays. So sums and BatchNorm
statistics run over the global batch, and the compiler inserts the collectives.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from hrnet_jax.runtime import storage

# Names of the mesh's axes.
AXES = ("data", "space")


def mesh_shape(data: int, space: int, devices: int) -> tuple[int, int]:
    """Sizes of the axes for a number of devices; `data=-1` uses all devices that `space` leaves.

    Raises:
      ValueError: when the sizes do not fit the devices.
    """
    if space < 1:
        raise ValueError(f"mesh.space must be at least 1, got {space}")
    if data == -1:
        if devices % space:
            raise ValueError(f"mesh.space={space} does not divide the {devices} devices")
        data = devices // space
    if data < 1:
        raise ValueError(f"mesh.data must be -1 (all devices) or at least 1, got {data}")
    if data * space > devices:
        raise ValueError(
            f"mesh.data={data} x mesh.space={space} needs {data * space} devices,"
            f" there are {devices}"
        )
    return data, space


def make_mesh(data: int = -1, space: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Builds the ('data', 'space') mesh; `data=-1` uses all devices that `space` leaves.

    The devices are ordered by process, so that each process has one contiguous slice of the batch.
    (`jax.make_mesh` follows the torus of a TPU slice instead: on 16x16 chips the devices of a
    process would then hold rows of the batch that are far apart.)

    Args:
      data: number of devices that the batch is split over. A mesh smaller than the number of
        devices is possible in one process and uses the first devices.
      space: number of devices that the height of each image is split over.
      devices: all devices by default.

    Raises:
      ValueError: when the sizes do not fit the devices.
    """
    devices = sorted(jax.devices() if devices is None else devices, key=lambda d: d.process_index)
    data, space = mesh_shape(data, space, len(devices))
    processes = len({device.process_index for device in devices})
    if data * space < len(devices) and processes > 1:
        raise ValueError(
            f"mesh.data={data} x mesh.space={space} leaves some of the {len(devices)} devices out,"
            f" which is possible in one process only; there are {processes}"
        )
    # Auto leaves the choice of shardings to the compiler.
    return Mesh(
        np.array(devices[: data * space]).reshape(data, space),
        AXES,
        axis_types=(AxisType.Auto, AxisType.Auto),
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of images [N, H, W, C] and labels [N, H, W]: N over 'data', H over 'space'."""
    return NamedSharding(mesh, PartitionSpec("data", "space"))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of parameters, statistics, optimizer state and scalars: a copy on each device."""
    return NamedSharding(mesh, PartitionSpec())


def place_replicated(tree: Any, mesh: Mesh) -> Any:
    """Copies every leaf to every device of the mesh; all processes must pass the same leaves."""
    where = replicated(mesh)

    def place_leaf(leaf: Any) -> jax.Array:
        if jax.process_count() == 1 or not getattr(leaf, "is_fully_addressable", True):
            return jax.device_put(leaf, where)
        # `device_put` of an array on one process's device, as read from a checkpoint, would move
        # it over the network, which most backends do not support.
        return place_whole(np.asarray(leaf), where)

    return jax.tree.map(place_leaf, tree)


def place_whole(array: np.ndarray, where: jax.sharding.Sharding) -> jax.Array:
    """A global array from the whole array, which every process passes."""
    return jax.make_array_from_callback(array.shape, where, lambda index: array[index])


def batch_shard(mesh: Mesh | None, process: int | None = None) -> tuple[int, int]:
    """The shard (index, count) of each batch that a process loads: slice `index` of `count` equal,
    contiguous slices.

    Processes whose devices hold different rows of the same images load the same slice.

    Args:
      mesh: from `make_mesh`; None means one device, which gets the whole batch.
      process: its index; None means this process.

    Raises:
      ValueError: if the processes' devices do not divide the 'data' axis evenly.
    """
    if mesh is None:
        return 0, 1
    process = jax.process_index() if process is None else process
    rows: dict[int, set[int]] = {}
    for (row, _), device in np.ndenumerate(mesh.devices):
        rows.setdefault(device.process_index, set()).add(row)
    slices = sorted({tuple(sorted(r)) for r in rows.values()})
    size = len(slices[0])
    if [row for slice_ in slices for row in slice_] != list(range(len(slices) * size)) or any(
        len(slice_) != size for slice_ in slices
    ):
        raise ValueError(
            f"the {len(rows)} processes' devices do not divide mesh.data={mesh.shape['data']} and"
            f" mesh.space={mesh.shape['space']} evenly; choose a mesh.space that divides, or is"
            " divided by, the number of devices of a process"
        )
    return slices.index(tuple(sorted(rows[process]))), len(slices)


def place_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes global arrays from the processes' slices of a batch, see `batch_shard`.

    Arrays with a height (three dimensions or more) are split over both axes of the mesh, per-image
    vectors over 'data' only.
    """
    return {
        name: place(array, mesh, _sharding_of(array.ndim, mesh)) for name, array in batch.items()
    }


def place(array: np.ndarray, mesh: Mesh, where: NamedSharding) -> jax.Array:
    """A global array; `array` is this process's slice of its first dimension."""
    index, count = batch_shard(mesh)
    first = index * len(array)

    def part(at: tuple[slice, ...]) -> np.ndarray:
        start, stop, _ = at[0].indices(len(array) * count)
        return array[(slice(start - first, stop - first), *at[1:])]

    return jax.make_array_from_callback((len(array) * count, *array.shape[1:]), where, part)


def abstract_batch(
    arrays: Mapping[str, tuple[tuple[int, ...], Any]], mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """(global shape, dtype) -> abstract arrays as `place_batch` returns, for compiling ahead of
    time."""
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=_sharding_of(len(shape), mesh))
        for name, (shape, dtype) in arrays.items()
    }


def _sharding_of(ndim: int, mesh: Mesh) -> NamedSharding:
    return batch_sharding(mesh) if ndim >= 3 else NamedSharding(mesh, PartitionSpec("data"))


# Kinds of fusions that XLA CPU leaves to its kernel library, see `compiler_options`.
_CPU_LIBRARY_FUSIONS = ("INDIVIDUAL_CONVOLUTION", "ELTWISE", "REDUCE")
_TPU_OPTIONS = {
    "xla_tpu_run_space_to_batch": False,
    "xla_tpu_run_space_to_batch_on_new_platforms": False,
}


def compiler_options(platform: str | None = None) -> dict[str, str | bool]:
    """Options for the `jax.jit` of training steps; the only place where they are chosen.

    CPU: the fusion pass is switched off. A convolution's kernel gradient needs its input as
    [C, H, W, N]. XLA CPU fuses that transpose with the whole chain of BatchNorm, ReLU and residual
    additions before it, and so computes the chain again for every element, in strided order: the
    training step of W18 took 2.8 times as long (5.0 s instead of 1.78 s).
    `lax.optimization_barrier` does not help, because XLA removes it before fusion. Element-wise
    chains and reductions go to XLA's kernel library instead. Without that, every broadcast is
    written to memory, which costs a fifth of the step's time and doubles the compilation time.

    TPU: the rewriting of convolutions from space to batch is switched off. With few images per chip
    it puts only the channels into the lanes, padded to 128, with a copy before and after each
    convolution: a residual block of 48 channels, forward and backward, 4 images of 128x256,
    took 7.3 M cycles and 228 MB instead of 3.8 M and 68 MB (v5e, the compiler's estimates).

    GPU: the defaults.
    """
    platform = platform or jax.default_backend()
    if platform == "tpu":
        return dict(_TPU_OPTIONS)
    if platform != "cpu":
        return {}
    return {
        "xla_disable_hlo_passes": "fusion",
        "xla_cpu_experimental_ynn_fusion_type": ",".join(
            f"LIBRARY_FUSION_TYPE_{kind}" for kind in _CPU_LIBRARY_FUSIONS
        ),
    }


def use_compilation_cache(directory: str = "") -> str:
    """Switches on the persistent compilation cache and returns its folder.

    The first of these that is set: `directory`, the environment's JAX_COMPILATION_CACHE_DIR,
    xla in `storage.user_cache`.
    """
    own = str(storage.user_cache() / "xla")
    directory = directory or jax.config.jax_compilation_cache_dir or own
    jax.config.update("jax_compilation_cache_dir", directory)
    return directory
