"""Draws the training curves of one or several runs into a picture.

python benchmarks/plot_runs.py --output=curves.png NAME=WORKDIR [NAME=WORKDIR+WORKDIR ...]

Takes log.jsonl of each folder: the training loss and the validation mIoU over the epochs. Folders
joined by + are one run, continued with other settings.
"""

import argparse
from pathlib import Path

import matplotlib as mpl
import numpy as np

from hrnet_jax.evaluation import report

mpl.use("Agg")

import matplotlib.pyplot as plt

Curve = tuple[np.ndarray, np.ndarray]  # epochs, values
PANELS = (("train/loss", 1, "training loss"), ("eval/miou", 100, "validation mIoU, %"))


def read_run(folders: list[str]) -> dict[str, Curve]:
    """The curves of `PANELS` over epochs, of folders one after the other.

    Raises:
      FileNotFoundError: if a folder holds no log of a training.
    """
    parts: dict[str, list[Curve]] = {name: [] for name, _, _ in PANELS}
    start = 0.0
    for folder in folders:
        log = report.read_log(Path(folder) / "log.jsonl")
        if "train/epoch" not in log:
            raise FileNotFoundError(f"{folder} holds no log.jsonl of a training")
        steps, epochs = np.array(log["train/epoch"]).T
        for name in parts:
            if name in log:
                at, values = np.array(log[name]).T
                parts[name].append((start + np.interp(at, steps, epochs), values))
        start += epochs[-1]
    return {
        name: tuple(np.concatenate(axis) for axis in zip(*curves, strict=True))
        for name, curves in parts.items()
        if curves
    }


def draw(runs: dict[str, dict[str, Curve]], output: str | Path) -> None:
    """Writes the picture."""
    figure, panels = plt.subplots(1, len(PANELS), figsize=(11, 4), layout="constrained")
    for panel, (name, factor, title) in zip(panels, PANELS, strict=True):
        for label, curves in runs.items():
            if name in curves:
                epochs, values = curves[name]
                marker = "o" if len(epochs) < 60 else ""
                panel.plot(epochs, factor * values, marker=marker, markersize=3, label=label)
        panel.set(title=title, xlabel="epoch")
        panel.grid(alpha=0.3)
        if panel.lines:
            panel.legend()
    figure.savefig(output, dpi=110)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="NAME=WORKDIR")
    parser.add_argument("--output", required=True, help="the picture to write")
    options = parser.parse_args(arguments)
    runs = {}
    for run in options.runs:
        name, equals, folders = run.partition("=")
        if not equals:
            parser.error(f"{run!r}: expected NAME=WORKDIR")
        try:
            runs[name] = read_run(folders.split("+"))
        except FileNotFoundError as error:
            parser.error(str(error))
    draw(runs, options.output)
    print(f"Wrote {options.output}")


if __name__ == "__main__":
    main()
