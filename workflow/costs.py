"""What work has cost: time, memory and energy of one step, and the account of all that a result stands on."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from workflow.energy import ESTIMATES, Reading, allocations, drawn

PROCESS = Path("/proc/self")
JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True)
class Cost:
    """What some work has cost.

    Attributes:
        wall_seconds: From its beginning to its end.
        cpu_seconds: Processor time of its process, and of the children of a worker.
        gpu_seconds: Time during which it held a GPU, summed over GPUs.
        peak_memory_mb: Most memory that its process held meanwhile, in MiB.
        peak_memory_of: Whether that is the peak of the step, or of the whole life of its process.
        joules: Energy, by how it was found; None where a record of an earlier version does not say.
    """

    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    gpu_seconds: float = 0.0
    peak_memory_mb: float = 0.0
    peak_memory_of: Literal["step", "process"] = "step"
    joules: Mapping[str, float] | None = field(default_factory=dict)

    def __add__(self, other: Cost) -> Cost:
        """Of both, one after the other. What is not known of one is not known of both."""
        return Cost(
            self.wall_seconds + other.wall_seconds,
            self.cpu_seconds + other.cpu_seconds,
            self.gpu_seconds + other.gpu_seconds,
            max(self.peak_memory_mb, other.peak_memory_mb),
            "process" if "process" in (self.peak_memory_of, other.peak_memory_of) else "step",
            None if self.joules is None or other.joules is None else merged([self.joules, other.joules]),
        )

    def share(self, parts: int) -> Cost:
        """An equal part of it; of memory each part needs all."""
        return Cost(
            self.wall_seconds / parts,
            self.cpu_seconds / parts,
            self.gpu_seconds / parts,
            self.peak_memory_mb,
            self.peak_memory_of,
            None if self.joules is None else {found: joules / parts for found, joules in self.joules.items()},
        )

    def record(self) -> dict[str, Any]:
        """As provenance keeps it."""
        return {key: _rounded(value) for key, value in asdict(self).items()}

    @staticmethod
    def of(record: Mapping[str, Any]) -> Cost:
        """What a record says; those of earlier versions hold less, and beside everything else."""
        if "cost" in record:
            return Cost(**record["cost"])
        seconds, memory = (record["wall_seconds"], record["cpu_seconds"]), record["peak_memory_mb"]
        return Cost(*seconds, peak_memory_mb=memory, peak_memory_of="process", joules=None)


class Meter:
    """Measures from when it is made. The peak of memory begins anew then: of two meters the later one has it.

    Attributes:
        started: When it was made, in seconds of the system's clock.
    """

    def __init__(self) -> None:
        self._of: Literal["step", "process"] = "step" if _forget_peak() else "process"
        self._allocations, self._reading = allocations(), Reading.now()
        self.started, self._cpu = time.time(), _cpu_seconds()

    def read(self) -> Cost:
        """What has been spent since."""
        wall, cpu = time.time() - self.started, _cpu_seconds() - self._cpu
        # A process that has trained keeps its GPU open: work that asks it for no memory does not use it.
        held = {gpu: wall for gpu, count in allocations().items() if count > self._allocations.get(gpu, 0)}
        joules = drawn(self._reading, Reading.now(), cpu, held)
        return Cost(wall, cpu, sum(held.values()), _peak_memory(), self._of, joules)


def merged(energies: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Energies, added up by how they were found."""
    total: dict[str, float] = {}
    for energy in energies:
        for found, joules in energy.items():
            total[found] = total.get(found, 0.0) + joules
    return total


def account(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a result has cost.

    Args:
        records: Provenance of all that it stands on; one that is there twice counts once. `this_run` says of each
            whether it was made since the run began.

    Returns:
        `steps`, a list with an entry for each step; `total`; and `this_run`, what was made since the run began.
    """
    unique = {record["record"]: record for record in records}.values()
    families: dict[str, list[Cost]] = {}
    for record in unique:
        families.setdefault(record["step"], []).append(Cost.of(record))
    return {
        "steps": [{"step": name, **_sum(costs)} for name, costs in families.items()],
        "total": _sum([cost for costs in families.values() for cost in costs]),
        "this_run": _sum([Cost.of(record) for record in unique if record["this_run"]]),
    }


def _sum(costs: Sequence[Cost]) -> dict[str, Any]:
    """Sums over branches, in hours and kWh."""
    total = sum(costs, Cost())
    joules = merged(cost.joules for cost in costs if cost.joules is not None)
    return {
        "branches": len(costs),
        "wall_hours": _rounded(total.wall_seconds / 3600),
        "cpu_hours": _rounded(total.cpu_seconds / 3600),
        "gpu_hours": _rounded(total.gpu_seconds / 3600),
        "peak_memory_mb": total.peak_memory_mb,
        "peak_memory_of": total.peak_memory_of,
        "energy_kwh": _rounded(sum(joules.values()) / JOULES_PER_KWH),
        "estimated_kwh": _rounded(sum(joules[found] for found in joules.keys() & ESTIMATES) / JOULES_PER_KWH),
        "energy_found": sorted(joules),
        "energy_unknown": sum(cost.joules is None for cost in costs),
    }


def _rounded(value: Any) -> Any:
    """A number to six significant digits; numbers in a mapping likewise."""
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _cpu_seconds() -> float:
    """Processor time of this process; of a worker also that of its children which have ended.

    Children of the head process are workers, with accounts of their own.
    """
    own = time.process_time()
    if multiprocessing.parent_process() is None:
        return own
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return own + children.ru_utime + children.ru_stime


def _forget_peak() -> bool:
    """Let this process's peak of memory begin anew; False where the kernel does not allow it."""
    try:
        (PROCESS / "clear_refs").write_text("5")  # proc(5): resets the peak of resident memory and nothing else
    except OSError:
        return False
    return True


def _peak_memory() -> float:
    """Peak of resident memory in MiB."""
    # Not ru_maxrss: of a process that was spawned it begins with what its parent held.
    with suppress(OSError):
        for line in (PROCESS / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
    unit = 1 if sys.platform == "darwin" else 1024  # bytes
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)
