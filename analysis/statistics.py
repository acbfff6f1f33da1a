"""From scores to statements: expected significances, histograms per process, and a likelihood model for pyhf.

Bins for a significance are chosen on one sample (out of fold) by `choose_edges` and evaluated on another (test) by
`binned_significance`; no bin without enough simulated background enters. Definitions and sources: docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.metrics import BoolArray, Estimate, FloatArray, IndexArray, Labels, Scores, estimate
from analysis.weights import effective_number

MINIMUM_EFFECTIVE = 10.0
MAXIMUM_RELATIVE_ERROR = 0.2
TOO_FEW = "not enough simulated events"


@dataclass(frozen=True, eq=False)
class Histogram:
    """Weighted events per bin; the last bin holds its upper edge.

    Attributes:
        edges: float64 [B + 1], rising.
        values: float64 [B], Σw; negative where negative weights prevail.
        variances: float64 [B], Σw².
        entries: int64 [B], number of events.

    Raises:
        ValueError: Shapes that do not agree, or edges that do not rise.
    """

    edges: FloatArray
    values: FloatArray
    variances: FloatArray
    entries: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        _check_edges(self.edges)
        for name in ("values", "variances", "entries"):
            shape = getattr(self, name).shape
            if shape != (len(self.edges) - 1,):
                raise ValueError(f"{name} has the shape {shape}, but there are {len(self.edges) - 1} bins")

    @staticmethod
    def fill(score: Scores, weight: FloatArray, edges: FloatArray) -> Histogram:
        """Fill scores [N] with weights [N].

        Raises:
            ValueError: Scores outside the edges, which would be lost, or NaN.
        """
        row = _bins(score, edges)
        count = len(edges) - 1
        return Histogram(
            edges=np.asarray(edges, dtype=np.float64),
            values=np.bincount(row, weight, count).astype(np.float64),
            variances=np.bincount(row, np.square(weight), count).astype(np.float64),
            entries=np.bincount(row, minlength=count).astype(np.int64),
        )

    def merged(self, bounds: IndexArray) -> Histogram:
        """Join neighbouring bins: bin i of the result holds the bins bounds[i] to bounds[i + 1] - 1."""
        starts = bounds[:-1]
        return Histogram(
            edges=self.edges[bounds],
            values=np.add.reduceat(self.values, starts),
            variances=np.add.reduceat(self.variances, starts),
            entries=np.add.reduceat(self.entries, starts),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the four arrays as lists."""
        names = ("edges", "values", "variances", "entries")
        return {name: getattr(self, name).tolist() for name in names}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Histogram:
        """Read what `to_json` returned.

        Raises:
            KeyError: An array is missing.
            ValueError: Arrays that do not fit each other.
        """
        edges, values, variances = (np.array(data[k], dtype=np.float64) for k in ("edges", "values", "variances"))
        return Histogram(edges, values, variances, np.array(data["entries"], dtype=np.int64))

    def to_hist(self) -> Any:
        """Return a `hist.Hist` with weighted storage and one axis named ``score``; it has no place for entries."""
        import hist

        axis = hist.axis.Variable(self.edges, name="score", label="score", flow=False)
        result = hist.Hist(axis, storage=hist.storage.Weight())
        result.view().value = self.values
        result.view().variance = self.variances
        return result


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


@dataclass(frozen=True)
class Workspace:
    """A pyhf workspace and what had to be changed to make the templates usable in a likelihood.

    Attributes:
        spec: The workspace, after the JSON schema of pyhf, version 1.0.0.
        edges: Edges of its bins: those of the histograms, less the ones that merging removed.
        clipped: Σw that flooring negative bins at zero added, per process that had some (a positive number).
    """

    spec: dict[str, Any]
    edges: tuple[float, ...]
    clipped: dict[str, float]


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

    row = _bins(score, background.edges)
    in_bin = row[:, np.newaxis] == np.arange(len(background.values))  # [N, B]
    w = weight[:, np.newaxis]
    s_terms = np.where(in_bin & is_signal[:, np.newaxis], w, 0.0)
    b_terms = np.where(in_bin & ~is_signal[:, np.newaxis], w, 0.0)
    exact, uncertain = [], []
    for counts in counts_blocks:
        s, b, variance = counts @ s_terms, counts @ b_terms, counts @ b_terms**2
        exact.append(_combined(s, b, np.zeros_like(b)))
        uncertain.append(_combined(s, b, variance))
    error = np.sqrt(background.variances)
    return Significance(
        value=_with_interval(asimov_significance(signal.values, background.values), exact),
        value_with_uncertainty=_with_interval(asimov_significance(signal.values, background.values, error), uncertain),
        edges=tuple(background.edges.tolist()),
        signal=tuple(signal.values.tolist()),
        background=tuple(background.values.tolist()),
        background_error=tuple(error.tolist()),
    )


def score_histograms(
    score: Scores, weight: FloatArray, process: Labels, names: Sequence[str], edges: FloatArray
) -> dict[str, Histogram]:
    """Fill one histogram per process.

    Args:
        score: float [N], within the edges.
        weight: float64 [N], signed.
        process: int [N], index into the names.
        names: Names of the processes; one without events gets an empty histogram.
        edges: float64 [B + 1], rising.

    Raises:
        ValueError: Scores outside the edges, or NaN; a process without a name.
    """
    if len(process) and not 0 <= int(process.min()) <= int(process.max()) < len(names):
        raise ValueError(f"processes from {process.min()} to {process.max()}, but there are {len(names)} names")
    return {name: Histogram.fill(score[process == p], weight[process == p], edges) for p, name in enumerate(names)}


def pyhf_workspace(
    histograms: Mapping[str, Histogram],
    signals: Collection[str],
    data: Histogram | None = None,
    measurement: str = "measurement",
    luminosity_uncertainty: float | None = None,
) -> Workspace:
    """Write a minimal likelihood model: one channel, the signal strength ``mu``, and simulation statistics.

    ``mu`` scales every signal process. Each bin has two parameters for the statistical uncertainty of the simulation
    (``staterror``, Barlow-Beeston in the "lite" form), one for the sum of the signals and one for the sum of the
    backgrounds: pyhf makes them relative to the sum of what shares them, and relative to signal plus background the
    background of a bin rich in signal would be far too certain at mu = 0.

    Bins join their neighbours, from the high-score side, until each holds enough simulated background, by the rule of
    `merge_bins` that the significance follows too; where no bin does, one bin holds all. A likelihood takes no negative
    expectations: a process's negative bins are set to zero, keeping their uncertainty; how much that adds stands in
    `Workspace.clipped`.

    Args:
        histograms: One per process, all with the same edges, normalised to luminosity.
        signals: Names of the signal processes, some but not all of the histograms.
        data: Collision data; None for Asimov data, the sum of all processes as they enter the model.
        measurement: Name of the measurement.
        luminosity_uncertainty: Relative uncertainty of the luminosity, common to all processes; None for none.

    Raises:
        ValueError: Edges that differ, signals that are no histograms or are all of them, a luminosity uncertainty
            outside (0, 0.2), or a background without a positive sum.
    """
    _check_processes(histograms, signals, data, luminosity_uncertainty)
    backgrounds = [h for name, h in histograms.items() if name not in signals]
    values = np.sum([h.values for h in backgrounds], axis=0)
    if not values.sum() > 0:
        raise ValueError("the weights of all backgrounds together do not have a positive sum: no likelihood without")
    bounds = merge_bins(values, np.sum([h.variances for h in backgrounds], axis=0))
    if not len(bounds):
        bounds = np.array([0, len(values)], dtype=np.intp)

    samples = []
    clipped = {}
    expected = np.zeros(len(bounds) - 1)
    for name, histogram in histograms.items():
        template = histogram.merged(bounds)
        values = np.maximum(template.values, 0.0)
        expected += values
        if (template.values < 0).any():
            clipped[name] = float((values - template.values).sum())
        errors = np.sqrt(template.variances).tolist()
        group = "signal" if name in signals else "background"
        modifiers: list[dict[str, Any]] = [{"name": f"staterror_{group}", "type": "staterror", "data": errors}]
        if name in signals:
            modifiers.append({"name": "mu", "type": "normfactor", "data": None})
        if luminosity_uncertainty is not None:
            modifiers.append({"name": "lumi", "type": "lumi", "data": None})
        samples.append({"name": name, "data": values.tolist(), "modifiers": modifiers})

    observed = expected if data is None else data.merged(bounds).values
    spec = {
        "channels": [{"name": "score", "samples": samples}],
        "observations": [{"name": "score", "data": observed.tolist()}],
        "measurements": [
            {"name": measurement, "config": {"poi": "mu", "parameters": _luminosity(luminosity_uncertainty)}}
        ],
        "version": "1.0.0",
    }
    return Workspace(spec, tuple(backgrounds[0].edges[bounds].tolist()), clipped)


def _check_processes(
    histograms: Mapping[str, Histogram],
    signals: Collection[str],
    data: Histogram | None,
    luminosity_uncertainty: float | None,
) -> None:
    missing = sorted(set(signals) - set(histograms))
    if missing or not signals or set(signals) == set(histograms):
        raise ValueError(
            f"signals {sorted(signals)} among the processes {list(histograms)}: "
            "at least one of each, signal and background, is needed"
        )
    templates = list(histograms.values()) + ([data] if data is not None else [])
    if any(not np.array_equal(h.edges, templates[0].edges) for h in templates):
        raise ValueError("the histograms of processes and data have different edges")
    if luminosity_uncertainty is not None and not 0 < luminosity_uncertainty < 0.2:
        raise ValueError(f"a relative luminosity uncertainty of {luminosity_uncertainty}; expected between 0 and 0.2")


def _luminosity(uncertainty: float | None) -> list[dict[str, Any]]:
    if uncertainty is None:
        return []
    return [
        {
            "name": "lumi",
            "auxdata": [1.0],
            "sigmas": [uncertainty],
            "bounds": [[1 - 5 * uncertainty, 1 + 5 * uncertainty]],
            "inits": [1.0],
        }
    ]


def _bins(score: Scores, edges: FloatArray) -> IndexArray:
    """Return the bin of each score: [e_i, e_i+1), the last one closed."""
    _check_edges(edges)
    outside = np.count_nonzero(~((score >= edges[0]) & (score <= edges[-1])))
    if outside:
        raise ValueError(f"{outside} of {len(score)} scores are NaN or outside the bins from {edges[0]} to {edges[-1]}")
    return np.asarray(np.searchsorted(edges[1:-1], score, side="right"), dtype=np.intp)


def _check_edges(edges: FloatArray) -> None:
    if edges.ndim != 1 or len(edges) < 2 or not (np.diff(edges) > 0).all():
        raise ValueError(f"edges must be at least two rising numbers, found {edges.tolist()}")


def _combined(s: FloatArray, b: FloatArray, variance: FloatArray) -> FloatArray:
    """Combine bins [R, B] into [R]; NaN in replicas with a bin without background."""
    defined = (b > 0).all(axis=1)
    result = np.full(len(s), np.nan)
    result[defined] = np.sqrt(_squared_significance(s[defined], b[defined], variance[defined]).sum(axis=1))
    return result


def _with_interval(value: float, blocks: list[FloatArray]) -> Estimate:
    return estimate(value, np.concatenate(blocks)) if blocks else Estimate(value, None, None, "no bootstrap")


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
