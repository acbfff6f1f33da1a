"""The one interface through which every workflow type runs groups of branches."""

from __future__ import annotations

import atexit
import re
import sys
import threading
import traceback
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import law

from analysis.errors import UserError
from workflow.claims import Stamp, announce, remember, stamp
from workflow.execution import logs
from workflow.execution.board import Board

LOSSES = 5
"""Workers or jobs that may be lost under a group that keeps nothing, before it is given up."""
FAILURES = 3
"""Groups of a step that may fail before no further one is begun: what is wrong with three is wrong with all."""


@dataclass(frozen=True)
class Group:
    """Branches of one task that run together in one process.

    Attributes:
        number: Its place among the groups that were handed over together.
        module: Module of the task's class.
        family: Task family.
        parameters: The task's parameters as text, without branches.
        branches: Branch numbers.
        about: What the branches are about, in a few words.
        fingerprints: The identity that each branch had when the run began.
        stamps: The state that the record of its outputs had then.
        folders: Where the outputs of each will be.
        gpu: Whether they want a GPU.
    """

    number: int
    module: str
    family: str
    parameters: tuple[tuple[str, str], ...]
    branches: tuple[int, ...]
    about: str
    fingerprints: tuple[str, ...]
    stamps: tuple[Stamp, ...]
    folders: tuple[str, ...]
    gpu: bool

    @property
    def name(self) -> str:
        """The group in a few words."""
        return f"{self.family} ({self.about})"

    @property
    def log(self) -> Path:
        """Where what it prints is kept."""
        return Path(self.folders[0]) / logs.NAME


class Message(NamedTuple):
    """What a worker says while it runs a group.

    Attributes:
        group: The group's number.
        kind: It has `started`; it has `said` something to be shown; it has little `memory` left, or enough again.
        text: What it says; of memory, the bytes that it uses where little is left, else nothing.
    """

    group: int
    kind: Literal["started", "said", "memory"]
    text: str = ""


@dataclass(frozen=True)
class Failure:
    """Why a group has failed by its own mistake.

    Attributes:
        message: In a sentence.
        expected: Whether it is a user's mistake; otherwise the last lines of the log are worth a look.
        trace: The traceback.
        starved: Whether more memory may help.
    """

    message: str
    expected: bool
    trace: str = ""
    starved: bool = False

    @property
    def kind(self) -> str:
        """The message without paths and numbers: that of another branch may differ in these alone."""
        return re.sub(r"\S*[/\d]\S*", "", self.message)


class Losses:
    """Counts the workers that were lost under each group since it last kept anything."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._kept: dict[int, dict[Path, Stamp]] = {}

    def count(self, group: Group) -> bool:
        """Count one; whether there were too many."""
        found = (
            path for name in (".checkpoint*", "provenance.json") for f in group.folders for path in Path(f).glob(name)
        )
        kept = {path: stamp(path) for path in found}
        if kept != self._kept.get(group.number, kept):
            self._counts[group.number] = 0
        self._kept[group.number] = kept
        self._counts[group.number] += 1
        return self._counts[group.number] >= LOSSES


class Executor(Protocol):
    """Runs groups somewhere.

    Attributes:
        slots: How many groups run side by side.
    """

    slots: int

    def workers(self) -> int:
        """How many workers are there now."""
        ...

    def submit(
        self, groups: Sequence[Group], hear: Callable[[Message], None]
    ) -> Iterator[tuple[Group, Failure | None]]:
        """Run all groups and yield each as it ends, with why it has failed.

        Raises:
            UserError: What runs them has failed.
        """
        ...


_closers: list[Callable[[], None]] = []


def close_at_end(close: Callable[[], None]) -> None:
    """Have something closed when this process ends, once, however it ends but for SIGKILL."""
    _closers.append(close)


def close_all(seconds: float = 20.0) -> None:
    """Close what is open, the last one first; what takes longer than some seconds is left."""

    def work() -> None:
        while _closers:
            _closers.pop()()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)


atexit.register(close_all)

_say: Callable[[str], None] | None = None


def say(text: str) -> None:
    """Report progress from inside a running step; shown by the head process.

    A line of progress may be left out where another has just been shown, unless the text ends with a new line.
    """
    if _say is None:
        print(text.rstrip("\n"), file=sys.stderr, flush=True)  # noqa: T201
    else:
        _say(text)


def run_group(group: Group, tell: Callable[[Message], None]) -> Failure | None:
    """Run a group in this process, which has nothing else to do; workers of every kind call this.

    Args:
        group: What to run.
        tell: Carries messages to the head process.

    Returns:
        Why it has failed; None if all of its outputs are there.
    """
    global _say  # noqa: PLW0603 -- one speaker per process: it runs one group at a time
    _say = lambda text: tell(Message(group.number, "said", text))  # noqa: E731
    tell(Message(group.number, "started"))
    with logs.logged(group.log):
        try:
            _run(group)
        except Exception as error:
            trace = traceback.format_exc()
            if isinstance(error, UserError):
                return Failure(str(error), True, trace)
            sys.stderr.write(trace)
            return Failure(f"{type(error).__name__}: {error}", False, trace, isinstance(error, MemoryError))
    return None


def _run(group: Group) -> None:
    task_class = getattr(import_module(group.module), group.family)
    task = task_class.from_str_params(dict(group.parameters))
    for branch, expected, before in zip(group.branches, group.fingerprints, group.stamps, strict=True):
        found = task.as_branch(branch).fingerprint
        if found != expected:
            raise UserError(
                f"{group.family}, branch {branch}: the code, the configuration or an input changed while the run was "
                f"going on (identity {expected} is now {found}). Start the run again; what is complete stays."
            )
        remember(task.as_branch(branch).record, before)
    task.run_branches(list(group.branches))


_failures: list[UserError] = []
"""A run that has met a mistake starts no further step: the same mistake would be said once for each."""


class GroupProxy(law.workflow.base.BaseWorkflowProxy):
    """Hands the branches of a workflow that are not complete to an executor, in groups, and shows progress."""

    @abstractmethod
    def executor(self) -> Executor:
        """The executor of this workflow type, started when it is first needed."""

    def complete(self) -> bool:
        """A workflow is complete when each of its branches is, deeply."""
        # Every branch is asked, even after the first that is not: each notes what has to be there for it.
        answers = [task.complete() for task in self.task.get_branch_tasks().values()]
        return all(answers)

    def run(self) -> None:
        """Run the branches that were incomplete when this run first asked.

        Raises:
            UserError: Some have failed, or what runs them.
        """
        pending = {b: task for b, task in self.task.get_branch_tasks().items() if not task.complete()}
        if not pending:
            return
        if _failures:
            raise _failures[0]
        # A mistake in physics.py shows before the first branch runs, not when one happens to need it.
        self.task.plan.analysis.physics  # noqa: B018
        if self.task.dashboard and self.workflow_type != "dask":
            raise UserError("--dashboard shows the workers of dask: it needs --workflow dask.")
        announce()
        executor = self.executor()
        parameters = tuple((k, v) for k, v in self.task.to_str_params().items() if k not in ("branch", "branches"))
        groups = [
            Group(
                number=number,
                module=type(self.task).__module__,
                family=self.task.task_family,
                parameters=parameters,
                branches=tuple(branches),
                about=", ".join(sorted({f"{pending[b].label} {pending[b].subject}" for b in branches})),
                fingerprints=tuple(pending[b].fingerprint for b in branches),
                stamps=tuple(pending[b].stamp() for b in branches),
                folders=tuple(str(pending[b].folder) for b in branches),
                gpu=self.task.wants_gpu,
            )
            for number, branches in enumerate(self.task.group_branches(list(pending), executor.slots))
        ]
        sizes = [(len(group.branches), sum(pending[b].events for b in group.branches)) for group in groups]
        failed: list[Group] = []
        told: set[str] = set()
        try:
            with Board(self.task.title, sizes, executor.workers) as board:
                for group, failure in executor.submit(groups, lambda message: board.hear(*message)):
                    if failure is None:
                        for branch in group.branches:
                            pending[branch].mark_complete()
                    else:
                        failed.append(group)
                        if failure.kind not in told:
                            told.add(failure.kind)
                            board.show(_told(group, failure))
                    board.end(group.number, failure is None)
                    if len(failed) == FAILURES:
                        break
                if failed:
                    raise UserError(_summary(self.task.title, failed, groups))
        except UserError as error:
            _failures.append(error)
            raise


def _told(group: Group, failure: Failure) -> str:
    """What a user reads when a group has failed."""
    lines = [f"\nerror: {group.name}: {failure.message}"]
    last = logs.tail(group.log)
    if last:
        lines.append(f"Its log: {group.log}")
        lines += [f"    {line}" for line in last]
    if "--debug" in sys.argv and failure.expected:
        lines.append(failure.trace)
    return "\n".join(lines) + "\n"


def _summary(title: str, failed: Sequence[Group], groups: Sequence[Group]) -> str:
    count, total = (sum(len(group.branches) for group in some) for some in (failed, groups))
    names = "; ".join(group.about for group in failed)
    stopped = f" After {FAILURES} failures no further ones were begun." if len(failed) == FAILURES < len(groups) else ""
    return f"{title}: {count} of {total} branches failed ({names}).{stopped} What is complete stays."
