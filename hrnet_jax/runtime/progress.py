"""Progress bars that do not fill log files."""

import sys
import time
from collections.abc import Iterable
from typing import TextIO

from tqdm import tqdm

# Where a bar cannot be redrawn, seconds between its lines.
SECONDS_PER_LINE = 30.0


def progress_bar(
    iterable: Iterable | None = None,
    *,
    total: int | None,
    initial: int = 0,
    desc: str = "",
    unit: str = "it",
    disable: bool = False,
) -> tqdm:
    """A tqdm bar on standard error, with rate and time left.

    On a terminal and in a notebook the bar is redrawn in place. Elsewhere (a file, a pipe) each
    drawing would be a line of its own, so there is at most one line every SECONDS_PER_LINE seconds,
    and none in the first of these intervals.

    Args:
        iterable: iterate over the bar to go through this; None: call `update`.
        total: number of steps, None if unknown.
        initial: steps done before; they do not count for the rate.
        desc: text before the bar.
        unit: name of a step.
        disable: show nothing.
    """
    settings = {
        "total": total, "initial": initial, "desc": desc, "unit": unit, "disable": disable
    }  # fmt: skip
    if _redraws(sys.stderr):
        return tqdm(iterable, **settings)
    lines = _Lines(sys.stderr)
    return tqdm(iterable, file=lines, mininterval=SECONDS_PER_LINE, **settings)


def _redraws(stream: TextIO) -> bool:
    # A notebook's stream is not a terminal, but handles carriage returns like one.
    return stream.isatty() or type(stream).__module__.startswith("ipykernel.")


class _Lines:
    """A stream for tqdm that passes on at most one drawing per interval, as a line of its own."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        self._next = time.monotonic() + SECONDS_PER_LINE
        self.encoding = stream.encoding

    def write(self, text: str) -> None:
        line = text.strip()  # tqdm begins with a carriage return and pads with spaces
        if line and time.monotonic() >= self._next:
            self._stream.write(line + "\n")
            self._next = time.monotonic() + SECONDS_PER_LINE

    def flush(self) -> None:
        self._stream.flush()
