"""Dropout whose masks follow from keys, not from a generator's state.

A mask for every unit of every event would cost more than the layer behind it: hashing is a dozen operations on
integers. Instead a bank of random masks is made once, and each event of each step draws one of them for each layer.
Units of a mask are independent of each other, and so are the masks of events, steps and layers, except that two of
them are the same once in `BANK` times.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from models import hashing

BANK = 2**15
"""Masks of one width and rate: over all of them a unit is dropped as often as asked to 0.3% of its scale."""
_BANK_STREAM = 6


class Dropout:
    """Dropout (Srivastava et al. 2014) with a rate for each member of a stack.

    Attributes:
        banks: The masks by width H, those of one rate after those of another: ``[rates · BANK, H]`` each.
    """

    def __init__(self, rates: Sequence[float], widths: Iterable[int], dtype: torch.dtype, device: str) -> None:
        """Make the masks.

        Args:
            rates: Share of units set to zero, one for each of M members; the others are scaled by 1 / (1 - rate).
            widths: Widths of the layers.
            dtype: Type of the layers.
            device: torch's name of the device.
        """
        different = sorted(set(rates))
        self._starts = torch.tensor([different.index(rate) * BANK for rate in rates], device=device)  # (M,)
        self.banks = {
            width: torch.cat([_masks(width, rate) for rate in different]).to(device=device, dtype=dtype)
            for width in set(widths)
        }  # (rates · BANK, H) each

    def select(self, keep: Tensor) -> None:
        """Keep only the members at these positions, int64 ``[M']``."""
        self._starts = self._starts[keep]

    def __call__(self, hidden: Tensor, keys: Tensor) -> Tensor:
        """Drop units.

        Args:
            hidden: Output of a layer ``[M, B, H]``.
            keys: Keys of the step and layer, int64 ``[M]``.

        Returns:
            ``[M, B, H]``.
        """
        drawn = hashing.counters(keys, hidden.shape[1]).bitwise_and_(BANK - 1)  # (M, B)
        rows = drawn + self._starts.unsqueeze(1)  # (M, B)
        masks = self.banks[hidden.shape[2]].index_select(0, rows.flatten())  # (M·B, H)
        return hidden * masks.view(hidden.shape).to(hidden.dtype)


def _masks(width: int, rate: float) -> Tensor:
    """The bank of a width and a rate, float32 ``[BANK, width]``: 0 or 1 / (1 - rate)."""
    key = torch.tensor([hashing.key(_BANK_STREAM, width)])
    words = -(-BANK * width // 4)  # each hash serves four units with 16 bits each
    bits = hashing.counters(key, words).view(torch.int16)[0, : BANK * width]
    kept = bits >= round(rate * 2**16) - 2**15
    return (kept.to(torch.float32) / (1 - rate)).view(BANK, width)
