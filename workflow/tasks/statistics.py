"""WriteStatistics: what a fit needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.config import Configuration
from workflow.base import Given, Task
from workflow.store import write_json
from workflow.tasks.evaluate import ScoredSlice, load_scored, require_scored


@dataclass(frozen=True)
class StatisticsSlice:
    """Which histograms are filled, and whether data may be seen."""

    scored: ScoredSlice
    bins: int
    signals: tuple[str, ...]
    blinded: bool


class WriteStatistics(Task[StatisticsSlice]):
    """Histograms of the signal score per process, and a pyhf workspace.

    Templates are held-out test events with the ensemble's score, scaled to all events; data are scored alike.
    """

    exclude_index = False
    libraries = ("numpy",)

    def requires(self) -> Any:
        return require_scored(self, ("factors",))

    def slice(self, config: Configuration) -> StatisticsSlice:
        return StatisticsSlice(
            scored=ScoredSlice.of(config, ()),
            bins=config.outputs.histogram.bins,
            signals=config.classes.processes[config.classes.signal],
            blinded=config.outputs.blind_above is not None,
        )

    def files(self) -> Sequence[str]:
        return ("histograms.json", "workspace.json")

    @staticmethod
    def compute(settings: StatisticsSlice, given: Given, out: Path) -> None:
        from analysis.evaluation import score_templates
        from analysis.statistics import pyhf_workspace

        s = settings
        events, scales = load_scored(given.made, s.scored)
        templates, data = score_templates(events, scales, s.scored.scores, s.bins)
        workspace = pyhf_workspace(templates, s.signals, None if s.blinded else data)
        write_json(
            out / "histograms.json",
            {
                "score": f"score_{s.scored.scores.signal}_ensemble",
                "templates": {name: histogram.to_json() for name, histogram in templates.items()},
                "data": None if data is None or s.blinded else data.to_json(),
                "observed": "Asimov" if data is None or s.blinded else "data",
                "clipped": workspace.clipped,
            },
        )
        write_json(out / "workspace.json", workspace.spec)
