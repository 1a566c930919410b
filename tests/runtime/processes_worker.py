"""One of several processes of `test_processes.py`; its arguments are those of `main`."""

# ruff: noqa: E402

import os
import pickle
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
_TESTS = Path(__file__).parents[1]
sys.path += map(str, (_TESTS, _TESTS / "checkpoints", _TESTS / "evaluation"))

import jax
import numpy as np
import states
import test_partitioning
import test_segmentation

from hrnet_jax.checkpoints.store import CheckpointStore
from hrnet_jax.runtime import distributed, sharding


def main(coordinator: str, num_processes: str, process_id: str, folder: str, bucket: str) -> None:
    distributed.initialize(coordinator, int(num_processes), int(process_id))
    found = {"devices": jax.device_count()}
    distributed.check_same("configurations", {"seed": 1})
    try:
        distributed.check_same("configurations", {"seed": 1, "batch_size": jax.process_index()})
    except ValueError as error:
        found["difference"] = str(error)

    # Of different lengths.
    found["gathered"] = distributed.gather([b"a"] * (1 + 2 * jax.process_index()))

    # This process loads its rows only; where the height is split over processes, all of them.
    whole = test_partitioning._batch()
    for data, space in ((4, 2), (1, 8)):
        mesh = sharding.make_mesh(data, space)
        index, count = sharding.batch_shard(mesh)
        rows = 8 // count
        mine = {k: v[index * rows : (index + 1) * rows] for k, v in whole.items()}
        placed = sharding.place_batch(mine, mesh)
        found[f"shared_{data}x{space}"] = (index, count)
        for shard in placed["image"].addressable_shards:
            np.testing.assert_array_equal(shard.data, whole["image"][shard.index])
        if (data, space) == (4, 2):
            _, state, measured = test_partitioning.train_once("segmentation", mesh, mine)
            found["state"], found["loss"] = state, float(measured["loss"])

    # As read from a checkpoint: on one device of each process.
    local = jax.device_put(np.arange(3.0), jax.local_devices()[0])
    copies = sharding.place_replicated({"a": local, "b": 7}, mesh)
    found["copies"] = {name: np.asarray(copy) for name, copy in copies.items()}
    assert all(copy.sharding.mesh == mesh for copy in copies.values())

    for name, place in (("folder", folder), ("store", bucket)):
        states.write_steps(f"{place}/run", {1: 0.5, 2: 0.9, 3: None, 4: 0.1})
        store = CheckpointStore(f"{place}/run")
        restored = store.restore(states.make_state(0))
        found[name] = store.steps(), jax.tree.map(np.asarray, restored)
        store.close()

    source = pickle.loads(Path(folder, "source.pickle").read_bytes())
    seen = []
    result = test_segmentation.run(
        source,
        mesh=sharding.make_mesh(),
        batch_size=3,
        on_batch=lambda batch, predictions: seen.extend(
            (int(i), p) for i, p in zip(batch["index"], predictions, strict=True) if i >= 0
        ),
    )
    found |= {"confusion": result.confusion, "counts": result.image_counts, "seen": seen}
    Path(folder, f"found{process_id}.pickle").write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
