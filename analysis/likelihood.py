"""The likelihood model of a binned score, as a workspace of pyhf and a datacard of Combine, and what it expects.

One channel, the signal strength `mu` on all signal processes, log-normal uncertainties of yields, systematic variations
of the templates, and the statistical uncertainty of the simulation in each bin. Definitions: docs/metrics.md.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.errors import UserError
from analysis.histograms import DATA, Histogram
from analysis.metrics import FloatArray
from analysis.statistics import asimov_significance, merge_bins
from analysis.variations import Variation, Varied, effects, same, settle, split

CHANNEL, STRENGTH = "score", "mu"
"""The channel, and the parameter of interest."""
FOLDER = "fit"
"""Where the templates are in the file of histograms."""
TINY = 1e-9
"""Background events of a bin that has none, where only the size of a significance matters."""
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
        varied: For each parameter that varies templates, those of each process that it varies.
        observed: Events per bin, float64 [B].
        asimov: Whether these are the sum of all templates, instead of data.
        clipped: Σw that setting negative bins to zero added, per process that had some (a positive number).
    """

    templates: Mapping[str, Histogram]
    signals: tuple[str, ...]
    nuisances: tuple[Nuisance, ...]
    varied: Mapping[str, Mapping[str, Varied]]
    observed: FloatArray
    asimov: bool
    clipped: Mapping[str, float]

    @staticmethod
    def of(
        histograms: Mapping[str, Histogram],
        signals: Collection[str],
        data: Histogram | None = None,
        nuisances: Sequence[Nuisance] = (),
        variations: Sequence[Variation] = (),
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
            variations: What varies the histograms, with the same edges.

        Raises:
            ValueError: Edges that differ, signals that are no histograms or are all of them, nuisances of something
                else.
            UserError: A background without a positive sum.
        """
        _check(histograms, signals, data, nuisances, variations)
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
        varied = {}
        for variation in variations:
            settled = settle(variation, histograms, bounds)
            for parameter, processes in variation.parameters.items():
                if own := {process: settled[process] for process in processes if process in settled}:
                    varied[parameter] = own
        expected: FloatArray = np.sum([template.values for template in templates.values()], axis=0)
        return Likelihood(
            templates=templates,
            signals=tuple(name for name in histograms if name in signals),
            nuisances=tuple(nuisances),
            varied=varied,
            observed=expected if data is None else data.merged(bounds).values,
            asimov=data is None,
            clipped=clipped,
        )

    @property
    def edges(self) -> FloatArray:
        """Edges of the bins, float64 [B + 1]: those of the histograms, less the ones that merging removed."""
        return next(iter(self.templates.values())).edges

    def histograms(self) -> dict[str, Histogram]:
        """What `datacard` refers to: the templates, as they are and varied, and the observed events."""
        counts = np.rint(self.observed).astype(np.int64)
        varied = {
            f"{process}_{parameter}{side}": histogram
            for parameter, own in self.varied.items()
            for process, sides in own.items()
            for side, histogram in (("Up", sides.up), ("Down", sides.down))
        }
        return {**self.templates, **varied, DATA: Histogram(self.edges, self.observed, self.observed, counts)}

    def effects(self) -> dict[str, dict[str, Any]]:
        """Relative effects of each parameter on each process that it varies: yield down and up, and shape."""
        norms = {
            n.name: {p: {"down": n.down - 1, "up": n.up - 1, "shape": None, "pruned": None} for p in n.processes}
            for n in self.nuisances
        }
        templates = self.templates
        shapes = {
            name: {process: effects(templates[process], sides) for process, sides in own.items()}
            for name, own in self.varied.items()
        }
        return {**norms, **shapes}

    def workspace(self) -> dict[str, Any]:
        """The model for pyhf, after its JSON schema, version 1.0.0.

        Each bin has two parameters for the statistical uncertainty of the simulation (``staterror``, Barlow-Beeston in
        the "lite" form), one for the sum of the signals and one for the sum of the backgrounds: pyhf makes them
        relative to the sum of what shares them, and relative to signal plus background the background of a bin rich in
        signal would be far too certain at mu = 0.

        A parameter that varies templates acts in two parts: on the yield by a factor (``normsys``), which stays above
        zero however far it is pulled, and on the shape (``histosys``).
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
            for parameter, own in self.varied.items():
                if name in own:
                    modifiers += _modifiers(parameter, template, own[name])
            samples.append({"name": name, "data": template.values.tolist(), "modifiers": modifiers})
        return {
            "channels": [{"name": CHANNEL, "samples": samples}],
            "observations": [{"name": CHANNEL, "data": self.observed.tolist()}],
            "measurements": [{"name": "measurement", "config": {"poi": STRENGTH, "parameters": [self._strength()]}}],
            "version": "1.0.0",
        }

    def _strength(self) -> dict[str, Any]:
        """The bounds of mu: from 0 to 200 standard deviations of statistical uncertainty, but 10 at least."""
        signal, background = (
            np.sum([t.values for name, t in self.templates.items() if (name in self.signals) is of_signal], axis=0)
            for of_signal in (True, False)
        )
        error = np.sqrt(np.sum([t.variances for name, t in self.templates.items() if name not in self.signals], axis=0))
        significance = asimov_significance(signal, np.maximum(background, TINY), error)
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
        uncertain += [
            (parameter, "shape", *("1" if name in own else "-" for name in names))
            for parameter, own in self.varied.items()
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


def _modifiers(parameter: str, nominal: Histogram, varied: Varied) -> list[dict[str, Any]]:
    """What a parameter does to one template, for pyhf: to its yield and to its shape, as far as either changes."""
    (low, down), (high, up) = (split(nominal.values, side.values) for side in (varied.down, varied.up))
    found: list[dict[str, Any]] = []
    if not np.allclose((low, high), 1.0, rtol=1e-9):
        found.append({"name": parameter, "type": "normsys", "data": {"hi": high, "lo": low}})
    if not (same(down, nominal.values) and same(up, nominal.values)):
        found.append(
            {"name": parameter, "type": "histosys", "data": {"hi_data": up.tolist(), "lo_data": down.tolist()}}
        )
    return found


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
    variations: Sequence[Variation],
) -> None:
    missing = sorted(set(signals) - set(histograms))
    if missing or not signals or set(signals) == set(histograms):
        raise ValueError(
            f"signals {sorted(signals)} among the processes {list(histograms)}: "
            "at least one of each, signal and background, is needed"
        )
    templates = list(histograms.values()) + ([data] if data is not None else [])
    templates += [histogram for variation in variations for histogram in variation.named().values()]
    if any(not np.array_equal(h.edges, templates[0].edges) for h in templates):
        raise ValueError("the histograms of processes and data have different edges")
    for nuisance in nuisances:
        if unknown := sorted(set(nuisance.processes) - set(histograms)):
            raise ValueError(
                f"nuisance {nuisance.name} of {unknown}, which are none of the processes {list(histograms)}"
            )
