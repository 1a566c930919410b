"""Reads the text of a compiled program: what runs how often, what it moves between devices.

XLA's optimised HLO is a list of computations of instructions. What is reached from the entry runs;
the body of a loop runs as often as its condition says. On TPU the compiler leaves its estimate of
an instruction's cycles in the text.
"""

import dataclasses
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

# Bytes per element; what is not here is read off the digits: f32, bf16, s8, f8e4m3fn.
_BYTES = {"pred": 1, "token": 0, "opaque": 0}
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "collective-permute",
    "all-to-all",
    "collective-broadcast",
    "ragged-all-to-all",
)
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_CALLED = re.compile(
    r"(?:to_apply|calls|called_computations|branch_computations|true_computation|false_computation)"
    r"=\{?(%?[\w.\-]+(?:, ?%?[\w.\-]+)*)\}?"
)
_LOOP = re.compile(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction that runs.

    Attributes:
      name: in the program.
      opcode: e.g. "fusion", "all-reduce-start".
      arrays: (element type, shape) of what it gives; several where that is a tuple.
      op_name: where it comes from: the path of modules and functions in the source.
      cycles: the compiler's estimate for one run, 0 where it gives none.
      count: how often it runs.
      fused: whether it is a part of a fused instruction, which has the cycles.
    """

    name: str
    opcode: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    op_name: str
    cycles: int
    count: int
    fused: bool

    @property
    def bytes(self) -> int:
        """Size of what one run gives."""
        return sum(_size(kind, shape) for kind, shape in self.arrays)

    @property
    def collective(self) -> str:
        """Which of COLLECTIVES it is, or ""; their "done" halves are not counted again."""
        kind = self.opcode.removesuffix("-start")
        return kind if kind in COLLECTIVES else ""

    @property
    def moved_bytes(self) -> int:
        """Size of a collective's result on one device."""
        if self.opcode in ("collective-permute-start", "all-gather-start"):
            # Their tuples have the operand, too.
            return max((_size(kind, shape) for kind, shape in self.arrays), default=0)
        return self.bytes


def _size(kind: str, shape: tuple[int, ...]) -> int:
    if kind not in _BYTES:
        digits = re.match(r"[a-z]+(\d+)", kind)
        _BYTES[kind] = int(digits[1]) / 8 if digits else 0
    return math.ceil(_BYTES[kind] * math.prod(shape))


def instructions(text: str) -> list[Instruction]:
    """All instructions that run, in the order of the text of their computations.

    Raises:
      ValueError: if the text is no HLO module.
    """
    computations, entry = _computations(text)
    if entry is None:
        raise ValueError("no ENTRY computation: the text is not that of a compiled program")
    counts: dict[tuple[str, bool], int] = Counter()
    _count(computations, entry, 1, False, counts)
    return [
        _instruction(line, count, fused)
        for (name, fused), count in counts.items()
        for line in computations[name]
    ]


def _computations(text: str) -> tuple[dict[str, list[str]], str | None]:
    computations: dict[str, list[str]] = {}
    lines: list[str] | None = None
    entry = None
    for line in text.splitlines():
        if (header := _HEADER.match(line)) is not None:
            lines = computations[header[2]] = []
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            lines = None
        elif lines is not None and " = " in line:
            lines.append(line)
    return computations, entry


def _count(computations, name: str, times: int, fused: bool, counts) -> None:
    """Adds `times` runs of a computation, and of what it calls, to `counts`."""
    counts[name, fused] += times
    for line in computations[name]:
        if (loop := _LOOP.search(line)) is not None:
            condition, body = loop[1], loop[2]
            trips = times * _trips(line, computations[condition])
            _count(computations, body, trips, fused, counts)
            continue
        opcode = _opcode(line)[0]
        for called in _CALLED.findall(line):
            for callee in re.findall(r"[\w.\-]+", called):
                if callee in computations:
                    inside = fused or opcode not in ("call", "conditional", "async-start")
                    _count(computations, callee, times, inside, counts)


def _trips(line: str, condition: list[str]) -> int:
    if (known := _TRIPS.search(line)) is not None:
        return int(known[1])
    # The bound stands as a constant in the condition; loops with a data-dependent end have none.
    bounds = [int(n) for other in condition for n in re.findall(r" constant\((\d+)\)", other)]
    return max(bounds, default=1)


def _opcode(line: str) -> tuple[str, str]:
    """(opcode, text of the type) of an instruction."""
    rest = line.split(" = ", 1)[1]
    if rest.startswith("("):
        depth = end = 0
        while end == 0 or depth:
            depth += (rest[end] == "(") - (rest[end] == ")")
            end += 1
    else:
        end = rest.index(" ")
    return rest[end + 1 :].split("(", 1)[0], rest[:end]


def _instruction(line: str, count: int, fused: bool) -> Instruction:
    opcode, type_ = _opcode(line)
    cycles, op_name = _CYCLES.search(line), _OP_NAME.search(line)
    return Instruction(
        name=line.split(" = ", 1)[0].split()[-1].lstrip("%"),
        opcode=opcode,
        arrays=tuple(
            (kind, tuple(int(n) for n in shape.split(",") if n))
            for kind, shape in _ARRAY.findall(type_)
        ),
        op_name=op_name[1] if op_name else "",
        cycles=int(cycles[1]) if cycles else 0,
        count=count,
        fused=fused,
    )


def cycles(program: Iterable[Instruction]) -> int:
    """The compiler's estimate for one run of the program; 0 where it makes none."""
    return sum(i.cycles * i.count for i in program if not i.fused)


def collectives(program: Iterable[Instruction]) -> dict[str, dict[str, int]]:
    """Per kind: how many run, bytes of their results on one device, the compiler's cycles."""
    found: dict[str, dict[str, int]] = defaultdict(lambda: {"count": 0, "bytes": 0, "cycles": 0})
    for i in program:
        if i.collective:
            entry = found[i.collective]
            entry["count"] += i.count
            entry["bytes"] += i.moved_bytes * i.count
            entry["cycles"] += 0 if i.fused else i.cycles * i.count
    return dict(sorted(found.items()))


def module_of(op_name: str, depth: int = 3) -> str:
    """The part of the network that an `op_name` names: "backbone/stage3/module0", or "".

    Functions outside the network (the loss, the optimizer) give "".
    """
    parts = [p for p in re.split(r"[/()]", op_name) if p]
    for k, part in enumerate(parts):
        if part in ("backbone", "head"):
            names = []
            for name in parts[k : k + depth]:
                if not re.fullmatch(r"[a-z]\w*", name) or "=" in name:
                    break
                names.append(name)
            return "/".join(names)
    return ""


def pass_of(op_name: str) -> str:
    """Whether it belongs to the "forward" pass, the "backward" one or is computed "again"."""
    if "rematted_computation" in op_name:
        return "again"
    return "backward" if "transpose(" in op_name else "forward"


def contributors(program: Iterable[Instruction]) -> Iterator[tuple[tuple[str, str], int, int]]:
    """((module, pass), cycles, bytes written) from the largest to the smallest."""
    sums: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for i in program:
        if i.fused or i.opcode in ("parameter", "tuple", "get-tuple-element", "bitcast", "while"):
            continue
        entry = sums[module_of(i.op_name) or "rest", pass_of(i.op_name)]
        entry[0] += i.cycles * i.count
        entry[1] += i.bytes * i.count
    for key, (spent, written) in sorted(sums.items(), key=lambda kv: kv[1], reverse=True):
        yield key, spent, written
