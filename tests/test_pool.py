"""The training pool: who is in it, who is not, and when there are too few."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.errors import UserError
from analysis.pool import ARRAYS, Pool, PoolSettings, load_pool, prepare, save_pool
from analysis.splitting import fold_of
from analysis.table import EventTable, TableSettings
from analysis.weights import effective_number

ToyTable = Callable[..., EventTable]
SETTINGS = PoolSettings(
    table=TableSettings(
        processes=("top", "higgs", "other"),
        labels=(0, 1, -1),
        normalisations={},
        collision=frozenset(),
        columns=("met", "pt2"),
        factors=(),
        duplicates="error",
    ),
    objects=("event", "lepton2"),
    classes=("background", "signal"),
    count=5,
    scheme="rotating",
    salt="0",
    minimum=50,
)


def assert_same_pools(one: Pool, other: Pool) -> None:
    for name in ARRAYS:
        left, right = getattr(one, name), getattr(other, name)
        assert left.dtype == right.dtype
        assert left.tobytes() == right.tobytes(), name
    assert one.statistics == other.statistics


def test_who_is_in_the_pool(toy_table: ToyTable) -> None:
    table = toy_table()
    table = replace(table, training=np.arange(len(table)) % 10 != 0)
    pool = prepare(table, SETTINGS)
    chosen = ~table.is_test & table.training & (table.process != 2)
    np.testing.assert_array_equal(pool.identity, table.identity[chosen])
    np.testing.assert_array_equal(pool.labels, table.process[chosen])
    np.testing.assert_array_equal(pool.weights, table.weight[chosen])
    np.testing.assert_array_equal(pool.folds, fold_of(table.identity[chosen], 5, "0"))
    absent = np.ma.getmaskarray(table.columns["pt2"])[chosen]
    np.testing.assert_array_equal(pool.present, np.stack([np.ones_like(absent), ~absent], axis=1))
    np.testing.assert_array_equal(pool.values[:, 0], table.columns["met"][chosen])
    np.testing.assert_array_equal(pool.values[~absent, 1], table.columns["pt2"][chosen].compressed())
    assert set(pool.values[absent, 1]) == {0.0}
    assert (pool.features, pool.objects, pool.dropped) == (("met", "pt2"), ("event", "lepton2"), ())
    assert not np.isin(pool.identity, table.identity[table.is_test]).any()


def test_processes(toy_table: ToyTable, tmp_path: Path) -> None:
    table = toy_table()
    pool = prepare(table, SETTINGS)
    assert pool.processes == ("top", "higgs", "other")
    np.testing.assert_array_equal(pool.process, table.process[~table.is_test & (table.process != 2)])
    save_pool(pool, tmp_path)
    assert load_pool(tmp_path).processes == pool.processes


@pytest.mark.parametrize("scheme", ["rotating", "standard"])
def test_events_of_a_network(toy_table: ToyTable, scheme: str) -> None:
    settings = replace(SETTINGS, scheme=scheme)
    pool = prepare(toy_table(), settings)
    for network in range(5):
        training, stopping = pool.uses(network, 5, scheme)  # type: ignore[arg-type]
        assert network not in pool.folds[training]
        assert not (training & stopping).any()
        if scheme == "rotating":
            assert network not in pool.folds[stopping]
            assert training.sum() + stopping.sum() == np.sum(pool.folds != network)
        else:
            assert set(pool.folds[stopping]) == {network}
        statistics = pool.statistics[network]
        for purpose, rows in (("training", training), ("stopping", stopping)):
            for c, name in enumerate(pool.classes):
                weights = pool.weights[rows][pool.labels[rows] == c]
                assert statistics[purpose][name]["events"] == len(weights)
                assert statistics[purpose][name]["sum_of_weights"] == pytest.approx(weights.sum())
                assert statistics[purpose][name]["effective"] == pytest.approx(weights.sum() ** 2 / (weights**2).sum())


def test_a_feature_that_no_event_has_is_dropped(toy_table: ToyTable) -> None:
    """In no event of the pool, that is: a test event alone does not keep it."""
    table = toy_table()
    only_test = np.ma.MaskedArray(np.ones(len(table), np.float32), mask=~table.is_test)
    table = replace(table, columns={"met": only_test, "pt2": table.columns["pt2"]})
    pool = prepare(table, SETTINGS)
    assert (pool.features, pool.objects, pool.dropped) == (("pt2",), ("lepton2",), ("met",))
    assert pool.values.shape == pool.present.shape == (len(pool.labels), 1)
    table = replace(table, columns=dict.fromkeys(("met", "pt2"), only_test))
    with pytest.raises(UserError, match="No feature is present in any event"):
        prepare(table, SETTINGS)


def test_too_few_events_of_a_class_in_a_fold(toy_table: ToyTable) -> None:
    table = toy_table(count=1200)
    with pytest.raises(UserError) as raised:
        prepare(table, replace(SETTINGS, minimum=70))
    message = str(raised.value)
    assert message.startswith("At least 70 events of each class are needed in each fold")
    chosen = ~table.is_test & (table.label >= 0)
    folds = fold_of(table.identity, 5, "0")
    for c, name in enumerate(SETTINGS.classes):
        rows = [chosen & (table.label == c) & (folds == f) for f in range(5)]
        cells = "  ".join(f"{r.sum()} ({effective_number(table.weight[r]):.0f})" for r in rows)
        assert f"\n  {name}: {cells}\n" in message
    fewest = min(int(n) for n in re.findall(r"(\d+) \(", message))
    assert 0 < fewest < 70
    prepare(table, replace(SETTINGS, minimum=fewest))
    with pytest.raises(UserError):
        prepare(table, replace(SETTINGS, minimum=fewest + 1))


def test_events_without_weight_do_not_count(toy_table: ToyTable) -> None:
    table = toy_table()
    prepare(table, replace(SETTINGS, minimum=100))
    weight = np.where((table.label == 1) & (np.arange(len(table)) % 2 == 0), 0.0, table.weight)
    with pytest.raises(UserError, match="At least 100 events of each class"):
        prepare(replace(table, weight=weight), replace(SETTINGS, minimum=100))


def test_a_class_whose_weights_sum_to_zero_or_below(toy_table: ToyTable) -> None:
    """In one fold is enough: network 2 stops on fold 3."""
    table = toy_table()
    fold = fold_of(table.identity, 5, "0")
    weight = np.where((table.label == 1) & (fold == 3), -1.0, np.abs(table.weight))
    with pytest.raises(UserError) as raised:
        prepare(replace(table, weight=weight), SETTINGS)
    assert "Class 'signal': the physics weights of its " in str(raised.value)
    assert "events for stopping of network 2 sum to -" in str(raised.value)


def test_no_event_is_left(toy_table: ToyTable) -> None:
    table = toy_table()
    with pytest.raises(UserError, match=r"No event is left to train on: 3000 events pass selection\.cuts, of which"):
        prepare(replace(table, training=np.zeros(len(table), bool)), SETTINGS)
    with pytest.raises(UserError, match="No event is left to train on: 0 events"):
        prepare(table.take(np.zeros(len(table), bool)), SETTINGS)


def test_test_events_have_no_influence(toy_table: ToyTable) -> None:
    """Whatever the test events hold, the pool is the same bit by bit."""
    table = toy_table()
    columns = {n: np.ma.where(table.is_test, np.float32(1e9), c).astype(np.float32) for n, c in table.columns.items()}
    other = replace(table, weight=np.where(table.is_test, -1e9, table.weight), columns=columns)
    assert_same_pools(prepare(table, SETTINGS), prepare(other, SETTINGS))


def test_pool_comes_back_from_disk(toy_table: ToyTable, tmp_path: Path) -> None:
    pool = prepare(toy_table(), SETTINGS)
    save_pool(pool, tmp_path)
    found = load_pool(tmp_path)
    assert_same_pools(pool, found)
    assert (found.features, found.objects, found.classes) == (pool.features, pool.objects, pool.classes)
    assert isinstance(found.values, np.memmap)
