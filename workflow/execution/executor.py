"""The one interface through which every workflow type runs groups of branches."""

from __future__ import annotations

import atexit
import sys
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import law

from analysis.errors import UserError
from workflow.claims import Stamp, announce, remember


@dataclass(frozen=True)
class Group:
    """Branches of one task that run together in one process.

    Attributes:
        family: Task family.
        parameters: The task's parameters as text, without branches.
        branches: Branch numbers.
        fingerprints: The identity that each branch had when the run began.
        stamps: The state that the record of its outputs had then.
        gpu: Whether they want a GPU.
    """

    family: str
    parameters: tuple[tuple[str, str], ...]
    branches: tuple[int, ...]
    fingerprints: tuple[str, ...]
    stamps: tuple[Stamp, ...]
    gpu: bool

    @property
    def name(self) -> str:
        """The group in a few words."""
        numbers = ", ".join(str(branch) for branch in self.branches)
        return f"{self.family} branch {numbers}"


class Executor(Protocol):
    """Runs groups somewhere.

    Attributes:
        slots: How many groups run side by side.
    """

    slots: int

    def submit(self, groups: Sequence[Group], say: Callable[[str], None]) -> Iterator[Group]:
        """Run all groups and yield each as it ends; raises what a group raised."""
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


def listen(speaker: Callable[[str], None]) -> None:
    """Send this process's progress to the head process."""
    global _say  # noqa: PLW0603 -- one speaker per process, set once when the process starts
    _say = speaker


def run_group(group: Group) -> None:
    """Run a group in this process; workers of every kind call this.

    Raises:
        UserError: The code or configuration has changed since the run began, or the step itself failed so.
    """
    import luigi

    import workflow.tasks  # noqa: F401 -- registers the task families

    task_class = luigi.task_register.Register.get_task_cls(group.family)
    task = task_class.from_str_params(dict(group.parameters))
    for branch, expected, stamp in zip(group.branches, group.fingerprints, group.stamps, strict=True):
        found = task.as_branch(branch).fingerprint
        if found != expected:
            raise UserError(
                f"{group.family}, branch {branch}: the code, the configuration or an input changed while the run was "
                f"going on (identity {expected} is now {found}). Start the run again; what is complete stays."
            )
        remember(task.as_branch(branch).record, stamp)
    try:
        task.run_branches(list(group.branches))
    except Exception as error:
        labels = ", ".join(sorted({task.as_branch(branch).label for branch in group.branches}))
        error.add_note(f"This happened in {group.name} ({labels}).")
        raise


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
        """Run the branches that were incomplete when this run first asked."""
        pending = {b: task for b, task in self.task.get_branch_tasks().items() if not task.complete()}
        if not pending:
            return
        if _failures:
            raise _failures[0]
        # A mistake in physics.py shows before the first branch runs, not when one happens to need it.
        self.task.plan.analysis.physics  # noqa: B018
        announce()
        executor = self.executor()
        parameters = tuple((k, v) for k, v in self.task.to_str_params().items() if k not in ("branch", "branches"))
        groups = [
            Group(
                family=self.task.task_family,
                parameters=parameters,
                branches=tuple(branches),
                fingerprints=tuple(pending[b].fingerprint for b in branches),
                stamps=tuple(pending[b].stamp() for b in branches),
                gpu=self.task.wants_gpu,
            )
            for branches in self.task.group_branches(list(pending), executor.slots)
        ]
        progress = _Bar(self.task.title, len(pending))
        try:
            for group in executor.submit(groups, progress.say):
                for branch in group.branches:
                    pending[branch].mark_complete()
                progress.advance(len(group.branches))
        except UserError as error:
            _failures.append(error)
            raise
        progress.close()


PAUSE = 5.0
"""Seconds between two lines of progress in a log; on a terminal one line is written over and over."""


class _Bar:
    """Progress of one step: how many branches are done, and what the last worker said."""

    def __init__(self, title: str, total: int) -> None:
        self._title = title
        self._total = total
        self._done = 0
        self._terminal = sys.stderr.isatty()
        self._start = "\r\033[K" if self._terminal else ""
        self._started = self._last = time.monotonic()
        self._write()

    def advance(self, branches: int) -> None:
        """Note that so many more branches are done."""
        self._done += branches
        self._write()

    def say(self, text: str) -> None:
        """Show what a worker said."""
        if text.endswith("\n"):
            print(f"{self._start}{text}", end="", file=sys.stderr, flush=True)  # noqa: T201
        else:
            self._write(f" | {text}")

    def _write(self, more: str = "") -> None:
        line = f"{self._title}: {self._done} of {self._total} done{more}"
        if self._terminal:
            print(f"{self._start}{line}", end="", file=sys.stderr, flush=True)  # noqa: T201
        elif time.monotonic() - self._last > PAUSE:
            self._last = time.monotonic()
            print(line, file=sys.stderr, flush=True)  # noqa: T201

    def close(self) -> None:
        """Say that the step has ended."""
        seconds = time.monotonic() - self._started
        print(f"{self._start}{self._title}: {self._total} done in {seconds:.1f} s", file=sys.stderr, flush=True)  # noqa: T201
