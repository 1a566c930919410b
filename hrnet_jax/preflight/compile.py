"""Compiles a run's real programs for machines that are not there, and says whether they fit.

XLA's TPU compiler runs on any machine. From abstract shapes, without weights and data, it makes
the program that the machine would run, knows its memory to the byte and estimates its cycles. The
estimates compare programs with each other; they are no times.
"""

import dataclasses
import importlib.metadata
import importlib.util
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh
from ml_collections import ConfigDict

from hrnet_jax import __version__
from hrnet_jax.evaluation import metrics
from hrnet_jax.inference import multi_scale
from hrnet_jax.models import normalize
from hrnet_jax.models.layers import REMAT
from hrnet_jax.models.resize import resize
from hrnet_jax.preflight import hlo
from hrnet_jax.runtime import sharding, storage
from hrnet_jax.train import build
from hrnet_jax.train.config import check_config, check_divisible
from hrnet_jax.train.step import create_state
from hrnet_jax.train.tasks import task_of

GIB = 2**30
PROGRAMS = ("train", "evaluate")
# Of the TPU runtime itself: what the compiler keeps free of a chip's memory.
RESERVED_BYTES = GIB // 4
CONTRIBUTORS = 12
# Classes of the data sets that need no files to know them.
NUM_CLASSES = {
    "cityscapes": 19,
    "tfds_cityscapes": 19,
    "fake": 19,
    "camvid": 11,
    "tfds_imagenet": 1000,
}


@dataclasses.dataclass(frozen=True)
class Generation:
    """A kind of TPU chip.

    Attributes:
      hbm_bytes: memory of a chip.
      dimensions: of its topologies.
      example: a topology that exists.
      chip_config: the compiler's name for how JAX uses its cores. The two of a v4 chip are one
        device on TPU machines, but for the compiler, unless it is told so, two with half the
        memory each; those of v5p are one in any case, the others have one core.
    """

    hbm_bytes: int
    dimensions: int
    example: str
    chip_config: str = "default"


GENERATIONS = {
    "v4": Generation(32 * GIB, 3, "v4:2x2x4", "megacore"),
    "v5e": Generation(16 * GIB, 2, "v5e:16x16"),
    "v5p": Generation(95 * GIB, 3, "v5p:2x2x4"),
    "v6e": Generation(32 * GIB, 2, "v6e:4x4"),
}
LOCAL = "local"


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
      name: as given.
      platform: "tpu", or that of this machine's devices.
      devices: described, not necessarily there.
      hbm_bytes: what a program may use on one of them; None where that is unknown.
    """

    name: str
    platform: str
    devices: tuple[Any, ...]
    hbm_bytes: int | None


def open_topology(name: str) -> Topology:
    """The devices that a name such as "v5e:16x16" stands for; "local" is this machine's.

    Raises:
      ValueError: for a name that is not understood or that the compiler does not know, or where
        libtpu is missing. The message says what is possible.
    """
    if name == LOCAL:
        devices = tuple(jax.devices())
        limit = (devices[0].memory_stats() or {}).get("bytes_limit")
        return Topology(name, devices[0].platform, devices, limit)
    known = ", ".join(g.example for g in GENERATIONS.values())
    generation, _, shape = name.partition(":")
    if generation in ("gpu", "cuda", "rocm") or re.match(r"[abhlv]\d{2,3}(?!e)", generation):
        raise ValueError(
            f"topology {name!r}: programs for GPUs are compiled by their driver's machine only; run"
            f" this with --topology={LOCAL} on a machine that has one of them (and --config.mesh"
            " as on all of them): the same report, without cycles"
        )
    if generation not in GENERATIONS:
        raise ValueError(f"unknown topology {name!r}; known are such as {known}, and {LOCAL!r}")
    dimensions = GENERATIONS[generation].dimensions
    if not re.fullmatch("x".join([r"[1-9]\d*"] * dimensions), shape):
        raise ValueError(
            f"topology {name!r}: {generation} has {dimensions} dimensions of chips, as in"
            f" {GENERATIONS[generation].example!r}"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("the compiler for TPUs, libtpu, is not installed: pip install libtpu")
    # It would look for the machine's TPU otherwise, complain that there is none, and insist on
    # being alone. What is compiled for, `name` says alone.
    for variable, value in (
        ("TPU_SKIP_MDS_QUERY", "1"),
        ("TPU_WORKER_HOSTNAMES", "localhost"),
        ("TPU_ACCELERATOR_TYPE", "v5litepod-16"),
        ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
    ):
        os.environ.setdefault(variable, value)
    try:
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=name, chip_config_name=GENERATIONS[generation].chip_config
        )
    except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"the compiler does not know topology {name!r} ({reason}); known are such as {known}"
        ) from None
    limit = GENERATIONS[generation].hbm_bytes - RESERVED_BYTES
    return Topology(name, "tpu", tuple(described.devices), limit)


@dataclasses.dataclass(frozen=True)
class Report:
    """What one program needs of each device.

    Attributes:
      program: "train" or "evaluate".
      topology: its name; `devices` of its devices are used, as the mesh `data` x `space`.
      setting: the keys of the configuration that decide it, with their values.
      memory: bytes per device: parameters, statistics, optimizer, average, batch, temporaries,
        code, total, limit (None where unknown), free (negative: so much is missing).
      fits: whether the total is within the limit; None where that is unknown.
      flops: floating-point operations per device and run.
      bytes_accessed: bytes that its instructions read and write per device and run.
      collectives: per kind {"count", "bytes", "cycles"} per device and run.
      cycles: the compiler's estimate for one run; None where it makes none.
      contributors: the largest parts: {"module", "pass", "cycles", "bytes"}.
      seconds: of compilation.
      versions: of what compiled it.
    """

    program: str
    topology: str
    devices: int
    setting: dict[str, Any]
    memory: dict[str, int | None]
    fits: bool | None
    flops: float | None
    bytes_accessed: float | None
    collectives: dict[str, dict[str, int]]
    cycles: int | None
    contributors: list[dict[str, Any]]
    seconds: float
    versions: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def num_classes_of(config: ConfigDict) -> int:
    """The number of classes of the configuration's data set.

    Raises:
      ValueError: if only the data could tell.
    """
    if config.data.root and storage.path(config.data.root).is_dir():
        source = task_of(config.head).open(config, config.data.train_split)
        return source.classes.num_classes
    if config.data.name not in NUM_CLASSES:
        raise ValueError(
            f"how many classes config.data.name={config.data.name!r} has is known from its files"
            " only: give --config.data.root, or --num_classes"
        )
    return NUM_CLASSES[config.data.name]


def inspect(
    config: ConfigDict, topology: Topology, *, program: str = "train", num_classes: int
) -> Report:
    """Compiles one program of a run and reads off what it needs.

    Args:
      config: as `configs/common.py` describes it; its mesh is one of the topology's devices.
      topology: of `open_topology`.
      program: "train", or "evaluate": prediction and counting of `eval.batch_size` images of the
        size `data.crop_size`.
      num_classes: of the data set.

    Raises:
      ValueError: for a configuration that cannot work or does not fit the mesh, before compiling.
    """
    if program not in PROGRAMS:
        raise ValueError(f"unknown program {program!r}; known: {PROGRAMS}")
    check_config(config)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.space, topology.devices)
    check_divisible(config, mesh)
    lowered, sizes, scan = _lower(config, mesh, program, num_classes)
    start = time.perf_counter()
    common = {
        "program": program,
        "topology": topology.name,
        "devices": mesh.size,
        "setting": _setting(config, mesh, scan),
        "versions": _versions(),
    }
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        used = _used_bytes(str(error), sum(sizes.values()))
        if used is None:
            raise
        return Report(
            memory={**sizes, "temporaries": used - sum(sizes.values()), "code": 0}
            | _against(used, topology.hbm_bytes),
            fits=False,
            flops=None,
            bytes_accessed=None,
            collectives={},
            cycles=None,
            contributors=[],
            seconds=time.perf_counter() - start,
            **common,
        )
    seconds = time.perf_counter() - start
    found = compiled.memory_analysis()
    total = (
        found.argument_size_in_bytes
        + found.output_size_in_bytes
        - found.alias_size_in_bytes
        + found.temp_size_in_bytes
        + found.generated_code_size_in_bytes
    )
    instructions = hlo.instructions(compiled.as_text())
    costs = compiled.cost_analysis() or {}
    largest = list(hlo.contributors(instructions))[:CONTRIBUTORS]
    return Report(
        memory={
            **sizes,
            "temporaries": found.temp_size_in_bytes,
            "code": found.generated_code_size_in_bytes,
        }
        | _against(total, topology.hbm_bytes),
        fits=None if topology.hbm_bytes is None else total <= topology.hbm_bytes,
        flops=costs.get("flops"),
        bytes_accessed=costs.get("bytes accessed"),
        collectives=hlo.collectives(instructions),
        cycles=hlo.cycles(instructions) or None,
        contributors=[
            {"module": module, "pass": pass_, "cycles": cycles, "bytes": written}
            for (module, pass_), cycles, written in largest
        ],
        seconds=seconds,
        **common,
    )


def suggestions(config: ConfigDict, topology: Topology) -> Iterator[tuple[str, ConfigDict]]:
    """Settings that need less memory, the cheapest first: (what changes, configuration).

    Rematerialisation costs a part of the speed, a smaller share of the images per device more
    devices or steps.
    """
    levels = REMAT
    for level in levels[levels.index(config.model.remat) + 1 :]:
        config = config.copy_and_resolve_references()
        config.model.remat = level
        yield f"--config.model.remat={level}", config
    remat = f"--config.model.remat={config.model.remat}"
    devices = len(topology.devices)
    space = config.mesh.space * 2
    while devices % space == 0 and config.data.crop_size[0] % (32 * space) == 0:
        data = devices // space
        if config.batch_size % (data * config.optimizer.accumulate) == 0:
            other = config.copy_and_resolve_references()
            other.mesh.data, other.mesh.space = -1, space
            yield f"{remat} --config.mesh.space={space}", other
        space *= 2
    data, _ = sharding.mesh_shape(config.mesh.data, config.mesh.space, devices)
    parts = config.optimizer.accumulate * 2
    while config.batch_size % (data * parts) == 0:
        other = config.copy_and_resolve_references()
        other.optimizer.accumulate = parts
        yield f"{remat} --config.optimizer.accumulate={parts}", other
        parts *= 2
    batch = config.batch_size
    while batch % 2 == 0 and (batch := batch // 2) % data == 0:
        other = config.copy_and_resolve_references()
        other.batch_size, other.optimizer.accumulate = batch, 1
        yield f"{remat} --config.batch_size={batch}", other


def suggest(
    config: ConfigDict,
    topology: Topology,
    *,
    num_classes: int,
    tell: Callable[[str], None] = lambda text: None,
) -> tuple[str, Report] | None:
    """The first of `suggestions` that fits, found by compiling them one after the other."""
    for text, other in suggestions(config, topology):
        tell(f"trying {text}")
        report = inspect(other, topology, num_classes=num_classes)
        if report.fits:
            return text, report
    return None


def table(report: Report) -> str:
    """The report as text for people."""
    memory = report.memory
    lines = [
        f"{report.program} on {report.topology}: {report.devices} device(s),"
        f" compiled in {report.seconds:.0f} s",
        "  " + " ".join(f"{key}={value}" for key, value in report.setting.items()),
        "  memory per device",
    ]
    for name, size in memory.items():
        if name not in ("total", "limit", "free") and size:
            lines.append(f"    {name:<12} {_mega(size):>10}")
    lines.append(f"    {'total':<12} {_mega(memory['total']):>10}")
    if report.fits is None:
        lines.append("    (how much there is, this device does not say)")
    else:
        verdict = "fits" if report.fits else "DOES NOT FIT"
        rest = f"{_mega(abs(memory['free']))} {'free' if report.fits else 'too much'}"
        lines.append(f"    {verdict}: {_mega(memory['limit'])} may be used, {rest}")
    if report.flops is not None:
        lines.append(f"  work: {report.flops / 1e12:.3f} TFLOP per device and run")
    if report.bytes_accessed is not None:
        lines.append(f"  memory traffic: {report.bytes_accessed / 1e9:.1f} GB per device and run")
    if report.cycles:
        lines.append(f"  estimate: {report.cycles / 1e6:.1f} M cycles per run (not a time)")
    for kind, entry in report.collectives.items():
        share = ""
        if report.cycles:
            # TPU's compiler writes down cycles for some kinds only.
            known = f"{entry['cycles'] / report.cycles:.1%} of the cycles"
            share = f", {known if entry['cycles'] else 'not in the estimate'}"
        lines.append(f"  {kind}: {entry['count']} with {_mega(entry['bytes'])}{share}")
    if report.contributors:
        lines.append("  largest contributors")
    for part in report.contributors:
        share = f"{part['cycles'] / report.cycles:6.1%}  " if report.cycles else ""
        written = f"{_mega(part['bytes'])} written"
        lines.append(f"    {share}{part['module']:<28} {part['pass']:<9} {written:>20}")
    return "\n".join(lines)


def _mega(size: float) -> str:
    return f"{size / 1e6:,.0f} MB"


def _against(total: int, limit: int | None) -> dict[str, int | None]:
    return {"total": total, "limit": limit, "free": None if limit is None else limit - total}


def _used_bytes(message: str, given: int) -> int | None:
    """What a program would use, by the compiler's complaint; None if it complains otherwise.

    Args:
      message: of the error.
      given: bytes of what the program is given, which some messages leave out.
    """
    total = re.search(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", message)
    temporaries = re.search(r"required for HLO temporaries \(([\d.]+)([KMGT]?)\)", message)
    found = total or temporaries
    if found is None:
        return None
    size = int(float(found[1]) * 1024 ** " KMGT".index(found[2] or " "))
    return size if total else size + given


def _setting(config: ConfigDict, mesh: Mesh, scan: str) -> dict[str, Any]:
    return {
        "variant": config.variant,
        "head": config.head,
        "batch_size": config.batch_size,
        "accumulate": config.optimizer.accumulate,
        "crop_size": list(config.data.crop_size),
        "dtype": config.model.dtype,
        "remat": config.model.remat,
        "scan": scan,
        "data": mesh.shape["data"],
        "space": mesh.shape["space"],
    }


def _versions() -> dict[str, str]:
    versions = {"hrnet_jax": __version__}
    for package in ("jax", "jaxlib", "libtpu"):
        if importlib.util.find_spec(package) is not None:
            versions[package] = importlib.metadata.version(package)
    return versions


def _lower(config: ConfigDict, mesh: Mesh, program: str, num_classes: int):
    """The program before compilation, and the bytes of what it is given per device."""
    model = build.make_model(config, num_classes, _platform(mesh))
    schedule, optimizer = build.make_optimizer(config, max(1000, config.num_steps), 100)
    state = jax.eval_shape(
        lambda: create_state(model, optimizer, seed=config.seed, ema=config.optimizer.ema_decay > 0)
    )
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.replicated(mesh)), state
    )
    if program == "train":
        lowered = build.lower_step(config, model, optimizer, schedule, mesh, state)
        batch_bytes = config.batch_size * _image_bytes(config) / mesh.size
        sizes = {
            "parameters": _bytes(state.params),
            "statistics": _bytes(state.batch_stats),
            "optimizer": _bytes(state.opt_state),
            "average": _bytes(state.ema),
            "batch": math.ceil(batch_bytes),
        }
        return lowered, sizes, model.policy.scan
    batch_size = -(-config.eval.batch_size // mesh.shape["data"]) * mesh.shape["data"]
    size = tuple(config.data.crop_size)
    batch = sharding.abstract_batch(
        {
            "image": ((batch_size, *size, 3), jnp.uint8),
            "label": ((batch_size, *size), jnp.uint8),
        },
        mesh,
    )
    jitted = jax.jit(
        make_evaluation_step(model),
        out_shardings=sharding.replicated(mesh),
        compiler_options=sharding.compiler_options(_platform(mesh)),
    )
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    sizes = {
        "parameters": _bytes(state.params),
        "statistics": _bytes(state.batch_stats),
        "batch": math.ceil(batch_size * _image_bytes(config) / mesh.size),
    }
    return jitted.lower(variables, batch), sizes, model.policy.scan


def make_evaluation_step(model: Any) -> Callable[[Any, dict[str, jax.Array]], jax.Array]:
    """(variables, batch) -> confusion matrices [N, C, C], as `segmentation.evaluate` computes them
    in several programs."""

    def evaluation_step(variables, batch):
        images = normalize.normalize(batch["image"], model.policy.dtype)
        logits = model.apply(variables, images, train=False)["logits"]
        size = batch["label"].shape[1:3]
        predictions = multi_scale.labels_of(resize(logits, size, align_corners=model.align_corners))
        return metrics.confusion_matrices(batch["label"], predictions, model.num_classes)

    return evaluation_step


def _image_bytes(config: ConfigDict) -> int:
    shape, kind = task_of(config.head).label_shape(config)
    return math.prod(config.data.crop_size) * 3 + math.prod(shape) * np.dtype(kind).itemsize


def _bytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _platform(mesh: Mesh) -> str:
    return mesh.devices.flat[0].platform
