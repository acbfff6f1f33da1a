"""From scores to statements: expected significances of binned scores, and how their bins are chosen.

Bins for a significance are chosen on one sample (out of fold) by `choose_edges` and evaluated on another (test) by
`binned_significance`; no bin without enough simulated background enters. Definitions and sources: docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.histograms import Histogram, bins_of
from analysis.metrics import BoolArray, Estimate, FloatArray, IndexArray, Scores, estimate
from analysis.weights import effective_number

MINIMUM_EFFECTIVE = 10.0
MAXIMUM_RELATIVE_ERROR = 0.2
TOO_FEW = "not enough simulated events"


@dataclass(frozen=True)
class Significance:
    """Expected (Asimov) discovery significance of a binned score, combined over bins.

    Attributes:
        value: Z for a background known exactly, with its 68% interval.
        value_with_uncertainty: Z with the statistical uncertainty σ_b² = Σw² of the simulated background in each bin.
        reason: Why there is no value; empty where there is one.
        edges: Edges of the bins that were used, after merging; empty without a value.
        signal: Σw of signal in each bin.
        background: Σw of background in each bin.
        background_error: sqrt(Σw²) of background in each bin.
    """

    value: Estimate
    value_with_uncertainty: Estimate
    reason: str = ""
    edges: tuple[float, ...] = ()
    signal: tuple[float, ...] = ()
    background: tuple[float, ...] = ()
    background_error: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return all fields; the two values as ``{"value", "low", "high"}``, ``None`` where there is none."""
        return {
            "value": self.value.to_json(),
            "value_with_uncertainty": self.value_with_uncertainty.to_json(),
            "reason": self.reason,
            "edges": list(self.edges),
            "signal": list(self.signal),
            "background": list(self.background),
            "background_error": list(self.background_error),
        }


def asimov_significance(s: npt.ArrayLike, b: npt.ArrayLike, sigma_b: npt.ArrayLike | None = None) -> float:
    """Median discovery significance expected from independent counting experiments: Z = sqrt(Σ_bins Z_i²).

    With a known background Z_i² = 2[(s+b) ln(1+s/b) − s]: Cowan, Cranmer, Gross, Vitells, arXiv:1007.1727. With a
    background constrained by an auxiliary Poisson measurement of relative error sigma_b/b, and n = s + b,
    Z_i² = 2[n ln(n(b+σ²)/(b²+nσ²)) − b²/σ² ln(1+σ²s/(b(b+σ²)))]: G. Cowan, "Discovery sensitivity for a counting
    experiment with background uncertainty" (2012). Limits: s/√b and s/√(b+σ²) for s ≪ b. A bin with s <= 0, which
    negative weights can bring about, adds nothing: a deficit is no evidence for a signal.

    Args:
        s: Expected signal per bin, [B] or a number.
        b: Expected background per bin, > 0.
        sigma_b: Absolute uncertainty of b per bin, >= 0; None for none.

    Raises:
        ValueError: A bin with b <= 0 or sigma_b < 0, or a value that is not finite.
    """
    signal, background = np.asarray(s, dtype=np.float64), np.asarray(b, dtype=np.float64)
    error = np.zeros_like(background) if sigma_b is None else np.asarray(sigma_b, dtype=np.float64)
    if not (np.isfinite(signal).all() and np.isfinite(background).all() and np.isfinite(error).all()):
        raise ValueError("signal, background or its uncertainty is infinite or NaN in a bin")
    if not (background > 0).all() or not (error >= 0).all():
        raise ValueError(
            f"every bin needs b > 0 and sigma_b >= 0; found b >= {background.min()}, sigma_b >= {error.min()}"
        )
    return float(np.sqrt(_squared_significance(signal, background, error**2).sum()))


def merge_bins(
    values: FloatArray,
    variances: FloatArray,
    minimum_effective: float = MINIMUM_EFFECTIVE,
    maximum_relative_error: float = MAXIMUM_RELATIVE_ERROR,
) -> IndexArray:
    """Join neighbouring bins, from the high-score side, until each holds enough simulated background.

    A bin is closed as soon as Σw > 0, n_eff = (Σw)²/Σw² >= minimum_effective and sqrt(Σw²)/Σw <=
    maximum_relative_error. What is left at the low end joins the last closed bin, and that one the next if it then
    fails (negative weights can do that).

    Args:
        values: float64 [B], Σw of background.
        variances: float64 [B], Σw² of background.
        minimum_effective: Smallest effective number of events.
        maximum_relative_error: Largest relative statistical error.

    Returns:
        intp [M + 1], rising from 0 to B: bin i of the result holds the bins bounds[i] to bounds[i + 1] - 1. Of length
        zero where even all bins together do not suffice.
    """

    def enough(low: int, high: int) -> bool:
        total, variance = float(values[low:high].sum()), float(variances[low:high].sum())
        return (
            total > 0 and total**2 >= minimum_effective * variance and variance <= (maximum_relative_error * total) ** 2
        )

    bounds = [len(values)]  # falling
    for low in range(len(values) - 1, -1, -1):
        if enough(low, bounds[-1]):
            bounds.append(low)
    while len(bounds) > 1 and bounds[-1] != 0:
        bounds[-1] = 0
        if not enough(0, bounds[-2]):
            bounds.pop()
    return np.array(bounds[::-1] if len(bounds) > 1 else [], dtype=np.intp)


def choose_edges(
    score: Scores, is_signal: BoolArray, weight: FloatArray, *, bins: int = 20, share: float = 1.0
) -> FloatArray | None:
    """Choose the bins of a significance, on events on which it is not evaluated.

    Quantiles of the signal's score (unweighted, so that negative weights cannot disorder them) are merged by
    `merge_bins` until the background suffices.

    Args:
        score: float [N], between 0 and 1.
        is_signal: bool [N].
        weight: float64 [N], signed physics weights.
        bins: Number of bins before merging.
        share: How many times more events there are here than where the significance is taken: bins are chosen such
            that these fewer events should still suffice.

    Returns:
        Edges, float64 [M + 1]; None where the events suffice for no bin at all.
    """
    inner = np.quantile(score[is_signal], np.arange(1, bins) / bins) if is_signal.any() else np.empty(0)
    inner = np.unique(inner.astype(np.float64))
    edges = np.concatenate([[0.0], inner[(inner > 0) & (inner < 1)], [1.0]])
    background = Histogram.fill(score[~is_signal], weight[~is_signal], edges)
    bounds = merge_bins(
        background.values, background.variances, MINIMUM_EFFECTIVE * share, MAXIMUM_RELATIVE_ERROR / share**0.5
    )
    return edges[bounds] if len(bounds) else None


def binned_significance(
    score: Scores,
    is_signal: BoolArray,
    weight: FloatArray,
    edges: FloatArray | None,
    counts_blocks: Iterable[FloatArray] = (),
) -> Significance:
    """Expected significance of a binned score; bins that lack simulated background on these events merge.

    Args:
        score: float [N].
        is_signal: bool [N].
        weight: float64 [N], signed physics weights, scaled to the luminosity of interest.
        edges: From `choose_edges` on other events; None where it found none.
        counts_blocks: float64 [R_b, N] each, from `analysis.metrics.bootstrap_counts`, for the intervals (bins are
            held fixed); without any, the intervals are None.

    Raises:
        ValueError: Scores outside the edges, or NaN.
    """
    none = Estimate(None, None, None, TOO_FEW)
    if edges is None or effective_number(weight[is_signal]) < MINIMUM_EFFECTIVE:
        return Significance(none, none, TOO_FEW)
    signal = Histogram.fill(score[is_signal], weight[is_signal], edges)
    background = Histogram.fill(score[~is_signal], weight[~is_signal], edges)
    bounds = merge_bins(background.values, background.variances)
    if not len(bounds):
        return Significance(none, none, TOO_FEW)
    signal, background = signal.merged(bounds), background.merged(bounds)

    exact, uncertain = significances(score, is_signal, weight, background.edges, counts_blocks)
    error = np.sqrt(background.variances)
    return Significance(
        value=_with_interval(asimov_significance(signal.values, background.values), exact),
        value_with_uncertainty=_with_interval(asimov_significance(signal.values, background.values, error), uncertain),
        edges=tuple(background.edges.tolist()),
        signal=tuple(signal.values.tolist()),
        background=tuple(background.values.tolist()),
        background_error=tuple(error.tolist()),
    )


def significances(
    score: Scores, is_signal: BoolArray, weight: FloatArray, edges: FloatArray, counts_blocks: Iterable[FloatArray]
) -> tuple[FloatArray, FloatArray]:
    """The significance in every replica, in bins as they stand; arguments as `binned_significance`.

    Returns:
        float64 [R] each: for a background known exactly, and with the statistical uncertainty of its simulation; NaN in
        replicas with a bin without background.
    """
    in_bin = bins_of(score, edges)[:, np.newaxis] == np.arange(len(edges) - 1)  # [N, B]
    w = weight[:, np.newaxis]
    s_terms = np.where(in_bin & is_signal[:, np.newaxis], w, 0.0)
    b_terms = np.where(in_bin & ~is_signal[:, np.newaxis], w, 0.0)
    exact, uncertain = [np.empty(0)], [np.empty(0)]
    for counts in counts_blocks:
        s, b, variance = counts @ s_terms, counts @ b_terms, counts @ b_terms**2
        exact.append(_combined(s, b, np.zeros_like(b)))
        uncertain.append(_combined(s, b, variance))
    return np.concatenate(exact), np.concatenate(uncertain)


def _combined(s: FloatArray, b: FloatArray, variance: FloatArray) -> FloatArray:
    """Combine bins [R, B] into [R]; NaN in replicas with a bin without background."""
    defined = (b > 0).all(axis=1)
    result = np.full(len(s), np.nan)
    result[defined] = np.sqrt(_squared_significance(s[defined], b[defined], variance[defined]).sum(axis=1))
    return result


def _with_interval(value: float, replicas: FloatArray) -> Estimate:
    return estimate(value, replicas) if len(replicas) else Estimate(value, None, None, "no bootstrap")


def _squared_significance(s: FloatArray, b: FloatArray, variance: FloatArray) -> FloatArray:
    """Return Z² of each bin, shapes alike, for b > 0 and variance = sigma_b² >= 0; zero where s <= 0.

    As they stand the formulas subtract nearly equal numbers for s ≪ b. With u = sb/(b²+nσ²), v = σ²s/(b(b+σ²)) and
    m(x) = (ln(1+x) − x)/x² the terms linear in s cancel on paper,

        Z²/2 = n u² m(u) − s²σ²/(b+σ²)² m(v) + s²b²/((b²+nσ²)(b+σ²)),

    which is exact also for σ = 0 (v = 0, m(0) = −1/2). For u ≥ 1/2 the logarithms themselves are safe, and these
    terms are not.
    """
    s = np.maximum(s, 0.0)
    n = s + b
    shared = b**2 + n * variance
    u = s * b / shared
    v = variance * s / (b * (b + variance))
    small = np.minimum(u, 0.5)  # the other branch of the final choice must not overflow
    expanded = (
        n * small**2 * _log_remainder(small)
        - variance * (s / (b + variance)) ** 2 * _log_remainder(v)
        + (s / shared) * (s / (b + variance)) * b**2
    )
    ratio = np.divide(np.log1p(v), v, out=np.ones_like(v), where=v > 0)
    direct = n * np.log1p(u) - s * b / (b + variance) * ratio
    result: FloatArray = 2 * np.maximum(np.where(u < 0.5, expanded, direct), 0.0)
    return result


def _log_remainder(x: FloatArray) -> FloatArray:
    """Return (ln(1+x) − x)/x² for x >= 0, to full precision near zero (ten terms of its series below 0.02)."""
    safe = np.maximum(x, 0.02)
    series = np.polynomial.polynomial.polyval(np.minimum(x, 0.02), [(-1.0) ** (k + 1) / (k + 2) for k in range(10)])
    result: FloatArray = np.where(x < 0.02, series, (np.log1p(safe) - safe) / safe**2)
    return result
