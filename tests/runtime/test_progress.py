import io
import re
import sys

import pytest
from tqdm import tqdm

from hrnet_jax.runtime import progress
from hrnet_jax.runtime.progress import progress_bar


class Stream(io.StringIO):
    encoding = "utf-8"

    def __init__(self, terminal):
        super().__init__()
        self.terminal = terminal

    def isatty(self):
        return self.terminal


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves, for tqdm and for us."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(tqdm, "monitor_interval", 0)
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


def run(clock, stream, monkeypatch, steps, seconds):
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar(total=steps, desc="reading", unit="image") as bar:
        for _ in range(steps):
            clock[0] += seconds
            bar.update()
    return stream.getvalue()


def test_one_line_every_half_minute_without_a_terminal(clock, monkeypatch):
    text = run(clock, Stream(False), monkeypatch, steps=1000, seconds=0.1)
    assert "\r" not in text
    lines = text.splitlines()
    assert 3 <= len(lines) <= 100 // 30
    assert re.match(r"reading: +30%.* 30[01]/1000 \[00:30<01:[01]\d, +10\.\d+image/s\]", lines[0])


def test_slow_steps_and_short_runs(clock, monkeypatch):
    text = run(clock, Stream(False), monkeypatch, steps=5, seconds=70)
    assert len(text.splitlines()) == 5
    assert run(clock, Stream(False), monkeypatch, steps=20, seconds=1) == ""


def test_redrawn_on_a_terminal(clock, monkeypatch):
    text = run(clock, Stream(True), monkeypatch, steps=10, seconds=1)
    assert text.count("\r") >= 10
    assert "10/10" in text


def test_notebook_streams_are_redrawn():
    notebook = type("OutStream", (Stream,), {"__module__": "ipykernel.iostream"})
    assert progress._redraws(notebook(False))
    assert not progress._redraws(Stream(False))


def test_iterates_and_can_be_disabled(clock, monkeypatch):
    stream = Stream(True)
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(progress_bar("abc", total=3, disable=True)) == ["a", "b", "c"]
    assert stream.getvalue() == ""
