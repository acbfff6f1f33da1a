"""Two models on the same test events: which events they share, and what is made of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from analysis.comparison import Model, common_events, comparison, pages, rejection_ratio
from analysis.evaluation import Scales, ScoredEvents, ScoreSettings
from analysis.splitting import fold_of
from analysis.table import EventTable
from tests.toy import Law

SETTINGS = ScoreSettings(("background", "higgs"), "higgs", (), 5, "0")
SCALES = Scales(dict.fromkeys(("top", "higgs", "other"), 4.0), dict.fromkeys(("top", "higgs", "other"), 4 / 3))


def model(table: EventTable, name: str, power: float, noise: float = 1.0) -> Model:
    """Scores that share a random part, by the events' identities, and tell the classes apart with some power."""
    common = np.random.default_rng(1).normal(size=1 << 16)[table.identity % (1 << 16)]
    own = np.random.default_rng(len(name)).normal(size=len(table))
    score = 1 / (1 + np.exp(-common - noise * own - power * (table.label == 1)))
    scores = np.stack([1 - score, score], axis=1).astype(np.float32)
    events = ScoredEvents(table, fold_of(table.identity, 5, "0"), scores, scores, 0 * scores)
    return Model(name, events, SCALES, SETTINGS, 20)


@pytest.fixture
def table(toy_table: Callable[..., EventTable]) -> EventTable:
    return toy_table(6000)


def test_events_are_matched_by_identity(table: EventTable) -> None:
    """In whatever order, and only those that both hold out, in a class, with the same truth."""
    one = model(table, "one", 1.0)
    order = np.random.default_rng(2).permutation(len(table))[500:]
    other = model(table.take(order), "other", 2.0)
    found = common_events(one, other)
    kept = np.isin(np.arange(len(table)), order)
    expected = np.flatnonzero(table.is_test & (table.label >= 0) & kept)
    np.testing.assert_array_equal(np.sort(found.rows), expected)
    np.testing.assert_array_equal(found.scores[0], one.events.ensemble[found.rows, 1].astype(np.float64))
    places = {identity: row for row, identity in enumerate(other.events.table.identity.tolist())}
    theirs = [places[identity] for identity in found.identity.tolist()]
    np.testing.assert_array_equal(found.scores[1], other.events.ensemble[theirs, 1].astype(np.float64))
    np.testing.assert_allclose(found.weight, 4 * table.weight[found.rows])
    assert found.alone == (int((table.is_test & (table.label >= 0) & ~kept).sum()), 0)

    turned = replace(table, label=np.where(table.label >= 0, 1 - table.label, -1).astype(np.int16))
    assert len(common_events(one, model(turned, "turned", 1.0)).rows) == 0


def test_figures_are_those_of_each_model_and_their_difference_is_paired(table: EventTable) -> None:
    one, other = model(table, "one", 1.0, 0.2), model(table, "other", 1.3, 0.2)
    events = common_events(one, other)
    found = comparison(one, other, events, replicas=100, seed=1)
    json.dumps(found, allow_nan=False)
    for part, score in zip(("before", "after"), events.scores, strict=True):
        expected = roc_auc_score(events.is_signal, score)
        assert found["auc_unweighted"][part]["value"] == pytest.approx(expected)
    before, after, gain = (found["auc_unweighted"][part] for part in ("before", "after", "gain"))
    assert gain["value"] == pytest.approx(after["value"] - before["value"])
    assert gain["low"] > 0
    assert gain["high"] - gain["low"] < 0.5 * (after["high"] - after["low"])
    assert found["significance"]["gain"]["value"] == pytest.approx(
        found["significance"]["after"]["value"] - found["significance"]["before"]["value"]
    )
    for shares in found["selected"].values():
        assert sum(shares.values()) == pytest.approx(1.0)
    signal = found["selected"]["signal"]
    assert signal["both"] + signal["only one"] == pytest.approx(0.5, abs=0.05)
    assert signal["only one"] == pytest.approx(signal["only the other"], abs=0.05)
    ratio = rejection_ratio(events)
    assert np.median([value for value in ratio["ratio"] if value is not None]) > 1


def test_a_model_equals_itself(table: EventTable) -> None:
    one = model(table, "one", 1.0)
    found = comparison(one, one, common_events(one, one), replicas=20, seed=1)
    for key in ("auc_weighted", "auc_unweighted", "significance"):
        assert found[key]["gain"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert found["selected"]["background"]["only one"] == 0
    assert found["disagree"] == []
    assert set(rejection_ratio(common_events(one, one))["ratio"]) <= {1.0, None}


def test_features_in_which_models_disagree_come_first(table: EventTable) -> None:
    """Only one model accepts events of large met: it is what tells the two apart."""
    one, other = model(table, "one", 1.0), model(table, "other", 1.0)
    shifted = other.events.ensemble.copy()
    met = np.ma.getdata(table.columns["met"])
    shifted[:, 1] = np.clip(shifted[:, 1] + 0.3 * np.tanh(met), 0, 1)
    other = replace(other, events=replace(other.events, ensemble=shifted))
    found = comparison(one, other, common_events(one, other), replicas=20, seed=1)
    first = found["disagree"][0]
    assert first["feature"] == "met"
    assert first["medians"][0] < first["medians"][1]
    note, tables = pages(found)
    assert "one has 0 and other 0 more" in note
    assert tables[2].rows[0][0] == "met"


@pytest.mark.slow
def test_law_run_compare(law: Law) -> None:
    """The networks of the report, which are there, and others, which are made; their results stay as they are."""
    before = (law.results / "toy").resolve()
    asked = ("Compare", "--analysis", law.analysis, "--against", law.analysis, "--against-set", "training.epochs=6")
    done = law(*asked)
    assert "toy training.epochs=6" in done.stdout
    assert (law.results / "toy").resolve() == before
    (page,) = law.results.glob("toy-against-toy@*/page.html")
    assert str(page) in done.stdout
    found: dict[str, Any] = json.loads((page.parent / "comparison.json").read_text())
    summary = json.loads((law.results / "toy" / "summary.json").read_text())
    assert found["auc_weighted"]["before"] == pytest.approx(summary["metrics"]["test"]["auc"]["weighted"])
    assert found["alone"] == [0, 0]
    assert "PlotResults: done" not in done.stderr
    wrong = law("Compare", "--analysis", law.analysis, "--against", "toy@123", ok=False)
    assert "there is no" in wrong.stderr
    assert "Traceback" not in wrong.stderr
