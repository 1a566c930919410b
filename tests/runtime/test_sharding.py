"""Meshes, placement and the refusal of sizes that do not fit."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from hrnet_jax.runtime import sharding


def test_meshes():
    assert dict(sharding.make_mesh().shape) == {"data": 8, "space": 1}
    assert dict(sharding.make_mesh(space=2).shape) == {"data": 4, "space": 2}
    assert sharding.make_mesh(data=2).size == 2


@pytest.mark.parametrize(
    ("data", "space", "message"),
    [
        (-1, 3, "does not divide the 8 devices"),
        (8, 2, "needs 16 devices"),
        (0, 1, "mesh.data must be"),
        (-1, 0, "mesh.space must be"),
    ],
)
def test_bad_meshes(data, space, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(data, space)


def test_place_batch_splits_images_by_row_and_height():
    mesh = sharding.make_mesh(data=4, space=2)
    image = np.arange(4 * 6 * 2 * 3, dtype=np.uint8).reshape(4, 6, 2, 3)
    placed = sharding.place_batch({"image": image, "index": np.arange(4)}, mesh)
    np.testing.assert_array_equal(placed["image"], image)
    assert placed["image"].sharding.spec == PartitionSpec("data", "space")
    assert {s.data.shape for s in placed["image"].addressable_shards} == {(1, 3, 2, 3)}
    assert {s.data.shape for s in placed["index"].addressable_shards} == {(1,)}


def test_compiler_options_are_per_platform_and_accepted():
    assert sharding.compiler_options("gpu") == {}
    assert all(name.startswith("xla_tpu_") for name in sharding.compiler_options("tpu"))
    options = sharding.compiler_options()
    assert options["xla_disable_hlo_passes"] == "fusion"
    jitted = jax.jit(lambda x: (x + 1) * 2 - x, compiler_options=options)
    np.testing.assert_array_equal(jitted(np.arange(4.0)), np.arange(4.0) + 2)


def test_compilation_cache_default_and_choice(tmp_path, monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    try:
        assert sharding.use_compilation_cache() == before  # the environment's
        assert sharding.use_compilation_cache(str(tmp_path)) == str(tmp_path)
        assert jax.config.jax_compilation_cache_dir == str(tmp_path)
        jax.config.update("jax_compilation_cache_dir", None)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
        assert sharding.use_compilation_cache() == str(tmp_path / "user" / "hrnet_jax" / "xla")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def _mesh_of(processes, data, space):
    """Sixteen devices that never were, each process with as many in a row."""

    class Device:
        def __init__(self, number):
            self.process_index = number // (16 // processes)

    class Mesh:
        devices = np.array([Device(n) for n in range(16)]).reshape(data, space)
        shape = {"data": data, "space": space}  # noqa: RUF012

    return Mesh


@pytest.mark.parametrize(
    ("processes", "data", "space", "expected"),
    [
        (1, 16, 1, [(0, 1)]),
        (4, 8, 2, [(0, 4), (1, 4), (2, 4), (3, 4)]),
        (4, 2, 8, [(0, 2), (0, 2), (1, 2), (1, 2)]),  # two processes share an image
        (2, 1, 16, [(0, 1), (0, 1)]),
    ],
)
def test_batch_shard(processes, data, space, expected):
    mesh = _mesh_of(processes, data, space)
    assert [sharding.batch_shard(mesh, p) for p in range(processes)] == expected


def test_each_process_has_one_stretch_of_the_batch():
    """Whatever the order in which a slice lists its chips."""

    @dataclasses.dataclass(frozen=True)
    class Chip:
        id: int
        process_index: int
        platform: str = "tpu"
        device_kind: str = "TPU v5 lite"

    chips = [Chip(n, (n // 2) % 4) for n in range(16)]  # pairs of four processes in turn
    mesh = sharding.make_mesh(8, 2, chips)
    assert [sharding.batch_shard(mesh, p) for p in range(4)] == [(p, 4) for p in range(4)]
    with pytest.raises(ValueError, match="in one process only; there are 4"):
        sharding.make_mesh(4, 2, chips)


def test_processes_that_divide_no_batch():
    mesh = _mesh_of(4, 16, 1)
    mesh.devices, mesh.shape = mesh.devices[:15].reshape(5, 3), {"data": 5, "space": 3}
    with pytest.raises(ValueError, match=r"do not divide mesh\.data=5"):
        sharding.batch_shard(mesh)
