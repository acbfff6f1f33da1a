"""Seconds that a graph of many branches takes: imports, fingerprints, and commands on a graph that is complete.

The simulated data sets of `hww` are cut in so many parts that the graph has 1,000 branches, and once more in 1,000
parts altogether. Its outputs are empty files at the paths that the tasks name. See benchmarks/README.md.
"""
# ruff: noqa: T201

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from analysis.config import EXAMPLES
from workflow.costs import Cost
from workflow.lineage import walk
from workflow.store import store_folder
from workflow.tasks import Report

FILES = (142, 1_000)
"""Files of the graphs: with 7 branches for each file and 5 networks, the first has 999 branches."""

LAW = str(Path(sys.executable).with_name("law"))

FINGERPRINTS = """
import sys, time
from workflow.tasks import Report
start = time.perf_counter()
Report(analysis=sys.argv[1]).fingerprint
print(time.perf_counter() - start)
"""


def write_analysis(folder: Path, files: int) -> None:
    """Write `hww` with its data sets cut in so many files altogether, each of one chunk."""
    content = yaml.safe_load((EXAMPLES / "hww" / "analysis.yaml").read_text())
    datasets = content["data"]["datasets"]
    for number, dataset in enumerate(datasets.values()):
        dataset["simulate"]["parts"] = files // len(datasets) + (number < files % len(datasets))
    folder.mkdir()
    (folder / "analysis.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    (folder / "physics.py").write_text((EXAMPLES / "hww" / "physics.py").read_text())


def fill_store(folder: Path) -> int:
    """Put stand-ins at the paths of all outputs, with a provenance each; returns the number of branches."""
    seen: set[Path] = set()
    branches = 0
    for task in walk(Report(analysis=str(folder))):
        if task.record in seen:
            continue
        seen.add(task.record)
        branches += hasattr(task, "branch")
        for name in task.files():
            path = task.path(name)
            (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
            if not name.endswith("/"):
                path.touch()
        task.record.write_text(json.dumps(stand_in(task), indent=1))
    return branches


def stand_in(task: Any) -> dict[str, Any]:
    """A provenance as a run would have written it."""
    return {
        "fingerprint": task.fingerprint,
        "step": task.task_family,
        "label": task.label,
        "record": str(task.record.relative_to(store_folder())),
        "title": task.title,
        "subject": task.subject,
        "parts": task.parts,
        "files": list(task.files()),
        "started": "2026-01-01T00:00:00Z",
        "cost": Cost(1.0, 1.0, 0.0, 100.0, joules={"RAPL": 10.0}).record(),
        "host": "host",
        "code": {"commit": None, "dirty": None},
    }


def process(*command: str, says: str = "") -> Callable[[], float]:
    """Wall-clock seconds of a process from its start to its end, which must succeed and say something."""

    def measure() -> float:
        start = time.perf_counter()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        if says not in done.stdout:
            raise RuntimeError(f"{' '.join(command)} printed {done.stdout!r}, but {says!r} was expected")
        return seconds

    return measure


def imports(*command: str) -> Callable[[], float]:
    """Seconds that a process of Python spends in imports, whenever they happen."""

    def measure() -> float:
        done = subprocess.run(
            [sys.executable, "-X", "importtime", *command], check=True, capture_output=True, text=True
        )
        lines = [
            line.split(":")[1].split("|")[0] for line in done.stderr.splitlines() if line.startswith("import time:")
        ]
        return sum(int(own) for own in lines if own.strip().isdigit()) / 1e6

    return measure


def printed(*command: str) -> Callable[[], float]:
    """The number that a process prints."""
    return lambda: float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def row(name: str, measure: Callable[[], float], repetitions: int) -> None:
    """Measure, and print median, minimum and maximum."""
    values = [measure() for _ in range(repetitions)]
    print(
        f"{name:44}" + "".join(f"{x:9.2f}" for x in (statistics.median(values), min(values), max(values))), flush=True
    )


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description="seconds that a graph of many branches takes")
    parser.add_argument("--files", type=int, nargs="+", default=FILES, help="files of each graph; default: 142 1000")
    parser.add_argument("--repetitions", type=int, default=5, help="measurements of each; default: 5")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ |= {"EVENTFOLD_RESULTS": str(folder / "results"), "LAW_INDEX_FILE": str(folder / "index")}
        print(f"{chosen.repetitions} repetitions, each in a process of its own, Python {platform.python_version()},")
        print(", ".join(f"{name} {version(name)}" for name in ("law", "luigi", "pydantic")))
        print(f"{'seconds':44}{'median':>9}{'min':>9}{'max':>9}")
        row("python, nothing imported", process(sys.executable, "-c", ""), chosen.repetitions)
        row("python, import workflow.tasks", process(sys.executable, "-c", "import workflow.tasks"), chosen.repetitions)
        row("law index", process(LAW, "index", "-q"), chosen.repetitions)
        for files in chosen.files:
            os.environ["EVENTFOLD_STORE"] = str(folder / f"store{files}")
            analysis = folder / f"analysis{files}"
            write_analysis(analysis, files)
            print(f"{files:,} files, {fill_store(analysis):,} branches", flush=True)
            run = (LAW, "run", "Report", "--analysis", str(analysis))
            row("  all fingerprints", printed(sys.executable, "-c", FINGERPRINTS, str(analysis)), chosen.repetitions)
            row("  law run Report, complete", process(*run, says="report: "), chosen.repetitions)
            row("    of which imports", imports(*run), chosen.repetitions)
            row("  law run Report --why", process(*run, "--why", says="nothing would run"), chosen.repetitions)
            lineage = process(*run, "--print-provenance", says=f"ListInputs: {files} of {files} branches")
            row("  law run Report --print-provenance", lineage, chosen.repetitions)


if __name__ == "__main__":
    main()
