"""What a user sees of a mistake or an interruption: one message, once, without a traceback, whoever met it first."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import signal
import sys
import threading
from types import FrameType, TracebackType

from analysis.errors import UserError
from workflow.execution.executor import close_all

# A message may have several lines; what follows it in a chain of exceptions is no part of it.
_IN_TRACEBACK = re.compile(
    r"^(?:analysis\.errors\.)?UserError: (.*?)(?=\n\n(?:The above exception|During handling)|\Z)",
    re.MULTILINE | re.DOTALL,
)


class _UserErrorFilter(logging.Filter):
    """Replaces luigi's log record of a user's mistake, traceback and all, by the sentence itself."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        message = self._message(record)
        if message is None or "--debug" in sys.argv:
            return True
        if message not in self._said:
            self._said.add(message)
            print(f"\nerror: {message}\n", file=sys.stderr, flush=True)  # noqa: T201
        return False

    @staticmethod
    def _message(record: logging.LogRecord) -> str | None:
        if record.exc_info and isinstance(record.exc_info[1], UserError):
            return str(record.exc_info[1])
        # luigi formats the traceback of a failing complete() or requires() to text before it logs.
        found = list(_IN_TRACEBACK.finditer(record.getMessage()))
        return found[-1].group(1).strip() if found else None


def show_user_errors() -> None:
    """Install the filter on luigi's logger, and end interrupted runs quietly; a second call changes nothing."""
    logger = logging.getLogger("luigi-interface")
    if any(isinstance(f, _UserErrorFilter) for f in logger.filters):
        return
    logger.addFilter(_UserErrorFilter())
    # Workers leave signals to their head; only a main thread may set handlers.
    if multiprocessing.parent_process() is None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminated)
        sys.excepthook = _quiet_interrupt


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a run as Ctrl-C does."""


def _terminated(_number: int, _frame: FrameType | None) -> None:
    raise _Terminated


def _quiet_interrupt(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Say that a run was interrupted, and end its workers with it."""
    if not issubclass(kind, KeyboardInterrupt) or "--debug" in sys.argv:
        sys.__excepthook__(kind, error, trace)
        return
    print("\ninterrupted: what is complete stays, start the run again to go on", file=sys.stderr, flush=True)  # noqa: T201
    # Local workers see that their head is gone and end; jobs of a batch system have to be taken back.
    close_all()
    os._exit(128 + (signal.SIGTERM if issubclass(kind, _Terminated) else signal.SIGINT))
