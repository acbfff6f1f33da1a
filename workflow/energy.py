"""Energy: what processors and GPUs have drawn, by their counters or, where these can't be read, by an estimate.

Readings are taken at the beginning and at the end of some work; `drawn` says what the work in between has drawn.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")
STAT = Path("/proc/stat")
NVML_LIBRARY = "libnvidia-ml.so.1"

RAPL = "RAPL, share of processor time"
NVML = "NVML"
CORE_WATTS = 12.0
"""Of a core at work. An assumption for processors that are not known: that of the Green Algorithms calculator
(doi:10.1002/advs.202100707, its table TDP_cpu.csv), the thermal design power per core of an average processor."""
GPU_WATTS = 200.0
"""Of a GPU that is held. The assumption of the same calculator (TDP_gpu.csv) for a GPU that is not known."""
ESTIMATED_CORE = f"estimate: {CORE_WATTS:g} W per core at work"
ESTIMATED_LIMIT = "estimate: GPU at its power limit"
ESTIMATED_GPU = f"estimate: {GPU_WATTS:g} W per GPU"
ESTIMATES = frozenset({ESTIMATED_CORE, ESTIMATED_LIMIT, ESTIMATED_GPU})
"""Ways to find an energy that are no measurements."""

PAUSE = 60.0
"""Seconds between two looks at RAPL's counters, which begin anew after some ten minutes at 400 W."""


@dataclass(frozen=True)
class Reading:
    """What the counters of this machine show at one moment.

    Attributes:
        processors: Joules that all processors and their memory have drawn since some moment; None if not readable.
        busy: Seconds that the cores of the machine have worked, summed over cores and programs.
        gpus: Joules that each GPU has drawn since some moment, by UUID; without those that have no counter.
        limits: Power limits of GPUs in W, by UUID.
    """

    processors: float | None
    busy: float
    gpus: Mapping[str, float]
    limits: Mapping[str, float]

    @staticmethod
    def now() -> Reading:
        """Read all counters."""
        rapl, nvml = open_rapl(), open_nvml()
        processors, busy = None, 0.0
        with suppress(OSError):  # no work fails for its account
            processors, busy = (rapl.read(), busy_seconds()) if rapl else (None, 0.0)
        return Reading(processors, busy, nvml.energies() if nvml else {}, nvml.limits() if nvml else {})


def drawn(before: Reading, after: Reading, cpu_seconds: float, gpu_seconds: Mapping[str, float]) -> dict[str, float]:
    """What some work has drawn between two readings.

    A processor's counter counts for everybody on the machine: the work is given the share of it that its processor time
    is of all processor time in between. A GPU's counter is given whole to who holds it.

    Args:
        before: Counters when the work began.
        after: Counters when it ended.
        cpu_seconds: Processor time of the work.
        gpu_seconds: Seconds for which it held each GPU, by UUID.

    Returns:
        Joules, by how they were found.
    """
    found: dict[str, float] = defaultdict(float)
    if before.processors is None or after.processors is None:
        found[ESTIMATED_CORE] = CORE_WATTS * cpu_seconds
    else:
        busy = max(after.busy - before.busy, cpu_seconds)  # the machine's is counted in ticks of some 10 ms
        found[RAPL] = (after.processors - before.processors) * cpu_seconds / busy if busy else 0.0
    for gpu, seconds in gpu_seconds.items():
        if gpu in before.gpus and gpu in after.gpus:
            found[NVML] += after.gpus[gpu] - before.gpus[gpu]
        elif gpu in after.limits:
            found[ESTIMATED_LIMIT] += after.limits[gpu] * seconds
        else:
            found[ESTIMATED_GPU] += GPU_WATTS * seconds
    return dict(found)


def busy_seconds() -> float:
    """Seconds that the cores of this machine have worked since it started, for whatever program."""
    user, nice, system, _idle, _waiting, interrupts, soft = map(int, STAT.read_text().split(maxsplit=8)[1:8])
    return (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")


class Rapl:
    """Energy counters of the processors, which the kernel shows as files and which begin anew when they are full.

    A package is a processor with all its cores; the memory beside it counts apart, where it counts at all. Other
    counters are parts of a package, or hold all packages (`psys`), or show one once more (`intel-rapl-mmio`).

    Raises:
        OSError: There are none, or this process may not read them: since 2020 only root may, unless told otherwise.
    """

    def __init__(self, folder: Path) -> None:
        names = {path.parent: path.read_text().strip() for path in folder.glob("intel-rapl:*/name")}
        self._domains = [path for path, name in names.items() if name.startswith(("package", "dram"))]
        if not any(names[path].startswith("package") for path in self._domains):
            raise FileNotFoundError(f"{folder}: no package of RAPL")
        self._ranges = {path: int((path / "max_energy_range_uj").read_text()) for path in self._domains}
        self._last = self._counters()
        self._total = 0
        self._lock = threading.Lock()

    def read(self) -> float:
        """Joules since this object was made; right if it is called before a counter has begun anew twice."""
        with self._lock:
            now = self._counters()
            for path, count in now.items():
                begun_anew = count < self._last[path]
                self._total += count - self._last[path] + (self._ranges[path] if begun_anew else 0)
            self._last = now
            return self._total / 1e6

    def watch(self, pause: float) -> None:
        """Read every so many seconds from now on, so that nothing is missed."""

        def work() -> None:
            while True:
                time.sleep(pause)
                with suppress(OSError):
                    self.read()

        threading.Thread(target=work, daemon=True).start()

    def _counters(self) -> dict[Path, int]:
        """Microjoules of each."""
        return {path: int((path / "energy_uj").read_text()) for path in self._domains}


@lru_cache(maxsize=1)
def open_rapl() -> Rapl | None:
    """The counters of the processors; None where they can't be read."""
    try:
        rapl = Rapl(POWERCAP)
    except OSError:
        return None
    rapl.watch(PAUSE)
    return rapl


class Nvml:
    """Energy counters and power limits of the GPUs, from NVIDIA's own library, which comes with the driver.

    Raises:
        OSError: The library does not start, as without a driver.
        AttributeError: It is none of NVIDIA's, as in some containers, or too old.
    """

    def __init__(self, library: Any) -> None:
        self._energy = library.nvmlDeviceGetTotalEnergyConsumption
        self._limit = library.nvmlDeviceGetEnforcedPowerLimit
        if library.nvmlInit_v2() != 0:
            raise OSError("NVML does not start")
        count = ctypes.c_uint(0)
        library.nvmlDeviceGetCount_v2(ctypes.byref(count))
        self._handles: dict[str, ctypes.c_void_p] = {}
        for i in range(count.value):
            handle, uuid = ctypes.c_void_p(), ctypes.create_string_buffer(96)
            if library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(i), ctypes.byref(handle)) == 0:
                library.nvmlDeviceGetUUID(handle, uuid, ctypes.c_uint(len(uuid)))
                self._handles[uuid.value.decode().removeprefix("GPU-")] = handle

    def energies(self) -> dict[str, float]:
        """Joules since the driver was loaded, by UUID as torch writes it, of the GPUs that count them."""
        return {uuid: count / 1e3 for uuid, count in self._ask(self._energy)}

    def limits(self) -> dict[str, float]:
        """Power limits in W, by UUID as torch writes it."""
        return {uuid: limit / 1e3 for uuid, limit in self._ask(self._limit)}

    def _ask(self, function: Any) -> Iterator[tuple[str, int]]:
        for uuid, handle in self._handles.items():
            value = ctypes.c_ulonglong(0)  # of the functions' integers the longest; all are little-endian
            if function(handle, ctypes.byref(value)) == 0:
                yield uuid, value.value


@lru_cache(maxsize=1)
def open_nvml() -> Nvml | None:
    """The counters of the GPUs; None where there is no driver."""
    try:
        return Nvml(ctypes.CDLL(NVML_LIBRARY))
    except (OSError, AttributeError):
        return None


def allocations() -> dict[str, int]:
    """How often this process has asked each GPU for memory, by UUID; none before torch has opened a GPU."""
    torch = sys.modules.get("torch")  # never imported for this
    if torch is None or not torch.cuda.is_initialized():
        return {}
    return {
        str(torch.cuda.get_device_properties(i).uuid): torch.cuda.memory_stats(i).get("allocation.all.allocated", 0)
        for i in range(torch.cuda.device_count())
    }
