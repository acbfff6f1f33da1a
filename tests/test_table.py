"""Column stores, tables of many chunks, and physics weights."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.columns import read_columns, write_columns
from analysis.errors import UserError
from analysis.splitting import event_identity, is_test
from analysis.table import Chunk, EventTable, TableSettings, load_table
from analysis.weights import Normalisation, Totals, collect_totals, scale_of_test

SETTINGS = TableSettings(
    processes=("top", "higgs"),
    labels=(0, 1),
    normalisations={"top": Normalisation(None), "higgs": Normalisation(None)},
    collision=frozenset({"data"}),
    columns=("pt",),
    factors=(),
    duplicates="error",
)
WriteChunk = Callable[..., Chunk]


@pytest.fixture
def write_chunk(tmp_path: Path) -> WriteChunk:
    """Write the stores of one chunk: `write_chunk("a.root", numbers, processes)`."""
    count = itertools.count()

    def write(
        file: str, numbers: Sequence[int], processes: Sequence[str], dataset: str = "mc", **columns: Any
    ) -> Chunk:
        folder = tmp_path / f"chunk{next(count)}"
        folder.mkdir()
        numbers = np.asarray(numbers, dtype=np.int64)
        identity = event_identity(dataset, [numbers])
        selected = {
            "entry": np.arange(len(numbers), dtype=np.int64),
            "identity": identity,
            "process": np.asarray(processes, dtype=object),
            "generator_weight": 1.0 + numbers,
            "is_test": is_test(identity, 0.25, "eventfold"),
            "training": numbers % 2 == 0,
            "category": np.where(numbers % 3 == 0, "one", "").astype(object),
        }
        write_columns(folder / "events.parquet", selected)
        pt = np.ma.MaskedArray(numbers.astype(np.float32), mask=numbers % 4 == 1)
        for name, values in ({"pt": pt} | columns).items():
            write_columns(folder / f"{name}.parquet", {name: values})
        paths = {name: folder / f"{name}.parquet" for name in ("pt", *columns)}
        return Chunk(dataset, file, folder / "events.parquet", paths)

    return write


def assert_same_tables(one: EventTable, other: EventTable, besides: Sequence[str] = ()) -> None:
    """Compare all arrays bit by bit."""
    for field in fields(EventTable):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if field.name in besides or isinstance(a, tuple):
            continue
        for left, right in zip(a.values(), b.values(), strict=True) if isinstance(a, dict) else [(a, b)]:
            np.testing.assert_array_equal(np.ma.getmaskarray(left), np.ma.getmaskarray(right), err_msg=field.name)
            np.testing.assert_array_equal(np.ma.getdata(left), np.ma.getdata(right), err_msg=field.name)


@pytest.mark.parametrize(
    "values",
    [
        np.array([1.5, np.nan, -np.inf], np.float32),
        np.array([0, 2**64 - 1], np.uint64),
        np.array([True, False]),
        np.array(["higgs", "", "H→WW"], object),
        np.zeros(0, np.int64),
        np.ma.MaskedArray(np.array([1, 2, 3], np.float32), mask=[False, True, False]),
        np.ma.MaskedArray(np.array([1, 2], np.float32), mask=True),
        np.ma.MaskedArray(np.zeros(0, np.float32), mask=[]),
    ],
    ids=str,
)
def test_columns_come_back_as_they_were(tmp_path: Path, values: np.ndarray) -> None:
    write_columns(tmp_path / "a.parquet", {"x": values, "y": values})
    found = read_columns(tmp_path / "a.parquet", ["x"])
    assert list(found) == ["x"]
    assert found["x"].dtype == values.dtype
    np.testing.assert_array_equal(np.ma.getmaskarray(found["x"]), np.ma.getmaskarray(values))
    np.testing.assert_array_equal(np.ma.compressed(found["x"]), np.ma.compressed(values))


def test_an_empty_chunk_joins_others(write_chunk: WriteChunk) -> None:
    some, none = write_chunk("a.root", range(5), ["top"] * 5), write_chunk("b.root", [], [])
    assert_same_tables(load_table([some, none], {}, SETTINGS), load_table([some], {}, SETTINGS))
    assert len(load_table([none], {}, SETTINGS)) == 0
    assert len(load_table([], {}, SETTINGS)) == 0


def test_table_joins_what_belongs_together(write_chunk: WriteChunk) -> None:
    """Every column still belongs to its event after sorting by identity."""
    chunks = [
        write_chunk("a.root", range(40), ["top", "higgs"] * 20),
        write_chunk("b.root", range(40, 70), ["higgs", "unlisted", "top"] * 10),
    ]
    table = load_table(chunks, {}, SETTINGS)
    assert len(table) == 60
    assert np.all(table.identity[1:] >= table.identity[:-1])
    numbers = np.where(table.chunk == 0, 0, 40) + table.entry
    np.testing.assert_array_equal(table.identity, event_identity("mc", [numbers]))
    np.testing.assert_array_equal(table.weight, 1.0 + numbers)
    np.testing.assert_array_equal(table.training, numbers % 2 == 0)
    np.testing.assert_array_equal(table.category, np.where(numbers % 3 == 0, "one", ""))
    np.testing.assert_array_equal(np.ma.getmaskarray(table.columns["pt"]), numbers % 4 == 1)
    assert np.all(table.columns["pt"] == numbers)
    expected = np.where(table.chunk == 0, numbers % 2, np.where((numbers - 40) % 3 == 0, 1, 0))
    np.testing.assert_array_equal(table.process, expected)
    np.testing.assert_array_equal(table.label, expected)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_order_of_chunks_changes_nothing(write_chunk: WriteChunk, order: tuple[int, ...]) -> None:
    chunks = [write_chunk(f"{i}.root", range(10 * i, 10 * i + 10), ["top", "higgs"] * 5) for i in range(3)]
    table, other = (load_table(c, {}, SETTINGS) for c in (chunks, [chunks[i] for i in order]))
    assert_same_tables(table, other, besides=["chunk"])
    np.testing.assert_array_equal(table.chunk, np.array(order)[other.chunk])


def test_take(write_chunk: WriteChunk) -> None:
    table = load_table([write_chunk("a.root", range(10), ["top"] * 10)], {}, SETTINGS)
    assert_same_tables(table.take(table.weight > 5), table.take(np.flatnonzero(table.weight > 5)))
    assert table.take(table.weight > 5).weight.min() > 5


@pytest.mark.parametrize(
    ("normalisation", "totals", "factor"),
    [
        (Normalisation(None), Totals(5, 15, 100, 4), 1.0),
        (Normalisation(831.8 * 1000 * 59.7), Totals(5, 15, 100, 4), 831.8 * 1000 * 59.7 / 100),
        (Normalisation(692), Totals(5, 15, 15, 4), 692 / 15),
    ],
    ids=["as_is", "cross_section", "sum_to"],
)
def test_normalisation(write_chunk: WriteChunk, normalisation: Normalisation, totals: Totals, factor: float) -> None:
    """w = L·σ·w_gen / Σw_gen, with Σw_gen of all that was generated, also of what a skim left out."""
    settings = replace(SETTINGS, processes=("top",), labels=(0,), normalisations={"top": normalisation})
    table = load_table([write_chunk("a.root", range(5), ["top"] * 5)], {"top": totals}, settings)
    assert sorted(table.weight) == pytest.approx([factor * w for w in range(1, 6)])


def test_each_process_has_its_own_normalisation(write_chunk: WriteChunk) -> None:
    normalisations = {"top": Normalisation(3.0), "higgs": Normalisation(7.0)}
    chunk = write_chunk("a.root", range(4), ["top", "higgs", "top", "higgs"])
    totals = {"top": Totals(2, 4, 4, 1), "higgs": Totals(2, 6, 6, 1)}
    table = load_table([chunk], totals, replace(SETTINGS, normalisations=normalisations))
    assert [table.weight[table.process == i].sum() for i in (0, 1)] == pytest.approx([3.0, 7.0])


def test_factors_multiply_simulation_alone(write_chunk: WriteChunk) -> None:
    settings = replace(SETTINGS, processes=("top", "data"), labels=(0, -1), factors=("fake",))
    settings = replace(settings, normalisations={p: Normalisation(None) for p in settings.processes})
    fake = np.full(3, 0.5, np.float32)
    chunks = [
        write_chunk("a.root", range(3), ["top"] * 3, fake=fake),
        write_chunk("b.root", range(3), ["data"] * 3, dataset="data", fake=fake),
    ]
    table = load_table(chunks, {}, settings)
    assert table.weight[table.process == 0].sum() == 3.0
    assert table.weight[table.process == 1].sum() == 6.0
    absent = write_chunk("a.root", range(3), ["top"] * 3, fake=np.ma.MaskedArray(fake, mask=[0, 1, 0]))
    with pytest.raises(UserError, match="Weight factor fake is None for some events of data set 'mc'"):
        load_table([absent], {}, settings)


@pytest.mark.parametrize("generated", [0.0, -3.0])
def test_weights_that_sum_to_zero_or_below(write_chunk: WriteChunk, generated: float) -> None:
    settings = replace(SETTINGS, normalisations={p: Normalisation(10) for p in SETTINGS.processes})
    totals = {"top": Totals(7, 1, 1, 1), "higgs": Totals(9, generated, generated, 1)}
    with pytest.raises(UserError) as raised:
        load_table([write_chunk("a.root", range(3), ["top"] * 3)], totals, settings)
    assert "Process 'higgs': the generator weights of its 9 entries sum to " in str(raised.value)
    assert "use normalisation: as_is" in str(raised.value)


def twice(write_chunk: WriteChunk) -> list[Chunk]:
    """Event 3 of top is in both files of the data set, and once more as an event of higgs."""
    return [
        write_chunk("a.root", [1, 2, 3, 3], ["top", "top", "top", "higgs"]),
        write_chunk("b.root", [5, 3], ["top", "top"]),
    ]


def test_duplicates_are_an_error(write_chunk: WriteChunk) -> None:
    with pytest.raises(UserError) as raised:
        load_table(twice(write_chunk), {}, SETTINGS)
    message = str(raised.value)
    assert message.startswith(
        "Process 'top': 2 events occur more than once, the first as entry 2 of a.root and entry 1"
    )
    assert "of b.root. Set identity.duplicates to drop" in message


def test_duplicates_are_dropped_independently_of_the_order_of_files(write_chunk: WriteChunk) -> None:
    settings = replace(SETTINGS, duplicates="drop")
    chunks = twice(write_chunk)
    table, other = load_table(chunks, {}, settings), load_table(chunks[::-1], {}, settings)
    assert_same_tables(table, other, besides=["chunk"])
    assert len(table) == 4
    kept = table.identity == event_identity("mc", [np.array([3])])
    assert table.process[kept].tolist() == [0]
    assert table.entry[kept].tolist() == [2]  # the first file's


def test_duplicates_are_kept(write_chunk: WriteChunk) -> None:
    settings = replace(SETTINGS, duplicates="keep")
    chunks = twice(write_chunk)
    table = load_table(chunks, {}, settings)
    assert len(table) == 6
    assert_same_tables(table, load_table(chunks[::-1], {}, settings), besides=["chunk"])


def test_the_same_number_in_another_data_set_is_no_duplicate(write_chunk: WriteChunk) -> None:
    chunks = [write_chunk("a.root", range(9), ["top"] * 9, dataset=name) for name in ("mc", "extension")]
    assert len(load_table(chunks, {}, SETTINGS)) == 18


def test_a_skim_that_shares_its_sample_key_within_one_process_is_a_duplicate(write_chunk: WriteChunk) -> None:
    chunks = [write_chunk("a.root", range(9), ["top"] * 9, dataset="mc") for _ in range(2)]
    skim = replace(chunks[1], dataset="skim", file_key="b.root")
    with pytest.raises(UserError, match="9 events occur more than once"):
        load_table([chunks[0], skim], {}, SETTINGS)


def test_declared_sums_stand_in_for_counted_ones() -> None:
    counted = [
        ("ttbar", {"top": Totals(10, 8, 8, 2)}),
        ("ttbar", {"top": Totals(20, 16, 16, 4)}),
        ("mixed", {"top": Totals(5, 5, 5, 1), "higgs": Totals(3, 3, 3, 1)}),
    ]
    files = [("ttbar", 100.0), ("ttbar", 200.0), ("mixed", None)]
    assert collect_totals(counted, files, {}, {"ttbar": "top"}) == {
        "top": Totals(35, 29, 305, 7),
        "higgs": Totals(3, 3, 3, 1),
    }
    # A number in the configuration is the sum of the whole data set, whatever the files say.
    assert collect_totals(counted, files, {"ttbar": 1000.0}, {"ttbar": "top"})["top"] == Totals(35, 29, 1005, 7)
    assert collect_totals(counted, [("ttbar", None)], {}, {})["top"].generated == 29
    # A skim that kept no entry at all still declares what was generated.
    empty = collect_totals(counted, [*files, ("extension", 50.0)], {}, {"ttbar": "top", "extension": "top"})
    assert empty["top"].generated == 355


@given(st.lists(st.tuples(st.floats(-1, 3), st.booleans()), min_size=1, max_size=50))
def test_test_scale_closes_before_selection(events: list[tuple[float, bool]]) -> None:
    """Σ over test events of scale · w is exactly the process's Σw."""
    weight, test = (np.array(column) for column in zip(*events, strict=True))
    totals = Totals(len(weight), float(weight.sum()), 2.0, float(weight[test].sum()))
    scale = scale_of_test(totals)
    assert (scale is None) == (totals.test <= 0)
    if scale is not None and totals.test > 1e-9:
        assert scale * weight[test].sum() == pytest.approx(weight.sum())
