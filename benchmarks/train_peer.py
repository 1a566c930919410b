"""Trains the official architecture in PyTorch on the batches that train.py would train on.

    python -m benchmarks.train_peer --config=configs/camvid.py --config.data.root=CAMVID
        --output=FOLDER [--peer_python=PYTHON]

The same initial weights, images, crops, learning rates and order as of
`python train.py --config=... --workdir=...` with the same configuration, which must be one with
plain cross-entropy and SGD. PyTorch trains (torch_train.py, in a process of its own) in the
precision of config.model.dtype; its weights are evaluated by evaluation.py like ours. At the end it
says how far the gradients of both, in float32, are from PyTorch's in float64, at PyTorch's weights
on the last batch. Writes log.jsonl and peer.pth into FOLDER; `plot_runs.py ours=WORKDIR
peer=FOLDER` draws both.
"""

import itertools
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import optax
from absl import app, flags

import hrnet_jax
from hrnet_jax.evaluation import segmentation
from hrnet_jax.pytorch import convert
from hrnet_jax.pytorch import files as torch_files
from hrnet_jax.runtime import sharding
from hrnet_jax.tools import config_flag
from hrnet_jax.train import build, metric_log
from hrnet_jax.train.config import check_config, flatten
from hrnet_jax.train.step import create_state, make_train_step

_CONFIG = config_flag.define()
_OUTPUT = flags.DEFINE_string("output", None, "Folder of log.jsonl and peer.pth.")
_PEER = flags.DEFINE_string("peer_python", sys.executable, "Interpreter with torch.")
flags.mark_flags_as_required(["config", "output"])


def check(config) -> None:
    """Refuses what torch_train.py does not do."""
    expected = {
        "head": "segmentation", "optimizer.name": "sgd",
        "optimizer.momentum": 0.9, "optimizer.weight_decay": 5e-4, "optimizer.nesterov": False,
        "optimizer.gradient_accumulation": 1, "optimizer.ema_decay": 0.0,
        "optimizer.skip_nonfinite": 0,
        "loss.name": "cross_entropy", "loss.class_weights": None, "loss.label_smoothing": 0.0,
        "data.color_jitter": 0.0, "data.class_mix": 0.0, "model.align_corners": None,
    }  # fmt: skip
    found = flatten(config.to_dict())
    for key, value in expected.items():
        if found[key] != value:
            raise app.UsageError(f"config.{key} must be {value!r} here, not {found[key]!r}")
    if config.model.dtype == "bfloat16":
        raise app.UsageError("config.model.dtype must be 'float32' or 'float64' here")


def gradients(config, model, variables, batch) -> dict[str, np.ndarray]:
    """Those of our training step, by PyTorch's names."""
    keeping = optax.trace(0.0)  # the optimizer whose state is the gradient
    state = create_state(model, keeping, seed=0, variables=variables)
    loss = build.make_loss(config)
    step = make_train_step(model, keeping, optax.constant_schedule(0.0), loss, seed=0)
    state, _ = jax.jit(step)(state, batch)
    variables = {"params": state.opt_state.trace, "batch_stats": state.batch_stats}
    return convert.to_torch(model, variables, "official")


def distance(found: Mapping, expected: Mapping[str, np.ndarray]) -> float:
    """Euclidean, over all arrays of `expected`, as a share of its length."""
    squares = [np.sum(np.square(found[name] - value)) for name, value in expected.items()]
    length = sum(np.sum(np.square(value)) for value in expected.values())
    return float(np.sqrt(sum(squares) / length))


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    config, folder = _CONFIG.value, Path(_OUTPUT.value)
    check_config(config)
    check(config)
    source, eval_source = build.open_sources(config)
    num_steps, epochs = build.run_length(config, len(source))
    schedule, optimizer = build.make_optimizer(config, num_steps, epochs.steps_per_epoch)
    model = build.make_model(config, source.classes.num_classes)
    sharding.use_compilation_cache(config.compilation_cache)
    state = create_state(
        model,
        optimizer,
        seed=config.seed,
        variables=build.load_initial_variables(config, model, source.classes.names),
    )
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "peer.pth"
    torch_files.write_tensors(weights, convert.to_torch(model, variables, "official"))
    learning_rates = jax.device_get(jax.vmap(schedule)(np.arange(num_steps)))
    eval_every = build.steps_per_evaluation(config, epochs.steps_per_epoch)

    shape = map(str, (source.classes.num_classes, config.batch_size, *config.data.crop_size))
    threads = str(len(os.sched_getaffinity(0)))
    script = str(Path(__file__).with_name("torch_train.py"))
    log = metric_log.RunLog(str(folder), 0)
    with subprocess.Popen(
        [_PEER.value, script, config.variant, config.model.dtype, *shape, threads, str(weights)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as peer:

        def ask(line: str, *arrays: np.ndarray) -> str:
            peer.stdin.write(f"{line}\n".encode())
            for array in arrays:
                peer.stdin.write(np.ascontiguousarray(array).data)
            peer.stdin.flush()
            answer = peer.stdout.readline().decode().strip()
            if not answer:
                raise RuntimeError(f"{script} has ended, see above")
            return answer

        batches = itertools.islice(build.make_batches(config, source, 0), num_steps)
        losses = []
        for step, batch in enumerate(batches, start=1):
            rate = learning_rates[step - 1]
            losses.append(float(ask(f"step {float(rate)!r}", batch["image"], batch["label"])))
            evaluates = step % eval_every == 0 or step == num_steps
            if evaluates or step == 1 or step % config.log_every_steps == 0:
                loss, epoch = float(np.mean(losses)), epochs.at(step)
                log.scalars(step, {"epoch": epoch, "loss": loss, "learning_rate": float(rate)})
                print(f"step {step}/{num_steps}  epoch {epoch:.1f}  loss {loss:.4f}", flush=True)
                losses = []
            if evaluates:
                ask(f"save {weights}")
                peer_model, variables = hrnet_jax.from_torch(weights)
                result = segmentation.evaluate(
                    peer_model, variables, eval_source, batch_size=config.eval.batch_size
                )
                log.scalars(step, {"miou": result.metrics["miou"]}, prefix="eval")
                print(f"after step {step}: mIoU {result.metrics['miou']:.4f}", flush=True)

        arrays = {}
        for dtype in ("float32", "float64"):
            file = folder / f"{dtype}.pth"
            ask(f"gradients {dtype} {file}", batch["image"], batch["label"])
            with torch_files.open_tensors(file) as tensors:
                arrays[dtype] = {name: t.numpy() for name, t in tensors.items()}
            file.unlink()
        peer.stdin.close()
    ours = gradients(config, peer_model, variables, batch)
    print(
        "gradients, distance from those in float64:",
        f"ours {distance(ours, arrays['float64']):.1e},",
        f"PyTorch's {distance(arrays['float32'], arrays['float64']):.1e}",
    )
    log.close()


if __name__ == "__main__":
    app.run(main)
