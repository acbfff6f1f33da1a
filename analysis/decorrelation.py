"""How much a score still knows of a spectator: their distance correlation, and what a cut on the score does to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

LARGEST = 2000
"""Events that the distance correlation looks at: its time grows with their square."""
SHUFFLES = 5
"""Random orders of the score that say how large the distance correlation of independent variables is found."""
BINS = 20

FloatArray = npt.NDArray[np.float64]


def remaining(score: FloatArray, spectator: FloatArray, weight: FloatArray, seed: int) -> dict[str, Any]:
    """What is left of the dependence of a score on a spectator.

    Args:
        score: Of the background events that have the spectator, in the order of their identities, ``[N]``.
        spectator: ``[N]``.
        weight: Signed physics weights, ``[N]``.
        seed: Of the shuffles.

    Returns:
        ``events``; ``distance_correlation`` of the first `LARGEST` of them and ``independent``, the mean of what it is
        for shuffled scores; ``jensen_shannon`` of the spectator above and below the median score. ``None`` where there
        are too few events.
    """
    few: dict[str, Any] = {"distance_correlation": None, "independent": None, "jensen_shannon": None}
    if len(score) < 2 or not np.any(weight):
        return {"events": len(score), **few}
    first = slice(0, LARGEST)
    own, other, sizes = score[first], spectator[first], np.abs(weight[first])
    random = np.random.default_rng(seed)
    shuffled = [distance_correlation(random.permutation(own), other, sizes) for _ in range(SHUFFLES)]
    return {
        "events": len(score),
        "distance_correlation": distance_correlation(own, other, sizes),
        "independent": float(np.mean(shuffled)),
        "jensen_shannon": jensen_shannon(score, spectator, weight),
    }


def distance_correlation(x: FloatArray, y: FloatArray, weight: FloatArray) -> float:
    """The distance correlation of weighted events (Székely, Rizzo and Bakirov, arXiv 0803.4101), from 0 to 1.

    Args:
        x: ``[N]``.
        y: ``[N]``.
        weight: At least zero, ``[N]``.
    """
    shares = weight / weight.sum()
    a, b = (_centred(np.abs(values[:, np.newaxis] - values), shares) for values in (x, y))  # [N, N] each
    both, own, other = (float(shares @ (left * right) @ shares) for left, right in ((a, b), (a, a), (b, b)))
    return float(np.sqrt(max(both, 0.0) / np.sqrt(own * other))) if own > 0 and other > 0 else 0.0


def jensen_shannon(score: FloatArray, spectator: FloatArray, weight: FloatArray) -> float | None:
    """The Jensen-Shannon divergence, in bits, of the spectator above and below the median score: 0 if it is the same.

    The bins hold equal shares of the events. A bin whose signed weights sum below zero counts as empty.

    Args:
        score: ``[N]``.
        spectator: ``[N]``.
        weight: Signed physics weights, ``[N]``.

    Returns:
        From 0 to 1; ``None`` where one side has no weight.
    """
    edges = np.unique(np.quantile(spectator, np.linspace(0, 1, BINS + 1)[1:-1]))
    place = np.searchsorted(edges, spectator, side="right")
    above = score > _median(score, np.abs(weight))
    sides = [np.bincount(place[own], weights=weight[own], minlength=len(edges) + 1) for own in (above, ~above)]
    sides = [np.maximum(side, 0.0) for side in sides]
    if min(side.sum() for side in sides) <= 0:
        return None
    p, q = (side / side.sum() for side in sides)
    middle = (p + q) / 2
    return float(sum(np.sum(part[part > 0] * np.log2(part[part > 0] / middle[part > 0])) for part in (p, q)) / 2)


def _centred(distances: FloatArray, shares: FloatArray) -> FloatArray:
    """Distances less their weighted means over rows and columns, plus that over all, ``[N, N]``."""
    rows = distances @ shares
    return np.asarray(distances - rows[:, np.newaxis] - rows + shares @ rows)


def _median(values: FloatArray, weight: FloatArray) -> float:
    """The weighted median."""
    order = np.argsort(values, kind="stable")
    sums = np.cumsum(weight[order])
    return float(values[order[np.searchsorted(sums, sums[-1] / 2)]])
