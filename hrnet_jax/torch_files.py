"""Tensors in PyTorch and safetensors files, without PyTorch: reads them, and runs nothing there.

A `.pth` file is a pickle, and pickles are programs. This module interprets the few opcodes that
state dictionaries consist of, on a stack that never holds anything callable: plain containers,
numbers, strings, and tensors whose data stay in the file until they are asked for. Any other
opcode or name ends the reading with an error before anything came of it.

Formats: zip `.pth` (PyTorch 1.6 and later), the legacy one before it, and `.safetensors`. The
first and the last are written, too.
"""

import contextlib
import dataclasses
import io
import json
import math
import mmap
import os
import pathlib
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

_STORAGES = {
    "torch DoubleStorage": np.dtype("<f8"),
    "torch FloatStorage": np.dtype("<f4"),
    "torch HalfStorage": np.dtype("<f2"),
    "torch BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch LongStorage": np.dtype("<i8"),
    "torch IntStorage": np.dtype("<i4"),
    "torch ShortStorage": np.dtype("<i2"),
    "torch CharStorage": np.dtype("i1"),
    "torch ByteStorage": np.dtype("u1"),
    "torch BoolStorage": np.dtype("?"),
}
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
_NUMPY_SCALARS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
# A checkpoint of the largest network with its optimizer takes about 200,000 operations. Each may
# allocate some 70 bytes, so this bounds what a hostile pickle can make us hold.
_MAX_OPERATIONS = 5_000_000
_MAX_DIMENSIONS = 8
# The limit of the safetensors format itself.
_MAX_SAFETENSORS_HEADER = 100_000_000


class _Refused(Exception):
    """What is wrong with a file; the reader adds the file's name."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor in an open file: its type and shape are known, its data are read on demand."""

    dtype: np.dtype
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray] = dataclasses.field(repr=False)

    def numpy(self) -> np.ndarray:
        """The values; valid while the file is open."""
        return self.read()


@contextlib.contextmanager
def open_tensors(path: str | os.PathLike) -> Iterator[Any]:
    """Opens a checkpoint file: yields its contents, nested containers with `Tensor` leaves.

    The format is recognised by the file's first bytes, not by its name. Tensors can be read
    inside the `with` block only.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is of another format, damaged, or holds anything but tensors and plain
        containers. Nothing that a file holds is ever executed.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no weight file {path!r}")
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(path, "rb"))
        try:
            contents = _open(file, stack)
        except _Refused as error:
            raise ValueError(f"{path}: {error}") from None
        except zipfile.BadZipFile as error:
            raise ValueError(f"{path}: damaged zip archive ({error})") from None
        try:
            yield contents
        except (_Refused, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: {error}") from None


def _open(file: io.BufferedReader, stack: contextlib.ExitStack) -> Any:
    size = os.fstat(file.fileno()).st_size
    if size < 16:
        raise _Refused(f"only {size} bytes, neither a PyTorch nor a safetensors file")
    head = file.read(16)
    file.seek(0)
    if head.startswith(b"PK\x03\x04"):
        return _open_zip(stack.enter_context(zipfile.ZipFile(file)))
    data = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    if head.startswith(b"\x80"):
        return _open_legacy(data)
    if head[8:9] == b"{":
        return _open_safetensors(data)
    raise _Refused("neither a zip .pth, a legacy .pth nor a .safetensors file (by its first bytes)")


def write_tensors(path: str | os.PathLike, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes a state dictionary: `.safetensors` by its suffix, otherwise `.pth` (`.pt`, `.bin`).

    The file appears under its name when it is complete; an existing one is replaced.

    Raises:
      ValueError: unknown suffix, or an array of a type that PyTorch has not.
    """
    path = pathlib.Path(path)
    writers = {".safetensors": _write_safetensors} | dict.fromkeys(
        (".pth", ".pt", ".bin"), _write_zip
    )
    if path.suffix not in writers:
        raise ValueError(f"unknown suffix of {str(path)!r}; known: {sorted(writers)}")
    for name, array in tensors.items():
        if array.dtype not in _SAFETENSORS_DTYPES.values():
            raise ValueError(f"{name!r} holds {array.dtype}, which these files cannot")
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        writers[path.suffix](unfinished, tensors)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


# ---- zip .pth


def _open_zip(archive: zipfile.ZipFile) -> Any:
    entries = {}
    for info in archive.infolist():
        if info.filename in entries:
            raise _Refused(f"the archive holds {info.filename!r} twice")
        entries[info.filename] = info
    pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise _Refused("a zip archive without a data.pkl: not a PyTorch checkpoint")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in entries:
        raise _Refused("a TorchScript archive, which is a program; save its state_dict instead")

    def read(name: str) -> bytes:
        info = entries.get(folder + name)
        if info is None:
            raise _Refused(f"the archive lacks {folder + name!r}")
        # PyTorch stores without compression; then no entry is larger than the file is.
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise _Refused(f"{info.filename!r} is compressed, which PyTorch never does")
        if info.flag_bits & 1:
            raise _Refused(f"{info.filename!r} is encrypted")
        return archive.read(info)

    if f"{folder}byteorder" in entries and read("byteorder").strip() != b"little":
        raise _Refused("written on a big-endian machine, which is not supported")

    def storage(dtype: np.dtype, key: str, numel: int, *view) -> _Storage:
        info = entries.get(f"{folder}data/{key}")
        if info is None or info.file_size != numel * dtype.itemsize:
            raise _Refused(f"storage {key!r} is missing or not of its declared size")
        return _Storage(dtype, numel, lambda: read(f"data/{key}"))

    return _Interpreter(storage).run(io.BytesIO(read("data.pkl")))


def _write_zip(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    names = {dtype: name for name, dtype in _STORAGES.items()}
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
        *(pickle.MARK, *map(_pickled, _contiguous_strides(array.shape)), pickle.TUPLE),
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
        raise _Refused("a storage where none belongs")

    for expected in (_LEGACY_MAGIC, _LEGACY_PROTOCOL):
        if _Interpreter(no_storage).run(data) != expected:
            raise _Refused("a pickle, but not one that PyTorch wrote")
    system = _Interpreter(no_storage).run(data)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise _Refused("written on a big-endian machine, which is not supported")

    declared: dict[str, tuple[np.dtype, int]] = {}
    places: dict[str, int] = {}

    def storage(dtype: np.dtype, key: str, numel: int, view: Any = None) -> _Storage:
        if declared.setdefault(key, (dtype, numel)) != (dtype, numel):
            raise _Refused(f"storage {key!r} is declared twice, differently")
        whole = _Storage(
            dtype, numel, lambda: data[places[key] : places[key] + numel * dtype.itemsize]
        )
        return whole if view is None else _view(whole, view)

    contents = _Interpreter(storage).run(data)
    keys = _Interpreter(no_storage).run(data)
    if type(keys) is not list or any(type(key) is not str for key in keys):
        raise _Refused("malformed list of storages")
    if sorted(keys) != sorted(declared):
        raise _Refused("its list of storages does not fit its contents")
    for key in keys:
        dtype, numel = declared[key]
        (found,) = struct.unpack("<q", _exactly(data, 8))
        start, end = data.tell(), data.tell() + numel * dtype.itemsize
        if found != numel or end > len(data):
            raise _Refused(f"storage {key!r} is cut short or not of its declared size")
        places[key] = start
        data.seek(end)
    return contents


def _exactly(data: mmap.mmap, count: int) -> bytes:
    read = data.read(count)
    if len(read) != count:
        raise _Refused("the file is cut short")
    return read


def _view(whole: "_Storage", view: Any) -> "_Storage":
    """A part of a storage: (key, offset, size) in elements, as PyTorch 0.4 wrote shared ones."""
    if not isinstance(view, tuple) or len(view) != 3:
        raise _Refused("malformed storage view")
    _, offset, size = view
    _check_sizes((offset, size))
    if offset + size > whole.numel:
        raise _Refused("a storage view that reaches beyond its storage")
    start, stop = offset * whole.dtype.itemsize, (offset + size) * whole.dtype.itemsize
    return _Storage(whole.dtype, size, lambda: whole.read()[start:stop])


# ---- .safetensors


def _open_safetensors(data: mmap.mmap) -> dict[str, Tensor]:
    (length,) = struct.unpack("<Q", data[:8])
    start = 8 + length
    if length > _MAX_SAFETENSORS_HEADER or start > len(data):
        raise _Refused(f"a safetensors header of {length} bytes in a file of {len(data)}")
    try:
        header = json.loads(data[8:start].decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _Refused(f"malformed safetensors header ({error})") from None
    if not isinstance(header, dict):
        raise _Refused("malformed safetensors header")
    header.pop("__metadata__", None)
    tensors, ranges = {}, []
    for name, entry in header.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise _Refused(f"malformed safetensors entry {name!r}")
        if type(entry["shape"]) is not list or type(entry["data_offsets"]) is not list:
            raise _Refused(f"malformed safetensors entry {name!r}")
        if str(entry["dtype"]) not in _SAFETENSORS_DTYPES:
            raise _Refused(
                f"{name!r} has dtype {entry['dtype']!r}; known: {sorted(_SAFETENSORS_DTYPES)}"
            )
        dtype, shape = _SAFETENSORS_DTYPES[entry["dtype"]], tuple(entry["shape"])
        offsets = tuple(entry["data_offsets"])
        _check_sizes(shape + offsets)
        if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
            raise _Refused(f"{name!r}: {shape} {dtype} does not fit its offsets {offsets}")
        ranges.append((*offsets, name))
        storage = _Storage(dtype, math.prod(shape), _slicer(data, start, offsets))
        tensors[name] = _strided(storage, 0, shape, _contiguous_strides(shape))
    # The format demands that the tensors cover the data without gaps and without overlaps.
    position = 0
    for begin, end, name in sorted(ranges):
        if begin != position:
            raise _Refused(f"{name!r} overlaps another tensor or leaves a gap before it")
        position = end
    if start + position != len(data):
        raise _Refused(f"{len(data) - start} bytes of data, the header declares {position}")
    return tensors


def _write_safetensors(path: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> None:
    codes = {dtype: code for code, dtype in _SAFETENSORS_DTYPES.items()}
    header, position = {}, 0
    for name, array in tensors.items():
        end = position + array.nbytes
        entry = {"dtype": codes[array.dtype], "shape": array.shape, "data_offsets": [position, end]}
        header[name], position = entry, end
    encoded = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
    encoded += b" " * (-len(encoded) % 8)  # the data start at a multiple of 8
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array).tobytes())


def _slicer(data: mmap.mmap, start: int, offsets: tuple[int, int]) -> Callable[[], bytes]:
    return lambda: data[start + offsets[0] : start + offsets[1]]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise _Refused("a name stands twice in the safetensors header")
    return result


# ---- tensors


@dataclasses.dataclass(frozen=True)
class _Storage:
    """`numel` elements somewhere in the file."""

    dtype: np.dtype
    numel: int
    read: Callable[[], bytes]


def _strided(storage: _Storage, offset: int, shape: tuple, strides: tuple) -> Tensor:
    """The tensor with these strides (in elements), all of it inside its storage."""
    _check_sizes((offset, *shape, *strides))
    if len(shape) != len(strides) or len(shape) > _MAX_DIMENSIONS:
        raise _Refused(f"a tensor of shape {shape} with strides {strides}")
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    numel = math.prod(shape)
    # The second condition refuses tensors that repeat elements: small in the file, huge in memory.
    if numel and (last >= storage.numel or numel > storage.numel):
        raise _Refused(f"a tensor of shape {shape} reaches beyond its {storage.numel} elements")

    def read() -> np.ndarray:
        values = np.frombuffer(storage.read(), storage.dtype, storage.numel)
        if not numel:
            return np.zeros(shape, storage.dtype)
        return np.lib.stride_tricks.as_strided(
            values[offset:],
            shape,
            [s * storage.dtype.itemsize for s in strides],
            writeable=False,
        )

    return Tensor(storage.dtype, shape, read)


def _contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[k + 1 :]) for k in range(len(shape)))


def _check_sizes(sizes: tuple) -> None:
    if any(type(n) is not int or not 0 <= n < 2**62 for n in sizes):
        raise _Refused("sizes and offsets must be whole numbers that are not negative")


# ---- pickles


@dataclasses.dataclass(frozen=True)
class _Global:
    """A name that a pickle mentions; it stands for nothing that could be called."""

    name: str


@dataclasses.dataclass(frozen=True)
class _NumpyDtype:
    code: str


class _OrderedDict(dict):
    """Marks what may carry attributes; PyTorch adds `_metadata`, of which nothing is kept."""


def _rebuild_tensor(storage, offset, size, stride, requires_grad, hooks, metadata=None) -> Tensor:
    if not (isinstance(storage, _Storage) and type(size) is tuple and type(stride) is tuple):
        raise _Refused("malformed tensor")
    return _strided(storage, offset, size, stride)


def _rebuild_parameter(data, requires_grad, hooks) -> Tensor:
    if not isinstance(data, Tensor):
        raise _Refused("malformed parameter")
    return data


def _encode(text: str, encoding: str) -> bytes:
    """How pickle protocol 2 writes bytes."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise _Refused("malformed bytes")
    return text.encode("latin-1")


def _numpy_dtype(code: str, align: Any = False, copy: Any = True) -> _NumpyDtype:
    if code not in _NUMPY_SCALARS:
        raise _Refused(f"a NumPy value of type {code!r}")
    return _NumpyDtype(code)


def _numpy_scalar(dtype: _NumpyDtype, value: bytes) -> float | int | bool:
    """Official checkpoints keep their best mIoU as one of these."""
    if not isinstance(dtype, _NumpyDtype) or type(value) is not bytes:
        raise _Refused("malformed NumPy number")
    if len(value) != np.dtype(dtype.code).itemsize:
        raise _Refused("malformed NumPy number")
    return np.frombuffer(value, dtype.code)[0].item()


_FUNCTIONS: Mapping[str, Callable] = {
    "collections OrderedDict": lambda: _OrderedDict(),
    "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils _rebuild_parameter": _rebuild_parameter,
    "_codecs encode": _encode,
    "numpy dtype": _numpy_dtype,
    "numpy.core.multiarray scalar": _numpy_scalar,
    "numpy._core.multiarray scalar": _numpy_scalar,
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_CONTAINERS = {"EMPTY_DICT": dict, "EMPTY_LIST": list}
_NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT")
_STRINGS = ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING")
_BYTES = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8")
_VALUES = frozenset((*_NUMBERS, *_STRINGS, *_BYTES))
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Interpreter:
    """Runs the opcodes of a state dictionary.

    `storage(dtype, key, numel, ...)` answers persistent ids, which are how PyTorch refers to data.
    """

    def __init__(self, storage: Callable[..., _Storage]):
        self._storage = storage
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, file) -> Any:
        """Interprets one pickle, leaving `file` behind its end."""
        self._stack, self._marks, self._memo = [], [], {}
        try:
            for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
                if count > _MAX_OPERATIONS:
                    raise _Refused(f"a pickle of more than {_MAX_OPERATIONS} operations")
                self._step(opcode.name, argument)
            (result,) = self._stack
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, struct.error) as error:
            raise _Refused(f"malformed pickle ({error})") from None
        return result

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _CONTAINERS:
            stack.append(_CONTAINERS[name]())
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name in _TUPLES:
            stack.append(tuple(self._pop(_TUPLES[name])))
        elif name == "TUPLE":
            stack.append(tuple(self._pop_to_mark()))
        elif name in ("APPEND", "APPENDS"):
            items = self._pop(1) if name == "APPEND" else self._pop_to_mark()
            self._top(list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._pop(2) if name == "SETITEM" else self._pop_to_mark()
            self._set_items(self._top(dict), items)
        elif name == "GLOBAL":
            stack.append(self._global(argument))
        elif name == "STACK_GLOBAL":
            module, attribute = self._pop(2)
            stack.append(self._global(f"{module} {attribute}"))
        elif name == "BINPERSID":
            stack.append(self._persistent(*self._pop(1)))
        elif name == "REDUCE":
            function, arguments = self._pop(2)
            if not isinstance(function, _Global) or function.name not in _FUNCTIONS:
                raise _Refused("calls something that is not a function")
            stack.append(_FUNCTIONS[function.name](*arguments))
        elif name == "BUILD":
            self._build(*self._pop(1))
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise _Refused(f"its pickle uses {name}, which no state dictionary needs; not read")

    def _pop(self, count: int) -> list[Any]:
        if len(self._stack) - count < (self._marks[-1] if self._marks else 0):
            raise _Refused("malformed pickle (stack underflow)")
        items = self._stack[len(self._stack) - count :]
        del self._stack[len(self._stack) - count :]
        return items

    def _pop_to_mark(self) -> list[Any]:
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    def _top(self, kind: type) -> Any:
        if not isinstance(self._stack[-1], kind):
            raise _Refused(f"malformed pickle (no {kind.__name__} to fill)")
        return self._stack[-1]

    @staticmethod
    def _set_items(target: dict, items: list[Any]) -> None:
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Others are not needed, and hashing a tuple nested a million deep ends the process.
            if type(key) not in (str, int):
                raise _Refused(f"a dictionary key that is a {type(key).__name__}")
            target[key] = value

    @staticmethod
    def _global(name: str) -> _Global:
        if name not in _FUNCTIONS and name not in _STORAGES:
            raise _Refused(
                f"refers to {name.replace(' ', '.', 1)!r}, which is neither a tensor nor a plain "
                "container; nothing was executed. Save only the state_dict: "
                "torch.save(model.state_dict(), path)"
            )
        return _Global(name)

    def _persistent(self, identifier: Any) -> _Storage:
        if type(identifier) is not tuple or len(identifier) not in (5, 6):
            raise _Refused("malformed storage reference")
        tag, kind, key, _, numel, *view = identifier
        if tag != "storage" or not isinstance(kind, _Global) or kind.name not in _STORAGES:
            raise _Refused("malformed storage reference")
        if type(key) is not str:
            raise _Refused("malformed storage reference")
        _check_sizes((numel,))
        return self._storage(_STORAGES[kind.name], key, numel, *view)

    def _build(self, state: Any) -> None:
        target = self._stack[-1]
        if isinstance(target, _NumpyDtype):
            if type(state) is not tuple or len(state) < 2 or state[1] not in ("<", "|"):
                raise _Refused("a NumPy number of unknown byte order")
        elif not isinstance(target, _OrderedDict):
            raise _Refused("sets attributes of something other than a state dictionary; not read")
