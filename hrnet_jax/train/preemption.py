"""Ends a run when it is told to: SIGTERM from a scheduler, Ctrl-C (SIGINT) from a user.

The first signal asks the training loop to save and end, the second one ends the process at once.
Where nothing would be saved, as during the first compilation, the first signal does so as well.
Signals are read by a thread: Python's own handlers wait until the main thread comes back from
compiled code, which may take minutes.

With `jax.distributed`, SIGTERM is JAX's: a signal to any process reaches all of them, and they
agree on the step. Ctrl-C is handed on to it.
"""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils

logger = logging.getLogger(__name__)

# EX_TEMPFAIL of sysexits.h: try again later.
EXIT_CODE = 75


class Preempted(Exception):
    """The run was told to end and has saved its state; the message says at which step."""


class Watch:
    """Notices signals between `__enter__` and `__exit__`; at first, there is nothing to lose.

    Outside the main thread, where Python cannot install handlers, signals keep their meaning.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._name = ""  # of the first signal
        self._nothing_to_lose = not jax.distributed.is_initialized()
        self._polls = 0
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "Watch":
        if threading.current_thread() is not threading.main_thread():
            return self
        signals = [signal.SIGINT]
        if not jax.distributed.is_initialized():
            signals.append(signal.SIGTERM)
        self._before = {s: signal.signal(s, lambda *_: None) for s in signals}
        # The interpreter's handler in C writes the numbers of signals there, whatever the main
        # thread is doing.
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._wakeup_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        if self._thread is None:
            return
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._write)  # ends the thread
        self._thread.join()
        os.close(self._read)

    def requested(self) -> str:
        """The name of the signal that asks for the end, or "".

        With several processes, all have to call this equally often, at the same points of the run;
        then they get the same answer.
        """
        self._polls += 1
        if jax.distributed.is_initialized():
            reached = multihost_utils.reached_preemption_sync_point(self._polls)
            return "SIGTERM" if reached else ""
        return self._name

    def something_to_lose(self) -> None:
        """From now on, the first signal only asks for the end."""
        with self._lock:
            self._nothing_to_lose = False

    @contextlib.contextmanager
    def nothing_to_lose(self) -> Iterator[None]:
        """While this lasts, a single process ends at the first signal."""
        with self._lock:
            self._nothing_to_lose = not jax.distributed.is_initialized()
            if self._name and self._nothing_to_lose:
                self._end(self._name, EXIT_CODE)
        try:
            yield
        finally:
            self.something_to_lose()

    def _listen(self) -> None:
        single = not jax.distributed.is_initialized()
        while numbers := os.read(self._read, 1):
            number = signal.Signals(numbers[0])
            if number not in self._before:
                continue
            with self._lock:
                if self._name:
                    self._end(f"{number.name}, the second signal,", 128 + number)
                if not single:
                    os.kill(os.getpid(), signal.SIGTERM)
                elif self._nothing_to_lose:
                    self._end(number.name, EXIT_CODE)
                self._name = number.name
            _say(f"{self._name}: saving and ending; once more ends at once")

    @staticmethod
    def _end(name: str, code: int) -> None:
        _say(f"{name} ends the run at once; the same command continues from the newest checkpoint")
        os._exit(code)


def _say(text: str) -> None:
    # Past Python's buffers, whose locks the main thread may hold.
    os.write(2, f"\n{text}\n".encode())
