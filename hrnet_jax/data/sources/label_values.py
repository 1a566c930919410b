"""From the values in a label file, ids of up to 16 bits or colors, to one byte per pixel.

Crops, tiles and counts hold one byte per pixel. Where every raw id of the class list fits in it,
the byte is the raw id. Else it is the train id, and values that belong to no class are found here.
"""

import functools

import numpy as np

from hrnet_jax.data.sources.source import IGNORE_LABEL, MAX_ID, UNKNOWN_LABEL, Classes, Color

# How many unknown values an error lists.
_LISTED = 8


def to_bytes(values: np.ndarray, classes: Classes | None, name: str) -> np.ndarray:
    """What `Records.label` gives, uint8 [H, W].

    Args:
        values: ids uint8 or uint16 [H, W], or colors uint8 [H, W, 3] if the label type is "colors".
        classes: the class list; None: the ids are bytes.
        name: what errors call the file.

    Raises:
        ValueError: naming the file, for ids above 255 and for colors that belong to no class. Ids
            that fit in a byte are given as they are, `Source.to_train_ids` checks them.
    """
    if classes is None or classes.stores_raw_ids:
        return values if values.dtype == np.uint8 else _narrow(values, classes, name)
    codes = values if values.ndim == 2 else color_codes(values)
    stored = _table(classes).take(codes)
    if (unknown := stored == UNKNOWN_LABEL).any():
        raise _unknown(codes[unknown], classes, name)
    return stored


def color_codes(colors: np.ndarray) -> np.ndarray:
    """RGB uint8 [..., 3] -> one number per color, uint32 [...]."""
    # Four bytes seen as one number take 4 ms for 2 Mpixels, shifting and adding 18 ms. Copying all
    # channels at once takes 70 ms.
    padded = np.zeros((*colors.shape[:-1], 4), np.uint8)
    for channel in range(3):
        padded[..., channel] = colors[..., channel]
    return padded.view("<u4")[..., 0]


def code_color(code: int) -> Color:
    """The inverse of `color_codes`."""
    return int(code) & 255, int(code) >> 8 & 255, int(code) >> 16


def _narrow(values: np.ndarray, classes: Classes | None, name: str) -> np.ndarray:
    """Ids uint16 as bytes, for class lists whose ids all fit in one."""
    if not (above := values > 255).any():
        return values.astype(np.uint8)
    ignored = np.flatnonzero(classes.lookup() == IGNORE_LABEL) if classes else []
    if classes is None or not classes.ignore_rest or not len(ignored):
        raise _unknown(values[above], classes, name)
    return np.where(above, ignored[-1], values).astype(np.uint8)


@functools.lru_cache(maxsize=4)
def _table(classes: Classes) -> np.ndarray:
    """Raw id or color code -> train id, IGNORE_LABEL or UNKNOWN_LABEL; uint8."""
    rest = IGNORE_LABEL if classes.ignore_rest else UNKNOWN_LABEL
    if classes.label_type == "colors":
        table = np.full(2**24, rest, np.uint8)
        for colors, train_ids in (
            (classes.ignore_colors, IGNORE_LABEL),
            (classes.colors, np.arange(classes.num_classes)),
        ):
            table[color_codes(np.array(colors, np.uint8).reshape(-1, 3))] = train_ids
        return table
    table = np.full(MAX_ID + 1, rest, np.uint8)
    table[[*classes.ignore_ids, IGNORE_LABEL]] = IGNORE_LABEL
    for train_id, ids in enumerate(classes.ids_by_class):
        table[list(ids)] = train_id
    return table


def _unknown(codes: np.ndarray, classes: Classes | None, name: str) -> ValueError:
    """The error for ids or color codes, one per pixel, that belong to no class."""
    found, counts = np.unique(codes, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    listed = [(int(found[k]), int(counts[k])) for k in order[:_LISTED]]
    more = f"; and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    if classes is None or classes.label_type == "ids":
        what, key = "ids", "ignore_ids"
        lines = [f"id {value}: {count} pixels" for value, count in listed]
    else:
        what, key = "colors", "ignore_colors"
        lines = [
            f"color {code_color(code)}: {count} pixels, nearest {_nearest(code, classes)}"
            for code, count in listed
        ]
        if len(found) > 4 * classes.num_classes:
            more += (
                "; so many colors come from resizing with interpolation or a lossy format such as "
                "JPEG: such files are no labels"
            )
    return ValueError(
        f"label {name} holds {what} which the class list does not know: {'; '.join(lines)}{more}. "
        f'Add them to the class file, to a class or to "{key}"; "{key}": "rest" ignores all others'
    )


def _nearest(code: int, classes: Classes) -> str:
    known = dict(zip(classes.colors, classes.names, strict=True))
    known |= dict.fromkeys(classes.ignore_colors, "ignored")
    wanted = np.array(code_color(code))
    color = min(known, key=lambda color: ((wanted - color) ** 2).sum())
    return f"{known[color]!r} {color}"
