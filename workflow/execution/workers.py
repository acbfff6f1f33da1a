"""What runs inside dask's workers."""

from __future__ import annotations

from typing import Any

from distributed import WorkerPlugin, get_worker

from workflow.execution.clusters import prove_gpu
from workflow.execution.executor import Group, listen, run_group

TOPIC = "eventfold-progress"


def run(group: Group) -> None:
    """Run a group, and speak through the scheduler."""
    worker = get_worker()
    listen(lambda text: worker.log_event(TOPIC, text))
    run_group(group)


class ProvenGpu(WorkerPlugin):
    """A worker of a cluster with GPUs says in its log which one it was given, or does not start."""

    name = "eventfold-gpu"

    def setup(self, worker: Any) -> None:
        """Look for the GPU that the batch system has assigned."""
        prove_gpu(f"worker {worker.name}")
