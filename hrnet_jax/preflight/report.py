"""What one compiled program needs of each device, as data and as text."""

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Report:
    """What one program needs of each device.

    Attributes:
      program: "train" or "evaluate".
      topology: its name.
      devices: how many of its devices are used, as the mesh `data` x `space`.
      setting: the configuration keys that decide the result, with their values.
      memory: bytes per device: parameters, statistics, optimizer, average, batch, temporaries,
        code, total, limit (None where unknown), free (negative: that much is missing).
      fits: whether the total is within the limit; None where the limit is unknown.
      flops: floating-point operations per device and run; None where the compiler gives none.
      bytes_accessed: bytes that its instructions read and write per device and run.
      collectives: per kind {"count", "bytes", "cycles"} per device and run.
      cycles: the compiler's estimate for one run; None where the compiler gives none.
      contributors: the largest parts: {"module", "pass", "cycles", "bytes", "read", "kernels"},
        where "bytes" are written.
      seconds: of compilation.
      versions: of the packages that compiled it.
      written, read, kernels: bytes and number of kernels per device and run, by the text of the
        program; None except for GPUs.
    """

    program: str
    topology: str
    devices: int
    setting: dict[str, Any]
    memory: dict[str, int | None]
    fits: bool | None
    flops: float | None
    bytes_accessed: float | None
    collectives: dict[str, dict[str, int]]
    cycles: int | None
    contributors: list[dict[str, Any]]
    seconds: float
    versions: dict[str, str]
    written: int | None = None
    read: int | None = None
    kernels: int | None = None

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def table(report: Report) -> str:
    """The report as text for people."""
    lines = [
        f"{report.program} on {report.topology}: {report.devices} device(s),"
        f" compiled in {report.seconds:.0f} s",
        "  " + " ".join(f"{key}={value}" for key, value in report.setting.items()),
        *_memory_lines(report),
    ]
    if report.flops is not None:
        lines.append(f"  work: {report.flops / 1e12:.3f} TFLOP per device and run")
    if report.bytes_accessed is not None:
        lines.append(f"  memory traffic: {report.bytes_accessed / 1e9:.1f} GB per device and run")
    if report.written is not None:
        lines.append(
            f"  memory traffic: {report.written / 1e9:.1f} GB written, {report.read / 1e9:.1f} GB"
            f" read by {report.kernels:,} kernels per device and run"
        )
    if report.cycles:
        lines.append(f"  estimate: {report.cycles / 1e6:.1f} M cycles per run (not a time)")
    for kind, entry in report.collectives.items():
        fraction = ""
        if report.cycles:
            # TPU's compiler states the cycles of some kinds only.
            known = f"{entry['cycles'] / report.cycles:.1%} of the cycles"
            fraction = f", {known if entry['cycles'] else 'not in the estimate'}"
        lines.append(f"  {kind}: {entry['count']} with {_megabytes(entry['bytes'])}{fraction}")
    if report.contributors:
        lines.append("  largest contributors")
    for part in report.contributors:
        fraction = f"{part['cycles'] / report.cycles:6.1%}  " if report.cycles else ""
        line = f"    {fraction}{part['module']:<28} {part['pass']:<9}"
        line += f" {_megabytes(part['bytes']) + ' written':>20}"
        if report.written is not None:
            line += f" {_megabytes(part['read']) + ' read':>17} {part['kernels']:>6} kernels"
        lines.append(line)
    return "\n".join(lines)


def _memory_lines(report: Report) -> list[str]:
    memory = report.memory
    lines = ["  memory per device"]
    for name, size in memory.items():
        if name not in ("total", "limit", "free") and size:
            lines.append(f"    {name:<12} {_megabytes(size):>10}")
    lines.append(f"    {'total':<12} {_megabytes(memory['total']):>10}")
    if report.fits is None:
        return [*lines, "    (this device does not report how much memory it has)"]
    verdict = "fits" if report.fits else "DOES NOT FIT"
    rest = f"{_megabytes(abs(memory['free']))} {'free' if report.fits else 'too much'}"
    return [*lines, f"    {verdict}: {_megabytes(memory['limit'])} may be used, {rest}"]


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.0f} MB"
