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

    def advance(self, most: int) -> int:
        """Take one or several steps, at most so many; returns how many."""
        if self._device.type != "cuda":
            self._step()
            return 1
        if self._taken < _WARM:
            self._aside()
            return 1
        count = SEVERAL if most >= SEVERAL else 1
        if count not in self._graphs:
            self._graphs[count] = torch.cuda.CUDAGraph()
            # Only this thread records: another one may meanwhile read the next window to the device.
            with torch.cuda.graph(self._graphs[count], capture_error_mode="thread_local"):
                for _ in range(count):
                    self._step()
        self._graphs[count].replay()
        return count

    def _aside(self) -> None:
        """Take a step in a stream of its own, so that what is allocated at first use is no part of the recording."""
        self._taken += 1
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            self._step()
        torch.cuda.current_stream(self._device).wait_stream(stream)
