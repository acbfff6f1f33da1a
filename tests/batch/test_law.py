"""law's own jobs on a real Slurm: the same results, mistakes told once, lost jobs run again, no job left behind."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.batch.slurm import Slurm
from tests.toy import ROOT, Law, linked_environment, ran, replace

pytestmark = pytest.mark.batch
CLUSTER = ("--workflow", "slurm", "--cluster", "test")
SECTION = """
[cluster_test]
kind: slurm
workers: 2
memory: 600MB
most_memory: 800MB
walltime: 1:00:00
poll: 1
prologue: echo variables: $(compgen -e)
"""
LONGER = ("--set", "training.epochs=400", "--set", "training.patience=null", "--checkpoint", "0.5")
"""For the networks alone, where all that they stand on is there."""

FEATURES = ("ComputeFeatures", "--group", "features", "--branches")
"""Branches that call `mass` of physics.py: the first ones of signal, the later ones of background."""


@pytest.fixture(autouse=True)
def _cluster(slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that asks after its jobs each second, and an environment that setup.sh finds made."""
    assert slurm.configuration.exists()
    settings = tmp_path / "law.cfg"
    settings.write_text((ROOT / "law.cfg").read_text() + SECTION)
    monkeypatch.setenv("LAW_CONFIG_FILE", str(settings))
    monkeypatch.setenv("LUIGI_CONFIG_PATH", str(settings))
    monkeypatch.setenv("EVENTFOLD_VENV", str(linked_environment(tmp_path / "venv")))
    monkeypatch.setenv("FROM_THE_SHELL", "1")


def queue(slurm: Slurm, states: str = "PENDING,RUNNING") -> list[str]:
    """The numbers of jobs that wait or run."""
    return slurm("squeue", "--noheader", f"--states={states}", "--format=%A").split()


def logs(place: Law, step: str) -> list[str]:
    """What the jobs of a step have said."""
    return [path.read_text() for path in sorted((place.store / "jobs" / step).glob("*/*.log"))]


def until(met: Callable[[], object], head: subprocess.Popen[str]) -> None:
    """Wait until a condition is met while a head is at work."""
    while not met():
        assert head.poll() is None, head.communicate()
        time.sleep(0.05)


def test_the_summary_is_that_of_local_processes(law: Law, slurm: Slurm) -> None:
    batch = Law(law.home, Path("batch"))
    done = batch("Report", "--analysis", batch.analysis, *CLUSTER)
    assert ran(done)["TrainFolds"] == 3
    ours, theirs = (place.results / "toy" / "summary.json" for place in (batch, law))
    assert ours.read_bytes() == theirs.read_bytes()
    assert queue(slurm) == []
    # No variable of the shell got there: all of the environment is that of setup.sh.
    found = logs(batch, "TrainFolds")
    assert len(found) == 2
    variables = found[0].splitlines()[0].split()
    assert variables[0] == "variables:"
    assert "HOME" in variables
    assert not {"FROM_THE_SHELL", "LAW_CONFIG_FILE", "EVENTFOLD_VENV"} & set(variables)
    assert {path.suffix for path in (batch.store / "jobs").rglob("*") if path.is_file()} == {".log"}
    assert (batch.store / "jobs").stat().st_mode & 0o777 == 0o700


def test_a_mistake_is_told_once_and_the_other_branches_go_on(law: Law, slurm: Slurm) -> None:
    """In folders whose names hold what shells and batch systems take for something else."""
    there = Law(law.home.rename(law.home.with_name("it's 100% mine")))
    guarded = 'if ak.min(values) > 5.9:\n        raise ValueError("bad weather")\n    return 2 * values'
    replace(there.home / "toy" / "physics.py", "return 2 * values", guarded)
    before, made = len(queue(slurm, "all")), set(there.store.glob("ComputeFeatures/*/*/provenance*.json"))
    done = there(*FEATURES, "0,4,5", "--analysis", there.analysis, *CLUSTER, ok=False)
    assert done.returncode != 0
    assert re.search(
        r"error: ComputeFeatures \(signal .*\): mass\(events\) failed .*: ValueError: bad weather", done.stderr
    )
    assert "polling took" not in done.stderr, "law's own messages"
    assert "1 of 3 branches failed (signal " in done.stderr
    assert done.stderr.count("error: ") == 2
    assert len(queue(slurm, "all")) == before + 2, "nothing runs again"
    assert any("ValueError: bad weather" in log for log in logs(there, "ComputeFeatures"))
    assert len(set(there.store.glob("ComputeFeatures/*/*/provenance*.json")) - made) == 2
    assert queue(slurm) == []
    assert {path.suffix for path in (there.store / "jobs").rglob("*") if path.is_file()} == {".log"}


def test_jobs_outlive_a_killed_head_and_a_lost_one_runs_again(law: Law, slurm: Slurm) -> None:
    head = law.start("TrainFolds", "--analysis", law.analysis, *LONGER, *CLUSTER)
    until(lambda: list(law.store.glob("TrainFolds/*/*/.checkpoint")), head)
    head.kill()
    head.communicate()
    left = queue(slurm)
    assert left
    again = law.start("TrainFolds", "--analysis", law.analysis, *LONGER, *CLUSTER)
    slurm("scancel", *left)  # one of them has kept something, the other may only have begun
    _, said = again.communicate()
    assert again.returncode == 0, said
    assert "an earlier run has submitted jobs" in said
    assert f"Job {left[0]} of TrainFolds" in said
    assert any("goes on in epoch" in log for log in logs(law, "TrainFolds"))
    assert len(list(law.store.glob("TrainFolds/*/*/network.safetensors"))) == 6


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_no_job(law: Law, slurm: Slurm, number: signal.Signals) -> None:
    head = law.start("TrainFolds", "--analysis", law.analysis, *LONGER, *CLUSTER)
    news = '"said", "folds'  # what the training tells while it goes on
    until(lambda: any(news in path.read_text() for path in law.store.glob("jobs/TrainFolds/*/*.news")), head)
    head.send_signal(number)
    _, said = head.communicate()
    assert "interrupted: what is complete stays" in said
    assert queue(slurm) == []


def test_a_job_of_other_code_fails(law: Law, slurm: Slurm) -> None:
    slurm("scontrol", "update", "PartitionName=cpu", "State=DOWN")
    try:
        head = law.start("TrainFolds", "--analysis", law.analysis, *LONGER, *CLUSTER)
        until(lambda: queue(slurm, "PENDING"), head)
        replace(law.home / "toy" / "physics.py", "2 * values", "3 * values")
    finally:
        slurm("scontrol", "update", "PartitionName=cpu", "State=UP")
    _, said = head.communicate()
    assert head.returncode != 0
    assert "changed while the run was going on" in said
    assert queue(slurm) == []


def test_want_of_memory(law: Law) -> None:
    hungry = "held = bytearray(700_000_000)\n    import time\n    time.sleep(3)\n    return 2 * values"
    replace(law.home / "toy" / "physics.py", "return 2 * values", hungry)
    done = law(*FEATURES, "0", "--analysis", law.analysis, *CLUSTER, ok=False)
    assert done.returncode != 0
    assert "out of memory, now with 800MB" in done.stderr
    assert "it needs more memory than job" in done.stderr
    assert "has (800MB). Raise memory in [cluster_test] of law.cfg, or most_memory" in done.stderr


def test_a_cluster_of_another_kind_is_refused(law: Law) -> None:
    asked = ("TrainFolds", "--analysis", law.analysis, "--set", "seed=9", "--workflow", "slurm")
    done = law(*asked, ok=False)
    assert done.returncode != 0
    assert "[cluster_local] of law.cfg is of kind local, where slurm is needed. Clusters of that kind" in done.stderr
