"""Two runs in one folder are refused; a dead one's folder is taken over, at once where possible."""

import json
import signal
import subprocess
import sys
import time

import pytest

from hrnet_jax.runtime import run_lock

HOLDER = """
import sys, time
from hrnet_jax.runtime import run_lock
with run_lock.locked(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(600)
"""


def _refused(folder, message):
    with pytest.raises(ValueError, match=message), run_lock.locked(str(folder)):
        pass


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(run_lock, "STALE_SECONDS", 0.5)
    monkeypatch.setattr(run_lock, "HEARTBEAT_SECONDS", 0.02)


def test_a_second_run_is_refused_until_the_first_one_ends(tmp_path):
    with run_lock.locked(str(tmp_path / "run")):
        _refused(tmp_path / "run", r"run is in use by process \d+ on .*another --workdir")
    with run_lock.locked(str(tmp_path / "run")):
        pass


def test_kill_9_opens_the_lock_at_once(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "locked\n"
    _refused(tmp_path, f"process {process.pid} on")
    process.send_signal(signal.SIGKILL)
    process.wait()
    start = time.monotonic()
    with run_lock.locked(str(tmp_path)):
        assert time.monotonic() - start < 5


def _write_holder(folder, **changes):
    holder = {"host": "elsewhere", "pid": 1, "started": 0.0, "renewed": 0.0}
    (folder / run_lock.FILE).write_text(json.dumps(holder | changes))


def test_silence_on_another_host_is_death(tmp_path, quick, caplog):
    _write_holder(tmp_path)
    with run_lock.locked(str(tmp_path)):
        assert json.loads((tmp_path / run_lock.FILE).read_text())["host"] != "elsewhere"
    assert "taking over" in caplog.text


def test_a_sign_from_another_host_is_life(tmp_path, quick, monkeypatch):
    _write_holder(tmp_path)
    monkeypatch.setattr(run_lock.time, "sleep", lambda _: _write_holder(tmp_path, renewed=1.0))
    _refused(tmp_path, "process 1 on elsewhere")


def test_the_holder_gives_signs(tmp_path, quick):
    with run_lock.locked(str(tmp_path)):
        before = (tmp_path / run_lock.FILE).read_text()
        time.sleep(0.3)
        assert (tmp_path / run_lock.FILE).read_text() != before
    assert (tmp_path / run_lock.FILE).read_text() == ""


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": 1}', "null"])
def test_a_lock_file_cut_short_is_no_holder(tmp_path, quick, text):
    (tmp_path / run_lock.FILE).write_text(text)
    with run_lock.locked(str(tmp_path)):
        pass


def test_without_the_kernels_locks(tmp_path, quick, monkeypatch):
    """As on object stores: the heartbeat decides, and the process where it is on this host."""
    monkeypatch.setattr(run_lock, "_try_flock", lambda _: None)
    with (
        run_lock.locked(str(tmp_path)),
        pytest.raises(ValueError, match="in use by process"),
        run_lock.locked(str(tmp_path)),
    ):
        pass
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    _write_holder(tmp_path, host=run_lock.socket.gethostname(), pid=ended.pid)
    monkeypatch.setattr(run_lock, "STALE_SECONDS", 600.0)
    with run_lock.locked(str(tmp_path)):
        pass


def test_the_refusal_ends_with_the_advice(tmp_path):
    with (
        run_lock.locked(tmp_path),
        pytest.raises(ValueError, match=rf"{tmp_path} is in use by process \d+ on .*: wait\.$"),
        run_lock.locked(tmp_path, advice="wait."),
    ):
        pass
