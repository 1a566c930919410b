"""The experiments behind docs/reliability.md: real kills, full disks, rotten bytes, hostile files.

python benchmarks/soak.py [--short] [--only=1,2,...] [--table=docs/soak.md]

Training runs are real ones: train.py in processes of their own, with a tiny network, which differ
from a user's only in the network and in options that compile it fast. `--short` is what the tests
run. The exit code is 0 if every experiment passed.
"""

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import pickle
import platform
import random
import runpy
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable

ROOT = pathlib.Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np  # noqa: E402
from etils import epath  # noqa: E402

# What compiles fast; nothing here is about the speed of the programs.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
TIMEOUT = 600
# Not the same in two runs.
TIMES = ("images_per_second", "data_wait", "seconds_left", "seconds")


class Failure(AssertionError):
    """An experiment's expectation did not hold."""


def check(condition: bool, message: str) -> None:
    if not condition:
        raise Failure(message)


# ---- runs of train.py


def child(arguments: list[str]) -> None:
    """train.py with the tiny network; SOAK_* of the environment makes things go wrong in it."""
    import resource

    from hrnet_jax.models import Variant, variants
    from hrnet_jax.runtime import sharding
    from hrnet_jax.train import build

    variants.VARIANTS["tiny"] = Variant(
        "tiny", width=4, layer1_blocks=1, layer1_planes=4, num_modules=(1, 1, 1), num_blocks=1
    )
    sharding.compiler_options = lambda platform=None: QUICK
    if limit := os.environ.get("SOAK_FILE_LIMIT"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    if poisoned := os.environ.get("SOAK_POISONED_STEP"):
        make_batches = build.make_batches

        def poison(config, source, start_step, *mesh):
            batches = make_batches(config, source, start_step, *mesh)
            for step, batch in enumerate(batches, start_step + 1):
                if step == int(poisoned):
                    batch = {**batch, "label": np.full_like(batch["label"], 99)}  # no class
                yield batch

        build.make_batches = poison
    sys.argv = ["train.py", *arguments]
    os.chdir(ROOT)
    runpy.run_path("train.py", run_name="__main__")


@dataclasses.dataclass
class Process:
    """A running train.py, its output going to a file."""

    process: subprocess.Popen
    output: pathlib.Path

    def text(self) -> str:
        return self.output.read_text(errors="replace")

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + TIMEOUT
        while text not in self.text():
            check(self.process.poll() is None, f"ended before {text!r}:\n{self.text()[-2000:]}")
            check(time.monotonic() < deadline, f"no {text!r}:\n{self.text()[-2000:]}")
            time.sleep(0.005)

    def end(self, signals: int | None = None, expected: tuple[int, ...] = (0,)) -> float:
        """Sends a signal, waits, compares the exit code; returns the seconds that took."""
        start = time.monotonic()
        if signals is not None:
            self.process.send_signal(signals)
        try:
            code = self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise Failure(f"no end after {TIMEOUT} s:\n{self.text()[-2000:]}") from None
        check(code in expected, f"exit code {code}, expected {expected}:\n{self.text()[-3000:]}")
        return time.monotonic() - start


class Lab:
    """A folder with a data set, and runs in it."""

    def __init__(self, folder: pathlib.Path, short: bool, seed: int = 0, kills: int = 20):
        from hrnet_jax.data.synthetic import write as synthetic

        self.folder, self.short, self.random = folder, short, random.Random(seed)
        self.kills = kills
        self.streets = folder / "streets"
        synthetic.write_cityscapes(
            self.streets, {"train": 5, "val": 30}, size=(48, 80), progress=False
        )
        self._number = 0
        self._references: dict[tuple, dict] = {}

    def start(self, name: str, *, processes: int = 1, environment=None, **overrides):
        """Starts a run in the folder `name`; a list of processes, or the only one."""
        values = {
            "batch_size": 2,
            "log_every_steps": 5,
            "checkpoint_every_steps": 3,
            "data.root": self.streets,
            "data.crop_size": "(32,64)",
            "optimizer.ema_decay": 0.9,
            "eval.every_steps": 20,
            "eval.num_images": 2,
            "eval.batch_size": 2,
            **{key.replace("__", "."): value for key, value in overrides.items()},
        }
        with socket.socket() as port:
            port.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{port.getsockname()[1]}"
        started = []
        for index in range(processes):
            self._number += 1
            output = self.folder / f"output{self._number}.txt"
            several = [
                f"--coordinator={address}",
                f"--num_processes={processes}",
                f"--process_id={index}",
            ]
            with output.open("wb") as stream:
                process = subprocess.Popen(
                    [
                        *(sys.executable, __file__, "--child"),
                        *("--config=configs/demo.py:variant=tiny", f"--workdir={self.at(name)}"),
                        *(f"--config.{key}={value}" for key, value in values.items()),
                        *(several if processes > 1 else ()),
                    ],
                    stdout=stream,
                    stderr=subprocess.STDOUT,
                    env={
                        **os.environ,
                        "PYTHONPATH": str(ROOT),
                        "JAX_NUM_CPU_DEVICES": "1",
                        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
                        **(environment or {}),
                    },
                )
            started.append(Process(process, output))
        return started if processes > 1 else started[0]

    def at(self, name: str) -> pathlib.Path:
        return self.folder / name

    def reference(self, *, processes: int = 1, **overrides) -> dict:
        """The digest of a run without any interruption."""
        key = processes, *sorted(overrides.items())
        if key not in self._references:
            name = f"reference{len(self._references)}"
            run = self.start(name, processes=processes, **overrides)
            for process in run if processes > 1 else [run]:
                process.end()
            self._references[key] = self.digest(name)
        return self._references[key]

    def digest(self, name: str) -> dict:
        """All that a run leaves and that has to be the same again."""
        from hrnet_jax.checkpoints import manifest, vectors

        root = epath.Path(self.at(name) / manifest.FOLDER)
        manifests = manifest.complete_steps(root)
        newest = root / str(max(manifests))
        check(not manifest.find_damage(newest), f"{newest} is damaged")
        arrays = hashlib.sha256()
        for part in ("variables", "training", "ema"):
            for entry, array in zip(
                vectors.read_descriptions(newest, part),
                vectors.restore_arrays(newest, part),
                strict=True,
            ):
                arrays.update(repr(entry).encode() + array.tobytes())
        log = [json.loads(line) for line in (self.at(name) / "log.jsonl").read_text().splitlines()]
        log = [{k: v for k, v in x.items() if k.split("/")[-1] not in TIMES} for x in log]
        scores = {step: m["score"] for step, m in manifests.items() if m["evaluated"]}
        return {"step": max(manifests), "arrays": arrays.hexdigest(), "scores": scores, "log": log}

    def same(self, name: str, expected: dict) -> None:
        found = self.digest(name)
        for key in expected:
            check(
                found[key] == expected[key],
                f"{key} differs from the uninterrupted run's: {found[key]} != {expected[key]}",
            )

    def newest(self, name: str) -> int:
        return self.digest(name)["step"]


# ---- experiments; each returns what was seen, in words


def resume(lab: Lab) -> str:
    steps = 12 if lab.short else 2000
    settings = {"num_steps": steps, "checkpoint_every_steps": 5 if lab.short else 50}
    settings["eval__every_steps"] = 12 if lab.short else 500
    expected = lab.reference(**settings)
    run = lab.start("resumed", **settings)
    run.wait_for("step 1/")
    while not lab.short and f"step {steps // 2}/" not in run.text():
        time.sleep(0.01)
    run.end(signal.SIGTERM, (75,))
    middle = lab.newest("resumed")
    lab.start("resumed", **settings).end()
    lab.same("resumed", expected)
    return (
        f"{steps} steps against {middle}, exit, resume, {steps - middle}: parameters, optimizer,"
        " statistics, averages, scores and log are equal"
    )


def kills(lab: Lab) -> str:
    number = 1 if lab.short else lab.kills
    settings = {"num_steps": 12 if lab.short else 15 * number + 100}
    settings["eval__every_steps"] = 12 if lab.short else 50
    settings["checkpoint_every_steps"] = 5 if lab.short else 3
    saving = starting = 0
    newest = []
    for kill in range(number):
        run = lab.start("killed", **settings)
        how = kill % 4
        if how == 3:  # anywhere, mostly while it starts
            time.sleep(lab.random.uniform(0, 8))
            starting += 1
        else:
            run.wait_for("ready after")
            folder = lab.at("killed") / "checkpoints"
            goal = max(_steps(lab.at("killed")), default=0) + lab.random.randrange(0, 30)
            while not lab.short and max(_steps(lab.at("killed")), default=0) < goal:
                if run.process.poll() is not None:
                    break
                time.sleep(0.001)
            time.sleep(lab.random.uniform(0, 0.3))
            while how != 1:  # until a save is under way
                if any(".orbax-checkpoint-tmp" in p.name for p in folder.glob("*")):
                    time.sleep(lab.random.uniform(0, 0.05))
                    break
                if run.process.poll() is not None:
                    break
                time.sleep(0.001)
        run.end(signal.SIGKILL, (-9, 0))
        saving += any(
            ".orbax-checkpoint-tmp" in p.name for p in (lab.at("killed") / "checkpoints").glob("*")
        )
        with contextlib.suppress(ValueError, OSError):
            newest.append(lab.newest("killed"))
        check(newest == sorted(newest), f"the newest step went back: {newest}")
        if run.process.returncode == 0:
            break
    done = kill + (run.process.returncode != 0)
    check(done == number or lab.short, f"only {done} kills before the run was complete")
    check(saving >= number // 4, f"only {saving} kills hit a save")
    lab.start("killed", **settings).end()
    lab.same("killed", lab.reference(**settings))
    damaged = list((lab.at("killed") / "checkpoints").glob("damaged-*"))
    check(not damaged, f"kills left damaged checkpoints: {damaged}")
    return (
        f"{done} times kill -9 ({saving} left an unfinished save, {starting} at random moments of"
        f" starting), newest steps {newest}: the end is equal to the uninterrupted run's"
    )


def preemption(lab: Lab) -> str:
    # In compiled code that does not come back for a while: an empty cache.
    cache = {"JAX_COMPILATION_CACHE_DIR": str(lab.folder / "empty")}
    run = lab.start("compiling", environment=cache, num_steps=12)
    run.wait_for("compiling the training step")
    time.sleep(1)
    seconds = run.end(signal.SIGTERM, (75,))
    check(seconds < 2, f"compilation went on for {seconds:.1f} s after SIGTERM")
    seen = [f"compiling: {seconds:.1f} s"]
    if lab.short:
        return "; ".join(seen)
    settings = {"num_steps": 30, "eval__num_images": 30, "eval__batch_size": 1}
    run = lab.start("evaluating", **settings)
    run.wait_for("evaluating val:")
    seconds = run.end(signal.SIGTERM, (75,))
    step = lab.newest("evaluating")
    check(step == 20 and not lab.digest("evaluating")["scores"], f"saved step {step}")
    lab.start("evaluating", **settings).end()
    lab.same("evaluating", lab.reference(**settings))
    seen.append(f"evaluating: {seconds:.1f} s, evaluated again")
    settings = {"num_steps": 400, "checkpoint_every_steps": 1000, "eval__every_steps": 400}
    run = lab.start("training", **settings)
    run.wait_for("step 20/")
    seconds = run.end(signal.SIGINT, (75,))
    step = lab.newest("training")
    lab.start("training", **settings).end()
    lab.same("training", lab.reference(**settings))
    seen.append(f"training: {seconds:.1f} s, saved step {step} outside the schedule")
    run = lab.start("twice", num_steps=400)
    run.wait_for("step 5/")
    run.process.send_signal(signal.SIGINT)
    time.sleep(0.001)
    run.end(signal.SIGINT, (130, 75))
    seen.append("Ctrl-C twice: ends at once")
    return "; ".join(seen)


def several_processes(lab: Lab) -> str:
    settings = {"num_steps": 300 if lab.short else 400, "checkpoint_every_steps": 10}
    settings["eval__every_steps"] = 400
    both = lab.start("several", processes=2, **settings)
    both[0].wait_for("step 5/")
    start = time.monotonic()
    both[1].process.send_signal(signal.SIGTERM)  # one of the two
    for process in both:
        process.end(None, (75,))
    seconds = time.monotonic() - start
    step = lab.newest("several")
    seen = [f"SIGTERM to one of two: both saved step {step} and ended after {seconds:.1f} s"]
    if lab.short:
        return seen[0]
    both = lab.start("several", processes=2, **settings)
    both[0].wait_for(f"step {step + 20 - step % 10}/")
    start = time.monotonic()
    both[1].process.kill()
    both[1].end(None, (-9,))
    both[0].end(None, tuple(range(-64, 0)) + tuple(range(1, 256)))
    seen.append(
        f"SIGKILL of one: the other ended by itself after {time.monotonic() - start:.1f} s"
        f" (code {both[0].process.returncode})"
    )
    for process in lab.start("several", processes=2, **settings):
        process.end()
    lab.same("several", lab.reference(processes=2, **settings))
    seen.append("the end is equal to the uninterrupted run's")
    return "; ".join(seen)


def rot(lab: Lab) -> str:
    from hrnet_jax.checkpoints.load import load_checkpoint

    settings = {"num_steps": 12, "checkpoint_every_steps": 5, "eval__every_steps": 12}
    lab.reference(**settings)
    whole = lab.at("reference0")
    before = max(s for s in _steps(whole) if s != max(_steps(whole)))
    files = [
        p.relative_to(whole)
        for p in (whole / "checkpoints" / str(max(_steps(whole)))).rglob("*")
        if p.is_file() and p.name not in ("_CHECKPOINT_METADATA", "commit_success.txt")
    ]
    number = 4 if lab.short else 60
    for attempt in range(number):
        copy = lab.at("rotten")
        shutil.copytree(whole, copy)
        file = copy / lab.random.choice(files)
        data = bytearray(file.read_bytes())
        how = "flip" if attempt % 4 < 2 else ("cut" if attempt % 4 == 2 else "delete")
        if how == "flip":
            data[lab.random.randrange(len(data))] ^= 1 << lab.random.randrange(8)
            file.write_bytes(data)
        elif how == "cut":
            file.write_bytes(data[: lab.random.randrange(len(data))])
        else:
            file.unlink()
        step = load_checkpoint(str(copy), which="latest").step
        check(step == before, f"{how} of {file} was not noticed: step {step} was taken")
        shutil.rmtree(copy)
    if lab.short:
        return f"{number} files flipped, cut or deleted: all named, the step before was used"
    copy = lab.at("rotten")
    shutil.copytree(whole, copy)
    (copy / "checkpoints" / "100").mkdir()
    run = lab.start("rotten", **settings)
    run.end()
    check("skipping the damaged checkpoint" in run.text(), "an empty folder was not named")
    return f"{number} files flipped, cut or deleted and an empty 100/: all named, step before used"


def full_disk(lab: Lab) -> str:
    settings = {"num_steps": 9, "checkpoint_every_steps": 3, "eval__every_steps": 9}
    run = lab.start("full", **settings, environment={"SOAK_FILE_LIMIT": str(200_000)})
    run.end(None, (4,))
    check("could not be written" in run.text(), run.text()[-1000:])
    line = [x for x in run.text().splitlines() if x.startswith("train.py: error")][-1]
    lab.start("full", **settings | {"num_steps": 9}).end()
    run = lab.start("full2", **settings)
    run.wait_for("step 5/")
    run.end(signal.SIGTERM, (75,))
    kept = lab.newest("full2")
    lab.start("full2", **settings, environment={"SOAK_FILE_LIMIT": str(200_000)}).end(None, (4,))
    check(lab.newest("full2") == kept, "the older checkpoint is gone")
    lab.start("full2", **settings).end()
    lab.same("full2", lab.digest("full"))
    return f"exit code 4, older checkpoints intact, continues once there is room: {line[17:120]}..."


def not_finite(lab: Lab) -> str:
    from hrnet_jax.checkpoints.load import load_checkpoint

    settings = {"num_steps": 9, "checkpoint_every_steps": 3}
    poisoned = {"SOAK_POISONED_STEP": "5"}
    run = lab.start("nan", **settings, environment=poisoned)
    run.end(None, (3,))
    line = [x for x in run.text().splitlines() if x.startswith("train.py: error")][-1]
    check("step 5: the loss is nan" in line and "head/" in line, line)
    check(lab.newest("nan") == 3, "the last good checkpoint is that of step 3")
    run = lab.start("skips", **settings, optimizer__skip_nonfinite=1, environment=poisoned)
    run.end()
    check("skipped, 1 of at most 1" in run.text(), run.text()[-1000:])
    check(lab.digest("skips")["log"][-2]["train/skipped_steps"] == 1, "not counted")
    best = load_checkpoint(str(lab.at("skips")))
    check(all(np.isfinite(x).all() for x in _leaves(best.variables)), "saved what is not finite")
    return f"exit code 3 and {line[17:]!r}; skipped and counted if allowed"


def topology(lab: Lab) -> str:
    import jax

    from hrnet_jax.checkpoints import manifest
    from hrnet_jax.checkpoints.store import CheckpointStore
    from hrnet_jax.models import Variant, create_model
    from hrnet_jax.runtime import sharding
    from hrnet_jax.train import optimizers
    from hrnet_jax.train.step import create_state

    tiny = Variant(
        "tiny", width=4, layer1_blocks=1, layer1_planes=4, num_modules=(1, 1, 1), num_blocks=1
    )
    optimizer = optimizers.make_optimizer(optimizers.poly_schedule(0.1, 9))
    model = create_model(tiny, 19)
    state = jax.jit(lambda: create_state(model, optimizer, seed=0, ema=True))()
    expected = [np.asarray(x).tobytes() for x in jax.tree.leaves(state)]
    metadata = {key: {} for key in manifest.METADATA_KEYS}
    metadata["format_version"] = manifest.FORMAT_VERSION
    meshes = [(8, 1), (2, 4), (1, 1), (2, 4), (8, 1)]
    for shape in meshes:
        mesh = sharding.make_mesh(*shape)
        template = sharding.place_replicated(state, mesh)
        store = CheckpointStore(str(lab.at("topology")))
        restored = store.restore(template) or template
        check(restored.step.sharding.mesh == mesh, "not on the mesh")
        found = [np.asarray(x).tobytes() for x in jax.tree.leaves(restored)]
        check(found == expected, f"other bits on {shape}")
        store.close()
        shutil.rmtree(lab.at("topology"))
        store = CheckpointStore(str(lab.at("topology")))
        store.save(restored, metadata)
        store.close()
    text = " -> ".join(f"{a}x{b}" for a, b in meshes) + ": all bits equal"
    if lab.short:
        return text
    settings = {"num_steps": 6, "batch_size": 8, "log_every_steps": 1, "eval__every_steps": 6}
    settings["data__crop_size"] = "(128,64)"  # four devices have a row each at 1/32 of it
    devices = {"JAX_NUM_CPU_DEVICES": "8"}
    run = lab.start("mesh", **settings, mesh__data=8, environment=devices)
    run.wait_for("step 3/")
    run.end(signal.SIGTERM, (75,))
    losses = []
    for data, space in ((8, 1), (2, 4), (1, 1)):
        name = f"mesh{data}x{space}"
        shutil.copytree(lab.at("mesh"), lab.at(name))
        first = lab.newest(name) + 1
        lab.start(name, **settings, mesh__data=data, mesh__space=space, environment=devices).end()
        log = lab.digest(name)["log"]
        losses.append(next(x["train/loss"] for x in log if x["step"] == first))
    spread = (max(losses) - min(losses)) / losses[0]
    check(spread < 1e-5, f"losses of the next step: {losses}")
    return f"{text}; the next step's losses differ by {spread:.1e}"


def hosts(lab: Lab) -> str:
    from hrnet_jax.data import open_source
    from hrnet_jax.data.pipeline.augment import Augmentation
    from hrnet_jax.data.pipeline.batches import BatchPlan, iterate
    from hrnet_jax.data.pipeline.order import Shard
    from hrnet_jax.data.pipeline.segmentation import train_dataset

    source = open_source("cityscapes", root=str(lab.streets), split="train")

    def batches(count: int, steps: int) -> list[bytes]:
        parts = [
            iterate(
                train_dataset(
                    source,
                    Augmentation((32, 64)),
                    BatchPlan(batch_size=4, seed=3, start_step=7, shard=Shard(index, count)),
                )
            )
            for index in range(count)
        ]
        return [
            np.concatenate([b["image"] for b in together]).tobytes()
            + np.concatenate([b["label"] for b in together]).tobytes()
            for together in (tuple(next(p) for p in parts) for _ in range(steps))
        ]

    steps = 3 if lab.short else 50
    whole = batches(1, steps)
    check(len(set(whole)) == steps, "batches repeat")
    for count in (2, 4):
        check(batches(count, steps) == whole, f"{count} hosts see other samples")
    return f"{steps} batches from step 7 on 1, 2 and 4 hosts: the same bytes"


@dataclasses.dataclass(frozen=True)
class _Strongest:
    """A "network" that predicts the image's strongest channel."""

    num_classes: int = 19
    head: str = "segmentation"
    align_corners: bool = False

    def apply(self, variables, images, train):
        import jax.numpy as jnp

        return {"logits": jnp.tile(images, 7)[..., :19] * variables["gain"]}


def evaluations(lab: Lab) -> str:
    import jax.numpy as jnp

    from hrnet_jax.data import open_source
    from hrnet_jax.evaluation import segmentation
    from hrnet_jax.runtime import sharding

    source = open_source("cityscapes", root=str(lab.streets), split="val").take(range(7))
    found = []
    for shape in (None, (1, 1), (8, 1), (2, 4)):
        for batch_size in (1, 3, 8):
            mesh = shape and sharding.make_mesh(*shape)
            result = segmentation.evaluate(
                _Strongest(),
                {"gain": jnp.ones(())},
                source,
                batch_size=batch_size,
                mesh=mesh,
                progress=False,
            )
            check(len(result.ids) == 7, f"{len(result.ids)} of 7 images")
            found.append(result.confusion)
    check(all((c == found[0]).all() for c in found), "matrices differ")
    return f"7 images on 4 meshes with batches of 1, 3 and 8: one matrix of {found[0].sum()} pixels"


def data_files(lab: Lab) -> str:
    from PIL import Image

    from hrnet_jax.data import open_source
    from hrnet_jax.data.pipeline import audit

    pixels = np.arange(12 * 20 * 3, dtype=np.uint8).reshape(12, 20, 3)
    ids = np.zeros((12, 20), np.uint8)

    def png(path, array):
        Image.fromarray(array).save(path)

    cases = {  # what happens to an image and its label
        "corrupt PNG": lambda x, y: y.write_bytes(y.read_bytes()[:60]),
        "GIF named .png": lambda x, y: Image.fromarray(pixels).save(x, format="GIF"),
        "JPEG label": lambda x, y: Image.fromarray(ids).save(y, format="JPEG"),
        "color label": lambda x, y: png(y, pixels),
        "sizes differ": lambda x, y: png(y, ids[:5]),
        "unknown id": lambda x, y: png(y, ids + 9),
        "missing label": lambda x, y: y.unlink(),
        "0 bytes": lambda x, y: x.write_bytes(b""),
        "PNG bomb": lambda x, y: x.write_bytes(_bomb()),
        "empty split": lambda x, y: x.unlink(),
    }
    for number, (name, spoil) in enumerate(cases.items()):
        root = lab.at(f"data{number}")
        image, label = root / "images/train/a.png", root / "labels/train/a.png"
        for path in (image, label):
            path.parent.mkdir(parents=True)
        png(image, pixels)
        png(label, ids)
        (root / "classes.json").write_text('{"names": ["a"]}')
        spoil(image, label)
        try:
            source = open_source("folder", root=str(root), split="train")
            audit.audit_labels(source, progress=False)
        except (ValueError, OSError) as error:
            check(str(root) in str(error), f"{name}: the message names no file: {error}")
        else:
            raise Failure(f"{name} was not noticed")
    return f"{', '.join(cases)}: each refused by file name before the first step"


def archives(lab: Lab) -> str:
    from hrnet_jax.pytorch import files as torch_files

    folder = lab.at("archives")
    folder.mkdir()
    torch_files.write_tensors(folder / "good.pth", {"a": np.zeros(3, np.float32)})
    with zipfile.ZipFile(folder / "good.pth") as archive:
        contents = {info.filename: archive.read(info) for info in archive.infolist()}
    for number, prefix in enumerate(("../../up", "/tmp/soak_absolute", "a/../../b")):
        path = folder / f"bad{number}.pth"
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in contents.items():
                archive.writestr(name.replace("archive", prefix, 1), data)
        before = sorted(folder.rglob("*"))
        with contextlib.suppress(ValueError), torch_files.open_tensors(path) as found:
            check(set(found) == {"a"}, "something is missing")
        check(sorted(folder.rglob("*")) == before, "something was written")
        check(not pathlib.Path("/tmp/soak_absolute").exists(), "something was written")
    path = folder / "link.pth"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in contents.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o120777 << 16  # a symbolic link
            archive.writestr(info, data)
    with contextlib.suppress(ValueError), torch_files.open_tensors(path) as found:
        check(set(found) == {"a"}, "something is missing")
    return "../, absolute names and links in archives: nothing is ever unpacked or written"


class _Payload:
    def __init__(self, marker):
        self._marker = str(marker)

    def __reduce__(self):
        return os.system, (f"touch {self._marker}",)


def weights(lab: Lab) -> str:
    import hrnet_jax
    from hrnet_jax.models import create_model
    from hrnet_jax.pytorch import convert
    from hrnet_jax.pytorch import files as torch_files

    marker = lab.at("executed")
    payload = pickle.dumps({"state_dict": _Payload(marker)}, protocol=2)
    legacy = b"".join(
        pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    )
    lab.at("legacy.pth").write_bytes(legacy + payload)
    with zipfile.ZipFile(lab.at("zip.pth"), "w") as archive:
        archive.writestr("archive/data.pkl", payload)
    for name in ("legacy.pth", "zip.pth"):
        try:
            hrnet_jax.from_torch(str(lab.at(name)))
        except ValueError as error:
            check(name in str(error), str(error))
        else:
            raise Failure(f"{name} was read")
    check(not marker.exists(), "code was executed")
    import jax

    model = create_model("w18_small_v1", 3)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 64, 64, 3), np.float32))
    variables = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
    tensors = dict(convert.to_torch(model, variables))
    name = next(iter(tensors))
    for what, change in {
        "missing": {k: v for k, v in tensors.items() if k != name},
        "other width": tensors | {name: np.zeros((5, *tensors[name].shape[1:]), np.float32)},
    }.items():
        torch_files.write_tensors(lab.at("w.safetensors"), change)
        try:
            hrnet_jax.from_torch(str(lab.at("w.safetensors")))
        except ValueError as error:
            check(name.split(".")[0] in str(error), f"{what}: {error}")
        else:
            raise Failure(f"weights with an array {what} were read")
    return "code in zip and legacy .pth: not executed; a missing and a wider array: named"


def configurations(lab: Lab) -> str:
    cases = {
        "bach_size=4": "unknown config key 'bach_size'",
        "batch_size=-1": "must be at least 1",
        "data.crop_size=(50,64)": "not divisible by 32",
        "variant=w19": "unknown variant 'w19'; known",
        "optimizer.momentum=0.8": "optimizer.momentum: saved 0.9, now 0.8",
    }
    lab.reference(num_steps=9, checkpoint_every_steps=3)
    names = list(cases)[:1] + list(cases)[-1:] if lab.short else list(cases)
    for case in names:
        key, value = case.split("=")
        name = "reference0" if "momentum" in key else "unused"
        settings = {"num_steps": 9, "checkpoint_every_steps": 3, key: value}
        run = lab.start(name, **settings)
        run.end(None, (2,))
        check(cases[case] in run.text(), f"{case}:\n{run.text()[-1000:]}")
        check("compiling" not in run.text() and "Traceback" not in run.text(), run.text()[-1000:])
    return f"{', '.join(names)}: exit code 2, known choices listed, before any compilation"


def fuzz(lab: Lab) -> str:
    from benchmarks import fuzz as fuzzer

    count = 48 if lab.short else 400
    outcomes = fuzzer.run_all(count)
    failed = {k: v for k, v in outcomes.items() if "FAILED" in v}
    check(not failed, f"{failed}")
    text = "; ".join(
        f"{k}: {', '.join(f'{n} {how}' for how, n in v.items())}" for k, v in outcomes.items()
    )
    return f"{count} inputs ({text}): no hang, no crash, no silent skip"


EXPERIMENTS: dict[str, tuple[str, Callable[[Lab], str]]] = {
    "1": ("train, against stop and resume", resume),
    "2": ("kill -9 at random moments", kills),
    "3": ("SIGTERM and Ctrl-C in every phase", preemption),
    "4": ("SIGTERM and SIGKILL of one of two processes", several_processes),
    "5": ("flip, cut, delete, empty", rot),
    "6": ("disk full during a save", full_disk),
    "7": ("NaN in the loss", not_finite),
    "8": ("other topologies", topology),
    "9": ("1, 2 and 4 hosts", hosts),
    "10": ("evaluation on any mesh", evaluations),
    "11": ("bad data files", data_files),
    "12": ("hostile archives", archives),
    "13": ("hostile and unfitting weights", weights),
    "14": ("wrong configurations", configurations),
    "fuzz": ("damaged and hostile inputs", fuzz),
}


def _steps(workdir: pathlib.Path) -> list[int]:
    return sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())


def _leaves(tree) -> list[np.ndarray]:
    import jax

    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def _bomb() -> bytes:
    """A PNG of 40000 x 40000 pixels in some hundred bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", 40000, 40000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b"")


def _merged(table: pathlib.Path, rows: list[str]) -> list[str]:
    """With the rows that the table has of experiments which did not run now."""
    lines = table.read_text().splitlines() if table.exists() else []
    found = {line.split(" | ")[0][2:]: line for line in [*lines, *rows] if " | " in line}
    return [found[number] for number in EXPERIMENTS if number in found]


def versions() -> str:
    from importlib import metadata

    packages = ("jax", "flax", "orbax-checkpoint", "tensorflow-cpu", "numpy")
    found = ", ".join(f"{p} {metadata.version(p)}" for p in packages)
    return f"Python {platform.python_version()}, {found}; {platform.machine()}, Linux"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="what the tests run")
    parser.add_argument("--only", default="", help="numbers of experiments, separated by commas")
    parser.add_argument("--table", default="", help="Markdown file to write")
    parser.add_argument("--kills", type=int, default=20, help="of experiment 2")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    arguments = parser.parse_args()
    chosen = arguments.only.split(",") if arguments.only else list(EXPERIMENTS)
    if unknown := [n for n in chosen if n not in EXPERIMENTS]:
        parser.error(f"unknown experiments {unknown}; known: {list(EXPERIMENTS)}")
    rows, failed = [], []
    with tempfile.TemporaryDirectory(prefix="soak") as folder:
        for number in chosen:
            title, experiment = EXPERIMENTS[number]
            start = time.monotonic()
            place = pathlib.Path(folder) / number
            place.mkdir()
            try:
                seen = experiment(Lab(place, arguments.short, arguments.seed, arguments.kills))
            except Exception as error:
                failed.append(number)
                seen = f"FAILED: {type(error).__name__}: {error}"
            seconds = time.monotonic() - start
            print(f"{number:>4} {title}: {seen} ({seconds:.0f} s)", flush=True)
            mark = "FAILED" if number in failed else "passed"
            line = " ".join(seen.replace("|", "/").split())
            rows.append(f"| {number} | {title} | {mark} | {line[:700]} |")
            shutil.rmtree(place, ignore_errors=True)
    if arguments.table:
        rows = _merged(pathlib.Path(arguments.table), rows)
        command = "make soak" if not arguments.short else "python benchmarks/soak.py --short"
        pathlib.Path(arguments.table).write_text(
            f"# Fault experiments\n\nWritten by `{command}` with {versions()}.\n\n"
            "| # | experiment | result | seen |\n| --- | --- | --- | --- |\n"
            + "\n".join(rows)
            + "\n"
        )
    print(
        f"{len(rows) - len(failed)} of {len(rows)} passed" + (f"; failed: {failed}" * bool(failed))
    )
    return int(bool(failed))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
    else:
        sys.exit(main())
