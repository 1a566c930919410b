"""What a checkpoint costs: how long saving blocks a training step; checksums and reopening.

python benchmarks/bench_saves.py [--variant=w18]
"""

import argparse
import pathlib
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath

from hrnet_jax.checkpoints import manifest, vectors
from hrnet_jax.checkpoints.store import CheckpointStore
from hrnet_jax.models import create_model
from hrnet_jax.runtime import sharding
from hrnet_jax.train import losses, optimizers
from hrnet_jax.train.step import create_state, make_train_step

SAVES = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant", default="w18")
    arguments = parser.parse_args()
    sharding.use_compilation_cache()
    model = create_model(arguments.variant, 19)
    schedule = optax.constant_schedule(0.01)
    optimizer = optimizers.make_optimizer(schedule)
    state = jax.jit(lambda: create_state(model, optimizer, seed=0, ema=True))()
    step = jax.jit(
        make_train_step(model, optimizer, schedule, losses.cross_entropy, seed=0, ema_decay=0.9),
        compiler_options=sharding.compiler_options(),
    )
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (2, 256, 512, 3)).astype(np.uint8),
        "label": rng.integers(0, 19, (2, 256, 512)).astype(np.uint8),
    }
    step = step.lower(state, batch).compile()
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    print(
        f"{arguments.variant} with averages: {len(jax.tree.leaves(state))} arrays, {size:,} bytes"
    )
    metadata = {key: {} for key in manifest.METADATA_KEYS}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(folder)
        manifest_cpu, reopened = [], []

        def timed() -> None:
            start = time.thread_time()
            store._complete()
            manifest_cpu.append(time.thread_time() - start)

        store._checkpointer._post_finalization_callback = timed
        for number in range(1, SAVES + 1):
            start = time.perf_counter()
            jax.block_until_ready(step(state, batch))
            step_seconds = time.perf_counter() - start
            store.wait()
            numbered = state.replace(step=jnp.asarray(number, jnp.int32))
            start, cpu = time.perf_counter(), time.process_time()
            thread = time.thread_time()
            store.save(numbered, metadata)
            blocked = time.perf_counter() - start
            thread = time.thread_time() - thread
            store._checkpointer.wait_until_finished()
            whole, cpu = time.perf_counter() - start, time.process_time() - cpu
            rows.append((step_seconds, blocked, thread, whole, cpu, manifest_cpu[-1]))
            start = time.perf_counter()
            for name in ("variables", "training", "ema"):
                with vectors.opened_part(epath.Path(folder, manifest.FOLDER, str(number)), name):
                    pass
            reopened.append(time.perf_counter() - start)
        store.close()
    # The first save also describes the arrays and imports.
    step_seconds, blocked, thread, whole, cpu, checksum = np.median(rows[1:], axis=0)
    print(f"a training step of 2 images of 256x512: {step_seconds:.2f} s")
    print(
        f"saving blocks for {blocked:.3f} s ({thread:.3f} s of processor time): "
        f"{blocked / step_seconds:.1%} of a step"
    )
    print(
        f"a save takes {whole:.2f} s in all, {cpu:.2f} s of processor time; reopening, manifest "
        f"and checksums {checksum:.3f} s: {checksum / cpu:.1%}"
    )
    again = np.median(reopened[1:])
    part = again / step_seconds
    print(f"opening the parts again, beside the training: {again:.3f} s, {part:.1%} of a step")


if __name__ == "__main__":
    main()
