"""EvaluateEnsemble: how good the ensemble is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.config import Configuration
from workflow.base import Task, write_json
from workflow.store import read_json
from workflow.tasks.export import ONNX_TOLERANCE, ExportEnsemble
from workflow.tasks.folds import PrepareFolds
from workflow.tasks.score import ScoreEvents
from workflow.tasks.tables import Sums, load_events, require_events

if TYPE_CHECKING:
    from analysis.evaluation import EvaluationSettings, Scales, ScoredEvents
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
            collision=tuple(name for name in config.processes if config.is_collision(name)),
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
        return {**require_scored(self, ("features", "factors")), "export": ExportEnsemble.req(self)}

    def slice(self, config: Configuration) -> EvaluateSlice:
        return EvaluateSlice.of(config, config.feature_names)

    def files(self) -> Sequence[str]:
        return ("evaluation.json",)

    def compute(self, out: Path) -> None:
        from analysis.evaluation import judge

        requirements = self.requires()
        pool = read_json(requirements["pool"].path("pool") / "pool.json")
        events, scales = load_scored(requirements, self.settings)
        summary = judge(events, scales, self.settings.evaluation, pool["dropped"])
        summary["onnx"] = compare_onnx(requirements["export"].path("ensemble.onnx"), events, pool["features"])
        write_json(out / "evaluation.json", summary)


def compare_onnx(path: Path, events: ScoredEvents, features: Sequence[str]) -> dict[str, Any]:
    """Compare the exported ensemble with the friend trees, over all selected events.

    Raises:
        RuntimeError: They differ by 1e-5 or more.
    """
    import numpy as np

    from models.export import run_onnx

    values, present = events.table.matrix(features)
    found = run_onnx(path, values, present, events.fold.astype(np.int64))
    gaps = [np.abs(a - b).max(initial=0) for a, b in zip(found, (events.routed, events.ensemble), strict=True)]
    difference = float(max(gaps))
    if not difference < ONNX_TOLERANCE:
        raise RuntimeError(f"{path} differs from the scores of PyTorch by up to {difference}")
    return {"largest_difference": difference, "events": len(events.table)}


def require_scored(task: Task, groups: Sequence[str]) -> dict[str, Any]:
    """Requirements of a step that looks at the scored events of all processes."""
    return {
        **require_events(task, tuple(task.plan.config.data.datasets), groups),
        "pool": PrepareFolds.req(task),
        "scores": ScoreEvents.req(task, branch=-1),
    }


def load_scored(requirements: dict[str, Any], settings: EvaluateSlice) -> tuple[ScoredEvents, Scales]:
    """Read all selected events with their scores, and the factors that scale a part of them to all."""
    from analysis.evaluation import Scales, attach_scores

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
    return events, Scales.of(table, totals, s)
