"""Reads the text of a compiled program: what runs how often, and what it reads, writes and sends.

XLA's optimized HLO is a list of computations, which are lists of instructions. Everything that is
reached from the entry runs; the body of a loop runs as often as its condition says. On TPU the text
contains the compiler's estimate of each instruction's cycles.
"""

import dataclasses
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

# Bytes per element. Other types have their number of bits in the name: f32, bf16, s8, f8e4m3fn.
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
# Instructions that neither compute nor move anything.
_FREE = (
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "after-all", "partition-id", "replica-id", "opt-barrier",
)  # fmt: skip
_LOOP = re.compile(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction that runs.

    Attributes:
      name: in the program.
      opcode: e.g. "fusion", "all-reduce-start".
      arrays: (element type, shape) of its result; several for a tuple.
      op_name: its origin: the path of modules and functions in the source.
      cycles: the compiler's estimate for one run, 0 where it gives none.
      count: how often it runs.
      fused: whether it is a part of a fused instruction, which has the cycles.
      written: bytes that one run writes. An update in place writes its slice only.
      read: bytes that one run reads. Of an array that is only sliced it reads the slice.
    """

    name: str
    opcode: str
    arrays: tuple[tuple[str, tuple[int, ...]], ...]
    op_name: str
    cycles: int
    count: int
    fused: bool
    written: int = 0
    read: int = 0

    @property
    def is_kernel(self) -> bool:
        """Whether it is executed on its own: not a part of another, not free, no "done" half."""
        return not (self.fused or self.opcode in _FREE or self.opcode.endswith("-done"))

    @property
    def bytes(self) -> int:
        """Size of the result of one run."""
        return sum(_size(kind, shape) for kind, shape in self.arrays)

    @property
    def collective(self) -> str:
        """Which of COLLECTIVES it is, or ""; also "" for their "done" halves."""
        kind = self.opcode.removesuffix("-start")
        return kind if kind in COLLECTIVES else ""

    @property
    def moved_bytes(self) -> int:
        """Size of a collective's result on one device."""
        if self.opcode in ("collective-permute-start", "all-gather-start"):
            # Their tuples contain the operand.
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
    by_name = {_name(line): line for lines in computations.values() for line in lines}
    return [
        _instruction(line, count, fused, computations, by_name)
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
    # The bound is a constant in the condition; loops with a data-dependent end have none.
    bounds = [int(n) for other in condition for n in re.findall(r" constant\((\d+)\)", other)]
    return max(bounds, default=1)


def _closing(text: str) -> int:
    """Index of the parenthesis that closes the one at the start."""
    depth = 0
    for k, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return k
    return len(text)


def _opcode(line: str) -> tuple[str, str]:
    """(opcode, text of the type) of an instruction."""
    rest = line.split(" = ", 1)[1]
    end = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    return rest[end + 1 :].split("(", 1)[0], rest[:end]


def _name(line: str) -> str:
    return line.split(" = ", 1)[0].split()[-1].lstrip("%")


def _arrays(type_: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple(
        (kind, tuple(int(n) for n in shape.split(",") if n))
        for kind, shape in _ARRAY.findall(type_)
    )


def _bytes_of(line: str) -> int:
    """Size of an instruction's result. The workspace of a library's function does not count."""
    opcode, type_ = _opcode(line)
    arrays = _arrays(type_)
    if opcode == "custom-call" and len(arrays) > 1 and arrays[-1][0] in ("u8", "s8"):
        arrays = arrays[:-1]
    return sum(_size(kind, shape) for kind, shape in arrays)


def _operands(line: str) -> list[str]:
    """Names of an instruction's operands."""
    opcode, _ = _opcode(line)
    rest = line.split(f" {opcode}(", 1)[1]
    return re.findall(r"%([\w.\-]+)", rest[: _closing("(" + rest)])


def _traffic(line: str, computations, by_name) -> tuple[int, int]:
    """(bytes written, bytes read) by one run of an instruction."""
    opcode, _ = _opcode(line)
    operands = _operands(line)
    sizes = [_bytes_of(by_name[o]) if o in by_name else 0 for o in operands]
    if opcode == "dynamic-update-slice":
        return sizes[1], sizes[1]
    if opcode in ("dynamic-slice", "slice", "gather"):
        return _bytes_of(line), _bytes_of(line)
    inside = [c for c in re.findall(r"calls=%?([\w.\-]+)", line) if c in computations]
    if opcode != "fusion" or not inside:
        return _bytes_of(line), sum(sizes)
    body = computations[inside[0]]
    written = _bytes_of(line)
    in_place = set()
    for part in body:
        if _opcode(part)[0] == "dynamic-update-slice":
            target, update = _operands(part)[:2]
            if _bytes_of(part) <= written:
                written += _bytes_of(by_name[update]) - _bytes_of(part)
                in_place.add(target)
    for part in body:
        index = re.search(r" parameter\((\d+)\)", part)
        if index is None or int(index[1]) >= len(sizes):
            continue
        uses = [other for other in body if _name(part) in _operands(other)]
        if _name(part) in in_place:
            sizes[int(index[1])] = 0
        elif uses and all(_opcode(u)[0] in ("dynamic-slice", "slice", "gather") for u in uses):
            size = sum(_bytes_of(u) for u in uses)
            sizes[int(index[1])] = min(size, sizes[int(index[1])])
    return written, sum(sizes)


def _instruction(line: str, count: int, fused: bool, computations, by_name) -> Instruction:
    opcode, type_ = _opcode(line)
    cycles, op_name = _CYCLES.search(line), _OP_NAME.search(line)
    skip = fused or opcode in _FREE or opcode.endswith("-done")
    written, read = (0, 0) if skip else _traffic(line, computations, by_name)
    return Instruction(
        name=_name(line),
        opcode=opcode,
        arrays=_arrays(type_),
        op_name=op_name[1] if op_name else "",
        cycles=int(cycles[1]) if cycles else 0,
        count=count,
        fused=fused,
        written=written,
        read=read,
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
    """The pass that it belongs to: "forward", "backward", or "again" for what is recomputed."""
    if "rematted_computation" in op_name:
        return "again"
    return "backward" if "transpose(" in op_name else "forward"


@dataclasses.dataclass
class Part:
    """What one part of the network needs in one pass: cycles, bytes written and read, kernels."""

    module: str
    pass_: str
    cycles: int = 0
    bytes: int = 0
    read: int = 0
    kernels: int = 0


def contributors(program: Iterable[Instruction]) -> Iterator[Part]:
    """The parts of a program, from the largest to the smallest."""
    parts: dict[tuple[str, str], Part] = {}
    for i in program:
        if i.fused or not (i.is_kernel or i.cycles):
            continue
        key = module_of(i.op_name) or "rest", pass_of(i.op_name)
        part = parts.setdefault(key, Part(*key))
        part.cycles += i.cycles * i.count
        part.bytes += i.written * i.count
        part.read += i.read * i.count
        part.kernels += i.count if i.is_kernel else 0
    yield from sorted(parts.values(), key=lambda p: (p.cycles, p.bytes), reverse=True)
