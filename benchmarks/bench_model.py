"""The network against the official architecture in PyTorch: channels_last, eager, float32.

    python benchmarks/bench_model.py [--only=NAME,...] [--output=FILE.json] [--peer_python=PYTHON]

Both sides get the same weights and inputs, must agree in their result, and then run in turns in two
processes, so that a noisy machine disturbs both alike. The ratio is the median over the turns of
ours / peer; below 1 we are faster. Compilation is not part of it and is stated on its own.
"""

import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
from absl import app, flags, logging

import hrnet_jax
from hrnet_jax.export import onnx_graph
from hrnet_jax.runtime import memory, sharding
from hrnet_jax.train import losses, optimizers

_ONLY = flags.DEFINE_list("only", [], "Names of the works to run; empty: all.")
_OUTPUT = flags.DEFINE_string("output", "", "JSON file for the figures.")
_PEER = flags.DEFINE_string("peer_python", sys.executable, "Interpreter with torch.")
_SECONDS = flags.DEFINE_float("seconds", 20, "Measuring time per work, without compilation.")

MIN_TURNS = 5


@dataclasses.dataclass(frozen=True)
class Work:
    """What is measured: `kind` as in torch_model.py; `runtime` is ours, "jax" or "onnxruntime"
    with an exported graph (inference only)."""

    variant: str
    kind: str
    batch: int
    height: int
    width: int
    runtime: str = "jax"

    @property
    def title(self) -> str:
        where = "" if self.runtime == "jax" else f" in {self.runtime}"
        return f"{self.variant} {self.kind}{where} {self.batch}x{self.height}x{self.width}"


WORKS = {
    "w18_inference": Work("w18", "inference", 1, 256, 512),
    "w48_inference": Work("w48", "inference", 1, 256, 512),
    "w18_inference_large": Work("w18", "inference", 1, 512, 1024),
    "w48_inference_large": Work("w48", "inference", 1, 512, 1024),
    "w18_onnx": Work("w18", "inference", 1, 512, 1024, "onnxruntime"),
    "w48_onnx": Work("w48", "inference", 1, 512, 1024, "onnxruntime"),
    "w18_gradient": Work("w18", "gradient", 2, 256, 512),
    "w18_small_v1_train": Work("w18_small_v1", "train", 8, 360, 480),
}


def compile_ours(work: Work, folder: Path) -> tuple[Callable[[], jax.Array], float]:
    """The compiled program on the peer's weights and inputs, and the seconds compiling took."""
    memory.keep_freed_pages(single_arena=True)  # as our scripts do on CPU
    model, variables = hrnet_jax.from_torch(folder / "weights.pth")
    with np.load(folder / "inputs.npz") as inputs:
        images, labels = jnp.asarray(inputs["images"]), jnp.asarray(inputs["labels"], jnp.int32)
    params, batch_stats = variables["params"], variables["batch_stats"]
    optimizer = optimizers.make_optimizer(lambda step: 0.01)
    opt_state = optimizer.init(params)

    def loss_of(params, batch_stats, images, labels):
        outputs, updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        loss, _ = losses.segmentation_loss(
            outputs, labels, losses.cross_entropy, align_corners=False
        )
        return loss, updated["batch_stats"]

    def inference(state, images, labels):
        params, batch_stats, _ = state
        return model.apply({"params": params, "batch_stats": batch_stats}, images)["logits"]

    def gradient(state, images, labels):
        params, batch_stats, _ = state
        return jax.value_and_grad(loss_of, has_aux=True)(params, batch_stats, images, labels)

    def train(state, images, labels):
        params, batch_stats, opt_state = state
        (loss, batch_stats), gradients = jax.value_and_grad(loss_of, has_aux=True)(
            params, batch_stats, images, labels
        )
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        params = jax.tree.map(jnp.add, params, updates)
        return loss, (params, batch_stats, opt_state)

    state = (params, batch_stats, opt_state)
    function = {"inference": inference, "gradient": gradient, "train": train}[work.kind]
    start = time.perf_counter()
    compiled = (
        jax.jit(
            function,
            donate_argnums=(0,) if work.kind == "train" else (),
            compiler_options=sharding.compiler_options("cpu"),
        )
        .lower(state, images, labels)
        .compile()
    )
    seconds = time.perf_counter() - start

    def run() -> jax.Array:
        nonlocal state
        output = jax.block_until_ready(compiled(state, images, labels))
        if work.kind == "inference":
            return output
        if work.kind == "gradient":
            return output[0][0]
        loss, state = output
        return loss

    return run, seconds


def export_ours(work: Work, threads: int, folder: Path) -> tuple[Callable[[], np.ndarray], float]:
    """As `compile_ours`, for the exported graph; without the pixels' normalization, since the peer
    gets normalized images, too."""
    model, variables = hrnet_jax.from_torch(folder / "weights.pth")
    with np.load(folder / "inputs.npz") as inputs:
        images = np.ascontiguousarray(inputs["images"].transpose(0, 3, 1, 2))
    start = time.perf_counter()
    size = work.height, work.width
    proto = onnx_graph.build(model, variables, size=size, outputs=("logits",))
    network = [n for n in proto.graph.node if not n.name.startswith("image/")]
    del proto.graph.node[:], proto.graph.input[:]
    proto.graph.node.extend(network)
    proto.graph.input.append(
        onnx.helper.make_tensor_value_info("image/normalized", onnx.TensorProto.FLOAT, images.shape)
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    seconds = time.perf_counter() - start
    return lambda: session.run(None, {"image/normalized": images})[0], seconds


@contextlib.contextmanager
def start_peer(
    work: Work, threads: int, folder: Path, python: str
) -> Iterator[tuple[Callable[[], float], str]]:
    """The peer's process: yields a function that runs it once and gives the seconds; its version.

    Raises RuntimeError with its error if it ends early.
    """
    numbers = map(str, (work.batch, work.height, work.width, threads))
    script = str(Path(__file__).with_name("torch_model.py"))
    command = [python, script, work.variant, work.kind, *numbers, str(folder)]
    with (
        open(folder / "errors.txt", "w+") as errors,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):

        def answer() -> str:
            line = process.stdout.readline()
            if not line:
                errors.seek(0)
                raise RuntimeError(f"{' '.join(command)} failed:\n{errors.read()}")
            return line

        def run() -> float:
            process.stdin.write("\n")
            process.stdin.flush()
            return float(answer())

        try:
            yield run, answer().split()[1]
        finally:
            process.kill()


def measure(work: Work, threads: int, seconds: float, python: str) -> dict:
    """All figures of one work."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with start_peer(work, threads, folder, python) as (run_peer, peer_version):
            if work.runtime == "onnxruntime":
                run_ours, compile_seconds = export_ours(work, threads, folder)
            else:
                run_ours, compile_seconds = compile_ours(work, folder)
            expected, got = np.load(folder / "result.npy"), np.asarray(run_ours())
            difference = float(np.abs(got - expected).max() / np.abs(expected).max())
            if not difference < 1e-4:
                raise RuntimeError(f"{work.title}: results differ by {difference:.1e}")
            ours, peer = [], []
            end = time.perf_counter() + seconds
            while len(ours) < MIN_TURNS or time.perf_counter() < end:
                peer.append(run_peer())
                start = time.perf_counter()
                run_ours()
                ours.append(time.perf_counter() - start)
    return {
        "benchmark": work.title,
        "cores": threads,
        "ours": ours,
        "peer": peer,
        "peer_name": f"PyTorch {peer_version}, channels_last, eager",
        "ratio": statistics.median(o / p for o, p in zip(ours, peer, strict=True)),
        "ratio_of_minima": min(ours) / min(peer),
        "compile_seconds": compile_seconds,
        "relative_difference": difference,
    }


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    unknown = sorted(set(_ONLY.value) - set(WORKS))
    if unknown:
        raise app.UsageError(f"--only: unknown {unknown}; known: {list(WORKS)}")
    logging.set_verbosity(logging.WARNING)
    jax.config.update("jax_platforms", "cpu")
    # Compiling is timed: no result of an earlier run may stand in for it.
    jax.config.update("jax_enable_compilation_cache", False)
    figures = []
    for name in sorted(_ONLY.value or WORKS, key=list(WORKS).index):
        result = measure(WORKS[name], len(os.sched_getaffinity(0)), _SECONDS.value, _PEER.value)
        figures.append(result)
        print(
            f"{result['benchmark']}: {min(result['ours']):.3f} s, {result['peer_name']}: "
            f"{min(result['peer']):.3f} s, ratio {result['ratio']:.2f} (of minima "
            f"{result['ratio_of_minima']:.2f}), {len(result['ours'])} turns, compiled in "
            f"{result['compile_seconds']:.0f} s, results differ by "
            f"{result['relative_difference']:.0e}",
            flush=True,
        )
        if _OUTPUT.value:
            Path(_OUTPUT.value).write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    app.run(main)
