"""Jobs of dask's workers that the batch system refuses: dask alone logs a traceback and waits for them for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from distributed.core import Status

AGAIN = 60.0
"""Seconds after which a job that was refused is submitted again."""


class Submissions:
    """The jobs of one cluster.

    Args:
        give_up: Called with the batch system's words where it has refused a job and no other one is left; from the
            thread of the cluster's loop.
    """

    def __init__(self, give_up: Callable[[str], object]) -> None:
        self._give_up = give_up
        self._live: set[Any] = set()
        self._asking = 0

    def told(self, kind: type[Any]) -> Any:
        """A class of dask-jobqueue's jobs whose refusals come here.

        While others of the cluster live, one that was refused is tried again: a user may have as many jobs as there
        can be.
        """
        own = self

        class Told(kind):
            async def start(self) -> None:
                own._asking += 1
                refusal = ""
                try:
                    await super().start()
                    own._live.add(self)
                except RuntimeError as error:  # what dask-jobqueue raises where a program fails
                    refusal = str(error)
                finally:
                    own._asking -= 1
                if refusal:
                    self.status = Status.running  # that is, to be closed
                    asyncio.get_running_loop().call_later(AGAIN, self._forget)
                    if not own._live and not own._asking:
                        own._give_up(refusal.rpartition("stderr:")[2].strip() or refusal)

            async def close(self) -> None:
                own._live.discard(self)
                await super().close()
                self.status = Status.closed

            def _forget(self) -> None:
                cluster = self._cluster()
                if cluster is not None and cluster.workers.get(self.name) is self:
                    del cluster.workers[self.name]

        return Told
