from pathlib import Path

from hrnet_jax.runtime import storage


def test_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    found = [
        str(storage.absolute(p)) for p in ("run", Path("a/b"), "~/run", "/r", "gs://bucket/run")
    ]
    assert found == [
        f"{tmp_path}/run",
        f"{tmp_path}/a/b",
        "/home/someone/run",
        "/r",
        "gs://bucket/run",
    ]
