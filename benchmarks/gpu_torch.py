"""The peer of bench_gpu.py.

    python benchmarks/gpu_torch.py VARIANT KIND BATCH HEIGHT WIDTH DTYPE MODE

The official architecture in PyTorch, channels_last; bfloat16 by autocast. MODE is eager or compile
(torch.compile). Needs nothing but PyTorch and NumPy.
"""

import contextlib
import sys
import time

import torch
from gpu_child import (
    CLASSES,
    LEARNING_RATE,
    MEAN,
    MOMENTUM,
    STD,
    WEIGHT_DECAY,
    answer,
    drawn_images,
)
from torch.nn import functional as F
from torch_hrnet import HRNet

BATCHES = 4  # different ones, used in turn


def main() -> None:
    variant, kind = sys.argv[1:3]
    batch, height, width = map(int, sys.argv[3:6])
    dtype, mode = sys.argv[6:8]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # As the official code; a fixed size profits from the search for the fastest algorithm.
    torch.backends.cudnn.benchmark = True
    torch.manual_seed(0)
    model = HRNet(variant, CLASSES).to(device, memory_format=torch.channels_last)
    model.train(kind == "train")
    forward = torch.compile(model) if mode == "compile" else model
    images, labels = drawn_images(BATCHES * batch, height, width)
    images = torch.from_numpy(images).reshape(BATCHES, batch, height, width, 3)
    labels = torch.from_numpy(labels).reshape(BATCHES, batch, height, width)
    casts = contextlib.nullcontext
    if dtype != "float32":
        casts = lambda: torch.autocast(device, getattr(torch, dtype))  # noqa: E731
    step = {"train": train_step, "inference": inference_step}[kind](model, forward, casts)
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (MEAN, STD))

    def run(repeats: int) -> float:
        for i in range(repeats):
            pixels = images[i % BATCHES].to(device, non_blocking=True).permute(0, 3, 1, 2)
            target = labels[i % BATCHES].to(device, non_blocking=True).long()
            loss = step((pixels - mean) / std, target)
        return float(loss.detach())

    start = time.perf_counter()
    run(2)
    about = {
        "name": f"PyTorch {torch.__version__}, {mode}",
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "compile_seconds": time.perf_counter() - start,
    }
    peak = torch.cuda.max_memory_allocated if device == "cuda" else lambda: None
    answer(run, lambda: {"peak_bytes": peak()}, about)


def train_step(model, forward, casts):
    """(images, labels) -> loss; a whole step of SGD."""
    optimizer = torch.optim.SGD(
        model.parameters(), LEARNING_RATE, MOMENTUM, weight_decay=WEIGHT_DECAY
    )

    def step(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad()
        with casts():
            logits = forward(images)
        logits = F.interpolate(logits.float(), labels.shape[1:], mode="bilinear")
        loss = F.cross_entropy(logits, labels, ignore_index=255)
        loss.backward()
        optimizer.step()
        return loss

    return step


def inference_step(model, forward, casts):
    """(images, labels) -> the sum of the predicted labels at full size, times 0."""
    del model

    @torch.no_grad()
    def step(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with casts():
            logits = forward(images)
        logits = F.interpolate(logits.float(), labels.shape[1:], mode="bilinear")
        return 0 * logits.argmax(1).sum()

    return step


if __name__ == "__main__":
    main()
