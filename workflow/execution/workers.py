"""What runs inside dask's workers."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from distributed import get_worker

from workflow.execution.clusters import prove_gpu
from workflow.execution.executor import Failure, Group, Message, run_group

TOPIC = "eventfold"
NEAR, FULL = 0.7, 0.95
"""Shares of a worker's memory: from the first on its loss is put down to memory, at the second it ends itself."""
LOOK = 0.1
"""Seconds between two looks at the memory."""


def run(bundle: Sequence[Group], prove: bool = False) -> tuple[list[Failure | None], float]:
    """Run groups, one after the other until one fails, and speak through the scheduler.

    Args:
        bundle: What to run.
        prove: Whether this worker must have a GPU.

    Returns:
        Of each that has run, why it has failed; None if all of its outputs are there. And the seconds that they took.
    """
    worker, started, failures = get_worker(), time.monotonic(), list[Failure | None]()
    if prove:
        try:
            prove_gpu(f"worker {worker.name}")
        except RuntimeError as error:
            return [Failure(str(error), True)] * len(bundle), 0.0
    tell: Callable[[Message], None] = partial(_tell, worker)
    for group in bundle:
        with _watched(group, worker.memory_manager.memory_limit or 0, tell):
            failures.append(run_group(group, tell))
        if failures[-1] is not None:
            break
    return failures, time.monotonic() - started


def _tell(worker: Any, message: Message) -> None:
    worker.log_event(TOPIC, tuple(message))


@contextmanager
def _watched(group: Group, limit: int, tell: Callable[[Message], None]) -> Iterator[None]:
    """Tell when memory runs short, and end the process before it takes the machine's or the job's.

    dask's own limit counts pages of mapped files too, which the kernel gives back when it needs them.
    """
    over = threading.Event()

    def look() -> None:
        near = False
        while not over.wait(LOOK):
            used = private_memory()
            if near != (near := used > NEAR * limit):
                tell(Message(group.number, "memory", str(used) if near else ""))
            if used > FULL * limit:
                time.sleep(5 * LOOK)  # the message goes first
                os.kill(os.getpid(), signal.SIGKILL)

    thread = threading.Thread(target=look, daemon=True)
    if limit:
        thread.start()
    try:
        yield
    finally:
        over.set()


def private_memory() -> int:
    """Bytes of memory that are this process's own; 0 where the kernel does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # not Linux
        return 0
    sizes = dict(line.split(":", 1) for line in lines)
    return sum(int(sizes[key].split()[0]) * 1024 for key in ("RssAnon", "RssShmem") if key in sizes)
