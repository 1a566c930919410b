"""What a run logs about itself before its first step: configuration, devices, data, parameters."""

import logging
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

import hrnet_jax
from hrnet_jax.data.sources.source import Source

logger = logging.getLogger(__name__)

# The backbone's submodules in the order of the forward pass; the tree of parameters is sorted.
BACKBONE_PARTS = (
    "stem", "layer1", "transition1", "stage2", "transition2", "stage3", "transition3", "stage4",
)  # fmt: skip


def log_setting(
    config: ConfigDict,
    mesh: Mesh,
    train_source: Source,
    eval_source: Source | None,
    num_steps: int,
) -> None:
    """Logs the configuration, the devices, the split of the batch and the size of the data."""
    logger.info("config\n%s", config_table(config.to_dict()))
    devices = mesh.devices.flat
    logger.info(
        "hrnet_jax %s on %d x %s, mesh data=%d space=%d, %d host(s)",
        hrnet_jax.__version__,
        mesh.size,
        devices[0].device_kind,
        mesh.shape["data"],
        mesh.shape["space"],
        jax.process_count(),
    )
    parts = config.optimizer.gradient_accumulation
    logger.info(
        "batch of %d images a step: %d device(s) x %d image(s)%s, crops of %dx%d",
        config.batch_size,
        mesh.shape["data"],
        config.batch_size // mesh.shape["data"] // parts,
        f" x {parts} parts" if parts > 1 else "",
        *config.data.crop_size,
    )
    logger.info(
        "%s: %d images to train on, %s to evaluate on; %d steps, %.1f epochs",
        train_source.name,
        len(train_source),
        "none" if eval_source is None else config.eval.num_images or len(eval_source),
        num_steps,
        num_steps * config.batch_size / len(train_source),
    )


def config_table(config: dict) -> str:
    """One line for the single values and one for each section."""
    single = {key: value for key, value in config.items() if not isinstance(value, dict)}
    sections = {"": single} | {k: v for k, v in config.items() if isinstance(v, dict)}
    return "\n".join(
        f"  {name + ':':<11} " + " ".join(f"{k}={v!r}" for k, v in sorted(values.items()))
        if name
        else "  " + " ".join(f"{k}={v!r}" for k, v in sorted(values.items()))
        for name, values in sections.items()
    )


def parameter_table(params: Any) -> str:
    """Arrays and parameters of each part of the network, as text."""
    rows = []
    for top, tree in params.items():
        parts = {name: tree[name] for name in BACKBONE_PARTS} if top == "backbone" else {"": tree}
        for name, part in parts.items():
            leaves = jax.tree.leaves(part)
            rows.append((f"{top}/{name}".rstrip("/"), len(leaves), sum(x.size for x in leaves)))
    rows.append(("total", sum(r[1] for r in rows), sum(r[2] for r in rows)))
    width = max(len(row[0]) for row in rows)
    lines = [f"{'part':<{width}} {'arrays':>7} {'parameters':>12}"]
    return "\n".join(lines + [f"{name:<{width}} {n:>7} {size:>12,}" for name, n, size in rows])
