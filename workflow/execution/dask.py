"""law's workflow type `dask`: the same groups, through a scheduler of dask.distributed, here or on a batch system."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import law

from analysis.errors import UserError
from workflow.execution.clusters import Profile, profile, start
from workflow.execution.executor import Group, GroupProxy, close_at_end
from workflow.execution.shipping import Shipped, ship
from workflow.store import store_folder

DEATHS = 5
"""Workers that may die under a group before it is given up: its training goes on from checkpoints each time."""


class DaskProxy(GroupProxy):
    """Branches run on dask workers."""

    workflow_type = "dask"

    def executor(self) -> DaskExecutor:
        """The cluster of this run; training may have one of its own."""
        chosen = profile(self.task.cluster)
        if self.task.wants_gpu and chosen.gpu_cluster:
            chosen = profile(chosen.gpu_cluster)
        text = (self.task.plan.analysis.folder / "analysis.yaml").read_text()
        shipped = ship(self.task.plan.analysis.folder) if chosen.ship_code else None
        return dask_executor(chosen, tuple(sorted(set(re.findall(r"\$\{?(\w+)", text)))), shipped)


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

    def __init__(self, chosen: Profile, variables: Sequence[str], shipped: Shipped | None) -> None:
        import dask
        from distributed import Client

        dask.config.set({"distributed.scheduler.allowed-failures": DEATHS})
        self.slots, self._profile = chosen.most, chosen
        self._travelling = shipped.moved if shipped else lambda group: group
        self._cluster = None
        if chosen.kind == "scheduler":
            self._client = Client(chosen.address or None, scheduler_file=chosen.scheduler_file or None)
        else:
            self._cluster = start(chosen, store_folder() / "clusters" / chosen.name, variables, shipped)
            self._client = Client(self._cluster, security=self._cluster.security)
        if chosen.gpus:
            from workflow.execution.workers import ProvenGpu

            self._client.register_plugin(ProvenGpu())

    def submit(self, groups: Sequence[Group], say: Callable[[str], None]) -> Iterator[Group]:
        """Run groups and yield each as it ends.

        Raises:
            UserError: Workers died again and again under a group.
        """
        from distributed import KilledWorker, as_completed

        from workflow.execution.workers import TOPIC, run

        def show(event: tuple[float, str]) -> None:
            say(event[1])

        self._client.subscribe_topic(TOPIC, show)
        # Not pure: a branch whose output was removed runs again under the same arguments.
        futures = {
            self._client.submit(
                run,
                self._travelling(group),
                pure=False,
                resources={"GPU": 1} if group.gpu and self._profile.gpus else None,
            ): group
            for group in groups
        }
        try:
            for future in as_completed(futures):
                try:
                    future.result()
                except KilledWorker as error:
                    raise UserError(
                        f"{futures[future].name}: {DEATHS} workers died under it, the last one at "
                        f"{error.last_worker.address}. {self._where_to_look()}"
                    ) from error
                yield futures[future]
        finally:
            self._client.cancel(list(futures))
            self._client.unsubscribe_topic(TOPIC)

    def _where_to_look(self) -> str:
        if self._profile.kind in ("slurm", "htcondor"):
            folder = store_folder() / "clusters" / self._profile.name
            return (
                f"The logs of its jobs are in {folder}; if memory or walltime was short, raise memory or walltime in "
                f"[cluster_{self._profile.name}] of law.cfg. What is complete stays."
            )
        return "If memory is short, lower data.chunk or the number of workers. What is complete stays."

    def close(self) -> None:
        """End the workers, and their jobs."""
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()
