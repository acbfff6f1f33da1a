"""The one interface through which every workflow type runs groups of branches."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from analysis.errors import UserError


@dataclass(frozen=True)
class Group:
    """Branches of one task that run together in one process.

    Attributes:
        family: Task family.
        parameters: The task's parameters as text, without branches.
        branches: Branch numbers.
        fingerprints: The identity that each branch had when the run began.
    """

    family: str
    parameters: tuple[tuple[str, str], ...]
    branches: tuple[int, ...]
    fingerprints: tuple[str, ...]


class Executor(Protocol):
    """Runs groups somewhere."""

    def submit(self, groups: Sequence[Group], say: Callable[[str], None]) -> Iterator[Group]:
        """Run all groups and yield each as it ends; raises what a group raised."""
        ...


_say: Callable[[str], None] | None = None


def say(text: str) -> None:
    """Report progress from inside a running step; shown by the head process."""
    if _say is None:
        print(text, file=sys.stderr, flush=True)  # noqa: T201
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
    for branch, expected in zip(group.branches, group.fingerprints, strict=True):
        found = task.as_branch(branch).fingerprint
        if found != expected:
            raise UserError(
                f"{group.family}, branch {branch}: the code, the configuration or an input changed while the run was "
                f"going on (identity {expected} is now {found}). Start the run again; what is complete stays."
            )
    task.run_branches(list(group.branches))


def run_groups(groups: Sequence[Group], kind: str, title: str) -> Iterator[Group]:
    """Run groups with the executor of a workflow type, showing progress.

    Args:
        groups: What to run.
        kind: Workflow type.
        title: What to call it.
    """
    if not groups:
        return
    started = time.monotonic()
    total = sum(len(group.branches) for group in groups)
    done = 0
    bar = _Bar(title, total)
    for group in _executor(kind).submit(groups, bar.say):
        done += len(group.branches)
        bar.show(done)
        yield group
    bar.close(time.monotonic() - started)


def _executor(kind: str) -> Executor:
    if kind == "dask":
        from workflow.execution.dask import dask_executor

        return dask_executor()
    from workflow.execution.local import local_executor

    return local_executor()


def worker_count() -> int:
    """Processes that run side by side on this machine: the cores that this process may use."""
    return len(os.sched_getaffinity(0))


class _Bar:
    """One line of progress on a terminal, a few lines in a log."""

    def __init__(self, title: str, total: int) -> None:
        self._title = title
        self._total = total
        self._terminal = sys.stderr.isatty()
        self._line = ""
        self.show(0)

    def show(self, done: int) -> None:
        self._line = f"{self._title}: {done} of {self._total} done"
        if self._terminal:
            print(f"\r\033[K{self._line}", end="", file=sys.stderr, flush=True)  # noqa: T201

    def say(self, text: str) -> None:
        if self._terminal:
            print(f"\r\033[K{self._line} | {text}", end="", file=sys.stderr, flush=True)  # noqa: T201
        else:
            print(f"{self._title}: {text}", file=sys.stderr, flush=True)  # noqa: T201

    def close(self, seconds: float) -> None:
        start = "\r\033[K" if self._terminal else ""
        print(f"{start}{self._title}: {self._total} done in {seconds:.1f} s", file=sys.stderr, flush=True)  # noqa: T201
