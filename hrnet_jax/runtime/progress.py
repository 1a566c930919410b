"""Progress bars that do not fill log files."""

import sys
from typing import Any

from tqdm import tqdm

# Seconds between two updates where standard error is a file or a pipe: each one is a line there.
_LOG_INTERVAL = 30.0


def progress_bar(*, total: int | None, unit: str, description: str = "", show: bool = True) -> tqdm:
    """A bar with rate and remaining time on standard error, used as a context manager.

    Args:
      total: number of items, or None if unknown.
      unit: name of an item.
      description: shown before the bar.
      show: False returns a bar that prints nothing.
    """
    options: dict[str, Any] = {}
    if not sys.stderr.isatty():
        options = {"mininterval": _LOG_INTERVAL, "maxinterval": _LOG_INTERVAL}
    return tqdm(total=total, desc=description or None, unit=unit, disable=not show, **options)
