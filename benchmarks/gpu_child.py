"""What both sides of bench_gpu.py have in common: images in memory, and the answers to the parent.

Needs nothing but NumPy.
"""

import json
import sys
import time
from collections.abc import Callable

import numpy as np

CLASSES = 19
LEARNING_RATE = 0.01
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
# Mean and standard deviation of ImageNet's pixels, 0..255, as in the official code.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


def drawn_images(count: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Rectangles of a color per class on noise, and their labels.

    Returns:
        uint8 [count, height, width, 3] and uint8 [count, height, width] with classes and some 255.
    """
    rng = np.random.default_rng(0)
    colors = np.random.default_rng(1).integers(40, 216, (CLASSES, 3))
    labels = np.full((count, height, width), 255, np.uint8)
    for label in labels:
        label[: height // 2], label[height // 2 :] = rng.integers(CLASSES, size=2)
        for _ in range(12):
            top, left = rng.integers(height), rng.integers(width)
            size = rng.integers(8, max(9, height // 2), 2)
            label[top : top + size[0], left : left + size[1]] = rng.integers(CLASSES)
        label[:4] = 255
    noise = rng.integers(-40, 40, (count, height, width, 3))
    images = np.where(labels[..., None] < 255, colors[np.minimum(labels, CLASSES - 1)], 0) + noise
    return np.clip(images, 0, 255).astype(np.uint8), labels


def answer(run: Callable[[int], float], finish: Callable[[], dict], about: dict) -> None:
    """Tells the parent that this side is ready, then runs as often as it asks.

    Args:
        run: does this many steps and waits for them; returns the last loss (0 for inference).
        finish: figures after the last run, such as the peak memory.
        about: figures that are known now, such as the seconds of compilation.
    """
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        repeats = int(line)
        if not repeats:
            print(json.dumps(finish()), flush=True)
            return
        start = time.perf_counter()
        loss = run(repeats)
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds / repeats, "loss": loss}), flush=True)
