"""Prediction of one large image split over simulated devices: memory of each, and equal results.

    python benchmarks/bench_space.py [--size=4096x8192] [--variant=w18] [--output=FILE.json]

Compiles the network for the whole image on one device and for its height split over 2, 4 and 8,
states the temporaries of each device, and compares the outputs of 8 with those of one: they have to
agree to 1e-4 of the largest. The compiler's default options are used, which fuse as those for
accelerators do; the temporaries are what the program allocates, not an estimate. All simulated
devices share one memory: w18_small_v1 at 4096x8192 needs 12 GB.
"""

import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from hrnet_jax.models import create_model
from hrnet_jax.runtime import sharding
from hrnet_jax.tools import script

_SIZE = flags.DEFINE_string("size", "1024x2048", "Height and width of the image.")
_VARIANT = flags.DEFINE_string("variant", "w18_small_v1", "The network.")
_OUTPUT = flags.DEFINE_string("output", "", "JSON file for the figures.")

SPACES = (1, 2, 4, 8)
TOLERANCE = 1e-4


def run() -> int:
    size = script.parse_size("size", _SIZE.value)
    if size is None or size[0] % (32 * max(SPACES)):
        raise ValueError(f"--size={_SIZE.value}: the height has to be n x 32 x {max(SPACES)}")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(SPACES))
    model = create_model(_VARIANT.value, 19)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    image = np.random.default_rng(0).standard_normal((1, *size, 3), np.float32)

    figures, whole, expected = [], None, None
    for space in SPACES:
        mesh = sharding.make_mesh(1, space)
        images = jax.device_put(image, sharding.batch_sharding(mesh))
        placed = sharding.place_replicated(variables, mesh)
        start = time.perf_counter()
        compiled = jax.jit(model.apply).lower(placed, images).compile()
        seconds = time.perf_counter() - start
        megabytes = compiled.memory_analysis().temp_size_in_bytes / 2**20
        whole = whole or megabytes
        line = f"{megabytes:.0f} MB of temporaries per device, compiled in {seconds:.0f} s"
        if space in (1, max(SPACES)):
            logits = np.asarray(compiled(placed, images)["logits"])
            expected = logits if expected is None else expected
            difference = float(np.abs(logits - expected).max() / np.abs(expected).max())
            if not difference < TOLERANCE:
                raise RuntimeError(f"space={space}: results differ by {difference:.1e}")
            line += f", results differ by {difference:.0e}" if space > 1 else ""
        print(f"{_VARIANT.value} {_SIZE.value}, space={space}: {line}", flush=True)
        if space > 1:
            title = f"{_VARIANT.value} {_SIZE.value}, space={space}: MB per device"
            figures.append(
                {
                    "benchmark": title,
                    "ours": [megabytes],
                    "peer": [whole],
                    "peer_name": "the same on one device",
                    "ratio": megabytes / whole,
                    "compile_seconds": seconds,
                }
            )
        del images, placed, compiled
    if _OUTPUT.value:
        Path(_OUTPUT.value).write_text(json.dumps(figures, indent=2))
    return 0


if __name__ == "__main__":
    script.run(run)
