"""Compare: two models side by side on the same held-out test events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import luigi

from analysis.config import Configuration
from analysis.errors import UserError
from workflow.base import Given
from workflow.parameters import OverridesParameter
from workflow.store import read_json, results_folder, write_json
from workflow.tasks.beside import PAGE, PageTask
from workflow.tasks.evaluate import EvaluateEnsemble, ScoredSlice, load_scored, require_scored
from workflow.tasks.plots import write_plots
from workflow.tasks.publishing import page_sources

if TYPE_CHECKING:
    from analysis.comparison import Model

OTHER = "other_"
"""What the names of the second model's requirements begin with."""


@dataclass(frozen=True)
class ModelSlice:
    """How a model's scores are read."""

    name: str
    scored: ScoredSlice
    bins: int


@dataclass(frozen=True)
class CompareSlice:
    """Which models are compared, and how."""

    one: ModelSlice
    other: ModelSlice
    replicas: int
    seed: int


class Compare(PageTask):
    """Compare two models on the test events that both hold out: a page of its own beside the main jobs."""

    exclude_index = False
    libraries = ("numpy",)
    analyses = ("analysis", "against")

    against = luigi.Parameter(
        description="the other model: an example, the path of an analysis folder, or NAME@FINGERPRINT of a result"
    )
    against_set = OverridesParameter(
        default=(),  # type: ignore[arg-type]
        description="override one key of the other model's configuration with a YAML value; any number of times",
    )

    @cached_property
    def twin(self) -> EvaluateEnsemble:
        """A step of the other model, by which its configuration is known."""
        named = "@" in self.against and not Path(self.against).is_dir()
        analysis, overrides = published(self.against) if named else (self.against, ())
        return EvaluateEnsemble.req(self, analysis=analysis, set=(*overrides, *self.against_set))

    @property
    def published(self) -> str:
        return f"against-{self.twin.plan.config.name}" + (f"@{self.twin.fingerprint}" if self.twin.set else "")

    @property
    def subject(self) -> str:
        return str(self.against)

    def requires(self) -> Any:
        other = require_scored(self.twin, ("factors",))
        return {
            **require_scored(self, ("features", "factors")),
            **{f"{OTHER}{name}": requirement for name, requirement in other.items()},
        }

    def slice(self, config: Configuration) -> CompareSlice:
        other = self.twin.plan.config
        names = [config.name, other.name]
        if names[0] == names[1]:
            names = [
                f"{name} {', '.join(own) or 'as configured'}"
                for name, own in zip(names, (self.set, self.twin.set), strict=True)
            ]
        return CompareSlice(
            one=ModelSlice(names[0], ScoredSlice.of(config, config.feature_names), config.outputs.histogram.bins),
            other=ModelSlice(names[1], ScoredSlice.of(other, ()), other.outputs.histogram.bins),
            replicas=config.outputs.replicas,
            seed=config.seed,
        )

    def outside(self) -> Any:
        return page_sources("page")

    def files(self) -> Sequence[str]:
        return ("comparison.json", *PAGE)

    @staticmethod
    def compute(settings: CompareSlice, given: Given, out: Path) -> None:
        from analysis.comparison import common_events, comparison, pages, rejection_ratio
        from analysis.comparison_plots import rejection_plot, scores_plot
        from analysis.page import Picture, as_text, render

        theirs = {name.removeprefix(OTHER): made for name, made in given.made.items() if name.startswith(OTHER)}
        one, other = model_of(given.made, settings.one), model_of(theirs, settings.other)
        events = common_events(one, other)
        sums = [float(events.weight[rows].sum()) for rows in (events.is_signal, ~events.is_signal)]
        if min(sums) <= 0:
            raise UserError(
                f"{one.name} and {other.name} have {len(events.is_signal)} held-out test events in common, "
                f"{int(events.is_signal.sum())} of them signal of both; weights of signal sum to {sums[0]:g}, of "
                f"background to {sums[1]:g}, and both have to be above 0. Both analyses need the same samples "
                "(data.datasets.NAME.sample), identity.columns and folds.test_salt."
            )
        found = comparison(one, other, events, replicas=settings.replicas, seed=settings.seed)
        found["rejection_ratio"] = rejection_ratio(events)
        write_json(out / "comparison.json", found)
        names = [one.name, other.name]
        plots = [rejection_plot(found["rejection_ratio"], names), scores_plot(events, names)]
        write_plots(plots, out / "plots")
        note, tables = pages(found)
        (out / "table.txt").write_text(as_text(tables))
        pictures = [Picture(plot.png(), plot.title, plot.caption) for plot in plots]
        (out / "page.html").write_text(render(" against ".join(names), [note], tables, pictures))


def model_of(made: Mapping[str, Any], settings: ModelSlice) -> Model:
    """A model with its scored events."""
    from analysis.comparison import Model

    return Model(settings.name, *load_scored(made, settings.scored), settings.scored.scores, settings.bins)


def published(name: str) -> tuple[str, tuple[str, ...]]:
    """The analysis and the overrides of a published result.

    Raises:
        UserError: There is none of that name.
    """
    found = results_folder() / name / "run.json"
    if not found.exists():
        known = ", ".join(sorted(path.parent.name for path in results_folder().glob("*@*/run.json"))) or "none"
        raise UserError(f"--against {name}: there is no {found}. Published results with overrides: {known}.")
    run = read_json(found)
    return str(run["folder"]), tuple(run["overrides"])
