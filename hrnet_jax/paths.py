"""Paths of files that may lie in a store such as gs://."""

import os

from etils import epath


def absolute(path: str | os.PathLike) -> epath.Path:
    """The path from the root, with ~ as the user's folder.

    That of a store is one already: epath's own `absolute` would put it into the working folder.
    """
    path = epath.Path(path).expanduser()
    return path if "://" in os.fspath(path) else path.absolute()
