"""Damaged and hostile inputs, from fixed seeds: every one is refused by name or read as it was.

python benchmarks/fuzz.py [--count=200] [--seed=0] [--only=png,...]

An input is refused if reading it raises ValueError or OSError with a message; "harmless" means
that it was read and all that the undamaged one holds came out. Everything else is a failure:
another exception, no answer within `SECONDS`, or an answer that lacks something. A new kind of
input is one function here, decorated with `@kind`: it writes an input made from random numbers and
returns how to read it.
"""

import argparse
import collections
import contextlib
import json
import pathlib
import shutil
import signal
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator

import numpy as np
from etils import epath

SECONDS = 30
ROOT = pathlib.Path(__file__).parent.parent
# Reads the input; returns whether all of it came out.
Reader = Callable[[], bool]
KINDS: dict[str, Callable[[np.random.Generator, pathlib.Path], Reader]] = {}


def kind(function):
    KINDS[function.__name__] = function
    return function


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Flips, overwrites, cuts, repeats or inserts some bytes."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        place = int(rng.integers(0, max(1, len(data))))
        length = int(rng.integers(1, 9))
        how = rng.integers(0, 6)
        if how == 0:
            data[place : place + 1] = bytes([data[place] ^ (1 << int(rng.integers(0, 8)))])
        elif how == 1:
            data[place : place + length] = rng.bytes(length)
        elif how == 2:
            del data[place:]
        elif how == 3:
            data[place:place] = data[place : place + length]
        elif how == 4:
            del data[place : place + length]
        else:  # a size of four bytes that is enormous
            data[place : place + 4] = struct.pack(">I", int(rng.integers(2**30, 2**32)))
        data = data or bytearray(b"\0")
    return bytes(data)


@kind
def png(rng: np.random.Generator, folder: pathlib.Path) -> Reader:
    """An image and its label of a data set; one of them damaged."""
    from PIL import Image

    from hrnet_jax.data.sources.files import Files
    from hrnet_jax.data.sources.source import Classes, Source

    classes = Classes(("a", "b"), ((0, 0, 0), (9, 9, 9)), (0, 1))
    pixels = rng.integers(0, 256, (12, 20, 3)).astype(np.uint8)
    ids = rng.integers(0, 2, (12, 20)).astype(np.uint8)
    paths = folder / "image.png", folder / "label.png"
    for path, array in zip(paths, (pixels, ids), strict=True):
        Image.fromarray(array).save(path)
    victim = paths[rng.integers(0, 2)]
    victim.write_bytes(damaged(victim.read_bytes(), rng))
    source = Source("s", "train", classes, ("x",), Files((str(paths[0]),), (str(paths[1]),)))

    def read() -> bool:
        image, label = source.read(0)
        return np.array_equal(image, pixels) and np.array_equal(label, ids)

    return read


_tiles: list[tuple[pathlib.Path, list[np.ndarray], list[np.ndarray]]] = []  # written once


@kind
def tile_shard(rng: np.random.Generator, folder: pathlib.Path) -> Reader:
    """A folder of tiles with a damaged, deleted or emptied file: shard, index or manifest."""
    from hrnet_jax.data import open_source
    from hrnet_jax.data.synthetic import write as synthetic
    from hrnet_jax.data.tiles import prepare as tiles

    if not _tiles:
        root = pathlib.Path(tempfile.mkdtemp())
        synthetic.write_cityscapes(root / "set", {"train": 3}, size=(48, 96), progress=False)
        source = open_source("cityscapes", root=root / "set", split="train")
        tiles.prepare(source, root / "tiles", progress=False, say=lambda *_: None)
        samples = [source.read(k) for k in range(3)]
        _tiles.append((root / "tiles", *map(list, zip(*samples, strict=True))))
    original, images, labels = _tiles[0]
    shutil.copytree(original, folder / "tiles")
    files = sorted(p for p in (folder / "tiles").rglob("*") if p.is_file() and "train" in p.name)
    victim = files[rng.integers(0, len(files))]
    how = rng.integers(0, 5)
    if how < 3:
        victim.write_bytes(damaged(victim.read_bytes(), rng))
    elif how == 3:
        victim.unlink()
    else:
        victim.write_bytes(b"")

    def read() -> bool:
        source = open_source("cityscapes", root=folder / "tiles", split="train")
        found = [source.read(k) for k in range(len(source))]
        return len(found) == 3 and all(
            np.array_equal(image, images[k]) and np.array_equal(label, labels[k])
            for k, (image, label) in enumerate(found)
        )

    return read


def _weights(rng: np.random.Generator, path: pathlib.Path) -> Reader:
    from hrnet_jax.pytorch import files as torch_files

    tensors = {
        f"layer{k}.weight": rng.standard_normal((3, k + 1)).astype(np.float32) for k in range(4)
    }
    torch_files.write_tensors(path, tensors)
    path.write_bytes(damaged(path.read_bytes(), rng))

    def read() -> bool:
        with torch_files.open_tensors(path) as contents:
            found = {name: tensor.numpy() for name, tensor in contents.items()}
        # Names and numbers of safetensors have no checksum: the network's table checks the names.
        return len(found) == len(tensors) and all(
            isinstance(array, np.ndarray) for array in found.values()
        )

    return read


@kind
def pth(rng: np.random.Generator, folder: pathlib.Path) -> Reader:
    return _weights(rng, folder / "weights.pth")


@kind
def safetensors(rng: np.random.Generator, folder: pathlib.Path) -> Reader:
    return _weights(rng, folder / "weights.safetensors")


_checkpoint: list[pathlib.Path] = []  # written once


@kind
def checkpoint(rng: np.random.Generator, folder: pathlib.Path) -> Reader:
    """A step's folder with a damaged, deleted, emptied or replaced file."""
    import jax

    from hrnet_jax.checkpoints import manifest
    from hrnet_jax.checkpoints.load import load_checkpoint
    from hrnet_jax.checkpoints.store import CheckpointStore
    from hrnet_jax.train.step import TrainState

    values = np.arange(600, dtype=np.float32)
    if not _checkpoint:
        _checkpoint.append(pathlib.Path(tempfile.mkdtemp()))
        state = TrainState(
            np.int32(5), {"a": {"kernel": values}}, {"a": {"mean": values[:3]}}, opt_state=()
        )
        metadata = {
            "format_version": manifest.FORMAT_VERSION,
            "model": {},
            "classes": {},
            "config": {},
            "version": "0",
        }
        store = CheckpointStore(str(_checkpoint[0]))
        store.save(state, metadata)
        store.close()
    shutil.copytree(_checkpoint[0], folder / "run")
    step = folder / "run" / manifest.FOLDER / "5"
    files = sorted(p for p in step.rglob("*") if p.is_file() and p.parent != step)
    files.append(step / manifest.MANIFEST)
    victim = files[rng.integers(0, len(files))]
    how = rng.integers(0, 6)
    if how < 3:
        victim.write_bytes(damaged(victim.read_bytes(), rng))
    elif how == 3:
        victim.unlink()
    elif how == 4:
        victim.unlink()
        victim.mkdir()
    else:  # sound by its checksums: someone else's manifest is no proof of anything
        victim.write_bytes(damaged(victim.read_bytes(), rng))
        inside = epath.Path(step)
        listed = manifest.step_files(inside)
        sums = {name: [size, manifest.checksum(file)] for name, file, size in listed}
        contents = {"files": sums, "score": None, "evaluated": False}
        manifest.write_manifest(inside, contents)

    def read() -> bool:
        found = load_checkpoint(folder / "run").variables
        arrays = [np.asarray(x) for x in jax.tree.leaves(found)]
        return how == 5 or (len(arrays) == 2 and any(np.array_equal(a, values) for a in arrays))

    return read


@kind
def class_file(rng: np.random.Generator, folder: pathlib.Path) -> Reader:
    """Bytes damaged, or a value of a wrong type in a wrong place."""
    from hrnet_jax.data.sources.class_file import read_class_file

    contents = {
        "names": ["soil", "leaf"],
        "colors": [[0, 0, 0], [0, 160, 60]],
        "label_ids": [0, 1],
        "ignore_ids": [7],
        "categories": ["none", "plant"],
        "label_type": "ids",
        "image_range": [0, 4095],
        "files": {"images": "images", "labels": "masks", "split": {"val": 0.1, "seed": 0}},
    }
    if rng.integers(0, 4) == 0:
        contents |= {"label_type": "colors", "ignore_ids": [], "ignore_colors": [[9, 9, 9]]}
    path = folder / "classes.json"
    odd = [None, -1, 1e400, "x" * 50, [], {}, [[]], [None], 2**80, True, "\u0000", [1.5]]
    if rng.integers(0, 2):
        key = list(contents)[rng.integers(0, len(contents))]
        value = odd[rng.integers(0, len(odd))]
        contents[key] = value if rng.integers(0, 2) else [value, value]
        path.write_text(json.dumps(contents))
    else:
        path.write_bytes(damaged(json.dumps(contents).encode(), rng))
    return lambda: read_class_file(path).num_classes > 0


@kind
def config(rng: np.random.Generator, folder: pathlib.Path) -> Reader:
    """A value of --config.KEY=VALUE; accepted ones go as far as to the first compilation."""
    from absl import flags

    from hrnet_jax.data.synthetic import write as synthetic
    from hrnet_jax.tools import config_flag
    from hrnet_jax.train import build, loop
    from hrnet_jax.train.config import flatten

    root = folder / "streets"
    synthetic.write_cityscapes(root, {"train": 2, "val": 1}, size=(32, 64), progress=False)
    base = str(ROOT / "configs" / "demo.py") + ":variant=w18_small_v1"

    def parse(arguments: list[str]):
        values = flags.FlagValues()
        holder = config_flag.define(values)
        before, sys.argv = sys.argv, arguments  # where config_flags looks for keys
        try:
            values(arguments)
        except (flags.Error, KeyError, AttributeError, TypeError) as error:
            raise ValueError(str(error)) from error  # as train.py does
        finally:
            sys.argv = before
        return holder.value

    known = flatten(parse(["fuzz", f"--config={base}"]).to_dict())
    key = sorted(known)[rng.integers(0, len(known))]
    odd = [
        *("", "-1", "0", "nan", "inf", "-inf", "1e400", "99999999999999999999", "x", "None"),
        *("(1,)", "()", "(1,2,3)", "True", "3.7", "../../etc", "\u2603", "1,2", "[]", "'"),
    ]
    argument = f"--config.{key}={odd[rng.integers(0, len(odd))]}"
    if rng.integers(0, 8) == 0:
        argument = damaged(argument.encode(), rng).decode("utf-8", "replace").replace("\0", "?")

    class Accepted(Exception):
        pass

    def accept(*_):
        raise Accepted

    def read() -> bool:
        config = parse(["fuzz", f"--config={base}", f"--config.data.root={root}", argument])
        if config is None:
            raise ValueError("no configuration")
        before = build.make_state
        build.make_state = accept
        try:
            loop.train(config, str(folder / "run"))
        except Accepted:
            return True
        finally:
            build.make_state = before
        return False

    return read


class Hang(Exception):
    """No answer in time."""


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    def stop(*_):
        raise Hang(f"no answer within {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run(name: str, seed: int) -> str:
    """Makes and reads one input: "refused: ...", "harmless" or "FAILED: ..."."""
    rng = np.random.default_rng([seed, *name.encode()])
    with tempfile.TemporaryDirectory() as folder:
        read = KINDS[name](rng, pathlib.Path(folder))
        try:
            with time_limit(SECONDS):
                whole = read()
        except (ValueError, OSError) as error:
            return f"refused: {error}" if str(error).strip() else "FAILED: without a message"
        except BaseException as error:  # what a fuzzer looks for
            return f"FAILED: {type(error).__name__}: {error}"
    return "harmless" if whole else "FAILED: something is missing and nothing was said"


def run_all(count: int, seed: int = 0, names: tuple[str, ...] = ()) -> dict[str, dict[str, int]]:
    """Runs `count` inputs in all, in turn; kind -> outcome -> number. Prints the failures."""
    names = names or tuple(KINDS)
    outcomes: dict[str, collections.Counter] = {name: collections.Counter() for name in names}
    for number in range(count):
        name = names[number % len(names)]
        outcome = run(name, seed + number)
        outcomes[name][outcome.split(":")[0]] += 1
        if outcome.startswith("FAILED"):
            print(f"{name} {seed + number}: {outcome}", flush=True)
    return {name: dict(counter) for name, counter in outcomes.items()}


def main() -> int:
    sys.path.insert(0, str(ROOT))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    names = tuple(filter(None, arguments.only.split(",")))
    result = run_all(arguments.count, arguments.seed, names)
    print(json.dumps(result))
    return int(any("FAILED" in outcomes for outcomes in result.values()))


if __name__ == "__main__":
    sys.exit(main())
