"""Runs over several processes: how they find each other, and checks that they do the same.

Only `initialize` calls `jax.distributed.initialize`. docs/scale.md shows the commands of the
launchers.
"""

import dataclasses
import glob
import importlib.util
import logging
import os
import pickle
import re
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

logger = logging.getLogger(__name__)

# Seconds to wait for the other processes to appear.
TIMEOUT_SECONDS = 300
# Seconds that process 0 waits after its error message: all others are connected through it.
LEAVING_SECONDS = 3
# The port of a job of Open MPI or SLURM: one of this range, chosen by the job's number.
_FIRST_PORT, _PORTS = 61440, 4096


@dataclasses.dataclass(frozen=True)
class Job:
    """This process's place among those of its job.

    Attributes:
      coordinator: HOST:PORT of process 0.
      num_processes: of the job.
      process_id: 0 .. num_processes - 1.
      local_device_ids: the accelerators of this process; None: all that it sees.
      source: where this is from, for messages.
    """

    coordinator: str
    num_processes: int
    process_id: int
    local_device_ids: tuple[int, ...] | None = None
    source: str = ""


def initialize(
    coordinator: str = "", num_processes: int | None = None, process_id: int | None = None
) -> None:
    """Joins the processes of this job; does nothing where there is one process only.

    Call it before anything that asks JAX for its devices. The first of these that is set decides:

    1. the arguments, all three of them;
    2. JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID in the environment (Kubernetes
       and other launchers);
    3. the environment variables of SLURM's `srun` and Open MPI's `mpirun`;
    4. the description of the pod on a TPU machine.

    Raises:
      ValueError: if some of what is needed is missing or wrong; the message names it.
      ConnectionError: if the other processes do not appear in time.
    """
    job = find_job(os.environ, coordinator, num_processes, process_id)
    if job is None:
        if on_tpu():
            _join_tpu_pod()
        return
    if job.num_processes == 1:
        return
    logger.info(
        "process %d of %d (by %s) connects to %s",
        job.process_id,
        job.num_processes,
        job.source,
        job.coordinator,
    )
    if job.process_id > 0:
        wait_for_coordinator(job)
    try:
        jax.distributed.initialize(
            job.coordinator,
            num_processes=job.num_processes,
            process_id=job.process_id,
            local_device_ids=job.local_device_ids,
            cluster_detection_method="deactivate",
            initialization_timeout=TIMEOUT_SECONDS,
        )
    except jax.errors.JaxRuntimeError as error:
        raise ConnectionError(
            f"process {job.process_id} of {job.num_processes} (by {job.source}) did not find the"
            f" others at {job.coordinator} within {TIMEOUT_SECONDS} s: {error}"
        ) from error


def wait_for_coordinator(job: Job, timeout: float = TIMEOUT_SECONDS) -> None:
    """Waits until process 0 can be reached.

    JAX itself would end a process by a signal if process 0 does not appear.

    Raises:
      ConnectionError: if it cannot be reached within `timeout` seconds.
    """
    host, _, port = job.coordinator.rpartition(":")
    deadline = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
            return
        except OSError as error:  # also a host name that is not known yet
            if time.monotonic() > deadline:
                raise ConnectionError(
                    f"process {job.process_id} of {job.num_processes} (by {job.source}) could not"
                    f" reach process 0 at {job.coordinator} within {timeout:g} s: {error}"
                ) from None
        time.sleep(1)


def leave(code: int) -> None:
    """Ends this process at once with an exit code, if it is one of several.

    With a plain exit each process would wait for the others for minutes, until a signal ends it.
    """
    if not jax.distributed.is_initialized():
        return
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.process_index() == 0:
        time.sleep(LEAVING_SECONDS)  # until the others have written their messages
    os._exit(code)


def find_job(
    environment: Mapping[str, str],
    coordinator: str = "",
    num_processes: int | None = None,
    process_id: int | None = None,
) -> Job | None:
    """The job by arguments and environment; None if neither names one. See `initialize`."""
    named = {
        "--coordinator": coordinator,
        "--num_processes": num_processes,
        "--process_id": process_id,
    }
    if any(value not in ("", None) for value in named.values()):
        return _complete(named, "flags")
    variables = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    given = {name: environment.get(name, "") for name in variables}
    if given["JAX_NUM_PROCESSES"] or given["JAX_PROCESS_ID"]:
        return _complete(given, "the environment")
    # An address alone is used in place of the one from the launcher's variables.
    address = given["JAX_COORDINATOR_ADDRESS"]
    for find in (_slurm_job, _open_mpi_job):
        if (job := find(environment, address)) is not None:
            return job
    if address:
        return _complete(given, "the environment")
    return None


def _complete(named: Mapping[str, Any], source: str) -> Job:
    """A job of (address, number, id) by their names."""
    if missing := [name for name, value in named.items() if value in ("", None)]:
        raise ValueError(
            f"{', '.join(missing)} missing: several processes need all of {', '.join(named)}"
        )
    (_, coordinator), (count_name, count), (id_name, process_id) = named.items()
    try:
        count, process_id = int(count), int(process_id)
    except ValueError:
        raise ValueError(f"{count_name}={count!r}, {id_name}={process_id!r}: not numbers") from None
    return _checked(Job(coordinator, count, process_id, source=source))


def _checked(job: Job) -> Job:
    if not re.fullmatch(r".+:\d+", job.coordinator):
        raise ValueError(
            f"coordinator address {job.coordinator!r} (by {job.source}) must be HOST:PORT"
        )
    if not 0 <= job.process_id < job.num_processes:
        raise ValueError(
            f"process id {job.process_id} of {job.num_processes} processes (by {job.source}): must"
            f" be in 0..{job.num_processes - 1}"
        )
    return job


def _slurm_job(environment: Mapping[str, str], address: str) -> Job | None:
    count = int(environment.get("SLURM_NTASKS", 1))
    nodes = environment.get("SLURM_STEP_NODELIST", "")
    # Without a list of nodes this is the batch script itself, not a step of `srun`.
    if count == 1 or not nodes or "SLURM_PROCID" not in environment:
        return None
    if not address:
        # "node3", "node3,node4", "node[003-005,7],other": the first one runs process 0.
        first = re.match(r"([^,\[]+)(?:\[(\w+))?", nodes)
        port = _FIRST_PORT + int(environment.get("SLURM_JOB_ID", 0)) % _PORTS
        address = f"{first[1]}{first[2] or ''}:{port}"
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    alone = re.fullmatch(r"1(\(x\d+\))?(,1(\(x\d+\))?)*", tasks) is not None
    devices = _device_of(environment, environment.get("SLURM_LOCALID"), alone)
    process_id = int(environment["SLURM_PROCID"])
    return _checked(Job(address, count, process_id, devices, "SLURM's environment"))


def _open_mpi_job(environment: Mapping[str, str], address: str) -> Job | None:
    count = int(environment.get("OMPI_COMM_WORLD_SIZE", 1))
    if count == 1:
        return None
    if not address:
        # "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911"; mpirun's machine runs process 0.
        uri = environment.get("OMPI_MCA_orte_hnp_uri", "")
        found = re.match(r"(\d+)\.\d+;tcp6?://(?:([^,:\[]+)|\[([^,\]]+))", uri)
        if found is None:
            raise ValueError(
                "Open MPI's environment does not name the host of process 0: set"
                " JAX_COORDINATOR_ADDRESS=HOST:PORT (mpirun -x JAX_COORDINATOR_ADDRESS)"
            )
        host = found[2] or f"[{found[3]}]"
        address = f"{host}:{_FIRST_PORT + int(found[1]) // 4096 % _PORTS}"
    alone = environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1"
    devices = _device_of(environment, environment.get("OMPI_COMM_WORLD_LOCAL_RANK"), alone)
    process_id = int(environment["OMPI_COMM_WORLD_RANK"])
    return _checked(Job(address, count, process_id, devices, "Open MPI's environment"))


def _device_of(
    environment: Mapping[str, str], local_rank: str | None, alone: bool
) -> tuple[int, ...] | None:
    """The GPU of one of several processes on a machine; None: all GPUs that it sees."""
    if ids := environment.get("JAX_LOCAL_DEVICE_IDS"):
        return tuple(int(i) for i in ids.split(","))
    # If the launcher binds GPUs to tasks, each task sees its own GPU only.
    visible = environment.get("CUDA_VISIBLE_DEVICES", environment.get("ROCR_VISIBLE_DEVICES", ","))
    if alone or local_rank is None or "," not in visible:
        return None
    return (int(local_rank),)


def on_tpu() -> bool:
    """Whether this machine has TPU chips and the library for them."""
    chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    cpu_only = os.environ.get("JAX_PLATFORMS", "").lower() == "cpu"
    return bool(chips) and not cpu_only and importlib.util.find_spec("libtpu") is not None


def _join_tpu_pod() -> None:
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    if os.environ.get("TPU_SKIP_MDS_QUERY") and "," not in hosts:
        return  # a single machine
    jax.distributed.initialize(initialization_timeout=TIMEOUT_SECONDS)


def gather(value: Any) -> list[Any]:
    """The values of all processes of the job, by their ids; each process must call it.

    Args:
      value: anything that can be pickled; the processes trust each other.
    """
    if jax.process_count() == 1:
        return [value]
    data = pickle.dumps(value)
    lengths = multihost_utils.process_allgather(np.array([len(data)], np.int32)).ravel()
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [pickle.loads(row[:length]) for row, length in zip(rows, lengths, strict=True)]


def check_same(name: str, values: Mapping[str, Any]) -> None:
    """Raises ValueError, on every process, if `values` differ between the processes of the job.

    Args:
      name: what they are, for the message.
      values: flat; anything that can be pickled.
    """
    everyone = gather(dict(values))
    first = everyone[0]
    for process, other in enumerate(everyone):
        differing = [
            f"{key}: {first.get(key)!r} on process 0, {other.get(key)!r} on process {process}"
            for key in sorted(first.keys() | other.keys())
            if first.get(key) != other.get(key)
        ]
        if differing:
            raise ValueError(
                f"the processes of this job have different {name}:\n  " + "\n  ".join(differing)
            )
