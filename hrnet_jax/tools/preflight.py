"""Says whether a training fits a machine, before the machine is paid for.

python -m hrnet_jax.tools.preflight --config=configs/cityscapes.py:variant=w48 --topology=v5e:16x16
    [--config.KEY=VALUE ...] [--program=train,evaluate] [--json] [--output=FILE.json] [--nosuggest]

Compiles the real programs for TPUs (v4, v5e, v5p, v6e), which need not be there, or with
--topology=local for this machine's devices, GPUs included; needs no data. Prints per device what
memory they take, FLOPs, memory traffic, collectives, the compiler's estimate of cycles and the
largest parts of the network; where it does not fit, looks for the next setting that does.
Exit code 0: all fit. 1: something does not. 2: an argument is at fault; the message names it.
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator

# The described machine is compiled for; this one's processor does the little that is computed.
if not any(argument.endswith("topology=local") for argument in sys.argv):
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Programs for other machines cannot be loaded again.
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "0"

from absl import flags

from hrnet_jax.preflight import compile as preflight
from hrnet_jax.runtime import storage
from hrnet_jax.tools import config_flag, script

_CONFIG = config_flag.define()
_TOPOLOGY = flags.DEFINE_string("topology", None, "E.g. v5e:16x16, v4:2x2x4, or local.")
_PROGRAM = flags.DEFINE_list("program", ["train"], f"Of {', '.join(preflight.PROGRAMS)}.")
_NUM_CLASSES = flags.DEFINE_integer("num_classes", 0, "Default: the data set's.", 0)
_JSON = flags.DEFINE_bool("json", False, "Print JSON instead of text.")
_OUTPUT = flags.DEFINE_string("output", "", "Write the JSON to this file, too.")
_SUGGEST = flags.DEFINE_bool("suggest", True, "Look for a setting that fits where this does not.")
flags.mark_flags_as_required(["config", "topology"])


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(what: str) -> Iterator[None]:
    """Says every 20 seconds that it is still at work: the compiler does not."""
    started, done = time.monotonic(), threading.Event()

    def tick() -> None:
        while not done.wait(20):
            say(f"{what}: {time.monotonic() - started:.0f} s so far; large ones take minutes")

    say(f"{what} ...")
    threading.Thread(target=tick, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def run() -> int:
    config = _CONFIG.value
    topology = preflight.open_topology(_TOPOLOGY.value)
    num_classes = _NUM_CLASSES.value or preflight.num_classes_of(config)
    reports, found = [], None
    for program in _PROGRAM.value:
        with progress(f"compiling {program} for {topology.name}"):
            report = preflight.inspect(config, topology, program=program, num_classes=num_classes)
        reports.append(report)
        if not _JSON.value:
            print(preflight.table(report), flush=True)
    fits = all(report.fits is not False for report in reports)
    if not fits and _SUGGEST.value:
        with progress("looking for a setting that fits"):
            found = preflight.suggest(config, topology, num_classes=num_classes, tell=say)
        if not _JSON.value:
            print(f"this fits: {found[0]}" if found else "no setting was found that fits")
            print(preflight.table(found[1]) if found else "", flush=True)
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
