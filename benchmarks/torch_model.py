"""The peer's side of bench_model.py: runs PyTorch's HRNet whenever a line arrives on stdin.

    python benchmarks/torch_model.py VARIANT KIND BATCH HEIGHT WIDTH THREADS FOLDER

KIND is inference, gradient (forward and backward of the network) or train (a whole step: loss at
full size, backward, SGD). Writes weights, inputs and result into FOLDER so that the other side can
compute the same, prints "ready", then the seconds of one run for every line read.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torch_hrnet import HRNet

LEARNING_RATE = 0.01
CLASSES = 19


def main() -> None:
    variant, kind = sys.argv[1:3]
    batch, height, width, threads = map(int, sys.argv[3:7])
    folder = Path(sys.argv[7])
    torch.set_num_threads(threads)
    torch.manual_seed(0)

    model = HRNet(variant, CLASSES).to(memory_format=torch.channels_last)
    model.train(kind != "inference")
    images = torch.randn(batch, 3, height, width).to(memory_format=torch.channels_last)
    scale = 1 if kind == "train" else 4
    labels = torch.randint(CLASSES, (batch, -(-height // scale), -(-width // scale)))
    torch.save(model.state_dict(), folder / "weights.pth")
    np.savez(folder / "inputs.npz", images=images.permute(0, 2, 3, 1), labels=labels)
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, 0.9, weight_decay=5e-4)

    def run() -> torch.Tensor:
        if kind == "inference":
            with torch.no_grad():
                return model(images)
        optimizer.zero_grad()
        logits = model(images)
        if kind == "train":
            logits = F.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        if kind == "train":
            optimizer.step()
        return loss

    result = run().detach()
    if kind == "inference":
        result = result.permute(0, 2, 3, 1)
    np.save(folder / "result.npy", result.numpy())
    print("ready", torch.__version__, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
