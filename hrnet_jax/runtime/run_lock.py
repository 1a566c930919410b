"""One run at a time in a folder: a lock that is released when its holder ends, in any way.

On one machine the kernel keeps the lock (flock) and releases it with the process, also after
kill -9. Other machines with the same folder may not see that lock. For them the holder writes its
host and the time into the lock file every `HEARTBEAT_SECONDS`. A process that finds another host
there watches the file, and takes the lock if the file does not change for `STALE_SECONDS`. The
clocks of two machines are never compared.
"""

import contextlib
import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import IO, Any

from etils import epath

from hrnet_jax.runtime import storage

logger = logging.getLogger(__name__)

FILE = "run.lock"
HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 60.0
ADVICE = (
    "two runs in one folder would destroy each other's checkpoints. End that run, or give another"
    " --workdir."
)


@contextlib.contextmanager
def locked(workdir: str | os.PathLike, *, advice: str = ADVICE) -> Iterator[None]:
    """Holds the lock of a folder, which is created where missing.

    Args:
      workdir: the folder of a run, or of other work that one process must do alone.
      advice: what the error says after naming the holder.

    Raises:
      ValueError: naming host and process, if another run holds it.
    """
    folder = storage.absolute(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / FILE
    me = {"host": socket.gethostname(), "pid": os.getpid(), "started": time.time()}
    with _flock(file) as kernel_agrees:
        holder = _read(file)
        if kernel_agrees is False:
            raise ValueError(_refusal(folder, holder, advice))
        # flock may not see other hosts, and object stores have no locks.
        if holder is not None and not _is_dead(holder, me, kernel_agrees):
            logger.info(
                "%s was in use by process %s on %s: watching for %.0f s whether it still is",
                *(folder, holder.get("pid"), holder["host"], STALE_SECONDS),
            )
            if _changes(file, holder):
                raise ValueError(_refusal(folder, holder, advice))
            logger.warning("taking over %s: that process has not renewed its lock", folder)
        stop = threading.Event()
        _renew(file, me)
        thread = threading.Thread(target=_keep, args=(file, me, stop), daemon=True, name="lock")
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            _write(file, "")


@contextlib.contextmanager
def _flock(file: epath.Path) -> Iterator[bool | None]:
    """Takes the kernel's lock: True, False if another process has it, None without such locks."""
    if storage.in_store(file):
        yield None
        return
    with open(file, "a") as stream:
        yield _try_flock(stream)


def _try_flock(stream: IO) -> bool | None:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # file systems without locks
        return None
    return True


def _is_dead(holder: dict[str, Any], me: dict[str, Any], kernel_agrees: bool | None) -> bool:
    """Whether the holder has certainly ended, which can be known on its own host only."""
    if holder["host"] != me["host"]:
        return False
    if kernel_agrees:
        return True
    try:
        os.kill(int(holder["pid"]), 0)
    except (ProcessLookupError, ValueError, TypeError, KeyError):
        return True
    except PermissionError:
        pass
    return False


def _changes(file: epath.Path, holder: dict[str, Any]) -> bool:
    deadline = time.monotonic() + STALE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(min(1.0, STALE_SECONDS / 10))
        if _read(file) != holder:
            return True
    return False


def _read(file: epath.Path) -> dict[str, Any] | None:
    try:
        holder = json.loads(storage.read_bytes(str(file)))
        return holder | {"host": str(holder["host"])}
    except (OSError, ValueError, KeyError, TypeError):  # released, or cut short by a crash
        return None


def _renew(file: epath.Path, me: dict[str, Any]) -> None:
    _write(file, json.dumps(me | {"renewed": time.time()}))


def _write(file: epath.Path, text: str) -> None:
    if storage.in_store(file):
        storage.write_text(file, text)
    else:  # into the locked file itself: a new file would have no lock
        file.write_text(text)


def _keep(file: epath.Path, me: dict[str, Any], stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        try:
            _renew(file, me)
        except OSError as error:
            logger.warning("cannot renew %s: %s", file, error)


def _refusal(folder: epath.Path, holder: dict[str, Any] | None, advice: str) -> str:
    who = "another process"
    if holder is not None:
        who = f"process {holder.get('pid')} on {holder['host']}"
    return f"{folder} is in use by {who}: {advice}"
