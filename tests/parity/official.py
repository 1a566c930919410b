"""The official PyTorch networks' numbers, and the weights and inputs they belong to.

`data/*.npz` hold what the official implementations gave in float64, `state_dict_shapes` among
it: every key of the official model, in order. Weights follow from the keys alone.
"""

import dataclasses
import json
import math
import pathlib
import zlib

import numpy as np

DATA = pathlib.Path(__file__).parent / "data"


@dataclasses.dataclass(frozen=True)
class Fixture:
    """One network: its state dictionary, an input (NHWC) and what came of it."""

    name: str
    arrays: dict[str, np.ndarray]
    images: np.ndarray

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {k: tuple(s) for k, s in json.loads(str(self.arrays["state_dict_shapes"])).items()}

    def state_dict(self) -> dict[str, np.ndarray]:
        return {key: weight(key, shape) for key, shape in self.shapes.items()}


def load(name: str) -> Fixture:
    with np.load(DATA / f"{name}.npz") as file:
        arrays = dict(file)
    size = {"cls": (64, 64), "pose": (64, 96)}.get(name.split("_")[0], (64, 128))
    if name.endswith("_65x97"):
        size = (65, 97)
    images = np.random.RandomState(0).standard_normal((2, 3, *size)).astype(np.float32)
    return Fixture(name, arrays, images.transpose(0, 2, 3, 1))


def weight(key: str, shape: tuple[int, ...]) -> np.ndarray:
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    z = np.random.RandomState(zlib.crc32(key.encode()) & 0xFFFFFFFF).standard_normal(shape)
    if key.endswith("running_var"):
        z = 0.5 + np.abs(z)
    elif len(shape) >= 2:
        z = z / np.sqrt(math.prod(shape[1:]))
    elif key.endswith(".weight"):
        z = 1 + 0.1 * z
    else:
        z = 0.1 * z
    return np.asarray(z, np.float32)


def error(found, expected: np.ndarray) -> float:
    """The largest difference, relative to the largest expected value."""
    found = np.asarray(found, np.float64)
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def nchw(x) -> np.ndarray:
    x = np.asarray(x)
    return x.transpose(0, 3, 1, 2) if x.ndim == 4 else x
