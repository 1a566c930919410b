"""Runs every benchmark and prints one table of ratios: what `make bench` calls.

    python benchmarks/run.py [--output=benchmarks/results.json] [--peer_python=PYTHON]

Each benchmark compares with a named peer in one run, in turns. Absolute times mean little on
another machine, ratios mean more; the table therefore states the kind of machine and the versions.
"""

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from absl import app, flags

BENCHMARKS_WITH_TORCH = ("bench_input.py", "bench_model.py")
BENCHMARKS_ALONE = ("bench_space.py",)
PACKAGES = ("jax", "jaxlib", "flax", "tensorflow-cpu")
HERE = Path(__file__).parent

_OUTPUT = flags.DEFINE_string("output", str(HERE / "results.json"), "JSON file for the figures.")
_PEER = flags.DEFINE_string("peer_python", sys.executable, "Interpreter with torch and OpenCV.")


def describe_machine() -> dict:
    """Processor, usable cores and the versions of what is measured."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        processor = models[0].partition(":")[2].strip() if models else processor
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    machine, figures = describe_machine(), []
    with tempfile.TemporaryDirectory() as folder:
        for name in BENCHMARKS_WITH_TORCH + BENCHMARKS_ALONE:
            output = Path(folder, "figures.json")
            command = [sys.executable, str(HERE / name), f"--output={output}"]
            if name in BENCHMARKS_WITH_TORCH:
                command.append(f"--peer_python={_PEER.value}")
            subprocess.run(command, check=True)
            result = json.loads(output.read_text())
            figures += result if isinstance(result, list) else [result]
    Path(_OUTPUT.value).write_text(json.dumps({"machine": machine, "figures": figures}, indent=2))

    print("\n" + ", ".join(f"{name} {value}" for name, value in machine.items()) + "\n")
    width = max(len(f["benchmark"]) for f in figures)
    print(f"{'benchmark':{width}}  {'ours':>9}  {'peer':>9}  ratio  peer")
    for f in figures:
        ours, peer = (statistics.median(f[side]) for side in ("ours", "peer"))
        print(
            f"{f['benchmark']:{width}}  {ours:9.3f}  {peer:9.3f}  {f['ratio']:5.2f}"
            f"  {f['peer_name']}"
        )
    print(
        f"\nSeconds per run, a ratio below 1 is faster; rates for the input pipeline, above 1 is "
        f"faster; megabytes where the name says so.\nEvery figure is in {_OUTPUT.value}."
    )


if __name__ == "__main__":
    app.run(main)
