"""Writes street scenes in the Cityscapes folder layout."""

import os
from concurrent.futures import ThreadPoolExecutor

from PIL import Image

from hrnet_jax.data.synthetic.scene import SPLITS, draw_scene
from hrnet_jax.runtime import storage
from hrnet_jax.runtime.progress import progress_bar


def write_cityscapes(
    root: str | os.PathLike,
    counts: dict[str, int],
    *,
    size: tuple[int, int] = (256, 512),
    seed: int = 0,
    progress: bool = True,
) -> None:
    """Writes a synthetic dataset in the Cityscapes layout.

    Args:
        root: folder to write to, created if needed; files of the same names are replaced.
        counts: images per split, e.g. {"train": 200, "val": 40}.
        size: (height, width) of the images.
        seed: equal seeds give equal files.
        progress: show a bar with rate and time left.

    Raises:
        ValueError: for an unknown split, a negative count or a size too small.
    """
    for split, count in counts.items():
        if split not in SPLITS or count < 0:
            raise ValueError(f"{count} images for split {split!r}; known splits: {SPLITS}")
    jobs = [(split, number) for split, count in counts.items() for number in range(count)]

    def write(job: tuple[str, int]) -> None:
        split, number = job
        image, label = draw_scene(seed, split, number, *size)
        for kind, suffix, pixels in (
            ("leftImg8bit", "leftImg8bit", image),
            ("gtFine", "gtFine_labelIds", label),
        ):
            folder = storage.path(root) / kind / split / "synthetic"
            name = f"synthetic_{seed:06d}_{number:06d}_{suffix}.png"
            with storage.written(folder / name) as file:
                Image.fromarray(pixels).save(file, compress_level=4)

    with ThreadPoolExecutor(2) as pool:
        drawn = pool.map(write, jobs)
        for _ in progress_bar(
            drawn, total=len(jobs), desc="drawing", unit=" images", disable=not progress
        ):
            pass
