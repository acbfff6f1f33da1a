"""Jobs of dask's workers that never get so far: dask alone would wait for them for ever."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from distributed import SchedulerPlugin
from distributed.core import Status

from workflow.execution import logs

_log = logging.getLogger(__name__)

AGAIN = 60.0
"""Seconds after which another job is submitted for one that came to nothing."""


class Manager(Protocol):
    """What is asked of law's managers of jobs."""

    FINISHED: str
    FAILED: str

    def query(self, job_id: list[Any]) -> dict[Any, dict[str, Any]]:
        """Ask for the status of jobs, by their numbers."""
        ...


class Submissions(SchedulerPlugin):
    """The jobs of one cluster: those that the batch system refuses, or that end before their worker is there.

    While others live, such a job is submitted again after a while: a user may have as many jobs as there can be, or a
    node be broken. When none is left, that is no use.
    """

    name = "eventfold-submissions"

    def __init__(self, manager: Manager, folder: Path, poll: float, give_up: Callable[[str], object]) -> None:
        """Begin without jobs.

        Args:
            manager: Knows the states of jobs.
            folder: Of their logs.
            poll: Seconds between two questions after a job whose worker is not there.
            give_up: Called with the reason where a job came to nothing and no other one is left; from the thread of
                the cluster's loop.
        """
        self.manager, self.folder, self.poll, self.give_up = manager, folder, poll, give_up
        self.asked = 0  # jobs that are being submitted
        self.live: set[Any] = set()
        self.reached: set[str] = set()

    def add_worker(self, scheduler: Any, worker: str) -> None:
        """Note that the worker of a job is there."""
        self.reached.add(str(scheduler.workers[worker].name))

    def watched(self, kind: type[Any]) -> Any:
        """A class of dask-jobqueue's jobs that are watched."""
        own = self

        class Watched(kind):
            _watch: asyncio.Task[None] | None = None

            async def start(self) -> None:
                own.asked += 1
                refusal = ""
                try:
                    await super().start()
                    own.live.add(self)
                    self._watch = asyncio.create_task(self._wait())
                except RuntimeError as error:  # what dask-jobqueue raises where a program fails
                    refusal = str(error).rpartition("stderr:")[2].strip() or str(error)
                    self.status = Status.running  # that is, to be closed
                finally:
                    own.asked -= 1
                if refusal:
                    self._came_to_nothing(f"the batch system refuses jobs: {refusal}")

            async def close(self) -> None:
                own.live.discard(self)
                if self._watch is not None:
                    self._watch.cancel()
                await super().close()
                self.status = Status.closed

            async def _wait(self) -> None:
                while str(self.name) not in own.reached:
                    await asyncio.sleep(own.poll)
                    ended = await asyncio.to_thread(own.has_ended, self.job_id)
                    if ended and str(self.name) not in own.reached:
                        own.live.discard(self)
                        self._came_to_nothing(own.story(self.job_id))
                        return

            def _came_to_nothing(self, reason: str) -> None:
                asyncio.get_running_loop().call_later(AGAIN, self._make_room)
                if not own.live and not own.asked:
                    own.give_up(reason)

            def _make_room(self) -> None:
                cluster = self._cluster()
                if cluster is not None and cluster.workers.get(self.name) is self:
                    del cluster.workers[self.name]

        return Watched

    def has_ended(self, job: str) -> bool:
        """Whether a job is no longer in the queue; one that can't be asked after is."""
        number = int(job) if job.isdigit() else job
        try:
            status = self.manager.query([number])[number]["status"]
        except Exception as error:  # law raises nothing narrower; the batch system may answer the next time
            _log.warning("Job %s can't be asked after: %s", job, error)
            return False
        return status in (self.manager.FINISHED, self.manager.FAILED)

    def story(self, job: str) -> str:
        """What is known of a job that has ended too early."""
        said = f"job {job} ended before its worker had reached this run"
        written = [path for path in self.folder.glob(f"*-{job.partition('.')[0]}.*") if path.suffix in (".err", ".out")]
        for path in sorted(written):  # .err comes first
            if last := logs.tail(path):
                return "\n    ".join([f"{said}. Its log, {path}, ends with:", *last])
        return said
