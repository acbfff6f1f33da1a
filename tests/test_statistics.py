"""Significances and their bins, against independent calculations."""

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
