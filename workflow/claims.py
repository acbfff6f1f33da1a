"""Claims: what two runs in one store do about the same output, and who is at work there.

Renaming into place keeps outputs whole whatever happens (`workflow.store`); claims save the second run the work. They
are lease files, kept alive by a heartbeat: a claim whose process is gone from this machine is taken over at once, one
from another machine after half a minute of silence.
"""

from __future__ import annotations

import atexit
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from workflow.store import store_folder

if TYPE_CHECKING:
    from filelock import SoftFileLease

LEASE = 30.0
"""Seconds of silence after which a claim from another machine has ended."""
POLL = 0.2

Stamp = tuple[int, int, int] | None
"""State of a file: time of modification, inode, size; None if it is not there."""

_asked: dict[Path, Stamp] = {}


def stamp(path: Path) -> Stamp:
    """The state of a file now."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def remember(path: Path, state: Stamp) -> Stamp:
    """Note the state that a record had when this run first asked; a later call changes nothing."""
    return _asked.setdefault(path, state)


def changed(path: Path) -> bool:
    """Whether a record is not as it was when this run first asked: another run has made the outputs since."""
    return path in _asked and stamp(path) != _asked[path]


@contextmanager
def claim(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold a lease file; wait for another run that holds it.

    Args:
        path: The lease file.
        say: Told once if there is somebody to wait for.
    """
    from filelock import Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    lease = _lease(path)
    try:
        lease.acquire(timeout=0)
    except Timeout:
        say(f"another run (process {lease.pid}) is making this, waiting for it")
        lease.acquire()
    try:
        yield
    finally:
        lease.release()


@cache
def announce() -> None:
    """Let `Prune` know that a run is at work in the store, until this process ends; forget those killed here."""
    path = _announcement(socket.gethostname(), os.getpid())
    path.parent.mkdir(parents=True, exist_ok=True)
    lease = _lease(path)
    lease.acquire()
    atexit.register(lease.release)
    for other in _runs().glob("*.lease"):
        if other != path and _is_of(other, socket.gethostname()):
            _held(other)


def at_work() -> list[str]:
    """Runs that are at work in the store, as host and process; what runs that were killed have left is removed."""
    return [path.stem for path in sorted(_runs().glob("*.lease")) if _held(path)]


def is_at_work(host: str, pid: int) -> bool:
    """Whether a run is at work in the store."""
    path = _announcement(host, pid)
    return path.exists() and _held(path)


def _held(path: Path) -> bool:
    """Whether the run lives that has announced itself by a lease file; if not, the file is removed."""
    from filelock import Timeout

    lease = _lease(path)
    try:
        # A run on another machine shows no more than its heartbeat.
        lease.acquire(timeout=0 if _is_of(path, socket.gethostname()) else 1.5 * LEASE)
    except Timeout:
        return True
    lease.release()
    with suppress(FileNotFoundError):
        path.unlink()
    return False


def _is_of(path: Path, host: str) -> bool:
    """Whether a run has announced itself from a machine."""
    return path.stem.rpartition("-")[0] == host


def _lease(path: Path) -> SoftFileLease:
    from filelock import SoftFileLease

    lease = SoftFileLease(path, lease_duration=LEASE, poll_interval=POLL)
    with suppress(FileNotFoundError):
        # A machine that crashed can leave an empty file, which names no holder and which no lock takes over.
        if lease.pid is None and time.time() - path.stat().st_mtime > LEASE:
            path.unlink()
    return lease


def _announcement(host: str, pid: int) -> Path:
    return _runs() / f"{host}-{pid}.lease"


def _runs() -> Path:
    return store_folder() / "runs"
