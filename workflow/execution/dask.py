"""law's workflow type `dask`: the same groups, through a scheduler of dask.distributed, here or on a batch system."""

from __future__ import annotations

import logging
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from functools import cache
from itertools import takewhile
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import law

from analysis.errors import UserError
from workflow.execution.clusters import (
    Profile,
    profile_of,
    replace_lost,
    say_dashboard,
    start,
    variables_of,
    with_more_memory,
)
from workflow.execution.executor import LOSSES, Failure, Group, GroupProxy, Losses, Message, close_at_end
from workflow.execution.shipping import Shipped, ship
from workflow.store import store_folder

if TYPE_CHECKING:
    from distributed import Future, KilledWorker

LOOK = 5.0
"""Seconds between two looks at whether workers of this machine are there."""
LONG = 1.0
"""Seconds from which on groups are sent one by one; shorter ones together, so that they take no longer."""
AHEAD, FEWEST = 4, 8
"""Tasks that dask has for each worker, and of all at least: those that are not sent yet may still be joined."""


class DaskProxy(GroupProxy):
    """Branches run on dask workers."""

    workflow_type = "dask"

    def executor(self) -> DaskExecutor:
        """The cluster of this run; training may have one of its own."""
        chosen, folder = profile_of(self.task), self.task.plan.analysis.folder
        return dask_executor(chosen, variables_of(folder), ship(folder) if chosen.ship_code else None)


class DaskWorkflow(law.BaseWorkflow):
    """law's workflow type `dask`."""

    workflow_proxy_cls = DaskProxy
    exclude_index = True


@cache
def dask_executor(chosen: Profile, variables: tuple[str, ...], shipped: Shipped | None) -> DaskExecutor:
    """The cluster of a profile, started when it is first needed and ended with this process."""
    executor = DaskExecutor(chosen, variables, shipped)
    close_at_end(executor.close)
    return executor


class DaskExecutor:
    """Runs groups on the workers of a dask cluster."""

    def __init__(self, chosen: Profile, variables: tuple[str, ...], shipped: Shipped | None) -> None:
        import dask
        import distributed

        # Which groups run again after a worker is lost is decided here; and a worker gets one group at a time, so
        # that none is lost with a worker which had not begun it.
        dask.config.set({"distributed.scheduler.allowed-failures": 0, "distributed.scheduler.worker-saturation": 1.0})
        if "--debug" not in sys.argv:  # what is lost, and what that means, is told here
            for name in [each for each in logging.root.manager.loggerDict if each.partition(".")[0] == "distributed"]:
                logging.getLogger(name).setLevel(logging.CRITICAL)
        self.slots, self._profile, self._variables = chosen.most, chosen, variables
        self._shipped = shipped
        self._cluster = None
        self._ended: SimpleQueue[Future[Any] | None] = SimpleQueue()
        self._hopeless = ""
        if chosen.kind == "scheduler":
            self._client = distributed.Client(chosen.address or None, scheduler_file=chosen.scheduler_file or None)
            if chosen.dashboard:
                say_dashboard(self._client.dashboard_link)
            self.slots = chosen.workers or len(self._client.scheduler_info()["workers"]) or 1
        else:
            folder = store_folder() / "clusters" / chosen.name
            self._cluster = start(chosen, folder, variables, shipped, self._give_up)
            self._client = distributed.Client(self._cluster, security=self._cluster.security)
            if chosen.dashboard:
                say_dashboard(f"http://127.0.0.1:{self._cluster.scheduler.http_server.port}/status")

    def _give_up(self, reason: str) -> None:
        """No job is there, nor would another one come up."""
        self._hopeless = reason
        self._ended.put(None)

    def workers(self) -> int:
        """How many workers are there now."""
        # Not by a question to the scheduler, which would wait for itself where one of its messages is shown.
        return self.slots if self._cluster is None else len(self._cluster.scheduler.workers)

    def submit(
        self, groups: Sequence[Group], hear: Callable[[Message], None]
    ) -> Iterator[tuple[Group, Failure | None]]:
        """Run groups and yield each as it ends, with why it has failed.

        Short groups go several at a time, since each task of dask costs some milliseconds. A group whose worker is lost
        runs again elsewhere. If it had used up its memory, that is on workers with more, once the other groups have
        ended, as far as the profile allows.

        Raises:
            UserError: The scheduler is gone, or no job comes up.
        """
        from workflow.execution.workers import TOPIC

        step = _Step(self._profile, hear)
        waiting = deque(groups)
        sent: dict[Future[Any], list[Group]] = {}
        self._client.subscribe_topic(TOPIC, step.heard)
        self._ended = SimpleQueue()
        try:
            while waiting or sent:
                while waiting and len(sent) < max(AHEAD * self.slots, FEWEST):
                    share = -(-len(waiting) // (AHEAD * self.slots))
                    bundle = [waiting.popleft() for _ in range(max(1, min(step.fitting, share)))]
                    sent[self._send(bundle)] = bundle
                future = self._next_ended()
                ended, again = step.results(future, sent.pop(future))
                waiting.extendleft(reversed(again))
                yield from ended
        except (CancelledError, OSError) as error:
            address = self._profile.address or self._profile.scheduler_file
            raise UserError(
                f"The scheduler of dask ({address or 'of this run'}) is gone: {error}. What is complete stays; start "
                "the run again."
            ) from error
        finally:
            self._client.cancel(list(sent))
            self._client.unsubscribe_topic(TOPIC)
        more = with_more_memory(self._profile)
        if step.larger and more:
            hear(Message(step.larger[0].number, "said", f"{len(step.larger)} groups need more memory: {more.memory}\n"))
            yield from dask_executor(more, self._variables, self._shipped).submit(step.larger, hear)

    def _next_ended(self) -> Future[Any]:
        """Wait for some groups to end, and see to it that there are workers meanwhile.

        Raises:
            UserError: No job is there, nor would another one come up.
        """
        while not self._hopeless:
            try:
                future = self._ended.get(timeout=LOOK)
            except Empty:
                if self._profile.kind == "local":
                    replace_lost(self._cluster, self.slots)
            else:
                if future is not None:
                    return future
        raise UserError(
            f"--cluster {self._profile.name}: {self._hopeless}\n"
            f"Correct [cluster_{self._profile.name}] of law.cfg; docs/batch.md has causes and cures."
        )

    def _send(self, bundle: Sequence[Group]) -> Future[Any]:
        from workflow.execution.workers import run

        if self._shipped is not None:
            bundle = [self._shipped.moved(group) for group in bundle]
        resources = {"GPU": 1} if bundle[0].gpu and self._profile.gpus else None
        # Not pure: a branch whose output was removed runs again under the same arguments.
        future = self._client.submit(run, tuple(bundle), resources is not None, pure=False, resources=resources)
        future.add_done_callback(self._ended.put)
        return future

    def close(self) -> None:
        """End the workers, and their jobs."""
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()


Ended = tuple[Group, Failure | None]


class _Step:
    """What is known of the groups of a step while they run.

    Attributes:
        larger: Those that need workers with more memory.
        fitting: How many of them take less than `LONG`, by the last ones that have ended.
    """

    def __init__(self, profile: Profile, hear: Callable[[Message], None]) -> None:
        self.larger: list[Group] = []
        self.fitting = 1
        self._profile, self._hear, self._losses = profile, hear, Losses()
        self._short: set[int] = set()  # groups whose workers have little memory left
        self._begun: set[int] = set()

    def heard(self, event: tuple[float, Any]) -> None:
        """Note what a worker says, or pass it on."""
        message = Message(*event[1])
        if message.kind == "memory":
            (self._short.add if message.text else self._short.discard)(message.group)
            return
        if message.kind == "started":
            self._begun.add(message.group)
        self._hear(message)

    def results(self, future: Future[Any], bundle: Sequence[Group]) -> tuple[list[Ended], list[Group]]:
        """What groups have come to that were sent together, and which of them are to run again.

        Raises:
            CancelledError, OSError: The scheduler is gone.
        """
        from distributed import KilledWorker

        try:
            failures, seconds = future.result()
        except KilledWorker as error:
            return self._after_loss(bundle, error)
        except (CancelledError, OSError):
            raise
        except Exception as error:  # dask's own, on the way to the worker or back
            failure = Failure(f"{type(error).__name__}: {error}", False, traceback.format_exc())
            failures, seconds = [failure] * len(bundle), LONG * len(bundle)
        # Else dask would run it again, should the worker be lost that still holds what it returned.
        future.release()
        self.fitting = int(LONG * len(failures) / max(seconds, 1e-3))
        pairs = list(zip(bundle, failures, strict=False))  # those after one that has failed have not run
        starved = [g for g, failure in pairs if failure and failure.starved and with_more_memory(self._profile)]
        self.larger += starved
        return [(group, failure) for group, failure in pairs if group not in starved], list(bundle[len(failures) :])

    def _after_loss(self, bundle: Sequence[Group], error: KilledWorker) -> tuple[list[Ended], list[Group]]:
        """They run in turn: the last one that had begun was lost, those before it are done."""
        begun = list(takewhile(lambda group: group.number in self._begun, bundle))
        count = max(0, len(begun) - 1)
        ended: list[Ended] = [(group, None) for group in bundle[:count]]
        self._begun.difference_update(group.number for group in bundle)
        lost, again = bundle[count], list(bundle[count + 1 :])
        full, given_up = lost.number in self._short, self._losses.count(lost)
        if (full or given_up) and with_more_memory(self._profile):
            self.larger.append(lost)
        elif full or given_up:
            ended.append((lost, self._lost(error, full)))
        else:
            self._hear(Message(lost.number, "said", f"{lost.name}: its worker is lost, it goes on elsewhere\n"))
            again.insert(0, lost)
            self.fitting = 1  # so that it comes alone
        return ended, again

    def _lost(self, error: Any, full: bool) -> Failure:
        section = f"[cluster_{self._profile.name}] of law.cfg"
        if full:
            limit = self._profile.memory or "its share of this machine's memory"
            return Failure(
                f"it needs more memory than its worker has ({limit}). Raise memory in {section}, or most_memory, up to "
                "which it is tried again with twice as much; for selection lower data.chunk.",
                True,
            )
        folder = store_folder() / "clusters" / self._profile.name
        logs = f" The logs of jobs are in {folder}." if self._profile.kind in ("slurm", "htcondor") else ""
        return Failure(
            f"{LOSSES} workers were lost under it, the last one at {error.last_worker.address}, and it has kept "
            f"nothing in between.{logs} If memory or walltime is short, raise it in {section}.",
            True,
        )
