"""The flags of a run over several processes, shared by the scripts that can have them."""

from types import ModuleType

from absl import flags

from hrnet_jax.runtime import distributed, platforms

_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    "",
    "HOST:PORT of process 0, in a run of several processes. Not needed on TPU pods, under SLURM's"
    " srun or mpirun, or with JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID set.",
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "This process's number, from 0.")


def join() -> None:
    """Joins the other processes of the job, if there are any; see `distributed.initialize`.

    Raises:
      ValueError: also if the platform that JAX_PLATFORMS asks for is not there.
    """
    distributed.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    platforms.check()


def check_same(script: ModuleType) -> None:
    """Raises ValueError on every process if what `script` was called with differs between them."""
    own = {flag.name for flag in (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID)}
    given = flags.FLAGS.get_key_flags_for_module(script)
    values = {f"--{flag.name}": flag.value for flag in given if flag.name not in own}
    distributed.check_same("arguments", values)
