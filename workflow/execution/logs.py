"""What a group of branches prints: kept in a file beside the outputs, for whoever asks why it failed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = "log.txt"
TAIL = 15
"""Lines of a log that are shown when its branch has failed."""
LARGEST = 64_000
"""Bytes of which these are the last."""


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Append what this process and its libraries print to a file, which is removed if nothing was printed.

    The process must have nothing else to do meanwhile: its file descriptors 1 and 2 point to the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _flush()
    kept = [os.dup(1), os.dup(2)]
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        os.dup2(log, 1)
        os.dup2(log, 2)
        yield
    finally:
        _flush()
        for number, before in enumerate(kept, start=1):
            os.dup2(before, number)
            os.close(before)
        if os.fstat(log).st_size == 0:
            path.unlink(missing_ok=True)
        os.close(log)


def tail(path: Path) -> list[str]:
    """The last lines of a log; none if there is no log, or it can't be read."""
    try:
        with path.open("rb") as log:
            log.seek(-min(LARGEST, path.stat().st_size), os.SEEK_END)
            text = log.read()
    except OSError:
        return []
    return text.decode(errors="replace").splitlines()[-TAIL:]


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
