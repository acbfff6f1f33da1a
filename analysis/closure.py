"""Whether refined weights keep what signed weights say: histograms of each feature, class by class.

An event's refined weight is |w| max(0, r), where r is the mean sign of the weights at the event, learned by a network
that has not trained on it (`models/refinement.py`). Where r is right, refined and signed histograms differ by chance
alone: by the signs that the events happen to have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.pool import Pool

BINS = 10
"""Largest number of bins of a feature, beside that of events which lack it."""
FEWEST = 10
"""Events of negative weight in a bin, below which it is joined to its neighbour: with few of them a sum of weights is
far from normal, and where there is none a bootstrap knows nothing of those that might have been."""

Doubles = npt.NDArray[np.float64]


def crossed(
    ratios: Sequence[npt.NDArray[np.float32] | None],
    uses: Sequence[npt.NDArray[np.bool_]],
    folds: npt.NDArray[np.int16],
) -> Doubles:
    """The mean sign of each event, from one of the networks that train on it.

    Args:
        ratios: Of each network, [N]; ``None`` of one that has met no negative weight, for 1.
        uses: Which events each network trains on, bool [N].
        folds: Fold of each event, [N].

    Returns:
        float64 [N]: of the network of the nearest fold before the event's own one that trains on it; none of its
        nested networks that gave the number has met the event.
    """
    found = np.full(len(folds), np.nan)
    for step in range(len(ratios)):
        for fold in range(len(ratios)):
            network = (fold - step) % len(ratios)
            rows = (folds == fold) & uses[network] & np.isnan(found)
            ratio = ratios[network]
            found[rows] = 1.0 if ratio is None else ratio[rows]
    return found


def closure(pool: Pool, ratios: Doubles) -> dict[str, Any]:
    """Compare refined with signed weights.

    Args:
        pool: The events.
        ratios: Mean sign of each event, [N].

    Returns:
        For each class: ``negative``, the share of Σ|w| that negative weights have; ``clipped``, that of events whose
        ratio is below zero, so that they don't train; ``sum``, Σ of refined over Σ of signed weights; ``features``,
        name by name ``chi2``, ``ndf`` and ``p_value`` of `compare`; and ``smallest``, the feature with the smallest
        p-value and that value times the number of features (Holm), at most 1. Features without two bins that hold
        `FEWEST` events of negative weight are left out.
    """
    result = {}
    for label, name in enumerate(pool.classes):
        rows = (pool.labels == label) & (pool.weights != 0)
        signed = np.asarray(pool.weights[rows], dtype=np.float64)
        size = np.abs(signed)
        refined = size * np.maximum(ratios[rows], 0.0)
        tests = {}
        for column, feature in enumerate(pool.features if refined.sum() > 0 and signed.sum() > 0 else ()):
            bins = _bins(pool.values[rows, column], pool.present[rows, column], signed < 0)
            chi2, ndf, p_value = compare(bins, signed, refined)
            if ndf:
                tests[feature] = {"chi2": chi2, "ndf": ndf, "p_value": p_value}
        worst = min(tests, key=lambda feature: tests[feature]["p_value"], default=None)
        result[name] = {
            "negative": float(size[signed < 0].sum() / size.sum()),
            "clipped": float(size[ratios[rows] < 0].sum() / size.sum()),
            "sum": float(refined.sum() / signed.sum()),
            "features": tests,
            "smallest": None
            if worst is None
            else {"feature": worst, "p_value": min(1.0, len(tests) * tests[worst]["p_value"])},
        }
    return result


def compare(bins: npt.NDArray[np.int64], first: Doubles, second: Doubles) -> tuple[float, int, float]:
    """Compare the shapes of two histograms of the same events with two weights.

    χ² = dᵀ C⁺ d, where d are the differences of the bins' shares and C is their covariance in a paired Poisson
    bootstrap, in which each event comes as often in both histograms. It needs no replicas: to first order an event
    moves d by u_i = w_i (1_b - h_b) / Σw of the one histogram h less that of the other, and C = Σ_i u_i u_iᵀ.

    Args:
        bins: Bin of each event, [N].
        first: Weights of the one, [N].
        second: Weights of the other, [N].

    Returns:
        χ², its degrees of freedom (the rank of C; 0 if the histograms can't differ), and the p-value.
    """
    from scipy.stats import chi2

    count = int(bins.max(initial=0)) + 1
    inside = bins[:, np.newaxis] == np.arange(count)  # [N, B]
    moves, difference = np.zeros(inside.shape), np.zeros(count)
    for weights, sign in ((first, 1.0), (second, -1.0)):
        share = np.bincount(bins, weights=weights, minlength=count) / weights.sum()  # [B]
        difference += sign * share
        moves += sign * (weights / weights.sum())[:, np.newaxis] * (inside - share)
    covariance = moves.T @ moves  # [B, B]
    largest = float(np.trace(covariance))
    if not largest > 1e-24:
        return 0.0, 0, 1.0
    values, vectors = np.linalg.eigh(covariance)
    kept = values > 1e-9 * largest
    found = float(np.sum((vectors.T @ difference)[kept] ** 2 / values[kept]))
    return found, int(kept.sum()), float(chi2.sf(found, kept.sum()))


def _bins(
    values: npt.NDArray[np.float32], present: npt.NDArray[np.bool_], negative: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    """Bins with equal numbers of events, as far as values differ, the last one for events that lack the feature."""
    known = values[present].astype(np.float64)
    edges = np.unique(np.quantile(known, np.arange(1, BINS) / BINS)) if len(known) else np.zeros(0)
    bins = np.where(present, np.searchsorted(edges, values, side="right"), len(edges) + 1)
    counts = np.bincount(bins, weights=negative, minlength=len(edges) + 2)
    joined, place, held = np.zeros(len(counts), dtype=np.int64), 0, 0.0
    for number, count in enumerate(counts):
        if held >= FEWEST and counts[number:].sum() >= FEWEST:
            place, held = place + 1, 0.0
        joined[number] = place
        held += count
    return joined[bins]
