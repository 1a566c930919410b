"""The peer's side of train_peer.py: trains PyTorch's HRNet on the batches that arrive on stdin.

    python benchmarks/torch_train.py VARIANT DTYPE CLASSES BATCH HEIGHT WIDTH THREADS WEIGHTS.pth

For each line `step LEARNING_RATE`, followed by uint8 images [N, H, W, 3] and labels [N, H, W], it
takes a step of SGD as the official recipe does and prints the loss; for `gradients DTYPE FILE.pth`,
followed by the same, it writes the gradients in that precision and for `save FILE.pth` the weights,
and prints "saved".
"""

import copy
import sys

import numpy as np
import torch
from torch.nn import functional as F
from torch_hrnet import HRNet

MEAN = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64)
STD = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64)
IGNORE_LABEL = 255


def backward(model: HRNet, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss in training of uint8 images [N, H, W, 3]; the gradients go where PyTorch's go."""
    dtype = model.conv1.weight.dtype
    images = ((images.to(dtype) / 255 - MEAN.to(dtype)) / STD.to(dtype)).permute(0, 3, 1, 2)
    logits = F.interpolate(
        model(images), labels.shape[1:], mode="bilinear", align_corners=model.align_corners
    )
    loss = F.cross_entropy(logits, labels, ignore_index=IGNORE_LABEL)
    loss.backward()
    return loss


def main() -> None:
    variant, dtype = sys.argv[1:3]
    classes, batch, height, width, threads = map(int, sys.argv[3:8])
    torch.set_num_threads(threads)
    model = HRNet(variant, classes).to(getattr(torch, dtype), memory_format=torch.channels_last)
    model.load_state_dict(torch.load(sys.argv[8], weights_only=True))
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.0, momentum=0.9, weight_decay=5e-4)

    def read(*shape: int) -> torch.Tensor:
        size = int(np.prod(shape))
        return torch.frombuffer(bytearray(sys.stdin.buffer.read(size)), dtype=torch.uint8).reshape(
            shape
        )

    while line := sys.stdin.buffer.readline().decode().split():
        if line[0] == "save":
            torch.save(model.state_dict(), line[1])
            print("saved", flush=True)
            continue
        images, labels = read(batch, height, width, 3), read(batch, height, width).long()
        if line[0] == "gradients":
            # At weights that float32 has exactly, whatever is trained in.
            other = copy.deepcopy(model).float().to(getattr(torch, line[1]))
            other.zero_grad()
            backward(other, images, labels)
            torch.save({name: p.grad for name, p in other.named_parameters()}, line[2])
            print("saved", flush=True)
            continue
        optimizer.param_groups[0]["lr"] = float(line[1])
        optimizer.zero_grad()
        loss = backward(model, images, labels)
        optimizer.step()
        print(loss.item(), flush=True)


if __name__ == "__main__":
    main()
