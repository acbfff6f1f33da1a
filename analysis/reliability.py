"""Whether a score is a probability: its reliability, and how far it is from one."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.metrics import FloatArray, Sample, bootstrap_counts, estimate

BINS = 10


def reliability(sample: Sample, signal: int, *, balanced: bool, replicas: int, seed: int) -> dict[str, Any]:
    """Compare the score of a class with the share of this class among events of that score, in ten equal bins.

    The expected calibration error is Σ_b s_b |observed_b − predicted_b| with the share s_b of a bin's weight in all
    (Guo et al., arXiv:1706.04599, eq. 3). It is above zero also for a score that is a probability, by the statistical
    errors of the bins. Bins whose weights do not have a positive sum are left out.

    Args:
        sample: Scored events; their weights may be negative, so that a share may lie outside 0 and 1.
        signal: Index of the class.
        balanced: Whether all classes are taken as equally frequent, as most networks are trained; else they are as
            frequent as the weights say.
        replicas: Bootstrap replicas.
        seed: Seed of the bootstrap.

    Returns:
        ``edges`` [B + 1]; for each bin ``entries``, ``share``, ``predicted``, the mean score (None where it is left
        out), and ``observed``, as ``{"value", "low", "high"}``; and likewise ``error``, the expected calibration error.
    """
    classes = sample.probabilities.shape[1]
    score = sample.probabilities[:, signal].astype(np.float64)
    place = np.minimum((score * BINS).astype(np.intp), BINS - 1)
    cell = place * classes + sample.label  # of one bin and one class
    order = np.argsort(cell, kind="stable")
    filled, starts = np.unique(cell[order], return_index=True)
    terms = np.stack([sample.weight, sample.weight * score])[:, order]  # (2, N)

    def sums(counts: FloatArray) -> FloatArray:
        """Sums over the events of each cell (R, 2, B, C), which occur so many times (R, N)."""
        found = np.zeros((len(counts), 2, BINS * classes))
        drawn = counts[:, order]
        for row, term in enumerate(terms):
            found[:, row, filled] = np.add.reduceat(drawn * term, starts, axis=1)
        return found.reshape(-1, 2, BINS, classes)

    def parts(sums: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Share, predicted and observed (R, B), and the error (R,), of sums (R, 2, B, C)."""
        totals = sums[:, 0].sum(axis=1)  # (R, C)
        norm = totals * classes if balanced else np.repeat(totals.sum(axis=1, keepdims=True), classes, axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            own = np.where(norm > 0, 1 / norm, np.nan)[:, np.newaxis, np.newaxis] * sums
            share = own[:, 0].sum(axis=2)
            share = np.where(share > 0, share, np.nan)
            predicted, observed = own[:, 1].sum(axis=2) / share, own[:, 0, :, signal] / share
            error = np.nansum(share * np.abs(observed - predicted), axis=1) / np.nansum(share, axis=1)
        return share, predicted, observed, error

    share, predicted, observed, error = (found[0] for found in parts(sums(np.ones((1, len(score))))))
    drawn = bootstrap_counts(sample.identity, sample.process, replicas, seed)
    blocks = [parts(sums(counts)) for counts in drawn]
    of_bins, of_error = (np.concatenate([block[part] for block in blocks]) for part in (2, 3))
    return {
        "edges": np.linspace(0, 1, BINS + 1).tolist(),
        "entries": np.bincount(place, minlength=BINS).tolist(),
        "share": _listed(share),
        "predicted": _listed(predicted),
        "observed": [estimate(float(value), of_bins[:, b]).to_json() for b, value in enumerate(observed)],
        "error": estimate(float(error), of_error).to_json(),
    }


def _listed(values: npt.NDArray[np.float64]) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
