"""Running a step many times: on a GPU several steps are recorded once and replayed as one launch."""

from __future__ import annotations

from collections.abc import Callable

import torch

SEVERAL = 16
"""Steps of one replay."""
_WARM = 3  # steps that run before the recording, as torch asks for


class Replay:
    """A step that changes tensors in place and asks the device nothing, run once or several times at a call.

    On a GPU the host would need longer to ask for a step than the device to compute it, where networks are small. The
    step is captured in a CUDA graph; its tensors must stay where they are as long as this object lives. Elsewhere the
    step is called.
    """

    def __init__(self, step: Callable[[], None], device: str | torch.device) -> None:
        """Record nothing yet.

        Args:
            step: Takes one step.
            device: torch's name of the device.
        """
        self._step, self._device, self._taken = step, torch.device(device), 0
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        cuda = self._device.type == "cuda"
        # One stream for warming up and recording, of this device, which need not be the current one.
        self._aside = torch.cuda.Stream(self._device) if cuda else None  # type: ignore[no-untyped-call]

    def advance(self, most: int) -> int:
        """Take one or several steps, at most so many; returns how many."""
        if self._aside is None:
            self._step()
            return 1
        if self._taken < _WARM:
            self._warm_up(self._aside)
            return 1
        count = SEVERAL if most >= SEVERAL else 1
        if count not in self._graphs:
            self._record(count, self._aside)
        self._graphs[count].replay()
        return count

    def _warm_up(self, aside: torch.cuda.Stream) -> None:
        """Take a step in another stream, so that what is allocated at first use is no part of the recording."""
        self._taken += 1
        aside.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(aside):
            self._step()
        torch.cuda.current_stream(self._device).wait_stream(aside)

    def _record(self, count: int, aside: torch.cuda.Stream) -> None:
        """Record some steps; recordings of one step and of several never run at once, and share their memory."""
        pool = next((graph.pool() for graph in self._graphs.values()), None)
        graph = self._graphs[count] = torch.cuda.CUDAGraph()
        # Only this thread records: another one may meanwhile read the next window to the device.
        with torch.cuda.graph(graph, pool=pool, stream=aside, capture_error_mode="thread_local"):
            for _ in range(count):
                self._step()
