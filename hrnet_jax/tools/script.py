"""How scripts start and fail: one clear line and exit code 2 for what the user can mend."""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from absl import app, flags, logging

from hrnet_jax.runtime import distributed


def fail(message: object, code: int = 2) -> int:
    """Prints the message to stderr and returns the exit code, or ends one of several processes."""
    print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
    distributed.leave(code)
    return code


def call(function: Callable[[list[str]], int], arguments: list[str]) -> int:
    """The function's exit code, or 2 with its message for errors about values, files and memory."""
    try:
        return function(arguments)
    except (ValueError, OSError) as error:
        return fail(error)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return fail(
            f"{error}; take smaller tiles (--tile=512x1024), fewer images at a time (--batch_size)"
            " or spread each over devices (--space)"
        )


def adopt(module: ModuleType) -> None:
    """Makes a module's description and flags those of the program that was started."""
    sys.modules["__main__"].__doc__ = module.__doc__
    for flag in flags.FLAGS.get_key_flags_for_module(module):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether this is JAX's error for a device without free memory."""
    return str(error).startswith("RESOURCE_EXHAUSTED")


def parse_size(flag: str, text: str) -> tuple[int, int] | None:
    """A flag's "512x1024" as (height, width); None for "".

    Raises:
        ValueError: naming the flag, if the text is no such size.
    """
    if not text:
        return None
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(p.isdecimal() for p in parts):
        raise ValueError(f"--{flag}={text}: need HEIGHTxWIDTH, e.g. 512x1024")
    return int(parts[0]), int(parts[1])


def format_warning(message, category, filename, lineno, line=None) -> str:
    """As `warnings.formatwarning`, but what is said to the user stands without our source line."""
    if category is UserWarning:
        return f"warning: {message}\n"
    return _format_any_warning(message, category, filename, lineno, line)


_format_any_warning = warnings.formatwarning


def run(function: Callable[[list[str]], int]) -> None:
    """Parses the flags, calls `function` with the other arguments and exits with its code."""

    def parse(argv: list[str]) -> list[str]:
        try:
            return flags.FLAGS(argv)
        except flags.Error as error:
            sys.exit(fail(f"{error} (--help lists the flags)"))

    def main(argv: list[str]) -> int:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # INFO is a page from Orbax
        warnings.formatwarning = format_warning
        return call(function, argv[1:])

    app.run(main, flags_parser=parse)
