"""Who the processes of a job are, by flags and by what launchers leave in the environment; what
those that cannot work together say."""

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hrnet_jax.runtime import distributed
from hrnet_jax.runtime.distributed import find_job

SLURM = {
    "SLURM_JOB_ID": "4097", "SLURM_STEP_NODELIST": "node[003-005,9],other", "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2", "SLURM_LOCALID": "0", "SLURM_STEP_TASKS_PER_NODE": "1(x4)",
}  # fmt: skip
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_RANK": "5",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
}  # fmt: skip
JAX = {
    "JAX_COORDINATOR_ADDRESS": "first:1234", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1",
}  # fmt: skip


def _place(job):
    return job.coordinator, job.num_processes, job.process_id, job.local_device_ids


def test_one_process_is_no_job():
    assert find_job({}) is None
    assert find_job({**SLURM, "SLURM_NTASKS": "1"}) is None
    in_batch_script = {k: v for k, v in SLURM.items() if not k.startswith("SLURM_STEP")}
    assert find_job(in_batch_script) is None
    distributed.initialize()  # nor does it touch devices that are in use already


def test_slurm():
    assert _place(find_job(SLURM)) == ("node003:61441", 4, 2, None)
    assert _place(find_job({**SLURM, "SLURM_STEP_NODELIST": "n7,n8"}))[0] == "n7:61441"
    # Several tasks on a machine: each takes the GPU of its number, unless it sees only one.
    several = {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_LOCALID": "1"}
    assert find_job(several).local_device_ids == (1,)
    assert find_job({**several, "CUDA_VISIBLE_DEVICES": "3"}).local_device_ids is None
    assert find_job({**several, "JAX_LOCAL_DEVICE_IDS": "0,1"}).local_device_ids == (0, 1)


def test_open_mpi():
    assert _place(find_job(OPEN_MPI)) == ("10.96.0.1:62624", 8, 5, (1,))
    ipv6 = {**OPEN_MPI, "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp6://[fd00::1,fe80::2]:34911"}
    assert find_job(ipv6).coordinator == "[fd00::1]:62624"
    newer = {k: v for k, v in OPEN_MPI.items() if "uri" not in k}
    with pytest.raises(ValueError, match="set JAX_COORDINATOR_ADDRESS"):
        find_job(newer)
    assert find_job({**newer, "JAX_COORDINATOR_ADDRESS": "a:1"}).coordinator == "a:1"


def test_jax_variables_win_over_launchers_and_flags_over_both():
    assert _place(find_job({**SLURM, **JAX})) == ("first:1234", 2, 1, None)
    assert _place(find_job({**SLURM, **JAX}, "b:2", 3, 0)) == ("b:2", 3, 0, None)


@pytest.mark.parametrize(
    ("environment", "flags", "message"),
    [
        ({}, ("a:1", None, 0), "--num_processes missing"),
        ({}, ("", 2, 1), "--coordinator missing"),
        ({"JAX_NUM_PROCESSES": "2"}, (), "JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID missing"),
        ({"JAX_COORDINATOR_ADDRESS": "a:1"}, (), "JAX_NUM_PROCESSES, JAX_PROCESS_ID missing"),
        ({**JAX, "JAX_PROCESS_ID": "one"}, (), "not numbers"),
        ({}, ("a:1", 2, 2), "must be in 0..1"),
        ({}, ("a", 2, 1), "must be HOST:PORT"),
    ],
)
def test_incomplete_jobs(environment, flags, message):
    with pytest.raises(ValueError, match=message):
        find_job(environment, *flags)


def test_process_0_is_waited_for_but_not_for_ever():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{server.getsockname()[1]}"
        job = find_job({}, address, 2, 1)
        with pytest.raises(ConnectionError, match=rf"1 of 2 \(by flags\) could not.* {address}"):
            distributed.wait_for_coordinator(job, timeout=0.5)
        threading.Timer(0.5, server.listen).start()
        distributed.wait_for_coordinator(job, timeout=30)
    unknown = find_job({}, "no-such-host.invalid:1", 2, 1)
    with pytest.raises(ConnectionError, match=r"no-such-host\.invalid:1 within 0\.1 s"):
        distributed.wait_for_coordinator(unknown, timeout=0.1)


@pytest.mark.parametrize(
    ("script", "arguments", "faulty", "fault", "message"),
    [
        ("evaluate.py", ["--checkpoint=camvid_w18_small_v1"], 1, "--flip", "--flip: False on"),
        # Refused by the first before it compares anything with the second. (If only the second
        # fails, the first may wait for its heartbeat: 100 s.)
        ("train.py", ["--config=configs/fake_data.py"], 0, "--config.batch_size=-1", "at least 1"),
    ],
)
def test_a_process_that_fails_ends_all(tmp_path, script, arguments, faulty, fault, message):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    where = "--output" if script == "evaluate.py" else "--workdir"
    started = time.monotonic()
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, script, *arguments, *([fault] if i == faulty else [])),
                *(f"{where}={tmp_path / 'out'}", f"--coordinator={coordinator}"),
                *("--num_processes=2", f"--process_id={i}"),
            ],
            env=os.environ | {"JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"},
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=250)[0] for process in processes]
    assert all(process.returncode for process in processes), outputs
    assert processes[faulty].returncode == 2, outputs[faulty]
    assert f"{script}: error: " in outputs[faulty]
    assert message in outputs[faulty]
    # JAX's barrier at the end alone would take five minutes.
    assert time.monotonic() - started < 200
    assert not (tmp_path / "out").exists()
