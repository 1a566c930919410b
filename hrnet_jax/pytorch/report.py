"""The report of a conversion: what a file held, what was taken, what was left out."""

import dataclasses
from collections.abc import Mapping

# Keys named in one message; the rest is counted.
_MAX_NAMED = 20


def name_some(keys: list[str]) -> str:
    """The first keys, and the number of the others."""
    rest = len(keys) - _MAX_NAMED
    return ", ".join(map(str, keys[:_MAX_NAMED])) + (f" and {rest} more" if rest > 0 else "")


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of every entry of a file. Logs, tools and Python show the same one.

    Attributes:
      source: the file's name, or "state dict".
      layout: which of the known layouts it is.
      variant, head, num_classes: of the network.
      align_corners: the resize mode, and where it comes from: "asked for", "the file" or "the
        layout's default".
      loaded: keys whose values the network now holds, without the prefix.
      left_out: key -> why it is not needed.
      filled: path in the variables -> the value of an array that this layout does not store.
      converted: "float16 -> float32" -> number of arrays.
      num_batches_tracked: the value of BatchNorm's counters; None in files without them.
      container: the keys that lead to the state dictionary, joined by dots; "" at the top level.
      prefix: what the keys of the network begin with in it.
      weights: "raw", "ema" (averaged) or "unstarted" (averages of nothing yet).
      others: descriptions of the other sets of weights in the file.
      notes: what else the user should know.
    """

    source: str
    layout: str
    variant: str
    head: str
    num_classes: int
    align_corners: tuple[bool, str]
    loaded: tuple[str, ...]
    left_out: Mapping[str, str]
    filled: Mapping[str, str]
    converted: Mapping[str, int]
    num_batches_tracked: int | None
    container: str = ""
    prefix: str = ""
    weights: str = "raw"
    others: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """A few lines for people."""
        value, reason = self.align_corners
        lines = [
            f"{self.source}: {self.layout} layout, HRNet {self.variant}, {self.head} head"
            + (f", {self.num_classes} classes" if self.num_classes else ""),
            f"align_corners={value} ({reason})",
        ]
        place = [f"under {self.container!r}"] if self.container else []
        place += [f"prefix {self.prefix!r}"] if self.prefix else []
        if place:
            lines.append(f"found {', '.join(place)}")
        if self.weights == "ema" or self.others:
            lines.append(
                f"took the {'averaged' if self.weights == 'ema' else self.weights} weights"
            )
        lines += [f"also in the file: {other}" for other in self.others]
        lines.append(f"loaded {len(self.loaded)} arrays, missing 0")
        for reason in dict.fromkeys(self.left_out.values()):
            keys = [k for k, why in self.left_out.items() if why == reason]
            lines.append(f"left out {len(keys)} ({reason}): {name_some(keys)}")
        for value in dict.fromkeys(self.filled.values()):
            keys = [k for k, v in self.filled.items() if v == value]
            lines.append(f"not in this layout, set to {value}: {name_some(keys)}")
        for change, count in self.converted.items():
            lines.append(f"converted {count} arrays {change}")
        return "\n".join([*lines, *self.notes])
