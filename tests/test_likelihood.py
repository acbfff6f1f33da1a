"""The likelihood model and what it expects, against independent calculations and the programs that it is for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyhf
import pytest
from scipy import optimize
from scipy.special import xlogy

from analysis.errors import UserError
from analysis.evaluation import Filled, Scales, ScoredEvents, ScoreSettings
from analysis.expected import expectation
from analysis.fits import Fits
from analysis.histograms import Histogram, write_histograms
from analysis.likelihood import Channel, Likelihood, Nuisance
from analysis.statistics import asimov_significance
from analysis.table import EventTable
from analysis.variations import Variation
from tests.programs import read_datacard
from workflow.tasks.statistics import Draft

# jsonschema deprecates what pyhf 0.7.6 validates with; nothing of ours.
pytestmark = pytest.mark.filterwarnings("ignore:jsonschema.RefResolver is deprecated:DeprecationWarning")

LUMINOSITY = Nuisance("luminosity", 1 / 1.02, 1.02, ("higgs", "vbf", "top", "ww"))
TOP = Nuisance("top_cross_section", 0.9, 1.06, ("top",))


def template(values: list[float], error: float = 0.5) -> Histogram:
    count = len(values)
    return Histogram(
        np.linspace(0, 1, count + 1), np.array(values), np.full(count, error**2), np.ones(count, dtype=np.int64)
    )


def processes() -> dict[str, Histogram]:
    return {
        "top": template([50.0, 20.0, 8.0, -1.0]),
        "higgs": template([1.0, 4.0, -0.5, 9.0]),
        "vbf": template([0.1, 0.5, 1.0, 2.0]),
        "ww": template([30.0, -2.0, 4.0, 6.0]),
    }


# The workspace


@pytest.mark.parametrize("nuisances", [(), (LUMINOSITY, TOP)])
def test_workspace_is_valid_and_fits_its_asimov_data(nuisances: tuple[Nuisance, ...]) -> None:
    channel = Channel.of("score", processes(), ["higgs", "vbf"], uncertainties=nuisances)
    spec = json.loads(json.dumps(Likelihood((channel,)).workspace(), allow_nan=False))
    pyhf.schema.validate(spec, "workspace.json")
    assert channel.edges.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert channel.clipped == {"higgs": 0.5, "top": 1.0, "ww": 2.0}
    model = pyhf.Workspace(spec).model()
    data = pyhf.Workspace(spec).data(model)
    assert data[:4] == [81.1, 24.5, 13.0, 17.0]
    start = model.config.suggested_init()
    start[model.config.poi_index] = 0.3
    fit = pyhf.infer.mle.fit(data, model, init_pars=start)
    assert fit[model.config.poi_index] == pytest.approx(1.0, abs=2e-3)
    at_two = list(model.config.suggested_init())
    at_two[model.config.poi_index] = 2.0
    signal = model.expected_actualdata(at_two) - model.expected_actualdata(model.config.suggested_init())
    np.testing.assert_allclose(signal, [1.1, 4.5, 1.0, 11.0])


def test_a_nuisance_scales_what_it_names_and_nothing_else() -> None:
    model = pyhf.Workspace(
        Likelihood((Channel.of("score", processes(), ["higgs", "vbf"], uncertainties=(LUMINOSITY, TOP)),)).workspace()
    ).model()
    nominal = model.expected_actualdata(model.config.suggested_init())
    for name, deviation, change in (
        ("luminosity", 1.0, 0.02 * nominal),
        ("luminosity", -1.0, (1 / 1.02 - 1) * nominal),
        ("top_cross_section", 1.0, 0.06 * np.array([50.0, 20.0, 8.0, 0.0])),
        ("top_cross_section", -1.0, -0.1 * np.array([50.0, 20.0, 8.0, 0.0])),
    ):
        parameters = list(model.config.suggested_init())
        parameters[model.config.par_slice(name).start] = deviation
        np.testing.assert_allclose(model.expected_actualdata(parameters) - nominal, change, atol=1e-9)


def test_the_workspace_gives_the_background_its_own_uncertainty() -> None:
    s, b, error = [1.0, 4.0, 9.0], [50.0, 20.0, 12.0], 2.0
    spec = Likelihood(
        (Channel.of("score", {"higgs": template(s, 0.01), "top": template(b, error)}, ["higgs"]),)
    ).workspace()

    def minus_log(gamma: float, b_i: float, n: float) -> float:
        return float(gamma * b_i - xlogy(n, gamma * b_i) + ((gamma - 1) * b_i / error) ** 2 / 2)

    expected = 0.0
    for s_i, b_i in zip(s, b, strict=True):
        n = s_i + b_i
        best = optimize.minimize_scalar(minus_log, bounds=(0.1, 10), args=(b_i, n), options={"xatol": 1e-10})
        expected += 2 * (best.fun - (n - xlogy(n, n)))
    # One parameter per bin for signal and background together would make the background of the last bin too certain.
    found = expectation(spec)["significance"]
    assert found == pytest.approx(np.sqrt(expected), rel=1e-3)
    assert found < asimov_significance(s, b)


def test_collision_data_keep_all_events_where_bins_without_background_merge() -> None:
    histograms = {"higgs": template([0.0, 1.0, 2.0, 3.0]), "top": template([0.0, 9.0, 4.0, 0.0])}
    channel = Channel.of("score", histograms, ["higgs"], template([2.0, 11.0, 7.0, 1.0]))
    assert channel.edges.tolist() == [0.0, 0.5, 1.0]
    workspace = Likelihood((channel,)).workspace()
    assert workspace["observations"][0]["data"] == [13.0, 8.0]
    samples = {s["name"]: s for s in workspace["channels"][0]["samples"]}
    assert samples["top"]["data"] == [9.0, 4.0]
    np.testing.assert_allclose(samples["top"]["modifiers"][0]["data"], np.sqrt([0.5, 0.5]))
    assert channel.clipped == {}
    assert not channel.asimov


def test_a_bin_with_too_few_simulated_events_makes_no_discovery() -> None:
    """One background event of a small weight in the last bin: the signal would stand out there without reason."""
    top = Histogram(np.linspace(0, 1, 5), np.array([900.0, 400.0, 100.0, 0.1]),
                    np.array([90.0, 40.0, 10.0, 0.01]), np.array([9000, 4000, 1000, 1]))  # fmt: skip
    signal = template([1.0, 2.0, 5.0, 8.0])
    assert Channel.of("score", {"higgs": signal, "top": top}, ["higgs"]).edges.tolist() == [0.0, 0.25, 0.5, 1.0]
    small = Histogram(top.edges, top.values, top.values**2, np.ones(4, dtype=np.int64))
    assert Channel.of("score", {"higgs": signal, "top": small}, ["higgs"]).edges.tolist() == [0.0, 1.0]


def test_models_that_make_no_sense_are_an_error() -> None:
    good = {"higgs": template([1.0, 2.0]), "top": template([5.0, 4.0])}
    for signals in ([], ["zprime"], ["higgs", "top"]):
        with pytest.raises(ValueError, match="at least one of each"):
            Channel.of("score", good, signals)
    with pytest.raises(ValueError, match="different edges"):
        Channel.of("score", good | {"ww": template([1.0, 1.0, 1.0])}, ["higgs"])
    with pytest.raises(ValueError, match=r"luminosity of \['vbf', 'ww'\]"):
        Channel.of("score", good, ["higgs"], uncertainties=[LUMINOSITY])
    with pytest.raises(UserError, match="weights of the backgrounds top sum to 0 in all bins"):
        Channel.of("score", good | {"top": template([5.0, -5.0])}, ["higgs"])


# What it expects


@pytest.mark.parametrize("scale", [1.0, 0.01, 30.0])
def test_the_expected_limit_is_that_of_pyhf(scale: float) -> None:
    """Also where the limit lies far from a signal strength of one."""
    signal = template([scale * s for s in (1.0, 2.0, 6.0)], 0.1 * scale)
    spec = Likelihood(
        (Channel.of("score", {"higgs": signal, "top": template([90.0, 40.0, 9.0], 2.0)}, ["higgs"]),)
    ).workspace()
    found = expectation(spec)
    model = pyhf.Workspace(spec).model()
    strength = model.config.suggested_bounds()
    assert strength[model.config.poi_index][1] > 2 * found["limit"]["high_95"]
    background = list(model.config.suggested_init())
    background[model.config.poi_index] = 0.0
    data = model.expected_data(background)
    for number, name in enumerate(("low_95", "low_68", "median", "high_68", "high_95")):
        _, expected = pyhf.infer.hypotest(
            found["limit"][name], data, model, par_bounds=strength, test_stat="qtilde", return_expected_set=True
        )
        assert float(expected[number]) == pytest.approx(0.05, rel=0.02), name
    p_value = pyhf.infer.hypotest(0.0, pyhf.Workspace(spec).data(model), model, par_bounds=strength, test_stat="q0")
    from scipy.stats import norm

    assert found["significance"] == pytest.approx(norm.isf(float(p_value)), rel=1e-3)


def test_an_uncertain_signal_excludes_no_strength() -> None:
    """A signal known to 50% only: however strong it is, its absence is two standard deviations at most."""
    signal = Histogram(np.linspace(0, 1, 3), np.array([2.0, 6.0]), np.array([1.0, 9.0]), np.ones(2, dtype=np.int64))
    found = expectation(
        Likelihood((Channel.of("score", {"higgs": signal, "top": template([40.0, 9.0], 2.0)}, ["higgs"]),)).workspace()
    )
    assert found["limit"]["low_95"] > 0
    assert found["limit"]["high_95"] is None
    assert found["significance"] > 0
    worse = replace(signal, variances=16 * signal.variances)
    found = expectation(
        Likelihood((Channel.of("score", {"higgs": worse, "top": template([40.0, 9.0], 2.0)}, ["higgs"]),)).workspace()
    )
    assert found["limit"]["median"] is None
    assert found["reason"] == "within its uncertainties the model excludes no signal strength"


def test_a_signal_without_events_expects_nothing() -> None:
    spec = Likelihood(
        (Channel.of("score", {"higgs": template([0.0, -1.0]), "top": template([5.0, 4.0])}, ["higgs"]),)
    ).workspace()
    assert expectation(spec) == {"significance": None, "limit": None, "reason": "the signal has no expected events"}


def test_a_fit_that_does_not_converge_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.fits.ITERATIONS", 1)
    found = expectation(Likelihood((Channel.of("score", processes(), ["higgs", "vbf"]),)).workspace())
    assert found["significance"] is None
    assert None in found["limit"].values()
    assert found["reason"] == "a fit of the likelihood model does not converge"


def test_millions_of_events_in_a_bin_are_no_hindrance() -> None:
    """Where pyhf's own minimisers fail: parameters that the data know a thousand times better than the simulation."""
    edges, ones = np.linspace(0, 1, 11), np.ones(10, dtype=np.int64)
    b = np.linspace(9e7, 2e7, 10)
    signal = Histogram(edges, np.linspace(1e3, 2e4, 10), np.full(10, 1e5), ones)
    top = Histogram(edges, b, (0.05 * b) ** 2, 400 * ones)
    found = expectation(Likelihood((Channel.of("score", {"higgs": signal, "top": top}, ["higgs"]),)).workspace())
    expected = asimov_significance(signal.values, b, 0.05 * b)
    assert found["significance"] == pytest.approx(expected, rel=1e-3)
    assert found["limit"]["median"] == pytest.approx(1.96 / expected, rel=0.02)


@pytest.mark.parametrize("seed", [0, 2, 6])
def test_large_and_lopsided_variations_converge(seed: int) -> None:
    random = np.random.default_rng(seed)
    b, s = np.sort(random.uniform(5, 300, 5))[::-1], np.sort(random.uniform(1, 20, 5))

    def around(values: Any) -> Histogram:
        return template(list(values), 1.0)

    def side() -> dict[str, Histogram]:
        return {"top": around(b * (1 + random.normal(0, 0.3, 5)).clip(0.05))}

    variations = [Variation({f"v{n}": ("top",)}, side(), side()) for n in range(4)]
    spec = Likelihood(
        (Channel.of("score", {"higgs": around(s), "top": around(b)}, ["higgs"], uncertainties=variations),)
    ).workspace()
    found = expectation(spec)
    assert found["reason"] is None
    assert list(found["limit"].values()) == sorted(found["limit"].values())
    # No point is better than the one that a fit ends in, as far as another minimiser sees.
    model = pyhf.Workspace(spec).model()
    bounds = model.config.suggested_bounds()
    start = np.array(model.config.suggested_init())
    start[model.config.poi_index] = 1.0
    q, _ = pyhf.infer.test_statistics.q0(
        0.0,
        model.expected_data(start),
        model,
        start.tolist(),
        bounds,
        model.config.suggested_fixed(),
        return_fitted_pars=True,
    )
    assert found["significance"] <= np.sqrt(float(q)) * 1.01


def test_uncertainties_cost_sensitivity() -> None:
    free = expectation(Likelihood((Channel.of("score", processes(), ["higgs", "vbf"]),)).workspace())
    bound = expectation(
        Likelihood((Channel.of("score", processes(), ["higgs", "vbf"], uncertainties=(LUMINOSITY, TOP)),)).workspace()
    )
    assert bound["significance"] < free["significance"]
    assert bound["limit"]["median"] > free["limit"]["median"]


# The datacard


def read_card(text: str) -> dict[str, Any]:
    """A datacard by the grammar of Combine's manual: lines of words, of which some begin with a keyword."""
    lines = [line.split() for line in text.splitlines() if line.strip() and not line.startswith(("-", "#"))]
    keyed = {
        line[0]: line[1:] for line in lines if line[0] in ("imax", "jmax", "kmax", "shapes", "observation", "rate")
    }
    names, numbers = (line[1:] for line in lines if line[0] == "process")
    channels, owners = (line[1:] for line in lines if line[0] == "bin")
    columns = list(zip(owners, names, strict=True))
    assert len(columns) == len(numbers) == len(keyed["rate"])
    assert len(channels) == int(keyed["imax"][0]) == len(keyed["observation"])
    assert set(owners) == set(channels)
    uncertain = {line[0]: dict(zip(columns, line[2:], strict=True)) for line in lines if line[1] in ("lnN", "shape")}
    statistics = [line[0] for line in lines if line[1] == "autoMCStats"]
    assert statistics == channels
    used = (*keyed, "process", "bin", *uncertain, *channels)
    assert all(line[0] in used for line in lines)
    rates = dict(zip(columns, map(float, keyed["rate"]), strict=True))
    observed = dict(zip(channels, map(float, keyed["observation"]), strict=True))
    numbered = dict(zip(names, map(int, numbers), strict=True))
    return {**keyed, "numbers": numbered, "uncertain": uncertain, "rate": rates, "observation": observed}


SHAPES = ["*", "*", "histograms.root", "fit/$CHANNEL/$PROCESS", "fit/$CHANNEL/$PROCESS_$SYSTEMATIC"]


def test_the_datacard_says_what_the_workspace_says() -> None:
    model = Likelihood((Channel.of("score", processes(), ["higgs", "vbf"], uncertainties=(LUMINOSITY, TOP)),))
    card = read_card(model.datacard("histograms.root"))
    assert (card["imax"][0], card["jmax"][0], card["kmax"][0]) == ("1", "3", "*")
    assert card["numbers"] == {"higgs": -1, "vbf": 0, "top": 1, "ww": 2}
    assert card["shapes"] == SHAPES
    histograms = model.histograms()["fit/score"]
    for (_, name), rate in card["rate"].items():
        assert rate == pytest.approx(histograms[name].values.sum(), rel=1e-5)
    assert card["observation"]["score"] == pytest.approx(histograms["data_obs"].values.sum())
    expected = {
        "luminosity": dict.fromkeys(("higgs", "vbf", "top", "ww"), "1.02"),
        "top_cross_section": {"higgs": "-", "vbf": "-", "top": "0.9/1.06", "ww": "-"},
    }
    assert card["uncertain"] == {
        name: {("score", process): entry for process, entry in own.items()} for name, own in expected.items()
    }


# Several channels


def channels() -> Likelihood:
    """A search region, and a control region without the second signal; `tune` has a parameter in each."""
    search = Channel.of(
        "search",
        processes(),
        ["higgs", "vbf"],
        uncertainties=(LUMINOSITY, vary("scale", 1.2), vary("tune_search", 1.1)),
    )
    control = {"higgs": template([0.0, 0.1]), "top": template([500.0, 300.0])}
    only = Nuisance("luminosity", 1 / 1.02, 1.02, tuple(control))
    uncertainties = (only, vary("scale", 1.1, 2), vary("tune_control", 0.9, 2))
    return Likelihood((search, Channel.of("control", control, ["higgs"], uncertainties=uncertainties)))


def vary(parameter: str, factor: float, bins: int = 4) -> Variation:
    nominal = processes()["top"].values if bins > 2 else np.array([500.0, 300.0])
    return Variation({parameter: ("top",)}, {"top": template(list(factor * nominal))})


def test_channels_share_parameters_by_name_and_no_statistical_uncertainty() -> None:
    workspace = pyhf.Workspace(channels().workspace())  # validates
    model = workspace.model()
    assert model.config.channels == ["control", "search"]
    names = set(model.config.parameters)
    assert {"mu", "luminosity", "scale", "tune_search", "tune_control"} < names
    assert {name for name in names if name.startswith("staterror_")} == {
        f"staterror_{group}_{channel}" for group in ("signal", "background") for channel in ("search", "control")
    }
    changed = {}
    for name in ("scale", "tune_search", "tune_control"):
        parameters = np.array(model.config.suggested_init())
        parameters[model.config.par_slice(name)] = 1.0
        change = model.expected_actualdata(parameters) - model.expected_actualdata(model.config.suggested_init())
        changed[name] = tuple(bool(np.abs(part).max() > 1e-6) for part in (change[:2], change[2:]))
    assert changed == {"scale": (True, True), "tune_search": (False, True), "tune_control": (True, False)}


def test_observed_events_of_channels_stand_in_the_order_of_the_model() -> None:
    spec = channels().workspace()
    workspace, fits = pyhf.Workspace(spec), Fits(spec)
    np.testing.assert_allclose(fits.observed(spec), workspace.data(workspace.model()))
    assert fits.fit(fits.observed(spec)).parameters[fits.poi] == pytest.approx(1, abs=1e-4)


def test_a_control_region_constrains_what_it_shares() -> None:
    def of(name: str, histograms: dict[str, Histogram]) -> Channel:
        return Channel.of(name, histograms, ["higgs"], uncertainties=[Nuisance("top", 0.7, 1.3, ("top",))])

    search = of("search", {"higgs": template([5.0, 20.0]), "top": template([200.0, 100.0])})
    control = of("control", {"higgs": template([0.0]), "top": template([5000.0])})
    alone, both = (expectation(Likelihood(channels).workspace()) for channels in ((search,), (search, control)))
    assert both["significance"] > 1.3 * alone["significance"]
    assert both["limit"]["median"] < alone["limit"]["median"] / 1.3


def test_the_datacard_of_channels() -> None:
    model = channels()
    card = read_card(model.datacard("histograms.root"))
    assert (card["imax"][0], card["jmax"][0]) == ("2", "3")
    assert card["numbers"] == {"higgs": -1, "vbf": 0, "top": 1, "ww": 2}
    assert card["shapes"] == SHAPES
    columns = [("search", name) for name in ("higgs", "vbf", "top", "ww")] + [("control", n) for n in ("higgs", "top")]
    assert list(card["rate"]) == columns
    for (channel, name), rate in card["rate"].items():
        assert rate == pytest.approx(model.histograms()[f"fit/{channel}"][name].values.sum(), rel=1e-5)
    assert list(card["uncertain"]) == ["luminosity", "scale", "tune_search", "tune_control"]
    varied = {name: [key for key, entry in own.items() if entry != "-"] for name, own in card["uncertain"].items()}
    assert varied["luminosity"] == columns
    assert varied["scale"] == [("search", "top"), ("control", "top")]
    assert varied["tune_control"] == [("control", "top")]
    assert {"top_scaleUp", "top_tune_controlDown", "data_obs"} <= model.histograms()["fit/control"].keys()


def test_another_program_reads_the_datacard(tmp_path: Path) -> None:
    """rabbit's own parser and search for histograms, against the workspace."""
    model = channels()
    (tmp_path / "datacard.txt").write_text(model.datacard("histograms.root"))
    write_histograms(tmp_path / "histograms.root", model.histograms())
    calls: dict[str, list[list[Any]]] = {}
    for name, *given in read_datacard(tmp_path):
        calls.setdefault(name, []).append(given)
    spec = model.workspace()
    observed = {each["name"]: each["data"] for each in spec["observations"]}
    assert {channel for _, channel in calls["add_data"]} == observed.keys()
    for histogram, channel in calls["add_data"]:
        assert histogram["values"] == pytest.approx(observed[channel])
    samples = {(c["name"], s["name"]): s for c in spec["channels"] for s in c["samples"]}
    found = {(channel, process): histogram for histogram, process, channel in calls["add_process"]}
    assert found.keys() == samples.keys()
    for key, histogram in found.items():
        assert histogram["values"] == pytest.approx(samples[key]["data"])
        errors = next(m["data"] for m in samples[key]["modifiers"] if m["type"] == "staterror")
        assert np.sqrt(histogram["variances"]) == pytest.approx(np.array(errors))
    factors = {(name, channel, process): effect for name, process, channel, effect in calls["add_norm_systematic"]}
    assert factors == {("luminosity", *key): pytest.approx(1.02) for key in samples}
    shapes = {(name, channel, process): sides for sides, name, process, channel in calls["add_systematic"]}
    assert set(shapes) == {
        ("scale", "search", "top"),
        ("scale", "control", "top"),
        ("tune_search", "search", "top"),
        ("tune_control", "control", "top"),
    }
    varied = {channel.name: channel.varied for channel in model.channels}
    for (name, channel, process), (up, down) in shapes.items():
        assert up["values"] == pytest.approx(varied[channel][name][process].up.values)
        assert down["values"] == pytest.approx(varied[channel][name][process].down.values)


# From events


@pytest.fixture
def scored(toy_table: Callable[..., EventTable]) -> ScoredEvents:
    """Events whose `routed` and `ensemble` scores differ, both telling `higgs` from the rest."""
    table = toy_table(20_000)
    random = np.random.default_rng(3)

    def score(separation: float) -> Any:
        signal = 1 / (1 + np.exp(-random.normal(separation * (table.label == 1), 1.0)))
        return np.stack([1 - signal, signal], axis=1).astype(np.float32)

    fold = (table.identity % 5).astype(np.int16)
    scores = {"routed": score(2.0), "ensemble": score(2.5)}
    return ScoredEvents(table, fold, spread=np.zeros_like(scores["routed"]), **scores)


@pytest.mark.parametrize("kind", ["ensemble", "routed"])
def test_a_channel_holds_the_data_of_its_category(scored: ScoredEvents, kind: Any) -> None:
    table = scored.table
    settings = ScoreSettings(("background", "higgs"), "higgs", ("other",), 5, "0")
    scales = Scales(dict.fromkeys(table.processes, 4.0), dict.fromkeys(table.processes, 4 / 3))
    filled = Filled(scored, scales, settings, kind, with_data=True)
    slices: Any = SimpleNamespace(
        bins=8, scored=SimpleNamespace(scores=settings), signals=("higgs",), nuisances={"one": (), "": ()}
    )
    recorded = table.process == 2
    for category, chosen in (("one", table.category == "one"), ("", np.ones(len(table), dtype=np.bool_))):
        channel = Draft.of(category or "score", category, filled, slices).channel(slices)
        assert not channel.asimov
        assert channel.observed.sum() == pytest.approx(table.weight[recorded & chosen].sum(), rel=1e-9)
        assert set(channel.templates) == {"top", "higgs"}
        rows = chosen & (table.process == 0) & (table.is_test if kind == "ensemble" else True)
        expected = (4.0 if kind == "ensemble" else 1.0) * table.weight[rows].sum()
        assert channel.templates["top"].values.sum() == pytest.approx(expected, rel=1e-9)
    blind = Draft.of("one", "one", replace(filled, with_data=False), slices).channel(slices)
    assert blind.asimov
    np.testing.assert_allclose(blind.observed, sum(template.values for template in blind.templates.values()))


@pytest.mark.parametrize("kind", ["ensemble", "routed"])
def test_pseudo_data_are_fitted_with_a_strength_of_one(scored: ScoredEvents, kind: Any) -> None:
    """Events that are no template, scored alike and drawn by their weights: mu is 1 within its error."""
    table = scored.table
    settings = ScoreSettings(("background", "higgs"), "higgs", (), 5, "0")
    weight = {name: np.abs(table.weight)[table.process == p] for p, name in enumerate(table.processes)}
    test = {name: table.is_test[table.process == p] for p, name in enumerate(table.processes)}
    scale = {name: float(w.sum() / w[test[name]].sum()) for name, w in weight.items()}
    rest = {name: float(w.sum() / w[~test[name]].sum()) for name, w in weight.items()}
    filled = Filled(scored, Scales(scale, rest), settings, kind, with_data=False)
    templates, _ = filled.histograms("higgs", filled.bins(20))
    score = getattr(scored, kind)[:, 1].astype(np.float64)
    # Templates of `ensemble` are test events, so that the others can be data; those of `routed` are all events.
    rows = ~table.is_test if kind == "ensemble" else np.ones(len(table), dtype=np.bool_)
    factor = np.array([rest[name] if kind == "ensemble" else 1.0 for name in table.processes])[table.process]
    edges = templates["higgs"].edges
    expected = Histogram.fill(score[rows], (table.weight * factor)[rows], edges)
    counts = np.random.default_rng(4).poisson(np.maximum(expected.values, 0)).astype(np.float64)
    data = Histogram(edges, counts, counts, counts.astype(np.int64))
    workspace = pyhf.Workspace(Likelihood((Channel.of("score", templates, ["higgs"], data),)).workspace())
    model = workspace.model()
    fit = pyhf.infer.mle.fit(workspace.data(model), model)
    mu, error = float(fit[model.config.poi_index]), 1 / expectation(workspace)["significance"]
    assert abs(mu - 1) < 3 * error
    assert error < 0.5
