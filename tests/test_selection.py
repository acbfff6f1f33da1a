"""Selection and the calling of user functions: cutflow, buckets, categories, and mistakes in one sentence."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest

from analysis.config import load_physics
from analysis.errors import UserError
from analysis.events import read
from analysis.features import branch, compute, feature
from analysis.functions import Function
from analysis.selection import Cutflow, select
from analysis.sources import SelectionSettings, Source
from analysis.splitting import event_identity, is_test, key_of
from analysis.weights import Totals

COUNT = 500
RNG = np.random.default_rng(3)
BRANCHES: dict[str, Any] = {
    "run": np.ones(COUNT, np.uint32),
    "event": np.arange(COUNT, dtype=np.uint64) + np.uint64(2**63),
    "label": (np.arange(COUNT) % 3 == 0).astype(np.int32),
    "weight": np.where(RNG.random(COUNT) < 0.2, -1.0, 1.0) * RNG.exponential(1, COUNT),
    "met": RNG.exponential(30, COUNT).astype(np.float32),
    "pt": np.where(RNG.random(COUNT) < 0.4, -7, RNG.exponential(40, COUNT)).astype(np.float32),
}
SETTINGS = SelectionSettings(
    sample="mixed",
    file_key="",
    identity=("run", "event"),
    processes={"top": {"label": 0}, "higgs": {"label": 1}},
    generator="weight",
    cuts=("leading_pt", "some_met"),
    training_cuts=("much_met",),
    categories={"hard": "is_hard", "soft": "is_soft"},
    test_fraction=0.25,
    test_salt="eventfold",
)
FUNCTIONS: Mapping[str, Function] = {
    "leading_pt": lambda events: events.pt > 20,  # None where there is no object
    "some_met": lambda events: events.met > 10,
    "much_met": lambda events: events.met > 20,
    "is_hard": lambda events: events.pt > 60,
    "is_soft": lambda events: events.pt <= 40,
}


@pytest.fixture
def source(write_root: Callable[..., str]) -> Source:
    return Source(write_root(BRANCHES), "events", "flat", 0, COUNT, {"pt": -7})


def test_what_is_selected(source: Source) -> None:
    """Against plain numpy on the arrays that were written."""
    found = select(source, SETTINGS, FUNCTIONS)
    passed = (BRANCHES["pt"] > 20) & (BRANCHES["met"] > 10)
    entry = np.flatnonzero(passed)
    identity = event_identity("mixed", [BRANCHES["run"].astype(np.int64), BRANCHES["event"].view(np.int64)])
    expected = {
        "entry": entry,
        "identity": identity[entry],
        "process": np.where(BRANCHES["label"], "higgs", "top")[entry],
        "generator_weight": BRANCHES["weight"][entry],
        "is_test": is_test(identity, 0.25, "eventfold")[entry],
        "training": BRANCHES["met"][entry] > 20,
        "category": np.select([BRANCHES["pt"][entry] > 60, BRANCHES["pt"][entry] <= 40], ["hard", "soft"], ""),
    }
    assert list(found.columns) == list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(found.columns[name], values, err_msg=name)
    assert {"hard", "soft", ""} == set(found.columns["category"])


def test_cutflow(source: Source) -> None:
    """None counts as failed: absent objects are in `all` and in no later step."""
    found = select(source, SETTINGS, FUNCTIONS)
    masks = {"all": np.ones(COUNT, bool), "leading_pt": BRANCHES["pt"] > 20}
    masks["some_met"] = masks["leading_pt"] & (BRANCHES["met"] > 10)
    for name, label in (("top", 0), ("higgs", 1)):
        own = BRANCHES["label"] == label
        flow = found.cutflow[name]
        assert flow.entries == {step: int((own & mask).sum()) for step, mask in masks.items()}
        for step, mask in masks.items():
            assert flow.sum_of_weights[step] == pytest.approx(BRANCHES["weight"][own & mask].sum())
        assert flow.entries["some_met"] == int((found.columns["process"] == name).sum())


def test_totals_are_from_before_the_selection(source: Source) -> None:
    found = select(source, SETTINGS, FUNCTIONS).totals["higgs"]
    own = BRANCHES["label"] == 1
    identity = event_identity("mixed", [BRANCHES["run"].astype(np.int64), BRANCHES["event"].view(np.int64)])
    weight = BRANCHES["weight"]
    assert found.entries == own.sum()
    assert found.sum_of_weights == found.generated == pytest.approx(weight[own].sum())
    assert found.test == pytest.approx(weight[own & is_test(identity, 0.25, "eventfold")].sum())


@pytest.mark.parametrize("size", [1, 137, COUNT])
def test_chunking_changes_nothing(source: Source, size: int) -> None:
    last = min(COUNT, 20 * size)
    whole = select(replace(source, stop=last), SETTINGS, FUNCTIONS)
    parts = [
        select(replace(source, start=start, stop=min(start + size, last)), SETTINGS, FUNCTIONS)
        for start in range(0, last, size)
    ]
    for name, values in whole.columns.items():
        np.testing.assert_array_equal(np.concatenate([p.columns[name] for p in parts]), values, err_msg=name)
    for process in SETTINGS.processes:
        flow = sum((p.cutflow[process] for p in parts), Cutflow())
        totals = sum((p.totals[process] for p in parts), Totals())
        assert flow.entries == whole.cutflow[process].entries
        assert flow.sum_of_weights == pytest.approx(whole.cutflow[process].sum_of_weights)
        assert totals.test == pytest.approx(whole.totals[process].test)
        assert totals.entries == whole.totals[process].entries


def test_buckets_follow_the_event_not_its_content(write_root: Callable[..., str]) -> None:
    """A shifted twin in another file, in another order, of the same sample keeps every event in its bucket."""
    settings = replace(SETTINGS, cuts=(), training_cuts=(), categories={})
    order = np.random.default_rng(5).permutation(COUNT)
    shifted = {name: values[order] for name, values in BRANCHES.items()}
    shifted["met"] = shifted["met"] * np.float32(1.1)
    shifted["weight"] = shifted["weight"] * 2
    nominal, twin = (
        select(Source(write_root(content, name=name), "events", "flat", 0, COUNT, {}), settings, {}).columns
        for name, content in (("nominal.root", BRANCHES), ("shifted.root", shifted))
    )
    np.testing.assert_array_equal(nominal["identity"][order], twin["identity"])
    np.testing.assert_array_equal(nominal["is_test"][order], twin["is_test"])


def test_without_event_numbers_file_and_entry_are_the_identity(source: Source) -> None:
    settings = replace(SETTINGS, identity=(), file_key="a.root", cuts=(), training_cuts=(), categories={})
    found = select(replace(source, start=100, stop=200), settings, {}).columns["identity"]
    entries = np.arange(100, 200)
    np.testing.assert_array_equal(found, event_identity("mixed", [np.full(100, key_of("a.root")), entries]))
    other = select(replace(source, start=100, stop=200), replace(settings, file_key="b.root"), {})
    assert not np.isin(found, other.columns["identity"]).any()


def test_no_event_is_left(source: Source) -> None:
    found = select(source, replace(SETTINGS, cuts=("none",)), {**FUNCTIONS, "none": lambda events: events.met < 0})
    assert {len(values) for values in found.columns.values()} == {0}
    assert found.cutflow["top"].entries["all"] > 0
    assert found.cutflow["top"].entries["none"] == 0


@pytest.mark.parametrize(
    ("processes", "belongs"),
    [
        ({"top": {"label": 0}}, "no process"),
        ({"top": {"label": 0}, "all": {}, "higgs": {"label": 1}}, "top and all"),
    ],
)
def test_an_entry_belongs_to_exactly_one_process(source: Source, processes: Any, belongs: str) -> None:
    with pytest.raises(UserError) as raised:
        select(replace(source, start=100), replace(SETTINGS, processes=processes), FUNCTIONS)
    # Entry 100 has the label 0, entry 102 is the first of label 1.
    entry = 102 if belongs == "no process" else 100
    assert f"{source.path}, entry {entry} (label = {entry // 102}): belongs to {belongs}, but exactly one of" in str(
        raised.value
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_generator_weights_are_finite(write_root: Callable[..., str], bad: float) -> None:
    weight = BRANCHES["weight"].copy()
    weight[321] = bad
    path = write_root(BRANCHES | {"weight": weight})
    with pytest.raises(UserError) as raised:
        select(Source(path, "events", "flat", 300, COUNT, {}), SETTINGS, FUNCTIONS)
    assert f"{path}, tree 'events', entry 321: the generator weight weight is {bad}" in str(raised.value)


def test_categories_are_disjoint(source: Source) -> None:
    functions = {**FUNCTIONS, "is_soft": lambda events: events.pt <= 70}
    with pytest.raises(UserError, match=r"an event is in two categories, 'hard' and 'soft'"):
        select(source, SETTINGS, functions)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"identity": ("run", "evnt")}, "there is no branch 'evnt'. Did you mean 'event'?"),
        ({"identity": ("met",)}, "identity column 'met' holds float32, but an integer was expected"),
        ({"identity": ("pt",)}, "entry 1: branch 'pt' of identity.columns is absent"),
        ({"generator": "pt"}, "entry 1: branch 'pt' of weights.generator is absent"),
        ({"generator": "jets"}, "branch 'jets' holds var * float64"),
        ({"generator": "wieght"}, "there is no branch 'wieght'. Did you mean 'weight'?"),
        ({"processes": {"top": {"lable": 0}}}, "there is no branch 'lable'. Did you mean 'label'?"),
    ],
)
def test_branches_that_the_configuration_names(
    write_root: Callable[..., str], change: dict[str, Any], said: str
) -> None:
    pt = BRANCHES["pt"].copy()
    pt[:2] = 5, -7
    path = write_root(BRANCHES | {"pt": pt, "jets": ak.Array([[1.0]] * COUNT)})
    with pytest.raises(UserError) as raised:
        select(Source(path, "events", "flat", 0, COUNT, {"pt": -7}), replace(SETTINGS, **change), FUNCTIONS)
    assert str(raised.value).startswith(f"{path}, tree 'events'")
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda events: events.met, "returned values of type float32 for"),
        (lambda events: events.met[:5] > 0, "returned 5 * bool for 500 events"),
        (lambda events: events.jets > 0, "returned 500 * var * bool"),
        (lambda _: True, "returned True for 500 events of"),
        (lambda _: None, "returned None for 500 events"),
    ],
)
def test_a_cut_returns_one_bool_per_event(write_root: Callable[..., str], function: Function, said: str) -> None:
    path = write_root(BRANCHES | {"jets": ak.Array([[1.0]] * COUNT)})
    settings = replace(SETTINGS, cuts=("cut",), training_cuts=(), categories={})
    with pytest.raises(UserError) as raised:
        select(Source(path, "events", "flat", 0, COUNT, {}), settings, {"cut": function})
    assert str(raised.value).startswith("cut(events) returned ")
    assert said in str(raised.value)


PHYSICS = textwrap.dedent(
    """
    import awkward as ak

    def _ratio(events):
        return events.met / len(events.met.no_such_field)

    def broken(events):
        return _ratio(events) > 1

    def misspelt(events):
        return events.mett > 1
    """
)


def test_a_failing_function_is_one_sentence_with_its_place(source: Source, tmp_path: Path) -> None:
    physics = tmp_path / "physics.py"
    physics.write_text(PHYSICS)
    module = load_physics(physics)
    settings = replace(SETTINGS, cuts=("broken",))
    with pytest.raises(UserError) as raised:
        select(source, settings, {**FUNCTIONS, "broken": module.broken})
    message = str(raised.value)
    assert message.startswith(f"broken(events) failed at {physics}, line 5, on {source.path}, entries 0 to 500: Attrib")
    assert "\n" not in message
    with pytest.raises(UserError, match=r"misspelt: .* there is no branch 'mett'\. Did you mean 'met'\?"):
        select(source, replace(SETTINGS, cuts=("misspelt",)), {**FUNCTIONS, "misspelt": module.misspelt})


def test_features_are_option_typed(source: Source) -> None:
    functions = {"met": branch("met", unit="GeV"), "pt": branch("pt"), "flag": lambda events: events.label == 1}
    columns = compute(list(functions), functions, read(source), source)
    assert {column.dtype for column in columns.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(np.ma.getmaskarray(columns["pt"]), BRANCHES["pt"] == -7)
    np.testing.assert_array_equal(columns["pt"].compressed(), BRANCHES["pt"][BRANCHES["pt"] != -7])
    # What lies behind the mask does not depend on the sentinel that the file used.
    assert set(np.ma.getdata(columns["pt"])[BRANCHES["pt"] == -7]) == {0.0}
    assert not np.ma.is_masked(columns["met"])
    np.testing.assert_array_equal(columns["flag"], BRANCHES["label"])


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_feature_values_are_finite(source: Source, bad: float) -> None:
    values = np.where(np.arange(COUNT) == 17, bad, 1.0)
    with pytest.raises(UserError) as raised:
        compute(["ratio"], {"ratio": lambda _: values}, read(source), source)
    message = str(raised.value)
    assert message.startswith("Feature ratio: 1 of 500 values are infinite or NaN")
    assert f"at entry 17 of {source.path}." in message


def test_what_is_not_there_may_be_anything(source: Source) -> None:
    """NaN behind a mask is no mistake: the object is absent."""
    values = ak.mask(np.where(np.arange(COUNT) < 5, np.nan, 1.0), np.arange(COUNT) >= 5)
    column = compute(["x"], {"x": lambda _: values}, read(source), source)["x"]
    assert np.ma.getmaskarray(column).sum() == 5
    assert np.isfinite(np.ma.getdata(column)).all()


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (ak.Array([[1.0]] * COUNT), "returned 500 * var * float64: one number per event was expected"),
        (np.ones(3), "returned 3 values for 500 events"),
        (["a"] * COUNT, "numbers were expected"),
        (1.0, "returned 1.0: one number per event was expected"),
        (None, "returned None: one number per event was expected"),
    ],
)
def test_a_feature_returns_one_number_per_event(source: Source, result: Any, said: str) -> None:
    with pytest.raises(UserError) as raised:
        compute(["x"], {"x": lambda _: result}, read(source), source)
    assert str(raised.value).startswith("Feature x(events) ")
    assert said in str(raised.value)


def test_label_and_unit() -> None:
    @feature(unit="GeV")
    def met(events: Any) -> Any:
        return events.met

    assert (met.label, met.unit) == ("met", "GeV")
    named = branch("PRI_met", label="MET", unit="GeV")
    assert (named.label, named.unit) == ("MET", "GeV")  # type: ignore[attr-defined]
    assert branch("PRI_met").label == "PRI_met"  # type: ignore[attr-defined]


def test_a_scaled_cutflow_keeps_its_entries() -> None:
    flow = Cutflow({"all": 10, "cut": 4}, {"all": 12.0, "cut": 5.0}).scaled(2.0)
    assert flow.entries == {"all": 10, "cut": 4}
    assert flow.sum_of_weights == {"all": 24.0, "cut": 10.0}
