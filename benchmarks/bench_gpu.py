"""Training and inference on one GPU against the official architecture in PyTorch.

    python benchmarks/bench_gpu.py [--variants=w18,w48] [--works=train,inference,inference_large]
        [--peers=eager,compile] [--dtype=bfloat16] [--seconds=20] [--output=FILE.json] [--tiny]

Needs jax, flax, optax, etils and orbax, and PyTorch for the peers; no data library, since images
are drawn into memory. All sides of a row are processes on the same GPU that run in turns.
--tiny runs a small network on small images on any device, to try the benchmark itself.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).parent
PEERS = ("eager", "compile")
MIN_TURNS = 3
# A turn of a side takes at least about this long, so that starting and waiting weigh little.
TURN_SECONDS = 0.5


@dataclass(frozen=True)
class Work:
    """One row: what runs on how many images of which size."""

    kind: str  # train or inference
    batch: int
    height: int
    width: int


WORKS = {
    "train": Work("train", 4, 512, 1024),
    "inference": Work("inference", 1, 512, 1024),
    "inference_large": Work("inference", 1, 1024, 2048),
}
TINY = {name: Work(work.kind, 2, 64, 128) for name, work in WORKS.items()}


class Side:
    """A process that runs one network; see `gpu_child.answer`."""

    def __init__(self, process: subprocess.Popen):
        self._process = process
        self.about = self._read()
        self.seconds: list[float] = []  # per step, one value for each turn
        self.losses: list[float] = []
        self._repeats = 1

    def turn(self) -> None:
        """Runs for about TURN_SECONDS."""
        result = self._ask(self._repeats)
        self.seconds.append(result["seconds"])
        self.losses.append(result["loss"])
        self._repeats = max(1, round(TURN_SECONDS / result["seconds"]))

    def figures(self, batch: int) -> dict:
        """All figures of this side; ends the process."""
        seconds = statistics.median(self.seconds)
        return {
            **self.about,
            **self._ask(0),
            "images_per_second": batch / seconds,
            "seconds": self.seconds,
            "losses": self.losses,
        }

    def _ask(self, repeats: int) -> dict:
        self._process.stdin.write(f"{repeats}\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict:
        while line := self._process.stdout.readline():
            if line.startswith("{"):  # libraries print lines of their own
                return json.loads(line)
        raise RuntimeError(f"{' '.join(self._process.args)} ended early: see its messages above")


@contextlib.contextmanager
def started(script: str, arguments: Sequence[str]) -> Iterator[Side]:
    """The side of a script, ended on leaving."""
    environment = os.environ | {
        # Several processes have to fit on one GPU, and the peak has to be that of the program.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        "PYTHONPATH": os.pathsep.join(filter(None, (str(HERE.parent), os.getenv("PYTHONPATH")))),
    }
    command = [sys.executable, str(HERE / script), *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            yield Side(process)
        finally:
            process.kill()


def measure(
    variant: str, work: Work, peers: Sequence[str], dtype: str, seconds: float
) -> dict[str, object]:
    """One row of the table: the figures of all sides."""
    arguments = [variant, work.kind, *map(str, (work.batch, work.height, work.width)), dtype]
    with contextlib.ExitStack() as stack:
        sides = {"ours": stack.enter_context(started("gpu_jax.py", arguments))}
        for peer in peers:
            sides[peer] = stack.enter_context(started("gpu_torch.py", [*arguments, peer]))
        end, turns = time.monotonic() + seconds * len(sides), 0
        while turns < MIN_TURNS or time.monotonic() < end:
            for side in sides.values():
                side.turn()
            turns += 1
        figures = {name: side.figures(work.batch) for name, side in sides.items()}
    return {"variant": variant, **asdict(work), "dtype": dtype, "sides": figures}


def table(rows: Sequence[dict]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| network | work | side | images/s | ratio | peak GB | predicted GB | compiled in s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        title = f"{row['kind']} {row['batch']}x{row['height']}x{row['width']}"
        ours = row["sides"]["ours"]["images_per_second"]
        for side in row["sides"].values():
            cells = (
                row["variant"],
                title,
                side["name"],
                f"{side['images_per_second']:.1f}",
                f"{side['images_per_second'] / ours:.2f}",
                _gigabytes(side["peak_bytes"]),
                _gigabytes(side.get("predicted_bytes")),
                f"{side['compile_seconds']:.0f}",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _gigabytes(count: int | None) -> str:
    return "" if count is None else f"{count / 1e9:.2f}"


def has_gpu() -> bool:
    """Whether JAX sees a GPU. Asked in a process of its own, which gives its memory back."""
    code = "import jax; print(jax.default_backend())"
    output = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    return output.split()[-1] == "gpu"


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    names = lambda text: tuple(filter(None, text.split(",")))  # noqa: E731
    parser.add_argument("--variants", type=names, default=None, help="default: w18,w48")
    parser.add_argument("--works", type=names, default=tuple(WORKS), help=",".join(WORKS))
    parser.add_argument("--peers", type=names, default=PEERS, help="eager,compile or empty")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--seconds", type=float, default=20, help="of measuring, per side")
    parser.add_argument("--output", default="", help="JSON file for the figures")
    parser.add_argument("--tiny", action="store_true", help="small, on any device")
    options = parser.parse_args(argv)
    for given, known, what in ((options.works, WORKS, "works"), (options.peers, PEERS, "peers")):
        if unknown := sorted(set(given) - set(known)):
            parser.error(f"--{what}: unknown {unknown}; known: {list(known)}")
    if not options.tiny and not has_gpu():
        parser.error("JAX sees no GPU here; --tiny tries the benchmark on any device")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    rows = []
    for variant in options.variants or (("w18_small_v1",) if options.tiny else ("w18", "w48")):
        for name in options.works:
            work = (TINY if options.tiny else WORKS)[name]
            rows.append(measure(variant, work, options.peers, options.dtype, options.seconds))
            print(table(rows[-1:]), flush=True)
            if options.output:
                Path(options.output).write_text(json.dumps(rows, indent=2))
    print(f"\n{rows[0]['sides']['ours']['device']}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
