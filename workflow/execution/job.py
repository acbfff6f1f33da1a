"""What runs inside a job of law's own workflows: groups of branches, one after the other."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from workflow.execution import logs
from workflow.execution.clusters import prove_gpu
from workflow.execution.executor import Group, Message, run_group
from workflow.store import atomic_write


def write_groups(path: Path, groups: Sequence[Group]) -> None:
    """Write what a job is to run."""
    atomic_write(path, json.dumps([asdict(group) for group in groups], indent=1))


def read_groups(path: Path) -> list[Group]:
    """Read what a job is to run."""
    return [
        Group(
            number=group["number"],
            module=group["module"],
            family=group["family"],
            parameters=tuple((name, value) for name, value in group["parameters"]),
            branches=tuple(group["branches"]),
            about=group["about"],
            fingerprints=tuple(group["fingerprints"]),
            stamps=tuple(stamp and tuple(stamp) for stamp in group["stamps"]),
            folders=tuple(group["folders"]),
            gpu=group["gpu"],
        )
        for group in json.loads(path.read_text())
    ]


def mistake_file(path: Path) -> Path:
    """Where a job writes what was wrong, of the file of its groups or its log: a job without it was lost."""
    return path.with_suffix(".failed")


def run(path: Path, *, gpu: bool) -> int:
    """Run the groups of a file, and write down a mistake: Slurm forgets the exit code where it keeps no accounts.

    Args:
        path: What `write_groups` has written.
        gpu: Whether the batch system was asked for a GPU.

    Returns:
        The exit code.
    """
    if not path.exists():
        print(f"{path} is gone: the run that submitted this job has ended.", file=sys.stderr)  # noqa: T201
        return 0
    with os.fdopen(os.dup(2), "w", buffering=1) as log:  # of the job: what branches print has a file of its own
        try:
            if gpu:
                prove_gpu(path.stem)
        except RuntimeError as error:
            return _failed(path, log, str(error))

        def tell(message: Message) -> None:
            if message.kind == "said":
                log.write(message.text.rstrip("\n") + "\n")

        for group in read_groups(path):
            failure = run_group(group, tell)
            if failure is not None:
                return _failed(path, log, failure.message, logs.tail(group.log))
    return 0


def _failed(path: Path, log: TextIO, message: str, last: Sequence[str] = ()) -> int:
    log.write("\n".join([*last, f"error: {message}"]) + "\n")
    starved = message.startswith(MemoryError.__name__)
    atomic_write(mistake_file(path), json.dumps({"message": message, "starved": starved}))
    return 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("groups", type=Path, help="a file of groups")
    parser.add_argument("--gpu", action="store_true", help="say which GPU there is, or end without one")
    given = parser.parse_args()
    sys.exit(run(given.groups, gpu=given.gpu))
