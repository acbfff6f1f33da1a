"""What a user sees of a step while it runs: one live line, then one that stays."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType

PAUSE = 5.0
"""Seconds between two lines of progress in a log; on a terminal one line is written over and over."""
BLINK = 0.05
"""Seconds for which a line on a terminal stays at least."""
TICK, LONG = 0.5, 60.0
"""Seconds after which the line on a terminal is written anew, and one in a log, though nobody has said anything."""


class Board:
    """Progress of one step: branches queued, running, done and failed; workers, events per second and time left.

    Args:
        title: What the step is called.
        sizes: For each group, how many branches it has and how many events these read or make.
        workers: Tells how many workers there are now.
    """

    def __init__(self, title: str, sizes: Sequence[tuple[int, int]], workers: Callable[[], int]) -> None:
        self._title, self._sizes, self._workers = title, sizes, workers
        self._running: set[int] = set()
        self._done: set[int] = set()
        self._failed: set[int] = set()
        self._said = ""
        self._terminal = sys.stderr.isatty()
        self._started = self._last = time.monotonic()
        self._first: float | None = None  # when the first group began to run
        self._written = ""
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Board:
        self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._ticker.join()
        if kind is None:
            seconds = time.monotonic() - self._started
            branches, events = self._total(self._done)
            rate = f", {events / seconds:,.0f} events/s" if events and seconds > 1 else ""
            self.show(f"{self._title}: {branches} done in {seconds:.1f} s{rate}\n")
        elif self._terminal:
            self.show("")

    def hear(self, group: int, kind: str, text: str) -> None:
        """Note what the worker of a group says."""
        if kind == "started":
            with self._lock:
                self._running.add(group)
                self._first = self._first or time.monotonic()
        elif kind == "said" and text.endswith("\n"):
            self.show(text)
        elif kind == "said":
            self._said = text
        self._refresh()

    def end(self, group: int, well: bool) -> None:
        """Note that a group has ended."""
        with self._lock:
            (self._done if well else self._failed).add(group)
        self._refresh()

    def show(self, text: str) -> None:
        """Show lines that stay."""
        with self._lock:
            start = "\r\033[K" if self._terminal else ""
            print(f"{start}{text}", end="", file=sys.stderr, flush=True)  # noqa: T201
            self._written = ""

    def line(self) -> str:
        """How the step stands."""
        # Messages come by another way than ends: the last one may be late.
        running = self._running - self._done - self._failed
        queued = len(self._sizes) - len(running) - len(self._done) - len(self._failed)
        waiting = set(range(len(self._sizes))) - running - self._done - self._failed
        done, events = self._total(self._done)
        total = sum(branches for branches, _ in self._sizes)
        parts = [f"{self._title}: {done} of {total} done"]
        if running:
            parts.append(f"{self._total(running)[0]} running")
        if queued:
            parts.append(f"{self._total(waiting)[0]} queued")
        if self._failed:
            parts.append(f"{self._total(self._failed)[0]} failed")
        workers = self._workers()
        parts.append(f"{workers} worker{'' if workers == 1 else 's'}")
        if done and self._first is not None:
            seconds = max(time.monotonic() - self._first, 1e-3)
            everything = sum(events for _, events in self._sizes)
            if events:
                parts.append(f"{events / seconds:,.0f} events/s")
            share = events / everything if everything else done / total
            if share:
                parts.append(f"{duration(seconds * (1 - share) / share)} left")
        return ", ".join(parts) + (f" | {self._said}" if self._said else "")

    def _total(self, groups: set[int]) -> tuple[int, int]:
        """Branches and events of some groups."""
        sizes = [self._sizes[group] for group in groups]
        return sum(branches for branches, _ in sizes), sum(events for _, events in sizes)

    def _tick(self) -> None:
        while not self._over.wait(TICK):
            if self._terminal or time.monotonic() - self._last > LONG:
                self._refresh()

    def _refresh(self) -> None:
        with self._lock:
            now = time.monotonic()
            if now - self._last <= (BLINK if self._terminal else PAUSE):
                return
            line = self.line()
            if line == self._written or self._over.is_set():
                return
            if self._terminal:
                width = shutil.get_terminal_size().columns - 1
                print(f"\r\033[K{line[:width]}", end="", file=sys.stderr, flush=True)  # noqa: T201
            else:
                print(line, file=sys.stderr, flush=True)  # noqa: T201
            self._last, self._written = now, line


def duration(seconds: float) -> str:
    """A time in words: the largest unit that it fills twice, so that nobody reads more than is known."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
