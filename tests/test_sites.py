"""The profiles of law.cfg for sites: what dask and law submit for each, without a batch system."""

from __future__ import annotations

import re
import shutil
import socket
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.conftest import Networks
from tests.test_jobs import refused, training_group
from tests.toy import ROOT
from workflow.execution.clusters import Profile, lines, names, profile, profile_of, start
from workflow.tasks.train import TrainFolds

SITES = {
    "slurm": (
        {"#SBATCH --mem=4G", "#SBATCH -t 4:00:00"},
        {"#SBATCH --mem=3815M", "#SBATCH --time=4:00:00"},
    ),
    "slurm_gpu": (
        {"#SBATCH -p gpu", "#SBATCH --gres=gpu:1", "#SBATCH --mem=3G", "#SBATCH -t 4:00:00"},
        {"#SBATCH --partition=gpu", "#SBATCH --gres=gpu:1", "#SBATCH --mem=2862M", "#SBATCH --time=4:00:00"},
    ),
    "htcondor": (
        {"MY.DaskWorkerMemory = 4000000000", "Executable = /bin/bash"},
        {"request_memory = 3815MB", "request_disk = 3815MB"},
    ),
    "htcondor_gpu": (
        {"MY.DaskWorkerMemory = 4000000000", "request_gpus = 1"},
        {"request_memory = 3815MB", "request_gpus = 1"},
    ),
    "cern": (
        {"MY.DaskWorkerMemory = 2000000000", '+JobFlavour = "longlunch"'},
        {"request_memory = 1908MB", '+JobFlavour = "longlunch"'},
    ),
    "cern_gpu": (
        {"MY.DaskWorkerMemory = 4000000000", "request_gpus = 1", '+JobFlavour = "workday"'},
        {"request_memory = 3815MB", "request_gpus = 1", '+JobFlavour = "workday"'},
    ),
    "naf": (
        {"MY.DaskWorkerMemory = 2000000000", 'Request_OpSysAndVer = "RedHat9"'},
        {"request_memory = 1908MB", 'Request_OpSysAndVer = "RedHat9"'},
    ),
    "naf_gpu": (
        {"request_gpus = 1", 'Request_OpSysAndVer = "RedHat9"', "+RequestRuntime = 28800"},
        {"request_gpus = 1", 'Request_OpSysAndVer = "RedHat9"', "+RequestRuntime = 28800"},
    ),
    "maxwell": (
        {"#SBATCH -p allcpu", "#SBATCH --nodes=1", "#SBATCH --mem=8G", "#SBATCH -t 4:00:00"},
        {"#SBATCH --partition=allcpu", "#SBATCH --nodes=1", "#SBATCH --mem=7630M", "#SBATCH --time=4:00:00"},
    ),
    "maxwell_gpu": (
        {"#SBATCH -p maxgpu", "#SBATCH --constraint=V100|A100", "#SBATCH -t 8:00:00", "nvidia-smi -L || exit 1"},
        {"#SBATCH --partition=maxgpu", "#SBATCH --constraint=V100|A100", "#SBATCH --time=8:00:00"},
    ),
}
"""Lines that matter in what each profile of law.cfg submits: through dask, and through law."""


def test_every_profile_that_ships_is_tried() -> None:
    shipped = set(re.findall(r"^\[cluster_(\w+)\]", (ROOT / "law.cfg").read_text(), re.MULTILINE))
    assert shipped == {"local", *SITES}
    assert shipped <= set(names())
    assert {profile(name).gpu_cluster for name in shipped} <= {"", *shipped}


SKIPPING = (
    Profile("skips_slurm", "slurm", gpus=1, directives="--constraint=a100\n--nice", skip="--gres\n--mem\n-p\n--con"),
    Profile("skips_htcondor", "htcondor", gpus=1, directives='+JobFlavour = "workday"', skip="Stream_\nrequest_gpus"),
)


def scripts_of_dask(folder: Path) -> dict[str, str]:
    """What dask would submit for each profile."""
    shutil.which, socket.getfqdn = str, lambda: "127.0.0.1"  # type: ignore[assignment]
    found = {}
    for chosen in [*map(profile, SITES), *SKIPPING]:
        with start(chosen, folder / chosen.name, ()) as cluster:
            found[chosen.name] = cluster.job_script()
    return found


@pytest.fixture(scope="module")
def submitted_by_dask(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The same, from a process of its own: dask-jobqueue leaves the files of its certificates open."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(scripts_of_dask, tmp_path_factory.mktemp("clusters")).result()


@pytest.mark.parametrize("name", SITES)
def test_a_site_gets_what_it_wants_from_dask(name: str, submitted_by_dask: dict[str, str]) -> None:
    expected, _ = SITES[name]
    assert expected <= set(submitted_by_dask[name].splitlines())
    assert ("gres" in submitted_by_dask[name]) == (name == "slurm_gpu")


def test_jobs_of_dask_leave_out_what_their_profile_skips(submitted_by_dask: dict[str, str]) -> None:
    slurm, htcondor = (submitted_by_dask[chosen.name] for chosen in SKIPPING)
    directives = [line.removeprefix("#SBATCH ") for line in slurm.splitlines() if line.startswith("#SBATCH")]
    assert {"--nice", "--export=NONE", "-n 1"} <= set(directives)
    assert [line for line in directives if line.startswith(("--gres", "--mem", "-p", "--con", "-t"))] == []
    assert '+JobFlavour = "workday"' in htcondor.splitlines()
    assert "Arguments = " in htcondor
    assert not re.search(r"^(Stream_|request_gpus)", htcondor, re.MULTILINE)


@pytest.mark.parametrize("name", SITES)
def test_a_site_gets_what_it_wants_from_law(name: str, networks: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    task = networks(profile(name).kind, name)
    monkeypatch.setattr(TrainFolds, "wants_gpu", False)  # or it would go to gpu_cluster
    assert profile_of(task).name == name
    group = training_group((0,), (task.as_branch(0).fingerprint,))
    found = refused(task, group, monkeypatch)
    _, expected = SITES[name]
    assert expected <= set(found.description.splitlines())
    assert ("gres" in found.description) == (name == "slurm_gpu")
    assert (" --gpu" in found.description) == bool(profile(name).gpus)
    assert set(lines(profile(name).prologue)) <= set(found.script.splitlines())
