"""How tools start and fail: user errors are one line on standard error and exit code 2."""

import logging as python_logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from absl import app, flags, logging

from hrnet_jax.runtime import distributed


def fail(message: object, code: int = 2) -> int:
    """Prints the message to stderr; returns the code, or exits if there are several processes."""
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
            f"{error}; use smaller tiles (--tile=512x1024), a smaller batch (--batch_size)"
            " or spread each image over devices (--space)"
        )


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
    """As `warnings.formatwarning`, but warnings for the user do not name a line of our source."""
    if category in (UserWarning, FutureWarning):
        return f"warning: {message}\n"
    return _format_any_warning(message, category, filename, lineno, line)


_format_any_warning = warnings.formatwarning


class _LogFormatter(python_logging.Formatter):
    """As `format_warning` for the user: the level and the message, not a line of our source."""

    def format(self, record: python_logging.LogRecord) -> str:
        return f"{record.levelname.lower()}: {super().format(record)}"


def run(
    function: Callable[..., int],
    *,
    takes_arguments: bool = False,
    parse: Callable[[list[str]], list[str]] = flags.FLAGS,
) -> None:
    """Parses the flags, calls `function` and exits with the code that it returns.

    Args:
        function: the tool. It gets the list of arguments that are no flags, or nothing.
        takes_arguments: whether the tool takes arguments that are no flags; else any is an error.
        parse: the parser of the command line (`config_flag.parse` for tools that read a recipe).
    """

    def parse_or_exit(argv: list[str]) -> list[str]:
        try:
            return parse(argv)
        except flags.Error as error:
            sys.exit(fail(f"{error} (--help lists the flags)"))
        except ValueError as error:
            sys.exit(fail(error))

    def tool(arguments: list[str]) -> int:
        if takes_arguments:
            return function(arguments)
        if arguments:
            raise ValueError(f"unexpected arguments {arguments}; flags start with --")
        return function()

    def main(argv: list[str]) -> int:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # Orbax logs a page at INFO
        logging.get_absl_handler().setFormatter(_LogFormatter())
        return call(tool, argv[1:])

    warnings.formatwarning = format_warning  # before flags: an earlier key gives a warning
    app.run(main, flags_parser=parse_or_exit)
