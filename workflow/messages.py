"""What a user sees of a mistake: one message, once, without a traceback, whichever of luigi's stages met it."""

from __future__ import annotations

import logging
import re
import sys

from analysis.errors import UserError

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
    """Install the filter on luigi's logger; a second call changes nothing."""
    logger = logging.getLogger("luigi-interface")
    if not any(isinstance(f, _UserErrorFilter) for f in logger.filters):
        logger.addFilter(_UserErrorFilter())
