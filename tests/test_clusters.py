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
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import law
import psutil
import pytest

from analysis.errors import UserError
from tests.toy import ROOT, Law, ran
from workflow.execution.clusters import Kind, Profile, bootstrap, lines, profile, start, variables_of
from workflow.tasks.train import TrainFolds


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


@pytest.mark.parametrize("name", ["local", "slurm", "slurm_gpu", "htcondor"])
def test_profiles_that_ship(name: str) -> None:
    assert profile(name).name == name


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"worker": "3"}, r"\[cluster_test\]: worker is no key of a cluster\. Did you mean 'workers'"),
        ({"workers": "many"}, r"workers is 'many'; expected a whole number"),
        ({"kind": "pbs"}, r"kind is 'pbs'; expected one of local, slurm, htcondor, scheduler"),
        ({"kind": "scheduler"}, r"needs address or scheduler_file"),
        ({"kind": "slurm", "ship_code": "maybe"}, r"ship_code is 'maybe'; expected true or false"),
        ({"ship_code": "true"}, r"ship_code is for kind slurm or htcondor, not local"),
        ({"memory": "much"}, r"memory is 'much'; expected a size, such as 4GB"),
        ({"most_memory": "more"}, r"most_memory is 'more'; expected a size"),
        ({"disk": "4 disks"}, r"disk is '4 disks'; expected a size"),
        ({"kind": "htcondor", "directives": "request_gpus"}, r"directives has 'request_gpus'; expected NAME = VALUE"),
    ],
)
def test_a_wrong_profile_is_refused(section: dict[str, str], keys: dict[str, str], message: str) -> None:
    section |= keys
    with pytest.raises(UserError, match=message):
        parsed(section)


@pytest.mark.parametrize("losses", [2, 3])
def test_workers_that_are_lost_while_they_start_are_started_anew(
    losses: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import distributed

    started: list[object] = []

    class Cluster:
        def __init__(self, **_: object) -> None:
            started.append(self)
            if len(started) <= losses:
                raise RuntimeError("Nanny failed to start.")

    monkeypatch.setattr(distributed, "LocalCluster", Cluster)
    if losses == 2:
        assert start(Profile("test"), tmp_path, ()) is started[2]
    else:
        with pytest.raises(UserError, match=r"--cluster test: 3 times a worker was lost while it started \(Nanny"):
            start(Profile("test"), tmp_path, ())
        assert len(started) == 3


def test_a_path_that_jobs_of_dask_can_not_take_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", str)
    with pytest.raises(UserError, match=r"jobs of dask can't write to .*/a store: choose a store \(EVENTFOLD_STORE\)"):
        start(Profile("test", "slurm"), tmp_path / "a store", ())


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


def test_variables_are_those_that_the_analysis_reads(tmp_path: Path) -> None:
    (tmp_path / "analysis.yaml").write_text("# $PATH\nfolder: ${DATA}/x  # or $HOME\nother: '$WORK/#1'\n")
    assert variables_of(tmp_path) == ("DATA", "WORK")


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
