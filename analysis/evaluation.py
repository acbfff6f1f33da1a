"""Judging an ensemble: figures of merit on held-out test events and out of fold, and what a summary says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from analysis.errors import UserError
from analysis.friends import read_friend
from analysis.metrics import Sample, bootstrap_counts, effective_number, evaluate
from analysis.splitting import Scheme, fold_of
from analysis.statistics import Histogram, binned_significance, choose_edges, score_histograms
from analysis.table import EventTable
from analysis.weights import Totals, scale_of_test


@dataclass(frozen=True)
class EvaluationSettings:
    """What the evaluation needs to know of the analysis.

    Attributes:
        classes: Names of the classes.
        signal: Name of the signal class.
        collision: Processes of collision data.
        features: All features and the object of each.
        folds: Number of folds.
        scheme: How networks use the folds.
        salt: Salt of the folds.
        bins: Bins of the score before merging.
        replicas: Bootstrap replicas.
        seed: Seed of the bootstrap.
    """

    classes: tuple[str, ...]
    signal: str
    collision: tuple[str, ...]
    features: Mapping[str, str]
    folds: int
    scheme: Scheme
    salt: str
    bins: int
    replicas: int
    seed: int


@dataclass(frozen=True)
class ScoredEvents:
    """A table with the scores of its events.

    Attributes:
        table: Selected events of all processes.
        fold: Fold of each event, int16 [N].
        routed: Score by the network that left the event's fold out, float32 [N, C].
        ensemble: Mean score over all networks, float32 [N, C].
    """

    table: EventTable
    fold: npt.NDArray[np.int16]
    routed: npt.NDArray[np.float32]
    ensemble: npt.NDArray[np.float32]

    def take(self, rows: npt.NDArray[Any]) -> ScoredEvents:
        """Some rows (bool mask or positions)."""
        return ScoredEvents(self.table.take(rows), self.fold[rows], self.routed[rows], self.ensemble[rows])


def attach_scores(
    table: EventTable, friends: Sequence[Path], classes: Sequence[str], folds: int, salt: str
) -> ScoredEvents:
    """Join a table with friend trees.

    Args:
        table: Selected events; `chunk` counts the friends.
        friends: For each chunk the friend tree of its file.
        classes: Names of the classes.
        folds: Number of folds.
        salt: Salt of the folds.

    Raises:
        ValueError: A selected event has no score: the friend belongs to another selection.
    """
    scores = {}
    for kind in ("routed", "ensemble"):
        joined = np.full((len(table), len(classes)), np.nan, dtype=np.float32)
        for path in dict.fromkeys(friends):
            chunks = [i for i, friend in enumerate(friends) if friend == path]
            rows = np.isin(table.chunk, chunks)
            joined[rows] = read_friend(path, classes, kind)[table.entry[rows]]
        if not np.all(np.isfinite(joined)):
            raise ValueError(f"{int(np.sum(~np.isfinite(joined[:, 0])))} selected events have no {kind} score")
        scores[kind] = joined
    return ScoredEvents(table, fold_of(table.identity, folds, salt), scores["routed"], scores["ensemble"])


def test_scales(table: EventTable, totals: Mapping[str, Totals], collision: Sequence[str]) -> dict[str, float]:
    """Factor per process that scales its test events to all of its events (contract 4); 1 for collision data.

    Raises:
        UserError: A process with selected events has none of positive weight in the test bucket.
    """
    present = {table.processes[i] for i in np.unique(table.process)}
    return {
        name: 1.0 if name in collision or name not in present else scale_of_test(totals[name], name)
        for name in table.processes
    }


def judge(
    events: ScoredEvents, scales: Mapping[str, float], settings: EvaluationSettings, dropped: Sequence[str]
) -> dict[str, Any]:
    """Compute what `summary.json` holds of the evaluation.

    The figures of merit are those of events that pass `selection.cuts`: `test`, the ensemble on held-out test events
    scaled to the whole of each process; `out_of_fold`, network f on fold f, pooled; and `folds`, each fold alone.

    Args:
        events: Scored events of all processes.
        scales: Factor of the test events per process.
        settings: Classes, folds, bootstrap.
        dropped: Features that no event has.

    Raises:
        UserError: A class has no test events.
    """
    table = events.table
    scale = np.array([scales[name] for name in table.processes])[table.process]
    labelled = table.label >= 0
    test = labelled & table.is_test
    rest = labelled & ~table.is_test
    for c, name in enumerate(settings.classes):
        if not np.any(test & (table.label == c)):
            raise UserError(f"Class {name!r} has no test events. Use more events or a larger folds.test_fraction.")

    def merit(rows: npt.NDArray[np.bool_], scores: npt.NDArray[np.float32], weight: npt.NDArray[np.float64]) -> Any:
        sample = Sample(
            probabilities=scores[rows],
            label=table.label[rows],
            weight=weight[rows],
            process=table.process[rows],
            identity=table.identity[rows],
        )
        return evaluate(sample, settings.classes, settings.signal, settings.replicas, settings.seed)

    return {
        "scheme": settings.scheme,
        "folds": settings.folds,
        "classes": list(settings.classes),
        "signal": settings.signal,
        "features": [name for name in settings.features if name not in dropped],
        "dropped_features": list(dropped),
        "yields": _yields(table, scales, settings),
        "missing": _missing(table, settings),
        "metrics": {
            "test": merit(test, events.ensemble, table.weight * scale),
            "out_of_fold": merit(rest, events.routed, table.weight),
            "folds": [merit(rest & (events.fold == f), events.routed, table.weight) for f in range(settings.folds)],
        },
        "categories": _categories(events, test, scale, settings),
        "significance": _significance(events, test, rest, scale, settings),
    }


def _yields(table: EventTable, scales: Mapping[str, float], settings: EvaluationSettings) -> dict[str, Any]:
    result = {}
    for i, name in enumerate(table.processes):
        rows = table.process == i
        weight = table.weight[rows]
        labels = table.label[rows]
        result[name] = {
            "class": settings.classes[labels[0]] if len(labels) and labels[0] >= 0 else None,
            "entries": int(rows.sum()),
            "yield": float(weight.sum()),
            "uncertainty": float(np.sqrt(np.sum(weight**2))),
            "effective": effective_number(weight),
            "test_entries": int(np.sum(rows & table.is_test)),
            "test_scale": scales[name],
        }
    return result


def _missing(table: EventTable, settings: EvaluationSettings) -> dict[str, float]:
    """Share of selected simulated events in which no feature of an object is present."""
    simulated = ~np.isin(table.process, [i for i, p in enumerate(table.processes) if p in settings.collision])
    result = {}
    for obj in dict.fromkeys(settings.features.values()):
        absent = np.ones(len(table), dtype=np.bool_)
        for name, owner in settings.features.items():
            if owner == obj:
                absent &= np.ma.getmaskarray(table.columns[name])
        result[obj] = float(absent[simulated].mean()) if simulated.any() else 0.0
    return result


def _categories(
    events: ScoredEvents,
    test: npt.NDArray[np.bool_],
    scale: npt.NDArray[np.float64],
    settings: EvaluationSettings,
) -> dict[str, dict[str, Any]]:
    """AUC of the ensemble, signal against the rest, on the test events of each category."""
    table = events.table
    result: dict[str, dict[str, Any]] = {}
    for name in sorted({str(c) for c in table.category} - {""}):
        rows = test & (table.category == name)
        sample = Sample(
            probabilities=events.ensemble[rows],
            label=table.label[rows],
            weight=(table.weight * scale)[rows],
            process=table.process[rows],
            identity=table.identity[rows],
        )
        merit = evaluate(sample, settings.classes, settings.signal, settings.replicas, settings.seed)
        result[name] = {"entries": int(rows.sum()), "auc": merit["auc"]}
    return result


def _significance(
    events: ScoredEvents,
    test: npt.NDArray[np.bool_],
    rest: npt.NDArray[np.bool_],
    scale: npt.NDArray[np.float64],
    settings: EvaluationSettings,
) -> dict[str, Any]:
    """Expected significance of the binned signal score: bins chosen out of fold, value from test events."""
    table = events.table
    signal = settings.classes.index(settings.signal)
    edges = choose_edges(
        events.routed[rest, signal].astype(np.float64),
        table.label[rest] == signal,
        table.weight[rest],
        bins=settings.bins,
    )
    counts = bootstrap_counts(table.identity[test], table.process[test], settings.replicas, settings.seed)
    found = binned_significance(
        events.ensemble[test, signal].astype(np.float64),
        table.label[test] == signal,
        (table.weight * scale)[test],
        edges,
        counts,
    )
    value = found.value_with_uncertainty.to_json()
    return {
        "value": value["value"],
        "low": value["low"],
        "high": value["high"],
        "reason": found.reason or value.get("note") or None,
        "bins": max(0, len(found.edges) - 1),
    }


def score_templates(
    events: ScoredEvents, scales: Mapping[str, float], settings: EvaluationSettings
) -> tuple[dict[str, Histogram], Histogram | None]:
    """Histograms of the ensemble's signal score: test events per process, scaled to all events, and collision data.

    Returns:
        Templates per simulated process, and the histogram of the data; None without any.
    """
    table = events.table
    signal = settings.classes.index(settings.signal)
    edges = np.linspace(0.0, 1.0, settings.bins + 1)
    score = events.ensemble[:, signal].astype(np.float64)
    scale = np.array([scales[name] for name in table.processes])[table.process]
    is_data = np.isin(table.process, [i for i, p in enumerate(table.processes) if p in settings.collision])
    test = table.is_test & ~is_data
    filled = score_histograms(score[test], (table.weight * scale)[test], table.process[test], table.processes, edges)
    templates = {name: histogram for name, histogram in filled.items() if name not in settings.collision}
    if not settings.collision:
        return templates, None
    return templates, Histogram.fill(score[is_data], table.weight[is_data], edges)
