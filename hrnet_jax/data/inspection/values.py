"""What label files hold: ids or colors, their counts, modes and sizes; and classes for them."""

import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from hrnet_jax.data.images import decode, pixels
from hrnet_jax.data.images.headers import Header, check_image_header, check_sizes, parse_header
from hrnet_jax.data.sources.label_values import code_color, color_codes
from hrnet_jax.data.sources.source import MAX_CLASSES, Color
from hrnet_jax.runtime import storage

# More colors than this are no classes: photographs, interpolated or lossy files.
MANY_COLORS = 64
# A color with a smaller fraction of the pixels is left out if there are MANY_COLORS.
RARE = 0.001
# Photographs of more than 8 bits whose range of values is measured.
RANGE_IMAGES = 20
# Names of what is no class.
_NO_CLASS = re.compile(
    r"(void|unlabel+ed|ignored?|unknown|undefined|unclassified|no[_ -]?(data|label|class))", re.I
)
_COLOR_NAMES: Mapping[Color, str] = {
    (0, 0, 0): "black", (255, 255, 255): "white", (255, 0, 0): "red", (0, 255, 0): "green",
    (0, 0, 255): "blue", (255, 255, 0): "yellow", (0, 255, 255): "cyan", (255, 0, 255): "magenta",
    (128, 128, 128): "gray", (128, 0, 0): "dark red", (0, 128, 0): "dark green",
    (0, 0, 128): "dark blue", (128, 128, 0): "olive", (0, 128, 128): "teal",
    (128, 0, 128): "purple", (255, 165, 0): "orange", (255, 128, 0): "orange",
}  # fmt: skip


@dataclass
class Values:
    """What was found in pairs of files.

    Attributes:
        ids: pixels of each id.
        colors: pixels of each color, for labels with three different channels.
        in_files: number of labels in which each of them occurs.
        palette: color of each id, from the first palette.
        label_kinds: number of labels of each kind, such as "gray 8 bits".
        image_kinds: likewise of the images.
        sizes: number of images of each size (height, width).
        range: smallest and largest value of images with more than 8 bits; None if there are none.
        problems: files that cannot be read or do not fit together, as text.
    """

    ids: Counter = field(default_factory=Counter)
    colors: Counter = field(default_factory=Counter)
    in_files: Counter = field(default_factory=Counter)
    palette: dict[int, Color] = field(default_factory=dict)
    label_kinds: Counter = field(default_factory=Counter)
    image_kinds: Counter = field(default_factory=Counter)
    sizes: Counter = field(default_factory=Counter)
    range: tuple[int, int] | None = None
    problems: list[str] = field(default_factory=list)


def count(pairs: Iterable[tuple[str, str]]) -> Values:
    """Reads pairs of image and label files; what cannot be read becomes a problem."""
    values = Values()
    for image, label in pairs:
        try:
            image_header, label_header = _add_image(values, image), _add_label(values, label)
            check_sizes(image_header, label_header, image, label)
        except pixels.ERRORS as error:
            values.problems.append(str(error))
    return values


def _add_image(values: Values, path: str) -> Header:
    data = storage.read_bytes(path)
    header = parse_header(data, path)
    check_image_header(header, path, (0, 1))
    kind = f"{header.format.upper()} {header.kind} {header.bits} bits"
    values.image_kinds[kind] += 1
    values.sizes[header.size] += 1
    if header.bits > 8 and values.image_kinds[kind] <= RANGE_IMAGES:
        found = pixels.deep(data, header)
        low, high = values.range or (65535, 0)
        values.range = min(low, int(found.min())), max(high, int(found.max()))
    return header


def _add_label(values: Values, path: str) -> Header:
    data = storage.read_bytes(path)
    header = parse_header(data, path)
    values.label_kinds[f"{header.format.upper()} {header.kind} {header.bits} bits"] += 1
    in_color = header.kind in ("rgb", "rgba")
    label = decode.decode_label(data, path, colors=in_color)
    if in_color and (label[..., :1] == label[..., 1:]).all():
        label = label[..., 0]
    codes = color_codes(label) if label.ndim == 3 else label
    found, counts = np.unique(codes, return_counts=True)
    if label.ndim == 3:
        keys: Sequence[Any] = [code_color(code) for code in found]
        values.colors.update(dict(zip(keys, counts.tolist(), strict=True)))
    else:
        keys = found.tolist()
        values.ids.update(dict(zip(keys, counts.tolist(), strict=True)))
    values.in_files.update(keys)
    if header.kind == "palette" and not values.palette:
        with Image.open(io.BytesIO(data)) as image:
            flat = image.getpalette("RGB") or []
        values.palette = {k: tuple(flat[3 * k : 3 * k + 3]) for k in range(len(flat) // 3)}
    return header


def classes_of(
    values: Values, names: Mapping[int | Color, str]
) -> tuple[dict[str, Any], list[str]]:
    """The keys of a class file that describe the values, and what could not be decided.

    Args:
        values: of `count`.
        names: for ids or colors, as far as known.

    Raises:
        ValueError: if the values cannot be classes.
    """
    if values.colors and values.ids:
        # Gray values among colored labels are colors whose channels are equal.
        values.colors.update({(i, i, i): n for i, n in values.ids.items() if i <= 255})
        values.in_files.update({(i, i, i): values.in_files[i] for i in values.ids})
    found = _of_colors(values, names) if values.colors else _of_ids(values, names)
    if values.range:
        found[0]["image_range"] = list(values.range)
        found[1].append(
            f"images have more than 8 bits: image_range {list(values.range)} is what the first "
            f"{RANGE_IMAGES} hold; set what the camera can give"
        )
    return found


def _of_ids(values: Values, names: Mapping) -> tuple[dict[str, Any], list[str]]:
    ids, notes = sorted(values.ids), []
    if not ids:
        raise ValueError("no label could be read: " + "; ".join(values.problems[:3]))
    if len(ids) > MAX_CLASSES + 1:
        raise ValueError(
            f"the labels hold {len(ids)} different ids from {ids[0]} to {ids[-1]}, more than "
            f"{MAX_CLASSES}: are these instances (id * 1000 + number), depths or photographs?"
        )
    data: dict[str, Any] = {}
    if is_scale(ids):
        data["ignore_ids"] = []
        notes.append(f"the ids {ids} are gray levels of a mask: 255 is a class, not ignored")
    elif 255 in ids:
        fraction = values.ids[255] / values.ids.total()
        ids.remove(255)
        notes.append(f"255 ({fraction:.1%} of the pixels) is taken as ignored")
    if ignored := [i for i in ids if _NO_CLASS.fullmatch(names.get(i, ""))]:
        data["ignore_ids"] = ignored
        ids = [i for i in ids if i not in ignored]
        notes.append(f"ids ignored for their names: {[(i, names[i]) for i in ignored]}")
    if len(ids) == 1:
        notes.append(f"the labels hold the single id {ids[0]}: nothing can be learned from that")
    two = {ids[0]: "background", ids[-1]: "foreground"} if len(ids) == 2 else {}
    used = [names.get(i) or two.get(i) or f"class {i}" for i in ids]
    if not any(i in names for i in ids):
        notes.append('no names found for the ids: change "names" in the class file')
    data = {"names": _distinct(used, ids), "label_ids": ids, **data}
    if values.palette:
        data["colors"] = [list(values.palette.get(i, (0, 0, 0))) for i in ids]
    return data, notes


def is_scale(ids: Sequence[int]) -> bool:
    """Whether ids are gray levels from 0 to 255 at equal distances, as 0 and 255."""
    if ids[0] != 0 or ids[-1] != 255 or len(ids) > 52:
        return False
    step = 255 / (len(ids) - 1)
    return all(abs(i - k * step) <= 2 for k, i in enumerate(ids))


def _of_colors(values: Values, names: Mapping) -> tuple[dict[str, Any], list[str]]:
    total, notes = values.colors.total(), []
    colors = [c for c, _ in values.colors.most_common()]
    data: dict[str, Any] = {}
    if len(colors) > MANY_COLORS and not set(colors) <= set(names):
        rare = [c for c in colors if values.colors[c] < RARE * total]
        colors = [c for c in colors if c not in set(rare)]
        if not colors or len(colors) > MANY_COLORS:
            raise ValueError(
                f"the labels hold {len(rare) + len(colors)} colors: these are photographs, or "
                "labels that were interpolated or saved as JPEG"
            )
        data["ignore_colors"] = "rest"
        fraction = sum(values.colors[c] for c in rare) / total
        notes.append(
            f"{len(rare)} colors with less than {RARE:.1%} of the pixels each, {fraction:.2%} "
            "together, are ignored: borders that were interpolated?"
        )
    if ignored := [c for c in colors if _NO_CLASS.fullmatch(names.get(c, ""))]:
        data.setdefault("ignore_colors", [list(c) for c in ignored])
        colors = [c for c in colors if c not in ignored]
        notes.append(f"colors ignored for their names: {[(c, names[c]) for c in ignored]}")
    own = lambda c: _COLOR_NAMES.get(c) or "color {:02x}{:02x}{:02x}".format(*c)  # noqa: E731
    used = [names.get(c) or own(c) for c in colors]
    if not any(c in names for c in colors):
        notes.append('no names found for the colors: change "names" in the class file')
    if (0, 0, 0) in colors:
        notes.append(
            'black is taken as a class; if it means "no class", move it to "ignore_colors"'
        )
    data = {"names": _distinct(used, colors), "label_type": "colors", **data}
    return data | {"colors": [list(c) for c in colors]}, notes


def _distinct(names: list[str], values: Sequence[Any]) -> list[str]:
    """The names, with the value behind those that occur twice."""
    counts = Counter(names)
    return [n if counts[n] == 1 else f"{n} ({v})" for n, v in zip(names, values, strict=True)]
