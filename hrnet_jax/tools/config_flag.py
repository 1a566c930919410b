"""The flag --config and its overrides --config.KEY=VALUE, shared by the tools that read a recipe.

The value is a file (`my/recipe.py`) or a shipped recipe (`camvid` or `configs/camvid.py`), both
optionally followed by arguments for its `get_config` (`:variant=w48,runlocal`). A file of that
path comes before a shipped recipe, so a clone and an installed package take the same commands.

ml_collections does the work. Its parser of tuples is replaced: there, None gives (None,) and a flag
that is given twice gives both values, one after the other.
"""

import difflib
import re
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags.tuple_parser import TupleParser

import hrnet_jax.configs
from hrnet_jax.configs import common
from hrnet_jax.train.config import DICTIONARY_KEYS, RENAMED_KEYS, flatten

RECIPES = Path(hrnet_jax.configs.__file__).parent


# --help shows the flag as one of the tool that calls `define`.
flags.disclaim_key_flags()


class OneTuple(flags.ArgumentParser):
    """Parses one tuple; "None" is None, and the empty text the empty tuple.

    Not a subclass of ml_collections' parser: of those, it collects the values of repeated flags.
    """

    syntactic_help = 'a tuple such as "(1, 2)", one value, or None'

    def parse(self, argument: Any) -> tuple | None:
        """Returns the tuple.

        Raises:
          ValueError: for text that is neither a tuple nor a single value.
        """
        if argument is None or argument == "None":
            return None
        return () if argument == "" else TupleParser().parse(argument)

    def flag_type(self) -> str:
        return "tuple"


def define(flag_values: flags.FlagValues = flags.FLAGS) -> flags.FlagHolder[ConfigDict]:
    """Defines --config among the flags of the program, or among those given."""
    config_flags.register_flag_parser_for_type(tuple, OneTuple())
    text = "A shipped recipe (camvid) or a file (my/recipe.py), with [:ARGUMENTS]."
    return config_flags.DEFINE_config_file("config", None, text, flag_values=flag_values)


def parse(argv: list[str]) -> list[str]:
    """absl's parser, with one line in place of a traceback for recipes that cannot be read.

    Raises:
        ValueError: for flags, recipes and keys that do not exist, and recipes that raise an error.
    """
    argv = [*argv]
    for i, argument in enumerate(argv):
        if match := re.fullmatch(r"(--?config=)(.*)", argument):
            argv[i] = match[1] + find(match[2])
        elif re.fullmatch(r"--?config", argument) and i + 1 < len(argv):
            argv[i + 1] = find(argv[i + 1])
    try:
        return flags.FLAGS(argv)
    except (flags.Error, KeyError, AttributeError, ValueError, TypeError) as error:
        # The message holds the whole traceback of a recipe that raises an error.
        raised = re.findall(r"^\s*\w*Error: (.*)$", str(error), re.MULTILINE)
        message = _unknown_key(argv) or (raised[-1] if raised else str(error))
        raise ValueError(message) from error


def find(value: str) -> str:
    """The value of --config with the path of the file that it means.

    Raises:
        ValueError: if there is neither a file nor a shipped recipe of that name.
    """
    name, colon, arguments = value.partition(":")
    if Path(name).is_file():
        return value
    known = sorted(path.stem for path in RECIPES.glob("[!_]*.py"))
    stem = name.removeprefix("configs/").removesuffix(".py")
    if stem not in known:
        files = ", ".join(f"configs/{stem}.py" for stem in known)
        raise ValueError(f"no configuration file {name!r}; known: {files}")
    return f"{RECIPES / stem}.py{colon}{arguments}"


def _unknown_key(argv: list[str]) -> str:
    """A message about the first --config.KEY that no recipe has; empty if there is none."""
    known = [*flatten(common.get_config().to_dict()), *DICTIONARY_KEYS]
    for argument in argv:
        match = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        for key in DICTIONARY_KEYS:
            if match and match[1].startswith(f"{key}."):
                name = match[1].removeprefix(f"{key}.")
                return f"config.{key} is a dictionary: --config.{key}='{{\"{name}\": VALUE}}'"
        if match and match[1] not in (*known, *RENAMED_KEYS):
            near = difflib.get_close_matches(match[1], known, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            return f"unknown config key {match[1]!r}{hint}; known: {', '.join(known)}"
    return ""
