"""What runs inside dask's workers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import Any

from distributed import WorkerPlugin, get_worker

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
        given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        if not given:
            raise RuntimeError(f"worker {worker.name}: CUDA_VISIBLE_DEVICES is empty: the batch system gave it no GPU")
        found = ""
        if shutil.which("nvidia-smi"):
            found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout.strip()
        print(f"worker {worker.name}: GPU {given}: {found or 'no nvidia-smi'}", file=sys.stderr, flush=True)  # noqa: T201
