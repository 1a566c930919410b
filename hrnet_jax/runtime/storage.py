"""Files and folders that may lie in a store such as gs://; the only module that knows fsspec.

Folders are `epath.Path`s from `path`. Single files that are read by the thousand are strings: for
local ones the functions here call the operating system and nothing else.

In a store a file appears under its name when it is complete, there are no folders without files,
and renaming means copying. Whole files are therefore written by `write_bytes` or `written`: locally
and in a store they write the complete file or nothing.
"""

import contextlib
import functools
import glob
import importlib.util
import os
import pathlib
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

# By default epath uses TensorFlow's file systems if TensorFlow is installed: they know gs:// only,
# and raise other errors. epath reads this variable at its first use of a store.
os.environ["EPATH_USE_TF"] = "false"

from etils import epath

# The packages that reach a store.
PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs", "hf": "huggingface_hub"}


def in_store(path: str | os.PathLike) -> bool:
    return "://" in os.fspath(path)


def path(path: str | os.PathLike) -> epath.Path:
    """The path, with ~ as the user's folder.

    Raises:
      ValueError: for a store that is not known, or whose package is not installed; for a name that
        is not UTF-8, which neither logs nor JSON can hold.
    """
    text = check_name(os.fspath(path))
    if "://" in text:
        _store(text.split("://")[0])
        return epath.Path(text)
    return epath.Path(os.path.expanduser(text))


def check_name(name: str) -> str:
    """The name itself.

    Raises:
      ValueError: if its bytes are not UTF-8. The message shows them escaped.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"the name of {os.fsencode(name)!r} is not UTF-8; rename the file or folder"
        ) from None
    return name


def absolute(path_: str | os.PathLike) -> epath.Path:
    """The path from the root.

    A store's path is absolute already: epath's own `absolute` would put it into the working folder.

    Raises:
      ValueError: as `path`.
    """
    found = path(path_)
    return found if in_store(found) else found.absolute()


def user_cache() -> epath.Path:
    """This package's cache: the folder hrnet_jax in $XDG_CACHE_HOME or ~/.cache."""
    return path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "hrnet_jax"


@functools.cache
def _store(scheme: str) -> Any:
    """The file system of a store."""
    if scheme not in PACKAGES:
        stores = [f"{known}://" for known in PACKAGES]
        raise ValueError(f"unknown store {scheme}://; known: {stores} and local folders")
    if importlib.util.find_spec(PACKAGES[scheme]) is None:
        package = PACKAGES[scheme]
        raise ValueError(
            f"{scheme}:// needs {package}, which is not installed: pip install {package}"
        )
    import fsspec  # takes a tenth of a second, and most runs are local

    # Other programs write there, too, so listings must not be cached; this also applies to the file
    # systems that epath makes.
    kind = fsspec.get_filesystem_class(scheme)
    protocols = [kind.protocol] if isinstance(kind.protocol, str) else kind.protocol
    for protocol in protocols:
        fsspec.config.conf.setdefault(protocol, {})["use_listings_cache"] = False
    return fsspec.filesystem(scheme)


def _store_of(file: str) -> Any:
    return _store(file.split("://")[0])


@contextlib.contextmanager
def _named(file: str) -> Iterator[None]:
    """Turns any error of a store's client into an OSError that names the file."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{file}: no such file in the store") from None
    except Exception as error:  # clients have classes of their own
        raise OSError(f"{file}: {type(error).__name__}: {error}") from error


# ---- reading


def read_bytes(file: str) -> bytes:
    """The whole file.

    Raises:
      OSError: naming the file, FileNotFoundError if there is none.
    """
    if "://" not in file:
        with open(file, "rb", buffering=0) as stream:
            return stream.read()
    with _named(file):
        return _store_of(file).cat_file(file)


def read_spans(file: str, spans: Sequence[tuple[int, int]]) -> Iterator[bytes]:
    """The bytes from start to stop, of each span in turn; fewer where the file ends.

    From a store everything between the first and the last span is fetched at once, because each
    request takes long. The spans must be close together and in order.

    Raises:
      OSError: as `read_bytes`.
    """
    if "://" not in file:
        with open(file, "rb", buffering=0) as stream:
            for start, stop in spans:
                stream.seek(start)
                yield stream.read(stop - start)
        return
    first, last = spans[0][0], spans[-1][1]
    with _named(file):
        data = _store_of(file).cat_file(file, start=first, end=last)
    for start, stop in spans:
        yield data[start - first : stop - first]


def size(file: str) -> int:
    """Bytes of a file.

    Raises:
      OSError: as `read_bytes`.
    """
    if "://" not in file:
        return os.path.getsize(file)
    with _named(file):
        return _store_of(file).size(file)


def stamps(files: Sequence[str]) -> list[str | None]:
    """Size, time and the like, which change with a file's contents; None where there is no file.

    A folder of a store is listed once, however many of its files are asked for.
    """
    listings: dict[str, dict[str, str]] = {}
    found = []
    for file in files:
        if "://" not in file:
            found.append(_local_stamp(file))
            continue
        folder, name = file.rsplit("/", 1)
        if folder not in listings:
            listings[folder] = _listing(folder)
        found.append(listings[folder].get(name))
    return found


def missing(files: Sequence[str]) -> list[str]:
    """The files that do not exist."""
    return [f for f, stamp in zip(files, stamps(files), strict=True) if stamp is None]


def _local_stamp(file: str) -> str | None:
    try:
        status = os.stat(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return f"{status.st_size} {status.st_mtime_ns}" if stat.S_ISREG(status.st_mode) else None


def _listing(folder: str) -> dict[str, str]:
    """Name -> stamp of the files in a store's folder."""
    with _named(folder):
        try:
            entries = _store_of(folder).ls(folder, detail=True)
        except FileNotFoundError:
            return {}
    return {
        entry["name"].rsplit("/", 1)[1]: " ".join(
            str(entry[key]) for key in ("size", "generation", "ETag", "mtime") if key in entry
        )
        for entry in entries
        if entry["type"] == "file"
    }


def files_in(folder: str | os.PathLike, pattern: str) -> list[str]:
    """Paths below a folder that fit a pattern of `pathlib` without **, in order of names.

    Raises:
      ValueError: for a name that is not UTF-8.
    """
    folder = os.fspath(folder)
    if not in_store(folder):
        return [check_name(str(p)) for p in sorted(pathlib.Path(folder).glob(pattern))]
    with _named(folder):
        names = _store_of(folder).glob(f"{glob.escape(folder)}/{pattern}")
    return [f"{folder.split('://')[0]}://{n}" for n in sorted(names, key=lambda n: n.split("/"))]


def sizes_below(folder: str) -> dict[str, int]:
    """The files at any depth of a store's folder, by their place in it, and their bytes."""
    with _named(folder):
        store = _store_of(folder)
        start = len(store._strip_protocol(folder)) + 1
        found = store.find(folder, detail=True)
    return {name[start:]: entry["size"] for name, entry in found.items() if name[start:]}


def names_below(
    folder: str | os.PathLike, suffixes: Sequence[str] = (), *, follow_links: bool = False
) -> list[str]:
    """The files at any depth, by their place in the folder, in order of folders and names.

    Args:
      folder: nothing is found where there is none.
      suffixes: in small letters, as in ".png"; only files with one of these, in any case.
      follow_links: also list files in folders that are symbolic links; stores have no links.

    Raises:
      ValueError: for a name that is not UTF-8; for a link to a folder that contains the link.
    """
    folder = os.fspath(folder)
    if in_store(folder):
        found = list(sizes_below(folder))
    else:
        found = [
            os.path.relpath(os.path.join(parent, name), folder)
            for parent, names in _walk(folder, follow_links)
            for name in names
        ]
    for name in found:
        check_name(os.path.join(folder, name))
    if suffixes:
        found = [name for name in found if os.path.splitext(name)[1].lower() in suffixes]
    return sorted(found, key=lambda name: name.split("/"))


def _walk(folder: str, follow_links: bool) -> Iterator[tuple[str, list[str]]]:
    """Each folder at any depth with the names of its files."""
    above = {folder: {os.path.realpath(folder)}}  # the real places of a folder and its parents
    for parent, folders, names in os.walk(folder, followlinks=follow_links):
        yield parent, names
        if not follow_links:
            continue
        places = above.pop(parent)
        for name in folders:
            path_ = os.path.join(parent, name)
            place = os.path.realpath(path_)
            if place in places:
                raise ValueError(f"{path_} is a link to {place}, which contains it; remove it")
            above[path_] = places | {place}


@contextlib.contextmanager
def local(file: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A local path for libraries that read local files only: the path itself, or a temporary copy.

    A local path with characters that libraries take for a pattern is given as a link to it.

    Raises:
      OSError: as `read_bytes`.
    """
    if not in_store(file):
        with plain(file) as path_:
            yield path_
        return
    file = os.fspath(file)
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder, pathlib.PurePosixPath(file).name)
        # A folder has names below it, a file has none.
        for name in names_below(file) or [""]:
            target = copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with _named(file):
                _store_of(file).get_file(f"{file}/{name}" if name else file, str(target))
        yield copy


@contextlib.contextmanager
def plain(path_: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A local path without characters of patterns: itself, or a temporary link to it.

    etils, with which Orbax lists folders, takes the whole path for a pattern: below "run[1]" it
    finds nothing.
    """
    path_ = pathlib.Path(path_)
    if not set("*?[]\\") & set(str(path_)):
        yield path_
        return
    with tempfile.TemporaryDirectory(prefix="hrnet_jax-") as folder:
        link = pathlib.Path(folder, "link")
        link.symlink_to(path_.absolute(), target_is_directory=path_.is_dir())
        yield link


# ---- writing


def write_bytes(file: str | os.PathLike, data: bytes, *, sync: bool = False) -> None:
    """Writes a complete file or nothing, and makes its folder; `sync` as in `written`.

    Raises:
      OSError: naming the file.
    """
    file = os.fspath(file)
    if not in_store(file):
        with written(file, sync=sync) as partial:
            partial.write_bytes(data)
        return
    with _named(file):
        _store_of(file).pipe_file(file, data)


def write_text(file: str | os.PathLike, text: str) -> None:
    """As `write_bytes`."""
    write_bytes(file, text.encode())


def append_text(file: str | os.PathLike, text: str) -> None:
    """Adds to a small file; stores know whole files only."""
    if not in_store(file):
        with open(file, "a", encoding="utf-8") as stream:
            stream.write(text)
        return
    before = read_bytes(os.fspath(file)).decode()
    write_text(file, before + text)


@contextlib.contextmanager
def written(file: str | os.PathLike, *, sync: bool = False) -> Iterator[pathlib.Path]:
    """A local path to write to, a file or a folder; on leaving it becomes `file`.

    The folder of `file` is made where missing. Nothing is left if the block raises.

    Args:
      file: local or in a store.
      sync: a local file's bytes are on the disk before it gets its name, so that a power cut cannot
        leave an incomplete one.

    Raises:
      OSError: naming the file.
    """
    file = os.fspath(file)
    if in_store(file):
        with tempfile.TemporaryDirectory() as folder:
            partial = pathlib.Path(folder, pathlib.PurePosixPath(file).name)
            yield partial
            _upload(partial, file)
        return
    target = pathlib.Path(file)
    target.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays: libraries take the format from it.
    partial = target.with_name(f".{target.stem}.partial{target.suffix}")
    _remove(partial)
    try:
        yield partial
        if sync:
            with open(partial, "rb") as stream:
                os.fsync(stream.fileno())
        if partial.is_dir():
            _remove(target)
        partial.replace(target)
    finally:
        _remove(partial)


def _upload(source: pathlib.Path, file: str) -> None:
    with _named(file):
        store = _store_of(file)
        if not source.is_dir():
            store.put_file(str(source), file)
            return
        if store.exists(file):
            store.rm(file, recursive=True)
    upload(source, file)


def upload(source: str | os.PathLike, folder: str | os.PathLike, last: str = "") -> None:
    """Copies the files of a local folder into a folder of a store, whose other files stay.

    Args:
      source: the local folder.
      folder: of the store.
      last: the file to copy when all the others are there.

    Raises:
      OSError: naming the folder.
    """
    folder = os.fspath(folder)
    with _named(folder):
        for name in sorted(names_below(source), key=lambda name: name == last):
            _store_of(folder).put_file(os.path.join(source, name), f"{folder}/{name}")


def _remove(path_: pathlib.Path) -> None:
    if path_.is_dir() and not path_.is_symlink():
        shutil.rmtree(path_)
    path_.unlink(missing_ok=True)
