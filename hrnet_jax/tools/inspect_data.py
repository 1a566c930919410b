"""Looks at a folder of images and labels and writes the class file and the commands to train on it.

python -m hrnet_jax.tools.inspect_data ROOT [--output=DIR] [--sample=500]

Finds images and labels, pairs them, counts ids or colors, recognizes public datasets, and says what
it could not decide. Writes DIR/classes.json (for folders of your own) and DIR/samples.png, and
prints the next commands. Nothing is written into ROOT.
"""

import json
import shlex
from collections.abc import Iterable

import numpy as np
from absl import flags
from etils import epath

from hrnet_jax.data import open_source
from hrnet_jax.data.inspection.look import Look, Pair, look
from hrnet_jax.data.sources.source import Source, spread_indices
from hrnet_jax.inference import visualize
from hrnet_jax.runtime import storage
from hrnet_jax.runtime.progress import progress_bar
from hrnet_jax.tools import outputs, script

_OUTPUT = flags.DEFINE_string(
    "output", "", "Folder for the class file and the samples; default: inspect_NAME of the folder."
)
_SAMPLE = flags.DEFINE_integer(
    "sample", 500, "Pairs of image and label that are read, spread over all; 0: all.", 0
)
# Recipes of public datasets.
_RECIPES = {
    "ade20k": "ade20k.py", "bdd100k": "bdd100k.py", "camvid": "camvid.py",
    "cityscapes": "cityscapes.py", "mapillary_vistas_v1.2": "mapillary.py",
    "mapillary_vistas_v2.0": "mapillary.py:version=2.0",
}  # fmt: skip
_SHOWN = 6


def _progress(pairs: list[Pair]) -> Iterable[Pair]:
    with progress_bar(total=len(pairs), unit="label") as bar:
        for pair in pairs:
            yield pair
            bar.update()


def _lines(root: epath.Path, found: Look) -> Iterable[str]:
    """The report."""
    counts = found.values
    splits = ", ".join(f"{count} in {split}" for split, count in found.splits.items())
    yield f"{root}: images with labels: {splits}; {found.counted} of them were read"
    if found.dataset != "folder":
        yield f"this is the public dataset {found.dataset!r}"
    yield "images: " + _top(counts.image_kinds) + "; sizes (height, width): " + _top(counts.sizes)
    what = "colors" if counts.colors else "ids"
    found_values = counts.colors or counts.ids
    yield f"labels: {_top(counts.label_kinds)}; {len(found_values)} different {what}"
    total = found_values.total()
    shown = sorted(found_values) if what == "ids" else [c for c, _ in found_values.most_common()]
    for value in shown[:40]:
        fraction = found_values[value] / total
        line = f"  {value!s:>16}  {fraction:7.2%} of the pixels, in {counts.in_files[value]} labels"
        yield line + (f"  {found.names[value]}" if value in found.names else "")
    if len(shown) > 40:
        yield f"  ... and {len(shown) - 40} more"
    for problem in counts.problems[:10]:
        yield f"problem: {problem}"
    if len(counts.problems) > 10:
        yield f"problem: ... and {len(counts.problems) - 10} more"
    for note in found.notes:
        yield f"note: {note}"


def _top(counter) -> str:
    parts = [f"{count} {value}" for value, count in counter.most_common(4)]
    return ", ".join(parts) + (f" and {len(counter) - 4} more" if len(counter) > 4 else "")


def _config(root: epath.Path, found: Look, class_file: epath.Path) -> list[str]:
    """The options of a training on this folder."""
    data = [f"--config.data.root={shlex.quote(str(storage.absolute(root)))}"]
    if found.dataset in _RECIPES:
        return [f"--config=configs/{_RECIPES[found.dataset]}", *data]
    height, width = max(found.values.sizes, key=lambda size: found.values.sizes[size])
    crop = tuple(
        max(32, min(most, side // 32 * 32)) for most, side in ((512, height), (1024, width))
    )
    data = [f"--config.data.name={found.dataset}", *data]
    if found.class_file:
        data.append(f"--config.data.class_file={shlex.quote(str(storage.absolute(class_file)))}")
    train = _train_split(found)
    if train != "train":
        data.append(f"--config.data.train_split={train}")
    has_val = "val" in found.splits or _divides(found)
    if train == "val" or not has_val:
        data.append("--config.data.eval_split=''")
    return [
        "--config=configs/cityscapes.py:variant=w18_small_v1",
        *data,
        f"--config.data.crop_size='({crop[0]},{crop[1]})'",
        "--config.loss.class_weights=None",
    ]


def _divides(found: Look) -> bool:
    """Whether the class file divides the files into train and val."""
    return "split" in found.class_file.get("files", {})


def _train_split(found: Look) -> str:
    """The split to train on: "train", or the first one with labels."""
    if "train" in found.splits or _divides(found):
        return "train"
    return next(iter(found.splits))


def _draw(source: Source) -> np.ndarray:
    panels = [
        visualize.panel(*source.read(k), None, source.classes, title=source.ids[k], width=360)
        for k in spread_indices(len(source), _SHOWN)
    ]
    return visualize.grid(panels, columns=2)


def run(arguments: list[str]) -> int:
    if len(arguments) != 1:
        raise ValueError(f"name one folder: hrnet inspect_data ROOT, got {arguments}")
    root = storage.path(arguments[0])
    output = outputs.folder(_OUTPUT.value or f"inspect_{storage.absolute(root).name}")
    found = look(root, _SAMPLE.value, _progress)
    print("\n".join(_lines(root, found)))
    class_file, samples = output / "classes.json", output / "samples.png"
    if found.class_file:
        storage.write_text(class_file, json.dumps(found.class_file, indent=1, ensure_ascii=False))
    # Opened as training does it, so that what is printed below is known to work.
    source = open_source(
        found.dataset,
        root=root,
        split=_train_split(found),
        class_file=str(class_file) if found.class_file else "",
    )
    visualize.save(samples, _draw(source))
    written = [class_file, samples] if found.class_file else [samples]
    print(f"wrote {', '.join(map(str, written))}: look at them, then\n")
    print("\n\n".join(_commands(root, found, class_file, output)))
    return 0


def _commands(
    root: epath.Path, found: Look, class_file: epath.Path, output: epath.Path
) -> Iterable[str]:
    """The next commands."""
    if found.dataset != "folder" and "train" not in found.splits:
        yield (
            f"hrnet evaluate --checkpoint=RUN --data_name={found.dataset} \\\n"
            f"    --data_root={shlex.quote(str(storage.absolute(root)))} --output=OUT"
        )
        return
    options = " \\\n    ".join(_config(root, found, class_file))
    start = "" if found.dataset in _RECIPES else " --config.init_from=camvid_w18_small_v1"
    yield f"hrnet show_batch {options} \\\n    --output={shlex.quote(str(output / 'batch.png'))}"
    yield f"hrnet train {options} \\\n   {start} --workdir=runs/{shlex.quote(output.name)}"


if __name__ == "__main__":
    script.run(run, takes_arguments=True)
