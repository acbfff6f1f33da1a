"""Kills at random moments over one main job: head, worker processes, jobs; and what they cost.

A run that has lost its head is started again by the same command. The job must end as an undisturbed one does: with
the same `summary.json`, outputs and events, and without a process, a job or a lock that stays. See
benchmarks/README.md.
"""
# ruff: noqa: T201

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import psutil
from filelock import SoftFileLease

from benchmarks.undisturbed import Reference, ViolationError, check, check_end, check_events, next_step
from models.checkpoint import Checkpoint
from models.ensemble import load_member
from tests.batch.slurm import Slurm, obstacle, started
from tests.toy import Law, OnTerminal, linked_environment, toy
from workflow.claims import LEASE
from workflow.execution.clusters import profile
from workflow.store import read_json

GRACE = 30.0
"""Seconds within which all workers of a killed run must be gone; one that is just starting has imports to do."""
BATCH_GRACE = 90.0
"""The same of a batch system, where a job that was waiting still looks for its scheduler."""
LOOK = 0.05
"""Seconds between two looks at who is at work."""
HANGS = 600.0
"""Seconds after the last kill in which a run must end, beside ten times those of the undisturbed one."""
SLACK = 1.0
"""Seconds by which lost work may exceed the interval: nothing is kept while a network is validated or written, and
others may have the processors."""
START = 5.0
"""The same of a network that has not done an epoch since its process began with it, which imports torch first."""
ENDS_TOLD = ("A worker process was killed", "workers were lost under it", "that were lost")
"""How a run says that it ends because of what it has lost: the next one goes on."""


@dataclass(frozen=True)
class Work:
    """An output that a process is making, as its lease file says.

    Attributes:
        folder: Of the output, relative to the store.
        pid: The process.
        since: When it was first seen, in seconds of the epoch.
        offset: How much the run had said by then.
    """

    folder: Path
    pid: int
    since: float
    offset: int

    @property
    def step(self) -> str:
        """The task family."""
        return self.folder.parts[0]


@dataclass(frozen=True)
class Loss:
    """Work that a kill has undone.

    Attributes:
        subject: What it was about.
        seconds: Since the process began with it, or has last kept a checkpoint.
        steps: Of a network: how many steps of the optimiser at least and at most.
    """

    subject: str
    seconds: float
    steps: tuple[int, int] | None = None


@dataclass(frozen=True)
class Kill:
    """What one kill met.

    Attributes:
        at: Seconds since the job began.
        victim: What was killed.
        step: The step that was at work; without one, the next of which an output is missing; empty if none is.
        losses: What has to be done again.
        outputs: How many outputs were complete, and compared; 0 where the run went on.
        outlived: Seconds until the last worker was gone, where the head was killed and took them with it.
    """

    at: float
    victim: str
    step: str
    losses: tuple[Loss, ...]
    outputs: int = 0
    outlived: float = 0.0

    @property
    def lost(self) -> float:
        """Seconds of work that are lost in one process at most."""
        return max((loss.seconds for loss in self.losses), default=0.0)

    @property
    def trained(self) -> bool:
        """Whether networks were training."""
        return any(loss.steps for loss in self.losses)


@dataclass(frozen=True)
class Network:
    """How long a network trains if nothing disturbs it.

    Attributes:
        fold: Its fold.
        epoch: Steps of the optimiser in an epoch.
        steps: Steps in all.
    """

    fold: int
    epoch: int
    steps: int

    @staticmethod
    def read(path: Path) -> Network:
        """From its file."""
        network = load_member(path)
        epoch = -(-network.events[0] // network.training.batch_size)
        return Network(network.fold, epoch, epoch * len(network.history.training_loss))


@dataclass
class Job:
    """One main job that is disturbed.

    Attributes:
        law: Where it has its store.
        command: What is run, and run again.
        workflow: Its workflow type.
        reference: What an undisturbed run has left.
        moments: Random numbers.
        slurm: The Slurm that runs its jobs.
        during: A step to which the kills are confined; by default they fall on all.
        runs: How often its command was started.
        gave_up: How often a run has ended by itself because of what it had lost.
        intervals: Steps of the optimiser between two checkpoints of a network, wherever both were seen.
    """

    law: Law
    command: Sequence[str]
    workflow: str
    reference: Reference
    moments: random.Random
    slurm: Slurm | None = None
    during: str = ""
    runs: int = 0
    gave_up: int = 0
    intervals: list[int] = field(default_factory=list)
    _begun: float = 0.0
    _works: dict[Path, Work] = field(default_factory=dict)
    _kept: dict[Path, tuple[float, int]] = field(default_factory=dict)

    def disturb(self, kills: int) -> Iterator[Kill]:
        """Run it to its end, with so many kills before that; fewer if it is faster than they are.

        Raises:
            ViolationError: Something is wrong that no kill may bring about.
        """
        self._begun = time.time()
        marks = self._marks(kills)
        head = self._start()
        try:
            while True:
                if not self._ended(head, marks[0] if marks else None):
                    if not marks:
                        raise ViolationError(f"a run hangs after the last kill:\n{head.said[-4000:]}")
                    marks.pop(0)
                    yield self._strike(head)
                    if head.process.poll() is None:
                        continue
                if head.process.returncode == 0:
                    break
                if head.process.returncode != -signal.SIGKILL:
                    self._require_told(head)
                    self.gave_up += 1
                head.close()
                head = self._start()
        finally:
            head.close()
        self._check_end()

    def _start(self) -> OnTerminal:
        self.runs += 1
        return OnTerminal(self.law, *self.command)

    def _marks(self, kills: int) -> list[tuple[float, float]]:
        """When kills fall: once so many seconds of the undisturbed run are done, and so many others have passed."""
        drawn = {step: took for step, took in self.reference.steps.items() if self.during in ("", step)}
        marks = []
        for step in self.moments.choices(list(drawn), list(drawn.values()), k=kills):
            names = list(self.reference.steps)
            before = sum(self.reference.steps[name] for name in names[: names.index(step)])
            outputs = len({Path(name).parent for name in self.reference.outputs if name.split("/")[0] == step})
            # Work is seen to be done when an output is there: from then on a clock decides.
            part, done = self.moments.random(), drawn[step] / outputs
            whole = int(part * outputs)
            marks.append((before + whole * done, (part * outputs - whole) * done))
        return sorted(marks)

    def _done(self) -> float:
        """Seconds of the undisturbed run that are done: by outputs, and for networks by their checkpoints."""
        seconds = sum(self.reference.steps.values()) - self.reference.left(self.law.store)
        for folder, network in self._networks.items():
            path = self.law.store / folder / ".checkpoint"
            with suppress(OSError, ValueError):
                steps = Checkpoint.from_bytes(path.read_bytes()).steps
                seconds += self.reference.steps["TrainFolds"] / len(self._networks) * steps / network.steps
        return seconds

    def _ended(self, head: OnTerminal, mark: tuple[float, float] | None) -> bool:
        """Look on until the next kill is due; whether the run has ended meanwhile."""
        over = None if mark else time.monotonic() + HANGS + 10 * self.reference.seconds
        while over is None or time.monotonic() < over:
            if head.process.poll() is not None:
                head.wait_for_silence()
                return True
            works = self._look(head)
            at_work = not self.during or any(work.step == self.during for work in works)
            if over is None and mark and at_work and self._done() >= mark[0] - 1e-6:
                over = time.monotonic() + mark[1]
            time.sleep(LOOK)
        return False

    def _look(self, head: OnTerminal) -> list[Work]:
        """Who is at work on which output."""
        now = time.time()
        found = {}
        for lease in self.law.store.glob("[A-Z]*/*/*/.lease"):
            pid = holder(lease)
            folder = lease.parent.relative_to(self.law.store)
            before = self._works.get(folder)
            if not pid or not psutil.pid_exists(pid):
                continue  # killed before it has given it up
            if before is not None and before.pid == pid:
                found[folder] = before
            else:
                found[folder] = Work(folder, pid, now, len(head.said))
                self._kept.pop(folder, None)
        self._works = found
        for folder, work in found.items():
            if work.step == "TrainFolds":
                self._note_checkpoint(folder)
        return sorted(found.values(), key=lambda work: work.folder)

    def _note_checkpoint(self, folder: Path) -> None:
        """Count the steps since the checkpoint before, if there is a new one."""
        path = self.law.store / folder / ".checkpoint"
        with suppress(OSError, ValueError):  # another one takes its place all the time
            changed = path.stat().st_mtime
            before = self._kept.get(folder)
            if before is None or before[0] != changed:
                kept = Checkpoint.from_bytes(path.read_bytes())
                self._kept[folder] = changed, kept.steps
                if before is not None and not kept.ended:
                    self.intervals.append(kept.steps - before[1])

    def _strike(self, head: OnTerminal) -> Kill:
        """Kill something, and see what that has undone."""
        processes = [process for process in workers_on(self.law.store) if is_worker(process)]
        jobs = queue(self.slurm)
        kinds = ["head", *(["worker"] if processes else []), *(["job"] if jobs else [])]
        kind = self.moments.choice(kinds)
        process = self.moments.choice(sorted(processes, key=lambda p: p.pid)) if kind == "worker" else None
        job = self.moments.choice(jobs) if kind == "job" else ""
        works = self._look(head)
        waiting = next_step(self.law.store, self.reference)
        now = time.time()
        outlived, outputs = 0.0, 0
        if process is not None:
            victims = {process.pid, *(child.pid for child in descendants(process))}
            process.kill()
            wait_for([process])
            if self.workflow == "local" and any(work.pid != head.process.pid for work in works):
                with suppress(subprocess.TimeoutExpired):  # the head ends with its pool, and the pool's other workers
                    head.process.wait(timeout=GRACE)
                victims = {work.pid for work in works}
        elif job:
            assert self.slurm is not None
            members = processes_of(job)
            victims = {member.pid for member in members}
            with suppress(RuntimeError):  # it may just have ended
                self.slurm("scancel", job)
            wait_for(members)
        else:
            head.process.kill()
            head.process.wait()
            victims = {head.process.pid}
            if self.workflow in ("local", "dask"):
                victims |= {work.pid for work in works}
                outlived = wait_for_workers(self.law.store, self._grace)
                outputs = check(self.law, self.reference)
        named = {"head": "head", "worker": f"worker {process.pid if process else ''}", "job": f"job {job}"}[kind]
        losses = tuple(loss for work in works if work.pid in victims and (loss := self._loss(work, now, head)))
        hit = [work.step for work in works if work.pid in victims] or [work.step for work in works]
        return Kill(now - self._begun, named, hit[0] if hit else waiting, losses, outputs, outlived)

    @property
    def _grace(self) -> float:
        return GRACE if self.slurm is None else BATCH_GRACE

    def _loss(self, work: Work, killed: float, head: OnTerminal) -> Loss | None:
        """What has to be done again of an output; None if it is there."""
        folder = self.law.store / work.folder
        path = folder / ".checkpoint"
        if holder(folder / ".lease") != work.pid and not path.exists():
            return None  # it has ended before it was killed
        subject = subject_of(self.reference.store / work.folder)
        if work.step != "TrainFolds":
            return Loss(subject, killed - work.since)
        kept = None
        with suppress(OSError, ValueError):
            kept = Checkpoint.from_bytes(path.read_bytes())
        if kept is not None and (kept.ended or path.stat().st_mtime >= killed):
            return Loss(subject, 0.0, (0, 0))
        seconds = killed - max(work.since, path.stat().st_mtime if kept is not None else 0.0)
        network = self._networks[work.folder]
        steps, epochs = (kept.steps, kept.place.epochs) if kept is not None else (0, 0)
        epochs = max(epochs, self._said_epochs(network.fold, head.said, work))
        return Loss(subject, seconds, (max(0, epochs * network.epoch - steps), (epochs + 1) * network.epoch - steps))

    @cached_property
    def _networks(self) -> dict[Path, Network]:
        """The networks of the undisturbed run, by the folders of their outputs."""
        paths = self.reference.store.glob("TrainFolds/*/*/network.safetensors")
        return {path.parent.relative_to(self.reference.store): Network.read(path) for path in paths}

    def _said_epochs(self, fold: int, said: str, work: Work) -> int:
        """The last epoch of a network that its process has said to be done; jobs of law's own say so in their logs."""
        earlier = epochs_in(said[: work.offset], fold)
        # The line of progress shows what was said last, by a process that may be gone.
        found = [epoch for epoch in epochs_in(said[work.offset :], fold) if epoch not in earlier[-1:]]
        for log in (self.law.store / "jobs").glob("TrainFolds/*/*.log"):
            if log.stat().st_mtime >= work.since:
                found += epochs_in(log.read_text(errors="replace"), fold)
        return max(found, default=0)

    def _require_told(self, head: OnTerminal) -> None:
        """Make sure that a run which has ended by itself says that it has lost too much.

        Raises:
            ViolationError: It has ended for another reason.
        """
        if not any(text in head.said for text in ENDS_TOLD):
            raise ViolationError(
                f"a run that was not killed ended with {head.process.returncode}:\n{head.said[-4000:]}"
            )
        wait_for_workers(self.law.store, self._grace)

    def _check_end(self) -> None:
        """Make sure that all is as an undisturbed run leaves it, and that nothing stays.

        Raises:
            ViolationError: That is not so.
        """
        wait_for_workers(self.law.store, self._grace)
        over = time.monotonic() + self._grace
        while jobs := queue(self.slurm):
            if time.monotonic() > over:
                raise ViolationError(f"jobs are left: {', '.join(jobs)}")
            time.sleep(LOOK)
        check_end(self.law, self.reference)
        left = [*self.law.store.glob("*/*/*/.lease*"), *self.law.store.glob("TrainFolds/*/*/.checkpoint")]
        # A run that was killed may still be announced, for whoever makes something next to forget it.
        left += [path for path in self.law.store.glob("runs/*.lease") if psutil.pid_exists(holder(path) or -1)]
        if left:
            raise ViolationError(f"left over: {', '.join(str(path.relative_to(self.law.store)) for path in left)}")


def kill_jobs(job: Job, kills: int) -> Iterator[Kill | None]:
    """Disturb a main job; and another one in an empty store, if it has ended before all kills.

    Args:
        job: The job.
        kills: Number of kills.

    Yields:
        What each kill met; None whenever a job has ended, and everything is as it is without kills.

    Raises:
        ViolationError: Something is wrong that no kill may bring about.
    """
    while kills:
        for kill in job.disturb(kills):
            kills -= 1
            yield kill
        yield None
        if kills:
            for folder in (job.law.store, job.law.results):
                shutil.rmtree(folder)


def wait_for_workers(store: Path, grace: float | None = None) -> float:
    """Wait until no process works on a store.

    Args:
        store: The store.
        grace: Seconds that this may take, by default `GRACE`.

    Returns:
        Seconds that this took.

    Raises:
        ViolationError: Some are still there after that; they are killed.
    """
    started, grace = time.monotonic(), GRACE if grace is None else grace
    while workers := workers_on(store):
        if time.monotonic() - started > grace:
            for worker in workers:
                with suppress(psutil.NoSuchProcess):
                    worker.kill()
            told = ", ".join(f"{worker.info['name']} ({worker.pid})" for worker in workers)
            raise ViolationError(f"{grace:.0f} s after a run was killed its processes are still there: {told}")
        time.sleep(0.02)
    return time.monotonic() - started


def workers_on(store: Path) -> list[psutil.Process]:
    """Processes that a run with this store has started, whoever their parent is by now."""
    return processes_with("EVENTFOLD_STORE", str(store))


def processes_of(job: str) -> list[psutil.Process]:
    """Processes of a job of Slurm."""
    return processes_with("SLURM_JOB_ID", job)


def processes_with(variable: str, value: str) -> list[psutil.Process]:
    """Processes in whose environment a variable has some value."""
    return [
        process
        for process in psutil.process_iter(["name", "environ", "cmdline"])
        if (process.info["environ"] or {}).get(variable) == value
    ]


def is_worker(process: psutil.Process) -> bool:
    """Whether a process runs branches, or looks after one that does."""
    command = " ".join(process.info["cmdline"] or ())
    return any(text in command for text in ("spawn_main", "workflow.execution.job", "dask_worker"))


def descendants(process: psutil.Process) -> list[psutil.Process]:
    """The processes that one has started; none if it is gone."""
    with suppress(psutil.NoSuchProcess):
        return process.children(recursive=True)
    return []


def wait_for(processes: Sequence[psutil.Process]) -> None:
    """Wait until some processes are gone.

    Raises:
        ViolationError: One is still there after `GRACE`.
    """
    _, alive = psutil.wait_procs(processes, timeout=GRACE)
    if alive:
        raise ViolationError(f"what was killed is still there after {GRACE:.0f} s: {alive}")


def queue(slurm: Slurm | None) -> list[str]:
    """Numbers of the jobs that wait or run."""
    return [] if slurm is None else sorted(slurm("squeue", "--noheader", "--format=%A").split())


def holder(lease: Path) -> int | None:
    """The process that a lease file names; None if there is no such file."""
    return SoftFileLease(lease, lease_duration=LEASE).pid


def epochs_in(said: str, fold: int) -> list[int]:
    """Epochs of a network that a text says to be done."""
    found = re.findall(r"folds ([\d, ]+): epoch (\d+)/", said)
    return [int(epoch) for folds, epoch in found if str(fold) in folds.split(", ")]


def subject_of(folder: Path) -> str:
    """What an output of the undisturbed run is about, in a few words."""
    for path in sorted(folder.glob("provenance*.json")):
        record = read_json(path)
        return f"{record['label']} {record['subject']}".strip()
    return folder.parent.name


def row(number: int, kills: int, kill: Kill) -> str:
    """One line of the table of kills."""
    subjects = [loss.subject for loss in kill.losses]
    about = "; ".join(subjects[:2]) + (f" and {len(subjects) - 2} more" if len(subjects) > 2 else "")
    bounds = [loss.steps for loss in kill.losses if loss.steps]
    steps = f"{max(b[0] for b in bounds)} to {max(b[1] for b in bounds)} steps" if bounds else ""
    lost = f"{kill.lost:6.2f} s" if kill.losses else "nothing"
    number_of = f"{number}/{kills}"
    step = kill.step or "(all complete)"
    return f"{number_of:>6} {kill.at:7.1f} s  {kill.victim:14} {step:17} {lost:>9}  {steps:18} {about}".rstrip()


def table(found: Sequence[Kill], steps: Sequence[str]) -> str:
    """Kills by the step that they met, and by what was killed."""
    kinds = ("head", "worker", "job")
    lines = [f"{'step':20}" + "".join(f"{kind:>8}" for kind in kinds) + f"{'most lost':>14}"]
    for step in (*steps, ""):
        kills = [kill for kill in found if kill.step == step]
        counts = Counter(kill.victim.split()[0] for kill in kills)
        lost = max((kill.lost for kill in kills), default=0.0)
        numbers = "".join(f"{counts[kind]:8}" for kind in kinds)
        lines.append(f"{step or '(all complete)':20}{numbers}{lost:12.2f} s")
    return "\n".join(lines)


def told(job: Job, found: Sequence[Kill], interval: float, seconds: float, ends: int) -> Iterator[str]:
    """What came out, line by line."""
    yield table(found, list(job.reference.steps))
    outputs = sum(kill.outputs for kill in found)
    yield f"{len(found)} kills over {ends} main job{'s' * (ends > 1)}, {job.runs} starts; {job.gave_up} runs gave up"
    yield f"undisturbed {job.reference.seconds:.1f} s, with kills {seconds:.1f} s; summary.json the same, to the byte;"
    yield f"{len(job.reference.outputs)} outputs the same at the end, {outputs} looked at after kills: none wrong;"
    counts = check_events(job.law, job.reference)
    features = [step for step in counts if step.startswith("ComputeFeatures ")]
    for step, (count, different) in counts.items():
        if step not in features[1:]:
            name = step if step not in features else f"ComputeFeatures ({len(features)} columns)"
            yield f"  {name:32} {count:8,} events, {different:8,} different ones: none lost, none twice"
    trained = [kill for kill in found if kill.trained]
    most = max((kill.lost for kill in trained), default=0.0)
    steps = max((loss.steps[1] for kill in trained for loss in kill.losses if loss.steps), default=0)
    yield f"{len(trained)} kills met networks, kept each {interval} s: at most {most:.2f} s and {steps} steps lost"
    if job.intervals:
        yield f"({min(job.intervals)} to {max(job.intervals)} steps between two, {len(job.intervals)} seen);"
    outlived = max((kill.outlived for kill in found), default=0.0)
    yield f"no process, job or lock left; workers outlived a head by {outlived:.2f} s at most"


def too_much(found: Sequence[Kill], interval: float) -> list[Kill]:
    """Kills that have undone more of a training than the interval between two checkpoints."""

    def exceeds(loss: Loss) -> bool:
        return loss.steps is not None and loss.seconds > interval + (SLACK if loss.steps[0] else START)

    return [kill for kill in found if any(map(exceeds, kill.losses))]


def main() -> None:
    """Kill, compare, and print tables.

    Raises:
        SystemExit: Something differs, or is left; the store is kept.
    """
    parser = argparse.ArgumentParser(
        description="Kills at random moments change no result",
        epilog="Further arguments, such as --set training.epochs=100, go to law run Report.",
    )
    parser.add_argument("--kills", type=int, default=20, help="number of kills; default: 20")
    parser.add_argument("--seed", type=int, help="of moments and victims; by default drawn and printed")
    parser.add_argument("--analysis", default="hww", help="an analysis; `toy` is the one of the tests; default: hww")
    parser.add_argument("--workflow", default="local", choices=("local", "dask", "slurm"))
    parser.add_argument("--cluster", default="local", help="of law.cfg; for one of kind slurm a Slurm is started")
    parser.add_argument("--during", default="", metavar="STEP", help="confine the kills to a step; default: to none")
    parser.add_argument("--checkpoint", type=float, default=0.5, help="seconds between two checkpoints; default: 0.5")
    chosen, further = parser.parse_known_args()
    seed = random.SystemRandom().randrange(2**32) if chosen.seed is None else chosen.seed
    home = Path(tempfile.mkdtemp(prefix="eventfold-kill-")).resolve()
    batch: AbstractContextManager[Slurm | None] = nullcontext()
    if profile(chosen.cluster).kind == "slurm":
        if obstacle():
            raise SystemExit(obstacle())
        batch = started()
        os.environ["EVENTFOLD_VENV"] = str(linked_environment(home / "venv"))
    analysis = str(toy(home / "toy")) if chosen.analysis == "toy" else chosen.analysis
    command = ("Report", "--analysis", analysis, *further)
    where = ("--workflow", chosen.workflow, "--cluster", chosen.cluster)
    found: list[Kill] = []
    ends = 0
    print(f"law run {' '.join(('Report', '--analysis', chosen.analysis, *further, *where))}, seed {seed}", flush=True)
    try:
        with batch as slurm:
            if slurm is not None:
                os.environ["SLURM_CONF"] = str(slurm.configuration)
            begun = time.monotonic()
            Law(home)(*command)
            reference = Reference.of(Law(home), time.monotonic() - begun)
            disturbed = (*command, *where, "--TrainFolds-checkpoint", str(chosen.checkpoint))
            law = Law(home, Path("killed"))
            job = Job(law, disturbed, chosen.workflow, reference, random.Random(seed), slurm, chosen.during)
            begun = time.monotonic()
            for kill in kill_jobs(job, chosen.kills):
                if kill is None:
                    ends += 1
                else:
                    found.append(kill)
                    print(row(len(found), chosen.kills, kill), flush=True)
            for line in told(job, found, chosen.checkpoint, time.monotonic() - begun, ends):
                print(line)
        if worst := too_much(found, chosen.checkpoint):
            raise ViolationError(f"{len(worst)} kills have undone more of a training than there is between checkpoints")
    except ViolationError as error:
        raise SystemExit(f"violation after {len(found)} kills (seed {seed}, kept in {home}): {error}") from None
    shutil.rmtree(home)


if __name__ == "__main__":
    main()
