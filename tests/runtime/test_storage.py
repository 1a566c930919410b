import os
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


def test_written_with_sync_flushes_before_the_file_gets_its_name(tmp_path, monkeypatch):
    there = []
    monkeypatch.setattr(os, "fsync", lambda handle: there.append((tmp_path / "a").exists()))
    storage.write_bytes(tmp_path / "a", b"1")
    assert there == []
    (tmp_path / "a").unlink()
    storage.write_bytes(tmp_path / "a", b"2", sync=True)
    assert there == [False]
    assert (tmp_path / "a").read_bytes() == b"2"
