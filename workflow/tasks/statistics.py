"""WriteStatistics: histograms of scores, and what a fit needs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from analysis.config import Configuration
from analysis.errors import UserError
from workflow.base import Given, Task
from workflow.store import write_json
from workflow.tasks.evaluate import ScoredSlice, load_scored, require_scored, require_varied, varied_only
from workflow.tasks.tables import load_totals
from workflow.tasks.variations import load_declared, load_sums, require_sums

if TYPE_CHECKING:
    from analysis.evaluation import Filled
    from analysis.histograms import Histogram
    from analysis.likelihood import Channel, Likelihood, Nuisance
    from analysis.metrics import FloatArray
    from analysis.variations import Treatment, Variation
    from analysis.weights import Totals


@dataclass(frozen=True)
class VariationSlice:
    """One systematic uncertainty of templates: what stands for up and perhaps down, and what is done to it.

    Attributes:
        kind: Other weights, shifted events, or another simulation.
        names: Functions or processes, up and perhaps down.
        parameters: By category ("" for all events), the parameters and what each of them varies.
        keeps_norm: Whether the yields before any selection are those of the events as they are.
        treatment: What is done to the templates.
    """

    kind: Literal["weight", "shift", "sample"]
    names: tuple[str, ...]
    parameters: dict[str, dict[str, tuple[str, ...]]]
    keeps_norm: bool
    treatment: Treatment

    @property
    def processes(self) -> tuple[str, ...]:
        """What it varies."""
        return tuple(process for own in self.parameters[""].values() for process in own)


@dataclass(frozen=True)
class StatisticsSlice:
    """Which histograms are filled, what is uncertain about them, and whether data may be seen.

    Attributes:
        channels: Of the likelihood, and the category that each holds; "" for all events.
        nuisances: Uncertainties of yields, by category.
        others: How events are read that functions shift, and those of processes that stand for others.
    """

    scored: ScoredSlice
    kind: Literal["ensemble", "routed"]
    bins: int
    signals: tuple[str, ...]
    channels: dict[str, str]
    nuisances: dict[str, tuple[Nuisance, ...]]
    variations: tuple[VariationSlice, ...]
    others: dict[str, ScoredSlice]
    blinded: bool


STATISTICS = ("histograms.json", "histograms.root", "workspace.json", "datacard.txt")
"""Outputs that a user finds by these names."""


class WriteStatistics(Task[StatisticsSlice]):
    """Histograms of scores per process, class and category, and the likelihood model for pyhf and Combine."""

    exclude_index = False
    libraries = ("numpy", "scipy", "pyhf", "cabinetry")

    def requires(self) -> Any:
        return {
            **require_scored(self, ("factors", "variations")),
            **require_sums(self),
            **require_varied(self),
        }

    def slice(self, config: Configuration) -> StatisticsSlice:
        from analysis.likelihood import WHOLE

        channels = {name: name for name in config.outputs.channels} or {WHOLE: ""}
        return StatisticsSlice(
            scored=ScoredSlice.of(config, (), tuple(config.weight_variations)),
            kind=config.outputs.templates,
            bins=config.outputs.histogram.bins,
            signals=config.classes.processes[config.classes.signal],
            channels=channels,
            nuisances={category: nuisances(config, category) for category in channels.values()},
            variations=variations(config),
            others={
                **{name: ScoredSlice.of(config, (), processes=own) for name, own in config.shifts.items()},
                **{name: ScoredSlice.of(config, (), processes=(name,)) for name in config.alternatives},
            },
            blinded=config.outputs.blind_above is not None,
        )

    def files(self) -> Sequence[str]:
        return (*STATISTICS, "expectation.json", "systematics.json")

    @staticmethod
    def compute(settings: StatisticsSlice, given: Given, out: Path) -> None:
        from analysis.evaluation import Filled
        from analysis.expected import expectation
        from analysis.histograms import write_histograms
        from analysis.likelihood import Likelihood

        s, scores = settings, settings.scored.scores
        events, scales = load_scored(given.made, s.scored)
        filled = Filled(events, scales, scores, s.kind, with_data=not s.blinded and bool(scores.collision))
        histograms = filled.folders(s.bins)
        drafts = [Draft.of(name, category, filled, s) for name, category in s.channels.items()]
        totals = cache(partial(load_totals, given.made, s.scored.sums))  # read once, if a variation asks
        for variation in s.variations:  # one after the other: shifted events are as many as the others
            sides = sides_of(filled, variation, s, given.made, totals)
            for draft in drafts:
                draft.vary(variation, sides)
            folders = [side.folders(s.bins, filled.categories) for side in sides]
            for name, nominal in histograms.items():
                category = name.rpartition("/")[0]
                nominal.update(varied_by(variation, category, [own[name] for own in folders], nominal).named())
        model = Likelihood(tuple(draft.channel(s) for draft in drafts))
        histograms |= model.histograms()
        write_histograms(out / "histograms.root", histograms)
        write_json(
            out / "histograms.json",
            {
                "score": f"score_{scores.signal}_{s.kind}",
                "observed": "Asimov" if drafts[0].data is None else "data",
                "clipped": {channel.name: channel.clipped for channel in model.channels},
                "histograms": {
                    folder: {name: histogram.to_json() for name, histogram in named.items()}
                    for folder, named in histograms.items()
                },
            },
        )
        write_json(out / "workspace.json", model.workspace())
        (out / "datacard.txt").write_text(model.datacard("histograms.root"))
        write_json(out / "expectation.json", expectation(model.workspace()))
        write_json(out / "systematics.json", systematics(model, s))


@dataclass(frozen=True, eq=False)
class Draft:
    """A channel of the likelihood in the making: histograms in its bins, and what varies them so far."""

    name: str
    category: str
    edges: FloatArray
    templates: dict[str, Histogram]
    data: Histogram | None
    varied: list[Variation]

    @staticmethod
    def of(name: str, category: str, filled: Filled, settings: StatisticsSlice) -> Draft:
        """The channel without variations."""
        edges = filled.bins(settings.bins, category or None)
        templates, data = filled.histograms(settings.scored.scores.signal, edges, category or None)
        return Draft(name, category, edges, templates, data, [])

    def vary(self, variation: VariationSlice, sides: Sequence[Filled]) -> None:
        """Add a variation, of which one or two sides are given."""
        signal = sides[0].settings.signal
        found = [side.histograms(signal, self.edges, self.category or None)[0] for side in sides]
        self.varied.append(varied_by(variation, self.category, found, self.templates))

    def channel(self, settings: StatisticsSlice) -> Channel:
        """The channel; a process without test events has no template, and the report says so."""
        from analysis.likelihood import Channel

        known = [
            replace(nuisance, processes=tuple(p for p in nuisance.processes if p in self.templates))
            for nuisance in settings.nuisances[self.category]
        ]
        signals = [name for name in settings.signals if name in self.templates]
        return Channel.of(self.name, self.templates, signals, self.data, [*known, *self.varied])


def systematics(model: Likelihood, settings: StatisticsSlice) -> dict[str, Any]:
    """The kind of each parameter, and its effect on each process of each channel; none where all is pruned."""
    kinds: dict[str, str] = {
        name: variation.kind
        for variation in settings.variations
        for category in settings.channels.values()
        for name in variation.parameters[category]
    }
    kinds |= {nuisance.name: "norm" for own in settings.nuisances.values() for nuisance in own}
    found = model.effects()
    return {name: {"kind": kind, "effects": found.get(name, {})} for name, kind in kinds.items()}


def sides_of(
    filled: Filled,
    variation: VariationSlice,
    settings: StatisticsSlice,
    made: Mapping[str, Any],
    totals: Callable[[], Mapping[str, Totals]],
) -> list[Filled]:
    """What histograms are filled with for a variation: up, and down unless that is the mirror image."""
    if variation.kind == "weight":
        sides = []
        for name in variation.names:
            declared = load_declared(made, name, settings.scored.sums.owners)
            generated = {process: (totals()[process].generated, varied) for process, varied in declared.items()}
            sums, keeps_norm = load_sums(made, name), variation.keeps_norm
            sides.append(filled.weighted(name, sums, variation.processes, keeps_norm=keeps_norm, generated=generated))
        return sides
    found = []
    for name in variation.names:
        own = varied_only(made, name)
        events, scales = load_scored(own, settings.others[name])
        side = replace(filled, events=events, scales=scales, with_data=False)
        if variation.kind == "sample":
            (process,) = variation.processes
            if not len(events.table):
                raise UserError(
                    f"Process {name!r}, which stands for {process!r} in outputs.nuisances, has no selected event. "
                    "Correct its files or the cuts, or leave the nuisance out."
                )
            factor = 1.0
            if variation.keeps_norm:
                theirs = load_totals(own, settings.others[name].sums)
                factor = yield_of(totals(), settings.scored, process) / yield_of(theirs, settings.others[name], name)
            side = side.standing_for(process, factor)
        found.append(side)
    return found


def yield_of(totals: Mapping[str, Totals], settings: ScoredSlice, process: str) -> float:
    """Expected events of a process before any selection.

    Raises:
        UserError: There are none.
    """
    from analysis.weights import Totals

    expected = settings.table.normalisations[process].total(process, totals.get(process, Totals()))
    if not expected > 0:
        raise UserError(
            f"Process {process!r}: its weights sum to {expected:g} before any selection, so that no other sample can "
            "be given its yield. Correct it, or declare the nuisance with changes_norm: true."
        )
    return expected


def varied_by(
    settings: VariationSlice, category: str, sides: Sequence[Mapping[str, Histogram]], nominal: Collection[str]
) -> Variation:
    """What a variation makes of some histograms.

    Args:
        settings: The variation.
        category: Whose events they are of; "" for all.
        sides: Histograms per process, up and perhaps down.
        nominal: Processes that have a histogram; others are left out.
    """
    from analysis.variations import Variation

    processes = [p for p in settings.processes if p in nominal]
    up, down = ({p: side[p] for p in processes if p in side} for side in (*sides, {})[:2])
    return Variation(settings.parameters[category], up, down, settings.treatment)


def variations(config: Configuration) -> tuple[VariationSlice, ...]:
    """The uncertainties that vary templates."""
    from analysis.variations import Treatment

    categories = ("", *config.selection.categories)
    # Parameters of categories that are no channel are those of all events.
    parameters = {c: config.parameters(c if c in config.outputs.channels else None) for c in categories}
    return tuple(
        VariationSlice(
            kind=nuisance.kind,
            names=nuisance.names,
            parameters={category: own[name] for category, own in parameters.items()},
            keeps_norm=not nuisance.changes_norm,
            treatment=Treatment(nuisance.symmetrise, nuisance.smooth, nuisance.prune),
        )
        for name, nuisance in config.outputs.nuisances.items()
        if nuisance.kind != "norm"
    )


def nuisances(config: Configuration, category: str) -> tuple[Nuisance, ...]:
    """The uncertainties of yields of a channel; one that names no processes is of all that are simulated."""
    from analysis.likelihood import Nuisance

    return tuple(
        Nuisance(parameter, *nuisance.factors, processes)
        for name, nuisance in config.outputs.nuisances.items()
        if nuisance.kind == "norm"
        for parameter, processes in config.parameters(category or None)[name].items()
    )
