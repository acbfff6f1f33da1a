"""Clusters: profiles of law.cfg, the environment of jobs, and who may speak to a scheduler."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from http.client import HTTPException
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import urlopen

import law
import psutil
import pytest

from analysis.errors import UserError
from tests.toy import ROOT, Law, ran
from workflow.claims import Stamp
from workflow.execution.clusters import Kind, Profile, bootstrap, lines, names, profile, profile_of, start
from workflow.execution.executor import Group, Message
from workflow.execution.job import mistake_file, read_groups, run, write_groups
from workflow.tasks.train import TrainFolds

Networks = Callable[..., TrainFolds]


@pytest.fixture
def section() -> Iterator[dict[str, str]]:
    """The keys of `[cluster_test]`, which are put into law's configuration when it is asked for."""
    config = law.config.Config.instance()
    keys: dict[str, str] = {}
    config.add_section("cluster_test")
    yield keys
    config.remove_section("cluster_test")


@pytest.fixture
def networks(here: Law, monkeypatch: pytest.MonkeyPatch) -> Networks:
    """Networks that are not trained yet, for a workflow type, with a batch system's programs as if they were there."""
    monkeypatch.setattr(shutil, "which", str)
    monkeypatch.setattr("law.task.proxy.global_cmdline_args", lambda **_: {})  # there is no command line

    def make(kind: str, cluster: str = "test") -> TrainFolds:
        task = TrainFolds(analysis=here.analysis, workflow=kind, cluster=cluster, set=("seed=9",))
        task.scheduler_messages = None  # nor a worker of luigi's
        return task

    return make


def parsed(section: dict[str, str]) -> Profile:
    for key, value in section.items():
        law.config.Config.instance().set("cluster_test", key, value)
    return profile("test")


def test_a_profile_is_read(section: dict[str, str]) -> None:
    section |= {"kind": "slurm", "queue": "gpu", "workers": "3", "gpus": "1", "directives": "--a=1\n  --b\n\n"}
    found = parsed(section)
    assert (found.kind, found.queue, found.most, found.gpus, found.memory) == ("slurm", "gpu", 3, 1, "")
    assert lines(found.directives) == ["--a=1", "--b"]
    assert not found.ship_code
    assert parsed(section | {"ship_code": "true"}).ship_code


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"worker": "3"}, r"\[cluster_test\]: worker is no key of a cluster\. Did you mean 'workers'"),
        ({"workers": "many"}, r"workers is 'many'; expected a whole number"),
        ({"kind": "pbs"}, r"kind is 'pbs'; expected one of local, slurm, htcondor, scheduler"),
        ({"kind": "scheduler"}, r"needs address or scheduler_file"),
        ({"kind": "slurm", "ship_code": "maybe"}, r"ship_code is 'maybe'; expected true or false"),
        ({"ship_code": "true"}, r"ship_code is for kind slurm or htcondor, not local"),
    ],
)
def test_a_wrong_profile_is_refused(section: dict[str, str], keys: dict[str, str], message: str) -> None:
    section |= keys
    with pytest.raises(UserError, match=message):
        parsed(section)


def test_an_unknown_cluster_is_refused(law: Law) -> None:
    done = law(
        "TrainFolds",
        "--analysis",
        law.analysis,
        "--workflow",
        "dask",
        "--cluster",
        "lokal",
        "--set",
        "seed=9",
        ok=False,
    )
    assert done.returncode != 0
    assert "--cluster lokal: law.cfg has no section [cluster_lokal]. Did you mean 'local'" in done.stderr


def test_a_job_gets_its_environment_from_setup_sh_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTFOLD_STORE", "/a store/it's")
    monkeypatch.setenv("MY_DATA", "/data")
    monkeypatch.setenv("SECRET", "no")
    commands = bootstrap(Profile("x", prologue="echo first"), ["MY_DATA", "NOT_SET"])
    assert commands[0] == "echo first"
    assert commands[-1].startswith("source /")
    assert commands[-1].endswith("setup.sh || exit 1")
    said = subprocess.run(
        ["env", "-i", "/bin/bash", "-c", "\n".join([*commands[:-1], "env"])], capture_output=True, text=True, check=True
    ).stdout
    assert "EVENTFOLD_STORE=/a store/it's\n" in said
    assert "MY_DATA=/data\n" in said
    assert "OMP_NUM_THREADS=1\n" in said
    assert "SECRET" not in said


@pytest.mark.parametrize(
    ("files", "visible", "expected"),
    [
        ([], None, False),
        (["nvidiactl", "nvidia-uvm"], None, False),
        (["nvidia0"], None, True),
        (["nvidia0", "nvidia1"], "1", True),
        (["nvidia0"], "", False),
    ],
)
def test_networks_of_one_machine_share_its_gpu_as_one_stack(
    files: list[str], visible: str | None, expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workflow.execution.clusters.DEVICES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    for name in files:
        (tmp_path / name).touch()
    here, there = (TrainFolds(workflow=kind) for kind in ("local", "dask"))
    assert here.group_branches(range(5), 2) == ([[0, 1, 2, 3, 4]] if expected else [[0, 2, 4], [1, 3]])
    assert there.group_branches(range(5), 2) == [[0, 2, 4], [1, 3]]


def test_a_scheduler_listens_to_its_own_certificate_only(tmp_path: Path) -> None:
    from distributed import Client
    from distributed.comm import connect
    from distributed.security import Security

    folder = tmp_path / "clusters"
    with start(Profile("test", workers=1), folder, ()) as cluster:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert cluster.scheduler_address.startswith("tls://127.0.0.1:")
        with Client(cluster, security=cluster.security) as client:
            assert client.submit(sum, [1, 2]).result(30) == 3
        plain = cluster.scheduler_address.replace("tls://", "tcp://")
        stranger = Security.temporary().get_connection_args("client")
        for address, arguments in ((plain, {}), (cluster.scheduler_address, stranger)):
            with pytest.raises(OSError, match=r"."):
                asyncio.run(greeted(connect(address, timeout=3, **arguments)))


# dask-jobqueue leaves the files of certificates to the collector of garbage.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("kind", "pages"), [("local", False), ("local", True), ("slurm", False), ("slurm", True)])
def test_no_port_is_open_without_tls_but_on_loopback(
    kind: Kind, pages: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", str)
    reached = [name for name, all_of in psutil.net_if_addrs().items() for each in all_of if is_outer(each)]
    interface = reached[0] if reached and kind == "slurm" else ""
    with start(Profile("test", kind, workers=1, interface=interface, dashboard=pages), tmp_path, ()) as cluster:
        own = psutil.Process()
        found = [each for one in (own, *own.children(recursive=True)) for each in one.net_connections("tcp")]
        listening = [each.laddr for each in found if each.status == psutil.CONN_LISTEN]
        assert len(listening) >= 2  # of the scheduler alone
        served = {each: reads(*each) for each in listening}
        assert {each.ip for each, found in served.items() if found is not None} == {"127.0.0.1"}
        assert served.pop(("127.0.0.1", cluster.scheduler.http_server.port)) == pages
        assert not any(served.values())
    del cluster
    gc.collect()


def is_outer(address: Any) -> bool:
    return address.family == socket.AF_INET and not address.address.startswith("127.")


def reads(host: str, port: int) -> bool | None:
    """Whether pages can be read over HTTP; None where nothing but TLS is answered."""
    try:
        for path in ("health", "status", "info/main/workers.html", "info/main/logs.html"):
            with suppress(HTTPError), urlopen(f"http://{host}:{port}/{path}", timeout=10):
                return True
    except (OSError, HTTPException):
        return None
    return False


async def greeted(comm: object) -> None:
    await comm  # type: ignore[misc]


@pytest.mark.parametrize(("kind", "program"), [("slurm", "sbatch"), ("htcondor", "condor_submit")])
def test_a_run_whose_jobs_are_refused_ends_with_the_reason(
    law: Law, kind: str, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = law.home / "bin"
    programs.mkdir()
    (programs / program).write_text(f"#!/bin/sh\necho '{program}: error: no such queue' >&2\nexit 1\n")
    (programs / program).chmod(0o755)
    settings = law.home / "law.cfg"
    settings.write_text(f"{(ROOT / 'law.cfg').read_text()}\n[cluster_test]\nkind: {kind}\nworkers: 2\ninterface: lo\n")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    for variable in ("LAW_CONFIG_FILE", "LUIGI_CONFIG_PATH"):
        monkeypatch.setenv(variable, str(settings))
    asked = ("TrainFolds", "--analysis", law.analysis, "--set", "seed=9", "--workflow", "dask", "--cluster", "test")
    done = law(*asked, ok=False)
    expected = (
        f"error: --cluster test: the batch system refuses jobs: {program}: error: no such queue\nCorrect [cluster_"
    )
    assert done.stderr.count("error: ") == 2  # its own words hold one
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_steps_run_on_the_workers_of_a_cluster(law: Law) -> None:
    """Training too, which the toy analysis has not done with this seed."""
    command = ("Report", "--analysis", law.analysis, "--dashboard", "--set", "seed=9")
    refused = law(*command, ok=False)
    assert "error: --dashboard shows the workers of dask: it needs --workflow dask." in refused.stderr
    done = law(*command, "--workflow", "dask", "--cluster", "local")
    assert ran(done)["TrainFolds"] == 3
    (port,) = re.findall(r"^dashboard: http://127\.0\.0\.1:(\d+)/status$", done.stderr, re.MULTILINE)
    assert f"ssh -N -L {port}:127.0.0.1:{port} " in done.stderr


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (
            "slurm",
            r"""#!/usr/bin/env bash

#SBATCH --job-name=eventfold-TrainFolds
#SBATCH --partition=long
#SBATCH --output=JOBS/RUN-1-0.log
#SBATCH --error=JOBS/RUN-1-0.log
#SBATCH --chdir=HERE
#SBATCH --open-mode=append
#SBATCH --export=NONE
#SBATCH --mem=3815M
#SBATCH --account=physics
#SBATCH --time=2:00:00
#SBATCH --gres=gpu:1
#SBATCH --constraint=a100

exec JOBS/RUN.sh JOBS/RUN-1-0.json --gpu
""",
        ),
        (
            "htcondor",
            r"""universe = vanilla
executable = JOBS/RUN.sh
notification = Never
initialdir = HERE
output = JOBS/RUN-1-0.log
getenv = False
batch_name = eventfold-TrainFolds
request_memory = 3815MB
request_disk = 3815MB
request_gpus = 1
--constraint=a100
environment = "LAW_HTCONDOR_JOB_CLUSTER=$(Cluster) LAW_HTCONDOR_JOB_PROCESS=$(Process)"
arguments = "'JOBS/RUN-1-0.json' --gpu"
queue
""",
        ),
    ],
)
def test_a_job_is_described_by_its_profile(
    kind: str, expected: str, section: dict[str, str], networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    section |= {"kind": kind, "queue": "long", "account": "physics", "walltime": "2:00:00", "workers": "1", "gpus": "1"}
    section |= {"memory": "4GB", "directives": "--constraint=a100", "skip": "cpus"}
    parsed(section)
    task = networks(kind)
    branches = (0, 2)
    fingerprints = tuple(task.as_branch(branch).fingerprint for branch in branches)
    group = training_group(branches, fingerprints, (None, (1, 2, 3)), (("analysis", task.analysis),))
    found = refused(task, group, monkeypatch)
    text = re.sub("/[0-9a-f]{8}(?=[-.])", "/RUN", found.description.replace(str(task.workflow_proxy.folder), "JOBS"))
    assert text.replace(str(Path.cwd()), "HERE") == expected
    assert found.groups == [group]
    assert found.message == "TrainFolds: no such queue. See [cluster_test] of law.cfg."
    assert list(task.workflow_proxy.folder.iterdir()) == []


class Refused(NamedTuple):
    """What a job would have been that the batch system has refused."""

    description: str
    script: str
    groups: list[Group]
    message: str


def refused(task: TrainFolds, group: Group, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Submit a group to a batch system that refuses it."""
    proxy = task.workflow_proxy
    found: list[str | list[Group]] = []

    def refuse(description: str | list[str], **_: object) -> None:
        (path,) = law.util.make_list(description)
        folder = Path(path).parent
        (script,) = folder.glob("*.sh")
        found.extend([Path(path).read_text(), script.read_text(), read_groups(next(folder.glob("*-1-0.json")))])
        raise RuntimeError("no such queue")

    monkeypatch.setattr(proxy.job_manager, "submit", refuse)
    with pytest.raises(UserError) as error:
        list(proxy.executor().submit([group], lambda _: None))
    return Refused(*found, str(error.value))  # type: ignore[arg-type]


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


def scripts_of_dask(folder: Path) -> dict[str, str]:
    """What dask would submit for each profile."""
    shutil.which, socket.getfqdn = str, lambda: "127.0.0.1"  # type: ignore[assignment]
    found = {}
    for name in SITES:
        with start(profile(name), folder / name, ()) as cluster:
            found[name] = cluster.job_script()
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


def training_group(
    branches: tuple[int, ...],
    fingerprints: tuple[str, ...],
    stamps: tuple[Stamp, ...] = (None,),
    parameters: tuple[tuple[str, str], ...] = (),
) -> Group:
    folders = tuple(f"/store/{branch}" for branch in branches)
    module, family = TrainFolds.__module__, TrainFolds.__name__
    return Group(0, module, family, parameters, branches, "toy", fingerprints, stamps, folders, True)


def test_jobs_of_a_wrong_size_are_refused(section: dict[str, str], networks: Networks) -> None:
    section |= {"kind": "slurm", "memory": "much"}
    parsed(section)
    proxy = networks("slurm").workflow_proxy
    with pytest.raises(UserError, match=r"\[cluster_test\]: memory is 'much'; expected a size, such as 4GB"):
        list(proxy.executor().submit([training_group((0,), ("",))], lambda _: None))


def test_a_job_that_is_lost_again_and_again_is_given_up(
    section: dict[str, str], networks: Networks, monkeypatch: pytest.MonkeyPatch
) -> None:
    section |= {"kind": "slurm", "poll": "0"}
    parsed(section)
    task = networks("slurm")
    proxy = task.workflow_proxy
    manager = proxy.job_manager
    submitted, cancelled = [], []
    said: list[Message] = []

    def submit(*_: object, **__: object) -> int:
        submitted.append(len(submitted) + 1)
        return submitted[-1]

    def query(ids: list[int], **_: object) -> dict[int, object]:
        return {job: manager.job_status_dict(job, manager.FAILED, error="NODE_FAIL") for job in ids}

    monkeypatch.setattr(manager, "submit", submit)
    monkeypatch.setattr(manager, "query", query)
    monkeypatch.setattr(manager, "cancel", lambda ids, **_: cancelled.extend(law.util.make_list(ids)) or {5: None})
    group = training_group((0,), (task.as_branch(0).fingerprint,))
    with pytest.raises(
        UserError, match=r"Job 5 of TrainFolds \(branch 0\) is the last of 5 that were lost \(NODE_FAIL\)"
    ):
        list(proxy.executor().submit([group], said.append))
    assert submitted == [1, 2, 3, 4, 5]
    assert set(cancelled) == {1, 2, 3, 4, 5}
    assert "Job 4 of TrainFolds (branch 0) was lost (NODE_FAIL), and runs again\n" in [message.text for message in said]


def test_a_job_says_why_it_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    groups = tmp_path / "1.json"
    assert run(groups, gpu=True) == 0  # its head has taken it back
    assert not mistake_file(groups).exists()
    write_groups(groups, [])
    assert run(groups, gpu=False) == 0
    assert run(groups, gpu=True) == 1
    assert "CUDA_VISIBLE_DEVICES is empty" in mistake_file(groups).read_text()
