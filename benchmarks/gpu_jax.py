"""Our side of bench_gpu.py: `python benchmarks/gpu_jax.py VARIANT KIND BATCH HEIGHT WIDTH DTYPE`.

KIND is train (the training step of train.py, on images in memory) or inference (labels at full
size). Imports neither TensorFlow nor another data library.
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from gpu_child import CLASSES, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, answer, drawn_images

from hrnet_jax.models import create_model, normalize
from hrnet_jax.models.resize import resize
from hrnet_jax.train import losses, optimizers
from hrnet_jax.train.step import create_state, make_train_step

BATCHES = 4  # different ones, used in turn


def main() -> None:
    variant, kind = sys.argv[1:3]
    batch, height, width = map(int, sys.argv[3:6])
    model = create_model(variant, CLASSES, dtype=jnp.dtype(sys.argv[6]))
    images, labels = drawn_images(BATCHES * batch, height, width)
    prepare = {"train": prepare_training, "inference": prepare_inference}[kind]
    start = time.perf_counter()
    run, compiled = prepare(model, images.reshape(BATCHES, batch, height, width, 3), labels)
    seconds = time.perf_counter() - start
    run(1)
    memory = compiled.memory_analysis()
    about = {
        "name": f"hrnet_jax, JAX {jax.__version__}",
        "device": jax.devices()[0].device_kind,
        "compile_seconds": seconds,
        "predicted_bytes": memory.temp_size_in_bytes
        + memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes,
    }
    answer(run, lambda: {"peak_bytes": peak_bytes()}, about)


def prepare_training(model, images: np.ndarray, labels: np.ndarray):
    """(repeats -> last loss), and the compiled step."""
    schedule = optimizers.poly_schedule(LEARNING_RATE, 10_000)
    optimizer = optimizers.make_optimizer(schedule, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    step = make_train_step(model, optimizer, schedule, losses.cross_entropy, seed=0)
    state = create_state(model, optimizer, seed=0)
    labels = labels.reshape(images.shape[:-1])
    batches = [{"image": i, "label": k} for i, k in zip(images, labels, strict=True)]
    compiled = jax.jit(step, donate_argnums=0).lower(state, batches[0]).compile()

    def run(repeats: int) -> float:
        nonlocal state
        for i in range(repeats):
            state, metrics = compiled(state, batches[i % BATCHES])
        return float(metrics["loss"])

    return run, compiled


def prepare_inference(model, images: np.ndarray, labels: np.ndarray):
    """(repeats -> 0), and the compiled program."""
    del labels
    variables = model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))

    @jax.jit
    def predict(variables, images):
        logits = model.apply(variables, normalize.normalize(images))["logits"]
        logits = resize(logits, images.shape[1:3], align_corners=model.align_corners)
        return jnp.argmax(logits, axis=-1).astype(jnp.uint8)

    compiled = predict.lower(variables, images[0]).compile()

    def run(repeats: int) -> float:
        for i in range(repeats):
            result = compiled(variables, images[i % BATCHES])
        result.block_until_ready()
        return 0.0

    return run, compiled


def peak_bytes() -> int | None:
    """The most memory that was in use on the device; None where the platform does not say."""
    statistics = jax.devices()[0].memory_stats()
    return statistics["peak_bytes_in_use"] if statistics else None


if __name__ == "__main__":
    main()
