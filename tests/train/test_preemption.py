"""What signals do: ask once, end at the second, reach a process that is deep in compiled code.

For a call from Python they raise, and end no process.
"""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from hrnet_jax.train import preemption

# Sleeping in C without returning to the interpreter is what compiling looks like to it. A signal
# cuts a sleep short.
DEAF = "import ctypes; [ctypes.CDLL(None).sleep(100) for _ in range(9)]"


def _child(body: str) -> subprocess.Popen:
    program = f"""
import os, signal, sys, time
from hrnet_jax.train import preemption
with preemption.ProcessWatch() as watch:
    print("ready", flush=True)
    {body}
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_asks_and_the_old_handlers_come_back(number):
    before = signal.getsignal(number)
    with preemption.ProcessWatch() as watch:
        watch.save_first()
        assert not watch.requested()
        os.kill(os.getpid(), number)
        deadline = time.monotonic() + 10
        while not watch.requested() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert watch.requested() == number.name
    assert signal.getsignal(number) == before


def test_before_save_first_a_signal_ends_compiled_code_too():
    process = _child(DEAF)
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - start < 2
    assert process.returncode == preemption.EXIT_CODE == 75
    assert "SIGTERM ends the run at once; the same command continues" in errors


@pytest.mark.parametrize(("second", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_second_signal_ends_at_once(second, code):
    process = _child(f"watch.save_first(); {DEAF}")
    process.send_signal(signal.SIGTERM)
    assert process.stderr.readline() == "\n"
    assert "saving and ending; a second signal ends at once" in process.stderr.readline()
    assert process.poll() is None
    process.send_signal(second)
    process.communicate(timeout=60)
    assert process.returncode == code


def test_a_signal_before_end_at_once_ends_the_process_there():
    process = _child(
        "watch.save_first(); os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.5)\n"
        "    with watch.end_at_once(): print('never')"
    )
    output, _ = process.communicate(timeout=60)
    assert (process.returncode, output) == (75, "")


def test_other_threads_leave_signals_alone():
    handlers = []

    def enter():
        with preemption.ProcessWatch() as watch:
            handlers.append(signal.getsignal(signal.SIGTERM))
            assert not watch.requested()

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert handlers == [before]


def _interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(10)  # cut short: Python calls the handler in the main thread


def test_a_call_from_python_raises_and_its_handlers_come_back(capfd):
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with pytest.raises(KeyboardInterrupt, match="SIGINT ended the run"), preemption.Interrupts():
        _interrupt()
    with preemption.Interrupts() as watch:
        watch.save_first()
        assert signal.getsignal(signal.SIGTERM) == before[signal.SIGTERM]
        os.kill(os.getpid(), signal.SIGINT)
        assert watch.requested() == "SIGINT"
        with pytest.raises(KeyboardInterrupt):
            _interrupt()
        with pytest.raises(KeyboardInterrupt), watch.end_at_once():
            pytest.fail("the evaluation began after Ctrl-C")
    assert {number: signal.getsignal(number) for number in before} == before
    assert capfd.readouterr().err.count("SIGINT: saving and ending") == 1


def test_whoever_catches_ctrl_c_catches_a_run_that_saved():
    assert issubclass(preemption.Preempted, KeyboardInterrupt)
    assert not issubclass(preemption.Preempted, Exception)
