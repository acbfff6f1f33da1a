"""EvaluateEnsemble: how good the ensemble is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.config import Configuration
from workflow.base import Task, read_json, write_json
from workflow.tasks.folds import PrepareFolds
from workflow.tasks.score import ScoreEvents
from workflow.tasks.tables import Sums, load_events, require_events

if TYPE_CHECKING:
    from analysis.evaluation import EvaluationSettings, ScoredEvents
    from analysis.table import TableSettings


@dataclass(frozen=True)
class EvaluateSlice:
    """Which events are judged, and how."""

    table: TableSettings
    sums: Sums
    evaluation: EvaluationSettings

    @staticmethod
    def of(config: Configuration, columns: Sequence[str]) -> EvaluateSlice:
        """The slice of a step that looks at the scored events of all processes."""
        from analysis.evaluation import EvaluationSettings
        from analysis.table import TableSettings

        datasets = config.data.datasets
        evaluation = EvaluationSettings(
            classes=config.class_names,
            signal=config.classes.signal,
            collision=tuple(n for n, p in config.processes.items() if any(datasets[d].collision for d in p.data)),
            features=dict(zip(config.feature_names, config.feature_objects, strict=True)),
            folds=config.folds.count,
            scheme=config.folds.scheme,
            salt=str(config.folds.salt),
            bins=config.outputs.histogram.bins,
            replicas=config.outputs.replicas,
            seed=config.seed,
        )
        return EvaluateSlice(
            TableSettings.of(config, tuple(config.processes), columns), Sums.of(config, datasets), evaluation
        )


class EvaluateEnsemble(Task):
    """Figures of merit with uncertainties: of single folds, pooled out of fold, and of the ensemble on test events."""

    exclude_index = False
    libraries = ("numpy",)

    def requires(self) -> Any:
        return require_scored(self, ("features", "factors"))

    def slice(self, config: Configuration) -> EvaluateSlice:
        return EvaluateSlice.of(config, config.feature_names)

    def files(self) -> Sequence[str]:
        return ("evaluation.json",)

    def compute(self, out: Path) -> None:
        from analysis.evaluation import judge

        dropped = read_json(self.requires()["pool"].path("pool") / "pool.json")["dropped"]
        events, scales = load_scored(self.requires(), self.settings)
        write_json(out / "evaluation.json", judge(events, scales, self.settings.evaluation, dropped))


def require_scored(task: Task, groups: Sequence[str]) -> dict[str, Any]:
    """Requirements of a step that looks at the scored events of all processes."""
    return {
        **require_events(task, tuple(task.plan.config.data.datasets), groups),
        "pool": PrepareFolds.req(task),
        "scores": ScoreEvents.req(task, branch=-1),
    }


def load_scored(requirements: dict[str, Any], settings: EvaluateSlice) -> tuple[ScoredEvents, dict[str, float]]:
    """Read all selected events with their scores, and the factors that scale test events."""
    from analysis.evaluation import attach_scores, test_scales

    stores = {
        name: r for name, r in requirements.items() if name in ("inputs", "events", "features", "factors", "spectators")
    }
    table, totals = load_events(stores, settings.table, settings.sums)
    friends = {
        task.branch_data: task.path("friend.root") for task in requirements["scores"].get_branch_tasks().values()
    }
    chunks = stores["events"].get_branch_tasks().values() if "events" in stores else ()
    s = settings.evaluation
    events = attach_scores(table, [friends[t.branch_data.file] for t in chunks], s.classes, s.folds, s.salt)
    return events, test_scales(table, totals, s.collision)
