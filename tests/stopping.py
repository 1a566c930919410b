"""Runs that end in the middle, as if they were killed."""

import contextlib
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
