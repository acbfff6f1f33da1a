"""The Slurm that the tests start does what one on a cluster does: GPUs, memory, walltime, clean environments."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.batch.slurm import Slurm, obstacle, started
from tests.toy import linked_environment, toy

ROOT = Path(__file__).resolve().parents[2]
CLEAN = {"PATH": os.defpath}
"""Variables of somebody who has set up nothing. sbatch hands those of its own process to the job."""

pytestmark = pytest.mark.batch


def test_a_job_runs(slurm: Slurm) -> None:
    job = slurm.submit("echo $SLURM_JOB_ID on $SLURMD_NODENAME")
    assert slurm.wait(job) == "COMPLETED"
    assert slurm.output(job) == f"{job} on node1\n"


def test_a_job_that_fails_says_so_after_its_end(slurm: Slurm) -> None:
    job = slurm.submit("exit 3")
    assert slurm.wait(job) == "FAILED"
    assert "ExitCode=3:0" in slurm("scontrol", "show", "job", job)


def test_a_job_without_a_gpu_sees_none(slurm: Slurm) -> None:
    job = slurm.submit("echo ${CUDA_VISIBLE_DEVICES-none}", environment=CLEAN)
    assert slurm.wait(job) == "COMPLETED"
    assert slurm.output(job) == "none\n"


def test_two_jobs_have_a_gpu_at_once_and_a_third_waits(slurm: Slurm, tmp_path: Path) -> None:
    script = f"echo $CUDA_VISIBLE_DEVICES on $SLURMD_NODENAME\nuntil [ -e '{tmp_path}/go' ]; do sleep 0.1; done"
    jobs = [slurm.submit(script, "--partition=gpu", "--gres=gpu:1") for _ in range(3)]
    for job in jobs[:2]:
        slurm.wait(job, "RUNNING")
    until(lambda: waits_for_resources(slurm, jobs[2]), slurm)
    (tmp_path / "go").touch()
    assert [slurm.wait(job) for job in jobs] == ["COMPLETED"] * 3
    assert sorted(slurm.output(job) for job in jobs[:2]) == ["0 on node1\n", "0 on node2\n"]
    assert slurm.output(jobs[2]).startswith("0 on node")


def test_a_cancelled_job_ends(slurm: Slurm) -> None:
    job = slurm.submit("trap 'echo asked; exit' TERM\necho ready\nsleep 600 & wait")
    until(lambda: slurm.output(job) == "ready\n", slurm)
    slurm("scancel", job)
    assert slurm.wait(job) == "CANCELLED"
    assert "asked\n" in slurm.output(job)


@pytest.mark.slow
def test_walltime_ends_a_job(slurm: Slurm) -> None:
    """It is asked to end first; this one doesn't listen."""
    job = slurm.submit("trap 'echo asked' TERM\necho ready\nwhile true; do sleep 0.1; done", "--time=0:05")
    until(lambda: slurm.output(job) == "ready\n", slurm)
    assert slurm("squeue", "--noheader", f"--jobs={job}", "--format=%l") == "1:00"
    slurm.shorten(job, 1)
    assert slurm.wait(job, seconds=60) == "TIMEOUT"
    assert "DUE TO TIME LIMIT" in slurm.output(job)
    assert "asked\n" in slurm.output(job)


def test_a_job_above_its_memory_is_killed(slurm: Slurm) -> None:
    script = f"{sys.executable} -c 'import time; held = bytearray(400_000_000); time.sleep(600)'"
    job = slurm.submit(script, "--mem=200")
    assert slurm.wait(job) == "FAILED"
    assert "Exceeded job memory limit" in slurm.output(job)


def test_memory_of_a_node_is_shared_out(slurm: Slurm) -> None:
    jobs = [slurm.submit("sleep 600", "--mem=3000") for _ in range(3)]
    for job in jobs[:2]:
        slurm.wait(job, "RUNNING")
    until(lambda: waits_for_resources(slurm, jobs[2]), slurm)
    with pytest.raises(RuntimeError, match="Memory specification can not be satisfied"):
        slurm.submit("true", "--mem=5000")


def test_a_job_of_a_clean_environment_has_law(slurm: Slurm, tmp_path: Path) -> None:
    toy(tmp_path / "toy")
    script = f"""
    cd '{tmp_path}'
    source '{ROOT}/setup.sh' || exit 1
    export TOY_DATA=$PWD/toy/data EVENTFOLD_STORE=$PWD/store EVENTFOLD_RESULTS=$PWD/results
    command -v law
    law run ListInputs --analysis toy
    """
    venv = linked_environment(tmp_path / "venv")
    job = slurm.submit(script, environment={**CLEAN, "EVENTFOLD_VENV": str(venv)})
    assert slurm.wait(job, seconds=60) == "COMPLETED", slurm.output(job)
    assert slurm.output(job).splitlines()[0] == str(venv / "bin" / "law")
    assert (tmp_path / "store" / "ListInputs").is_dir()


@pytest.fixture
def _possible() -> None:
    """For tests that start a Slurm of their own."""
    if obstacle():
        pytest.skip(obstacle())


@pytest.mark.usefixtures("_possible")
@pytest.mark.parametrize("controller", ["there", "gone"])
def test_nothing_outlives_the_end(controller: str) -> None:
    with started() as slurm:
        job = slurm.submit("trap '' TERM\necho ready\nwhile true; do sleep 600; done")
        until(lambda: slurm.output(job) == "ready\n", slurm)
        names = {process.name() for process in slurm.processes()}
        assert {"munged", "slurmctld", "slurmd", "slurmstepd", "slurm_script"} <= names
        if controller == "gone":
            os.kill(int((slurm.folder / "slurmctld.pid").read_text()), signal.SIGKILL)
    assert slurm.processes() == []
    assert not slurm.folder.exists()


@pytest.mark.usefixtures("_possible")
def test_daemons_end_with_tests_that_are_killed() -> None:
    code = """
import os, signal
from tests.batch.slurm import started
with started() as slurm:
    print(slurm.folder, len(slurm.processes()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder, count = killed.stdout.split()
    assert int(count) >= 4
    slurm = Slurm(Path(folder))
    deadline = time.monotonic() + 10
    while slurm.processes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert slurm.processes() == []
    shutil.rmtree(slurm.folder)


@pytest.mark.usefixtures("_possible")
def test_a_daemon_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.batch.slurm.PARTITIONS", "PartitionName=cpu Nodes=node7")
    with pytest.raises(RuntimeError, match=r"slurmctld has ended with 1\n(.*\n)*.*node7"), started():
        pass


def until(met: Callable[[], bool], slurm: Slurm) -> None:
    """Wait until a condition is met: that a job is running says nothing of how far it has come."""
    for _ in range(300):
        if met():
            return
        time.sleep(0.1)
    raise TimeoutError(f"not met after 30 s; the queue:\n{slurm('squeue')}\n{slurm.logs()}")


def waits_for_resources(slurm: Slurm, job: str) -> bool:
    return slurm("squeue", "--noheader", f"--jobs={job}", "--format=%T %r") == "PENDING Resources"
