"""dask on a real Slurm: the same results, and no job left behind."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.batch.slurm import Slurm
from tests.toy import Law, linked_environment, ran

pytestmark = pytest.mark.batch
CLUSTER = ("--workflow", "dask", "--cluster", "slurm_gpu")


@pytest.fixture
def batch(slurm: Slurm, law: Law, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Law:
    """The toy analysis in an empty store, for jobs that find their environment by setup.sh."""
    assert slurm.configuration.exists()
    monkeypatch.setenv("EVENTFOLD_VENV", str(linked_environment(tmp_path / "venv")))
    return Law(law.home, Path("batch"))


def jobs(slurm: Slurm) -> str:
    """The jobs that wait or run."""
    return slurm("squeue", "--noheader", "--states=PENDING,RUNNING")


def test_the_summary_is_that_of_local_processes(batch: Law, law: Law, slurm: Slurm) -> None:
    done = batch("Report", "--analysis", batch.analysis, *CLUSTER)
    assert ran(done)["TrainFolds"] == 3
    ours, theirs = (place.results / "toy" / "summary.json" for place in (batch, law))
    assert ours.read_bytes() == theirs.read_bytes()
    assert jobs(slurm) == ""


def test_an_interrupted_run_leaves_no_job(batch: Law, slurm: Slurm) -> None:
    head = batch.start("TrainFolds", "--analysis", batch.analysis, *CLUSTER)
    while "RUNNING" not in slurm("squeue", "--noheader", "--format=%T"):
        assert head.poll() is None, head.communicate()
    head.send_signal(signal.SIGINT)
    _, said = head.communicate()
    assert "interrupted: what is complete stays" in said
    assert jobs(slurm) == ""


def test_a_fold_whose_job_is_cancelled_goes_on_elsewhere(batch: Law, law: Law, slurm: Slurm) -> None:
    longer = ("--set", "training.epochs=400", "--set", "training.patience=null")
    law("TrainFolds", "--analysis", law.analysis, *longer)
    head = batch.start("TrainFolds", "--analysis", batch.analysis, *longer, "--checkpoint", "0.5", *CLUSTER)
    while not list(batch.store.glob("TrainFolds/*/*/.checkpoint")):
        assert head.poll() is None, head.communicate()
        time.sleep(0.05)
    cancelled = slurm("squeue", "--noheader", "--states=RUNNING", "--format=%A").split()
    slurm("scancel", *cancelled)
    _, said = head.communicate()
    assert head.returncode == 0, said
    assert "goes on in epoch" in said
    networks = {path.parent.name: path.read_bytes() for path in law.store.glob("TrainFolds/*/*/network.safetensors")}
    found = {path.parent.name: path.read_bytes() for path in batch.store.glob("TrainFolds/*/*/network.safetensors")}
    assert len(found) == 3
    assert found.items() <= networks.items()
