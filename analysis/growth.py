"""How the AUC grows with the training events and with the width of a network: which points, and what they mean.

The networks of all folds are trained anew for each point, with a share of their training events, or with other widths;
the events that they stop on stay the same. They are judged out of fold, on events of the training pool: held-out test
events have no part in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.metrics import Sample, evaluate
from analysis.plots import Plot
from analysis.pool import Pool
from analysis.splitting import salted
from analysis.training_plots import auc_curve


@dataclass(frozen=True)
class Point:
    """One setting that networks are trained with.

    Attributes:
        share: Of the training events.
        width: Factor on the widths of the hidden layers.
    """

    share: float = 1.0
    width: float = 1.0

    @property
    def name(self) -> str:
        """In a few words."""
        return f"share {self.share:g}" if self.share != 1 else f"width × {self.width:g}"


def points(shares: Sequence[float], widths: Sequence[float]) -> tuple[Point, ...]:
    """All points: each share with the widths as they are, each width with all events; common ones once."""
    return tuple(dict.fromkeys([*(Point(share=s) for s in sorted(shares)), *(Point(width=w) for w in sorted(widths))]))


def widened(hidden: Sequence[int], factor: float) -> tuple[int, ...]:
    """Widths of hidden layers times a factor, at least 2 each."""
    return tuple(max(2, round(width * factor)) for width in hidden)


def in_share(identity: npt.NDArray[np.uint64], share: float) -> npt.NDArray[np.bool_]:
    """Which events a share holds, bool [N]: by a hash of their identity, so that each share holds all smaller ones."""
    uniform = (salted(identity, "share", "growth") >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return np.asarray(uniform < share, dtype=np.bool_)


def judge(scores: npt.NDArray[np.float32], pool: Pool, signal: str, replicas: int, seed: int) -> dict[str, Any]:
    """The AUC of the signal against the rest, weighted and not, with its bootstrap intervals (stratified by class).

    Args:
        scores: Out-of-fold signal scores of the pool, float32 [N].
        pool: Its events.
        signal: Name of the signal class.
        replicas: Of the bootstrap.
        seed: Of the bootstrap; points are judged with the same replicas.
    """
    background = (pool.labels != pool.classes.index(signal)).astype(np.int64)
    probability = scores.astype(np.float64)
    sample = Sample(
        probabilities=np.stack([probability, 1 - probability], axis=1),
        label=background,
        weight=np.asarray(pool.weights),
        process=pool.labels,
        identity=np.asarray(pool.identity),
    )
    found: dict[str, Any] = evaluate(sample, (signal, "rest"), signal, replicas, seed)["auc"]
    return found


def curves(found: Mapping[Point, Mapping[str, Any]], hidden: Sequence[int]) -> list[Plot]:
    """The plots: AUC against events, and against widths.

    Args:
        found: For each point its ``auc``, the mean number of training ``events`` of a network, and the number of its
            ``parameters``.
        hidden: Widths of the hidden layers as configured.
    """
    by_share = [point for point in found if point.width == 1]
    by_width = [point for point in sorted(found, key=lambda point: point.width) if point.share == 1]
    note = (
        " Out-of-fold AUC of networks that were trained anew, with 68% intervals of the same bootstrap replicas: "
        "neighbours share their events, so that differences are known better than the intervals say; one training "
        "each, so that the variance of training is not in them."
    )
    plots = []
    if len(by_share) > 1:
        shares = [
            {"x": found[p]["events"], "label": _amount(found[p]["events"]), "share": p.share, "auc": found[p]["auc"]}
            for p in by_share
        ]
        caption = "AUC against the training events of a network, the epochs being the same." + note
        title = "AUC and training events"
        plots.append(auc_curve(shares, "auc_events", title, "training events of a network", caption))
    if len(by_width) > 1 and hidden:
        widths = [
            {
                "x": p.width,
                "label": f"{max(widened(hidden, p.width))}",
                "hidden": list(widened(hidden, p.width)),
                "parameters": found[p]["parameters"],
                "auc": found[p]["auc"],
            }
            for p in by_width
        ]
        caption = "AUC against the widths of the hidden layers, all times one factor, with all training events." + note
        plots.append(auc_curve(widths, "auc_width", "AUC and width", "width of the widest hidden layer", caption))
    return plots


def _amount(events: float) -> str:
    return f"{events / 1000:.3g}k" if events >= 1000 else f"{events:.0f}"
