"""Trains a network, or continues a run: the same command again resumes it.

python train.py --config=configs/cityscapes.py:variant=w48 --config.data.root=DIR --workdir=OUT
    [--config.KEY=VALUE ...] [--coordinator=HOST:PORT --num_processes=N --process_id=I]

The configurations in configs/ say what they take; configs/common.py lists all keys. OUT gets the
checkpoints, TensorBoard events and log.jsonl. Exit codes, each with a message: 2 for a
configuration or data that cannot work, 3 if the loss stopped being finite, 4 if a checkpoint could
not be written, 75 after SIGTERM or Ctrl-C, when all is saved and the same command will continue.
docs/reliability.md has the loop for launchers.
"""

from hrnet_jax.tools import process_flags, script  # isort: skip  # quiets TensorFlow

import difflib
import glob
import logging
import os
import re
import sys

import jax
import tensorflow as tf
from absl import app, flags
from absl import logging as absl_logging

from hrnet_jax.checkpoints.store import SaveError
from hrnet_jax.configs import common
from hrnet_jax.runtime import memory
from hrnet_jax.tools import config_flag
from hrnet_jax.train import loop, preemption
from hrnet_jax.train.config import RENAMED_KEYS, flatten

_CONFIG = config_flag.define()
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints and logs.")
flags.mark_flags_as_required(["config", "workdir"])
flags.adopt_module_key_flags(process_flags)  # shown by --help


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        return script.fail(f"unexpected arguments {argv[1:]}; options start with --")
    for kind in ("GPU", "TPU"):  # the accelerators are JAX's
        tf.config.set_visible_devices([], kind)
    absl_logging.set_verbosity(absl_logging.WARNING)  # Orbax's
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
        loop.train(_CONFIG.value, _WORKDIR.value)
    except loop.NonFiniteError as error:
        return script.fail(str(error), code=3)
    except SaveError as error:
        return script.fail(str(error), code=4)
    except (ValueError, OSError) as error:
        return script.fail(str(error))
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


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, with a short message instead of a traceback for what cannot be parsed."""
    for argument in argv:
        match = re.match(r"--?config=([^:]+)", argument)
        if match and not os.path.exists(match[1]):
            known = sorted(glob.glob("configs/[!_]*.py"))
            sys.exit(script.fail(f"no configuration file {match[1]!r}; known: {', '.join(known)}"))
    try:
        return flags.FLAGS(argv)
    except (flags.Error, KeyError, AttributeError, ValueError, TypeError) as error:
        # A configuration file that raises puts its whole traceback into the message.
        raised = re.findall(r"^\s*\w*Error: (.*)$", str(error), re.MULTILINE)
        sys.exit(script.fail(unknown_keys(argv) or (raised[-1] if raised else str(error))))


def unknown_keys(argv: list[str]) -> str:
    """A message about the first --config.KEY that no configuration has; empty if there is none."""
    known = list(flatten(common.get_config().to_dict()))
    for argument in argv:
        match = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        if match and match[1] not in (*known, *RENAMED_KEYS):
            near = difflib.get_close_matches(match[1], known, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            return f"unknown config key {match[1]!r}{hint}; known: {', '.join(known)}"
    return ""


def cli() -> None:
    """The command, from whichever script starts it."""
    script.adopt(sys.modules[__name__])
    app.run(main, flags_parser=parse_flags)


if __name__ == "__main__":
    cli()
