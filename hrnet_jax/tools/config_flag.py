"""The flag --config=FILE.py[:ARGUMENTS] with --config.KEY=VALUE, as all tools that train define it.

ml_collections does the work. Its parser of tuples is replaced: there, None gives (None,) and a flag
that is given twice gives both values, one after the other.
"""

from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags
from ml_collections.config_flags.tuple_parser import TupleParser


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
    return config_flags.DEFINE_config_file(
        "config", None, "configs/NAME.py[:ARGUMENTS]", flag_values=flag_values
    )
