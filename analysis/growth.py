"""How the AUC grows with the training events and with the widths of the layers: which points, and what they mean.

The networks of all folds are trained anew for each point, with a share of their training events or with other widths;
the events that they stop on, and the number of epochs, stay the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analysis.splitting import salted


@dataclass(frozen=True)
class Point:
    """What networks are trained with.

    Attributes:
        share: Of their training events.
        hidden: Widths of their hidden layers.
    """

    share: float
    hidden: tuple[int, ...]

    @property
    def name(self) -> str:
        """In a few words."""
        return f"share {self.share:g}, layers {'-'.join(map(str, self.hidden)) or 'none'}"


def points(hidden: tuple[int, ...], shares: Sequence[float], widths: Sequence[float]) -> tuple[Point, ...]:
    """Each share with the layers as they are, and each width with all events; what is configured is always among them.

    Args:
        hidden: Widths of the hidden layers, as configured.
        shares: Of the training events.
        widths: Factors on the widths.

    Returns:
        Each point once, shares before widths, in rising order.
    """
    by_share = [Point(float(share), hidden) for share in sorted({*shares, 1.0})]
    by_width = [Point(1.0, widened(hidden, factor)) for factor in sorted(widths)]
    return tuple(dict.fromkeys([*by_share, *by_width]))


def widened(hidden: Sequence[int], factor: float) -> tuple[int, ...]:
    """Widths of hidden layers times a factor, at least 2 each."""
    return tuple(max(2, round(width * factor)) for width in hidden)


def in_share(identity: npt.NDArray[np.uint64], share: float) -> npt.NDArray[np.bool_]:
    """Which events a share holds, bool [N]: by a hash of their identity, so that each share holds all smaller ones."""
    uniform = (salted(identity, "share", "growth") >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return np.asarray(uniform < share, dtype=np.bool_)
