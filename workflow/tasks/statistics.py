"""WriteStatistics: histograms of scores, and what a fit needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from analysis.config import Configuration
from workflow.base import Given, Task
from workflow.store import write_json
from workflow.tasks.evaluate import ScoredSlice, load_scored, require_scored

if TYPE_CHECKING:
    from analysis.likelihood import Nuisance


@dataclass(frozen=True)
class StatisticsSlice:
    """Which histograms are filled, what is uncertain about them, and whether data may be seen."""

    scored: ScoredSlice
    kind: Literal["ensemble", "routed"]
    bins: int
    signals: tuple[str, ...]
    nuisances: tuple[Nuisance, ...]
    blinded: bool


STATISTICS = ("histograms.json", "histograms.root", "workspace.json", "datacard.txt")
"""Outputs that a user finds by these names."""


class WriteStatistics(Task[StatisticsSlice]):
    """Histograms of scores per process, class and category, and the likelihood model for pyhf and Combine."""

    exclude_index = False
    libraries = ("numpy", "pyhf")

    def requires(self) -> Any:
        return require_scored(self, ("factors",))

    def slice(self, config: Configuration) -> StatisticsSlice:
        return StatisticsSlice(
            scored=ScoredSlice.of(config, ()),
            kind=config.outputs.templates,
            bins=config.outputs.histogram.bins,
            signals=config.classes.processes[config.classes.signal],
            nuisances=nuisances(config),
            blinded=config.outputs.blind_above is not None,
        )

    def files(self) -> Sequence[str]:
        return (*STATISTICS, "expectation.json")

    @staticmethod
    def compute(settings: StatisticsSlice, given: Given, out: Path) -> None:
        from analysis.evaluation import Filled
        from analysis.histograms import write_histograms
        from analysis.likelihood import FOLDER, Likelihood, expectation

        s, scores = settings, settings.scored.scores
        events, scales = load_scored(given.made, s.scored)
        filled = Filled(events, scales, scores, s.kind, with_data=not s.blinded and bool(scores.collision))
        templates, data = filled.histograms(scores.signal, filled.bins(s.bins))
        # A process without test events has no template, and the report says so.
        known = [replace(n, processes=tuple(p for p in n.processes if p in templates)) for n in s.nuisances]
        model = Likelihood.of(templates, [name for name in s.signals if name in templates], data, known)
        histograms = {**filled.folders(s.bins), FOLDER: model.histograms()}
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


def nuisances(config: Configuration) -> tuple[Nuisance, ...]:
    """The uncertainties of yields; one that names no processes is of all that are simulated."""
    from analysis.likelihood import Nuisance

    simulated = tuple(name for name in config.processes if not config.is_collision(name))
    return tuple(
        Nuisance(name, *nuisance.factors, nuisance.processes or simulated)
        for name, nuisance in config.outputs.nuisances.items()
    )
