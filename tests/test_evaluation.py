"""Judging: which scores of which events enter which figure, with which weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from analysis.errors import UserError
from analysis.evaluation import (
    PATTERN_EVENTS,
    EvaluationSettings,
    Filled,
    Scales,
    ScoredEvents,
    ScoreSettings,
    attach_scores,
    judge,
)
from analysis.friends import Scores, write_friend
from analysis.splitting import fold_of
from analysis.table import EventTable
from analysis.weights import Totals

ToyTable = Callable[..., EventTable]
SCORES = ScoreSettings(classes=("background", "signal"), signal="signal", collision=(), folds=5, salt="0")
SETTINGS = EvaluationSettings(
    features={"met": "event", "pt2": "lepton2"}, scheme="rotating", bins=10, replicas=20, seed=1
)
SCALES = Scales({"top": 4.0, "higgs": 2.0, "other": 1.0}, {"top": 1.25, "higgs": 2.0, "other": None})


def scored(table: EventTable, seed: int = 1) -> ScoredEvents:
    """Two independent sets of scores, each with some power."""
    rng = np.random.default_rng(seed)

    def draw() -> np.ndarray:
        signal = 1 / (1 + np.exp(-rng.normal(size=len(table)) - (table.label == 1)))
        return np.stack([1 - signal, signal], axis=1).astype(np.float32)

    return ScoredEvents(table, fold_of(table.identity, 5, "0"), draw(), draw(), 0.1 * draw())


@pytest.fixture
def events(toy_table: ToyTable) -> ScoredEvents:
    table = toy_table()
    return scored(replace(table, weight=np.abs(table.weight)))


@pytest.fixture
def summary(events: ScoredEvents) -> dict[str, Any]:
    return judge(events, SCALES, SCORES, SETTINGS, [])


def test_each_figure_takes_its_own_scores_events_and_weights(events: ScoredEvents, summary: dict[str, Any]) -> None:
    """Against scikit-learn: the ensemble on test events, network f on the other events of fold f, both scaled."""
    table = events.table
    labelled, signal = table.label >= 0, table.label == 1
    weight = table.weight * np.where(table.is_test, *(np.array(s)[table.process] for s in ([4.0, 2, 1], [1.25, 2, 0])))

    def auc(rows: np.ndarray, scores: np.ndarray, weight: np.ndarray) -> float:
        return float(roc_auc_score(signal[rows], scores[rows, 1], sample_weight=weight[rows]))

    rest = labelled & ~table.is_test
    metrics = summary["metrics"]
    expected = [
        (metrics["test"], labelled & table.is_test, events.ensemble),
        (metrics["out_of_fold"], rest, events.routed),
        *((metrics["folds"][f], rest & (events.fold == f), events.routed) for f in range(5)),
    ]
    for found, rows, scores in expected:
        assert found["auc"]["weighted"]["value"] == pytest.approx(auc(rows, scores, weight))
        assert found["auc"]["unweighted"]["value"] == pytest.approx(auc(rows, scores, np.ones(len(table))))
        assert sum(found["events"].values()) == rows.sum()
        assert sum(found["sum_of_weights"].values()) == pytest.approx(weight[rows].sum())


def test_what_does_not_belong_changes_nothing(events: ScoredEvents, summary: dict[str, Any]) -> None:
    """Routed scores of test events, ensemble scores of all others, and all scores of `other` enter no figure."""
    table, rng = events.table, np.random.default_rng(7)
    noise = rng.dirichlet([1, 1], (2, len(table))).astype(np.float32)
    foreign = (table.label < 0)[:, None]
    test = table.is_test[:, None]
    other = replace(
        events,
        routed=np.where(test | foreign, noise[0], events.routed),
        ensemble=np.where(~test | foreign, noise[1], events.ensemble),
    )
    found = judge(other, SCALES, SCORES, SETTINGS, [])
    for key in ("metrics", "categories", "patterns"):
        assert found[key] == summary[key], key
    changed = judge(replace(events, routed=noise[0]), SCALES, SCORES, SETTINGS, [])
    assert changed["metrics"]["out_of_fold"] != summary["metrics"]["out_of_fold"]
    assert changed["metrics"]["test"] == summary["metrics"]["test"]


def test_summary_has_no_nan(toy_table: ToyTable) -> None:
    """Negative weights, a process without a selected event, a category without signal, absent objects."""
    table = toy_table()
    table = table.take(~((table.category == "one") & (table.label == 1)) & (table.process != 2))
    absent = np.ma.MaskedArray(np.zeros(len(table), np.float32), mask=True)
    table = replace(table, columns={"met": table.columns["met"], "pt2": absent})
    found = judge(scored(table), SCALES, SCORES, SETTINGS, ["pt2"])
    json.dumps(found, allow_nan=False)
    assert (found["features"], found["dropped_features"]) == (["met"], ["pt2"])
    assert found["yields"]["other"] == {
        "class": None,
        "entries": 0,
        "yield": 0.0,
        "uncertainty": 0.0,
        "effective": 0.0,
        "test_entries": 0,
        "test_scale": 1.0,
        "test_closure": None,
    }
    assert found["missing"] == {"event": 0.0, "lepton2": 1.0}
    assert found["categories"]["one"]["auc"]["weighted"]["value"] is None


def test_yields_and_missing_objects(events: ScoredEvents, summary: dict[str, Any]) -> None:
    table = events.table
    for i, (name, class_name) in enumerate((("top", "background"), ("higgs", "signal"), ("other", None))):
        weight = table.weight[table.process == i]
        found = summary["yields"][name]
        assert found["class"] == class_name
        assert found["entries"] == len(weight)
        assert found["yield"] == pytest.approx(weight.sum())
        assert found["uncertainty"] == pytest.approx(np.sqrt((weight**2).sum()))
        assert found["test_scale"] == SCALES.test[name]
        assert found["test_entries"] == np.sum(table.is_test & (table.process == i))
    share = float(np.ma.getmaskarray(table.columns["pt2"]).mean())
    assert summary["missing"] == {"event": 0.0, "lepton2": pytest.approx(share)}


def test_yields_close(toy_table: ToyTable) -> None:
    """Test events drawn at random close within errors, in units of their spread; a part that is chosen does not."""
    table = toy_table(6000)
    found = []
    for seed in range(60):
        chosen = np.random.default_rng(seed).random(len(table)) < 0.25
        weight = {p: table.weight[table.process == i] for i, p in enumerate(table.processes)}
        test = {p: chosen[table.process == i] for i, p in enumerate(table.processes)}
        # Before a selection that keeps events at random, so that the closure is not exact.
        scale = {p: float(np.abs(w).sum() / np.abs(w)[test[p]].sum()) for p, w in weight.items()}
        kept = np.random.default_rng(1000 + seed).random(len(table)) < 0.5
        part = replace(table, is_test=chosen).take(kept)
        yields = judge(scored(part), Scales(scale, scale), SCORES, replace(SETTINGS, replicas=1), [])["yields"]
        found += [yields[name]["test_closure"] for name in ("top", "higgs")]
    assert abs(np.mean(found)) < 0.35
    assert 0.7 < np.std(found) < 1.3
    # Of a quarter of the events, twice the sum is half of all: factors that do not belong to these events show.
    assert judge(scored(table), SCALES, SCORES, SETTINGS, [])["yields"]["higgs"]["test_closure"] < -3


def test_categories(events: ScoredEvents, summary: dict[str, Any]) -> None:
    table = events.table
    rows = (table.category == "one") & table.is_test & (table.label >= 0)
    weight = table.weight * np.array([4.0, 2.0, 1.0])[table.process]
    assert list(summary["categories"]) == ["one"]
    assert summary["categories"]["one"]["entries"] == rows.sum()
    expected = roc_auc_score(table.label[rows], events.ensemble[rows, 1], sample_weight=weight[rows])
    assert summary["categories"]["one"]["auc"]["weighted"]["value"] == pytest.approx(expected)


def test_patterns_of_present_objects(events: ScoredEvents, summary: dict[str, Any]) -> None:
    """Objects that all events have name no pattern; of events with few of a class there is no AUC."""
    table, signal = events.table, events.table.label == 1
    without = np.ma.getmaskarray(table.columns["pt2"])
    labelled = table.label >= 0
    for pattern in summary["patterns"]:
        own = labelled & (without == (pattern["objects"] == []))
        counts = [int(np.sum(own & (table.label == c))) for c in range(2)]
        assert list(pattern["entries"].values()) == counts
        for name, test, scores in (("test", True, events.ensemble), ("out_of_fold", False, events.routed)):
            rows = own & (table.is_test == test)
            if min(np.sum(rows & signal), np.sum(rows & ~signal)) < PATTERN_EVENTS:
                assert pattern[name] is None
                continue
            expected = roc_auc_score(signal[rows], scores[rows, 1], sample_weight=table.weight[rows])
            found = pattern[name]["weighted"]
            assert found["value"] == pytest.approx(expected)
            assert found["low"] < found["value"] < found["high"]
    assert [pattern["objects"] for pattern in summary["patterns"]] in ([["lepton2"], []], [[], ["lepton2"]])
    assert sum(sum(pattern["entries"].values()) for pattern in summary["patterns"]) == labelled.sum()
    few = judge(events.take(~without | (np.arange(len(table)) % 40 == 0)), SCALES, SCORES, SETTINGS, [])["patterns"]
    assert few[1]["objects"] == []
    assert few[1]["test"] is None


def test_a_class_without_test_events(events: ScoredEvents) -> None:
    few = events.take(~(events.table.is_test & (events.table.label == 1)))
    with pytest.raises(UserError, match="Class 'signal' has no test events"):
        judge(few, SCALES, SCORES, SETTINGS, [])


def test_order_of_events_changes_no_figure(events: ScoredEvents, summary: dict[str, Any]) -> None:
    order = np.random.default_rng(2).permutation(len(events.table))
    found = judge(events.take(order), SCALES, SCORES, SETTINGS, [])["metrics"]
    for key in ("test", "out_of_fold"):
        one, other = found[key]["auc"]["weighted"], summary["metrics"][key]["auc"]["weighted"]
        assert one == {name: pytest.approx(value, abs=1e-12) for name, value in other.items()}


def test_scales_are_from_before_the_selection(toy_table: ToyTable) -> None:
    table = toy_table()
    totals = {"top": Totals(100, 80.0, 800.0, 16.0), "higgs": Totals(50, 30.0, 30.0, 10.0)}
    scales = Scales.of(table, totals, ())
    # A process in no class whose part of the test is empty stops nothing; it just can't be scaled.
    assert scales.test == {"top": 5.0, "higgs": 3.0, "other": None}
    assert scales.rest == {"top": 1.25, "higgs": 1.5, "other": None}
    factors = scales.per_event(table)
    assert set(factors[(table.process == 0) & table.is_test]) == {5.0}
    assert set(factors[(table.process == 0) & ~table.is_test]) == {1.25}
    assert set(factors[table.process == 2]) == {0.0}
    with pytest.raises(UserError, match="Process 'higgs': the generator weights of its test events sum to -1"):
        Scales.of(table, totals | {"higgs": Totals(50, 30.0, 30.0, -1.0)}, ())


def test_collision_data_are_never_scaled(toy_table: ToyTable) -> None:
    table = toy_table()
    totals = {"top": Totals(100, 80.0, 80.0, 16.0), "higgs": Totals(50, 30.0, 30.0, 10.0)}
    scales = Scales.of(table, totals, ("other",))
    assert set(scales.per_event(table)[table.process == 2]) == {1.0}


def test_attach_scores_joins_by_file_and_entry(toy_table: ToyTable, tmp_path: Path) -> None:
    """Two chunks of one file and one of another; the table is ordered by identity, the friends by entry."""
    table = toy_table(count=300)
    # Toy events are numbered by `entry`: chunk 0 and 1 are the halves of the first file, chunk 2 is another file.
    chunk = np.digitize(table.entry, [100, 200]).astype(np.int32)
    table = replace(table, chunk=chunk, entry=np.where(chunk == 2, table.entry - 200, table.entry))
    friends = [tmp_path / "a.root", tmp_path / "a.root", tmp_path / "b.root"]
    for path, of_file in ((friends[0], chunk < 2), (friends[2], chunk == 2)):
        score = np.linspace(0, 1, len(table), dtype=np.float32)[of_file]
        both = np.stack([1 - score, score], axis=1)
        part = Scores(
            table.entry[of_file], np.zeros(len(score), np.int16), table.is_test[of_file], both, both / 2, both / 4
        )
        write_friend(path, 1000, SCORES.classes, [part])
    found = attach_scores(table, friends, SCORES.classes, 5, "0")
    np.testing.assert_array_equal(found.routed[:, 1], np.linspace(0, 1, len(table), dtype=np.float32))
    np.testing.assert_array_equal(found.ensemble, found.routed / 2)
    np.testing.assert_array_equal(found.spread, found.routed / 4)
    assert np.array_equal(found.take(table.chunk == 1).spread, found.spread[table.chunk == 1])
    np.testing.assert_array_equal(found.fold, fold_of(table.identity, 5, "0"))
    write_friend(friends[2], 1000, SCORES.classes, [])
    with pytest.raises(ValueError, match="100 selected events have no routed score"):
        attach_scores(table, friends, SCORES.classes, 5, "0")


EDGES = np.linspace(0, 1, 11)


def filled(
    events: ScoredEvents, kind: Any = "ensemble", scales: Scales = SCALES, collision: tuple[str, ...] = ()
) -> Filled:
    return Filled(events, scales, replace(SCORES, collision=collision), kind, with_data=bool(collision))


def test_templates_are_scaled_test_events_and_unscaled_data(events: ScoredEvents) -> None:
    table = events.table
    templates, data = filled(events).histograms("signal", EDGES)
    assert data is None
    for i, name in enumerate(table.processes):
        rows = (table.process == i) & table.is_test
        content, _ = np.histogram(events.ensemble[rows, 1], EDGES, weights=table.weight[rows])
        variance, _ = np.histogram(events.ensemble[rows, 1], EDGES, weights=table.weight[rows] ** 2)
        scale = SCALES.test[name]
        np.testing.assert_allclose(templates[name].values, content * scale)
        np.testing.assert_allclose(templates[name].variances, variance * scale**2)
    unscaled = Scales(SCALES.test | {"other": None}, SCALES.rest)
    assert "other" not in filled(events, scales=unscaled).histograms("signal", EDGES)[0]
    templates, data = filled(events, collision=("other",)).histograms("signal", EDGES)
    assert list(templates) == ["top", "higgs"]
    assert data is not None
    assert data.values.sum() == pytest.approx(table.weight[table.process == 2].sum())


def test_routed_templates_are_all_events_and_data_alike(events: ScoredEvents) -> None:
    table = events.table
    templates, data = filled(events, "routed", collision=("other",)).histograms("background", EDGES)
    for i, name in enumerate(("top", "higgs")):
        rows = table.process == i
        content, _ = np.histogram(events.routed[rows, 0], EDGES, weights=table.weight[rows])
        np.testing.assert_allclose(templates[name].values, content)
    assert data is not None
    rows = table.process == 2
    np.testing.assert_allclose(data.values, np.histogram(events.routed[rows, 0], EDGES, weights=table.weight[rows])[0])


def test_folders_hold_every_class_and_category(events: ScoredEvents) -> None:
    found = filled(events, collision=("other",)).folders(10)
    classes = ("background", "signal")
    assert set(found) == {f"{folder}score_{name}_ensemble" for folder in ("", "one/") for name in classes}
    for named in found.values():
        assert list(named) == ["top", "higgs", "data_obs"]
    table = events.table
    rows = (table.process == 1) & table.is_test & (table.category == "one")
    assert found["one/score_signal_ensemble"]["higgs"].entries.sum() == rows.sum()
    assert found["score_signal_ensemble"]["higgs"].values.sum() == pytest.approx(
        2 * table.weight[(table.process == 1) & table.is_test].sum()
    )


@pytest.mark.parametrize("kind", ["ensemble", "routed"])
def test_bins_are_chosen_without_held_out_events(events: ScoredEvents, kind: Any) -> None:
    """Test events may have any score and weight; with all events to fill them there are more bins."""
    table = events.table
    noise = np.random.default_rng(8).dirichlet([1, 1], len(table)).astype(np.float32)
    test = table.is_test
    other = replace(
        events,
        table=replace(table, weight=np.where(test, 17.0, table.weight)),
        routed=np.where(test[:, None], noise, events.routed),
        ensemble=noise,
    )
    edges = filled(events, kind).bins(20)
    np.testing.assert_array_equal(filled(other, kind).bins(20), edges)
    assert len(edges) > 3
    assert len(filled(events, "routed").bins(20)) >= len(filled(events, "ensemble").bins(20))
