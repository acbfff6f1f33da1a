"""A fit of the likelihood model as a page shows it: tables, and cabinetry's plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.fits import Fit, Fits, UnconvergedError
from analysis.histograms import Histogram
from analysis.metrics import FloatArray
from analysis.page import Table
from analysis.plots import Plot, figure_of

SHOWN = 25
"""Parameters in a plot: those with the largest impact."""
CORRELATED = 0.05
"""Smallest correlation with any other parameter for which one is drawn."""


@dataclass(frozen=True, eq=False)
class Impact:
    """What one parameter does to the signal strength when it is fixed one standard deviation away, and all else fitted.

    A change is NaN where such a fit finds no minimum, as where no signal is left.

    Attributes:
        place: The parameter.
        before: Changes of the strength for its uncertainty before the fit, down and up.
        after: The same for its uncertainty after the fit.
    """

    place: int
    before: tuple[float, float]
    after: tuple[float, float]

    @property
    def size(self) -> float:
        """The larger one after the fit; infinite where one is not known."""
        return max(map(abs, self.after)) if np.isfinite(self.after).all() else np.inf


def impacts(fits: Fits, data: FloatArray, best: Fit) -> list[Impact]:
    """Impacts of all systematic uncertainties, the largest first."""

    def change(place: int, distance: float) -> float:
        fixed = {place: best.parameters[place] + distance}
        try:
            return float(fits.fit(data, fixed=fixed).parameters[fits.poi] - best.parameters[fits.poi])
        except UnconvergedError:
            return np.nan

    found = [
        Impact(
            place,
            before=(change(place, -fits.width[place]), change(place, fits.width[place])),
            after=(change(place, -best.uncertainties[place]), change(place, best.uncertainties[place])),
        )
        for place in fits.nuisances
    ]
    return sorted(found, key=lambda impact: -impact.size)


def described(fits: Fits, best: Fit, found: list[Impact]) -> dict[str, Any]:
    """The fit as JSON."""
    return {
        "strength": float(best.parameters[fits.poi]),
        "uncertainty": float(best.uncertainties[fits.poi]),
        "deviance": best.deviance,
        "bins": fits.events,
        "parameters": {
            name: {"value": float(value), "uncertainty": float(error)}
            for name, value, error in zip(fits.names, best.parameters, best.uncertainties, strict=True)
        },
        "impacts": {
            fits.names[impact.place]: {kind: _finite(getattr(impact, kind)) for kind in ("before", "after")}
            for impact in found
        },
        "correlation": {"names": list(fits.names), "values": best.correlation.tolist()},
    }


def _finite(values: Sequence[float]) -> list[float | None]:
    return [value if np.isfinite(value) else None for value in values]


def tables(described: Mapping[str, Any]) -> list[Table]:
    """The signal strength, and the parameters in order of their impact."""
    strength = [["mu", f"{described['strength']:.4g}", f"{described['uncertainty']:.3g}"]]
    rows = []
    for name, impact in described["impacts"].items():
        own = described["parameters"][name]
        pull, constraint = f"{own['value']:+.2f}".replace("-", "−"), f"{own['uncertainty']:.2f}"
        changes = ["–" if value is None else f"{value:+.3g}".replace("-", "−") for value in impact["after"]]
        rows.append([name, pull, constraint, *changes])
    found = [Table("Signal strength", ["", "best fit", "uncertainty"], strength)]
    if rows:
        headings = ["parameter", "pull", "constraint", "impact on mu, down", "up"]
        found.append(Table("Systematic uncertainties, the largest impact first", headings, rows))
    return found


def nuisance_plots(fits: Fits, best: Fit, found: list[Impact]) -> list[Plot]:
    """Pulls and impacts of systematic uncertainties, and correlations of all parameters, as cabinetry draws them."""
    from cabinetry import visualize
    from cabinetry.fit.results_containers import FitResults, RankingResults

    shown = [impact for impact in found if np.isfinite([*impact.before, *impact.after]).all()][:SHOWN]
    names, chosen = np.array(fits.names), [impact.place for impact in shown]
    results = FitResults(best.parameters, best.uncertainties, list(fits.names), best.correlation, best.deviance)
    plots = []
    if chosen:
        ranking = RankingResults(
            best.parameters[chosen],
            best.uncertainties[chosen],
            names[chosen].tolist(),
            *(np.array([getattr(i, kind)[side] for i in shown]) for kind in ("before", "after") for side in (1, 0)),
        )
        left_out = sorted(set(names) - {fits.names[impact.place] for impact in found[:SHOWN]})
        plots += [
            Plot(
                "impacts",
                "performance",
                "Pulls, and impacts on the signal strength",
                "How far the fit moves each systematic uncertainty, in standard deviations of what constrains it "
                "(points, lower axis), and how much the signal strength changes when it is fixed one standard "
                "deviation away (bars, upper axis): empty with its uncertainty before the fit, filled after it.",
                visualize.ranking(ranking, save_figure=False),
                {fits.names[i.place]: {"before": list(i.before), "after": list(i.after)} for i in shown},
            ),
            Plot(
                "pulls",
                "performance",
                "Pulls",
                "Best fit and uncertainty of each systematic uncertainty, in standard deviations of what constrains "
                "it: an uncertainty below one says that these data know better.",
                visualize.pulls(results, exclude=left_out, save_figure=False),
                {
                    fits.names[i.place]: [float(best.parameters[i.place]), float(best.uncertainties[i.place])]
                    for i in found[:SHOWN]
                },
            ),
        ]
    near = np.abs(best.correlation) - np.eye(len(names)) > CORRELATED
    if near.any():
        plots.append(
            Plot(
                "correlations",
                "performance",
                "Correlations",
                f"Correlations of the parameters in the fit; those below {CORRELATED} with all others are left out.",
                visualize.correlation_matrix(results, pruning_threshold=CORRELATED, save_figure=False),
                {"names": names.tolist(), "values": best.correlation.tolist()},
            )
        )
    return plots


def template_plots(
    channel: str, templates: Mapping[str, Histogram], processes: Mapping[str, bool], parameters: Sequence[str]
) -> list[Plot]:
    """How much each parameter changes the templates of signal and background of a channel, bin by bin.

    Args:
        channel: Its name.
        templates: Of the likelihood, with ``<process>_<parameter>Up`` and ``…Down`` beside them.
        processes: Those that have a template, and whether each is signal.
        parameters: Those to draw; one that varies no template is left out.
    """
    plots = []
    for parameter in parameters:
        varied = [p for p in processes if f"{p}_{parameter}Up" in templates]
        if not varied:
            continue
        numbers: dict[str, Any] = {"edges": templates[varied[0]].edges.tolist()}
        with figure_of((4.3, 2.9), margins=(0.68, 0.47, 0.12, 0.12)) as (figure, ax):
            ax.axhline(0, color="#717581", linewidth=0.8)
            for name, color in _PARTS.items():
                everything = [p for p, is_signal in processes.items() if is_signal == (name == "signal")]
                if not set(everything) & set(varied):
                    continue
                nominal = np.sum([templates[p].values for p in everything], axis=0)
                error = np.sqrt(np.sum([templates[p].variances for p in everything], axis=0))
                band = _share(error, nominal)
                edges = templates[everything[0]].edges
                ax.stairs(band, edges, baseline=-band, fill=True, color=color, alpha=0.12, linewidth=0)
                numbers[name] = {"statistical": band.tolist()}
                for side, dashes in (("Up", "-"), ("Down", "--")):
                    own = np.sum(
                        [templates.get(f"{p}_{parameter}{side}", templates[p]).values for p in everything], axis=0
                    )
                    change = _share(own - nominal, nominal)
                    numbers[name][side.lower()] = change.tolist()
                    ax.stairs(
                        change,
                        edges,
                        baseline=None,
                        color=color,
                        linestyle=dashes,
                        linewidth=1.3,
                        label=f"{name}, {side.lower()}",
                    )
            ax.set_xlim(0, 1)
            ax.set_xlabel("signal score")
            ax.set_ylabel("relative change")
            largest = max(abs(value) for part in _PARTS for own in numbers.get(part, {}).values() for value in own)
            ax.set_ylim(-1.15 * largest, 1.6 * largest)
            ax.legend(ncols=2, fontsize=7)
        plots.append(
            Plot(
                f"variation_{channel}-{parameter}",
                "performance",
                f"{parameter}, channel {channel}",
                f"What {parameter} changes in the templates of channel {channel}, one standard deviation up and "
                "down; bands are the statistical uncertainty of the simulation.",
                figure,
                numbers,
            )
        )
    return plots


_PARTS = {"background": "#5790fc", "signal": "#e42536"}


def _share(part: FloatArray, whole: FloatArray) -> FloatArray:
    return np.divide(part, whole, out=np.zeros_like(whole), where=whole > 0)
