"""Weights on the hub, from a local stand-in for it: what is fetched, cached and refused."""

import http.server
import json
import os
import subprocess
import sys
import threading
import types
from pathlib import Path

import numpy as np
import official
import pytest

from hrnet_jax import from_torch
from hrnet_jax.models import VARIANTS
from hrnet_jax.pytorch import hub
from hrnet_jax.pytorch.files import write_tensors
from hrnet_jax.pytorch.layouts import LAYOUTS, leaves

ROOT = Path(__file__).parents[2]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hf://timm/hrnet_w48.ms_in1k", ("timm/hrnet_w48.ms_in1k", None, "")),
        ("hf://timm/hrnet_w48.ms_in1k@main", ("timm/hrnet_w48.ms_in1k", "main", "")),
        ("hf://me/x/a/b.pth", ("me/x", None, "a/b.pth")),
        ("hf://me/x@v1/b.safetensors", ("me/x", "v1", "b.safetensors")),
        ("timm:hrnet_w18.ms_aug_in1k", ("timm/hrnet_w18.ms_aug_in1k", None, "")),
        (f"timm:hrnet_w18.ms_in1k@{COMMIT}", ("timm/hrnet_w18.ms_in1k", COMMIT, "")),
    ],
)
def test_addresses(name, expected):
    assert hub.is_address(name)
    assert hub.parse(name) == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnet50", r"timm:resnet50: unknown; known: \['timm:hrnet_w18_small\.ms_in1k'"),
        ("hf://timm", "expected hf://OWNER/NAME"),
        ("hf://a/b/README.md", "not a file of weights"),
        ("hf://a/b@main@x", "expected hf://"),
    ],
)
def test_malformed_addresses(name, message):
    with pytest.raises(ValueError, match=message):
        hub.fetch(name)


def test_paths_are_no_addresses(tmp_path):
    for path in ("x.pth", str(tmp_path), "gs://bucket/x.pth", "timm/x.pth"):
        assert not hub.is_address(path)
        assert hub.fetch(path) == path


def test_short_names_are_of_known_variants():
    assert set(hub.TIMM.values()) <= set(VARIANTS)


def _weights(path) -> dict[str, np.ndarray]:
    (layout,) = (x for x in LAYOUTS if (x.name, x.head) == ("official", "features"))
    units = layout.units(VARIANTS["w18_small_v1"], 0)
    arrays = {leaf.key: official.weight(leaf.key, leaf.shape) for leaf in leaves(units)}
    write_tensors(path, arrays)
    return arrays


def test_from_torch_takes_an_address(tmp_path, monkeypatch):
    arrays = _weights(tmp_path / "pytorch_model.bin")
    asked = []

    class EntryNotFoundError(Exception):
        pass

    def download(repository, file, revision):
        asked.append((repository, file, revision))
        if not (tmp_path / file).exists():
            raise EntryNotFoundError(f"no {file}")
        return str(tmp_path / file)

    names = ("LocalEntryNotFoundError", "RepositoryNotFoundError", "RevisionNotFoundError")
    errors = types.ModuleType("huggingface_hub.errors")
    for name in (*names, "HfHubHTTPError"):
        setattr(errors, name, type(name, (Exception,), {}))
    errors.EntryNotFoundError = EntryNotFoundError
    module = types.ModuleType("huggingface_hub")
    module.hf_hub_download, module.errors = download, errors
    module.__spec__ = types.SimpleNamespace(name="huggingface_hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", errors)

    model, variables = from_torch("timm:hrnet_w18_small.ms_in1k@v1")
    assert (model.variant.name, model.head) == ("w18_small_v1", "features")
    kernel = variables["params"]["backbone"]["stem"]["conv1"]["conv"]["kernel"]
    np.testing.assert_array_equal(kernel, arrays["conv1.weight"].transpose(2, 3, 1, 0))
    assert asked == [
        ("timm/hrnet_w18_small.ms_in1k", name, "v1")
        for name in ("model.safetensors", "pytorch_model.bin")
    ]
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"hf://a/b: no model\.safetensors or pytorch"):
        from_torch("hf://a/b")


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"hf://a/b: needs huggingface_hub.*pip install"):
        hub.fetch("hf://a/b")


@pytest.fixture
def stand_in(tmp_path):
    """The address of a hub that has one file of timm/hrnet_w18_small.ms_in1k, and its requests."""
    file = tmp_path / "served.safetensors"
    _weights(file)
    content, requests = file.read_bytes(), []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self._answer(body=False)

        def do_GET(self):
            self._answer(body=True)

        def _answer(self, body):
            requests.append((self.command, self.path))
            known = "/timm/hrnet_w18_small.ms_in1k/resolve/"
            if not self.path.startswith(known) or not self.path.endswith("/model.safetensors"):
                found = self.path.startswith(known)
                self.send_response(404)
                code = "EntryNotFound" if found else "RepoNotFound"
                self.send_header("X-Error-Code", code)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("ETag", '"abc"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", requests, content
    server.shutdown()
    server.server_close()


def test_files_are_fetched_once_and_kept(tmp_path, stand_in):
    pytest.importorskip("huggingface_hub")
    address, requests, content = stand_in
    program = (
        "import json, sys\n"
        "from hrnet_jax.pytorch import hub\n"
        "try:\n    print(json.dumps(hub.fetch(sys.argv[1])))\n"
        "except (ValueError, FileNotFoundError) as error:\n    sys.exit(str(error))\n"
    )

    def fetch(name, **environment):
        settings = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache"), **environment}
        return subprocess.run(
            [sys.executable, "-c", program, name],
            cwd=ROOT, env=os.environ | {"HF_HUB_DISABLE_XET": "1"} | settings, check=False,
            capture_output=True, text=True,
        )  # fmt: skip

    done = fetch("timm:hrnet_w18_small.ms_in1k")
    assert done.returncode == 0, done.stderr
    file = Path(json.loads(done.stdout))
    assert file.read_bytes() == content
    assert file.is_relative_to(tmp_path / "cache")
    resolved = [path for method, path in requests if method == "GET" and "/resolve/" in path]
    assert len(resolved) == 1
    for environment in ({}, {"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        again = fetch("hf://timm/hrnet_w18_small.ms_in1k", **environment)
        assert json.loads(again.stdout) == str(file), again.stderr
    assert [p for method, p in requests if method == "GET" and "/resolve/" in p] == resolved
    offline = fetch("timm:hrnet_w48.ms_in1k", HF_HUB_OFFLINE="1")
    assert "is not in the cache, and the hub cannot be reached" in offline.stderr
    missing = fetch("hf://timm/hrnet_w18_small.ms_in1k/other.pth")
    assert "no other.pth in timm/hrnet_w18_small.ms_in1k" in missing.stderr
    assert "hf://a/b" in fetch("hf://a/b").stderr
