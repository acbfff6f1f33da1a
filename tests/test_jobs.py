"""law's own jobs, without a batch system: descriptions, news, and which jobs run again."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import law
import pytest

from analysis.errors import UserError
from tests.conftest import Networks
from tests.test_clusters import parsed
from workflow.claims import Stamp
from workflow.execution import batch
from workflow.execution.executor import LOSSES, Failure, Group, Message
from workflow.execution.job import News, news_file, read_groups, read_news, run, tell_head, write_groups
from workflow.execution.managers import HTCondorManager, SlurmManager
from workflow.tasks.train import TrainFolds


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (
            "slurm",
            r"""#!/usr/bin/env bash

#SBATCH --job-name=eventfold-TrainFolds
#SBATCH --partition=long
#SBATCH --output=/dev/null
#SBATCH --error=/dev/null
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


def training_group(
    branches: tuple[int, ...],
    fingerprints: tuple[str, ...],
    stamps: tuple[Stamp, ...] = (None,),
    parameters: tuple[tuple[str, str], ...] = (),
) -> Group:
    folders = tuple(f"/store/{branch}" for branch in branches)
    module, family = TrainFolds.__module__, TrainFolds.__name__
    return Group(0, module, family, parameters, branches, "toy", fingerprints, stamps, folders, True)


class Queue:
    """A Slurm whose every job is a function of the file of its groups, which returns the state that squeue shows."""

    def __init__(self, task: TrainFolds, monkeypatch: pytest.MonkeyPatch, *jobs: Callable[[Path], str]) -> None:
        self.task, self.proxy = task, task.workflow_proxy
        self.jobs, self.states, self.cancelled = list(jobs), dict[int, str](), list[int]()
        self.descriptions: list[str] = []
        self.said: list[Message] = []
        manager = self.proxy.job_manager
        for name in ("submit", "query", "cancel"):
            monkeypatch.setattr(manager, name, getattr(self, name))

    def submit(self, description: str, **_: object) -> int:
        self.descriptions.append(Path(description).read_text())
        number = len(self.descriptions)
        job = self.jobs.pop(0) if len(self.jobs) > 1 else self.jobs[0]
        (groups,) = Path(description).parent.glob(f"*-{number - 1}.json")
        self.states[number] = job(groups)
        return number

    def query(self, ids: list[int], **_: object) -> dict[int, Any]:
        shown = "".join(f"{job} {self.states[job]}\n" for job in ids)
        return SlurmManager.parse_squeue_output(shown)

    def cancel(self, ids: list[int], **_: object) -> dict[int, None]:
        self.cancelled += law.util.make_list(ids)
        return dict.fromkeys(self.cancelled)

    def run(self) -> dict[int, Failure | None]:
        """Run a group for each of three branches. Returns how each has ended."""
        groups = []
        for branch in range(3):
            task = self.task.as_branch(branch)
            one = training_group((branch,), (task.fingerprint,), (task.stamp(),))
            groups.append(replace(one, number=10 + branch, folders=(str(task.folder),)))
        found = self.proxy.executor().submit(groups, self.said.append)
        return {group.branches[0]: failure for group, failure in found}

    def made(self, *branches: int) -> None:
        """Make the outputs of branches, as a job does."""
        for branch in branches:
            task = self.task.as_branch(branch)
            task.folder.mkdir(parents=True, exist_ok=True)
            for path in (*map(task.path, task.files()), task.record):
                path.touch()


@pytest.fixture
def one_job(section: dict[str, str], networks: Networks) -> TrainFolds:
    """Networks that are trained in one job, which is asked after all the time."""
    section |= {"kind": "slurm", "workers": "1", "poll": "0"}
    parsed(section)
    return networks("slurm")


def tell(groups: Path, *news: News) -> None:
    for each in news:
        tell_head(groups, each)


def test_a_mistake_keeps_no_other_group_from_running(one_job: TrainFolds, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []

    def first(groups: Path) -> str:
        asked.append([group.branches[0] for group in read_groups(groups)])
        mistake = {"message": "bad weather", "expected": False, "trace": "...", "starved": False}
        tell(groups, News(0, "started", ""), News(0, "failed", mistake), News(1, "started", ""))
        queue.made(1)
        tell(groups, News(2, "started", ""), News(2, "said", "epoch 3"))
        return "NODE_FAIL"

    def second(groups: Path) -> str:
        asked.append([group.branches[0] for group in read_groups(groups)])
        queue.made(2)
        return "COMPLETED"

    queue = Queue(one_job, monkeypatch, first, second)
    assert queue.run() == {0: Failure("bad weather", False, "..."), 1: None, 2: None}
    assert asked == [[0, 1, 2], [2]], "what has failed or was made does not run again"
    assert Message(12, "said", "epoch 3") in queue.said
    assert [message.group for message in queue.said if message.kind == "started"] == [10, 11, 12]
    assert not [path for path in queue.proxy.folder.iterdir() if path.suffix != ".log"]


def test_a_job_that_is_lost_again_and_again_is_given_up_and_the_others_go_on(
    one_job: TrainFolds, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(groups: Path) -> str:
        tell(groups, News(read_groups(groups)[0].branches[0], "started", ""))
        groups.with_suffix(".log").write_text("node on fire\n")
        return "NODE_FAIL"

    def last(_groups: Path) -> str:
        queue.made(1, 2)
        return "COMPLETED"

    queue = Queue(one_job, monkeypatch, *[lost] * LOSSES, last)
    failures = queue.run()
    assert (failures[1], failures[2]) == (None, None)
    assert failures[0] is not None
    message = f"{LOSSES} jobs were lost under it, the last one is {LOSSES} (NODE_FAIL), and it has kept nothing"
    assert failures[0].message.startswith(message)
    assert failures[0].message.endswith(".log\n    node on fire")
    assert len(queue.descriptions) == LOSSES + 1
    assert set(queue.cancelled) == set(range(1, LOSSES + 1))
    assert any("Job 1 of TrainFolds (branch 0, 1, 2) was lost (NODE_FAIL)" in text for _, _, text in queue.said)


def test_jobs_that_never_begin_are_given_up_together(one_job: TrainFolds, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(one_job, monkeypatch, lambda _: "FAILED")
    assert all(failure is not None for failure in queue.run().values())
    assert len(queue.descriptions) == LOSSES


def test_a_job_that_keeps_something_each_time_is_not_given_up(
    one_job: TrainFolds, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(groups: Path) -> str:
        tell(groups, News(0, "started", ""))
        checkpoint = one_job.as_branch(0).folder / ".checkpoint"
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_text("." * len(queue.descriptions))
        return "TIMEOUT"

    def last(_groups: Path) -> str:
        queue.made(0, 1, 2)
        return "COMPLETED"

    queue = Queue(one_job, monkeypatch, *[lost] * 3 * LOSSES, last)
    assert queue.run() == {0: None, 1: None, 2: None}
    assert len(queue.descriptions) == 3 * LOSSES + 1


@pytest.mark.parametrize("way", ["squeue", "sacct", "slurmstepd", "job"])
def test_want_of_memory(
    way: str, one_job: TrainFolds, section: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    section |= {"memory": "1000MB", "most_memory": "1500MB"}
    parsed(section)

    def hungry(groups: Path) -> str:
        tell(groups, News(0, "started", ""))
        if way == "job":
            tell(groups, News(0, "starved", {}))
        if way == "slurmstepd":
            said = "slurmstepd-node1: error: Detected 1 oom_kill event in StepId=1.batch."
            groups.with_suffix(".log").write_text(said)
        return {"squeue": "OUT_OF_MEMORY", "sacct": "OUT_OF_ME+"}.get(way, "FAILED")

    def last(_groups: Path) -> str:
        queue.made(1, 2)
        return "COMPLETED"

    queue = Queue(one_job, monkeypatch, hungry, hungry, last)
    failures = queue.run()
    assert [re.findall(r"--mem=(\d+)M", text) for text in queue.descriptions] == [["954"], ["1431"], ["1431"]]
    assert failures[0] is not None
    assert "it needs more memory than job 2 has (1500MB)" in failures[0].message
    assert (failures[1], failures[2]) == (None, None)


def test_what_a_job_has_made_may_be_seen_late(one_job: TrainFolds, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(one_job, monkeypatch, lambda _: "COMPLETED")
    looks = []
    ask = queue.query

    def query(ids: list[int], **_: object) -> dict[int, Any]:
        looks.append(ids)
        if len(looks) == 4:
            queue.made(0, 1, 2)
        return ask(ids)

    monkeypatch.setattr(queue.proxy.job_manager, "query", query)
    assert queue.run() == {0: None, 1: None, 2: None}
    assert len(queue.descriptions) == 1


def test_a_job_that_has_made_nothing_is_lost_in_the_end(one_job: TrainFolds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "LATE", 0)
    queue = Queue(one_job, monkeypatch, lambda _: "COMPLETED")
    failure = queue.run()[0]
    assert failure is not None
    assert "(it ended without its outputs)" in failure.message


@pytest.mark.parametrize("lives", [True, False])
def test_jobs_of_a_run_that_lives_are_looked_at_only(
    lives: bool, one_job: TrainFolds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its notes are those of a process that was killed while its job waited."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    first = Queue(one_job, monkeypatch, lambda _: "PENDING")
    with monkeypatch.context() as patch:
        patch.setattr(first.proxy, "take_back", lambda: None)
        patch.setattr(batch, "sleep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            first.run()
    notes = Path(first.proxy._notes.abspath)
    assert f'"{socket.gethostname()}"' in notes.read_text()
    monkeypatch.setattr(batch, "is_at_work", lambda host, pid: lives and (host, pid) == ("there", 7))
    notes.write_text(notes.read_text().replace(f'"{socket.gethostname()}"', '"there"').replace(str(os.getpid()), "7"))
    again = TrainFolds.from_str_params(one_job.to_str_params())
    again.scheduler_messages = None
    second = Queue(again, monkeypatch, lambda _: "PENDING")
    second.states = {1: "PENDING"}

    def enough(*_: object) -> None:
        second.made(0, 1, 2)

    monkeypatch.setattr(batch, "sleep", enough)
    assert second.run() == {0: None, 1: None, 2: None}
    assert second.descriptions == []
    assert second.cancelled == ([] if lives else [1])
    assert notes.exists() == lives
    assert bool(list(notes.parent.glob("*.sh"))) == lives
    whose = "another run (process 7 on there) has" if lives else "an earlier run has"
    assert any(f"{whose} submitted jobs 1" in text for _, _, text in second.said)


def test_ctrl_c_twice_leaves_no_job(one_job: TrainFolds, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(one_job, monkeypatch, lambda _: "RUNNING")

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(batch, "sleep", interrupted)
        patch.setattr(queue.proxy.job_manager, "cancel_batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            queue.run()
    assert queue.cancelled == []
    queue.proxy.take_back()  # as when the process ends
    assert queue.cancelled == [1]


def test_a_silent_batch_system_is_a_sentence(one_job: TrainFolds, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(one_job, monkeypatch, lambda _: "RUNNING")

    def query(*_: object, **__: object) -> None:
        raise RuntimeError("Unable to contact slurm controller")

    monkeypatch.setattr(queue.proxy.job_manager, "query", query)
    monkeypatch.setattr(type(one_job), "poll_fails", 2)
    with pytest.raises(UserError, match="slurm has not answered 3 times"):
        queue.run()


def test_states_from_which_jobs_go_on() -> None:
    assert SlurmManager.map_status("SUSPENDED") == SlurmManager.PENDING
    assert SlurmManager.map_status("NODE_FAIL") == SlurmManager.FAILED
    assert SlurmManager.map_status("RUNNING") == SlurmManager.RUNNING
    assert HTCondorManager.map_status("6") == HTCondorManager.RUNNING
    assert HTCondorManager.map_status("7") == HTCondorManager.PENDING
    assert HTCondorManager.map_status("5") == HTCondorManager.FAILED
    assert HTCondorManager.map_status(None) == HTCondorManager.FAILED


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of three groups of one branch each, in a store of its own."""
    monkeypatch.setenv("EVENTFOLD_STORE", str(tmp_path / "store"))
    path = tmp_path / "1.json"
    write_groups(path, [replace(training_group((branch,), ("f",)), number=branch) for branch in (4, 5, 6)])
    return path


def test_a_job_goes_on_after_a_mistake_and_ends_for_want_of_memory(
    groups: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    ends = {4: Failure("no luck", True), 5: Failure("MemoryError: ", False, starved=True)}

    def work(group: Group, tell: Callable[[Message], None]) -> Failure | None:
        tell(Message(group.number, "started"))
        for text in ("epoch 1", "epoch 2", "goes on\n"):
            tell(Message(group.number, "said", text))
        return ends.get(group.number)

    monkeypatch.setattr("workflow.execution.job.run_group", work)
    assert run(groups, gpu=False) == 1
    found, end = read_news(news_file(groups))
    expected = ["started", "said", "said", "failed", "started", "said", "said", "starved"]
    assert [news.kind for news in found] == expected, "progress is told once a second"
    assert [news.branch for news in found] == [4] * 4 + [5] * 4, "with more memory the rest will run again"
    assert Failure(**found[3].content) == ends[4]
    assert read_news(news_file(groups), end) == ([], end)
    assert capfd.readouterr().err.splitlines()[:4] == [
        "epoch 1",
        "epoch 2",
        "goes on",
        "error: TrainFolds (toy): no luck",
    ]


def test_a_line_that_is_being_written_is_left(groups: Path) -> None:
    with news_file(groups).open("a") as file:
        file.write('[4, "started", ""]\n[4, "sa')
    assert read_news(news_file(groups)) == ([News(4, "started", "")], 19)
    with news_file(groups).open("a") as file:
        file.write('id", "epoch 1"]\n')
    assert read_news(news_file(groups), 19)[0] == [News(4, "said", "epoch 1")]
    news_file(groups).unlink()
    assert read_news(news_file(groups)) == ([], 0)
    tell(groups, News(4, "said", "nobody listens"))
    assert not news_file(groups).exists()


def test_a_job_says_why_it_does_not_start(
    groups: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert run(groups, gpu=True) == 1
    assert "CUDA_VISIBLE_DEVICES is empty" in capfd.readouterr().err
    assert [(news.branch, news.kind) for news in read_news(news_file(groups))[0]] == [(b, "failed") for b in (4, 5, 6)]
    groups.unlink()
    assert run(groups, gpu=True) == 0, "its head has taken it back"
