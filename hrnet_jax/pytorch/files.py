"""Reads and writes files of tensors without PyTorch; executes nothing in them.

Formats: zip `.pth` (PyTorch 1.6 and later), the legacy one before it, `.safetensors`, and
PaddlePaddle's `.pdparams`. The first and the third are written, too.
"""

import contextlib
import functools
import io
import json
import mmap
import os
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from hrnet_jax.pytorch.unpickle import (
    STORAGES,
    Interpreter,
    NumpyArray,
    Refused,
    Storage,
    Tensor,
    check_sizes,
    contiguous_strides,
)
from hrnet_jax.runtime import storage

_SAFETENSORS_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
# Why files of these suffixes are not read.
_UNREADABLE = {
    ".pdiparams": ". PaddlePaddle's inference files hold arrays without names: take the .pdparams"
    " file of the training, or save one with paddle.save(model.state_dict(), path)",
    ".pdmodel": ". PaddlePaddle's .pdmodel is a program without weights: take the .pdparams file",
    ".onnx": ". ONNX files hold graphs, not HRNet's parameters: take the file it was made from",
}


@contextlib.contextmanager
def open_tensors(path: str | os.PathLike) -> Iterator[Any]:
    """Opens a checkpoint file: yields its contents, nested containers with `Tensor` leaves.

    The format is recognized by the file's first bytes, not by its name. Tensors can be read
    inside the `with` block only.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is of another format, damaged, or holds anything but tensors and plain
        containers. Nothing that a file holds is ever executed.
    """
    with _refusing(path), _local(path) as local, _contents(local) as contents:
        yield contents


def safetensors_metadata(path: str | os.PathLike) -> dict[str, str]:
    """The texts in the header of a `.safetensors` file; empty where it has none.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is no safetensors file, or damaged.
    """
    with _refusing(path), _local(path) as local:
        if _first_bytes(local)[8:9] != b"{":
            raise Refused("not a safetensors file (by its first bytes)")
        with _safetensors(local) as file:
            return file.metadata() or {}


@contextlib.contextmanager
def _refusing(path: str | os.PathLike) -> Iterator[None]:
    """Adds the file's name to what is wrong with it."""
    try:
        yield
    except Refused as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from None


@contextlib.contextmanager
def _local(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """The file, or a local copy of one in a store: `mmap` needs a local one."""
    with storage.local(path) as local:
        if not local.is_file():
            raise FileNotFoundError(f"no weight file {os.fspath(path)!r}")
        yield pathlib.Path(local)


def _first_bytes(local: pathlib.Path) -> bytes:
    with open(local, "rb") as file:
        head = file.read(16)
    if len(head) < 16:
        raise Refused(f"only {len(head)} bytes, neither a PyTorch nor a safetensors file")
    return head


@contextlib.contextmanager
def _contents(local: pathlib.Path) -> Iterator[Any]:
    head = _first_bytes(local)
    # First, for the length in front of it may begin like the others: with b"\x80" in every 32nd
    # file. They have no brace there, but a byte of a magic number, or a zip archive's method, 0.
    if head[8:9] == b"{":
        with _safetensors(local) as tensors:
            yield _open_safetensors(tensors)
    elif head.startswith(b"\x80"):
        with (
            open(local, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            yield _open_legacy(data)
    elif head.startswith(b"PK\x03\x04"):
        with _archive(local) as archive:
            yield _open_zip(archive)
    else:
        raise Refused(
            "neither a zip .pth, a legacy .pth, a .pdparams nor a .safetensors file (by its first"
            f" bytes){_UNREADABLE.get(local.suffix, '')}"
        )


def write_tensors(
    path: str | os.PathLike,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a state dictionary: `.safetensors` by its suffix, otherwise `.pth` (`.pt`, `.bin`).

    The file appears under its name when it is complete; an existing one is replaced.

    Args:
      path: the file.
      tensors: the arrays.
      metadata: texts for the header of a `.safetensors` file; None says "PyTorch".

    Raises:
      ValueError: unknown suffix, metadata for another one than `.safetensors`, or an array of a
        type that PyTorch has not.
    """
    path = storage.path(path)
    writers = {".safetensors": _write_safetensors} | dict.fromkeys(
        (".pth", ".pt", ".bin"), _write_zip
    )
    if path.suffix not in writers:
        raise ValueError(f"unknown suffix of {str(path)!r}; known: {sorted(writers)}")
    if path.suffix == ".safetensors":
        writers[path.suffix] = functools.partial(
            _write_safetensors, metadata={"format": "pt"} if metadata is None else metadata
        )
    elif metadata is not None:
        raise ValueError(f"{str(path)!r}: only .safetensors files hold metadata")
    for name, array in tensors.items():
        if array.dtype not in _SAFETENSORS_DTYPES.values():
            raise ValueError(f"{name!r} holds {array.dtype}, which these files cannot")
    with storage.written(path) as unfinished:
        writers[path.suffix](unfinished, tensors)


# ---- zip .pth


@contextlib.contextmanager
def _damage_refused() -> Iterator[None]:
    """For whatever damaged headers provoke in `zipfile`."""
    try:
        yield
    except (zipfile.BadZipFile, RuntimeError, EOFError, OSError, ValueError, struct.error) as error:
        raise Refused(f"damaged zip archive ({error})") from None


@contextlib.contextmanager
def _archive(local: pathlib.Path) -> Iterator[zipfile.ZipFile]:
    with _damage_refused():
        archive = zipfile.ZipFile(local)
    with archive:
        yield archive


def _open_zip(archive: zipfile.ZipFile) -> Any:
    entries = {}
    for info in archive.infolist():
        if info.filename in entries:
            raise Refused(f"the archive holds {info.filename!r} twice")
        entries[info.filename] = info
    pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise Refused("a zip archive without a data.pkl: not a PyTorch checkpoint")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in entries:
        raise Refused("a TorchScript archive, which is a program; save its state_dict instead")

    def read(name: str) -> bytes:
        info = entries.get(folder + name)
        if info is None:
            raise Refused(f"the archive lacks {folder + name!r}")
        # PyTorch stores without compression; then no entry is larger than the file is.
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise Refused(f"{info.filename!r} is compressed, which PyTorch never does")
        if info.flag_bits & 1:
            raise Refused(f"{info.filename!r} is encrypted")
        with _damage_refused():
            return archive.read(info)

    if f"{folder}byteorder" in entries and read("byteorder").strip() != b"little":
        raise Refused("written on a big-endian machine, which is not supported")

    def storage(dtype: np.dtype, key: str, numel: int, *view) -> Storage:
        info = entries.get(f"{folder}data/{key}")
        if info is None or info.file_size != numel * dtype.itemsize:
            raise Refused(f"storage {key!r} is missing or not of its declared size")
        return Storage(dtype, numel, lambda: read(f"data/{key}"))

    return Interpreter(storage).run(io.BytesIO(read("data.pkl")))


def _write_zip(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    names = {dtype: name for name, dtype in STORAGES.items()}
    program = [pickle.PROTO, b"\x02", pickle.EMPTY_DICT, pickle.MARK]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:

        def add(name: str, data: bytes) -> None:
            # Without the time, so that equal weights make equal files.
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data)

        for key, (name, array) in enumerate(tensors.items()):
            program += [_pickled(name), *_pickled_tensor(key, array, names[array.dtype])]
            add(f"data/{key}", np.ascontiguousarray(array).tobytes())
        program += [pickle.SETITEMS, pickle.STOP]
        add("data.pkl", b"".join(program))
        add("byteorder", b"little")
        add("version", b"3\n")


def _pickled_tensor(key: int, array: np.ndarray, storage: str) -> list[bytes]:
    """torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)."""
    return [
        _pickled_global("torch._utils _rebuild_tensor_v2"),
        pickle.MARK,
        *(pickle.MARK, _pickled("storage"), _pickled_global(storage), _pickled(str(key))),
        *(_pickled("cpu"), _pickled(array.size), pickle.TUPLE, pickle.BINPERSID),
        _pickled(0),
        *(pickle.MARK, *map(_pickled, array.shape), pickle.TUPLE),
        *(pickle.MARK, *map(_pickled, contiguous_strides(array.shape)), pickle.TUPLE),
        pickle.NEWFALSE,
        *(_pickled_global("collections OrderedDict"), pickle.EMPTY_TUPLE, pickle.REDUCE),
        *(pickle.TUPLE, pickle.REDUCE),
    ]


def _pickled(value: str | int) -> bytes:
    if isinstance(value, int):
        return pickle.BININT + struct.pack("<i", value)
    encoded = value.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def _pickled_global(name: str) -> bytes:
    return pickle.GLOBAL + name.replace(" ", "\n").encode() + b"\n"


# ---- legacy .pth


def _open_legacy(data: mmap.mmap) -> Any:
    def no_storage(*_):
        raise Refused("an unexpected storage")

    first = Interpreter(no_storage).run(data)
    if _has_arrays(first):
        return first
    for found, expected in ((first, _LEGACY_MAGIC), (None, _LEGACY_PROTOCOL)):
        found = Interpreter(no_storage).run(data) if found is None else found
        if type(found) is not int or found != expected:
            raise Refused("a pickle, but not one that PyTorch or PaddlePaddle wrote")
    system = Interpreter(no_storage).run(data)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Refused("written on a big-endian machine, which is not supported")

    declared: dict[str, tuple[np.dtype, int]] = {}
    places: dict[str, int] = {}

    def storage(dtype: np.dtype, key: str, numel: int, view: Any = None) -> Storage:
        if declared.setdefault(key, (dtype, numel)) != (dtype, numel):
            raise Refused(f"storage {key!r} is declared twice, differently")
        whole = Storage(
            dtype, numel, lambda: data[places[key] : places[key] + numel * dtype.itemsize]
        )
        return whole if view is None else _view(whole, view)

    contents = Interpreter(storage).run(data)
    keys = Interpreter(no_storage).run(data)
    if type(keys) is not list or any(type(key) is not str for key in keys):
        raise Refused("malformed list of storages")
    if sorted(keys) != sorted(declared):
        raise Refused("its list of storages does not fit its contents")
    for key in keys:
        dtype, numel = declared[key]
        (found,) = struct.unpack("<q", _exactly(data, 8))
        start, end = data.tell(), data.tell() + numel * dtype.itemsize
        if found != numel or end > len(data):
            raise Refused(f"storage {key!r} is cut short or not of its declared size")
        places[key] = start
        data.seek(end)
    return contents


def _has_arrays(contents: Any, depth: int = 3) -> bool:
    """Whether this is a .pdparams file's dictionary of NumPy arrays."""
    if isinstance(contents, NumpyArray):
        return True
    if isinstance(contents, dict) and depth:
        return any(_has_arrays(value, depth - 1) for value in contents.values())
    return isinstance(contents, tuple) and any(isinstance(v, NumpyArray) for v in contents)


def _exactly(data: mmap.mmap, count: int) -> bytes:
    read = data.read(count)
    if len(read) != count:
        raise Refused("the file is cut short")
    return read


def _view(whole: "Storage", view: Any) -> "Storage":
    """A part of a storage: (key, offset, size) in elements, as PyTorch 0.4 wrote shared ones."""
    if not isinstance(view, tuple) or len(view) != 3:
        raise Refused("malformed storage view")
    _, offset, size = view
    check_sizes((offset, size))
    if offset + size > whole.numel:
        raise Refused("a storage view that reaches beyond its storage")
    start, stop = offset * whole.dtype.itemsize, (offset + size) * whole.dtype.itemsize
    return Storage(whole.dtype, size, lambda: whole.read()[start:stop])


# ---- .safetensors


def _open_safetensors(file: Any) -> dict[str, Tensor]:
    """The arrays of an opened file, in the order in which their data lie in it."""
    tensors = {}
    for name in file.offset_keys():
        part = file.get_slice(name)
        code = part.get_dtype()
        if code not in _SAFETENSORS_DTYPES:
            raise Refused(f"{name!r} has dtype {code!r}; known: {sorted(_SAFETENSORS_DTYPES)}")
        tensors[name] = Tensor(
            _SAFETENSORS_DTYPES[code],
            tuple(part.get_shape()),
            functools.partial(file.get_tensor, name),
        )
    return tensors


@contextlib.contextmanager
def _safetensors(local: pathlib.Path) -> Iterator[Any]:
    """The file, opened by the safetensors library, which checks the header against the data."""
    try:
        with safetensors.safe_open(os.fspath(local), framework="numpy") as file:
            yield file
    except safetensors.SafetensorError as error:
        raise Refused(f"not a sound safetensors file ({error})") from None


def _write_safetensors(
    path: pathlib.Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Not by the library, which sorts the arrays: files keep the order of the PyTorch modules."""
    codes = {dtype: code for code, dtype in _SAFETENSORS_DTYPES.items()}
    header, position = {}, 0
    for name, array in tensors.items():
        end = position + array.nbytes
        entry = {"dtype": codes[array.dtype], "shape": array.shape, "data_offsets": [position, end]}
        header[name], position = entry, end
    encoded = json.dumps({"__metadata__": dict(metadata)} | header).encode()
    encoded += b" " * (-len(encoded) % 8)  # the data start at a multiple of 8
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array).tobytes())
