"""Systematic variations: shifted events, varied weights, what becomes of templates, and that nothing trains anew."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pyhf
import pytest
import uproot

from analysis.config import load_analysis
from analysis.errors import UserError
from analysis.evaluation import Filled, Scales, ScoredEvents, ScoreSettings
from analysis.events import read
from analysis.functions import call_shift
from analysis.histograms import Histogram
from analysis.likelihood import Channel, Likelihood
from analysis.selection import select
from analysis.sources import SelectionSettings, Source
from analysis.splitting import event_identity, is_test
from analysis.table import EventTable
from analysis.variations import Treatment, Variation, effects, settle
from analysis.varied_weights import sums_of_variation
from analysis.weights import VariedSums
from tests.toy import Finished, Law, replace, toy, write_events

# jsonschema deprecates what pyhf 0.7.6 validates with; nothing of ours.
pytestmark = pytest.mark.filterwarnings("ignore:jsonschema.RefResolver is deprecated:DeprecationWarning")

SETTINGS = SelectionSettings(
    sample="signal",
    file_key="",
    identity=("event",),
    processes={"signal": {}},
    generator=None,
    test_fraction=0.25,
    test_salt="eventfold",
    cuts=("hard",),
)


def histogram(values: list[float], error: float = 0.1) -> Histogram:
    array = np.array(values)
    return Histogram(
        np.linspace(0, 1, len(array) + 1), array, (error * array) ** 2, np.full(len(array), 100, dtype=np.int64)
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    path = tmp_path_factory.mktemp("events") / "signal.root"
    write_events(path, 400, 5.0, seed=3)
    return Source(str(path), "events", "flat", 100, 400, {"pt2": -7})


def hard(events: Any) -> Any:
    return events.pt1 > 30


def doubled(events: Any) -> dict[str, Any]:
    return {"pt1": 2 * events.pt1}


# Shifted events


def test_shifted_events_are_the_same_but_for_what_is_shifted(source: Source) -> None:
    events = read(source)
    shifted = call_shift("doubled", doubled, events, source)
    np.testing.assert_allclose(shifted.pt1, 2 * events.pt1)
    assert shifted.pt2.to_list() == events.pt2.to_list()
    few = shifted.at(np.array([3, 50]))
    np.testing.assert_allclose(few.pt1, 2 * events.pt1[[3, 50]])
    np.testing.assert_array_equal(few.entries, [103, 150])
    np.testing.assert_allclose(few.at(np.array([1])).pt1, 2 * events.pt1[[50]])


def test_a_shifted_collection_is_found_by_the_names_of_its_branches(tmp_path: Path) -> None:
    with uproot.recreate(tmp_path / "nano.root") as file:
        file["Events"] = {"Jet": ak.zip({"pt": ak.Array([[40.0, 20.0], [], [30.0]]), "eta": [[0.1, 2.0], [], [1.0]]})}
    nano = Source(str(tmp_path / "nano.root"), "Events", "nanoaod", 0, 3, {})

    def up(events: Any) -> dict[str, Any]:
        return {"Jet": ak.with_field(events.Jet, 1.1 * events.Jet.pt, "pt")}

    shifted = call_shift("up", up, read(nano), nano)
    assert ak.to_list(shifted["Jet_pt"]) == [pytest.approx([44.0, 22.0]), [], pytest.approx([33.0])]
    assert ak.to_list(shifted.at(np.array([2])).Jet.pt) == [pytest.approx([33.0])]
    assert ak.to_list(ak.num(shifted.Jet.eta)) == [2, 0, 1]


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (lambda e: e.pt1, "returned Array, but a mapping of branches or collections"),
        (lambda _: {}, "returned dict, but a mapping"),
        (lambda e: {"pt3": e.pt1}, "shifts 'pt3', but the events have no such branch or collection. .*pt"),
        (lambda e: {"pt1": e.pt1[:-1]}, "299 items for 'pt1', but there are 300 events"),
        (lambda _: {"pt1": object()}, "what it returned for 'pt1' is no array"),
        (lambda e: {"pt1": e.pt9}, "up: .*no branch 'pt9'"),
    ],
)
def test_a_shift_that_makes_no_sense_is_told(source: Source, returned: Callable[[Any], Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        call_shift("up", returned, read(source), source)


def test_a_shift_moves_cuts_but_no_bucket(source: Source) -> None:
    def everything(events: Any) -> dict[str, Any]:
        return {"pt1": 2 * events.pt1, "event": events.event + 1}

    nominal = select(source, SETTINGS, {"hard": hard})
    chosen = SelectionSettings(**{**vars(SETTINGS), "shift": "everything"})
    shifted = select(source, chosen, {"hard": hard, "everything": everything})
    pt1 = read(source).pt1
    np.testing.assert_array_equal(shifted.columns["entry"], 100 + np.flatnonzero(pt1 > 15))
    assert set(nominal.columns["entry"]) < set(shifted.columns["entry"])
    there = np.isin(shifted.columns["entry"], nominal.columns["entry"])
    for name in ("identity", "is_test", "generator_weight", "process"):
        np.testing.assert_array_equal(shifted.columns[name][there], nominal.columns[name])
    assert shifted.totals == nominal.totals


# Varied weights


def test_sums_of_varied_weights_count_every_entry(source: Source) -> None:
    found = sums_of_variation(source, SETTINGS, "by_x", lambda events: 1 + 0.1 * events.x)["signal"]
    events = read(source)
    factor = np.asarray(1 + 0.1 * events.x, dtype=np.float32).astype(np.float64)
    test = is_test(event_identity("signal", [np.asarray(events.event)]), 0.25, "eventfold")
    assert (found.nominal, found.nominal_test) == (300, test.sum())
    assert found.varied == pytest.approx(factor.sum())
    assert found.varied_test == pytest.approx(factor[test].sum())
    both = found + found
    assert both.varied == 2 * found.varied
    with pytest.raises(UserError, match=r"by_pt2\(events\) is None in .*, first at entry \d+; .* 1 where it changes"):
        sums_of_variation(source, SETTINGS, "by_pt2", lambda events: events.pt2)


@pytest.mark.parametrize("test", [True, False])
def test_varied_weights_close_before_any_selection(test: bool) -> None:
    """The yield of test events, scaled to all, is that of all events; by default the nominal one."""
    rng = np.random.default_rng(1)
    weight, factor, in_test = rng.normal(1, 0.5, 1000), rng.uniform(0.5, 2, 1000), rng.random(1000) < 0.25
    varied = weight * factor
    sums = VariedSums(weight.sum(), weight[in_test].sum(), varied.sum(), varied[in_test].sum())
    chosen = in_test if test else np.ones(1000, dtype=bool)
    scale = weight.sum() / weight[chosen].sum()  # of nominal weights
    kept = sums.factor("signal", test=test, keeps_norm=True)
    assert scale * kept * varied[chosen].sum() == pytest.approx(weight.sum(), rel=1e-12)
    changed = sums.factor("signal", test=test, keeps_norm=False)
    assert scale * changed * varied[chosen].sum() == pytest.approx(varied.sum(), rel=1e-12)


@pytest.mark.parametrize("test", [True, False])
def test_a_skim_keeps_what_a_variation_changes_of_its_acceptance(test: bool) -> None:
    """With declared sums, the yield before the skim is kept, as if all generated events were there."""
    rng = np.random.default_rng(2)
    weight, factor, in_test = rng.uniform(0.5, 1.5, 4000), rng.uniform(0.5, 2, 4000), rng.random(4000) < 0.25
    skim = factor > 1  # whose acceptance depends on what is varied
    varied = weight * factor
    chosen = skim & in_test
    sums = VariedSums(weight[skim].sum(), weight[chosen].sum(), varied[skim].sum(), varied[chosen].sum())
    rows = chosen if test else skim
    scale = weight[skim].sum() / weight[rows].sum()
    generated = (weight.sum(), varied.sum())
    found = scale * sums.factor("top", test=test, keeps_norm=True, generated=generated) * varied[rows].sum()
    assert found == pytest.approx(varied[skim].sum() / varied.sum() * weight.sum(), rel=1e-12)
    assert found > 1.1 * weight[skim].sum()
    with pytest.raises(UserError, match="and of all generated events to 5 and -1; sums above 0 are needed"):
        sums.factor("top", test=test, keeps_norm=True, generated=(5.0, -1.0))


def test_weights_without_a_sum_are_told() -> None:
    with pytest.raises(UserError, match=r"Process 'ttbar': before any selection .* varied to -2, .* nuisance's"):
        VariedSums(10, 2, -2, 1).factor("ttbar", test=True, keeps_norm=True)


# Templates


BOUNDS = np.arange(6)
NOMINAL = [100.0, 80.0, 60.0, 40.0, 20.0]


def settled(up: list[float], down: list[float] | None = None, **treatment: Any) -> Any:
    variation = Variation(
        {"scale": ("top",)},
        {"top": histogram(up)},
        {} if down is None else {"top": histogram(down)},
        Treatment(**treatment),
    )
    return settle(variation, {"top": histogram(NOMINAL)}, BOUNDS).get("top")


def test_one_side_is_mirrored_and_no_bin_is_negative() -> None:
    found = settled([110.0, 80.0, 60.0, 40.0, 50.0])
    np.testing.assert_allclose(found.up.values, [110, 80, 60, 40, 50])
    np.testing.assert_allclose(found.down.values, [90, 80, 60, 40, 0])


def test_the_mirror_image_of_a_negative_bin_is_taken_before_it_is_set_to_zero() -> None:
    variation = Variation({"scale": ("top",)}, {"top": histogram([55.0, 20.0, -3.1])})
    found = settle(variation, {"top": histogram([50.0, 20.0, -3.0])}, np.arange(4))["top"]
    np.testing.assert_allclose(found.up.values, [55, 20, 0])
    np.testing.assert_allclose(found.down.values, [45, 20, 0])


def test_no_template_is_empty_and_an_empty_process_is_not_varied() -> None:
    found = settled([2 * n for n in NOMINAL])
    np.testing.assert_allclose(found.down.values, 1e-6 * np.array(NOMINAL))
    assert effects(histogram(NOMINAL), found)["down"] == pytest.approx(-1, abs=1e-5)
    variation = Variation({"scale": ("top",)}, {"top": histogram([1.0, 1.0])})
    assert settle(variation, {"top": histogram([0.0, 0.0])}, np.arange(3)) == {}


def test_an_empty_bin_that_fills_is_not_pruned() -> None:
    variation = Variation({"scale": ("top",)}, {"top": histogram([100.0, 100.0, 5.0])}, {}, Treatment(prune=0.03))
    nominal = histogram([100.0, 100.0, 0.0])
    found = settle(variation, {"top": nominal}, np.arange(4))["top"]
    np.testing.assert_allclose(found.up.values, [200 / 205 * v for v in (100, 100, 5)])
    assert effects(nominal, found)["shape"] == 1


def test_both_sides_get_half_their_difference() -> None:
    found = settled([110.0, 80.0, 60.0, 40.0, 20.0], [106.0, 80.0, 60.0, 40.0, 14.0], symmetrise=True)
    np.testing.assert_allclose(found.up.values, [102, 80, 60, 40, 23])
    np.testing.assert_allclose(found.down.values, [98, 80, 60, 40, 17])


def test_smoothing_removes_a_spike_and_keeps_the_yield() -> None:
    rising = [n * r for n, r in zip(NOMINAL, (0.96, 0.98, 1.0, 1.02, 1.04), strict=True)]
    spiked = list(rising)
    spiked[2] *= 1.5
    found = settled(spiked, smooth=True).up.values
    assert found.sum() == pytest.approx(sum(spiked))
    ratio = found / np.array(NOMINAL)
    assert np.all(np.diff(ratio) >= 0)
    assert ratio[2] / ratio[0] < 1.1
    assert settled(spiked).up.values[2] == pytest.approx(90)


@pytest.mark.parametrize(
    ("up", "pruned", "kept"),
    [
        ([1.001 * n for n in NOMINAL], None, None),
        ([1.02 * n for n in NOMINAL], "shape", [1.02 * n for n in NOMINAL]),
        ([104.0, 80.0, 60.0, 40.0, 16.0], "yield", [104.0, 80.0, 60.0, 40.0, 16.0]),
        ([130.0, 80.0, 60.0, 40.0, 20.0], None, [130.0, 80.0, 60.0, 40.0, 20.0]),
    ],
)
def test_what_is_small_is_pruned(up: list[float], pruned: str | None, kept: list[float] | None) -> None:
    found = settled(up, prune=0.01)
    if kept is None:
        assert found is None
        return
    assert found.pruned == pruned
    np.testing.assert_allclose(found.up.values, kept)
    said = effects(histogram(NOMINAL), found)
    assert said["up"] == pytest.approx(sum(kept) / sum(NOMINAL) - 1, abs=1e-12)
    assert said["down"] == pytest.approx(-said["up"], abs=1e-12)
    assert (said["shape"] < 1e-9) == (pruned == "shape")


def test_merged_bins_are_merged_in_variations_too() -> None:
    variation = Variation({"scale": ("top",)}, {"top": histogram([1.0, 2.0, 3.0, 4.0])})
    found = settle(variation, {"top": histogram([1.0, 1.0, 4.0, 4.0])}, np.array([0, 2, 4]))["top"]
    np.testing.assert_allclose(found.up.values, [3, 7])
    np.testing.assert_allclose(found.down.values, [1, 9])


def channel(**parameters: tuple[str, ...]) -> Channel:
    histograms = {"higgs": histogram([2.0, 4.0, 8.0]), "top": histogram([90.0, 60.0, 30.0]), "ww": histogram([9.0] * 3)}
    up = {"top": histogram([99.0, 63.0, 24.0]), "ww": histogram([9.9] * 3)}
    down = {"top": histogram([81.0, 56.0, 37.0]), "ww": histogram([8.1] * 3)}
    return Channel.of("score", histograms, ["higgs"], uncertainties=[Variation(parameters, up, down)])


def test_pyhf_gives_back_the_templates_at_one_standard_deviation() -> None:
    model = channel(scale=("top", "ww"))
    workspace = pyhf.Workspace(Likelihood((model,)).workspace())  # validates
    fit = workspace.model()
    place = fit.config.par_slice("scale")
    for value, side in ((1.0, "up"), (-1.0, "down"), (0.0, None)):
        parameters = np.array(fit.config.suggested_init())
        parameters[place] = value
        expected = sum(
            (getattr(model.varied["scale"][name], side) if side and name in model.varied["scale"] else template).values
            for name, template in model.templates.items()
        )
        np.testing.assert_allclose(fit.expected_actualdata(parameters), expected, rtol=1e-12)
    # ww's shape stays, so that its yield alone varies; top's both.
    kinds = {s["name"]: [m["type"] for m in s["modifiers"] if m["name"] == "scale"] for s in model.samples()}
    assert kinds == {"higgs": [], "top": ["normsys", "histosys"], "ww": ["normsys"]}


def test_the_datacard_names_templates_that_are_there() -> None:
    model = Likelihood((channel(scale=("top", "ww")),))
    row = re.search(r"^scale +shape +(\S+) +(\S+) +(\S+)$", model.datacard("histograms.root"), re.MULTILINE)
    assert row is not None
    assert row.groups() == ("-", "1", "1")  # higgs, top, ww
    names = set(model.histograms()["fit/score"])
    assert {f"{p}_scale{side}" for p in ("top", "ww") for side in ("Up", "Down")} <= names


def test_uncorrelated_processes_have_a_parameter_each() -> None:
    model = channel(scale_top=("top",), scale_ww=("ww",))
    assert set(pyhf.Workspace(Likelihood((model,)).workspace()).model().config.parameters) >= {"scale_top", "scale_ww"}
    assert {"top_scale_topUp", "ww_scale_wwDown"} <= set(model.histograms())
    assert model.effects()["scale_ww"]["ww"]["up"] == pytest.approx(0.1)
    free, bound = (channel(**p).samples() for p in ({"scale": ("top", "ww")}, {"a": ("top",), "b": ("ww",)}))
    assert free != bound


# Configuration


@pytest.mark.parametrize(
    ("nuisance", "said"),
    [
        ("{}", "expected one of `norm`, `weight`, `shift` and `sample`, found none of them"),
        ("{norm: 0.1, shift: {up: doubled}}", "found norm and shift"),
        ("{shift: {up: doubled}, changes_norm: true}", "`changes_norm` is of variations by `weight` and `sample`"),
        ("{norm: 0.1, smooth: true}", "`smooth` is of templates"),
        (
            "{shift: {up: doubled, down: doubled}}",
            "up and down are both 'doubled'; for a mirror image leave `down` out",
        ),
        ("{shift: {up: doubled}, symmetrise: true}", "`symmetrise` needs `down`"),
        ("{shift: {up: doubled, donw: doubled}}", "unknown key .*donw. Did you mean 'down'"),
        ("{shift: {up: doubled}, weight: {up: halved}}", "found weight and shift"),
        ("{shift: {up: doubled}, processes: [signl]}", "names 'signl', which is not simulated. Did you mean 'signal'"),
        ("{sample: {up: signal}}", "`sample` stands for one process: `processes` names it"),
        ("{sample: {up: othr}, processes: [signal]}", "names 'othr', which is no process"),
        ("{sample: {up: signal}, processes: [background]}", "names 'signal', which belongs to a class"),
        ("{sample: {up: background}, processes: [background]}", "names 'background', which belongs to a class"),
        ("{norm: 0.1, correlated: [process]}", "correlated"),
        ("{shift: {up: doubled}, generated: {up: {histogram: h}}}", "`generated` is what a variation by `weight`"),
        ("{weight: {up: ratio, down: mass}, generated: {up: {histogram: h}}}", "need the same keys, `up` and perhaps"),
        ("{weight: {up: ratio}, generated: {up: {histogram: h, index: 1}}}", "`index` and `times` are of a `branch`"),
        (
            "{weight: {up: ratio}, generated: {up: {histogram: h}}}",
            "'signal' declares no sum of its nominal weights. Declare it too",
        ),
    ],
)
def test_a_nuisance_that_makes_no_sense_is_told(tmp_path: Path, nuisance: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_analysis(str(toy(tmp_path / "toy")), [f"outputs.nuisances.scale={nuisance}"])


@pytest.mark.parametrize(
    ("nuisances", "said"),
    [
        ("{scale: {norm: 0.1}, scale_signal: {norm: 0.1}, s: {norm: 0.1}}", None),
        (
            "{scale: {norm: 0.1, correlated: false}, scale_signal: {norm: 0.1}}",
            "parameters would be called 'scale_signal'",
        ),
        ("{staterror: {norm: 0.1, correlated: false}}", "the model has a parameter of this name"),
        ("{a: {weight: {up: ratio}}, b: {shift: {up: ratio}}}", "'ratio' is under `weight` and under `shift`"),
    ],
)
def test_names_of_parameters_are_not_shared(tmp_path: Path, nuisances: str, said: str | None) -> None:
    folder = str(toy(tmp_path / "toy"))
    if said is None:
        load_analysis(folder, [f"outputs.nuisances={nuisances}"])
        return
    with pytest.raises(UserError, match=said):
        load_analysis(folder, [f"outputs.nuisances={nuisances}"])


def test_parameters_are_named_by_what_they_do_not_share(tmp_path: Path) -> None:
    folder = str(toy(tmp_path / "toy"))
    nuisances = "all: {norm: 0.1}, own: {norm: 0.1, correlated: false}, era: {norm: 0.1, correlated: [processes]}"
    config = load_analysis(folder, [f"outputs.nuisances={{{nuisances}}}", "outputs.channels=[far]"]).config
    both = ("background", "signal")
    assert config.parameters() == {
        "all": {"all": both},
        "own": {"own_background": ("background",), "own_signal": ("signal",)},
        "era": {"era": both},
    }
    assert config.parameters("far") == {
        "all": {"all": both},
        "own": {"own_background_far": ("background",), "own_signal_far": ("signal",)},
        "era": {"era_far": both},
    }
    with pytest.raises(UserError, match="two parameters would be called 'era_far'"):
        load_analysis(folder, [f"outputs.nuisances={{{nuisances}, era_far: {{norm: 0.1}}}}", "outputs.channels=[far]"])
    shifts = "n: {shift: {up: ratio}, correlated: false}, n_signal: {shift: {up: mass}}"
    with pytest.raises(UserError, match="would be called 'n_signal'"):  # in histograms of all events
        load_analysis(folder, [f"outputs.nuisances={{{shifts}}}", "outputs.channels=[far]"])
    with pytest.raises(
        UserError, match=r"outputs\.channels names 'fer', which is none of selection\.categories.*'far'"
    ):
        load_analysis(folder, ["outputs.channels=[fer]"])


def test_a_process_that_stands_for_another_is_no_other_one(tmp_path: Path) -> None:
    folder = toy(tmp_path / "toy")
    add_other(folder)
    sample = "m: {sample: {up: other}, processes: [background]}"
    config = load_analysis(str(folder), [f"outputs.nuisances={{{sample}, all: {{norm: 0.1}}}}"]).config
    assert config.nominal == config.simulated == ("background", "signal")
    assert config.alternatives == {"other": ("background",)}
    assert config.parameters()["all"] == {"all": ("background", "signal")}
    with pytest.raises(UserError, match="processes names 'other', which only stands for another one"):
        load_analysis(str(folder), [f"outputs.nuisances={{{sample}, l: {{norm: 0.1, processes: [other]}}}}"])


@pytest.mark.parametrize("kind", ["ensemble", "routed"])
def test_all_events_of_another_simulation_enter(kind: Any, toy_table: Callable[..., EventTable]) -> None:
    table = toy_table(3000)
    table = replace_fields(
        table, processes=("other",), process=np.zeros_like(table.process), label=np.full_like(table.label, -1)
    )
    scores = np.random.default_rng(1).uniform(size=(3000, 2)).astype(np.float32)
    events = ScoredEvents(table, table.process, spread=scores, routed=scores, ensemble=scores)
    settings = ScoreSettings(("background", "higgs"), "higgs", (), 5, "0")
    # Not even a test event is needed, by which others are scaled.
    filled = Filled(events, Scales({"other": None}, {"other": None}), settings, kind, with_data=False)
    found, _ = filled.standing_for("top", 0.5).histograms("higgs", np.array([0.0, 0.3, 1.0]))
    assert list(found) == ["top"]
    assert found["top"].values.sum() == pytest.approx(0.5 * table.weight.sum(), rel=1e-12)
    assert found["top"].entries.sum() == 3000
    with pytest.raises(ValueError, match="can't stand for"):
        replace_fields(filled, events=replace_fields(events, table=toy_table(10))).standing_for("top", 1.0)


def test_no_template_overwrites_another_one(tmp_path: Path) -> None:
    folder = toy(tmp_path / "toy")
    text = (
        (folder / "analysis.yaml")
        .read_text()
        .replace("background: {data: [background]", "signal_xUp: {data: [background]")
    )
    (folder / "analysis.yaml").write_text(
        text.replace("[background], signal: [signal]", "[signal_xUp], signal: [signal]")
    )
    with pytest.raises(UserError, match="two templates would be called 'signal_xUp'; rename a nuisance"):
        load_analysis(str(folder), ["outputs.nuisances.x={norm: 0.1, processes: [signal]}"])


# In the graph


VARIED = """

def doubled(events):
    return {"pt1": 2 * events.pt1}


def halved(events):
    return {"pt1": events.pt1 / 2}


def by_truth(events):
    return 1 + 0.2 * events.truth


def twice(events):
    return 2 + 0 * events.truth
"""
NUISANCES = """
  nuisances:
    luminosity: {norm: 0.02}
    scale: {shift: {up: doubled, down: halved}, correlated: false}
    theory: {weight: {up: by_truth}, processes: [background]}
    rate: {weight: {up: twice}, processes: [signal], changes_norm: true}
    nothing: {weight: {up: twice}, processes: [signal]}
    modelling: {sample: {up: other}, processes: [background]}
"""


def add_simulation(folder: Path, name: str, seed: int, shift: float, total: float) -> None:
    """Add another simulation of the background, with a yield of its own."""
    write_events(folder / "data" / f"{name}_0.root", 500, shift, seed=seed)
    files, process = (
        f"{name}: {{files: [{name}_0.root]}}",
        f"{name}: {{data: [{name}], normalisation: {{sum_to: {total}}}}}",
    )
    replace(folder / "analysis.yaml", "  datasets:\n", f"  datasets:\n    {files}\n")
    replace(folder / "analysis.yaml", "\nprocesses:\n", f"\nprocesses:\n  {process}\n")


def add_other(folder: Path) -> None:
    """Add another simulation of the background, of twice the yield."""
    add_simulation(folder, "other", 21, 2.0, 2000.0)


@pytest.fixture(scope="module")
def varied(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> tuple[Law, list[str]]:
    """The finished toy analysis, with uncertainties that were declared afterwards; and the steps that this ran."""
    home = tmp_path_factory.mktemp("varied") / "home"
    shutil.copytree(finished.law.home, home, symlinks=True)
    shutil.rmtree(home / "store" / "names")
    law = Law(home)
    physics = home / "toy" / "physics.py"
    physics.write_text(physics.read_text() + VARIED)
    replace(
        home / "toy" / "analysis.yaml", "outputs: {blind_above: null}\n", "outputs:\n  blind_above: null" + NUISANCES
    )
    add_other(home / "toy")
    done = law("Report", "--analysis", law.analysis)
    return law, re.findall(r"^(.+): (?:\d+ )?done in", done.stderr, re.MULTILINE)


def test_uncertainties_compute_themselves_and_train_nothing(varied: tuple[Law, list[str]]) -> None:
    _, ran = varied
    shifts = [
        f"{step} ({group}{shift})"
        for shift in ("doubled", "halved")
        for step, group in (
            ("SelectEvents", ""),
            ("ComputeFeatures", "features, "),
            ("ComputeFeatures", "factors, "),
            ("ScoreEvents", ""),
        )
    ]
    weights = ["SumVariations (by_truth)", "SumVariations (twice)", "ComputeFeatures (variations)"]
    other = ["ListInputs", "SelectEvents", "ComputeFeatures (features)", "ComputeFeatures (factors)", "ScoreEvents"]
    assert sorted(ran) == sorted([*shifts, *weights, *other, "WriteStatistics", "Report"])


def test_templates_of_variations_are_those_of_the_events(varied: tuple[Law, list[str]]) -> None:
    """Against histograms filled here, from the friends of shifted events and from the files' own truth."""
    law, _ = varied
    results = law.results / "toy"
    content = json.loads((results / "histograms.json").read_text())
    histograms = content["histograms"][content["score"]]
    systematics = json.loads((results / "summary.json").read_text())["systematics"]
    scales = {"scale_background", "scale_signal"}
    assert set(systematics) == {"luminosity", "theory", "rate", "nothing", "modelling", *scales}
    assert {s["kind"] for s in systematics.values()} == {"norm", "shift", "weight", "sample"}
    assert systematics["nothing"]["effects"] == {}
    assert systematics["rate"]["effects"]["score"]["signal"]["up"] == pytest.approx(1)
    assert systematics["rate"]["effects"]["score"]["signal"]["down"] == pytest.approx(-1, abs=1e-5)
    assert list(systematics["theory"]["effects"]["score"]) == ["background"]

    weights, truth = _background(law)
    edges = np.array(histograms["background"]["edges"])
    factor = (1 + 0.2 * truth["truth"]).astype(np.float32).astype(np.float64)
    # All of the toy's events pass its cut: own sums of weights then keep the yield of the test events.
    common = len(factor[truth["is_test"]]) / factor[truth["is_test"]].sum()
    rows = truth["is_test"]
    expected, _ = np.histogram(truth["score"][rows], edges, weights=(weights * factor * common)[rows])
    np.testing.assert_allclose(histograms["background_theoryUp"]["values"], expected, rtol=1e-5, atol=1e-9)
    assert "background_theoryDown" not in histograms

    shifted = sorted((results / "scores" / "doubled").glob("background_*.root"))
    assert len(shifted) == 2
    scores = np.concatenate(
        [uproot.open(path)["scores"]["score_signal_ensemble"].array(library="np") for path in shifted]
    )
    in_test = np.concatenate([uproot.open(path)["scores"]["is_test"].array(library="np") for path in shifted])
    up = histograms["background_scale_backgroundUp"]
    np.testing.assert_array_equal(up["entries"], np.histogram(scores[in_test], edges)[0])
    assert up["entries"] != histograms["background"]["entries"]
    with uproot.open(results / "histograms.root") as file:
        np.testing.assert_allclose(file[f"{content['score']}/background_theoryUp"].values(), expected, rtol=1e-5)


def test_another_simulation_stands_for_a_process(varied: tuple[Law, list[str]]) -> None:
    law, _ = varied
    results = law.results / "toy"
    content = json.loads((results / "histograms.json").read_text())
    for folder, named in content["histograms"].items():
        assert "other" not in named, folder
    up = content["histograms"][content["score"]]["background_modellingUp"]
    with (
        uproot.open(results / "scores" / "other_0.root") as scores,
        uproot.open(law.home / "toy" / "data" / "other_0.root") as events,
    ):
        score = scores["scores"]["score_signal_ensemble"].array(library="np")
        correction = (1 + 0.1 * events["events"]["truth"].array(library="np")).astype(np.float32)
    # By default the yield before the selection is that of the process: of 1,000 events, not 2,000.
    weights = 1000.0 / len(score) * correction.astype(np.float64)
    np.testing.assert_allclose(up["values"], np.histogram(score, up["edges"], weights=weights)[0], rtol=1e-6)
    summary = json.loads((results / "summary.json").read_text())
    assert set(summary["yields"]) == {"background", "signal"}
    assert list(summary["systematics"]["modelling"]["effects"]["score"]) == ["background"]


CHANNELS = """
  channels: [far, near]
  nuisances:
    luminosity: {norm: 0.02}
    rate: {norm: 0.1, correlated: [processes]}
    scale: {shift: {up: doubled, down: halved}, correlated: [categories]}
    modelling: {sample: {up: other, down: softer}, processes: [background], correlated: false, changes_norm: true}
"""


def test_categories_are_channels(law: Law) -> None:
    folder = law.home / "toy"
    (folder / "physics.py").write_text((folder / "physics.py").read_text() + VARIED)
    replace(folder / "analysis.yaml", "outputs: {blind_above: null}\n", "outputs:\n  blind_above: null" + CHANNELS)
    add_other(folder)
    add_simulation(folder, "softer", 22, -0.5, 900.0)
    law("Report", "--analysis", law.analysis)
    results = law.results / "toy"
    spec = json.loads((results / "workspace.json").read_text())
    workspace = pyhf.Workspace(spec)  # validates
    names = {"scale_background", "scale_signal", "modelling_background_far", "modelling_background_near"}
    parameters = {"mu", "luminosity", "rate_far", "rate_near", *names}
    assert {name for name in workspace.model().config.parameters if not name.startswith("staterror_")} == parameters
    found = json.loads((results / "histograms.json").read_text())
    assert found["clipped"].keys() == {"far", "near"}
    everything = found["histograms"][found["score"]]
    for channel in ("far", "near"):
        templates, own = (
            found["histograms"][f"{folder}/{name}"] for folder, name in (("fit", channel), (channel, found["score"]))
        )
        for process in ("background", "signal"):
            assert sum(templates[process]["values"]) == pytest.approx(sum(own[process]["values"]), rel=1e-9)
            assert 0 < sum(own[process]["values"]) < sum(everything[process]["values"])
        assert {f"background_modelling_background_{channel}Up", "signal_scale_signalDown"} <= templates.keys()
        assert f"background_modelling_background_{channel}Up" in own
    yields = {side: sum(everything[f"background_modelling_background{side}"]["values"]) for side in ("Up", "Down")}
    # Each has its own yield, but for the weight factor, whose mean is 1.
    assert yields == {"Up": pytest.approx(2000, rel=0.02), "Down": pytest.approx(900, rel=0.02)}
    effects = json.loads((results / "summary.json").read_text())["systematics"]
    assert set(effects) == parameters - {"mu"}
    assert set(effects["scale_signal"]["effects"]) == {"far", "near"}
    other = effects["modelling_background_near"]["effects"]
    assert list(other) == ["near"]
    assert 0.6 < other["near"]["background"]["up"] < 1.4
    card = (results / "datacard.txt").read_text()
    assert re.search(r"^bin +far +near$", card, re.MULTILINE)
    assert re.search(r"^rate_near +lnN +- +- +1\.1 +1\.1$", card, re.MULTILINE)
    report = (results / "report.html").read_text()
    assert '<th class="left">Channel</th>' in report
    law("FitModel", "--analysis", law.analysis)
    plots = {path.name for path in (law.results / "toy-fit" / "plots").glob("variation_*.pdf")}
    assert {"variation_far-scale_signal.pdf", "variation_near-modelling_background_near.pdf"} <= plots


def test_sums_that_files_declare_are_read(law: Law) -> None:
    """Of a skim that has kept the events with a positive truth: the varied yield is that before the skim."""
    folder = law.home / "toy"
    varied = 0.0
    for path in sorted((folder / "data").glob("*.root")):
        with uproot.open(path) as file:
            columns = file["events"].arrays(library="np")
        kept = columns["truth"] > 0
        with uproot.recreate(path) as file:
            file["events"] = {name: values[kept] for name, values in columns.items()}
            scales = ak.Array([[0.0, float(1 + 0.2 * columns["truth"].mean())]])
            file.mktree("Runs", {"sumw": np.dtype(np.float64), "scales": scales.type.content})
            file["Runs"].extend({"sumw": np.array([float(len(kept))]), "scales": scales})
        if path.stem.startswith("background"):
            varied += float((1 + 0.2 * columns["truth"]).sum())
    (folder / "physics.py").write_text((folder / "physics.py").read_text() + VARIED)
    places = "weight: {up: by_truth}, generated: {up: {tree: Runs, branch: scales, index: 1, times: sumw}}"
    nuisance = f"\n  nuisances:\n    theory: {{{places}, processes: [background]}}\n"
    replace(folder / "analysis.yaml", "outputs: {blind_above: null}\n", "outputs:\n  blind_above: null" + nuisance)
    replace(folder / "analysis.yaml", "  chunk: 400\n", "  chunk: 400\n  generated: {tree: Runs, branch: sumw}\n")
    law("WriteStatistics", "--analysis", law.analysis)
    made = max(law.store.glob("WriteStatistics/toy/*/histograms.json"), key=lambda path: path.stat().st_mtime_ns)
    content = json.loads(made.read_text())
    histograms = content["histograms"][content["score"]]
    nominal, up = (sum(histograms[name]["values"]) for name in ("background", "background_theoryUp"))
    # All events that the skim has kept pass the cut; test events carry their own scale, and the factor of weights.
    kept_truth = np.concatenate(
        [uproot.open(path)["events"]["truth"].array(library="np") for path in (folder / "data").glob("background_*")]
    )
    expected = (1 + 0.2 * kept_truth).sum() / varied / (len(kept_truth) / 1000)
    assert up / nominal == pytest.approx(expected, rel=0.01)
    assert expected > 1.05


def test_another_simulation_without_selected_events_is_told(varied: tuple[Law, list[str]]) -> None:
    law, _ = varied
    write_events(law.home / "toy" / "data" / "none_0.root", 0, 2.0, seed=31)
    told = law(
        *("WriteStatistics", "--analysis", law.analysis, "--set", "data.datasets.none={files: [none_0.root]}"),
        *("--set", "processes.none={data: [none]}"),
        *("--set", "outputs.nuisances={m: {sample: {up: other, down: none}, processes: [background]}}"),
        ok=False,
    )
    assert told.returncode != 0
    assert "Process 'none', which stands for 'background' in outputs.nuisances, has no selected event." in told.stderr


def _background(law: Law) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
    """Weights of the toy's background, scaled from test events to all, with truth, score and bucket of each event."""
    columns: dict[str, list[np.ndarray]] = {"truth": [], "score": [], "is_test": []}
    for number in range(2):
        name = f"background_{number}.root"
        with uproot.open(law.home / "toy" / "data" / name) as file:
            columns["truth"].append(file["events"]["truth"].array(library="np"))
        with uproot.open(law.results / "toy" / "scores" / name) as file:
            columns["score"].append(file["scores"]["score_signal_ensemble"].array(library="np"))
            columns["is_test"].append(file["scores"]["is_test"].array(library="np"))
    found = {key: np.concatenate(values) for key, values in columns.items()}
    test = found["is_test"]
    correction = (1 + 0.1 * found["truth"]).astype(np.float32).astype(np.float64)
    return 1000.0 / len(test) * correction * len(test) / test.sum(), found


def test_an_unknown_function_is_told_with_the_nearest_one(varied: tuple[Law, list[str]]) -> None:
    law, _ = varied
    told = law("ScoreEvents", "--analysis", law.analysis, "--shift", "doubeld", ok=False)
    assert told.returncode != 0
    assert (
        "--shift doubeld: key outputs.nuisances names no such function under `shift`. Did you mean 'doubled'"
        in told.stderr
    )
    told = law("SumVariations", "--analysis", law.analysis, "--function", "by_thruth", ok=False)
    assert "names no such function under `weight`. Did you mean 'by_truth'" in told.stderr


def test_the_model_is_fitted_beside_the_main_job(varied: tuple[Law, list[str]]) -> None:
    law, _ = varied
    done = law("FitModel", "--analysis", law.analysis)
    assert re.search(r"^mu +1 +\d\.\d+$", done.stdout, re.MULTILINE)
    assert re.search(r"^scale_background +\+0\.00 ", done.stdout, re.MULTILINE)
    fit = json.loads((law.results / "toy-fit" / "fit.json").read_text())
    assert fit["observed"] == "Asimov"
    assert set(fit["impacts"]) == {"luminosity", "scale_background", "scale_signal", "theory", "rate", "modelling"}
    assert {path.name for path in (law.results / "toy-fit" / "plots").glob("*.pdf")} >= {
        "impacts.pdf",
        "pulls.pdf",
        "variation_score-theory.pdf",
    }
