"""What is converted on reading is said once for each kind, not for each file."""

import logging

logger = logging.getLogger(__name__)
_said: set[str] = set()


def say_once(what: str, name: str) -> None:
    """Logs a warning about the first file of a kind in this process.

    Args:
        what: is done with all files of the kind.
        name: of the file.
    """
    if what not in _said:
        _said.add(what)
        logger.warning("%s: %s; not logged again for other files", name, what)
