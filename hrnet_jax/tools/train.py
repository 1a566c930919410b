"""Trains a network, or continues a run: the same command again resumes it.

python train.py --config=configs/cityscapes.py:variant=w48 --config.data.root=DIR --workdir=OUT
    [--config.KEY=VALUE ...] [--coordinator=HOST:PORT --num_processes=N --process_id=I]

Each file in configs/ documents its arguments; configs/common.py lists all keys. OUT gets the
checkpoints, TensorBoard events and log.jsonl. Exit codes, each with a message: 2 for a
configuration or data that cannot work, 3 if the loss stopped being finite, 4 if a checkpoint could
not be written, 75 after SIGTERM or Ctrl-C, when all is saved and the same command will continue.
docs/reliability.md has the loop for launchers.
"""

from hrnet_jax.tools import config_flag, process_flags, script, training  # isort: skip  # quiets TF

import logging

import jax
from absl import flags

from hrnet_jax.train import loop, preemption

_CONFIG = config_flag.define()
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints and logs.")
flags.mark_flags_as_required(["config", "workdir"])
flags.adopt_module_key_flags(process_flags)  # shown by --help


def run() -> int:
    package = training.begin()

    def train() -> None:
        process_flags.join()
        if jax.process_index() > 0:
            package.setLevel(logging.WARNING)  # the first process speaks for all
        loop.train(_CONFIG.value, _WORKDIR.value, watch=preemption.ProcessWatch())

    return training.exit_code(train)


if __name__ == "__main__":
    script.run(run, parse=config_flag.parse)
