"""Reading files: what is right comes out, what is hostile or damaged does not get in."""

import argparse
import collections
import datetime
import io
import json
import os
import pathlib
import pickle
import struct
import sys
import types
import zipfile
from typing import ClassVar

import ml_dtypes
import numpy as np
import pytest

from hrnet_jax import from_torch
from hrnet_jax.pytorch.files import open_tensors, write_tensors

RNG = np.random.default_rng(0)
ARRAYS = {
    "conv.weight": RNG.normal(size=(4, 3, 3, 3)).astype(np.float32),
    "bn.running_var": RNG.normal(size=5),
    "half": RNG.normal(size=(2, 3)).astype(np.float16),
    "bfloat16": RNG.normal(size=3).astype(ml_dtypes.bfloat16),
    "num_batches_tracked": np.array(7, np.int64),
    "empty": np.zeros((0, 3), np.float32),
}
MAGIC = 0x1950A86A20F9469CFC6C


class _Named:
    """Pickles as a reference to module.name."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class _Storage:
    def __init__(self, *identifier):
        self.identifier = identifier


class _Call:
    """Pickles as a call, and as setting a state where there is one."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.reduced


class _Pickler(pickle._Pickler):
    """Python's own, in Python: it lets names be written without importing them."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_named(self, obj):
        self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())

    dispatch[_Named] = save_named

    def persistent_id(self, obj):
        return obj.identifier if isinstance(obj, _Storage) else None

    def save_reduce(self, func, args, state=None, **kwargs):
        self.save(func)
        self.save(args)
        self.write(pickle.REDUCE)
        if state is not None:
            self.save(state)
            self.write(pickle.BUILD)


def _pickle(value) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, 2).dump(value)
    return buffer.getvalue()


def _zip(path, value, storages=(), *, compression=zipfile.ZIP_STORED, extra=()):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", value if isinstance(value, bytes) else _pickle(value))
        for key, data in storages:
            archive.writestr(f"archive/data/{key}", data)
        for name, data in extra:
            archive.writestr(f"archive/{name}", data)


def _legacy(path, value, storages=(), *, little_endian=True):
    system = {"protocol_version": 1001, "little_endian": little_endian, "type_sizes": {}}
    contents = value if isinstance(value, bytes) else _pickle(value)
    with open(path, "wb") as file:
        for part in (_pickle(MAGIC), _pickle(1001), _pickle(system), contents):
            file.write(part)
        file.write(_pickle([key for key, _ in storages]))
        for _, data in storages:
            file.write(struct.pack("<q", len(data) // 4) + data)


WRITERS = {"zip": _zip, "legacy": _legacy}


def _tensor(key="0", numel=6, offset=0, size=(2, 3), stride=(3, 1), kind="FloatStorage"):
    view = (None,) if key.startswith("legacy") else ()
    storage = _Storage("storage", _Named("torch", kind), key, "cpu", numel, *view)
    hooks = _Call(_Named("collections", "OrderedDict"))
    rebuild = _Named("torch._utils", "_rebuild_tensor_v2")
    return _Call(rebuild, storage, offset, size, stride, False, hooks)


SIX = np.arange(6, dtype="<f4")


def _read(path):
    with open_tensors(path) as contents:
        return {k: np.array(t.numpy()) for k, t in contents.items()}


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_written_files_read_back(tmp_path, suffix):
    path = tmp_path / f"weights.{suffix}"
    write_tensors(path, ARRAYS)
    found = _read(path)
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    assert os.listdir(tmp_path) == [path.name]


def test_safetensors_whose_length_begins_like_a_pickle(tmp_path):
    """The header's length is a multiple of 8; every 32nd begins with a pickle's first byte."""
    path, first_bytes = tmp_path / "weights.safetensors", set()
    for padding in range(0, 256, 8):
        write_tensors(path, {"x": SIX}, {"note": " " * padding})
        first_bytes.add(path.read_bytes()[:1])
        np.testing.assert_array_equal(_read(path)["x"], SIX)
    assert len(first_bytes) == 32
    assert b"\x80" in first_bytes


def test_write_refuses(tmp_path):
    with pytest.raises(ValueError, match=r"unknown suffix.*weights\.npz"):
        write_tensors(tmp_path / "weights.npz", ARRAYS)
    with pytest.raises(ValueError, match="'x' holds complex128"):
        write_tensors(tmp_path / "weights.pth", {"x": np.zeros(1, np.complex128)})
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_official_container(tmp_path, write):
    """Tensors with strides, a parameter, attributes on the dictionary, a NumPy number."""
    ordered = _Call(_Named("collections", "OrderedDict"), state={"_metadata": {"version": 1}})
    dtype = _Call(_Named("numpy", "dtype"), "f8", 0, 1, state=(3, "<", None, None, None, -1, -1, 0))
    encoded = _Call(
        _Named("_codecs", "encode"), struct.pack("<d", 0.811).decode("latin-1"), "latin1"
    )
    score = _Call(_Named("numpy.core.multiarray", "scalar"), dtype, encoded)
    parameter = _Call(
        _Named("torch._utils", "_rebuild_parameter"),
        _tensor(size=(2,), stride=(2,), offset=1),
        True,
        ordered,
    )
    value = {
        "epoch": 484,
        "best_mIoU": score,
        "state_dict": {
            "a": _tensor(),
            "transposed": _tensor(size=(3, 2), stride=(1, 3)),
            "p": parameter,
        },
        "optimizer": {"state": {0: {"momentum_buffer": None}}, "lr": 0.01, "betas": (0.9, 0.99)},
        "note": ordered,
    }
    write(tmp_path / "x.pth", value, [("0", SIX.tobytes())])
    with open_tensors(tmp_path / "x.pth") as contents:
        assert contents["epoch"] == 484
        assert contents["best_mIoU"] == 0.811
        assert contents["optimizer"]["betas"] == (0.9, 0.99)
        assert contents["note"] == {}
        tensors = contents["state_dict"]
        np.testing.assert_array_equal(tensors["a"].numpy(), SIX.reshape(2, 3))
        np.testing.assert_array_equal(tensors["transposed"].numpy(), SIX.reshape(2, 3).T)
        np.testing.assert_array_equal(tensors["p"].numpy(), [1, 3])


def test_legacy_storage_views(tmp_path):
    storage = _Storage("storage", _Named("torch", "FloatStorage"), "0", "cpu", 6, ("1", 2, 3))
    hooks = _Call(_Named("collections", "OrderedDict"))
    rebuild = _Named("torch._utils", "_rebuild_tensor_v2")
    value = {"a": _Call(rebuild, storage, 1, (2,), (1,), False, hooks)}
    _legacy(tmp_path / "x.pth", value, [("0", SIX.tobytes())])
    np.testing.assert_array_equal(_read(tmp_path / "x.pth")["a"], [3, 4])


def _hostile(marker) -> dict[str, object]:
    command = f"touch {marker}"
    text = pickle.BINUNICODE + struct.pack("<I", len(command)) + command.encode()

    def program(*parts: bytes) -> bytes:
        return b"\x80\x02" + b"".join(parts) + pickle.STOP

    system = b"cposix\nsystem\n"
    ordered = b"ccollections\nOrderedDict\n"
    return {
        "a call": {"state_dict": _Call(_Named("posix", "system"), command)},
        "eval": {"x": _Call(_Named("builtins", "eval"), f"__import__('os').system({command!r})")},
        "a call deep inside": {"a": [{"b": (1, _Call(_Named("os", "system"), command))}]},
        "a storage's type": {"a": _Storage("storage", _Named("os", "system"), "0", "cpu", 6)},
        "hooks": {"a": _Call(_Named("torch._utils", "_rebuild_tensor"), command)},
        "STACK_GLOBAL": program(
            b"\x8c\x05posix\x8c\x06system\x93", text, pickle.TUPLE1, pickle.REDUCE
        ),
        "INST": program(b"(", text, b"iposix\nsystem\n"),
        "OBJ": program(b"(", system, text, b"o"),
        "NEWOBJ": program(ordered, b")\x81"),
        "EXT": program(b"\x82\x01"),
        "calling a string": program(text, b")R"),
        "calling what a call gave": program(ordered, b")R", b")R"),
        "state of a function": program(ordered, b"}", text, b"K\x01sb"),
        "PERSID": program(b"Pposix.system\n"),
        "hugging a dotted name": program(b"ccollections\nOrderedDict.fromkeys\n)R"),
        "torch.load within": {"a": _Call(_Named("torch.storage", "_load_from_bytes"), b"x")},
    }


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("kind", _hostile("/nowhere"))
def test_nothing_is_executed(tmp_path, kind, write):
    marker = tmp_path / "executed"
    write(tmp_path / "x.pth", _hostile(marker)[kind], [("0", SIX.tobytes())])
    with pytest.raises(ValueError, match=r"x\.pth: "), open_tensors(tmp_path / "x.pth"):
        pass
    assert not marker.exists()


def test_hostile_files_would_have_run(tmp_path):
    """That the test above tests something: Python's own reader does execute its first case."""
    marker = tmp_path / "executed"
    pickle.loads(_pickle(_hostile(marker)["a call"]))
    assert marker.exists()


def test_refusal_names_the_culprit(tmp_path):
    _zip(tmp_path / "x.pth", {"model": _Call(_Named("torch.nn.modules.conv", "Conv2d"))})
    with pytest.raises(ValueError, match=r"torch\.nn\.modules\.conv\.Conv2d.*nothing was executed"):
        from_torch(tmp_path / "x.pth")


def _strangers(marker) -> dict[str, object]:
    """Objects of classes that we do not know, and that would do harm if they were built."""
    command = f"touch {marker}"
    text = pickle.BINUNICODE + struct.pack("<I", len(command)) + command.encode()
    stranger = b"cevil\nObject\n"

    def program(*parts: bytes) -> bytes:
        """{"a": tensor?, "x": ...} is written by hand: protocol 2, an object under "x"."""
        return b"\x80\x02}X\x01\x00\x00\x00x" + b"".join(parts) + b"s."

    return {
        "a call": {"x": _Call(_Named("evil", "run"), command)},
        "a state": {"x": _Call(_Named("evil", "Object"), command, state={"a": command})},
        "NEWOBJ": program(stranger, b")\x81"),
        "NEWOBJ with arguments": program(stranger, text, b"\x85\x81"),
        "NEWOBJ_EX": program(stranger, b")}\x92"),
        "NEWOBJ and a state": program(stranger, b")\x81}", text, b"K\x01sb"),
        "an object in the state": program(stranger, b")\x81", stranger, b")\x81b"),
        "copyreg": program(b"ccopyreg\n_reconstructor\n(", stranger, b"c__builtin__\nobject\nNtR"),
        "a list's items": program(stranger, b")\x81(", text, b"e"),
        "a dictionary's items": program(stranger, b")\x81(", text, b"K\x01u"),
        "a set": program(b"c__builtin__\nset\n](", stranger, b")\x81e\x85R"),
        "nested in a key": program(b"}(", stranger, b")\x81\x85K\x01u"),
        "a key": program(b"}", stranger, b")\x81K\x01s"),
        "getattr": program(b"c__builtin__\ngetattr\n", stranger, text, b"\x86R"),
        "a class": program(stranger),
        "a hook": {"x": _Call(_Named("functools", "partial"), _Named("evil", "run"), command)},
    }


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("kind", _strangers("/nowhere"))
def test_strangers_are_placeholders(tmp_path, monkeypatch, kind, write):
    """What is beside the tensors is neither imported nor built, called, hashed or compared."""
    marker = tmp_path / "executed"

    class Object:
        def __new__(cls, *_, **__):
            raise AssertionError("built")

        __init__ = __setstate__ = __hash__ = __eq__ = __call__ = __reduce__ = __new__

    evil = types.ModuleType("evil")
    evil.Object, evil.run = Object, os.system
    monkeypatch.setitem(sys.modules, "evil", evil)
    write(tmp_path / "x.pth", _strangers(marker)[kind])
    with open_tensors(tmp_path / "x.pth") as contents:
        assert set(contents) == {"x"}
        assert not callable(contents["x"])
        assert type(contents["x"]).__module__ in ("builtins", "hrnet_jax.pytorch.unpickle")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((b"cevil\nObject\n)R", b")R"), "not a function"),
        ((b"cevil\nObject\n)\x81", b")R"), "not a function"),
        ((b"cevil\nObject\n)\x81", b")\x81"), "not a class"),
        ((b"ccollections\nOrderedDict\n)\x81",), "not a class"),
        ((b"cevil\nObject\n}b",), "sets attributes"),
        ((b"ctorch._utils\n_rebuild_parameter\n(cevil\nObject\n)\x81\x89NtR",), "parameter"),
        ((b"(X\x07\x00\x00\x00storagecevil\nObject\nX\x01\x00\x00\x000NK\x06tQ",), "storage"),
        ((b"cos\nsystem\n",), r"os\.system"),
        ((b"c__builtin__\neval\n",), "eval"),
        ((b"csubprocess\nPopen\n",), "Popen"),
        ((b"cos.path\njoin\n",), r"os\.path"),
    ],
)
def test_placeholders_cannot_be_used(tmp_path, parts, message):
    _zip(tmp_path / "x.pth", b"\x80\x02}X\x01\x00\x00\x00x" + b"".join(parts) + b"s.")
    with pytest.raises(ValueError, match=rf"x\.pth: .*{message}"), open_tensors(tmp_path / "x.pth"):
        pass


def test_real_objects_beside_the_weights(tmp_path):
    """As argparse, pathlib, datetime and NumPy pickle themselves."""
    beside = {
        "args": argparse.Namespace(lr=0.1),
        "path": pathlib.PurePosixPath("/data"),
        "when": datetime.datetime(2020, 1, 1),
        "names": {"a", "b"},
        "counts": collections.defaultdict(list, {"a": [1]}),
        "history": np.arange(5.0),
        "objects": np.array(["a", None], object),
        "metric": np.float64(0.5),
        (1, 2): "a key that no weights have",
    }
    for protocol in (2, 4):
        data = pickle.dumps(beside, protocol)
        _zip(tmp_path / "x.pth", data)
        with open_tensors(tmp_path / "x.pth") as contents:
            assert set(contents) == {key for key in beside if isinstance(key, str)}
            assert contents["metric"] == 0.5
            assert contents["counts"] == {"a": [1]}
            assert contents["args"].name == "argparse.Namespace"
            np.testing.assert_array_equal(contents["history"].tensor.numpy(), np.arange(5.0))
            assert contents["objects"].tensor is None


@pytest.mark.parametrize("protocol", [2, 4])
def test_pdparams(tmp_path, protocol):
    """PaddlePaddle's files are pickles of NumPy arrays, some in (name, array)."""
    arrays = {"conv.weight": RNG.normal(size=(2, 3)).astype(np.float32), "bn._mean": SIX}
    wrapped = arrays | {"conv.weight": ("conv2d_0.w_0", np.asfortranarray(arrays["conv.weight"]))}
    (tmp_path / "x.pdparams").write_bytes(pickle.dumps(wrapped, protocol))
    with open_tensors(tmp_path / "x.pdparams") as contents:
        name, array = contents["conv.weight"]
        assert name == "conv2d_0.w_0"
        np.testing.assert_array_equal(array.tensor.numpy(), arrays["conv.weight"])
        np.testing.assert_array_equal(contents["bn._mean"].tensor.numpy(), SIX)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ({"size": (2, 4), "stride": (4, 1)}, "reaches beyond its 6 elements"),
        ({"offset": 1}, "reaches beyond"),
        ({"offset": -1}, "not negative"),
        ({"stride": (-3, 1)}, "not negative"),
        ({"size": (2**40,), "stride": (0,)}, "reaches beyond"),  # small here, huge in memory
        ({"size": (2, 3), "stride": (1,)}, "strides"),
        ({"size": (True, 3)}, "whole numbers"),
        ({"numel": 2**40}, "not of its declared size"),
        ({"numel": 5, "size": (5,), "stride": (1,)}, "not of its declared size"),
        ({"kind": "DoubleStorage"}, "not of its declared size"),
        ({"kind": "QInt8Storage"}, r"torch\.QInt8Storage"),
    ],
)
def test_sizes_are_checked(tmp_path, write, tensor, message):
    write(tmp_path / "x.pth", {"a": _tensor(**tensor)}, [("0", SIX.tobytes())])
    with pytest.raises(ValueError, match=message):
        _read(tmp_path / "x.pth")


def test_damaged_zip(tmp_path):
    path = tmp_path / "x.pth"
    _zip(path, {"a": _tensor()}, [("0", SIX.tobytes())])
    whole = path.read_bytes()
    path.write_bytes(whole.replace(SIX.tobytes(), SIX.tobytes()[:-1] + b"\x00"))
    with pytest.raises(ValueError, match=r"x\.pth.*CRC"):
        _read(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"x\.pth.*zip"):
        _read(path)


@pytest.mark.parametrize("cut", [3, 20, 200, -8, -1])
def test_damaged_legacy(tmp_path, cut):
    path = tmp_path / "x.pth"
    _legacy(path, {"a": _tensor()}, [("0", SIX.tobytes())])
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=r"x\.pth"):
        _read(path)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_random_damage(tmp_path, kind):
    """Either what came out is tensors, or the error is ours and names the file."""
    path = tmp_path / "x.pth"
    if kind == "safetensors":
        write_tensors(tmp_path / "x.safetensors", ARRAYS)
        whole = (tmp_path / "x.safetensors").read_bytes()
    else:
        WRITERS[kind](path, {"a": _tensor(), "b": [(1, "x")]}, [("0", SIX.tobytes())])
        whole = path.read_bytes()
    rng, refused = np.random.default_rng(0), 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.integers(len(damaged))] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            with open_tensors(path) as contents:
                [t.numpy() for t in contents.values() if hasattr(t, "numpy")]
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017
            refused += 1
    assert refused > 100


def test_refused_zips(tmp_path):
    path, storages = tmp_path / "x.pth", [("0", SIX.tobytes())]
    _zip(path, {"a": _tensor()}, storages, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="compressed"):
        _read(path)
    _zip(path, {"a": _tensor()}, storages, extra=[("constants.pkl", b"")])
    with pytest.raises(ValueError, match="TorchScript"):
        _read(path)
    _zip(path, {"a": _tensor()}, storages, extra=[("byteorder", b"big")])
    with pytest.raises(ValueError, match="big-endian"):
        _read(path)
    with pytest.warns(UserWarning, match="Duplicate"):
        _zip(path, {"a": _tensor()}, storages * 2)
    with pytest.raises(ValueError, match="twice"):
        _read(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no weights")
    with pytest.raises(ValueError, match=r"without a data\.pkl"):
        _read(path)


def test_refused_legacy(tmp_path):
    path = tmp_path / "x.pth"
    _legacy(path, {"a": _tensor()}, [("0", SIX.tobytes())], little_endian=False)
    with pytest.raises(ValueError, match="big-endian"):
        _read(path)
    _legacy(path, {"a": _tensor()}, [])
    with pytest.raises(ValueError, match="list of storages"):
        _read(path)
    path.write_bytes(pickle.dumps({"weights": [1.0] * 9}))
    with pytest.raises(ValueError, match="not one that PyTorch or PaddlePaddle wrote"):
        _read(path)


def test_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        _read(tmp_path / "absent.pth")
    path = tmp_path / "x.pth"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="0 bytes"):
        _read(path)
    path.write_bytes(b"<!DOCTYPE html><html>not found</html>")
    with pytest.raises(ValueError, match=r"neither a zip \.pth"):
        _read(path)
    path = tmp_path / "model.pdiparams"
    path.write_bytes(bytes(100))
    with pytest.raises(ValueError, match=r"model\.pdiparams: .*take the \.pdparams file"):
        _read(path)


def _safetensors(path, header):
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + SIX.tobytes())


def _entry(start, end, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": _entry(0, 16, [4]), "b": _entry(8, 24, [4])}, "invalid offset.*b"),
        ({"a": _entry(0, 8, [2]), "b": _entry(12, 24, [3])}, "invalid offset.*b"),
        ({"a": _entry(0, 12, [3])}, "not fully covered"),
        ({"a": _entry(0, 48, [12])}, "not fully covered"),
        ({"a": _entry(0, 24, [7])}, "invalid shape, data type, or offset"),
        ({"a": _entry(0, 24, [-6])}, "-6"),
        ({"a": _entry(0, 24, [24], "F8_E4M3")}, "'a' has dtype 'F8_E4M3'; known"),
        ({"a": {"dtype": "F32"}}, "missing field `shape`"),
        ({"a": _entry(0, 24, 6)}, "expected a sequence"),
        ({"a": _entry(0, 24, [2**63, 2**63])}, "overflow"),
        ({"a": _entry(0, 24, [6]), "__metadata__": {"x": 3}}, "expected a string"),
        (b'{"a": 1, "a": 2}', "not a sound safetensors file"),
        (b"{" + b'"a":{' * 100_000, "recursion limit"),
        (b"{not json}", "not a sound safetensors file"),
    ],
)
def test_refused_safetensors(tmp_path, header, message):
    path = tmp_path / "x.safetensors"
    _safetensors(path, header)
    with pytest.raises(ValueError, match=message):
        _read(path)


def test_safetensors_header_longer_than_the_file(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 2**60) + b"{" + b" " * 20)
    with pytest.raises(ValueError, match=r"x\.safetensors: .*header too large"):
        _read(path)
