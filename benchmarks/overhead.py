"""What dask adds to the work: seconds that 1,000 empty branches take on two local workers, and until a cluster is up.

An empty branch writes one file of one byte; it is claimed, staged, renamed and recorded as every other. See
benchmarks/README.md.
"""
# ruff: noqa: T201

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import luigi

from analysis.config import Configuration
from workflow.base import Given, Workflow

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class EmptySlice:
    """Which branch it is."""

    number: int


class EmptyBranches(Workflow[EmptySlice]):
    """Branches that do nothing."""

    size = luigi.IntParameter(default=1000, description="how many branches; default: 1000")
    exclude_index = True

    def about_branches(self) -> Sequence[int]:
        return range(self.size)

    @property
    def subject(self) -> str:
        return str(self.branch_data)

    def slice(self, config: Configuration) -> EmptySlice:
        del config
        return EmptySlice(self.branch_data)

    def files(self) -> Sequence[str]:
        return ("nothing",)

    @staticmethod
    def compute(settings: EmptySlice, given: Given, out: Path) -> None:
        del settings, given
        (out / "nothing").write_bytes(b"\n")


def main() -> None:
    """Time it: cluster alone, then runs of empty branches of each workflow type, alternately."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--branches", type=int, default=1000)
    parser.add_argument("--repetitions", type=int, default=3)
    options = parser.parse_args()
    print(f"cluster of two local workers up: {_figures([_cluster_up() for _ in range(options.repetitions)])}")
    seconds: dict[str, list[float]] = {"local": [], "dask": []}
    for _ in range(options.repetitions):
        for workflow, found in seconds.items():
            found.append(_run(workflow, options.branches))
    for workflow, found in seconds.items():
        print(f"{options.branches} empty branches, --workflow {workflow}: {_figures(found)}")


def _cluster_up() -> float:
    """Seconds until both workers of a new cluster have answered, in a process of its own."""
    code = """
import sys, time, tempfile
from pathlib import Path
if __name__ == "__main__":
    start = time.perf_counter()
    from distributed import Client
    from workflow.execution.clusters import Profile, start as start_cluster
    with tempfile.TemporaryDirectory() as folder, start_cluster(Profile("x", workers=2), Path(folder), ()) as cluster:
        with Client(cluster, security=cluster.security) as client:
            client.wait_for_workers(2)
            print(time.perf_counter() - start)
"""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "up.py"
        script.write_text(code)
        done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    return float(done.stdout)


def _run(workflow: str, branches: int) -> float:
    """Seconds of `law run` on an empty store, from the command to its end."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "EVENTFOLD_STORE": f"{folder}/store", "EVENTFOLD_RESULTS": f"{folder}/results"}
        command = ["law", "run", "benchmarks.overhead.EmptyBranches", "--size", str(branches), "--workflow", workflow]
        start = time.perf_counter()
        subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=True)
        return time.perf_counter() - start


def _figures(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.1f} s [{min(seconds):.1f}, {max(seconds):.1f}]"


if __name__ == "__main__":
    main()
