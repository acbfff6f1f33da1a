"""EvaluateEnsemble: how good the ensemble is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.config import Configuration
from workflow.base import Given, Made, Task, branches_of
from workflow.store import write_json
from workflow.tasks.export import ONNX_TOLERANCE, ExportEnsemble
from workflow.tasks.folds import PrepareFolds
from workflow.tasks.score import ScoreEvents
from workflow.tasks.tables import Sums, load_events, require_events
from workflow.tasks.train import TrainFolds

if TYPE_CHECKING:
    from analysis.evaluation import EvaluationSettings, Scales, ScoredEvents, ScoreSettings
    from analysis.pool import Pool
    from analysis.regression import Regressed
    from analysis.table import TableSettings


@dataclass(frozen=True)
class ScoredSlice:
    """What a step has to know to read the scored events of all processes."""

    table: TableSettings
    sums: Sums
    scores: ScoreSettings

    @staticmethod
    def of(
        config: Configuration,
        columns: Sequence[str],
        truth: Sequence[str] = (),
        processes: Sequence[str] | None = None,
    ) -> ScoredSlice:
        """The slice of a step that reads some columns beside the scores, and what only simulation knows.

        Args:
            config: The configuration.
            columns: Features and spectators.
            truth: Columns that only simulated events have.
            processes: Whose events are read; by default all but those that only stand for others.
        """
        from analysis.evaluation import ScoreSettings
        from analysis.table import TableSettings

        chosen = config.nominal if processes is None else tuple(processes)
        return ScoredSlice(
            table=TableSettings.of(config, chosen, columns, truth),
            sums=Sums.of(config, config.datasets_of(chosen)),
            scores=ScoreSettings(
                classes=config.class_names,
                signal=config.classes.signal,
                collision=tuple(name for name in config.processes if config.is_collision(name)),
                folds=config.folds.count,
                salt=str(config.folds.salt),
                targets=config.target_outputs,
            ),
        )


@dataclass(frozen=True)
class EvaluateSlice:
    """Which events are judged, and how."""

    scored: ScoredSlice
    evaluation: EvaluationSettings
    refined: bool


class EvaluateEnsemble(Task[EvaluateSlice]):
    """Figures of merit with uncertainties: of single folds, pooled out of fold, and of the ensemble on test events."""

    exclude_index = False
    libraries = ("numpy", "onnxruntime")

    def requires(self) -> Any:
        return {
            **require_scored(self, ("features", "factors", "spectators", "truth")),
            "pool": PrepareFolds.req(self),
            "export": ExportEnsemble.req(self),
            **({"networks": TrainFolds.req(self, branches=())} if refined(self.plan.config) else {}),
        }

    def slice(self, config: Configuration) -> EvaluateSlice:
        from analysis.evaluation import EvaluationSettings

        evaluation = EvaluationSettings(
            features=dict(zip(config.feature_names, config.feature_objects, strict=True)),
            scheme=config.folds.scheme,
            bins=config.outputs.histogram.bins,
            replicas=config.outputs.replicas,
            seed=config.seed,
            balanced=config.training.balance != "none",
            targets=regressed(config),
            spectators={name: config.training.decorrelation.get(name, 0.0) for name in config.spectators},
        )
        columns = (*config.feature_names, *config.spectators)
        scored = ScoredSlice.of(config, columns, config.target_functions)
        return EvaluateSlice(scored, evaluation, refined(config))

    def files(self) -> Sequence[str]:
        return ("evaluation.json",)

    @staticmethod
    def compute(settings: EvaluateSlice, given: Given, out: Path) -> None:
        from analysis.evaluation import judge
        from analysis.pool import load_pool

        pool = load_pool(given.made["pool"].path("pool"))
        events, scales = load_scored(given.made, settings.scored)
        summary = judge(events, scales, settings.scored.scores, settings.evaluation, pool.dropped)
        summary["shared_events"] = check_shared(pool, events, settings)
        summary["onnx"] = compare_onnx(given.made["export"].path("ensemble.onnx"), events, pool.features)
        if settings.refined:
            summary |= close(pool, given.made["networks"], settings)
        write_json(out / "evaluation.json", summary)


def regressed(config: Configuration) -> dict[str, Regressed]:
    """The regression targets, as far as their judgement goes."""
    from analysis.regression import Regressed

    return {
        name: Regressed(target.function, target.loss, target.outputs(name), target.levels)
        for name, target in config.targets.items()
    }


def refined(config: Configuration) -> bool:
    """Whether negative weights are learned away."""
    return config.training.negative_weights == "reweighted"


def close(pool: Pool, networks: Mapping[int, Made], settings: EvaluateSlice) -> dict[str, Any]:
    """Compare refined with signed weights, event by event those that a network trains with, if any is negative."""
    from analysis.closure import closure, crossed
    from models.ensemble import load_member

    folds = settings.scored.scores.folds
    files = {made.about: made.path("network.safetensors") for made in networks.values()}
    ratios = [load_member(files[fold, 0], ratios=True).ratios for fold in range(folds)]
    if all(ratio is None for ratio in ratios):
        return {}
    uses = [pool.uses(fold, folds, settings.evaluation.scheme)[0] for fold in range(folds)]
    return {"refinement": closure(pool, crossed(ratios, uses, pool.folds))}


def check_shared(pool: Pool, events: ScoredEvents, settings: EvaluateSlice) -> dict[str, Any]:
    """Count the events that are judged and had a part in what judges them.

    Raises:
        RuntimeError: There are any.
    """
    from analysis.leakage import leaks, shared_events

    table, scheme = events.table, settings.evaluation.scheme
    test = table.identity[table.is_test & (table.label >= 0)]
    shared = shared_events(pool, test, settings.scored.scores.folds, scheme)
    if wrong := leaks(shared, scheme):
        raise RuntimeError("figures of merit would not be those of unseen events: " + "; ".join(wrong))
    return shared


def compare_onnx(path: Path, events: ScoredEvents, features: Sequence[str]) -> dict[str, Any]:
    """Compare the exported ensemble with the friend trees, over all selected events.

    Raises:
        RuntimeError: They differ by 1e-5 or more.
    """
    import numpy as np

    from models.export import difference, run_onnx

    values, present = events.table.matrix(features)
    found = run_onnx(path, values, present, events.fold.astype(np.int64))
    expected = [events.outputs(kind) for kind in ("routed", "ensemble", "spread")]
    gap = max(difference(theirs, ours) for theirs, ours in zip(found, expected, strict=True))
    if not gap < ONNX_TOLERANCE:
        raise RuntimeError(f"{path} differs from the scores of PyTorch by up to {gap}")
    return {"largest_difference": gap, "events": len(events.table)}


def require_scored(task: Task[Any], groups: Sequence[str]) -> dict[str, Any]:
    """Requirements of a step that reads the scored events of all processes but those that only stand for others."""
    config = task.plan.config
    return _scored(task, config.datasets_of(config.nominal), groups)


def require_varied(task: Task[Any]) -> dict[str, Any]:
    """Requirements of a step that reads scored events that functions shift, and those of processes for others."""
    config, found = task.plan.config, dict[str, Any]()
    shifts = {shift: (shift, processes) for shift, processes in config.shifts.items()}
    others = {process: ("", (process,)) for process in config.alternatives}
    for key, (shift, processes) in {**shifts, **others}.items():
        own = _scored(task, config.datasets_of(processes), ("factors",), shift)
        found |= {f"{name} of {key}": required for name, required in own.items()}
    return found


def _scored(task: Task[Any], datasets: Sequence[str], groups: Sequence[str], shift: str = "") -> dict[str, Any]:
    """Requirements of a step that reads the scored events of some data sets."""
    plan = task.plan
    files = branches_of(plan.files_of(datasets), len(plan.files))
    events = require_events(task, datasets, groups, shift)
    return {**events, "scores": ScoreEvents.req(task, branch=-1, shift=shift, **files)}


def varied_only(made: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What `require_varied` asked for, of one function or process, by the names that `load_scored` knows."""
    ending = f" of {name}"
    return {name.removesuffix(ending): one for name, one in made.items() if name.endswith(ending)}


def load_scored(made: Mapping[str, Any], settings: ScoredSlice) -> tuple[ScoredEvents, Scales]:
    """Read all selected events with their scores, and the factors that scale a part of them to all."""
    from analysis.evaluation import Scales, attach_scores

    table, totals = load_events(made, settings.table, settings.sums)
    friends = {scores.about: scores.path("friend.root") for scores in made["scores"].values()}
    chunks = [friends[events.about.file] for events in made.get("events", {}).values()]
    s = settings.scores
    events = attach_scores(table, chunks, s.classes, s.folds, s.salt, targets=s.targets)
    return events, Scales.of(table, totals, s.collision)
