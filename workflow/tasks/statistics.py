"""WriteStatistics: histograms of scores, and what a fit needs."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from analysis.config import Configuration
from workflow.base import Given, Task
from workflow.store import write_json
from workflow.tasks.evaluate import ScoredSlice, load_scored, require_scored, require_shifted, shifted
from workflow.tasks.variations import load_sums, require_sums

if TYPE_CHECKING:
    from analysis.evaluation import Filled
    from analysis.histograms import Histogram
    from analysis.likelihood import Likelihood, Nuisance
    from analysis.variations import Treatment, Variation


@dataclass(frozen=True)
class VariationSlice:
    """One systematic uncertainty of templates: functions up and perhaps down, parameters, and what is done to it."""

    name: str
    kind: Literal["weight", "shift"]
    functions: tuple[str, ...]
    parameters: dict[str, tuple[str, ...]]
    keeps_norm: bool
    treatment: Treatment


@dataclass(frozen=True)
class StatisticsSlice:
    """Which histograms are filled, what is uncertain about them, and whether data may be seen."""

    scored: ScoredSlice
    kind: Literal["ensemble", "routed"]
    bins: int
    signals: tuple[str, ...]
    nuisances: tuple[Nuisance, ...]
    variations: tuple[VariationSlice, ...]
    shifted: dict[str, ScoredSlice]
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
            **require_shifted(self),
        }

    def slice(self, config: Configuration) -> StatisticsSlice:
        return StatisticsSlice(
            scored=ScoredSlice.of(config, (), tuple(config.weight_variations)),
            kind=config.outputs.templates,
            bins=config.outputs.histogram.bins,
            signals=config.classes.processes[config.classes.signal],
            nuisances=nuisances(config),
            variations=variations(config),
            shifted={
                shift: ScoredSlice.of(config, (), processes=processes) for shift, processes in config.shifts.items()
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
        from analysis.likelihood import FOLDER, Likelihood

        s, scores = settings, settings.scored.scores
        events, scales = load_scored(given.made, s.scored)
        filled = Filled(events, scales, scores, s.kind, with_data=not s.blinded and bool(scores.collision))
        edges = filled.bins(s.bins)
        templates, data = filled.histograms(scores.signal, edges)
        histograms, varied = filled.folders(s.bins), []
        for v in s.variations:  # one after the other: shifted events are as many as the others
            sides = sides_of(filled, v, s, given.made)
            varied.append(varied_by(v, [side.histograms(scores.signal, edges)[0] for side in sides], templates))
            folders = [side.folders(s.bins, filled.categories) for side in sides]
            for name, nominal in histograms.items():
                nominal.update(varied_by(v, [own[name] for own in folders], nominal).named())
        # A process without test events has no template, and the report says so.
        known = [replace(n, processes=tuple(p for p in n.processes if p in templates)) for n in s.nuisances]
        model = Likelihood.of(templates, [name for name in s.signals if name in templates], data, known, varied)
        histograms[FOLDER] = model.histograms()
        write_histograms(out / "histograms.root", histograms)
        write_json(
            out / "histograms.json",
            {
                "score": f"score_{scores.signal}_{s.kind}",
                "observed": "Asimov" if model.asimov else "data",
                "clipped": model.clipped,
                "histograms": {
                    folder: {name: histogram.to_json() for name, histogram in named.items()}
                    for folder, named in histograms.items()
                },
            },
        )
        write_json(out / "workspace.json", model.workspace())
        (out / "datacard.txt").write_text(model.datacard(f"histograms.root {FOLDER}"))
        write_json(out / "expectation.json", expectation(model.workspace()))
        write_json(out / "systematics.json", systematics(model, s))


def systematics(model: Likelihood, settings: StatisticsSlice) -> dict[str, Any]:
    """The kind of each parameter, and its effect on each process; none where all is pruned."""
    kinds: dict[str, str] = {name: variation.kind for variation in settings.variations for name in variation.parameters}
    kinds |= {nuisance.name: "norm" for nuisance in settings.nuisances}
    found = model.effects()
    return {name: {"kind": kind, "effects": found.get(name, {})} for name, kind in kinds.items()}


def sides_of(
    filled: Filled, variation: VariationSlice, settings: StatisticsSlice, made: Mapping[str, Any]
) -> list[Filled]:
    """What histograms are filled with for a variation: up, and down unless that is the mirror image."""
    if variation.kind == "weight":
        processes = [process for own in variation.parameters.values() for process in own]
        return [
            filled.weighted(name, load_sums(made, name), processes, keeps_norm=variation.keeps_norm)
            for name in variation.functions
        ]
    found = [load_scored(shifted(made, name), settings.shifted[name]) for name in variation.functions]
    return [replace(filled, events=events, scales=scales, with_data=False) for events, scales in found]


def varied_by(
    settings: VariationSlice, sides: Sequence[Mapping[str, Histogram]], nominal: Collection[str]
) -> Variation:
    """What a variation makes of some histograms.

    Args:
        settings: The variation.
        sides: Histograms per process, up and perhaps down.
        nominal: Processes that have a histogram; others are left out.
    """
    from analysis.variations import Variation

    processes = [p for own in settings.parameters.values() for p in own if p in nominal]
    up, down = ({p: side[p] for p in processes if p in side} for side in (*sides, {})[:2])
    return Variation(settings.name, settings.kind, settings.parameters, up, down, settings.treatment)


def variations(config: Configuration) -> tuple[VariationSlice, ...]:
    """The uncertainties that vary templates."""
    from analysis.variations import Treatment

    return tuple(
        VariationSlice(
            name=name,
            kind="weight" if nuisance.weight else "shift",
            functions=nuisance.functions,
            parameters=config.parameters[name],
            keeps_norm=not nuisance.changes_norm,
            treatment=Treatment(nuisance.symmetrise, nuisance.smooth, nuisance.prune),
        )
        for name, nuisance in config.outputs.nuisances.items()
        if nuisance.functions
    )


def nuisances(config: Configuration) -> tuple[Nuisance, ...]:
    """The uncertainties of yields; one that names no processes is of all that are simulated."""
    from analysis.likelihood import Nuisance

    return tuple(
        Nuisance(parameter, *nuisance.factors, processes)
        for name, nuisance in config.outputs.nuisances.items()
        if nuisance.norm is not None
        for parameter, processes in config.parameters[name].items()
    )
