"""Significances, histograms and the likelihood model, against independent calculations."""

from __future__ import annotations

import json
from itertools import pairwise

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize
from scipy.special import xlogy

from analysis import metrics, statistics
from analysis.splitting import event_identity

MAGNITUDES = st.floats(-6.0, 6.0).map(lambda x: 10.0**x)


def by_many_digits(s: float, b: float, sigma: float) -> float:
    """Evaluate the published formulas as they stand, with 80 digits."""
    with mpmath.workdps(80):
        s, b, v = mpmath.mpf(s), mpmath.mpf(b), mpmath.mpf(sigma) ** 2
        n = s + b
        if v == 0:
            return float(mpmath.sqrt(2 * (n * mpmath.log(1 + s / b) - s)))
        first = n * mpmath.log(n * (b + v) / (b * b + n * v))
        return float(mpmath.sqrt(2 * (first - b * b / v * mpmath.log(1 + v * s / (b * (b + v))))))


def by_likelihood(s: float, b: float, sigma: float) -> float:
    """Profile the on/off likelihood numerically: n ~ Poisson(μs + b'), m ~ Poisson(τ b') with τ = b/σ²."""
    tau = b / sigma**2
    n, m = s + b, tau * b

    def minus_log(background: float, mu: float) -> float:
        on, off = mu * s + background, tau * background
        return float(on - xlogy(n, on) + off - xlogy(m, off))

    best = optimize.minimize_scalar(minus_log, bounds=(b / 100, 100 * b + s), args=(0.0,), options={"xatol": 1e-12})
    return float(np.sqrt(2 * (best.fun - minus_log(b, 1.0))))


def toy(count: int, seed: int, background_weight: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores in (0, 1), truth and signed weights."""
    rng = np.random.default_rng(seed)
    is_signal = rng.random(count) < 0.3
    score = 1 / (1 + np.exp(-rng.normal(size=count) - 1.5 * is_signal))
    weight = np.where(rng.random(count) < 0.1, -1.0, 1.0) * np.where(is_signal, 0.1, background_weight)
    return score, is_signal, weight


# Significance


@given(MAGNITUDES, MAGNITUDES, st.one_of(st.just(0.0), MAGNITUDES))
def test_significance_is_accurate_over_many_orders_of_magnitude(s: float, b: float, sigma: float) -> None:
    assert statistics.asimov_significance(s, b, sigma) == pytest.approx(by_many_digits(s, b, sigma), rel=1e-12)


@pytest.mark.parametrize(("s", "b", "sigma"), [(5, 10, 2), (20, 10, 3), (3, 100, 5), (10, 10, 10)])
def test_significance_is_the_profiled_likelihood_ratio(s: float, b: float, sigma: float) -> None:
    assert statistics.asimov_significance(s, b, sigma) == pytest.approx(by_likelihood(s, b, sigma), rel=1e-5)


def test_limits_of_the_significance() -> None:
    z = statistics.asimov_significance
    assert z(1.0, 1e8) == pytest.approx(1e-4, rel=1e-7)
    assert z(1.0, 1e8, 3e4) == pytest.approx(1 / np.sqrt(1e8 + 9e8), rel=1e-7)
    assert z(10.0, 20.0, 1e-9) == pytest.approx(z(10.0, 20.0), rel=1e-12)
    assert z(0.0, 5.0, 1.0) == 0.0
    assert z(-3.0, 5.0) == 0.0
    assert z(10.0, 20.0, 3.0) < z(10.0, 20.0)


@given(st.lists(st.tuples(MAGNITUDES, MAGNITUDES, MAGNITUDES), min_size=1, max_size=5))
def test_bins_add_in_quadrature(bins: list[tuple[float, float, float]]) -> None:
    single = [statistics.asimov_significance(*b) for b in bins]
    assert statistics.asimov_significance(*np.array(bins).T) == pytest.approx(float(np.linalg.norm(single)))


@pytest.mark.parametrize(
    ("s", "b", "sigma", "text"),
    [(1, 0, None, "b > 0"), (1, [1, -1], None, "b > 0"), (1, 1, -1, "sigma_b"), (np.nan, 1, None, "NaN")],
)
def test_bins_without_meaning_are_an_error(s: float, b: float, sigma: float | None, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        statistics.asimov_significance(s, b, sigma)


# Binning


@given(st.lists(st.tuples(st.floats(-20, 100), st.floats(0, 100)), min_size=1, max_size=30))
def test_merged_bins_suffice_and_lose_nothing(bins: list[tuple[float, float]]) -> None:
    values, variances = np.array(bins).T
    bounds = statistics.merge_bins(values, variances)

    def enough(low: int, high: int) -> bool:
        b, v = values[low:high].sum(), variances[low:high].sum()
        return bool(b > 0 and b * b >= 10 * v and v <= 0.04 * b * b)

    if not len(bounds):
        assert not enough(0, len(values))
        return
    assert (bounds[0], bounds[-1]) == (0, len(values))
    assert (np.diff(bounds) > 0).all()
    assert all(enough(low, high) for low, high in pairwise(bounds))
    # From the high side, no bin is larger than it must be, but for the lowest, which takes what is left.
    for low, high in pairwise(bounds[1:]):
        assert not any(enough(later, high) for later in range(low + 1, high))


def test_merging_starts_at_the_high_side() -> None:
    ones = np.full(6, 10.0)
    assert statistics.merge_bins(ones, ones).tolist() == [0, 3, 6]
    assert statistics.merge_bins(ones[:5], ones[:5]).tolist() == [0, 5]
    assert statistics.merge_bins(ones[:2], ones[:2]).tolist() == []
    assert statistics.merge_bins(ones[:2], ones[:2], maximum_relative_error=0.3).tolist() == [0, 2]
    assert statistics.merge_bins(ones[:2], ones[:2], 20.1, maximum_relative_error=1.0).tolist() == []
    negative = np.array([-30.0, 40.0, 40.0])
    assert statistics.merge_bins(negative, np.abs(negative)).tolist() == []
    assert statistics.merge_bins(negative, np.array([0.0, 40.0, 40.0]), 0.0, 10.0).tolist() == [0, 2, 3]


def test_significance_on_other_events_than_the_binning() -> None:
    edges = statistics.choose_edges(*toy(20_000, 1))
    assert edges is not None
    assert (edges[0], edges[-1]) == (0.0, 1.0)
    assert len(edges) > 10
    score, is_signal, weight = toy(20_000, 2)
    result = statistics.binned_significance(score, is_signal, weight, edges)
    s = np.histogram(score[is_signal], result.edges, weights=weight[is_signal])[0]
    b = np.histogram(score[~is_signal], result.edges, weights=weight[~is_signal])[0]
    variance = np.histogram(score[~is_signal], result.edges, weights=weight[~is_signal] ** 2)[0]
    expected = np.sqrt(sum(by_many_digits(*x, 0.0) ** 2 for x in zip(s, b, strict=True)))
    assert result.value.value == pytest.approx(expected)
    expected = np.sqrt(sum(by_many_digits(*x) ** 2 for x in zip(s, b, np.sqrt(variance), strict=True)))
    assert result.value_with_uncertainty.value == pytest.approx(expected)
    np.testing.assert_allclose(result.signal, s)
    np.testing.assert_allclose(result.background_error, np.sqrt(variance))
    assert result.reason == ""
    json.dumps(result.to_json(), allow_nan=False)


def test_bins_that_lack_events_on_the_test_sample_merge_there() -> None:
    edges = statistics.choose_edges(*toy(20_000, 1))
    assert edges is not None
    result = statistics.binned_significance(*toy(1_000, 2), edges)
    assert 2 < len(result.edges) < len(edges)
    assert set(result.edges) < set(edges.tolist())
    background, error = np.array(result.background), np.array(result.background_error)
    assert (error / background <= 0.2).all()


def test_too_few_events_have_a_reason_and_no_value() -> None:
    few = toy(30, 3)
    assert statistics.choose_edges(*few) is None
    edges = np.array([0.0, 0.5, 1.0])
    score, is_signal, weight = toy(1_000, 3)
    no_signal = score[~is_signal], is_signal[~is_signal], weight[~is_signal]
    for sample, binning in ((few, edges), (toy(1_000, 3), None), (no_signal, edges)):
        result = statistics.binned_significance(*sample, binning)
        assert result.value.value is None
        assert result.reason == "not enough simulated events"
        json.dumps(result.to_json(), allow_nan=False)


def test_interval_of_the_significance_is_that_of_its_replicas() -> None:
    score, is_signal, weight = toy(2_000, 4)
    edges = np.array([0.0, 0.5, 0.8, 1.0])
    identity = event_identity("toy", [np.arange(2_000)])
    blocks = list(metrics.bootstrap_counts(identity, is_signal.astype(int), 50, 1))
    result = statistics.binned_significance(score, is_signal, weight, edges, blocks)
    assert result.edges == tuple(edges)
    exact, uncertain = [], []
    for counts in np.concatenate(blocks):
        s = np.histogram(score[is_signal], edges, weights=(weight * counts)[is_signal])[0]
        b = np.histogram(score[~is_signal], edges, weights=(weight * counts)[~is_signal])[0]
        variance = np.histogram(score[~is_signal], edges, weights=(weight**2 * counts)[~is_signal])[0]
        exact.append(statistics.asimov_significance(s, b))
        uncertain.append(statistics.asimov_significance(s, b, np.sqrt(variance)))
    assert (result.value.low, result.value.high) == pytest.approx(metrics.interval(np.array(exact)))
    found = result.value_with_uncertainty
    assert (found.low, found.high) == pytest.approx(metrics.interval(np.array(uncertain)))
    without = statistics.binned_significance(score, is_signal, weight, edges)
    assert (without.value.value, without.value.low) == (result.value.value, None)


# Histograms


@given(st.integers(0, 10_000))
def test_histograms_equal_numpy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    score, weight, process = rng.integers(0, 11, 50) / 10, rng.normal(1, 1, 50), rng.integers(0, 2, 50)
    edges = np.array([0.0, 0.1, 0.5, 1.0])
    histograms = statistics.score_histograms(score, weight, process, ["a", "b", "empty"], edges)
    for p, name in enumerate(["a", "b", "empty"]):
        part = process == p
        found = histograms[name]
        np.testing.assert_allclose(found.values, np.histogram(score[part], edges, weights=weight[part])[0])
        np.testing.assert_allclose(found.variances, np.histogram(score[part], edges, weights=weight[part] ** 2)[0])
        np.testing.assert_array_equal(found.entries, np.histogram(score[part], edges)[0])
    assert histograms["empty"].values.tolist() == [0.0, 0.0, 0.0]


def test_histograms_lose_no_event() -> None:
    edges = np.array([0.0, 0.5, 1.0])
    for score in (1.1, -0.1, np.nan):
        with pytest.raises(ValueError, match="1 of 1 scores are NaN or outside"):
            statistics.Histogram.fill(np.array([score]), np.ones(1), edges)
    with pytest.raises(ValueError, match="edges must be"):
        statistics.Histogram.fill(np.array([0.5]), np.ones(1), edges[::-1])
    with pytest.raises(ValueError, match="processes from 0 to 1, but there are 1 names"):
        statistics.score_histograms(np.full(2, 0.5), np.ones(2), np.arange(2), ["a"], edges)
    with pytest.raises(ValueError, match="values has the shape"):
        statistics.Histogram(edges, np.ones(3), np.ones(2), np.ones(2, dtype=np.int64))


def test_histograms_survive_json_and_become_hist() -> None:
    score, _, weight = toy(200, 5)
    histogram = statistics.Histogram.fill(score, weight, np.array([0.0, 0.3, 0.6, 1.0]))
    back = statistics.Histogram.from_json(json.loads(json.dumps(histogram.to_json())))
    for name in ("edges", "values", "variances", "entries"):
        np.testing.assert_array_equal(getattr(back, name), getattr(histogram, name))
    other = histogram.to_hist()
    np.testing.assert_array_equal(other.values(), histogram.values)
    np.testing.assert_array_equal(other.variances(), histogram.variances)
    np.testing.assert_array_equal(other.axes[0].edges, histogram.edges)


# Likelihood model


def template(values: list[float], error: float = 0.5) -> statistics.Histogram:
    count = len(values)
    return statistics.Histogram(
        np.linspace(0, 1, count + 1), np.array(values), np.full(count, error**2), np.ones(count, dtype=np.int64)
    )


# jsonschema deprecates what pyhf 0.7.6 validates with; nothing of ours.
@pytest.mark.filterwarnings("ignore:jsonschema.RefResolver is deprecated:DeprecationWarning")
@pytest.mark.parametrize("luminosity", [None, 0.02])
def test_workspace_is_valid_and_fits_its_asimov_data(luminosity: float | None) -> None:
    import pyhf

    histograms = {
        "higgs": template([1.0, 4.0, -0.5, 9.0]),
        "vbf": template([0.1, 0.5, 1.0, 2.0]),
        "top": template([50.0, 20.0, 8.0, -1.0]),
        "ww": template([30.0, -2.0, 4.0, 6.0]),
    }
    workspace = statistics.pyhf_workspace(histograms, ["higgs", "vbf"], luminosity_uncertainty=luminosity)
    spec = json.loads(json.dumps(workspace.spec, allow_nan=False))
    pyhf.schema.validate(spec, "workspace.json")
    assert workspace.edges == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert workspace.clipped == {"higgs": 0.5, "top": 1.0, "ww": 2.0}
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
    assert ("lumi" in model.config.par_order) == (luminosity is not None)


@pytest.mark.filterwarnings("ignore:jsonschema.RefResolver is deprecated:DeprecationWarning")
def test_the_workspace_gives_the_background_its_own_uncertainty() -> None:
    import pyhf

    s, b, error = [1.0, 4.0, 9.0], [50.0, 20.0, 12.0], 2.0
    histograms = {"higgs": template(s, 0.01), "top": template(b, error)}
    workspace = pyhf.Workspace(statistics.pyhf_workspace(histograms, ["higgs"]).spec)
    model = workspace.model()
    data = workspace.data(model)
    q0 = pyhf.infer.test_statistics.q0(
        0.0,
        data,
        model,
        model.config.suggested_init(),
        model.config.suggested_bounds(),
        model.config.suggested_fixed(),
    )

    def minus_log(gamma: float, b_i: float, n: float) -> float:
        return float(gamma * b_i - xlogy(n, gamma * b_i) + ((gamma - 1) * b_i / error) ** 2 / 2)

    expected = 0.0
    for s_i, b_i in zip(s, b, strict=True):
        n = s_i + b_i
        best = optimize.minimize_scalar(minus_log, bounds=(0.1, 10), args=(b_i, n), options={"xatol": 1e-10})
        expected += 2 * (best.fun - (n - xlogy(n, n)))
    # One parameter per bin for signal and background together would make the background of the last bin too certain.
    assert np.sqrt(q0) == pytest.approx(np.sqrt(expected), rel=1e-3)
    assert np.sqrt(q0) < statistics.asimov_significance(s, b)


def test_collision_data_keep_all_events_where_bins_without_background_merge() -> None:
    histograms = {"higgs": template([0.0, 1.0, 2.0, 3.0]), "top": template([0.0, 9.0, 4.0, 0.0])}
    data = template([2.0, 11.0, 7.0, 1.0])
    workspace = statistics.pyhf_workspace(histograms, ["higgs"], data, measurement="run2")
    assert workspace.edges == (0.0, 0.5, 1.0)
    assert workspace.spec["observations"][0]["data"] == [13.0, 8.0]
    samples = {s["name"]: s for s in workspace.spec["channels"][0]["samples"]}
    assert samples["top"]["data"] == [9.0, 4.0]
    np.testing.assert_allclose(samples["top"]["modifiers"][0]["data"], np.sqrt([0.5, 0.5]))
    assert workspace.clipped == {}
    assert workspace.spec["measurements"][0]["name"] == "run2"


def test_a_bin_with_too_few_simulated_events_makes_no_discovery() -> None:
    """One background event of a small weight in the last bin: the signal would stand out there without reason."""
    top = statistics.Histogram(np.linspace(0, 1, 5), np.array([900.0, 400.0, 100.0, 0.1]),
                               np.array([90.0, 40.0, 10.0, 0.01]), np.array([9000, 4000, 1000, 1]))  # fmt: skip
    workspace = statistics.pyhf_workspace({"higgs": template([1.0, 2.0, 5.0, 8.0]), "top": top}, ["higgs"])
    assert workspace.edges == (0.0, 0.25, 0.5, 1.0)
    small = statistics.Histogram(top.edges, top.values, top.values**2, np.ones(4, dtype=np.int64))
    alone = statistics.pyhf_workspace({"higgs": template([1.0, 2.0, 5.0, 8.0]), "top": small}, ["higgs"])
    assert alone.edges == (0.0, 1.0)


def test_models_that_make_no_sense_are_an_error() -> None:
    good = {"higgs": template([1.0, 2.0]), "top": template([5.0, 4.0])}
    for signals in ([], ["zprime"], ["higgs", "top"]):
        with pytest.raises(ValueError, match="at least one of each"):
            statistics.pyhf_workspace(good, signals)
    with pytest.raises(ValueError, match="different edges"):
        statistics.pyhf_workspace(good | {"ww": template([1.0, 1.0, 1.0])}, ["higgs"])
    with pytest.raises(ValueError, match="luminosity uncertainty of 2"):
        statistics.pyhf_workspace(good, ["higgs"], luminosity_uncertainty=2.0)
    with pytest.raises(ValueError, match="all backgrounds together"):
        statistics.pyhf_workspace(good | {"top": template([5.0, -5.0])}, ["higgs"])
