"""Runs that end in the middle: as if they were killed, or by Ctrl-C."""

import contextlib
import os
import signal
from collections.abc import Iterator

import pytest

from hrnet_jax.train import loop


class _StopError(Exception):
    pass


@contextlib.contextmanager
def stopped_at(step: int) -> Iterator[None]:
    """The training inside has to come to this step, and ends before anything of it is saved."""

    def stop(self, at, metrics, add=loop.Pace.add):
        if at == step:
            raise _StopError
        add(self, at, metrics)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Pace, "add", stop)
        with pytest.raises(_StopError):
            yield


@contextlib.contextmanager
def interrupted_at(step: int) -> Iterator[pytest.ExceptionInfo]:
    """The training inside gets one Ctrl-C when it comes to this step, and has to raise.

    The handler of the test comes back.
    """
    sent = []

    def interrupt(self, at, metrics, add=loop.Pace.add):
        if at == step and not sent:
            sent.append(os.kill(os.getpid(), signal.SIGINT))
        add(self, at, metrics)

    before = signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Pace, "add", interrupt)
        with pytest.raises(KeyboardInterrupt) as raised:
            yield raised
    assert signal.getsignal(signal.SIGINT) is before
