"""The input pipeline against a PyTorch DataLoader doing the same work on the same files.

    python benchmarks/bench_input.py [--output=FILE.json] [--peer_python=PYTHON]

Draws street PNGs of 1024x2048, as large as those of Cityscapes (2.5 to 3 MB), cuts them into tiles,
then measures in turns, each in a process of its own, how many training crops per second each side
makes: read, scale by 0.5 to 2.1, crop 512x1024, mirror. The peer (torch_input.py) also normalizes,
on two worker processes; ours leaves that to the device and ships uint8. Prints the ratios of the
medians. Besides: how fast tiles are cut, whole images for evaluation (against TensorFlow decoding
the same PNGs and doing nothing else), the memory of the process, and the time from its start to the
first batch of a set of 25,000 images.
"""

import functools
import itertools
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before TensorFlow is imported

import numpy as np
import tensorflow as tf
from absl import app, flags
from PIL import Image

from hrnet_jax.data import open_source
from hrnet_jax.data.pipeline import segmentation as segmentation_data
from hrnet_jax.data.pipeline.augment import Augmentation
from hrnet_jax.data.pipeline.batches import BatchPlan, iterate
from hrnet_jax.data.synthetic.scene import draw_scene
from hrnet_jax.data.tiles import prepare as tiles
from hrnet_jax.runtime import memory

CROP = (512, 1024)
BATCH = 4
# Of the sensor, in gray levels; chosen so that the files get as large as Cityscapes'.
NOISE = 1.5
# Of the large set: more than Cityscapes with all its coarsely labeled images.
LARGE = 25_000

_OUTPUT = flags.DEFINE_string("output", "", "JSON file for the figures.")
_PEER = flags.DEFINE_string("peer_python", sys.executable, "Interpreter with torch and OpenCV.")
_IMAGES = flags.DEFINE_integer("images", 30, "PNGs to draw.", lower_bound=BATCH)
_BATCHES = flags.DEFINE_integer("batches", 15, "Batches per measurement.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Measurements of each side.", lower_bound=1)
_WORKERS = 2


def write_streets(root: Path, count: int) -> None:
    """Street scenes of 512x1024, enlarged to 1024x2048, with noise as a camera's."""

    def write(number: int) -> None:
        image, label = draw_scene(0, "train", number, *CROP)
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


def write_large_set(streets: Path, root: Path) -> None:
    """LARGE names for the same few files."""
    for kind in ("leftImg8bit", "gtFine"):
        files = sorted((streets / kind / "train" / "street").iterdir())
        folder = root / kind / "train" / "street"
        folder.mkdir(parents=True)
        for number in range(LARGE):
            file = files[number % len(files)]
            suffix = file.name.split("_", 3)[3]
            os.link(file, folder / f"street_{number:06d}_000000_{suffix}")


def write_large_tiles(cut: Path, large: Path, root: Path) -> None:
    """Tiles of the large set: an index of full length over the few images there are."""
    root.mkdir()
    shard = next(cut.glob("tiles-train*"))
    os.link(shard, root / shard.name)
    part = tiles.index_shard(shard)
    source = open_source("cityscapes", root=large, split="train")
    rows = np.arange(LARGE) % len(part["size"])
    per_image = len(part["image_length"]) // len(part["size"])
    for key in ("image_length", "label_length"):
        part[key] = part[key].reshape(-1, per_image)[rows].ravel()
    part |= {k: part[k][rows] for k in ("size", "image_start", "label_start", "id_count")}
    part |= {"ids": np.array(source.ids), "first_tile": np.arange(LARGE) * per_image}
    tiles._write_manifest(root, source, [shard], [part], plan="")


def alone(function: Callable, *arguments):
    """The function's result from a new process, which keeps freed memory as the scripts do."""
    context = multiprocessing.get_context("spawn")
    keep = functools.partial(memory.keep_freed_pages, single_arena=False)
    with ProcessPoolExecutor(1, mp_context=context, initializer=keep) as pool:
        return pool.submit(function, *arguments, time.time()).result()


def measure_crops(root: Path, num_batches: int, started: float) -> dict:
    """Crops per second after two batches to warm up, seconds to the first, peak memory."""
    source = open_source("cityscapes", root=root, split="train")
    plan = BatchPlan(batch_size=BATCH, seed=0)
    batches = iterate(segmentation_data.train_dataset(source, Augmentation(CROP), plan))
    next(batches)
    first = time.time() - started
    next(batches)
    start = time.perf_counter()
    for _ in itertools.islice(batches, num_batches):
        pass
    rate = num_batches * BATCH / (time.perf_counter() - start)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"rate": rate, "first_batch_seconds": first, "peak_gigabytes": memory}


def measure_evaluation(root: Path, started: float) -> float:
    """Whole images per second."""
    source = open_source("cityscapes", root=root, split="train")
    start = time.perf_counter()
    for _ in segmentation_data.eval_batches(source, batch_size=1):
        pass
    return len(source) / (time.perf_counter() - start)


def measure_decoding(root: Path, started: float) -> float:
    """Images per second if TensorFlow decodes image and label, on all cores, and that is all."""
    source = open_source("cityscapes", root=root, split="train")

    def decode(paths: tuple[str, str]) -> None:
        for path, channels in zip(paths, (3, 1), strict=True):
            tf.io.decode_png(tf.io.read_file(path), channels=channels)

    start = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(decode, zip(source.image_paths, source.label_paths, strict=True)))
    return len(source) / (time.perf_counter() - start)


def measure_preparing(root: Path, output: Path, started: float) -> float:
    """Images per second, checksums and index included."""
    source = open_source("cityscapes", root=root, split="train")
    shutil.rmtree(output, ignore_errors=True)
    start = time.perf_counter()
    tiles.prepare(source, output, progress=False)
    return len(source) / (time.perf_counter() - start)


def measure_peer(python: str, pairs: Path, num_batches: int) -> float:
    """Crops per second of torch_input.py."""
    script = Path(__file__).with_name("torch_input.py")
    numbers = (BATCH, *CROP, _WORKERS, num_batches)
    command = [python, str(script), str(pairs), *map(str, numbers)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def run(python: str, images: int, batches: int, rounds: int) -> list[dict]:
    """All figures."""
    with tempfile.TemporaryDirectory() as folder:
        root, cut = Path(folder, "streets"), Path(folder, "tiles")
        write_streets(root, images)
        source = open_source("cityscapes", root=root, split="train")
        megabytes = statistics.mean(os.path.getsize(p) for p in source.image_paths) / 1e6
        pairs = Path(folder, "pairs.json")
        pairs.write_text(json.dumps(list(zip(source.image_paths, source.label_paths, strict=True))))
        preparing, files, from_tiles, peer, evaluation, cut_evaluation, decoding = (
            [] for _ in range(7)
        )
        for _ in range(rounds):
            decoding.append(alone(measure_decoding, root))
            preparing.append(alone(measure_preparing, root, cut))
            peer.append(measure_peer(python, pairs, batches))
            files.append(alone(measure_crops, root, batches))
            from_tiles.append(alone(measure_crops, cut, 2 * batches))
            evaluation.append(alone(measure_evaluation, root))
            cut_evaluation.append(alone(measure_evaluation, cut))
        large, large_cut = Path(folder, "large"), Path(folder, "large_tiles")
        write_large_set(root, large)
        write_large_tiles(cut, large, large_cut)
        starts = {
            "PNGs": alone(measure_crops, large, batches),
            "tiles": alone(measure_crops, large_cut, batches),
        }
        tile_megabytes = sum(p.stat().st_size for p in cut.iterdir()) / images / 1e6
    loader = f"PyTorch DataLoader, {_WORKERS} workers, OpenCV"
    decoder = "TensorFlow decoding the PNGs, and nothing else"
    results = [
        _result("crops/s from 1024x2048 PNGs", [f["rate"] for f in files], peer, loader),
        _result("crops/s from tiles", [f["rate"] for f in from_tiles], peer, loader),
        _result("whole images/s from PNGs", evaluation, decoding, decoder),
        _result("whole images/s from tiles", cut_evaluation, decoding, decoder),
        _result("images/s cut into tiles", preparing, decoding, decoder),
    ]
    results[0] |= {
        "cores": len(os.sched_getaffinity(0)),
        "png_megabytes": megabytes,
        "tile_megabytes": tile_megabytes,
        "large_set": {"images": LARGE} | starts,
    }
    return results


def _result(what: str, ours: list[float], peer: list[float], peer_name: str) -> dict:
    return {
        "benchmark": f"input pipeline, {what}",
        "ours": ours,
        "peer": peer,
        "peer_name": peer_name,
        "ratio": statistics.median(ours) / statistics.median(peer),
    }


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    figures = run(_PEER.value, _IMAGES.value, _BATCHES.value, _ROUNDS.value)
    if _OUTPUT.value:
        Path(_OUTPUT.value).write_text(json.dumps(figures, indent=2))
    for f in figures:
        ours, peer = (statistics.median(f[side]) for side in ("ours", "peer"))
        print(f"{f['benchmark']}: {ours:.1f}, {f['peer_name']}: {peer:.1f}, ratio {f['ratio']:.2f}")
    notes = figures[0]
    print(
        f"an image takes {notes['png_megabytes']:.2f} MB as PNG, {notes['tile_megabytes']:.2f} MB "
        "in tiles with its label"
    )
    for kind in ("PNGs", "tiles"):
        start = notes["large_set"][kind]
        print(
            f"{LARGE} images as {kind}: first batch {start['first_batch_seconds']:.1f} s after the "
            f"start of the program, {start['peak_gigabytes']:.2f} GB of memory at most"
        )


if __name__ == "__main__":
    app.run(main)
