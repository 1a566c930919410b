"""The peer of bench_input.py: training crops from PNGs by OpenCV and a PyTorch DataLoader.

Written from the description of the official HRNet recipe: read the whole image and label, resize
both by a random factor, pad, crop at random, normalize, mirror at random. Imports no more than
NumPy, OpenCV and PyTorch: it also runs in an environment without this project.

    python torch_input.py IMAGE_LIST BATCH_SIZE HEIGHT WIDTH WORKERS NUM_BATCHES

IMAGE_LIST is a JSON file of [image path, label path] pairs. Prints crops per second.
"""

import json
import pathlib
import random
import sys
import time

import cv2
import numpy as np
import torch

MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])
IGNORE_LABEL = 255


class Crops(torch.utils.data.Dataset):
    def __init__(self, pairs: list, crop_size: tuple[int, int], length: int):
        self.pairs, self.crop_size, self.length = pairs, crop_size, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image_path, label_path = self.pairs[index % len(self.pairs)]
        image = cv2.imread(image_path, cv2.IMREAD_COLOR)
        label = cv2.imread(label_path, cv2.IMREAD_GRAYSCALE)
        height, width = label.shape
        scale = 0.5 + random.randint(0, 16) / 10
        longest = int(max(height, width) * scale + 0.5)
        new = [int(n * longest / max(height, width) + 0.5) for n in (height, width)]
        image = cv2.resize(image, new[::-1], interpolation=cv2.INTER_LINEAR)
        label = cv2.resize(label, new[::-1], interpolation=cv2.INTER_NEAREST)
        pad = [max(0, c - n) for c, n in zip(self.crop_size, new, strict=True)]
        if any(pad):
            border = (0, pad[0], 0, pad[1], cv2.BORDER_CONSTANT)
            image = cv2.copyMakeBorder(image, *border, value=(0, 0, 0))
            label = cv2.copyMakeBorder(label, *border, value=IGNORE_LABEL)
        y, x = (random.randint(0, n - c) for n, c in zip(label.shape, self.crop_size, strict=True))
        image = image[y : y + self.crop_size[0], x : x + self.crop_size[1]]
        label = label[y : y + self.crop_size[0], x : x + self.crop_size[1]]
        image = image.astype(np.float32)[:, :, ::-1] / 255.0
        image -= MEAN
        image /= STD
        step = random.choice((-1, 1))
        image = image.transpose(2, 0, 1)[:, :, ::step]
        return image.copy(), label.astype(np.int64)[:, ::step].copy()


def measure(
    pairs: list, batch_size: int, crop_size: tuple[int, int], workers: int, num_batches: int
) -> float:
    """Crops per second over `num_batches` batches, after two to warm up."""
    dataset = Crops(pairs, crop_size, batch_size * (num_batches + 2))
    loader = torch.utils.data.DataLoader(
        dataset, batch_size, shuffle=True, num_workers=workers, drop_last=True
    )
    batches = iter(loader)
    for _ in range(2):
        next(batches)
    start = time.perf_counter()
    for images, _ in batches:
        assert images.shape == (batch_size, 3, *crop_size)
    return num_batches * batch_size / (time.perf_counter() - start)


if __name__ == "__main__":
    # One thread per worker process: more would fight for the same cores.
    cv2.setNumThreads(0)
    files = json.loads(pathlib.Path(sys.argv[1]).read_text())
    batch, rows, columns, processes, count = map(int, sys.argv[2:])
    print(measure(files, batch, (rows, columns), processes, count))
