"""How tools that train show the log and end: exit codes of errors and signals."""

import logging
import sys
from collections.abc import Callable

import tensorflow as tf

from hrnet_jax.checkpoints.store import SaveError
from hrnet_jax.runtime import memory
from hrnet_jax.tools import script
from hrnet_jax.train import loop, preemption


def begin() -> logging.Logger:
    """Shows the log of the package, leaves the accelerators to JAX; before JAX starts."""
    for kind in ("GPU", "TPU"):
        tf.config.set_visible_devices([], kind)
    logging.getLogger("jax").setLevel(logging.WARNING)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    package = logging.getLogger("hrnet_jax")
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    package.propagate = False
    memory.keep_freed_pages()
    return package


def exit_code(train: Callable[[], None]) -> int:
    """Calls the function; 0, or the code for the error or signal that ended it, with a message."""
    try:
        train()
    except loop.NonFiniteError as error:
        return script.fail(str(error), code=3)
    except SaveError as error:
        return script.fail(str(error), code=4)
    except RuntimeError as error:
        if not script.is_out_of_memory(error):
            raise
        return script.fail(
            f"{error}; --config.optimizer.gradient_accumulation=2 computes the batch in two parts,"
            " --config.model.remat=block keeps less, --config.mesh.space=2 splits each image over"
            " two devices; python -m hrnet_jax.tools.preflight tells beforehand what fits"
        )
    except preemption.Preempted as end:
        print(f"{end}; the same command continues", file=sys.stderr)
        return preemption.EXIT_CODE
    return 0
