"""Compiles a run's programs for machines that need not be present, and says whether they fit.

XLA's compilers for TPU and GPU run on any Linux machine. From abstract shapes, without weights or
data, they produce the program that the machine would run, with its exact use of memory; for TPU
with an estimate of its cycles. The estimates compare programs with each other; they are no times.
"""

import contextlib
import dataclasses
import importlib.metadata
import math
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from hrnet_jax import __version__
from hrnet_jax.data.sources.class_file import read_names
from hrnet_jax.evaluation import metrics
from hrnet_jax.inference import multi_scale
from hrnet_jax.models import HRNetModel, normalize
from hrnet_jax.models.layers import REMAT
from hrnet_jax.models.resize import resize
from hrnet_jax.preflight import hlo
from hrnet_jax.preflight.report import Report
from hrnet_jax.preflight.topology import Topology
from hrnet_jax.runtime import sharding, storage
from hrnet_jax.train import build
from hrnet_jax.train.config import check_config, check_divisible, class_weights_rule
from hrnet_jax.train.step import create_state
from hrnet_jax.train.tasks import task_of

PROGRAMS = ("train", "evaluate")
CONTRIBUTORS = 12
# Classes of the datasets that have the same classes everywhere.
NUM_CLASSES = {
    "cityscapes": 19,
    "cityscapes_coarse": 19,
    "tfds_cityscapes": 19,
    "fake": 19,
    "camvid": 11,
    "tfds_imagenet": 1000,
}


def num_classes_of(config: ConfigDict) -> int:
    """The number of classes of the configuration's dataset.

    Raises:
      ValueError: if only the data could tell.
    """
    if config.data.root and storage.path(config.data.root).is_dir():
        source = task_of(config.head).open(config, config.data.train_split)
        return source.classes.num_classes
    if config.data.class_file:
        return len(read_names(config.data.class_file))
    if config.data.name not in NUM_CLASSES:
        raise ValueError(
            f"the number of classes of config.data.name={config.data.name!r} depends on its files:"
            " give --config.data.root, --config.data.class_file or --num_classes"
        )
    return NUM_CLASSES[config.data.name]


def inspect(
    config: ConfigDict, topology: Topology, *, program: str = "train", num_classes: int
) -> Report:
    """Compiles one program of a run and reports what it needs.

    Args:
      config: as `hrnet_jax.configs.common` describes it; its mesh is one of the topology's devices.
      topology: from `open_topology`.
      program: "train", or "evaluate": prediction and counting of `eval.batch_size` images of the
        size `data.crop_size`.
      num_classes: of the dataset.

    Raises:
      ValueError: before compiling, for a configuration that is invalid or does not fit the mesh.
    """
    if program not in PROGRAMS:
        raise ValueError(f"unknown program {program!r}; known: {PROGRAMS}")
    check_config(config)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.space, topology.devices)
    check_divisible(config, mesh)
    if class_weights_rule(config):
        # Their values are known only with the labels, and do not change the program.
        config = build.with_class_weights(config, (1.0,) * num_classes)
    lowered, sizes, scan = _lower(config, mesh, program, num_classes)
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        used = _used_bytes(str(error), sum(sizes.values()))
        if used is None:
            raise
        sizes |= {"temporaries": used - sum(sizes.values()), "code": 0}
        needs = {"flops": None, "bytes_accessed": None, "collectives": {}}
        needs |= {"cycles": None, "contributors": []}
    else:
        found = compiled.memory_analysis()
        used = _total_bytes(found)
        sizes["temporaries"] = found.temp_size_in_bytes
        sizes["code"] = found.generated_code_size_in_bytes
        needs = _needs(compiled, topology.platform)
    limit = topology.memory_bytes
    free = None if limit is None else limit - used
    return Report(
        program=program,
        topology=topology.name,
        devices=mesh.size,
        setting=_setting(config, mesh, scan),
        memory={**sizes, "total": used, "limit": limit, "free": free},
        fits=None if free is None else free >= 0,
        seconds=time.perf_counter() - start,
        versions=_versions(),
        **needs,
    )


def _needs(compiled: Any, platform: str) -> dict[str, Any]:
    """What a compiled program does, as fields of `Report`."""
    program = hlo.instructions(compiled.as_text())
    costs = compiled.cost_analysis() or {}
    parts = list(hlo.contributors(program))
    needs = {
        "flops": costs.get("flops"),
        "bytes_accessed": costs.get("bytes accessed"),
        "collectives": hlo.collectives(program),
        "cycles": hlo.cycles(program) or None,
        "contributors": [dataclasses.asdict(part) for part in parts[:CONTRIBUTORS]],
    }
    for part in needs["contributors"]:
        part["pass"] = part.pop("pass_")
    if platform == "gpu":
        needs["written"] = sum(part.bytes for part in parts)
        needs["read"] = sum(part.read for part in parts)
        needs["kernels"] = sum(part.kernels for part in parts)
    return needs


def _total_bytes(memory: Any) -> int:
    """What a program uses of a device, by the compiler's `memory_analysis`."""
    return (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )


def suggestions(config: ConfigDict, topology: Topology) -> Iterator[tuple[str, ConfigDict]]:
    """Settings that need less memory, the cheapest first: (flags, configuration).

    Rematerialization costs speed; fewer images per device cost more devices or steps.
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
        if config.batch_size % (data * config.optimizer.gradient_accumulation) == 0:
            other = config.copy_and_resolve_references()
            other.mesh.data, other.mesh.space = -1, space
            yield f"{remat} --config.mesh.space={space}", other
        space *= 2
    data, _ = sharding.mesh_shape(config.mesh.data, config.mesh.space, devices)
    parts = config.optimizer.gradient_accumulation * 2
    while config.batch_size % (data * parts) == 0:
        other = config.copy_and_resolve_references()
        other.optimizer.gradient_accumulation = parts
        yield f"{remat} --config.optimizer.gradient_accumulation={parts}", other
        parts *= 2
    batch = config.batch_size
    while batch % 2 == 0 and (batch := batch // 2) % data == 0:
        other = config.copy_and_resolve_references()
        other.batch_size, other.optimizer.gradient_accumulation = batch, 1
        yield f"{remat} --config.batch_size={batch}", other


def suggest(
    config: ConfigDict,
    topology: Topology,
    *,
    num_classes: int,
    tell: Callable[[str], None] = lambda text: None,
) -> tuple[str, Report] | None:
    """The first of `suggestions` that fits. Compiles one after the other."""
    for text, other in suggestions(config, topology):
        tell(f"trying {text}")
        report = inspect(other, topology, num_classes=num_classes)
        if report.fits:
            return text, report
    return None


def _used_bytes(message: str, given: int) -> int | None:
    """What a program would use, by the compiler's error; None if the error is a different one.

    Args:
      message: of the error.
      given: bytes of the program's arguments, which some messages do not include.
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
        "gradient_accumulation": config.optimizer.gradient_accumulation,
        "crop_size": list(config.data.crop_size),
        "dtype": config.model.dtype,
        "remat": config.model.remat,
        "scan": scan,
        "data": mesh.shape["data"],
        "space": mesh.shape["space"],
    }


def _versions() -> dict[str, str]:
    versions = {"hrnet_jax": __version__}
    for package in ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def _lower(config: ConfigDict, mesh: Mesh, program: str, num_classes: int):
    """The program before compilation, the bytes of its arguments per device, and `scan`."""
    model = build.make_model(config, num_classes, _platform(mesh))
    schedule, optimizer = build.make_optimizer(config, max(1000, config.num_steps), 100)
    state = jax.eval_shape(
        lambda: create_state(model, optimizer, seed=config.seed, ema=config.optimizer.ema_decay > 0)
    )
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.replicated(mesh)), state
    )
    if program == "train":
        teacher = build.load_teacher(config, num_classes, None, _platform(mesh))
        lowered = build.lower_step(config, model, optimizer, schedule, mesh, state, teacher)
        batch_bytes = config.batch_size * _image_bytes(config) / mesh.size
        sizes = {
            "parameters": _bytes(state.params),
            "statistics": _bytes(state.batch_stats),
            "optimizer": _bytes(state.opt_state),
            "average": _bytes(state.ema),
            "batch": math.ceil(batch_bytes),
        }
        if teacher is not None:
            sizes["teacher"] = _bytes(teacher.variables)
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


def make_evaluation_step(model: HRNetModel) -> Callable[[Any, dict[str, jax.Array]], jax.Array]:
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
