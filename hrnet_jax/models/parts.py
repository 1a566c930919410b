"""Values for parts of a network. A part is a prefix of paths; the longest prefix wins.

Paths are those of the tree of parameters with "/" between the names: "backbone",
"backbone/stage2/module0". "" is the whole network.
"""

from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value")


def contains(part: str, path: str) -> bool:
    """Whether the path is the part or lies in it. Only whole names count."""
    return not part or path == part or path.startswith(f"{part}/")


def value_at(path: str, values: Mapping[str, Value], default: Value) -> Value:
    """The value of the longest of the parts `values` that contain the path."""
    found = [part for part in values if contains(part, path)]
    return values[max(found, key=len)] if found else default


def below(path: str, values: Mapping[str, Value]) -> dict[str, Value]:
    """The values as seen from inside the module at `path`, whose own paths start there."""
    inside = {
        part[len(path) :].lstrip("/"): value
        for part, value in values.items()
        if contains(path, part) and part != path
    }
    own = {part: value for part, value in values.items() if contains(part, path)}
    return ({"": own[max(own, key=len)]} if own else {}) | inside
