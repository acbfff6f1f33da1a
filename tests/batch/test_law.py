"""law's own jobs on a real Slurm: the same results, mistakes told once, lost jobs run again, no job left behind."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.batch.slurm import Slurm
from tests.toy import Law, linked_environment, ran, replace

pytestmark = pytest.mark.batch
CLUSTER = ("--workflow", "slurm", "--cluster", "test")
ROOT = Path(__file__).resolve().parents[2]
SECTION = """
[cluster_test]
kind: slurm
workers: 4
memory: 900MB
walltime: 1:00:00
poll: 1
prologue: echo variables: $(compgen -e)
"""


@pytest.fixture
def batch(slurm: Slurm, law: Law, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Law:
    """The toy analysis in an empty store, and a cluster that asks after its jobs each second."""
    assert slurm.configuration.exists()
    settings = tmp_path / "law.cfg"
    settings.write_text((ROOT / "law.cfg").read_text() + SECTION)
    monkeypatch.setenv("LAW_CONFIG_FILE", str(settings))
    monkeypatch.setenv("LUIGI_CONFIG_PATH", str(settings))
    monkeypatch.setenv("EVENTFOLD_VENV", str(linked_environment(tmp_path / "venv")))
    monkeypatch.setenv("FROM_THE_SHELL", "1")
    return Law(law.home, Path("batch"))


def jobs(slurm: Slurm) -> str:
    """The jobs that wait or run."""
    return slurm("squeue", "--noheader", "--states=PENDING,RUNNING")


def submitted(slurm: Slurm) -> int:
    """How many jobs there have been."""
    return len(slurm("squeue", "--noheader", "--states=all", "--format=%A").split())


def logs(batch: Law, step: str) -> list[Path]:
    return sorted((batch.store / "jobs" / step).glob("*/*.log"))


def test_the_summary_is_that_of_local_processes(batch: Law, law: Law, slurm: Slurm) -> None:
    done = batch("Report", "--analysis", batch.analysis, *CLUSTER)
    assert ran(done)["TrainFolds"] == 3
    ours, theirs = (place.results / "toy" / "summary.json" for place in (batch, law))
    assert ours.read_bytes() == theirs.read_bytes()
    assert jobs(slurm) == ""
    # No variable of the shell got there: all of the environment is that of setup.sh.
    found = logs(batch, "TrainFolds")
    assert len(found) == 3
    variables = found[0].read_text().splitlines()[0].split()
    assert variables[0] == "variables:"
    assert "HOME" in variables
    assert "FROM_THE_SHELL" not in variables
    assert "LAW_CONFIG_FILE" not in variables
    assert all(path.suffix == ".log" for path in (batch.store / "jobs").rglob("*") if path.is_file())
    assert (batch.store / "jobs").stat().st_mode & 0o777 == 0o700
