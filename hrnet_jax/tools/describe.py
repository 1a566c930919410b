"""Prints parameters, multiply-accumulates and memory of a network and its parts.

python -m hrnet_jax.tools.describe --config=configs/cityscapes.py:variant=w48 [--size=512x1024]
python -m hrnet_jax.tools.describe --checkpoint=RUN [--size=512x1024] [--json]

Numbers are exact and for one image. They are derived from shapes, without data and without running
the network. MACs: one for each weight of a convolution or linear layer and each position of its
output, and OCR's matrix products. Outputs: the number of values that these layers compute. Kept:
the feature maps that training keeps for the backward pass, as JAX passes them to the compiler.
`hrnet preflight` reports the memory of a whole training step on a machine.
"""

import json
from typing import Any

from absl import flags
from rich.console import Console
from rich.table import Table

from hrnet_jax.checkpoints.load import load_checkpoint
from hrnet_jax.models import HRNetModel, cost, create_model
from hrnet_jax.preflight.compile import num_classes_of
from hrnet_jax.tools import config_flag, script, weights_flags
from hrnet_jax.train.build import make_model

_CONFIG = config_flag.define()
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", "", "A run, one of its steps, a weights file, or the name of shipped weights."
)
_SIZE = flags.DEFINE_string("size", "512x1024", "HEIGHTxWIDTH of the image.")
_NUM_CLASSES = flags.DEFINE_integer(
    "num_classes", 0, "With --config; default: those of the dataset.", 0
)
_JSON = flags.DEFINE_bool("json", False, "Print JSON instead of a table.")
flags.adopt_module_key_flags(weights_flags)  # shown by --help

_MEBI = 2**20


def report(model: HRNetModel, size: tuple[int, int]) -> dict[str, Any]:
    """What the tool prints: the costs of the whole network and of its parts, as plain JSON."""
    kept = cost.kept_bytes(model, size)
    parts = {
        name: {
            "parameters": part.parameters,
            "macs": part.macs,
            "outputs": part.outputs,
            "kept_bytes": kept[name],
        }
        for name, part in cost.part_costs(model, size).items()
    }
    keys = ("parameters", "macs", "outputs", "kept_bytes")
    return {
        "variant": model.variant.name,
        "head": model.head,
        "num_classes": model.num_classes,
        "size": list(size),
        "dtype": str(model.policy.dtype),
        "remat": model.policy.remat,
        "total": {key: sum(part[key] for part in parts.values()) for key in keys},
        "parts": parts,
    }


def table(found: dict[str, Any]) -> Table:
    """A `report` for the terminal."""
    height, width = found["size"]
    result = Table(
        title=f"HRNet {found['variant']}, head {found['head']}, {found['num_classes']} classes, one"
        f" image of {height}x{width}; kept in {found['dtype']} with remat={found['remat']}"
    )
    result.add_column("part")
    for name in ("parameters", "GMACs", "outputs, M", "kept, MiB"):
        result.add_column(name, justify="right")
    for name, part in (*found["parts"].items(), ("total", found["total"])):
        if name == "total":
            result.add_section()
        result.add_row(
            name,
            f"{part['parameters']:,}",
            f"{part['macs'] / 1e9:,.2f}",
            f"{part['outputs'] / 1e6:,.1f}",
            f"{part['kept_bytes'] / _MEBI:,.1f}",
        )
    return result


def chosen_model() -> HRNetModel:
    """The network that the flags name.

    Raises:
        ValueError: if there is none, or --config and --checkpoint name two.
    """
    if bool(_CONFIG.value) == bool(_CHECKPOINT.value):
        raise ValueError("give either --config=FILE.py or --checkpoint=RUN")
    if _CONFIG.value:
        return make_model(_CONFIG.value, _NUM_CLASSES.value or num_classes_of(_CONFIG.value))
    if _NUM_CLASSES.value:
        raise ValueError("--num_classes is for --config; a checkpoint has its classes")
    checkpoint = load_checkpoint(_CHECKPOINT.value, **weights_flags.options())
    return create_model(**checkpoint.metadata["model"])


def run() -> int:
    size = script.parse_size("size", _SIZE.value)
    if size is None:
        raise ValueError("--size: need HEIGHTxWIDTH, e.g. 512x1024")
    found = report(chosen_model(), size)
    if _JSON.value:
        print(json.dumps(found, indent=1))
    else:
        Console().print(table(found))
    return 0


if __name__ == "__main__":
    script.run(run, parse=config_flag.parse)
