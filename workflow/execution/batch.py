"""law's own workflow types `slurm` and `htcondor`: law submits jobs, asks after them and runs lost ones again.

Ours is what a job does (`workflow.execution.job`: the groups that every executor runs, with the identities that the
head has pinned), what its description says (a profile, as for dask), and which jobs are worth a second attempt.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import socket
import uuid
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import law
from law.job.dashboard import NoJobDashboard

from analysis.errors import UserError
from workflow.claims import changed, is_at_work
from workflow.execution import logs
from workflow.execution.clusters import (
    DEFAULT_MEMORY,
    Profile,
    bootstrap,
    lines,
    names,
    profile,
    profile_of,
    require_submission,
    variables_of,
    with_more_memory,
)
from workflow.execution.executor import LOSSES, Executor, Failure, Group, GroupProxy, Losses, Message, close_at_end
from workflow.execution.job import news_file, read_news, write_groups
from workflow.execution.managers import HTCondorManager, SlurmManager
from workflow.execution.shipping import ship
from workflow.store import atomic_write, store_folder

LATE = 60.0
"""Seconds for which what a job has made may stay unseen here once it has ended well: NFS remembers that long."""

# Slurm has a state for want of memory only with cgroups; otherwise its daemon says in the log why it has killed a job.
# HTCondor holds a job and says why.
_STARVED = re.compile("OUT_OF_ME|memory (?:limit|usage)", re.IGNORECASE)  # sacct writes OUT_OF_ME+
_STARVED_LOG = re.compile("^slurmstepd\\S*: error: .*(?:memory limit|oom.kill)", re.IGNORECASE | re.MULTILINE)


class JobsProxy(GroupProxy):
    """Branches run in jobs of a batch system; goes before a remote proxy of law's, whose rounds it keeps going."""

    def executor(self) -> Executor:
        """The jobs of this step.

        Raises:
            UserError: The cluster is not of this workflow type, or jobs can't be submitted from here.
        """
        chosen, kind = profile_of(self.task), self.workflow_type
        if chosen.kind != kind:
            fitting = ", ".join(name for name in names() if profile(name).kind == kind) or "none"
            raise UserError(
                f"--workflow {kind} --cluster {self.task.cluster}: [cluster_{chosen.name}] of law.cfg is of kind "
                f"{chosen.kind}, where {kind} is needed. Clusters of that kind: {fitting}."
            )
        require_submission(chosen)
        self._profile = chosen
        self._shipped = ship(self.task.plan.analysis.folder) if chosen.ship_code else None
        self._place = os.getcwd() if self._shipped is None else str(self._shipped.project)
        return _Jobs(self, chosen.most)

    @property
    def folder(self) -> Path:
        """Where law's notes on the jobs and their logs are: the same for the next run while identities are the same."""
        return store_folder() / "jobs" / str(self.task.task_family) / str(self.task.fingerprint)

    def process_resources(self) -> dict[str, int]:
        """What luigi's scheduler has to share out: nothing, as one step runs after the other."""
        return {}

    def rounds(
        self, groups: Sequence[Group], hear: Callable[[Message], None]
    ) -> Iterator[tuple[Group, Failure | None]]:
        """Run groups in jobs and yield each as its outputs are there, or with why it has failed.

        Raises:
            UserError: The batch system takes no job, or does not answer.
        """
        self._groups, self._hear = groups, hear
        self._number = {branch: group.number for group in groups for branch in group.branches}
        self._run, self._head = uuid.uuid4().hex[:8], [socket.gethostname(), os.getpid()]
        # By the number of a job: what it is given, how far its news have been read, the first branch of the group that
        # it is at, and when it was first seen to have ended well.
        self._given: dict[int, Profile] = {}
        self._read: dict[int, int] = {}
        self._at: dict[int, int] = {}
        self._ended: dict[int, float] = {}
        self._starved: set[int] = set()
        self._losses = Losses()
        branches = self.task.get_branch_tasks()
        self._tasks = {branch: branches[branch] for group in groups for branch in group.branches}
        (store_folder() / "jobs").mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.dashboard = self.task.create_job_dashboard() or NoJobDashboard()
        self.job_file_factory = self.create_job_file_factory(dir=str(self.folder), mkdtemp=False, cleanup=False)
        self._existing_branches: set[int] = set()
        self._ready: set[int] = set()
        self._failed: dict[int, Failure] = {}
        self._script = self._write_script()
        self._share_out()
        close_at_end(self.take_back)
        left = list(groups)
        try:
            while True:
                self._poll()
                for group in [group for group in left if self._settled(group.branches)]:
                    left.remove(group)
                    yield group, next((self._failed[b] for b in group.branches if b in self._failed), None)
                # One that still waits has nothing left to do, and is taken back.
                jobs = self.job_data.jobs.values()
                if not left and not any(job["status"] == self.job_manager.RUNNING for job in jobs):
                    return
                sleep(self._profile.poll)
        finally:
            self.take_back()

    def _poll(self) -> None:
        try:
            self.poll()
        except Exception as error:
            if str(error) != "poll_fails exceeded":
                raise
            raise UserError(
                f"{self.task.title}: {self.workflow_type} has not answered {self.task.poll_fails + 1} times, which is "
                "told above. What is complete stays; jobs that could not be cancelled are found by the next run."
            ) from error

    def take_back(self) -> None:
        """Cancel all jobs that have not finished, and remove what only they need; their logs stay."""
        mine = [job for job in self.job_data.jobs.values() if job["extra"].get("head", self._head) == self._head]
        known = [job for job in mine if job["job_id"] not in (None, self.job_data.dummy_job_id)]
        failed = [job["job_id"] for job in known if job["status"] == self.job_manager.FAILED]
        others = [job["job_id"] for job in known if job["status"] != self.job_manager.FAILED]
        # Before they are cancelled: one whose number is not known yet ends when it starts.
        for run in {self._run, *(Path(_log(job)).name.partition("-")[0] for job in mine if _log(job))}:
            for path in self.folder.glob(f"{run}*"):
                if path.suffix != ".log":
                    path.unlink(missing_ok=True)
        self.job_manager.cancel_batch(failed, silent=True)  # some may be held, most are gone
        errors = self.job_manager.cancel_batch(others)
        if errors:
            self._say(f"{self.task.title}: jobs could not be cancelled: {errors[0]}\n")
        elif mine and len(mine) == len(self.job_data.jobs):
            Path(self._notes.abspath).unlink(missing_ok=True)
        # At last: who presses Ctrl-C twice interrupts this, and it is done once more when the process ends.
        self.job_data.update({"jobs": {}, "unsubmitted_jobs": {}})

    # What law asks

    def describe(self, config: Any, number: int, branches: Sequence[int]) -> Any:
        """Describe a job.

        Args:
            config: What law would make of it.
            number: Which of this step's jobs it is.
            branches: What it runs, but for what has been made by now.

        Returns:
            The description.
        """
        stem = f"{self._run}-{number}-{self.job_data.attempts.get(number, 0)}"
        groups = self.folder / f"{stem}.json"
        parts = self._parts({b for b in branches if not self._settled([b])})
        write_groups(groups, [part if self._shipped is None else self._shipped.moved(part) for part in parts])
        given = self._given.setdefault(number, self._profile)
        for told in (self._read, self._at, self._ended):
            told.pop(number, None)
        self._starved.discard(number)
        config.file_name = f"{stem}.description"
        config.input_files, config.executable = {}, None
        config.postfix_output_files = False
        self.complete_description(config, groups, _megabytes(given, "memory"))
        return config

    @abstractmethod
    def complete_description(self, config: Any, groups: Path, memory: int) -> None:
        """Add what a batch system wants to know.

        Args:
            config: law's description of the job.
            groups: What the job runs.
            memory: In MB.
        """

    def create_job_file(self, number: int, branches: Sequence[int]) -> dict[str, Any]:
        """Write the description of a job, and note where its log will be."""
        made: dict[str, Any] = super().create_job_file(number, branches)
        made["log"] = str(Path(made["job"]).with_name(made["config"].file_name).with_suffix(".log"))
        return made

    def get_extra_submission_data(self, job_file: str, job_id: Any, config: Any, log: str | None = None) -> Any:
        """What is noted of a job beside: its log, and whose it is."""
        return {**super().get_extra_submission_data(job_file, job_id, config, log=log), "head": self._head}

    def look(self) -> bool:
        """Note what jobs have made and told, and judge those that have ended without; law asks before it counts.

        Returns:
            That law need not ask the branches of a finished job.
        """
        for branch, task in self._tasks.items():
            if branch not in self._ready and changed(task.record) and task.present():
                task.mark_complete()
                self._ready.add(branch)
        manager = self.job_manager
        for number, job in self.job_data.jobs.items():
            self._listen(number, job)
            if job["status"] in (manager.PENDING, manager.RUNNING):
                continue
            if job["status"] == manager.FINISHED and not self._settled(job["branches"]):
                job["error"] = "it ended without its outputs"
                if monotonic() - self._ended.setdefault(number, monotonic()) < LATE:
                    job["status"] = manager.RUNNING
                    continue
            if not self._settled(job["branches"]):
                self._judge(number, job)
            job["status"] = manager.FINISHED if self._settled(job["branches"]) else manager.FAILED
        return False

    def _listen(self, number: int, job: Mapping[str, Any]) -> None:
        """Hear what a job has told since it was last asked."""
        if not _log(job):
            return
        found, self._read[number] = read_news(news_file(Path(_log(job))), self._read.get(number, 0))
        for branch, kind, content in found:
            if branch not in job["branches"]:
                continue  # an earlier head asked for it
            if kind == "failed":
                (group,) = (group for group in self._groups if branch in group.branches)
                self._give_up([group], Failure(**content))
            elif kind == "starved":
                self._starved.add(number)
            else:
                self._hear(Message(self._number[branch], kind, content))
                if kind == "started":
                    self._at[number] = branch

    def _give_up(self, groups: Sequence[Group], failure: Failure) -> None:
        for group in groups:
            self._failed |= dict.fromkeys(group.branches, failure)

    def _say(self, text: str) -> None:
        self._hear(Message(self._groups[0].number, "said", text))

    def _can_skip_job(self, number: int, branches: Sequence[int]) -> bool:
        """Whether a job has nothing to do; one that runs is waited for."""
        job = self.job_data.jobs.get(number, {"job_id": None})
        return self._settled(branches) and job["job_id"] in (None, self.job_data.dummy_job_id)

    def _print_status_errors(self, failed: Mapping[int, Any]) -> None:
        for job in failed.values():
            self._say(f"{self._about(job)} was lost ({job['error'] or 'no reason known'}), and runs again\n")

    def _submit_batch(self, jobs: Mapping[int, Sequence[int]], **kwargs: Any) -> Any:
        found = super()._submit_batch(jobs, **kwargs)
        for error in found[0]:
            if isinstance(error, Exception):
                where = f"See [cluster_{self._profile.name}] of law.cfg."
                raise UserError(f"{self.task.task_family}: {str(error).strip()}. {where}")
        return found

    # What follows from that

    def _share_out(self) -> None:
        """Tell law which jobs there are: those that a killed run has left, and new ones for the rest."""
        self._notes = self.get_cached_output()["jobs"]
        kept = self._left_by_another()
        taken = {branch for job in kept.values() for branch in job["branches"]}
        rest = list(self._parts(self._tasks.keys() - taken))
        slots = max(1, min(len(rest), self._profile.most - len(kept)))
        first = 1 + max(kept, default=0)
        new = {
            first + slot: sorted(branch for group in rest[slot::slots] for branch in group.branches)
            for slot in range(slots)
            if rest
        }
        self.job_data.update({"jobs": kept, "unsubmitted_jobs": new, "attempts": {}})

    def _left_by_another(self) -> dict[int, Any]:
        """Jobs for the same branches that are in the queue: their head was killed, or is at work as this one is.

        The first are this head's from now on; the second are only looked at.
        """
        kept: dict[int, Any] = {}
        heads: dict[tuple[str, int], bool] = {}
        try:
            found = json.loads(Path(self._notes.abspath).read_text())["jobs"]
            for number, job in found.items():
                if job["job_id"] in (None, self.job_data.dummy_job_id) or not _log(job):
                    continue
                failed = {news.branch for news in read_news(news_file(Path(_log(job))))[0] if news.kind == "failed"}
                branches = [branch for branch in job["branches"] if branch in self._tasks and branch not in failed]
                if not branches:
                    continue
                host, pid = job["extra"]["head"]
                if (host, pid) not in heads:
                    heads[host, pid] = is_at_work(host, pid)
                extra = job["extra"] if heads[host, pid] else {**job["extra"], "head": self._head}
                kept[int(number)] = {**job, "branches": branches, "extra": extra}
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        if kept:
            ids = ", ".join(str(job["job_id"]) for job in kept.values())
            living = ", ".join(f"process {pid} on {host}" for (host, pid), lives in heads.items() if lives)
            whose = f"another run ({living}) has" if living else "an earlier run has"
            self._say(f"{self.task.title}: {whose} submitted jobs {ids}\n")
        return kept

    def _parts(self, branches: set[int]) -> Iterator[Group]:
        """The groups, as far as they are about some branches."""
        for group in self._groups:
            chosen = [i for i, branch in enumerate(group.branches) if branch in branches]
            if chosen:
                yield replace(
                    group,
                    branches=tuple(group.branches[i] for i in chosen),
                    fingerprints=tuple(group.fingerprints[i] for i in chosen),
                    stamps=tuple(group.stamps[i] for i in chosen),
                    folders=tuple(group.folders[i] for i in chosen),
                )

    def _settled(self, branches: Sequence[int]) -> bool:
        return all(branch in self._ready or branch in self._failed for branch in branches)

    def _write_script(self) -> Path:
        """What every job runs: its environment comes from here alone."""
        path = self.folder / f"{self._run}.sh"
        commands = bootstrap(self._profile, variables_of(self.task.plan.analysis.folder), self._shipped)
        # In place of the shell, which would end at SIGTERM before a training has kept its networks.
        run = 'exec python -m workflow.execution.job "$@"'
        script = ["#!/bin/bash", "exec 2>&1", f"cd {shlex.quote(self._place)} || exit 1", *commands, run]
        atomic_write(path, "\n".join(script) + "\n")
        path.chmod(0o700)
        return path

    def _judge(self, number: int, job: dict[str, Any]) -> None:
        """Let a job run again that was lost, with more memory if it had too little; give up what that would not help.

        That is the group that the job was at, or all of its groups if it had begun none.
        """
        groups = list(self._parts({branch for branch in job["branches"] if not self._settled([branch])}))
        blamed = [group for group in groups if self._at.get(number) in group.branches] or groups
        last = logs.tail(Path(_log(job)))
        shown = "\n".join([f"The log of the job: {_log(job)}", *(f"    {line}" for line in last)])
        section = f"[cluster_{self._profile.name}] of law.cfg"
        reason = job["error"] or "no reason known"
        # Some are still in the queue: held, for example.
        self.job_manager.cancel(job["job_id"], silent=True)
        if number in self._starved or _STARVED.search(reason) or _STARVED_LOG.search("\n".join(last)):
            given = self._given.setdefault(number, self._profile)
            more = with_more_memory(given)
            if more is None:
                message = (
                    f"it needs more memory than job {job['job_id']} has ({given.memory or DEFAULT_MEMORY}). Raise "
                    f"memory in {section}, or most_memory, up to which it is tried again with twice as much.\n{shown}"
                )
                self._give_up(blamed, Failure(message, True))
            else:
                self._given[number] = more
                job["error"] = f"out of memory, now with {more.memory}"
        elif given_up := [group for group in blamed if self._losses.count(group)]:
            message = (
                f"{LOSSES} jobs were lost under it, the last one is {job['job_id']} ({reason}), and it has kept "
                f"nothing in between. If memory or walltime is short, raise it in {section}.\n{shown}"
            )
            self._give_up(given_up, Failure(message, True))

    def _about(self, job: Mapping[str, Any]) -> str:
        numbers = ", ".join(str(branch) for branch in job["branches"])
        return f"Job {job['job_id']} of {self.task.task_family} (branch {numbers})"


@dataclass
class _Jobs:
    """The executor of one step: its jobs.

    Attributes:
        proxy: Who submits them.
        slots: How many there are at most.
    """

    proxy: JobsProxy
    slots: int

    def workers(self) -> int:
        jobs = self.proxy.job_data.jobs.values()
        return sum(job["status"] == self.proxy.job_manager.RUNNING for job in jobs)

    def submit(
        self, groups: Sequence[Group], hear: Callable[[Message], None]
    ) -> Iterator[tuple[Group, Failure | None]]:
        return self.proxy.rounds(groups, hear)


class JobsWorkflow:
    """What jobs of both batch systems have in common; law's own settings have one value, or follow from the profile."""

    retries = math.inf  # which jobs run again is decided here
    no_poll = True  # which means: one round for each call of poll()
    poll_fails = 30
    tasks_per_job = 1
    parallel_jobs = -1
    submission_threads = 4
    job_workers = 1
    walltime = law.NO_FLOAT
    shuffle_jobs = cancel_jobs = cleanup_jobs = ignore_submission = transfer_logs = clear_logs = False
    workflow_proxy: Any

    @property
    def poll_interval(self) -> float:
        """Minutes between two rounds, if the batch system does not answer."""
        return self.workflow_proxy._profile.poll / 60

    def job_folder(self) -> Any:
        """Where law keeps its notes."""
        return law.LocalDirectoryTarget(str(self.workflow_proxy.folder))

    def describe_job(self, config: Any, number: int, branches: Sequence[int]) -> Any:
        """Describe a job."""
        return self.workflow_proxy.describe(config, number, branches)

    def look_after_jobs(self) -> bool:
        """Note what jobs have made, and judge those that have ended without."""
        return self.workflow_proxy.look()

    def publish_message(self, message: str, **kwargs: Any) -> None:
        """Leave out what law says of each round: the line of progress says it, and what trainings tell."""
        if not (self.is_workflow() and isinstance(self.workflow_proxy, JobsProxy)):  # type: ignore[attr-defined]
            super().publish_message(message, **kwargs)  # type: ignore[misc]


class SlurmProxy(JobsProxy, law.slurm.workflow.SlurmWorkflowProxy):
    """Branches run in jobs of Slurm."""

    def complete_description(self, config: Any, groups: Path, memory: int) -> None:
        """Options of sbatch."""
        chosen = self._profile
        config.command = f"exec {shlex.quote(str(self._script))}"
        config.arguments = f"{shlex.quote(str(groups))}{' --gpu' if chosen.gpus else ''}"
        config.job_name, config.partition = f"eventfold-{self.task.task_family}", chosen.queue
        # law would write the path of the log without quotes: of two options the later counts.
        config.stdout = config.stderr = "/dev/null"
        log = str(groups.with_suffix(".log")).replace("%", "%%")
        options = {
            "output": log,
            "error": log,
            "chdir": self._place,
            "open-mode": "append",
            "export": "NONE",
            "cpus-per-task": "1",
            "mem": f"{memory}M",
            "account": chosen.account,
            "time": chosen.walltime,
            "gres": f"gpu:{chosen.gpus}" if chosen.gpus else "",
        }
        own = [shlex.quote(f"--{name}={value}") for name, value in options.items() if value]
        config.custom_content = [f"#SBATCH {line}" for line in chosen.kept([*own, *lines(chosen.directives)])]


class SlurmJobs(JobsWorkflow, law.slurm.SlurmWorkflow):
    """law's workflow type `slurm`."""

    workflow_proxy_cls = SlurmProxy
    exclude_index = True
    slurm_partition = law.NO_STR
    slurm_output_directory = JobsWorkflow.job_folder
    slurm_job_config = JobsWorkflow.describe_job
    slurm_check_job_completeness = JobsWorkflow.look_after_jobs

    def slurm_job_manager_cls(self) -> type[SlurmManager]:
        """Who speaks with Slurm."""
        return SlurmManager


class HTCondorProxy(JobsProxy, law.htcondor.workflow.HTCondorWorkflowProxy):
    """Branches run in jobs of HTCondor."""

    def complete_description(self, config: Any, groups: Path, memory: int) -> None:
        """Lines of the submit description."""
        chosen = self._profile
        config.command, config.universe = str(self._script), "vanilla"
        # Within double quotes, between single ones, both of which are doubled where they stand for themselves.
        path = str(groups).replace("'", "''").replace('"', '""')
        config.arguments = f"\"'{path}'{' --gpu' if chosen.gpus else ''}\""
        config.log = config.stdout = config.stderr = None
        commands = {
            "initialdir": self._place,
            "output": str(groups.with_suffix(".log")),
            "getenv": "False",
            "batch_name": f"eventfold-{self.task.task_family}",
            "request_cpus": "1",
            "request_memory": f"{memory}MB",
            "request_disk": f"{_megabytes(chosen, 'disk')}MB",
            "request_gpus": str(chosen.gpus or ""),
        }
        own = [f"{name} = {value}" for name, value in commands.items() if value]
        config.custom_content = chosen.kept([*own, *lines(chosen.directives)])


class HTCondorJobs(JobsWorkflow, law.htcondor.HTCondorWorkflow):
    """law's workflow type `htcondor`."""

    workflow_proxy_cls = HTCondorProxy
    exclude_index = True
    htcondor_pool = htcondor_scheduler = law.NO_STR
    htcondor_output_directory = JobsWorkflow.job_folder
    htcondor_job_config = JobsWorkflow.describe_job
    htcondor_check_job_completeness = JobsWorkflow.look_after_jobs

    def htcondor_job_manager_cls(self) -> type[HTCondorManager]:
        """Who speaks with HTCondor."""
        return HTCondorManager


def _log(job: Mapping[str, Any]) -> str:
    """Where the log of a job is."""
    return str((job.get("extra") or {}).get("log") or "")


def _megabytes(chosen: Profile, key: str) -> int:
    """Memory or disk of a profile in MiB, rounded up."""
    from dask.utils import parse_bytes

    return math.ceil(parse_bytes(getattr(chosen, key) or DEFAULT_MEMORY) / 2**20)
