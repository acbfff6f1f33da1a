"""Two models side by side on the held-out test events that both have: what differs, by how much, and where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from analysis.evaluation import Scales, ScoredEvents, ScoreSettings, choose_bins
from analysis.gain import compare
from analysis.importance import text
from analysis.metrics import BoolArray, FloatArray, bootstrap_counts, estimate, roc_curve, working_points
from analysis.page import Table
from analysis.statistics import binned_significance, significances

EFFICIENCY = 0.5
"""Signal efficiency of the working point at which decisions are compared."""
SELECTED = ("both", "only one", "only the other", "neither")
SHOWN, FEWEST = 10, 10
"""Features that are named where two models disagree, and events of either kind from which on they are."""


@dataclass(frozen=True)
class Model:
    """A model's view of the events of its analysis.

    Attributes:
        name: What it is called.
        events: All of them, scored.
        scales: Factors of test events and of the others.
        settings: Classes and collision data.
        bins: Bins of the score before they are merged for a significance.
    """

    name: str
    events: ScoredEvents
    scales: Scales
    settings: ScoreSettings
    bins: int

    @property
    def signal(self) -> int:
        """Index of the signal class."""
        return self.settings.classes.index(self.settings.signal)

    @property
    def edges(self) -> FloatArray | None:
        """Bins of its signal score, chosen out of fold."""
        weight = self.events.table.weight * self.scales.per_event(self.events.table)
        return choose_bins(self.events, weight, self.settings, self.bins)


@dataclass(frozen=True)
class Common:
    """The test events that two models share, as the first one's analysis weighs them.

    Attributes:
        scores: Signal score of each model, float64 [2, N].
        is_signal: bool [N].
        weight: float64 [N], scaled from test events to all.
        process: int [N].
        identity: uint64 [N].
        rows: Their places among the first one's events, intp [N].
        alone: How many test events either model has that the other lacks, or holds for another class.
    """

    scores: FloatArray
    is_signal: BoolArray
    weight: FloatArray
    process: npt.NDArray[np.int16]
    identity: npt.NDArray[np.uint64]
    rows: npt.NDArray[np.intp]
    alone: tuple[int, int]


def common_events(one: Model, other: Model) -> Common:
    """Find the events that are held out in both models' analyses and belong to a class there, by their identities."""
    places = [np.flatnonzero(m.events.table.is_test & (m.events.table.label >= 0)) for m in (one, other)]
    identities = [m.events.table.identity[rows] for m, rows in zip((one, other), places, strict=True)]
    _, first, second = np.intersect1d(identities[0], identities[1], return_indices=True)
    rows, theirs = places[0][first], places[1][second]
    truth = [m.events.table.label[r] == m.signal for m, r in ((one, rows), (other, theirs))]
    same = truth[0] == truth[1]
    rows, theirs = rows[same], theirs[same]
    table = one.events.table
    return Common(
        scores=np.stack([m.events.ensemble[r, m.signal] for m, r in ((one, rows), (other, theirs))]).astype(np.float64),
        is_signal=truth[0][same],
        weight=(table.weight * one.scales.per_event(table))[rows],
        process=table.process[rows],
        identity=table.identity[rows],
        rows=rows,
        alone=(len(places[0]) - len(rows), len(places[1]) - len(rows)),
    )


def comparison(one: Model, other: Model, events: Common, *, replicas: int, seed: int) -> dict[str, Any]:
    """Compare two models on events that neither has met; paired, so that what the events have in common drops out.

    Returns:
        ``events`` and ``alone``; ``auc_weighted`` and ``auc_unweighted`` of the signal against the rest and
        ``significance``, each with ``before``, ``after`` and ``gain`` (estimates; the other model is the one after);
        ``selected``: of signal and background the shares of weight that both models, one or none accept at a signal
        efficiency of 50%; and ``disagree``: features in which background that only one accepts differs most from what
        only the other does.
    """
    found = compare(
        (_two(events.scores[0]), _two(events.scores[1])),
        label=events.is_signal.astype(np.int64),
        weight=events.weight,
        process=events.process,
        identity=events.identity,
        signal=1,
        replicas=replicas,
        seed=seed,
    )
    accepted = _accepted(events)
    return {
        "models": [one.name, other.name],
        "events": len(events.rows),
        "alone": list(events.alone),
        **{name: found[name] for name in ("auc_weighted", "auc_unweighted")},
        "significance": _significance((one, other), events, replicas, seed),
        "selected": _selected(events, accepted),
        "disagree": _disagree(one, events, accepted),
    }


def rejection_ratio(events: Common, points: int = 99) -> dict[str, list[float | None]]:
    """How much more background the other model rejects than the first one, at equal signal efficiency.

    Returns:
        ``signal_efficiency`` [P], and ``ratio`` [P] of the first one's background efficiency to the other's; None where
        one of them is not above zero.
    """
    efficiencies = np.linspace(0, 1, points + 2)[1:-1]
    passed = []
    for score in events.scores:
        curve = roc_curve(score, events.is_signal, events.weight)
        order = np.argsort(curve.signal_efficiency, kind="stable")  # negative weights can make it run backwards
        passed.append(np.interp(efficiencies, curve.signal_efficiency[order], curve.background_efficiency[order]))
    before, after = passed
    ratio = np.divide(before, after, out=np.full(points, np.nan), where=(before > 0) & (after > 0))
    return {
        "signal_efficiency": efficiencies.tolist(),
        "ratio": [float(value) if np.isfinite(value) else None for value in ratio],
    }


def _significance(models: tuple[Model, Model], events: Common, replicas: int, seed: int) -> dict[str, Any] | None:
    """Expected significance of each model in its own bins, and the difference; None where one is not defined."""
    values, drawn = [], []
    for model, score in zip(models, events.scores, strict=True):
        found = binned_significance(score, events.is_signal, events.weight, model.edges)
        if found.value.value is None:
            return None
        values.append(found.value.value)
        blocks = bootstrap_counts(events.identity, events.process, replicas, seed)  # the same for both models
        drawn.append(significances(score, events.is_signal, events.weight, np.array(found.edges), blocks)[0])
    before, after = (estimate(value, own) for value, own in zip(values, drawn, strict=True))
    gain = estimate(values[1] - values[0], drawn[1] - drawn[0])
    return {"before": before.to_json(), "after": after.to_json(), "gain": gain.to_json()}


def _accepted(events: Common) -> npt.NDArray[np.bool_]:
    """Which events pass each model's working point, bool [2, N]."""
    points = [working_points(score, events.is_signal, events.weight, [EFFICIENCY])[0] for score in events.scores]
    return np.stack([score >= point.threshold for score, point in zip(events.scores, points, strict=True)])


def _selected(events: Common, accepted: npt.NDArray[np.bool_]) -> dict[str, dict[str, float]]:
    one, other = accepted
    found = {}
    for name, rows in (("signal", events.is_signal), ("background", ~events.is_signal)):
        total = float(events.weight[rows].sum())
        parts = (one & other, one & ~other, ~one & other, ~one & ~other)
        shares = [float(events.weight[rows & part].sum()) / total for part in parts]
        found[name] = dict(zip(SELECTED, shares, strict=True))
    return found


def _disagree(one: Model, events: Common, accepted: npt.NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Features by the distance of Kolmogorov and Smirnov between what only one accepts and what only the other does."""
    parts = [accepted[i] & ~accepted[1 - i] & ~events.is_signal for i in (0, 1)]
    found: list[tuple[float, dict[str, Any]]] = []
    for name, column in one.events.table.columns.items():
        values, there = np.ma.getdata(column)[events.rows], ~np.ma.getmaskarray(column)[events.rows]
        samples = [values[part & there] for part in parts]
        if min(map(len, samples)) < FEWEST:
            continue
        medians = [float(np.median(sample)) for sample in samples]
        distance = float(stats.ks_2samp(*samples, method="asymp").statistic)
        counts = [len(sample) for sample in samples]
        found.append((distance, {"feature": name, "distance": distance, "medians": medians, "events": counts}))
    return [entry for _, entry in sorted(found, key=lambda pair: -pair[0])[:SHOWN]]


def _two(score: FloatArray) -> FloatArray:
    """Probabilities of the rest and of the signal, [N, 2]."""
    return np.stack([1 - score, score], axis=1)


def pages(found: Mapping[str, Any]) -> tuple[str, list[Table]]:
    """What the page says: a note, and tables."""
    one, other = found["models"]
    note = (
        f"{found['events']:,} held-out test events that both models have, by their identities, with the weights of "
        f"{one}; {one} has {found['alone'][0]:,} and {other} {found['alone'][1]:,} more. Intervals are those of 68% "
        "over events, paired: each replica holds the same events for both. The networks are held fixed. The "
        "significance is that of these events alone, in which processes of no class are missing."
    )
    selected = [
        [name, *(f"{100 * shares[part]:.1f}%" for part in SELECTED)] for name, shares in found["selected"].items()
    ]
    disagree = [
        [entry["feature"], f"{entry['distance']:.3f}", *(f"{median:.4g}" for median in entry["medians"])]
        for entry in found["disagree"]
    ]
    accepted = f"Accepted at a signal efficiency of {EFFICIENCY:.0%}"
    where = "Background that only one of them accepts: features that differ most"
    return note, [
        Table("Figures of merit", ["", one, other, "gain"], _merits(found)),
        Table(accepted, ["", "by both", f"only by {one}", f"only by {other}", "by neither"], selected),
        Table(where, ["feature", "KS distance", f"median, {one}", f"median, {other}"], disagree),
    ]


def _merits(found: Mapping[str, Any]) -> list[list[str]]:
    """Figures of merit of each model, and the gain."""
    titles = {"auc_weighted": "AUC", "auc_unweighted": "AUC, unweighted", "significance": "significance"}
    parts = ("before", "after", "gain")
    return [[title, *(text((found[key] or {}).get(part)) for part in parts)] for key, title in titles.items()]
