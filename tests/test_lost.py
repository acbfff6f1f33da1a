"""Groups of branches whose workers are lost, or the scheduler: on processes and dask workers of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import luigi
import pytest

from analysis.errors import UserError
from workflow.execution import local
from workflow.execution.clusters import Profile, with_more_memory
from workflow.execution.dask import DaskExecutor
from workflow.execution.executor import LOSSES, Failure, Group, Losses, Message


@dataclass
class Branch:
    """What `run_group` asks of a branch."""

    fingerprint: str
    record: Path


class Trial(luigi.Task):  # type: ignore[misc]
    """What `run_group` asks of a task, with branches that do what a test wants."""

    folder = luigi.Parameter()
    kinds = luigi.Parameter()  # of its branches

    def as_branch(self, branch: int) -> Branch:
        return Branch(f"f{branch}", Path(self.folder) / str(branch) / "provenance.json")

    def run_branches(self, branches: list[int]) -> None:
        for branch in branches:
            folder = Path(self.folder) / str(branch)
            with (folder / "began").open("a") as file:
                file.write("x")
            first = (folder / "began").read_text() == "x"
            kind = self.kinds.split()[branch]
            if kind == "dies" or (kind == "dies_once" and first):
                time.sleep(1)  # what was said before goes out
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "fails":
                raise UserError("It can't be.")
            if kind == "eats":
                held = [bytearray(os.urandom(1 << 20)) for _ in range(330)]
                time.sleep(1)
                del held
            (folder / "made").touch()


def groups(folder: Path, *names: str) -> list[Group]:
    found = []
    for number, name in enumerate(names):
        own = folder / str(number)
        own.mkdir()
        parameters = (("folder", str(folder)), ("kinds", " ".join(names)))
        identity = (f"f{number}",)
        found.append(
            Group(number, __name__, "Trial", parameters, (number,), name, identity, (None,), (str(own),), False)
        )
    return found


def began(group: Group) -> int:
    return len((Path(group.folders[0]) / "began").read_text())


@pytest.fixture
def executor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[DaskExecutor]:
    monkeypatch.setenv("EVENTFOLD_STORE", str(tmp_path / "store"))
    found = DaskExecutor(Profile("test", workers=2, **getattr(request, "param", {})), (), None)
    yield found
    found.close()


def outcomes(executor: DaskExecutor, asked: list[Group]) -> tuple[dict[str, Failure | None], list[str]]:
    """How each group has ended, and what was said."""
    heard: list[Message] = []
    ended = {group.about: failure for group, failure in executor.submit(asked, heard.append)}
    return ended, [message.text for message in heard if message.kind == "said"]


def test_a_group_whose_worker_dies_runs_again(executor: DaskExecutor, tmp_path: Path) -> None:
    ended, said = outcomes(executor, groups(tmp_path, "well", "dies_once"))
    assert ended == {"well": None, "dies_once": None}
    assert said == ["Trial (dies_once): its worker is lost, it goes on elsewhere\n"]


def test_a_group_that_kills_its_workers_is_given_up(executor: DaskExecutor, tmp_path: Path) -> None:
    _, dies = asked = groups(tmp_path, "well", "dies")
    ended, _ = outcomes(executor, asked)
    assert ended["well"] is None
    assert ended["dies"] is not None
    assert ended["dies"].message.startswith(f"{LOSSES} workers were lost under it, the last one at tls://127.0.0.1:")
    assert began(dies) == LOSSES


def sizes_of(executor: DaskExecutor, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many groups go with each task from now on, where few tasks go ahead."""
    sizes: list[int] = []
    send = executor._send

    def counted(bundle: Sequence[Group]) -> Any:
        sizes.append(len(bundle))
        return send(bundle)

    monkeypatch.setattr("workflow.execution.dask.FEWEST", 1)
    monkeypatch.setattr(executor, "_send", counted)
    return sizes


def test_short_groups_share_tasks_and_each_ends_by_itself(
    executor: DaskExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that were done when their worker was lost are not run again, nor are those after it counted as lost."""
    sizes = sizes_of(executor, monkeypatch)
    kinds = ["well"] * 100
    kinds[40], kinds[70], kinds[72] = "dies_once", "fails", "dies"
    asked = groups(tmp_path, *kinds)
    heard: list[Message] = []
    ended = {group.number: failure for group, failure in executor.submit(asked, heard.append)}
    assert sorted(ended) == list(range(100))
    wrong = {number: failure.message for number, failure in ended.items() if failure is not None}
    assert sorted(wrong) == [70, 72]
    assert wrong[70] == "It can't be."
    assert wrong[72].startswith(f"{LOSSES} workers were lost under it")
    expected = {**dict.fromkeys(range(100), 1), 40: 2, 72: LOSSES}
    assert {group.number: began(group) for group in asked} == expected
    said = [message.text for message in heard if message.kind == "said"]
    assert said == [
        f"Trial ({kinds[n]}): its worker is lost, it goes on elsewhere\n" for n in (40, *[72] * (LOSSES - 1))
    ]
    assert len(sizes) < 60
    assert max(sizes) > 3


def test_long_groups_go_one_by_one(executor: DaskExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workflow.execution.dask.LONG", 0.0)
    sizes = sizes_of(executor, monkeypatch)
    ended, _ = outcomes(executor, groups(tmp_path, *["well"] * 20))
    assert ended == {"well": None}
    assert sizes == [1] * 20


def test_a_worker_has_the_time_that_it_needs_to_come_back(executor: DaskExecutor, tmp_path: Path) -> None:
    cluster: Any = executor._cluster
    nannies = dict(cluster.workers)
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "1ms"}):
        ended, _ = outcomes(executor, groups(tmp_path, "dies_once"))
    assert ended == {"dies_once": None}
    assert cluster.workers == nannies


@pytest.mark.parametrize("forgotten", [False, True])
def test_workers_whose_nannies_have_given_up_are_started_anew(
    executor: DaskExecutor, tmp_path: Path, forgotten: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workflow.execution.dask.LOOK", 0.1)
    cluster: Any = executor._cluster

    async def give_up() -> None:
        for nanny in list(cluster.workers.values()):
            await nanny.close()
        if forgotten:
            cluster.workers.clear()

    cluster.sync(give_up)
    assert executor.workers() == 0
    ended, _ = outcomes(executor, groups(tmp_path, "well", "dies_once"))
    assert ended == {"well": None, "dies_once": None}


@pytest.mark.parametrize("executor", [{"gpus": 1}], indirect=True)
def test_a_worker_without_the_gpu_that_it_should_have_says_so(
    executor: DaskExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    well, dies_once = groups(tmp_path, "well", "dies_once")
    ended, _ = outcomes(executor, [replace(well, gpu=True), dies_once])
    assert ended["dies_once"] is None  # it asks for none
    assert ended["well"] is not None
    assert "CUDA_VISIBLE_DEVICES is empty: the batch system gave it no GPU" in ended["well"].message


@pytest.mark.parametrize("executor", [{"memory": "400MB"}], indirect=True)
def test_want_of_memory_is_told_and_not_tried_again(executor: DaskExecutor, tmp_path: Path) -> None:
    (eats,) = groups(tmp_path, "eats")
    ended, _ = outcomes(executor, [eats])
    assert ended["eats"] is not None
    assert ended["eats"].message.startswith("it needs more memory than its worker has (400MB). Raise memory in [")
    assert began(eats) == 1


@pytest.mark.parametrize("executor", [{"memory": "400MB", "most_memory": "1GB"}], indirect=True)
def test_want_of_memory_is_met_with_more(executor: DaskExecutor, tmp_path: Path) -> None:
    well, eats = asked = groups(tmp_path, "well", "eats")
    ended, said = outcomes(executor, asked)
    assert ended == {"well": None, "eats": None}
    assert said == ["1 groups need more memory: 800MB\n"]
    assert (began(well), began(eats)) == (1, 2)


@pytest.mark.parametrize(
    ("profile", "expected"),
    [
        (Profile("x"), None),
        (Profile("x", "slurm", 8, memory="4GB", most_memory="4GB"), None),
        (Profile("x", "slurm", 8, memory="4GB", most_memory="20GB"), ("8000MB", 8)),
        (Profile("x", "slurm", 8, memory="4GB", most_memory="6GB"), ("6000MB", 8)),
        (Profile("x", "local", 5, memory="4GB", most_memory="20GB"), ("8000MB", 2)),
        (Profile("x", "local", 1, memory="4GB", most_memory="20GB"), ("8000MB", 1)),
    ],
)
def test_more_memory_is_twice_as_much(profile: Profile, expected: tuple[str, int] | None) -> None:
    more = with_more_memory(profile)
    assert (more and (more.memory, more.workers)) == expected


def _dies_or_sleeps(group: Any) -> None:
    time.sleep(1 if group.name == "dies" else 90)
    if group.name == "dies":
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_death_is_seen_at_once_however_slowly_processes_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when another process has something to say, which may take hours."""
    start = ProcessPoolExecutor._adjust_process_count

    def slowly(pool: ProcessPoolExecutor) -> None:
        time.sleep(0.5)
        start(pool)

    monkeypatch.setattr(ProcessPoolExecutor, "_adjust_process_count", slowly)
    monkeypatch.setattr(local, "_run", _dies_or_sleeps)
    executor = local.LocalExecutor(2)
    submitted = executor.submit([SimpleNamespace(name="sleeps"), SimpleNamespace(name="dies")], lambda _: None)  # type: ignore[list-item]
    with pytest.raises(UserError, match="A worker process was killed or ended from outside"):
        next(submitted)


@pytest.mark.parametrize("name", [".checkpoint", ".checkpoint-3"])
def test_losses_are_forgiven_where_something_was_kept(name: str, tmp_path: Path) -> None:
    """A branch of several networks numbers its checkpoints."""
    (group,) = groups(tmp_path, "well")
    losses = Losses()
    for number in range(3 * LOSSES):
        (tmp_path / "0" / name).write_text("x" * (number // 2))
        assert not losses.count(group)
    assert [losses.count(group) for _ in range(LOSSES)][-1]


def test_the_death_of_a_running_scheduler_is_said(tmp_path: Path) -> None:
    file = tmp_path / "scheduler.json"
    dask = str(Path(sys.executable).with_name("dask"))
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    scheduler = subprocess.Popen(
        [dask, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", file], **quiet
    )
    try:
        while not file.exists():
            assert scheduler.poll() is None
            time.sleep(0.05)
        executor = DaskExecutor(Profile("test", "scheduler", scheduler_file=str(file)), (), None)
        submitted = executor.submit(groups(tmp_path, "well"), lambda _: None)
        scheduler.kill()
        with pytest.raises(UserError, match=r"The scheduler of dask \(.*scheduler\.json\) is gone"):
            next(submitted)
    finally:
        scheduler.kill()
        scheduler.wait()
