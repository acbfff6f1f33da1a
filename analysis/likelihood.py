"""The likelihood model of a binned score, as a workspace of pyhf and a datacard of Combine.

One channel or one per category, the signal strength `mu` on all signal processes, log-normal uncertainties of yields,
systematic variations of the templates, and the statistical uncertainty of the simulation in each bin. Definitions:
docs/metrics.md.
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

STRENGTH = "mu"
"""The parameter of interest."""
WHOLE = "score"
"""What the channel is called where a single one holds all events."""
FOLDER = "fit"
"""Where the templates are in the file of histograms, in a folder for each channel."""
STATISTICAL = "staterror_"
"""What names of the parameters of simulation's statistical uncertainties begin with."""
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
class Channel:
    """Templates, observed events and uncertainties of one channel.

    Attributes:
        name: Of the channel.
        templates: Expected events per process, all with the same edges; no bin is negative.
        signals: Which of them `mu` scales.
        nuisances: Uncertainties of yields.
        varied: For each parameter that varies templates, those of each process that it varies.
        observed: Events per bin, float64 [B].
        asimov: Whether these are the sum of all templates, instead of data.
        clipped: Σw that setting negative bins to zero added, per process that had some (a positive number).
    """

    name: str
    templates: Mapping[str, Histogram]
    signals: tuple[str, ...]
    nuisances: tuple[Nuisance, ...]
    varied: Mapping[str, Mapping[str, Varied]]
    observed: FloatArray
    asimov: bool
    clipped: Mapping[str, float]

    @staticmethod
    def of(
        name: str,
        histograms: Mapping[str, Histogram],
        signals: Collection[str],
        data: Histogram | None = None,
        uncertainties: Sequence[Nuisance | Variation] = (),
    ) -> Channel:
        """Make histograms fit for a likelihood.

        Bins join their neighbours, from the high-score side, until each holds enough simulated background, by the rule
        of `merge_bins` that the significance follows too; where no bin does, one bin holds all. A likelihood takes no
        negative expectations: a process's negative bins are set to zero, keeping their uncertainty.

        Args:
            name: Of the channel.
            histograms: One per process, all with the same edges, normalised to luminosity.
            signals: Names of the signal processes, some but not all of the histograms.
            data: Collision data; None for Asimov data, the sum of all templates.
            uncertainties: Of yields, of processes among the histograms; and what varies these, with the same edges.

        Raises:
            ValueError: Edges that differ, signals that are no histograms or are all of them, nuisances of something
                else.
            UserError: A background without a positive sum.
        """
        nuisances = tuple(each for each in uncertainties if isinstance(each, Nuisance))
        variations = [each for each in uncertainties if isinstance(each, Variation)]
        _check(histograms, signals, data, nuisances, variations)
        backgrounds = [h for process, h in histograms.items() if process not in signals]
        values = np.sum([h.values for h in backgrounds], axis=0)
        if not values.sum() > 0:
            names = ", ".join(process for process in histograms if process not in signals)
            raise UserError(
                f"Likelihood model, channel {name}: the weights of the backgrounds {names} sum to {values.sum():g} in "
                "all bins; a sum above 0 is needed. Use more events or looser cuts; outputs.templates: routed takes "
                "all events instead of the held-out ones."
            )
        bounds = merge_bins(values, np.sum([h.variances for h in backgrounds], axis=0))
        if not len(bounds):
            bounds = np.array([0, len(values)], dtype=np.intp)

        templates, clipped = {}, {}
        for process, histogram in histograms.items():
            merged = histogram.merged(bounds)
            kept = np.maximum(merged.values, 0.0)
            if (merged.values < 0).any():
                clipped[process] = float((kept - merged.values).sum())
            templates[process] = Histogram(merged.edges, kept, merged.variances, merged.entries)
        varied = {}
        for variation in variations:
            settled = settle(variation, histograms, bounds)
            for parameter, processes in variation.parameters.items():
                if own := {process: settled[process] for process in processes if process in settled}:
                    varied[parameter] = own
        expected: FloatArray = np.sum([template.values for template in templates.values()], axis=0)
        return Channel(
            name=name,
            templates=templates,
            signals=tuple(process for process in histograms if process in signals),
            nuisances=nuisances,
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
        """What a datacard refers to: the templates, as they are and varied, and the observed events."""
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

    def sum_of(self, *, signals: bool) -> tuple[FloatArray, FloatArray]:
        """Expected events of all signals or of all backgrounds, and their variances, float64 [B] each."""
        own = [template for name, template in self.templates.items() if (name in self.signals) is signals]
        values: FloatArray = np.sum([template.values for template in own], axis=0)
        variances: FloatArray = np.sum([template.variances for template in own], axis=0)
        return values, variances

    def samples(self) -> list[dict[str, Any]]:
        """The templates with what acts on them, for pyhf."""
        samples = []
        for name, template in self.templates.items():
            group = "signal" if name in self.signals else "background"
            errors = np.sqrt(template.variances).tolist()
            own = f"{STATISTICAL}{group}_{self.name}"
            modifiers: list[dict[str, Any]] = [{"name": own, "type": "staterror", "data": errors}]
            if name in self.signals:
                modifiers.append({"name": STRENGTH, "type": "normfactor", "data": None})
            modifiers += [
                {"name": nuisance.name, "type": "normsys", "data": {"hi": nuisance.up, "lo": nuisance.down}}
                for nuisance in self.nuisances
                if name in nuisance.processes
            ]
            for parameter, varied in self.varied.items():
                if name in varied:
                    modifiers += _modifiers(parameter, template, varied[name])
            samples.append({"name": name, "data": template.values.tolist(), "modifiers": modifiers})
        return samples

    def uncertainties(self) -> dict[tuple[str, str], dict[str, str]]:
        """What a datacard says of each parameter, by its name and kind: the entries of the processes it varies."""
        lines = {(n.name, "lnN"): dict.fromkeys(n.processes, _factors(n)) for n in self.nuisances}
        return lines | {(name, "shape"): dict.fromkeys(own, "1") for name, own in self.varied.items()}


@dataclass(frozen=True)
class Likelihood:
    """The model of all channels: parameters of one name are one parameter.

    Attributes:
        channels: At least one, each of a name of its own.
    """

    channels: tuple[Channel, ...]

    def histograms(self) -> dict[str, dict[str, Histogram]]:
        """What `datacard` refers to, by folder."""
        return {f"{FOLDER}/{channel.name}": channel.histograms() for channel in self.channels}

    def effects(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Relative effects of each parameter in each channel, on each process that it varies there."""
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for channel in self.channels:
            for parameter, own in channel.effects().items():
                found.setdefault(parameter, {})[channel.name] = own
        return found

    def workspace(self) -> dict[str, Any]:
        """The model for pyhf, after its JSON schema, version 1.0.0.

        Each bin has two parameters for the statistical uncertainty of the simulation (``staterror``, Barlow-Beeston in
        the "lite" form), one for the sum of the signals and one for the sum of the backgrounds: pyhf makes them
        relative to the sum of what shares them, and relative to signal plus background the background of a bin rich in
        signal would be far too certain at mu = 0.

        A parameter that varies templates acts in two parts: on the yield by a factor (``normsys``), which stays above
        zero however far it is pulled, and on the shape (``histosys``).
        """
        channels = self.channels
        return {
            "channels": [{"name": channel.name, "samples": channel.samples()} for channel in channels],
            "observations": [{"name": channel.name, "data": channel.observed.tolist()} for channel in channels],
            "measurements": [{"name": "measurement", "config": {"poi": STRENGTH, "parameters": [self._strength()]}}],
            "version": "1.0.0",
        }

    def _strength(self) -> dict[str, Any]:
        """The bounds of mu: from 0 to 200 standard deviations of statistical uncertainty, but 10 at least."""
        signal, background, variances = (
            np.concatenate([channel.sum_of(signals=of_signals)[which] for channel in self.channels])
            for of_signals, which in ((True, 0), (False, 0), (False, 1))
        )
        significance = asimov_significance(signal, np.maximum(background, TINY), np.sqrt(variances))
        largest = max(10.0, 200.0 / significance) if significance > 0 else 10.0
        return {"name": STRENGTH, "inits": [1.0], "bounds": [[0.0, largest]]}

    def datacard(self, file: str) -> str:
        """The model for Combine: the text of a datacard.

        The statistical uncertainty of the simulation in each bin is Combine's own, ``autoMCStats``: one parameter for
        the sum of all processes, or one for each of them where a bin holds no more than `SPARSE` effective events.

        Args:
            file: The file with `histograms`.
        """
        everything = dict.fromkeys(name for channel in self.channels for name in channel.templates)
        signals = dict.fromkeys(name for channel in self.channels for name in channel.signals)
        ordered = [*signals, *(name for name in everything if name not in signals)]
        numbers = {name: position + 1 - len(signals) for position, name in enumerate(ordered)}  # of signals <= 0
        columns = [(channel, name) for channel in self.channels for name in ordered if name in channel.templates]
        rows = [
            ("bin", "", *(channel.name for channel, _ in columns)),
            ("process", "", *(name for _, name in columns)),
            ("process", "", *(str(numbers[name]) for _, name in columns)),
            ("rate", "", *(f"{channel.templates[name].values.sum():.10g}" for channel, name in columns)),
        ]
        lines = {channel.name: channel.uncertainties() for channel in self.channels}
        uncertain = [
            (*key, *(lines[channel.name].get(key, {}).get(name, "-") for channel, name in columns))
            for key in dict.fromkeys(key for own in lines.values() for key in own)
        ]
        observed = [
            ("bin", *lines),
            ("observation", *(f"{channel.observed.sum():.10g}" for channel in self.channels)),
        ]
        rule = "-" * 40
        return "\n".join(
            [
                f"imax {len(self.channels)}  number of channels",
                f"jmax {len(ordered) - 1}  number of processes less one",
                "kmax *  number of nuisance parameters",
                rule,
                f"shapes * * {file} {FOLDER}/$CHANNEL/$PROCESS {FOLDER}/$CHANNEL/$PROCESS_$SYSTEMATIC",
                rule,
                *_aligned(observed),
                rule,
                *_aligned([*rows, *uncertain], rule_after=len(rows)),
                *(f"{name} autoMCStats {SPARSE}" for name in lines),
                "",
            ]
        )


def _aligned(rows: Sequence[Sequence[str]], rule_after: int | None = None) -> list[str]:
    """Rows of a table as lines with columns of equal width, a rule among them after some rows."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return lines if rule_after is None else [*lines[:rule_after], "-" * 40, *lines[rule_after:]]


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
