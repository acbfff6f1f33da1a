"""Judging an ensemble: figures of merit on held-out test events and out of fold, and what a summary says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from analysis.decorrelation import remaining
from analysis.errors import UserError
from analysis.friends import KINDS, read_friend
from analysis.histograms import DATA, Histogram, score_histograms
from analysis.metrics import Sample, bootstrap_counts, evaluate, evaluate_auc
from analysis.regression import Regressed, judge_target, places
from analysis.reliability import reliability
from analysis.splitting import Scheme, fold_of
from analysis.statistics import binned_significance, choose_edges
from analysis.table import EventTable
from analysis.weights import Totals, VariedSums, effective_number, scale_of_rest, scale_of_test

PATTERN_EVENTS = 10
"""Fewest events of the signal and of the rest for an AUC of the events with one pattern of present objects."""


@dataclass(frozen=True)
class ScoreSettings:
    """What the scores of an analysis mean.

    Attributes:
        classes: Names of the classes.
        signal: Name of the signal class.
        collision: Processes of collision data.
        folds: Number of folds.
        salt: Salt of the folds.
        targets: Names of the outputs of regression targets.
    """

    classes: tuple[str, ...]
    signal: str
    collision: tuple[str, ...]
    folds: int
    salt: str
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class EvaluationSettings:
    """How scores are judged.

    Attributes:
        features: All features and the object of each.
        scheme: How networks use the folds.
        bins: Bins of the score before merging.
        replicas: Bootstrap replicas.
        seed: Seed of the bootstrap.
        balanced: Whether networks are trained with all classes as equally frequent.
        targets: The regression targets.
        spectators: Whose correlation with the score is given, and the strength of the training's penalty on it.
    """

    features: Mapping[str, str]
    scheme: Scheme
    bins: int
    replicas: int
    seed: int
    balanced: bool = True
    targets: Mapping[str, Regressed] = field(default_factory=dict)
    spectators: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ScoredEvents:
    """A table with the scores of its events.

    Attributes:
        table: Selected events of all processes.
        fold: Fold of each event, int16 [N].
        routed: Score by the network that left the event's fold out, float32 [N, C].
        ensemble: Score of all networks together, float32 [N, C].
        spread: Standard deviation of the probabilities over all networks, float32 [N, C].
        predicted: `routed`, `ensemble` and `spread` of the regression targets, float32 [N, R]; none without any.
    """

    table: EventTable
    fold: npt.NDArray[np.int16]
    routed: npt.NDArray[np.float32]
    ensemble: npt.NDArray[np.float32]
    spread: npt.NDArray[np.float32]
    predicted: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)

    def take(self, rows: npt.NDArray[Any]) -> ScoredEvents:
        """Some rows (bool mask or positions)."""
        predicted = {kind: outputs[rows] for kind, outputs in self.predicted.items()}
        scores: dict[str, npt.NDArray[np.float32]] = {kind: getattr(self, kind)[rows] for kind in KINDS}
        return ScoredEvents(self.table.take(rows), self.fold[rows], predicted=predicted, **scores)

    def outputs(self, kind: str) -> npt.NDArray[np.float32]:
        """Scores of one of `KINDS`, then outputs of the targets, [N, C + R]."""
        scores: npt.NDArray[np.float32] = getattr(self, kind)
        return np.hstack([scores, self.predicted[kind]]) if self.predicted else scores


def attach_scores(
    table: EventTable,
    friends: Sequence[Path],
    classes: Sequence[str],
    folds: int,
    salt: str,
    *,
    targets: Sequence[str] = (),
) -> ScoredEvents:
    """Join a table with friend trees.

    Args:
        table: Selected events; `chunk` counts the friends.
        friends: For each chunk the friend tree of its file.
        classes: Names of the classes.
        folds: Number of folds.
        salt: Salt of the folds.
        targets: Names of the outputs of regression targets.

    Raises:
        ValueError: A selected event has no score: the friend belongs to another selection.
    """
    shape = len(table), len(classes) + len(targets)
    scores = {kind: np.full(shape, np.nan, dtype=np.float32) for kind in KINDS}
    for path in dict.fromkeys(friends):
        rows = np.isin(table.chunk, [i for i, friend in enumerate(friends) if friend == path])
        for kind, found in read_friend(path, classes, targets).items():
            scores[kind][rows] = found[table.entry[rows]]
    for kind, joined in scores.items():
        if not np.all(np.isfinite(joined)):
            raise ValueError(f"{int(np.sum(~np.isfinite(joined[:, 0])))} selected events have no {kind} score")
    own = {kind: found[:, : len(classes)] for kind, found in scores.items()}
    predicted = {kind: found[:, len(classes) :] for kind, found in scores.items()} if targets else {}
    return ScoredEvents(table, fold_of(table.identity, folds, salt), predicted=predicted, **own)


@dataclass(frozen=True)
class Scales:
    """Factors that scale part of a process's events to all of them (contract 4); 1 for collision data.

    Attributes:
        test: Σw_all / Σw_test per process, before selection; None where it is not defined.
        rest: Σw_all / Σw_rest of the events that are not held out, likewise.
    """

    test: Mapping[str, float | None]
    rest: Mapping[str, float | None]

    @staticmethod
    def of(table: EventTable, totals: Mapping[str, Totals], collision: Sequence[str]) -> Scales:
        """Factors of all processes of a table, of which those of collision data keep 1.

        Raises:
            UserError: A process of a class has selected events, but none of positive weight in one of the two parts.
        """
        labels = dict(zip(table.process.tolist(), table.label.tolist(), strict=True))
        found: dict[str, dict[str, float | None]] = {"test": {}, "rest": {}}
        for i, name in enumerate(table.processes):
            own = totals.get(name, Totals())
            for part, scale in (("test", scale_of_test(own)), ("rest", scale_of_rest(own))):
                if scale is None and labels.get(i, -1) >= 0:
                    raise UserError(
                        f"Process {name!r}: the generator weights of its test events sum to {own.test:g}, of all "
                        f"{own.sum_of_weights:g}; both parts need a sum above 0. More events, or another "
                        "folds.test_fraction, are needed."
                    )
                found[part][name] = 1.0 if name in collision else scale
        return Scales(found["test"], found["rest"])

    def per_event(self, table: EventTable) -> npt.NDArray[np.float64]:
        """The factor of each event, float64 [N]: of its process, and of its part; 0 where none is defined."""
        test, rest = (np.array([part[name] or 0.0 for name in table.processes]) for part in (self.test, self.rest))
        return np.asarray(np.where(table.is_test, test[table.process], rest[table.process]), dtype=np.float64)


def judge(
    events: ScoredEvents,
    scales: Scales,
    scored: ScoreSettings,
    settings: EvaluationSettings,
    dropped: Sequence[str],
) -> dict[str, Any]:
    """Compute what `summary.json` holds of the evaluation.

    The figures of merit are those of events that pass `selection.cuts`: `test`, the ensemble on held-out test events;
    `out_of_fold`, network f on fold f, pooled; and `folds`, each fold alone. Weights are scaled per process from the
    part that is judged to all events.

    Args:
        events: Scored events of all processes.
        scales: Factors of test events and of the others.
        scored: Classes and folds.
        settings: Features, bins, bootstrap.
        dropped: Features that no event has.

    Raises:
        UserError: A class has no test events.
    """
    table = events.table
    weight = table.weight * scales.per_event(table)
    labelled = table.label >= 0
    test = labelled & table.is_test
    rest = labelled & ~table.is_test
    for c, name in enumerate(scored.classes):
        if not np.any(test & (table.label == c)):
            raise UserError(f"Class {name!r} has no test events. Use more events or a larger folds.test_fraction.")

    def sample(rows: npt.NDArray[np.bool_], scores: npt.NDArray[np.float32]) -> Sample:
        return Sample(
            probabilities=scores[rows],
            label=table.label[rows],
            weight=weight[rows],
            process=table.process[rows],
            identity=table.identity[rows],
        )

    def merit(rows: npt.NDArray[np.bool_], scores: npt.NDArray[np.float32]) -> dict[str, Any]:
        return evaluate(sample(rows, scores), scored.classes, scored.signal, settings.replicas, settings.seed)

    def separation(rows: npt.NDArray[np.bool_], scores: npt.NDArray[np.float32]) -> dict[str, Any] | None:
        of_signal = table.label[rows] == scored.classes.index(scored.signal)
        if min(of_signal.sum(), (~of_signal).sum()) < PATTERN_EVENTS:
            return None
        return evaluate_auc(sample(rows, scores), scored.classes, scored.signal, settings.replicas, settings.seed)

    categories = sorted({str(category) for category in table.category[test]} - {""})
    return {
        "scheme": settings.scheme,
        "folds": scored.folds,
        "classes": list(scored.classes),
        "signal": scored.signal,
        "features": [name for name in settings.features if name not in dropped],
        "dropped_features": list(dropped),
        "yields": _yields(table, scales, scored.classes, scored.collision),
        "missing": _missing(table, scored.collision, settings.features),
        "metrics": {
            "test": merit(test, events.ensemble),
            "out_of_fold": merit(rest, events.routed),
            "folds": [merit(rest & (events.fold == f), events.routed) for f in range(scored.folds)],
        },
        "categories": {
            name: {"entries": int(rows.sum()), "auc": merit(rows, events.ensemble)["auc"]}
            for name in categories
            for rows in [test & (table.category == name)]
        },
        "patterns": [
            {
                "objects": objects,
                "entries": {name: int(np.sum(rows & (table.label == c))) for c, name in enumerate(scored.classes)},
                "out_of_fold": separation(rows & rest, events.routed),
                "test": separation(rows & test, events.ensemble),
            }
            for objects, rows in _patterns(table, labelled, settings.features)
        ],
        "reliability": {
            part: reliability(
                sample(rows, scores),
                scored.classes.index(scored.signal),
                balanced=settings.balanced,
                replicas=settings.replicas,
                seed=settings.seed,
            )
            for part, rows, scores in (("test", test, events.ensemble), ("out_of_fold", rest, events.routed))
        },
        "significance": _significance(events, weight, scored, settings),
        **_targets(events, weight, settings),
        **_spectators(events, weight, scored, settings),
    }


def _targets(events: ScoredEvents, weight: npt.NDArray[np.float64], settings: EvaluationSettings) -> dict[str, Any]:
    """Figures of the regression targets over events of all classes that have them; nothing without targets."""
    if not settings.targets:
        return {}
    table, result = events.table, {}
    for name, place in places(settings.targets).items():
        target = settings.targets[name]
        truth = table.columns[target.function]
        there = (table.label >= 0) & ~np.ma.getmaskarray(truth)
        figures = {}
        for part, kind, rows in (
            ("test", "ensemble", there & table.is_test),
            ("out_of_fold", "routed", there & ~table.is_test),
        ):
            figures[part] = judge_target(
                target,
                events.predicted[kind][rows, place],
                np.ma.getdata(truth)[rows].astype(np.float64),
                weight=weight[rows],
                process=table.process[rows],
                identity=table.identity[rows],
                replicas=settings.replicas,
                seed=settings.seed,
            )
        result[name] = {"loss": target.loss, "outputs": list(target.outputs), **figures}
    return {"targets": result}


def _spectators(
    events: ScoredEvents, weight: npt.NDArray[np.float64], scored: ScoreSettings, settings: EvaluationSettings
) -> dict[str, Any]:
    """What the signal score knows of spectators, over background events; nothing without any."""
    if not settings.spectators:
        return {}
    table, signal = events.table, scored.classes.index(scored.signal)
    background = (table.label >= 0) & (table.label != signal)
    result = {}
    for name, strength in settings.spectators.items():
        there = background & ~np.ma.getmaskarray(table.columns[name])
        values = np.ma.getdata(table.columns[name]).astype(np.float64)
        parts = {
            part: remaining(scores[rows, signal].astype(np.float64), values[rows], weight[rows], settings.seed)
            for part, scores, rows in (
                ("test", events.ensemble, there & table.is_test),
                ("out_of_fold", events.routed, there & ~table.is_test),
            )
        }
        result[name] = {"strength": strength, **parts}
    return {"spectators": result}


def _patterns(
    table: EventTable, labelled: npt.NDArray[np.bool_], features: Mapping[str, str]
) -> list[tuple[list[str], npt.NDArray[np.bool_]]]:
    """Patterns of present objects among labelled events, the most frequent first: the objects, and which events.

    Objects that all of these events have, or none, are left out.
    """
    there = {name: ~absent for name, absent in _absent(table, features).items()}
    chosen = [name for name, own in there.items() if 0 < own[labelled].sum() < labelled.sum()]
    if not chosen:
        return []
    matrix = np.stack([there[name] for name in chosen], axis=1)  # [N, O]
    found, which, counts = np.unique(matrix[labelled], axis=0, return_inverse=True, return_counts=True)
    everyone = np.full(len(table), -1)
    everyone[labelled] = which.ravel()
    order = sorted(range(len(found)), key=lambda row: (-counts[row], tuple(~found[row])))
    return [([n for n, own in zip(chosen, found[row], strict=True) if own], everyone == row) for row in order]


def _absent(table: EventTable, features: Mapping[str, str]) -> dict[str, npt.NDArray[np.bool_]]:
    """For each object, which events have none of its features, bool [N]."""
    result: dict[str, npt.NDArray[np.bool_]] = {}
    for name, owner in features.items():
        mask = np.ma.getmaskarray(table.columns[name])
        result[owner] = result[owner] & mask if owner in result else mask
    return result


def _in_category(table: EventTable, category: str | None) -> npt.NDArray[np.bool_]:
    """Events of a category, or all."""
    return np.ones(len(table), dtype=np.bool_) if category is None else np.asarray(table.category == category)


def _is_data(table: EventTable, collision: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Events of collision data."""
    return np.isin(table.process, [i for i, name in enumerate(table.processes) if name in collision])


def _yields(table: EventTable, scales: Scales, classes: Sequence[str], collision: Sequence[str]) -> dict[str, Any]:
    result = {}
    for i, name in enumerate(table.processes):
        rows = table.process == i
        weight = table.weight[rows]
        labels = table.label[rows]
        result[name] = {
            "class": classes[labels[0]] if len(labels) and labels[0] >= 0 else None,
            "entries": int(rows.sum()),
            "yield": float(weight.sum()),
            "uncertainty": float(np.sqrt(np.sum(weight**2))),
            "effective": effective_number(weight),
            "test_entries": int(np.sum(rows & table.is_test)),
            "test_scale": scales.test[name],
            "test_closure": None if name in collision else _closure(weight, table.is_test[rows], scales.test[name]),
        }
    return result


def _closure(weight: npt.NDArray[np.float64], is_test: npt.NDArray[np.bool_], scale: float | None) -> float | None:
    """How far selected test events, scaled to all, are from all selected events: (s Y_test − Y) / σ.

    Each event is in the test with probability 1/s, so that σ² = (s − 1) Σw² over all of them. None where there is none.
    """
    if scale is None:
        return None
    error = float(np.sqrt(max(scale - 1, 0.0) * np.sum(weight**2)))
    return float(scale * weight[is_test].sum() - weight.sum()) / error if error > 0 else None


def _missing(table: EventTable, collision: Sequence[str], features: Mapping[str, str]) -> dict[str, float]:
    """Share of selected simulated events in which no feature of an object is present."""
    simulated = ~_is_data(table, collision)
    absent = _absent(table, features)
    return {name: float(own[simulated].mean()) if simulated.any() else 0.0 for name, own in absent.items()}


def _significance(
    events: ScoredEvents, weight: npt.NDArray[np.float64], scored: ScoreSettings, settings: EvaluationSettings
) -> dict[str, Any]:
    """Expected significance of the binned signal score, of the signal against all other simulated processes.

    Bins are chosen out of fold, the value is that of test events. `value` takes the background as known;
    `with_simulation_uncertainty` adds σ_b² = Σw² of the simulated background in each bin, and so rises with the number
    of simulated events.
    """
    table = events.table
    signal = scored.classes.index(scored.signal)
    test = ~_is_data(table, scored.collision) & table.is_test
    is_signal = table.label == signal
    edges = choose_bins(events, weight, scored, settings.bins)
    found = binned_significance(
        events.ensemble[test, signal].astype(np.float64),
        is_signal[test],
        weight[test],
        edges,
        bootstrap_counts(table.identity[test], table.process[test], settings.replicas, settings.seed),
    )
    return {
        **{key: getattr(found.value, key) for key in ("value", "low", "high")},
        "with_simulation_uncertainty": found.value_with_uncertainty.to_json(),
        "reason": found.reason or found.value.note or None,
        "bins": max(0, len(found.edges) - 1),
    }


def choose_bins(
    events: ScoredEvents,
    weight: npt.NDArray[np.float64],
    settings: ScoreSettings,
    bins: int,
    *,
    share: float | None = None,
    category: str | None = None,
) -> npt.NDArray[np.float64] | None:
    """Bins of the signal score, chosen on events that are not held out, by the score of networks new to them.

    Args:
        events: Scored events of all processes.
        weight: Their weights, scaled to all events, float64 [N].
        settings: Classes and collision data.
        bins: Number of bins before merging.
        share: How many times more events there are than those that are to fill the bins; by default those are the
            held-out test events.
        category: Whose events are meant; None for all.

    Returns:
        Edges, float64 [M + 1]; None where the events suffice for no bin at all.
    """
    table = events.table
    signal = settings.classes.index(settings.signal)
    simulated = ~_is_data(table, settings.collision) & _in_category(table, category)
    test, rest = simulated & table.is_test, simulated & ~table.is_test
    return choose_edges(
        events.routed[rest, signal].astype(np.float64),
        (table.label == signal)[rest],
        weight[rest],
        bins=bins,
        share=max(1.0, rest.sum() / max(1, test.sum())) if share is None else share,
    )


@dataclass(frozen=True)
class Filled:
    """What histograms of scores are filled with (contract 3: never with both kinds of scores).

    Attributes:
        events: Scored events of all processes.
        scales: Factors that scale test events to all.
        settings: Classes and collision data.
        kind: `ensemble`: simulation by its held-out test events, scaled to all; `routed`: by all events. Data alike.
        with_data: Whether there are collision data, and they may be seen.
        factor: What each event's weight is multiplied with, float64 [N]; None for 1.
    """

    events: ScoredEvents
    scales: Scales
    settings: ScoreSettings
    kind: Literal["ensemble", "routed"]
    with_data: bool
    factor: npt.NDArray[np.float64] | None = None

    def histograms(
        self, name: str, edges: npt.NDArray[np.float64], category: str | None = None
    ) -> tuple[dict[str, Histogram], Histogram | None]:
        """Histograms of the score of one class, of all events or those of a category.

        Returns:
            One for each simulated process whose events can be scaled, and that of the data; None without.
        """
        table = self.events.table
        score = getattr(self.events, self.kind)[:, self.settings.classes.index(name)].astype(np.float64)
        chosen = _in_category(table, category)
        is_data = _is_data(table, self.settings.collision)
        rows, weight = chosen & ~is_data, table.weight
        if self.kind == "ensemble":
            rows, weight = rows & table.is_test, weight * self.scales.per_event(table)
        if self.factor is not None:
            weight = weight * self.factor
        filled = score_histograms(score[rows], weight[rows], table.process[rows], table.processes, edges)
        templates = {
            process: histogram
            for process, histogram in filled.items()
            if process not in self.settings.collision
            and (self.kind == "routed" or self.scales.test[process] is not None)
        }
        observed = chosen & is_data
        return templates, Histogram.fill(score[observed], table.weight[observed], edges) if self.with_data else None

    def weighted(
        self,
        name: str,
        sums: Mapping[str, VariedSums],
        processes: Sequence[str],
        *,
        keeps_norm: bool,
        generated: Mapping[str, tuple[float, float]] | None = None,
    ) -> Filled:
        """The same with weights that a function varies.

        Simulation is normalised by its own sums of varied weights: test events, scaled to all, have before any
        selection exactly the yield of all events.

        Args:
            name: The function, a column of the table that collision data lack.
            sums: Sums of the weights per process before any selection, as they are and varied.
            processes: Whose weights vary; those without a histogram are left out.
            keeps_norm: Whether the yield before any selection is the nominal one.
            generated: Sums of all generated events, nominal and varied, where both are known.
        """
        table = self.events.table
        common = np.ones(len(table.processes))
        test = self.kind == "ensemble"
        for i, process in enumerate(table.processes):
            if process in processes and process in sums and not (test and self.scales.test[process] is None):
                known = (generated or {}).get(process)
                common[i] = sums[process].factor(process, test=test, keeps_norm=keeps_norm, generated=known)
        own = np.ma.filled(table.columns[name].astype(np.float64), 1.0)
        return replace(self, factor=own * common[table.process])

    @property
    def categories(self) -> tuple[str, ...]:
        """Categories that have events."""
        return tuple(sorted({str(name) for name in self.events.table.category} - {""}))

    def folders(self, bins: int, categories: Sequence[str] | None = None) -> dict[str, dict[str, Histogram]]:
        """Histograms in equal bins by name, of each class's score, of all events and of each category.

        The folders are called ``score_<class>_<kind>`` and ``<category>/score_<class>_<kind>``; data stand beside the
        processes.
        """
        edges, found = np.linspace(0.0, 1.0, bins + 1), {}
        for category in (None, *(self.categories if categories is None else categories)):
            for name in self.settings.classes:
                own, data = self.histograms(name, edges, category)
                folder = "" if category is None else f"{category}/"
                found[f"{folder}score_{name}_{self.kind}"] = own if data is None else {**own, DATA: data}
        return found

    def standing_for(self, process: str, factor: float) -> Filled:
        """The same events, all of one process, as if they were another's, whose weights are multiplied with a factor.

        No network has trained on them, so that all of them count as held-out test events.

        Raises:
            ValueError: There are events of several processes, or of a class.
        """
        table = self.events.table
        if len(table.processes) != 1 or (table.label >= 0).any():
            raise ValueError(f"events of {', '.join(table.processes)} can't stand for {process}")
        unseen = replace(table, processes=(process,), is_test=np.ones(len(table), dtype=np.bool_))
        return replace(
            self,
            events=replace(self.events, table=unseen),
            scales=Scales({process: 1.0}, {process: 1.0}),
            factor=np.full(len(table), factor),
        )

    def bins(self, count: int, category: str | None = None) -> npt.NDArray[np.float64]:
        """Bins of the signal score that these events should fill, chosen out of fold; one bin where they can't."""
        weight = self.events.table.weight * self.scales.per_event(self.events.table)
        share = 1.0 if self.kind == "routed" else None
        edges = choose_bins(self.events, weight, self.settings, count, share=share, category=category)
        return np.array([0.0, 1.0]) if edges is None else edges
