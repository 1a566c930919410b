"""Ends a run on a signal: Ctrl-C (SIGINT) from a user, SIGTERM from a scheduler.

The first signal asks the training loop to save and end. While nothing would be saved, as during the
first compilation, it ends the run at once, and so does the second signal.

`Interrupts` is for a call from Python, as in a notebook: Ctrl-C, or stopping the cell, raises
KeyboardInterrupt, and the process goes on. `ProcessWatch` is for a process that only trains, which
is `hrnet train`: "at once" ends the process.

With `jax.distributed`, JAX handles SIGTERM: a signal to any process reaches all of them, and they
agree on the step. Ctrl-C is passed on to it.
"""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any, Self

import jax
from jax.experimental import multihost_utils

logger = logging.getLogger(__name__)

# EX_TEMPFAIL of sysexits.h: try again later.
EXIT_CODE = 75


class Preempted(KeyboardInterrupt):
    """The run got a signal and has saved its state; the message names the step."""


class Interrupts:
    """Ctrl-C between `__enter__` and `__exit__`, as KeyboardInterrupt. SIGTERM stays as it is.

    At first, Ctrl-C raises at once; after `save_first`, it asks the loop to end.

    Python calls the handler when the main thread returns from compiled code, which may take
    minutes while it compiles. Outside the main thread, where Python cannot install handlers,
    signals are not handled here.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._name = ""  # of the first signal
        self._ends_at_once = not jax.distributed.is_initialized()
        self._polls = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {signal.SIGINT: signal.signal(signal.SIGINT, self._on_interrupt)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def requested(self) -> str:
        """The name of the signal that was received, or "".

        With several processes, all must call this equally often, at the same points of the run.
        They get the same answer.
        """
        self._polls += 1
        if jax.distributed.is_initialized():
            reached = multihost_utils.reached_preemption_sync_point(self._polls)
            return "SIGTERM" if reached else ""
        return self._name

    def save_first(self) -> None:
        """From now on, the first signal asks the loop to save and end."""
        with self._lock:
            self._ends_at_once = False

    @contextlib.contextmanager
    def end_at_once(self) -> Iterator[None]:
        """In this context, the first signal ends the run at once, if it is the only process."""
        with self._lock:
            self._ends_at_once = not jax.distributed.is_initialized()
            if self._name and self._ends_at_once:
                self._end(self._name, EXIT_CODE)
        try:
            yield
        finally:
            self.save_first()

    def _end(self, name: str, code: int) -> None:
        """Ends the run at once."""
        raise KeyboardInterrupt(
            f"{name} ended the run at once; the same call continues from the newest checkpoint"
        )

    def _on_interrupt(self, *_) -> None:
        # In the main thread, which may hold the lock.
        if self._name or self._ends_at_once:
            self._end("SIGINT", EXIT_CODE)
        self._name = "SIGINT"
        if jax.distributed.is_initialized():
            os.kill(os.getpid(), signal.SIGTERM)
        _say(f"{self._name}: saving and ending; a second one ends at once, without saving")


class ProcessWatch(Interrupts):
    """SIGTERM and Ctrl-C between `__enter__` and `__exit__`, for a process that only trains.

    As `Interrupts`, but "at once" ends the process: with `EXIT_CODE`, or with 128 and the number of
    the second signal. A thread reads the signals, so that they count in compiled code, too.
    """

    def __init__(self):
        super().__init__()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        signals = [signal.SIGINT]
        if not jax.distributed.is_initialized():
            signals.append(signal.SIGTERM)
        self._before = {s: signal.signal(s, lambda *_: None) for s in signals}
        # Python's C handler writes each signal's number into this pipe, whatever the main thread
        # is doing.
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
        super().__exit__()
        os.close(self._write)  # ends the thread
        self._thread.join()
        os.close(self._read)

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
                elif self._ends_at_once:
                    self._end(number.name, EXIT_CODE)
                self._name = number.name
            _say(f"{self._name}: saving and ending; a second signal ends at once")

    def _end(self, name: str, code: int) -> None:
        """Ends the process at once, with this exit code."""
        _say(f"{name} ends the run at once; the same command continues from the newest checkpoint")
        os._exit(code)


def _say(text: str) -> None:
    # Not through Python's buffers, whose locks the main thread may hold.
    os.write(2, f"\n{text}\n".encode())
