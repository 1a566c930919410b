"""Trains a network, or continues a run: the same command again resumes it.

python train.py --config=configs/cityscapes.py:variant=w48 --config.data.root=DIR --workdir=OUT
    [--config.KEY=VALUE ...] [--coordinator=HOST:PORT --num_processes=N --process_id=I]

Each file in configs/ documents its arguments; configs/common.py lists all keys. OUT gets the
checkpoints, TensorBoard events and log.jsonl. Exit codes, each with a message: 2 for a
configuration or data that cannot work, 3 if the loss stopped being finite, 4 if a checkpoint could
not be written, 75 after SIGTERM or Ctrl-C, when all is saved and the same command will continue.
docs/reliability.md has the loop for launchers.
"""

from hrnet_jax.tools import config_flag, process_flags, script  # isort: skip  # quiets TensorFlow

import logging
import sys

import jax
import tensorflow as tf
from absl import flags

from hrnet_jax.checkpoints.store import SaveError
from hrnet_jax.runtime import memory
from hrnet_jax.train import loop, preemption

_CONFIG = config_flag.define()
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints and logs.")
flags.mark_flags_as_required(["config", "workdir"])
flags.adopt_module_key_flags(process_flags)  # shown by --help


def run() -> int:
    for kind in ("GPU", "TPU"):  # the accelerators are JAX's
        tf.config.set_visible_devices([], kind)
    logging.getLogger("jax").setLevel(logging.WARNING)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    package = logging.getLogger("hrnet_jax")
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    package.propagate = False
    try:
        memory.keep_freed_pages()  # before JAX starts
        process_flags.join()
        if jax.process_index() > 0:
            package.setLevel(logging.WARNING)  # the first process speaks for all
        loop.train(_CONFIG.value, _WORKDIR.value, watch=preemption.ProcessWatch())
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


if __name__ == "__main__":
    script.run(run, parse=config_flag.parse)
