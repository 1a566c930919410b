"""Tensors out of the pickles in which PyTorch keeps them, without running the pickles.

A pickle is a program. The interpreter here knows the few opcodes that state dictionaries consist
of, and its stack never holds anything callable: plain containers, numbers, strings, and tensors
whose data stay in the file until they are asked for. Any other opcode or name ends the reading
with an error before anything came of it.
"""

import dataclasses
import math
import pickletools
import struct
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

STORAGES = {
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
_NUMPY_SCALARS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
# A checkpoint of the largest network with its optimizer takes about 200,000 operations. Each may
# allocate some 70 bytes, so this bounds what a hostile pickle can make us hold.
_MAX_OPERATIONS = 5_000_000
_MAX_DIMENSIONS = 8


class Refused(Exception):
    """What is wrong with a file; the reader adds the file's name."""


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor in an open file: `numpy` reads its values, while the file is open."""

    dtype: np.dtype
    shape: tuple[int, ...]
    numpy: Callable[[], np.ndarray] = dataclasses.field(repr=False)


# ---- tensors


@dataclasses.dataclass(frozen=True)
class Storage:
    """`numel` elements somewhere in the file."""

    dtype: np.dtype
    numel: int
    read: Callable[[], bytes]


def strided(storage: Storage, offset: int, shape: tuple, strides: tuple) -> Tensor:
    """The tensor with these strides (in elements), all of it inside its storage."""
    check_sizes((offset, *shape, *strides))
    if len(shape) != len(strides) or len(shape) > _MAX_DIMENSIONS:
        raise Refused(f"a tensor of shape {shape} with strides {strides}")
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    numel = math.prod(shape)
    # The second condition refuses tensors that repeat elements: small in the file, huge in memory.
    if numel and (last >= storage.numel or numel > storage.numel):
        raise Refused(f"a tensor of shape {shape} reaches beyond its {storage.numel} elements")

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


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(math.prod(shape[k + 1 :]) for k in range(len(shape)))


def check_sizes(sizes: tuple) -> None:
    if any(type(n) is not int or not 0 <= n < 2**62 for n in sizes):
        raise Refused("sizes and offsets must be whole numbers that are not negative")


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
    if not (isinstance(storage, Storage) and type(size) is tuple and type(stride) is tuple):
        raise Refused("malformed tensor")
    return strided(storage, offset, size, stride)


def _rebuild_parameter(data, requires_grad, hooks) -> Tensor:
    if not isinstance(data, Tensor):
        raise Refused("malformed parameter")
    return data


def _encode(text: str, encoding: str) -> bytes:
    """How pickle protocol 2 writes bytes."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise Refused("malformed bytes")
    return text.encode("latin-1")


def _numpy_dtype(code: str, align: Any = False, copy: Any = True) -> _NumpyDtype:
    if code not in _NUMPY_SCALARS:
        raise Refused(f"a NumPy value of type {code!r}")
    return _NumpyDtype(code)


def _numpy_scalar(dtype: _NumpyDtype, value: bytes) -> float | int | bool:
    """Official checkpoints keep their best mIoU as one of these."""
    if not isinstance(dtype, _NumpyDtype) or type(value) is not bytes:
        raise Refused("malformed NumPy number")
    if len(value) != np.dtype(dtype.code).itemsize:
        raise Refused("malformed NumPy number")
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


class Interpreter:
    """Runs the opcodes of a state dictionary.

    `storage(dtype, key, numel, ...)` answers persistent ids, which are how PyTorch refers to data.
    """

    def __init__(self, storage: Callable[..., Storage]):
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
                    raise Refused(f"a pickle of more than {_MAX_OPERATIONS} operations")
                self._step(opcode.name, argument)
            (result,) = self._stack
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, struct.error) as error:
            raise Refused(f"malformed pickle ({error})") from None
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
                raise Refused("calls something that is not a function")
            stack.append(_FUNCTIONS[function.name](*arguments))
        elif name == "BUILD":
            self._build(*self._pop(1))
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise Refused(f"its pickle uses {name}, which no state dictionary needs; not read")

    def _pop(self, count: int) -> list[Any]:
        if len(self._stack) - count < (self._marks[-1] if self._marks else 0):
            raise Refused("malformed pickle (stack underflow)")
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
            raise Refused(f"malformed pickle (no {kind.__name__} to fill)")
        return self._stack[-1]

    @staticmethod
    def _set_items(target: dict, items: list[Any]) -> None:
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Others are not needed, and hashing a tuple nested a million deep ends the process.
            if type(key) not in (str, int):
                raise Refused(f"a dictionary key that is a {type(key).__name__}")
            target[key] = value

    @staticmethod
    def _global(name: str) -> _Global:
        if name not in _FUNCTIONS and name not in STORAGES:
            raise Refused(
                f"refers to {name.replace(' ', '.', 1)!r}, which is neither a tensor nor a plain "
                "container; nothing was executed. Save only the state_dict: "
                "torch.save(model.state_dict(), path)"
            )
        return _Global(name)

    def _persistent(self, identifier: Any) -> Storage:
        if type(identifier) is not tuple or len(identifier) not in (5, 6):
            raise Refused("malformed storage reference")
        tag, kind, key, _, numel, *view = identifier
        if tag != "storage" or not isinstance(kind, _Global) or kind.name not in STORAGES:
            raise Refused("malformed storage reference")
        if type(key) is not str:
            raise Refused("malformed storage reference")
        check_sizes((numel,))
        return self._storage(STORAGES[kind.name], key, numel, *view)

    def _build(self, state: Any) -> None:
        target = self._stack[-1]
        if isinstance(target, _NumpyDtype):
            if type(state) is not tuple or len(state) < 2 or state[1] not in ("<", "|"):
                raise Refused("a NumPy number of unknown byte order")
        elif not isinstance(target, _OrderedDict):
            raise Refused("sets attributes of something other than a state dictionary; not read")
