"""Reports whether a training run fits a machine, before you rent the machine.

python -m hrnet_jax.tools.preflight --config=configs/cityscapes.py:variant=w48 --topology=v5e:16x16
    [--config.KEY=VALUE ...] [--program=train,evaluate] [--json] [--output=FILE.json] [--nosuggest]

Compiles the programs of the run for TPUs (v4, v5e, v5p, v6e: --topology=v5e:16x16) or GPUs (a100,
a100-40gb, a6000, b200, h100, h200, l4: --topology=h100:8, or h100:2x8 for 2 hosts of 8), which need
not be present, or for this machine's devices (--topology=local). Needs no data. Prints per device:
memory by kind, memory traffic, collectives and the largest parts of the network; for TPU also FLOPs
and the compiler's estimate of cycles, for GPU the number of kernels. If a program does not fit,
looks for the next setting that does.
Exit code 0: everything fits. 1: something does not fit. 2: an argument is wrong; the message says
which.
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator

# Without --topology=local no device of this machine is used.
if not any(argument.endswith("topology=local") for argument in sys.argv):
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # JAX would drop the compiler for GPUs where there is no driver.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
# Programs for other machines cannot be loaded from the cache.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "0"

from absl import flags

from hrnet_jax.preflight.compile import PROGRAMS, inspect, num_classes_of, suggest
from hrnet_jax.preflight.report import table
from hrnet_jax.preflight.topology import open_topology
from hrnet_jax.runtime import storage
from hrnet_jax.tools import config_flag, outputs, script

_CONFIG = config_flag.define()
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "Machine: v5e:16x16, h100:8, h100:2x8, local, ..."
)
_PROGRAM = flags.DEFINE_list("program", ["train"], f"Programs: {', '.join(PROGRAMS)}.")
_NUM_CLASSES = flags.DEFINE_integer("num_classes", 0, "Default: that of the dataset.", 0)
_JSON = flags.DEFINE_bool("json", False, "Print JSON instead of text.")
_OUTPUT = flags.DEFINE_string("output", "", "File to which the JSON report is also written.")
_SUGGEST = flags.DEFINE_bool("suggest", True, "If it does not fit, look for a setting that does.")
flags.mark_flags_as_required(["config", "topology"])


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(what: str) -> Iterator[None]:
    """Prints the elapsed time every 20 seconds, since the compiler prints nothing."""
    started, done = time.monotonic(), threading.Event()

    def tick() -> None:
        while not done.wait(20):
            say(f"{what}: {time.monotonic() - started:.0f} s so far; large networks take minutes")

    say(f"{what} ...")
    threading.Thread(target=tick, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def run() -> int:
    if _OUTPUT.value:
        outputs.file(_OUTPUT.value)  # an existing folder is refused before any work
    config = _CONFIG.value
    topology = open_topology(_TOPOLOGY.value)
    num_classes = _NUM_CLASSES.value or num_classes_of(config)
    reports, found = [], None
    for program in _PROGRAM.value:
        with progress(f"compiling {program} for {topology.name}"):
            report = inspect(config, topology, program=program, num_classes=num_classes)
        reports.append(report)
        if not _JSON.value:
            print(table(report), flush=True)
    fits = all(report.fits is not False for report in reports)
    if not fits and _SUGGEST.value:
        with progress("looking for a setting that fits"):
            found = suggest(config, topology, num_classes=num_classes, tell=say)
        if not _JSON.value:
            print(f"this fits: {found[0]}" if found else "no setting was found that fits")
            print(table(found[1]) if found else "", flush=True)
    result = {
        "reports": [report.to_json() for report in reports],
        "fits": fits,
        "suggestion": found and {"flags": found[0], "report": found[1].to_json()},
    }
    text = json.dumps(result, indent=1)
    if _JSON.value:
        print(text)
    if _OUTPUT.value:
        storage.write_text(_OUTPUT.value, text + "\n")
    return 0 if fits else 1


if __name__ == "__main__":
    script.run(run, parse=config_flag.parse)
