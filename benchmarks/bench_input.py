"""The input pipeline against a PyTorch DataLoader doing the same work on the same files.

    python benchmarks/bench_input.py [--output=FILE.json] [--peer_python=PYTHON]

Draws street PNGs of 1024x2048 with the size of Cityscapes' (2.5 to 3 MB), then measures in turns
how many training crops per second each side makes: read, scale by 0.5 to 2.1, crop 512x1024,
mirror. The peer (torch_input.py) also normalises, on two worker processes; ours leaves that to the
device and ships uint8. Prints the ratio of the medians.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported

import numpy as np
from absl import app, flags
from PIL import Image

from hrnet_jax.data import Source, open_source, pipeline, synthetic

CROP = (512, 1024)
BATCH = 4
# Of the sensor, in grey levels; chosen so that the files get as large as Cityscapes'.
NOISE = 1.5

_OUTPUT = flags.DEFINE_string("output", "", "JSON file for the figures.")
_PEER = flags.DEFINE_string("peer_python", sys.executable, "Interpreter with torch and OpenCV.")
_IMAGES = flags.DEFINE_integer("images", 30, "PNGs to draw.", lower_bound=BATCH)
_BATCHES = flags.DEFINE_integer("batches", 15, "Batches per measurement.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Measurements of each side.", lower_bound=1)
_WORKERS = 2


def write_streets(root: Path, count: int) -> None:
    """Street scenes of 512x1024, enlarged to 1024x2048, with noise as a camera's."""

    def write(number: int) -> None:
        image, label = synthetic.draw_scene(0, "train", number, *CROP)
        rng = np.random.default_rng(number)
        size = (2 * CROP[1], 2 * CROP[0])
        pixels = np.asarray(
            Image.fromarray(image).resize(size, Image.Resampling.BICUBIC), np.float32
        )
        pixels = pixels + NOISE * rng.standard_normal(pixels.shape, np.float32)
        name = f"street_{number:06d}_000000"
        for kind, suffix, picture in (
            ("leftImg8bit", "leftImg8bit", np.clip(pixels, 0, 255).astype(np.uint8)),
            ("gtFine", "gtFine_labelIds", label.repeat(2, 0).repeat(2, 1)),
        ):
            folder = root / kind / "train" / "street"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(folder / f"{name}_{suffix}.png")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, range(count)))


def measure_ours(source: Source, num_batches: int) -> float:
    """Crops per second after two batches to warm up."""
    dataset = pipeline.train_dataset(source, batch_size=BATCH, crop_size=CROP, seed=0)
    batches = pipeline.iterate(dataset)
    for _ in range(2):
        next(batches)
    start = time.perf_counter()
    for _ in itertools.islice(batches, num_batches):
        pass
    return num_batches * BATCH / (time.perf_counter() - start)


def measure_peer(python: str, pairs: Path, num_batches: int) -> float:
    """Crops per second of torch_input.py, in a process of its own."""
    script = Path(__file__).with_name("torch_input.py")
    numbers = (BATCH, *CROP, _WORKERS, num_batches)
    command = [python, str(script), str(pairs), *map(str, numbers)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def run(python: str, images: int, batches: int, rounds: int) -> dict:
    """All figures of the comparison."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_streets(root, images)
        source = open_source("cityscapes", root=root, split="train")
        megabytes = statistics.mean(os.path.getsize(p) for p in source.image_paths) / 1e6
        pairs = root / "pairs.json"
        pairs.write_text(json.dumps(list(zip(source.image_paths, source.label_paths, strict=True))))
        ours, peer = [], []
        for _ in range(rounds):
            peer.append(measure_peer(python, pairs, batches))
            ours.append(measure_ours(source, batches))
    return {
        "benchmark": "input pipeline, crops/s from 1024x2048 PNGs, crop 512x1024",
        "cores": len(os.sched_getaffinity(0)),
        "png_megabytes": megabytes,
        "ours": ours,
        "peer": peer,
        "peer_name": f"PyTorch DataLoader, {_WORKERS} workers, OpenCV",
        "ratio": statistics.median(ours) / statistics.median(peer),
    }


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    figures = run(_PEER.value, _IMAGES.value, _BATCHES.value, _ROUNDS.value)
    if _OUTPUT.value:
        Path(_OUTPUT.value).write_text(json.dumps(figures, indent=2))
    ours, peer = (statistics.median(figures[k]) for k in ("ours", "peer"))
    print(
        f"input pipeline: {ours:.1f} crops/s, {figures['peer_name']}: {peer:.1f} crops/s, "
        f"ratio {figures['ratio']:.2f} (PNGs of {figures['png_megabytes']:.1f} MB)"
    )


if __name__ == "__main__":
    app.run(main)
