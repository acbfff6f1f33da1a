"""The workflow type `local`: a pool of spawned processes on this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from typing import Any

import law

from analysis.errors import UserError
from workflow.execution.clusters import available_cores
from workflow.execution.ending import GRACE
from workflow.execution.executor import Failure, Group, GroupProxy, Message, run_group


class LocalProxy(GroupProxy):
    """Branches run in processes of this machine."""

    workflow_type = "local"

    def executor(self) -> LocalExecutor:
        """The pool of this run."""
        return local_executor()


class LocalWorkflow(law.BaseWorkflow):
    """law's workflow type `local`, here on a pool of processes."""

    workflow_proxy_cls = LocalProxy
    exclude_index = True


@lru_cache(maxsize=1)
def local_executor() -> LocalExecutor:
    """The pool of this process, started when it is first needed."""
    return LocalExecutor(available_cores())


class LocalExecutor:
    """Runs groups in a pool of spawned processes."""

    def __init__(self, processes: int) -> None:
        self.slots = processes
        # Spawned, not forked: a forked copy of a process with threads (torch, uproot) can hang.
        context = multiprocessing.get_context("spawn")
        self._messages: Any = context.SimpleQueue()
        self._hear: Callable[[Message], None] | None = None
        self._pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start, initargs=(self._messages,))
        threading.Thread(target=self._forward, daemon=True).start()

    def workers(self) -> int:
        """How many processes there are."""
        return self.slots

    def submit(
        self, groups: Sequence[Group], hear: Callable[[Message], None]
    ) -> Iterator[tuple[Group, Failure | None]]:
        """Run groups and yield each as it ends, with why it has failed.

        Raises:
            UserError: A worker process died.
        """
        self._hear = hear
        futures = {self._pool.submit(_run, group): group for group in groups}
        # The pool watches the processes that it had at its last submission, and each may have started another one.
        watched = self._pool.submit(_nothing)
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            local_executor.cache_clear()
            lost = ", ".join(sorted({g.name for f, g in futures.items() if f.done() and f.exception()}))
            raise UserError(
                "A worker process was killed or ended from outside, perhaps for want of memory, while these were "
                f"running or waiting: {lost}. What is complete stays; start the run again, with a smaller data.chunk "
                "if memory is short."
            ) from error
        finally:
            watched.cancel()
            for future in futures:
                future.cancel()
            self._hear = None

    def _forward(self) -> None:
        while True:
            message = self._messages.get()
            hear = self._hear
            if hear is not None:
                hear(message)


_tell: Callable[[Message], None] | None = None


def _start(messages: Any) -> None:
    """Prepare a worker: speak through the head process, leave Ctrl-C to it, and end when it is gone."""
    global _tell  # noqa: PLW0603 -- one head per process
    _tell = messages.put
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_head, daemon=True).start()


def _run(group: Group) -> Failure | None:
    assert _tell is not None, "the process was prepared when it started"
    return run_group(group, _tell)


def _nothing() -> None:
    """What is submitted lest the death of a process go unseen until another one has something to say."""


def _end_with_head() -> None:
    """Wait until the head process is gone, however it ended, and end too; a training keeps its networks first."""
    head = multiprocessing.parent_process()
    if head is not None:
        head.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)
