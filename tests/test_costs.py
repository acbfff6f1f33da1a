"""What work has cost: counters of stand-ins for RAPL and NVML, estimates that say so, and sums that hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.costs import amount, energy, price
from tests.toy import Law, ran
from workflow import costs
from workflow import energy as counters
from workflow.costs import Cost, Meter, account
from workflow.energy import (
    CORE_WATTS,
    ESTIMATED_CORE,
    ESTIMATED_GPU,
    ESTIMATED_LIMIT,
    GPU_WATTS,
    NVML,
    RAPL,
    Nvml,
    Rapl,
    Reading,
    drawn,
)
from workflow.tasks import Report, TrainFolds, train

NOTHING = Reading(None, 0.0, {}, {})
RANGE = 1_000_000_000  # µJ


def domain(folder: Path, path: str, name: str, count: int) -> Path:
    """A counter as the kernel shows it."""
    place = folder / path
    place.mkdir(parents=True)
    (place / "name").write_text(f"{name}\n")
    (place / "max_energy_range_uj").write_text(f"{RANGE}\n")
    (place / "energy_uj").write_text(f"{count}\n")
    return place


@pytest.fixture
def powercap(tmp_path: Path) -> Path:
    """Two processors, one with memory that counts apart, and counters that hold the same energy once more."""
    folder = tmp_path / "powercap"
    domain(folder, "intel-rapl:0", "package-0", 10)
    domain(folder, "intel-rapl:0:0", "core", 10)
    domain(folder, "intel-rapl:0:1", "dram", 10)
    domain(folder, "intel-rapl:1", "package-1", 10)
    domain(folder, "intel-rapl:2", "psys", 10)
    domain(folder, "intel-rapl-mmio:0", "package-0", 10)
    return folder


def advance(folder: Path, by: int) -> None:
    """Let all counters go on by some µJ; they begin anew when they are full."""
    for path in folder.glob("*/energy_uj"):
        aside = path.with_name("aside")
        aside.write_text(str((int(path.read_text()) + by) % RANGE))
        aside.replace(path)  # never half-written, as little as the kernel's


class TestRapl:
    def test_processors_and_their_memory_are_counted_once(self, powercap: Path) -> None:
        rapl = Rapl(powercap)
        assert rapl.read() == 0
        advance(powercap, 2_000_000)
        assert rapl.read() == pytest.approx(3 * 2.0)

    @settings(deadline=None)
    @given(steps=st.lists(st.integers(0, RANGE - 1), max_size=20))
    def test_a_counter_that_begins_anew_loses_nothing(
        self, tmp_path_factory: pytest.TempPathFactory, steps: list[int]
    ) -> None:
        folder = tmp_path_factory.mktemp("powercap")
        domain(folder, "intel-rapl:0", "package-0", RANGE - 5)
        rapl = Rapl(folder)
        for step in steps:
            advance(folder, step)
            rapl.read()
        assert rapl.read() == pytest.approx(sum(steps) / 1e6)

    def test_it_is_read_while_work_goes_on(self, powercap: Path) -> None:
        rapl = Rapl(powercap)
        rapl.watch(0.02)
        for _ in range(3):  # each time less than a round, together more than one
            before = rapl._last
            advance(powercap, RANGE - 1)
            until(lambda before=before: rapl._last != before and rapl._last == rapl._counters())
        assert rapl.read() == pytest.approx(3 * 3 * (RANGE - 1) / 1e6)

    def test_without_readable_counters_energy_is_an_estimate(
        self, tmp_path: Path, powercap: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened: Callable[[], Rapl | None] = counters.open_rapl.__wrapped__
        monkeypatch.setattr(counters, "POWERCAP", tmp_path / "none")
        assert opened() is None
        (powercap / "intel-rapl:1" / "energy_uj").unlink()  # what one may not read raises an OSError too
        monkeypatch.setattr(counters, "POWERCAP", powercap)
        assert opened() is None
        monkeypatch.setattr(counters, "open_rapl", opened)
        assert Reading.now().processors is None

    def test_a_counter_that_is_gone_ends_no_work(self, powercap: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        rapl = Rapl(powercap)
        monkeypatch.setattr(counters, "open_rapl", lambda: rapl)
        assert Reading.now().processors == 0
        (powercap / "intel-rapl:1" / "energy_uj").unlink()
        assert Reading.now().processors is None

    def test_the_time_of_all_cores_leaves_out_waiting(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "stat").write_text("cpu  100 20 3 99999 8888 5 7 1000 50 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n")
        monkeypatch.setattr(counters, "STAT", tmp_path / "stat")
        assert counters.busy_seconds() == pytest.approx(135 / os.sysconf("SC_CLK_TCK"))


class FakeNvml:
    """NVIDIA's library on a machine with two GPUs, the second of which has no counter of energy."""

    def __init__(self, starts: bool = True) -> None:
        self.millijoules = 5_000_000_000  # more than fits in 32 bits
        self.nvmlInit_v2 = lambda: 0 if starts else 9
        self.nvmlDeviceGetCount_v2 = lambda count: say(count, 3)
        # The third is one that this process may not use.
        self.nvmlDeviceGetHandleByIndex_v2 = lambda i, handle: say(handle, FIRST + i.value) if i.value < 2 else 4
        self.nvmlDeviceGetUUID = self.name
        self.nvmlDeviceGetTotalEnergyConsumption = self.energy
        self.nvmlDeviceGetEnforcedPowerLimit = lambda _handle, value: say(value, 700_000)

    def name(self, handle: Any, text: Any, _size: Any) -> int:
        text.value = b"GPU-first" if handle.value == FIRST else b"GPU-second"
        return 0

    def energy(self, handle: Any, value: Any) -> int:
        return say(value, self.millijoules) if handle.value == FIRST else 3


FIRST = 0x7F00_0000_1000
"""Handle of the first GPU: an address, longer than 32 bits."""


def say(pointer: Any, value: int) -> int:
    """Answer as a function of C does: by way of a pointer, with 0 for success."""
    pointer._obj.value = value
    return 0


class FakeTorch:
    """torch with two GPUs, as far as the account asks it."""

    def __init__(self) -> None:
        self.initialised = False
        self.counts = [0, 0]
        self.cuda = SimpleNamespace(
            is_initialized=lambda: self.initialised,
            device_count=lambda: 2,
            get_device_properties=lambda i: SimpleNamespace(uuid=("first", "second")[i]),
            memory_stats=lambda i: {"allocation.all.allocated": self.counts[i]} if self.counts[i] else {},
        )


class TestGpu:
    def test_what_nvml_says(self) -> None:
        nvml = Nvml(FakeNvml())
        assert nvml.energies() == {"first": 5e6}
        assert nvml.limits() == {"first": 700.0, "second": 700.0}
        with pytest.raises(OSError, match="does not start"):
            Nvml(FakeNvml(starts=False))

    def test_no_driver_is_no_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(counters, "NVML_LIBRARY", "libno-such-library.so.1")
        assert counters.open_nvml.__wrapped__() is None
        monkeypatch.setattr(counters, "NVML_LIBRARY", None)  # some other library, which has none of the functions
        assert counters.open_nvml.__wrapped__() is None

    def test_a_gpu_counts_while_work_asks_it_for_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        library, torch, clock = FakeNvml(), FakeTorch(), SimpleNamespace(now=1000.0)
        nvml = Nvml(library)
        monkeypatch.setattr(counters, "open_nvml", lambda: nvml)
        monkeypatch.setitem(sys.modules, "torch", torch)
        monkeypatch.setattr(costs.time, "time", lambda: clock.now)
        training = Meter()
        torch.initialised, torch.counts, clock.now = True, [7, 0], 1010.0
        library.millijoules += 3_000_000
        cost = training.read()
        assert cost.gpu_seconds == 10.0
        assert cost.joules is not None
        assert cost.joules[NVML] == 3000.0
        later = Meter()  # in the same process, which keeps its GPU open
        clock.now = 1030.0
        library.millijoules += 9_000_000
        assert later.read().gpu_seconds == 0
        assert NVML not in (later.read().joules or {})
        both = Meter()
        torch.counts, clock.now = [8, 1], 1031.0
        cost = both.read()
        assert cost.gpu_seconds == 2.0
        assert cost.joules is not None
        assert cost.joules[ESTIMATED_LIMIT] == 700.0


class TestDrawn:
    def test_a_share_of_the_machine_by_processor_time(self) -> None:
        before, after = Reading(100.0, 50.0, {}, {}), Reading(400.0, 60.0, {}, {})
        assert drawn(before, after, 2.5, {}) == {RAPL: pytest.approx(75.0)}
        assert drawn(before, after, 0.0, {}) == {RAPL: 0.0}

    def test_never_more_than_all(self) -> None:
        """The machine's time is counted in coarser ticks than that of a process."""
        before, after = Reading(100.0, 50.0, {}, {}), Reading(400.0, 50.0, {}, {})
        assert drawn(before, after, 0.004, {}) == {RAPL: pytest.approx(300.0)}
        assert drawn(before, after, 0.0, {}) == {RAPL: 0.0}

    def test_estimates_say_so(self) -> None:
        after = Reading(None, 0.0, {"second": 1.0}, {"first": 400.0})
        found = drawn(NOTHING, after, 3.0, {"first": 2.0, "second": 5.0})
        assert found == {ESTIMATED_CORE: 3 * CORE_WATTS, ESTIMATED_LIMIT: 800.0, ESTIMATED_GPU: 5 * GPU_WATTS}
        assert all(name.startswith("estimate: ") for name in found)
        assert set(found) <= counters.ESTIMATES
        assert not {RAPL, NVML} & counters.ESTIMATES


class TestMeter:
    def test_processor_time_and_energy_of_work(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(counters, "open_rapl", lambda: None)
        meter = Meter()
        started = time.process_time()
        until(lambda: time.process_time() - started > 0.05)
        cost = meter.read()
        assert cost.cpu_seconds >= 0.05
        assert cost.gpu_seconds == 0
        assert cost.joules == {ESTIMATED_CORE: pytest.approx(CORE_WATTS * cost.cpu_seconds)}

    def test_children_of_a_worker_count_and_those_of_the_head_do_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        burn = "import time\nwhile time.process_time() < 0.5: pass"
        for parent, counted in ((None, False), (object(), True)):
            monkeypatch.setattr(costs.multiprocessing, "parent_process", lambda parent=parent: parent)
            meter = Meter()
            subprocess.run([sys.executable, "-c", burn], check=True)
            assert (meter.read().cpu_seconds >= 0.5) == counted

    @pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="no Linux, or /proc is read-only")
    def test_memory_is_that_of_the_step(self) -> None:
        first = Meter()
        held = np.ones(40_000_000)  # 305 MiB
        assert held[-1] == 1
        del held
        peak = first.read()
        second = Meter().read()
        assert peak.peak_memory_of == second.peak_memory_of == "step"
        assert peak.peak_memory_mb > second.peak_memory_mb + 250

    def test_where_the_kernel_does_not_forget_it_says_so(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(costs, "PROCESS", tmp_path / "none")
        cost = Meter().read()
        assert cost.peak_memory_of == "process"
        assert cost.peak_memory_mb > 10
        assert (cost + Cost()).peak_memory_of == "process"


seconds = st.floats(0, 1e6)
methods = st.sampled_from([RAPL, NVML, ESTIMATED_CORE, ESTIMATED_GPU])
spent = st.builds(
    Cost,
    seconds,
    seconds,
    seconds,
    st.floats(0, 1e5),
    st.sampled_from(["step", "process"]),
    st.none() | st.dictionaries(methods, seconds),
)


def record(cost: Cost, step: str = "Train", name: str = "0", this_run: bool = False) -> dict[str, Any]:
    return {"step": step, "record": f"{step}/{name}", "this_run": this_run, "cost": cost.record()}


class TestCost:
    @settings(deadline=None)
    @given(spent, st.integers(1, 10))
    def test_shares_add_up_and_memory_is_not_shared(self, cost: Cost, parts: int) -> None:
        total = sum((cost.share(parts) for _ in range(parts)), Cost())
        for name in ("wall_seconds", "cpu_seconds", "gpu_seconds", "peak_memory_mb", "joules"):
            assert getattr(total, name) == pytest.approx(getattr(cost, name))

    @settings(deadline=None)
    @given(spent)
    def test_a_record_says_what_was_spent(self, cost: Cost) -> None:
        kept = json.loads(json.dumps(record(cost)))
        assert Cost.of(kept).cpu_seconds == pytest.approx(cost.cpu_seconds, rel=1e-5)
        assert Cost.of(kept).joules == (None if cost.joules is None else pytest.approx(cost.joules, rel=1e-5))
        assert Cost.of(kept).record() == kept["cost"]

    def test_records_of_earlier_versions_are_read(self) -> None:
        old = {"step": "Train", "record": "a", "wall_seconds": 7200.0, "cpu_seconds": 3600.0, "peak_memory_mb": 512.0}
        assert Cost.of(old) == Cost(7200.0, 3600.0, 0.0, 512.0, "process", None)
        new = record(Cost(0.0, 3600.0, 0.0, 100.0, joules={RAPL: 3.6e6}))
        total = account([old | {"this_run": False}, new])["total"]
        assert total["cpu_hours"] == 2.0
        assert total["energy_kwh"] == 1.0
        assert (total["energy_unknown"], total["peak_memory_of"]) == (1, "process")


class TestAccount:
    @settings(deadline=None)
    @given(st.lists(st.tuples(st.sampled_from(["Select", "Train"]), spent, st.booleans()), max_size=12))
    def test_totals_are_the_sums_of_the_records(self, made: list[tuple[str, Cost, bool]]) -> None:
        records = [record(cost, step, str(i), new) for i, (step, cost, new) in enumerate(made)]
        found = account(records + records[:1])  # one is met twice
        by_step = {entry["step"]: entry for entry in found["steps"]}
        assert by_step.keys() == {step for step, _, _ in made}
        for entry, costs_in in [
            (found["total"], [cost for _, cost, _ in made]),
            (found["this_run"], [cost for _, cost, new in made if new]),
            *((by_step[name], [cost for step, cost, _ in made if step == name]) for name in by_step),
        ]:
            joules = [cost.joules or {} for cost in costs_in]
            guessed = [energy[name] for energy in joules for name in energy if name.startswith("estimate")]
            assert entry["branches"] == len(costs_in)
            assert entry["wall_hours"] == close(sum(cost.wall_seconds for cost in costs_in) / 3600)
            assert entry["cpu_hours"] == close(sum(cost.cpu_seconds for cost in costs_in) / 3600)
            assert entry["gpu_hours"] == close(sum(cost.gpu_seconds for cost in costs_in) / 3600)
            assert entry["peak_memory_mb"] == close(max((cost.peak_memory_mb for cost in costs_in), default=0))
            assert entry["energy_kwh"] == close(sum(sum(energy.values()) for energy in joules) / 3.6e6)
            assert entry["estimated_kwh"] == close(sum(guessed) / 3.6e6)
            assert entry["energy_found"] == sorted({name for energy in joules for name in energy})
            assert entry["energy_unknown"] == sum(cost.joules is None for cost in costs_in)


class TestWords:
    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (0.0, "0"),
            (3e-6, "<0.00001"),
            (1.23e-5, "0.00001"),
            (0.00213, "0.0021"),
            (0.0996, "0.10"),
            (0.996, "1.0"),
            (9.96, "10"),
            (31.4, "31"),
            (12345.6, "12,346"),
        ],
    )
    def test_amounts(self, value: float, text: str) -> None:
        assert amount(value) == text

    @pytest.mark.parametrize(
        ("joules", "text"),
        [
            ([{RAPL: 720.0}], "0.20 Wh"),
            ([{RAPL: 3.6e6, NVML: 3.6e6}], "2.0 kWh"),
            ([{ESTIMATED_CORE: 720.0}], "about 0.20 Wh (estimated)"),
            ([{ESTIMATED_CORE: 180.0, NVML: 540.0}], "about 0.20 Wh (25% estimated)"),
            ([{ESTIMATED_CORE: 720.0}, None], "about 0.20 Wh (estimated, not recorded for 1 of 2 branches)"),
            ([None, None], "not recorded"),
            ([], "0 Wh"),
        ],
    )
    def test_energy_says_how_it_was_found(self, joules: list[dict[str, float] | None], text: str) -> None:
        found = account([record(Cost(joules=energy), name=str(i)) for i, energy in enumerate(joules)])
        assert energy(found["total"]) == text

    def test_the_price_in_one_line(self) -> None:
        select, train = Cost(cpu_seconds=36.0, joules={RAPL: 360.0}), Cost(cpu_seconds=36.0, joules={RAPL: 360.0})
        found = account([record(select, "Select"), record(train, "Train")])
        assert price(found, "Train") == "cost: 0.020 CPU-hours (training 0.010), energy 0.20 Wh"
        assert price(found, "Tune") == "cost: 0.020 CPU-hours, energy 0.20 Wh"
        held = account([record(Cost(cpu_seconds=36.0, gpu_seconds=1800.0, joules={NVML: 360.0}))])
        assert price(held, "Train") == "cost: 0.010 CPU-hours (training 0.010), 0.50 GPU-hours, energy 0.10 Wh"


class TestRun:
    def test_run_and_records_say_the_same(self, law: Law) -> None:
        """Totals are the sums of the records of all that the result stands on."""
        run = json.loads((law.results / "toy" / "run.json").read_text())
        kept = [json.loads((law.store / step["record"]).read_text()) for step in run["steps"]]
        assert all(step.items() >= found["cost"].items() for step, found in zip(run["steps"], kept, strict=True))
        total = run["costs"]["total"]
        assert total["cpu_hours"] == close(sum(found["cost"]["cpu_seconds"] for found in kept) / 3600)
        joules = [value for found in kept for value in found["cost"]["joules"].values()]
        assert total["energy_kwh"] == close(sum(joules) / 3.6e6)
        assert total["energy_kwh"] > 0
        assert total == run["costs"]["this_run"]
        assert {step["step"] for step in run["costs"]["steps"]} == {step["step"] for step in run["steps"]}
        assert "cost" not in (law.results / "toy" / "summary.json").read_text()

    def test_networks_of_one_stack_share_equally(self, here: Law, monkeypatch: pytest.MonkeyPatch) -> None:
        shares: list[Cost] = []
        whole = Cost(30.0, 9.0, 3.0, 100.0, joules={NVML: 6.0})
        monkeypatch.setattr(train, "Meter", lambda: SimpleNamespace(read=lambda: whole))
        monkeypatch.setattr(train, "train_stack", lambda slices, *_: [None] * len(slices))
        monkeypatch.setattr(TrainFolds, "write", lambda _task, _names, _compute, before: shares.append(before))
        TrainFolds(analysis=here.analysis).run_branches([0, 1, 2])
        assert shares == [Cost(10.0, 3.0, 1.0, 100.0, joules={NVML: 2.0})] * 3

    @pytest.mark.parametrize("content", ["{", '{"steps": []}'])
    def test_a_run_without_an_account_prints_its_table(
        self, here: Law, capsys: pytest.CaptureFixture[str], content: str
    ) -> None:
        """Such as that of an earlier version, adopted."""
        (here.results / "toy" / "run.json").write_text(content)
        Report(analysis=here.analysis).publish()
        printed = capsys.readouterr().out
        assert "AUC" in printed
        assert "report: " in printed
        assert "cost: " not in printed

    def test_what_is_made_again_is_told_apart(self, law: Law) -> None:
        """Beside records of an earlier version, which stay complete."""
        summary = (law.results / "toy" / "summary.json").read_bytes()
        first = json.loads((law.results / "toy" / "run.json").read_text())["costs"]
        for path in (law.store / "SelectEvents").glob("*/*/provenance.json"):
            found = json.loads(path.read_text())
            cost = {key: found["cost"][key] for key in ("wall_seconds", "cpu_seconds", "peak_memory_mb")}
            path.write_text(json.dumps({key: value for key, value in found.items() if key != "cost"} | cost))
        next((law.store / "TrainFolds").rglob("network.safetensors")).unlink()
        done = law("Report", "--analysis", law.analysis)
        assert ran(done) == {"TrainFolds": 1, "ScoreEvents": 4}
        costs = json.loads((law.results / "toy" / "run.json").read_text())["costs"]
        assert costs["total"]["branches"] == first["total"]["branches"]
        before, after = ({step["step"]: step for step in all_of["steps"]} for all_of in (first, costs))
        assert after["SelectEvents"]["cpu_hours"] == pytest.approx(before["SelectEvents"]["cpu_hours"], rel=1e-3)
        assert after["SelectEvents"]["energy_unknown"] == after["SelectEvents"]["branches"] == 8
        assert after["ListInputs"] == before["ListInputs"]
        assert costs["this_run"]["branches"] == 9  # a network, four files of scores, and what follows from all
        assert 0 < costs["this_run"]["cpu_hours"] < costs["total"]["cpu_hours"]
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("cost: ")]
        assert line == price(costs, "TrainFolds")
        assert "not recorded for 8 of" in line
        # A run that has nothing to do says it too.
        again = law("Report", "--analysis", law.analysis)
        assert ran(again) == {}
        assert line in again.stdout
        assert "8 of 8 branches" in law("Report", "--analysis", law.analysis, "--print-provenance").stdout
        assert (law.results / "toy" / "summary.json").read_bytes() == summary


def close(value: float) -> Any:
    """Records and sums are kept to six digits."""
    return pytest.approx(value, rel=1e-4, abs=1e-12)


def until(true: Callable[[], bool]) -> None:
    """Wait, at most a minute, until something is so."""
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end, "waited in vain"
