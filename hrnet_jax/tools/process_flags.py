"""The flags of a run over several processes, shared by the scripts that can have them."""

from absl import flags

from hrnet_jax import distributed

_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    "",
    "HOST:PORT of process 0, of several processes. Not needed on TPU pods, under SLURM's srun or"
    " mpirun, or with JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID set.",
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes there are.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "This process's number, from 0.")


def join() -> None:
    """Joins the other processes of the job, if there are any; see `distributed.initialize`."""
    distributed.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
