"""Ends that wait: what a process has reached is kept before SIGTERM ends it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

GRACE = 20.0
"""Seconds that a process has to end in; batch systems often kill what is left 30 s after their SIGTERM."""


@dataclass
class Ending:
    """What a block that postpones its end looks at.

    Attributes:
        asked: Whether SIGTERM has come.
    """

    asked: bool = False


@contextmanager
def postponed_end(grace: float = GRACE) -> Iterator[Ending]:
    """Let SIGTERM set a flag until the block ends; then it ends the process as it would have at once.

    Outside of the main thread nothing is postponed, as no other thread may handle signals: SIGTERM then does what it
    does anyway, and the flag stays as it is. The same holds where SIGTERM is ignored.

    Args:
        grace: Seconds after which the process ends wherever it is (by SIGALRM): a block that hangs, for example on a
            lock that a killed process has held, must not stay for ever.

    Yields:
        Whether SIGTERM has come.
    """
    ending = Ending()
    before = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or before in (signal.SIG_IGN, None):
        yield ending
        return

    def note(_number: int, _frame: FrameType | None) -> None:
        if not ending.asked:
            ending.asked = True
            signal.setitimer(signal.ITIMER_REAL, grace)

    signal.signal(signal.SIGTERM, note)
    try:
        yield ending
    finally:
        signal.signal(signal.SIGTERM, before)
        if ending.asked:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.raise_signal(signal.SIGTERM)
