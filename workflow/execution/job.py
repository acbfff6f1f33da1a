"""What runs inside a job of law's own workflows: groups of branches, one after the other."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO

from workflow.claims import announce
from workflow.execution import logs
from workflow.execution.clusters import prove_gpu
from workflow.execution.executor import Failure, Group, Message, run_group
from workflow.store import atomic_write

PAUSE = 1.0
"""Seconds between two lines of progress of a job: each opens a file of the store."""


class News(NamedTuple):
    """What a job tells its head by a file of the store.

    Attributes:
        branch: The first branch of the group that it is about: a later head may number groups in another way.
        kind: That of a message; a group has `failed`, or was `starved` of memory, with which the job ends.
        content: The text of a message, or what a `Failure` holds.
    """

    branch: int
    kind: Literal["started", "said", "failed", "starved"]
    content: Any = None


def write_groups(path: Path, groups: Sequence[Group]) -> None:
    """Write what a job is to run, and an empty file for its news."""
    # Made here: a file that was looked for in vain stays unseen for a while on NFS.
    news_file(path).touch()
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


def news_file(path: Path) -> Path:
    """Where a job tells its news, of the file of its groups or its log."""
    return path.with_suffix(".news")


def read_news(path: Path, start: int = 0) -> tuple[list[News], int]:
    """Read what a job has told, from some byte on, and where to go on; a line that is being written is left."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            text = file.read()
    except OSError:
        return [], start
    end = text.rfind(b"\n") + 1
    return [News(*json.loads(line)) for line in text[:end].splitlines()], start + end


def run(path: Path, *, gpu: bool) -> int:
    """Run the groups of a file; what one has failed of keeps no other from running.

    Args:
        path: What `write_groups` has written.
        gpu: Whether the batch system was asked for a GPU.

    Returns:
        The exit code. The head goes by the news: Slurm forgets the code where it keeps no accounts.
    """
    if not path.exists():
        print(f"{path} is gone: the run that submitted this job has ended.", file=sys.stderr)  # noqa: T201
        return 0
    announce()
    code, trouble = 0, None
    with os.fdopen(os.dup(2), "w", buffering=1) as log:  # of the job: what branches print has a file of its own
        try:
            if gpu:
                prove_gpu(path.stem)
        except RuntimeError as error:
            trouble = Failure(str(error), True)
        for group in read_groups(path):
            failure = trouble or run_group(group, _teller(path, group, log))
            if failure is not None:
                code = 1
                log.write("\n".join([*logs.tail(group.log), f"error: {group.name}: {failure.message}"]) + "\n")
                kind: Literal["failed", "starved"] = "starved" if failure.starved else "failed"
                tell_head(path, News(group.branches[0], kind, asdict(failure)))
                if failure.starved:
                    break
    return code


def _teller(path: Path, group: Group, log: TextIO) -> Callable[[Message], None]:
    last = -PAUSE

    def tell(message: Message) -> None:
        nonlocal last
        if message.kind == "said":
            log.write(message.text.rstrip("\n") + "\n")
            if not message.text.endswith("\n"):
                if time.monotonic() - last < PAUSE:
                    return
                last = time.monotonic()
        if message.kind in ("started", "said"):
            tell_head(path, News(group.branches[0], message.kind, message.text))

    return tell


def tell_head(path: Path, news: News) -> None:
    """Add to the news."""
    # Never made anew: a head that has removed it does not listen any more.
    with suppress(FileNotFoundError), os.fdopen(os.open(news_file(path), os.O_WRONLY | os.O_APPEND), "w") as file:
        file.write(json.dumps(news) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("groups", type=Path, help="a file of groups")
    parser.add_argument("--gpu", action="store_true", help="say which GPU there is, or end without one")
    given = parser.parse_args()
    sys.exit(run(given.groups, gpu=given.gpu))
