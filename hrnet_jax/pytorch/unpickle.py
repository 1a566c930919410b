"""Reads tensors from the pickles in which PyTorch and PaddlePaddle keep them; executes nothing.

A pickle is a program. The interpreter here knows the few opcodes that checkpoints consist of. Its
stack never holds anything callable: plain containers, numbers, strings, tensors whose data stay in
the file until they are asked for, and placeholders.

A `Placeholder` stands for every object of another class, such as an `argparse.Namespace` beside the
weights. It keeps the name of the class and nothing else: the class is not imported, the object is
not built, and what the pickle would do with it (call, set state, fill) is read and discarded. Names
that no data consist of, such as `os.system`, end the reading with an error, as does any other
opcode.
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


class Placeholder:
    """An object of a class that is not read: the name of the class, nothing of its contents."""

    __slots__ = ("name",)
    # As the key of a dictionary it would be hashed and compared; such entries are left out.
    __hash__ = None

    def __init__(self, name: str):
        self.name = name


class NumpyArray:
    """An array of NumPy; `tensor` is None until its contents have been read."""

    __slots__ = ("tensor",)
    __hash__ = None

    def __init__(self):
        self.tensor: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class _Global:
    """A name that a pickle mentions; it stands for nothing that could be called."""

    name: str

    @property
    def text(self) -> str:
        """As Python writes it: module.name."""
        return self.name.replace(" ", ".", 1)


@dataclasses.dataclass(frozen=True)
class _NumpyDtype:
    code: str


class _OrderedDict(dict):
    """Marks what may carry attributes; PyTorch adds `_metadata`, of which nothing is kept."""


def _rebuild_tensor(storage, offset, size, stride, requires_grad, hooks, metadata=None) -> Tensor:
    if not (isinstance(storage, Storage) and type(size) is tuple and type(stride) is tuple):
        raise Refused("malformed tensor")
    return strided(storage, offset, size, stride)


def _rebuild_parameter(data, requires_grad, hooks, state=None) -> Tensor:
    if not isinstance(data, Tensor):
        raise Refused("malformed parameter")
    return data


def _rebuild_subclass(function, kind, arguments, state) -> Tensor:
    """A tensor of a subclass: the tensor."""
    if not isinstance(function, _Global) or type(arguments) is not tuple:
        raise Refused("malformed tensor")
    if function.name not in ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"):
        raise Refused(f"a tensor made by {function.text!r}")
    return _FUNCTIONS[function.name](*arguments)


def _encode(text: str, encoding: str) -> bytes:
    """How pickle protocol 2 writes bytes."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise Refused("malformed bytes")
    return text.encode("latin-1")


def _numpy_dtype(code: Any, align: Any = False, copy: Any = True) -> _NumpyDtype | Placeholder:
    if type(code) is str and code in _NUMPY_SCALARS:
        return _NumpyDtype(code)
    return Placeholder("numpy.dtype")


def _numpy_scalar(dtype: Any, value: Any) -> float | int | bool | Placeholder:
    """Official checkpoints keep their best mIoU as one of these."""
    if isinstance(dtype, Placeholder):
        return Placeholder("numpy.generic")
    if not isinstance(dtype, _NumpyDtype) or type(value) is not bytes:
        raise Refused("malformed NumPy number")
    if len(value) != np.dtype(dtype.code).itemsize:
        raise Refused("malformed NumPy number")
    return np.frombuffer(value, dtype.code)[0].item()


def _numpy_array(kind: Any, shape: Any, code: Any) -> NumpyArray:
    """An empty array; BUILD gives it shape, type and bytes."""
    return NumpyArray()


def _array_contents(state: Any) -> Tensor | None:
    """The array that BUILD describes; None where it is not one of numbers."""
    if type(state) is not tuple or len(state) != 5:
        raise Refused("malformed NumPy array")
    _, shape, dtype, fortran, data = state
    if isinstance(dtype, Placeholder):
        return None
    if not isinstance(dtype, _NumpyDtype) or type(shape) is not tuple or type(data) is not bytes:
        raise Refused("malformed NumPy array")
    check_sizes(shape)
    kind = np.dtype(dtype.code)
    if len(data) != math.prod(shape) * kind.itemsize:
        raise Refused(f"a NumPy array of shape {shape} with {len(data)} bytes")
    strides = contiguous_strides(shape)
    if fortran is True:
        strides = contiguous_strides(shape[::-1])[::-1]
    return strided(Storage(kind, math.prod(shape), lambda: data), 0, shape, strides)


def _defaultdict(factory: Any = None) -> _OrderedDict:
    return _OrderedDict()


_FUNCTIONS: Mapping[str, Callable] = {
    "collections OrderedDict": lambda: _OrderedDict(),
    "collections defaultdict": _defaultdict,
    "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils _rebuild_parameter": _rebuild_parameter,
    "torch._utils _rebuild_parameter_with_state": _rebuild_parameter,
    "torch._tensor _rebuild_from_type_v2": _rebuild_subclass,
    "_codecs encode": _encode,
    "numpy dtype": _numpy_dtype,
    "numpy.core.multiarray scalar": _numpy_scalar,
    "numpy._core.multiarray scalar": _numpy_scalar,
    "numpy.core.multiarray _reconstruct": _numpy_array,
    "numpy._core.multiarray _reconstruct": _numpy_array,
}
# Names with which pickles do harm in other readers. Here they would do none, since nothing is
# called, but a file with one of them is hostile or damaged, and no weights are taken from it.
_HARMFUL_MODULES = frozenset(
    (
        "posix", "nt", "os", "sys", "subprocess", "socket", "shutil", "importlib", "runpy",
        "pickle", "_pickle", "cPickle", "ctypes", "code", "commands", "pty", "webbrowser", "urllib",
        "http", "multiprocessing", "asyncio", "threading", "signal", "pip", "pdb", "bdb", "timeit",
        "cProfile",
    )
)  # fmt: skip
# Of these only what `_FUNCTIONS` lists: all else stands for tensors, or loads something.
_TENSOR_MODULES = ("torch._utils", "torch.storage", "torch.serialization", "torch.hub", "torch.jit")
_BUILTIN_MODULES = ("builtins", "__builtin__")
_BUILTIN_TYPES = frozenset(
    (
        "set", "frozenset", "complex", "bytearray", "slice", "range", "object", "getattr", "list",
        "dict", "tuple", "int", "float", "str", "bool", "bytes", "type",
    )
)  # fmt: skip
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
            if not isinstance(stack[-1], Placeholder):
                self._top(list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._pop(2) if name == "SETITEM" else self._pop_to_mark()
            if not isinstance(stack[-1], Placeholder):
                self._set_items(self._top(dict), items)
        elif name == "EMPTY_SET":
            stack.append(Placeholder("builtins.set"))
        elif name == "ADDITEMS":
            self._pop_to_mark()
            self._top(Placeholder)
        elif name == "FROZENSET":
            self._pop_to_mark()
            stack.append(Placeholder("builtins.frozenset"))
        elif name == "GLOBAL":
            stack.append(self._global(argument))
        elif name == "STACK_GLOBAL":
            module, attribute = self._pop(2)
            stack.append(self._global(f"{module} {attribute}"))
        elif name == "BINPERSID":
            stack.append(self._persistent(*self._pop(1)))
        elif name == "REDUCE":
            stack.append(self._call(*self._pop(2)))
        elif name in ("NEWOBJ", "NEWOBJ_EX"):
            kind, *_ = self._pop(2 if name == "NEWOBJ" else 3)
            stack.append(self._new(kind))
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
            # Weights have no other keys. To hash a tuple nested a million deep ends the process.
            if type(key) in (str, int):
                target[key] = value

    @staticmethod
    def _global(name: str) -> _Global:
        found = _Global(name)
        module, _, attribute = name.partition(" ")
        whole = f"{module} {attribute.partition('.')[0]}"  # OrderedDict of OrderedDict.fromkeys
        if name in _FUNCTIONS or name in STORAGES:
            return found
        if (
            module.partition(".")[0] in _HARMFUL_MODULES
            or module in _TENSOR_MODULES
            or whole in _FUNCTIONS
            or (module in _BUILTIN_MODULES and attribute.partition(".")[0] not in _BUILTIN_TYPES)
            or (module == "torch" and attribute.endswith("Storage"))
        ):
            raise Refused(
                f"refers to {found.text!r}, which no weights need; nothing was executed. Save only"
                " the state_dict: torch.save(model.state_dict(), path)"
            )
        return found

    @staticmethod
    def _call(function: Any, arguments: Any) -> Any:
        if not isinstance(function, _Global) or function.name in STORAGES:
            raise Refused("calls something that is not a function")
        if function.name in _FUNCTIONS:
            return _FUNCTIONS[function.name](*arguments)
        if type(arguments) is not tuple:
            raise Refused("malformed pickle (no arguments to a call)")
        # tuple((name, array)), with which PaddlePaddle wraps arrays.
        if function.name in ("builtins tuple", "__builtin__ tuple") and len(arguments) == 1:
            (items,) = arguments
            return tuple(items) if type(items) in (tuple, list) else Placeholder(function.text)
        # The class of an object of protocol 0 or 1 is the first argument.
        if function.name in ("copyreg _reconstructor", "copy_reg _reconstructor") and arguments:
            return Interpreter._new(arguments[0])
        return Placeholder(function.text)

    @staticmethod
    def _new(kind: Any) -> Placeholder:
        if not isinstance(kind, _Global) or kind.name in _FUNCTIONS or kind.name in STORAGES:
            raise Refused("makes an object of something that is not a class")
        return Placeholder(kind.text)

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
        elif isinstance(target, NumpyArray):
            target.tensor = _array_contents(state)
        elif not isinstance(target, _OrderedDict | Placeholder):
            raise Refused("sets attributes of something other than a state dictionary; not read")
