"""The likelihood model of a binned score, as a workspace of pyhf and a datacard of Combine, and what it expects.

One channel, the signal strength `mu` on all signal processes, log-normal uncertainties of yields, and the statistical
uncertainty of the simulation in each bin. Definitions and sources: docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from analysis.errors import UserError
from analysis.histograms import DATA, Histogram
from analysis.metrics import FloatArray
from analysis.statistics import asimov_significance, merge_bins

CHANNEL, STRENGTH = "score", "mu"
"""The channel, and the parameter of interest."""
FOLDER = "fit"
"""Where the templates are in the file of histograms."""
LEVEL = 0.95
"""Confidence level of limits."""
TINY = 1e-9
"""Background events of a bin that has none, where only the size of a significance matters."""
BANDS = {"low_95": -2, "low_68": -1, "median": 0, "high_68": 1, "high_95": 2}
"""Quantiles of expected limits, in standard deviations."""
SPARSE = 10
"""Effective events of a bin up to which Combine gives each process an uncertainty of its own, of a Poisson form."""


@dataclass(frozen=True)
class Nuisance:
    """A log-normal uncertainty of yields, by one parameter for all processes that it names.

    Attributes:
        name: Of the parameter.
        down: Factor of the yields one standard deviation down.
        up: The same up.
        processes: What it scales.
    """

    name: str
    down: float
    up: float
    processes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Likelihood:
    """Templates, observed events and uncertainties of one channel.

    Attributes:
        templates: Expected events per process, all with the same edges; no bin is negative.
        signals: Which of them `mu` scales.
        nuisances: Uncertainties of yields.
        observed: Events per bin, float64 [B].
        asimov: Whether these are the sum of all templates, instead of data.
        clipped: Σw that setting negative bins to zero added, per process that had some (a positive number).
    """

    templates: Mapping[str, Histogram]
    signals: tuple[str, ...]
    nuisances: tuple[Nuisance, ...]
    observed: FloatArray
    asimov: bool
    clipped: Mapping[str, float]

    @staticmethod
    def of(
        histograms: Mapping[str, Histogram],
        signals: Collection[str],
        data: Histogram | None = None,
        nuisances: Sequence[Nuisance] = (),
    ) -> Likelihood:
        """Make histograms fit for a likelihood.

        Bins join their neighbours, from the high-score side, until each holds enough simulated background, by the rule
        of `merge_bins` that the significance follows too; where no bin does, one bin holds all. A likelihood takes no
        negative expectations: a process's negative bins are set to zero, keeping their uncertainty.

        Args:
            histograms: One per process, all with the same edges, normalised to luminosity.
            signals: Names of the signal processes, some but not all of the histograms.
            data: Collision data; None for Asimov data, the sum of all templates.
            nuisances: Uncertainties of yields, of processes among the histograms.

        Raises:
            ValueError: Edges that differ, signals that are no histograms or are all of them, nuisances of something
                else.
            UserError: A background without a positive sum.
        """
        _check(histograms, signals, data, nuisances)
        backgrounds = [h for name, h in histograms.items() if name not in signals]
        values = np.sum([h.values for h in backgrounds], axis=0)
        if not values.sum() > 0:
            names = ", ".join(name for name in histograms if name not in signals)
            raise UserError(
                f"Likelihood model: the weights of the backgrounds {names} sum to {values.sum():g} in all bins; a sum "
                "above 0 is needed. Use more events or looser cuts; outputs.templates: routed takes all events instead "
                "of the held-out ones."
            )
        bounds = merge_bins(values, np.sum([h.variances for h in backgrounds], axis=0))
        if not len(bounds):
            bounds = np.array([0, len(values)], dtype=np.intp)

        templates, clipped = {}, {}
        for name, histogram in histograms.items():
            merged = histogram.merged(bounds)
            kept = np.maximum(merged.values, 0.0)
            if (merged.values < 0).any():
                clipped[name] = float((kept - merged.values).sum())
            templates[name] = Histogram(merged.edges, kept, merged.variances, merged.entries)
        expected: FloatArray = np.sum([template.values for template in templates.values()], axis=0)
        return Likelihood(
            templates=templates,
            signals=tuple(name for name in histograms if name in signals),
            nuisances=tuple(nuisances),
            observed=expected if data is None else data.merged(bounds).values,
            asimov=data is None,
            clipped=clipped,
        )

    @property
    def edges(self) -> FloatArray:
        """Edges of the bins, float64 [B + 1]: those of the histograms, less the ones that merging removed."""
        return next(iter(self.templates.values())).edges

    def histograms(self) -> dict[str, Histogram]:
        """What `datacard` refers to: the templates, and the observed events."""
        counts = np.rint(self.observed).astype(np.int64)
        return {**self.templates, DATA: Histogram(self.edges, self.observed, self.observed, counts)}

    def workspace(self) -> dict[str, Any]:
        """The model for pyhf, after its JSON schema, version 1.0.0.

        Each bin has two parameters for the statistical uncertainty of the simulation (``staterror``, Barlow-Beeston in
        the "lite" form), one for the sum of the signals and one for the sum of the backgrounds: pyhf makes them
        relative to the sum of what shares them, and relative to signal plus background the background of a bin rich in
        signal would be far too certain at mu = 0.
        """
        samples = []
        for name, template in self.templates.items():
            group = "signal" if name in self.signals else "background"
            errors = np.sqrt(template.variances).tolist()
            modifiers: list[dict[str, Any]] = [{"name": f"staterror_{group}", "type": "staterror", "data": errors}]
            if name in self.signals:
                modifiers.append({"name": STRENGTH, "type": "normfactor", "data": None})
            modifiers += [
                {"name": nuisance.name, "type": "normsys", "data": {"hi": nuisance.up, "lo": nuisance.down}}
                for nuisance in self.nuisances
                if name in nuisance.processes
            ]
            samples.append({"name": name, "data": template.values.tolist(), "modifiers": modifiers})
        return {
            "channels": [{"name": CHANNEL, "samples": samples}],
            "observations": [{"name": CHANNEL, "data": self.observed.tolist()}],
            "measurements": [{"name": "measurement", "config": {"poi": STRENGTH, "parameters": [self._strength()]}}],
            "version": "1.0.0",
        }

    def _strength(self) -> dict[str, Any]:
        """The bounds of mu: from 0 to 200 standard deviations for a background known exactly, but 10 at least."""
        signal, background = (
            np.sum([t.values for name, t in self.templates.items() if (name in self.signals) is of_signal], axis=0)
            for of_signal in (True, False)
        )
        significance = asimov_significance(signal, np.maximum(background, TINY))
        largest = max(10.0, 200.0 / significance) if significance > 0 else 10.0
        return {"name": STRENGTH, "inits": [1.0], "bounds": [[0.0, largest]]}

    def datacard(self, shapes: str) -> str:
        """The model for Combine: the text of a datacard.

        The statistical uncertainty of the simulation in each bin is Combine's own, ``autoMCStats``: one parameter for
        the sum of all processes, or one for each of them where a bin holds no more than `SPARSE` effective events.

        Args:
            shapes: File and folder of `histograms`, as in ``"histograms.root fit"``.
        """
        backgrounds = [name for name in self.templates if name not in self.signals]
        names = [*self.signals, *backgrounds]  # whose numbers are zero or below, and above
        numbers = [*range(1 - len(self.signals), 1), *range(1, 1 + len(backgrounds))]
        rates = [f"{self.templates[name].values.sum():.10g}" for name in names]
        file, _, folder = shapes.partition(" ")
        rows = [
            ("bin", "", *[CHANNEL] * len(names)),
            ("process", "", *names),
            ("process", "", *map(str, numbers)),
            ("rate", "", *rates),
        ]
        uncertain = [
            (n.name, "lnN", *(_factors(n) if name in n.processes else "-" for name in names)) for n in self.nuisances
        ]
        widths = [max(map(len, column)) for column in zip(*rows, *uncertain, strict=True)]

        def aligned(cells: Sequence[str]) -> str:
            return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()

        rule = "-" * 40
        lines = [
            "imax 1  number of channels",
            f"jmax {len(names) - 1}  number of processes less one",
            "kmax *  number of nuisance parameters",
            rule,
            f"shapes * {CHANNEL} {file} {folder}/$PROCESS {folder}/$PROCESS_$SYSTEMATIC",
            rule,
            f"bin {CHANNEL}",
            f"observation {self.observed.sum():.10g}",
            rule,
            *map(aligned, rows),
            rule,
            *map(aligned, uncertain),
            f"{CHANNEL} autoMCStats {SPARSE}",
        ]
        return "\n".join(lines) + "\n"


def expectation(workspace: Mapping[str, Any]) -> dict[str, Any]:
    """What is expected of a measurement, by the asymptotic formulas of Cowan, Cranmer, Gross, Vitells, arXiv:1007.1727.

    With the profile likelihood ratios q of pyhf, on Asimov data: the significance Z = sqrt(q0) on data with mu = 1
    (eq. 53), and the upper limit on mu by CLs, whose quantile of N standard deviations under the background alone is
    the mu with sqrt(q_mu) = N + Φ⁻¹(1 − 0.05 Φ(N)) on data with mu = 0 (eq. 89, with CLs in place of CLs+b).

    Args:
        workspace: For pyhf, with the parameter of interest `mu`.

    Returns:
        ``significance``, and ``limit``: a value for each of `BANDS`, None where no signal strength is excluded; and a
        ``reason`` where there is no median limit. Where the signal expects no events, or a fit does not converge, both
        are None.
    """
    import pyhf

    # Not by way of pyhf.Workspace, which checks everything against its schema first.
    config = workspace["measurements"][0]["config"]
    spec = {"channels": workspace["channels"], "parameters": config["parameters"]}
    model = pyhf.Model(spec, validate=False, poi_name=config["poi"])
    signal, background = _asimov(model, 1.0), _asimov(model, 0.0)
    own = slice(0, model.config.nmaindata)
    rough = asimov_significance(np.maximum((signal - background)[own], 0.0), np.maximum(background[own], TINY))
    if not rough > 0:
        return {"significance": None, "limit": None, "reason": "the signal has no expected events"}
    try:
        found = _fitted(model, signal, background, rough)
        reason = None if found["limit"]["median"] else "within its uncertainties the model excludes no signal strength"
        return {**found, "reason": reason}
    except pyhf.exceptions.FailedMinimization:
        return {"significance": None, "limit": None, "reason": "a fit of the likelihood model does not converge"}


def _fitted(model: Any, signal: Any, background: Any, rough: float) -> dict[str, Any]:
    """Significance and limits from fits to Asimov data with and without signal; `rough` is about the significance."""
    from pyhf.infer.test_statistics import q0, qmu_tilde
    from scipy.stats import norm

    bounds = model.config.suggested_bounds()
    others = model.config.suggested_init(), bounds, model.config.suggested_fixed()

    @cache
    def root_of_q(strength: float) -> float:
        return _root(qmu_tilde(strength, background, model, *others))

    limits: dict[str, float | None] = {}
    for name, deviations in BANDS.items():
        target = deviations + norm.ppf(1 - (1 - LEVEL) * norm.cdf(deviations))
        # As if the root of q rose in proportion to mu, which it does as long as the signal's own uncertainty is small.
        limits[name] = _crossing(root_of_q, target, target / rough, bounds[model.config.poi_index][1] / 2)
    return {"significance": _root(q0(0.0, signal, model, *others)), "limit": limits}


def _root(q: Any) -> float:
    """The square root of a likelihood ratio, which rounding may bring below zero.

    Raises:
        pyhf.exceptions.FailedMinimization: It is not finite.
    """
    import pyhf
    from scipy.optimize import OptimizeResult

    if not np.isfinite(float(q)):
        raise pyhf.exceptions.FailedMinimization(OptimizeResult(message=f"the likelihood ratio is {float(q)}"))
    return float(np.sqrt(max(float(q), 0.0)))


def _crossing(rising: Callable[[float], float], target: float, start: float, largest: float) -> float | None:
    """Where a function that rises from 0 at 0 meets a target; None where it does not, up to twice the largest value."""
    from scipy.optimize import brentq

    below, above = 0.0, start
    while rising(above) < target:
        if above > largest:
            return None
        below, above = above, 2 * above
    return float(brentq(lambda value: (rising(value) if value else 0.0) - target, below, above, rtol=1e-3))


def _asimov(model: Any, strength: float) -> Any:
    """What the model expects with its nuisance parameters as they are, auxiliary data included."""
    parameters = list(model.config.suggested_init())
    parameters[model.config.poi_index] = strength
    return np.asarray(model.expected_data(parameters), dtype=np.float64)


def _factors(nuisance: Nuisance) -> str:
    """As Combine writes them: one number where down is its inverse."""
    if np.isclose(nuisance.down * nuisance.up, 1.0, rtol=1e-6):
        return f"{nuisance.up:.6g}"
    return f"{nuisance.down:.6g}/{nuisance.up:.6g}"


def _check(
    histograms: Mapping[str, Histogram],
    signals: Collection[str],
    data: Histogram | None,
    nuisances: Sequence[Nuisance],
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
    for nuisance in nuisances:
        if unknown := sorted(set(nuisance.processes) - set(histograms)):
            raise ValueError(
                f"nuisance {nuisance.name} of {unknown}, which are none of the processes {list(histograms)}"
            )
