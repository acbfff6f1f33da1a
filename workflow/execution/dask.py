"""dask workers: the same groups, through a scheduler of dask.distributed on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import law

from workflow.execution.executor import Group, GroupProxy, listen, run_group, worker_count
from workflow.execution.local import SINGLE_THREADED

TOPIC = "eventfold-progress"


class DaskProxy(GroupProxy):
    """Branches run on dask workers."""

    workflow_type = "dask"

    def executor(self) -> DaskExecutor:
        """The cluster of this run."""
        return dask_executor()


class DaskWorkflow(law.BaseWorkflow):
    """law's workflow type `dask`."""

    workflow_proxy_cls = DaskProxy
    exclude_index = True


@lru_cache(maxsize=1)
def dask_executor() -> DaskExecutor:
    """The cluster of this process, started when it is first needed and ended with the process."""
    return DaskExecutor(worker_count())


class DaskExecutor:
    """Runs groups on a dask cluster of local, single-threaded processes."""

    def __init__(self, workers: int) -> None:
        import dask
        from distributed import Client, LocalCluster

        self.slots = workers
        # Loopback only, and no dashboard: a scheduler's port runs whatever it is sent.
        dask.config.set({"distributed.nanny.pre-spawn-environ": SINGLE_THREADED})
        self._cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address=None,
            silence_logs=40,
        )
        self._client = Client(self._cluster)

    def submit(self, groups: Sequence[Group], say: Callable[[str], None]) -> Iterator[Group]:
        """Run groups and yield each as it ends."""
        from distributed import as_completed

        def show(event: tuple[float, str]) -> None:
            say(event[1])

        self._client.subscribe_topic(TOPIC, show)
        # Not pure: a branch whose output was removed runs again under the same arguments.
        futures = {self._client.submit(_run, group, pure=False): group for group in groups}
        try:
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        finally:
            self._client.cancel(list(futures))
            self._client.unsubscribe_topic(TOPIC)


def _run(group: Group) -> None:
    from distributed import get_worker

    worker = get_worker()
    listen(lambda text: worker.log_event(TOPIC, text))
    run_group(group)
