"""Metrics against brute force, scikit-learn and toys."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sklearn_metrics

from analysis import metrics
from analysis.splitting import event_identity
from analysis.weights import effective_number

WEIGHTS = st.floats(-1.0, 3.0).filter(lambda w: w == 0 or abs(w) > 1e-3)


def events(count: int, seed: int, classes: int = 3, negative: float = 0.1) -> metrics.Sample:
    """Draw scored events with signed weights; two processes in the last class."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, count)
    logits = rng.normal(size=(count, classes))
    logits[np.arange(count), label] += 1.0
    probabilities = np.exp(logits)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    weight = rng.exponential(1.0, count) * np.where(rng.random(count) < negative, -1.0, 1.0)
    process = label + ((label == classes - 1) & (rng.random(count) < 0.5))
    identity = event_identity("toy", [np.arange(count) + 1_000_000 * seed])
    return metrics.Sample(probabilities, label, weight, process, identity)


def brute_force_auc(score: np.ndarray, is_signal: np.ndarray, weight: np.ndarray) -> float:
    difference = score[is_signal][:, None] - score[~is_signal][None, :]
    pairs = weight[is_signal][:, None] * weight[~is_signal][None, :]
    won = (pairs * (np.sign(difference) + 1) / 2).sum()
    return float(won / weight[is_signal].sum() / weight[~is_signal].sum())


@st.composite
def scored(draw: st.DrawFn, weights: st.SearchStrategy[float] = WEIGHTS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores with many ties, truth and weights, such that both sums are well above zero."""
    rows = draw(st.lists(st.tuples(st.integers(0, 6), st.booleans(), weights), min_size=1, max_size=30))
    rows += [(draw(st.integers(0, 6)), truth, 40.0) for truth in (True, False)]
    score, is_signal, weight = zip(*rows, strict=True)
    return np.array(score) / 6, np.array(is_signal), np.array(weight)


# Areas and curves


@given(scored())
def test_auc_equals_brute_force_with_signed_weights_and_ties(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    assert metrics.roc_auc(*case) == pytest.approx(brute_force_auc(*case), abs=1e-12)


@given(scored(st.floats(0.0, 3.0)))
def test_auc_equals_scikit_learn_for_weights_that_are_not_negative(
    case: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    score, is_signal, weight = case
    expected = sklearn_metrics.roc_auc_score(is_signal, score, sample_weight=weight)
    assert metrics.roc_auc(score, is_signal, weight) == pytest.approx(expected, abs=1e-12)


@given(scored(), st.randoms(use_true_random=False))
def test_auc_ignores_order_scale_and_monotonic_maps(
    case: tuple[np.ndarray, np.ndarray, np.ndarray], random: Any
) -> None:
    score, is_signal, weight = case
    order = list(range(len(score)))
    random.shuffle(order)
    scaled = weight * np.where(is_signal, 1e-3, 1e5)
    changed = metrics.roc_auc(np.exp(3 * score)[order], is_signal[order], scaled[order])
    assert changed == pytest.approx(metrics.roc_auc(score, is_signal, weight), abs=1e-12)
    swapped = metrics.roc_auc(-score, is_signal, weight)
    assert swapped == pytest.approx(1 - metrics.roc_auc(score, is_signal, weight), abs=1e-12)


@given(scored())
def test_area_below_the_curve_is_the_auc_even_where_the_curve_runs_backwards(
    case: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    curve = metrics.roc_curve(*case)
    area = np.trapezoid(curve.signal_efficiency, curve.background_efficiency)
    assert area == pytest.approx(metrics.roc_auc(*case), abs=1e-12)
    ends = (curve.signal_efficiency[[0, -1]], curve.background_efficiency[[0, -1]])
    np.testing.assert_allclose(ends, [[0, 1], [0, 1]], atol=1e-12)
    assert (np.diff(curve.thresholds) < 0).all()


def test_auc_is_not_clipped_and_the_curve_runs_backwards_with_negative_weights() -> None:
    score = np.array([0.9, 0.5, 0.2])
    is_signal = np.array([False, True, False])
    weight = np.array([-1.0, 1.0, 3.0])
    assert metrics.roc_auc(score, is_signal, weight) == pytest.approx(1.5)
    assert metrics.roc_curve(score, is_signal, weight).background_efficiency.tolist() == [0.0, -0.5, -0.5, 1.0]


@pytest.mark.parametrize(("weight", "name"), [([1.0, -1.0, 1.0], "signal"), ([1.0, 1.0, 0.0], "background")])
def test_sums_that_are_not_positive_are_an_error(weight: list[float], name: str) -> None:
    score, is_signal = np.array([0.1, 0.2, 0.3]), np.array([True, True, False])
    functions: list[Callable[..., Any]] = [metrics.roc_auc, metrics.roc_curve, metrics.working_points]
    for function in functions:
        with pytest.raises(ValueError, match=f"^{name}: the weights sum to 0, but a positive sum"):
            function(score, is_signal, np.array(weight))


def test_nan_scores_are_an_error() -> None:
    with pytest.raises(ValueError, match="score: 1 of 2 values"):
        metrics.roc_auc(np.array([np.nan, 1.0]), np.array([True, False]), np.ones(2))


def test_effective_number_and_dilution() -> None:
    assert effective_number(np.full(7, -2.5)) == pytest.approx(7)
    assert effective_number(np.array([3.0, -1.0])) == pytest.approx(0.4)
    assert effective_number(np.zeros(3)) == 0.0
    assert metrics.negative_dilution(np.array([3.0, -1.0])) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="positive sum"):
        metrics.negative_dilution(np.array([1.0, -1.0]))


# Classes


@given(st.integers(0, 10_000), st.sampled_from([np.float32, np.float64]), st.integers(2, 5))
def test_class_metrics_equal_scikit_learn_with_weights_per_class(seed: int, dtype: type, classes: int) -> None:
    sample = events(200, seed, classes, negative=0.0)
    p = sample.probabilities.astype(dtype)
    sums = np.bincount(sample.label, sample.weight, classes)
    weight = sample.weight / sums[sample.label]
    predicted = p.argmax(axis=1)
    loss = sklearn_metrics.log_loss(sample.label, p, sample_weight=weight)
    assert metrics.log_loss(p, sample.label, sample.weight) == pytest.approx(loss, rel=1e-5)
    share = sklearn_metrics.accuracy_score(sample.label, predicted, sample_weight=weight)
    assert metrics.accuracy(p, sample.label, sample.weight) == pytest.approx(share)
    matrix = sklearn_metrics.confusion_matrix(sample.label, predicted, sample_weight=sample.weight, normalize="true")
    np.testing.assert_allclose(metrics.confusion_matrix(p, sample.label, sample.weight), matrix, atol=1e-12)


def test_class_metrics_keep_negative_weights() -> None:
    probabilities = np.array([[0.8, 0.2], [0.3, 0.7], [0.4, 0.6]])
    labels, weight = np.array([0, 0, 1]), np.array([3.0, -1.0, 5.0])
    assert metrics.accuracy(probabilities, labels, weight) == pytest.approx((1.5 + 1.0) / 2)
    expected = ((-3 * np.log(0.8) + np.log(0.3)) / 2 - np.log(0.6)) / 2
    assert metrics.log_loss(probabilities, labels, weight) == pytest.approx(expected)
    np.testing.assert_allclose(metrics.confusion_matrix(probabilities, labels, weight), [[1.5, -0.5], [0, 1]])


def test_a_sure_mistake_has_a_finite_loss_and_an_absent_class_is_an_error() -> None:
    p = np.array([[0.0, 1.0], [0.0, 1.0]])
    assert metrics.log_loss(p, np.array([0, 1]), np.ones(2)) == pytest.approx(-np.log(np.finfo(float).eps) / 2)
    for function in (metrics.log_loss, metrics.accuracy, metrics.confusion_matrix):
        with pytest.raises(ValueError, match="class 0: the weights sum to 0"):
            function(p, np.array([1, 1]), np.ones(2))


@given(scored(), st.floats(0.01, 1.0))
def test_working_points_are_the_highest_threshold_that_reaches_the_target(
    case: tuple[np.ndarray, np.ndarray, np.ndarray], target: float
) -> None:
    score, is_signal, weight = case
    (point,) = metrics.working_points(score, is_signal, weight, [target])

    def above(threshold: float, part: np.ndarray) -> float:
        return float(weight[part & (score >= threshold)].sum())

    signal, background = above(point.threshold, is_signal), above(point.threshold, ~is_signal)
    assert point.signal_efficiency == pytest.approx(signal / weight[is_signal].sum(), abs=1e-12)
    assert point.signal_efficiency >= target - 1e-9
    for higher in np.unique(score[score > point.threshold]):
        assert above(higher, is_signal) / weight[is_signal].sum() < target
    efficiency = background / weight[~is_signal].sum()
    assert point.background_efficiency == pytest.approx(efficiency, abs=1e-12)
    if efficiency > 1e-9:
        assert point.background_rejection == pytest.approx(1 / efficiency)
    if signal + background > 1e-9:
        assert point.purity == pytest.approx(signal / (signal + background))


def test_working_points_without_background_above_have_no_rejection() -> None:
    (point,) = metrics.working_points(np.array([0.9, 0.1]), np.array([True, False]), np.ones(2), [0.5])
    assert (point.background_rejection, point.purity) == (None, 1.0)
    with pytest.raises(ValueError, match=r"each must lie in \(0, 1\]"):
        metrics.working_points(np.array([0.9, 0.1]), np.array([True, False]), np.ones(2), [0.0])


# Kolmogorov-Smirnov


def test_ks_without_weights_equals_scipy() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(0.0, 1, 400).round(1), rng.normal(0.1, 1, 300).round(1)
    result = metrics.ks_weighted(a, np.ones(400), b, np.ones(300))
    assert result.statistic == pytest.approx(stats.ks_2samp(a, b).statistic)
    assert result.p_value == pytest.approx(stats.kstwobign.sf(np.sqrt(400 * 300 / 700) * result.statistic))
    assert result.permutation_p_value is None


def test_ks_raises_false_alarms_at_its_nominal_rate_on_weighted_events() -> None:
    rng = np.random.default_rng(2)
    toys, size = 400, 500
    asymptotic, permuted, plain = [], [], []
    for toy in range(toys):
        a, b = rng.normal(size=(2, size))
        wa, wb = rng.exponential(1.0, (2, size)) ** 2 * np.where(rng.random((2, size)) < 0.05, -1, 1)
        result = metrics.ks_weighted(a, wa, b, wb, permutations=99, seed=toy)
        asymptotic.append(result.p_value)
        permuted.append(result.permutation_p_value)
        plain.append(stats.kstwobign.sf(np.sqrt(size / 2) * result.statistic))
    # 400 toys at 5%: 20 ± 4.4 alarms; both p-values must lie within four deviations, the plain one far outside.
    for p_values in (asymptotic, permuted):
        assert 3 <= np.count_nonzero(np.array(p_values) <= 0.05) <= 38
    assert np.count_nonzero(np.array(plain) <= 0.05) > 100


def test_ks_sees_a_difference_and_repeats_itself() -> None:
    rng = np.random.default_rng(3)
    a, b = rng.normal(0, 1, 500), rng.normal(0.5, 1, 500)
    weight = rng.exponential(1.0, 500)
    first, second = (metrics.ks_weighted(a, weight, b, weight, permutations=199, seed=5) for _ in range(2))
    assert first == second
    assert first.p_value < 0.001
    assert first.permutation_p_value == pytest.approx(1 / 200)
    with pytest.raises(ValueError, match="second sample"):
        metrics.ks_weighted(a, weight, b, -weight)


# Bootstrap


def counts_of(identity: np.ndarray, stratum: np.ndarray, replicas: int, seed: int) -> np.ndarray:
    return np.concatenate(list(metrics.bootstrap_counts(identity, stratum, replicas, seed)))


def raw_counts(identity: np.ndarray, replicas: int, seed: int) -> np.ndarray:
    """Undo the scaling: the smallest count above zero of a replica is one (true for large samples)."""
    counts = counts_of(identity, np.zeros(len(identity), dtype=int), replicas, seed)
    return counts / np.where(counts > 0, counts, np.inf).min(axis=1, keepdims=True)


def test_counts_are_poisson_and_independent_between_events_and_replicas() -> None:
    identity = event_identity("toy", [np.arange(5_000)])
    counts = np.rint(raw_counts(identity, 200, seed=1)).astype(int)
    observed = np.bincount(counts.ravel(), minlength=9)[:9]
    expected = stats.poisson.pmf(np.arange(9), 1.0) * counts.size
    assert observed.sum() == counts.size
    # Adjacent rare counts are pooled; the table's rounding (2^-16) is far below this resolution.
    chi2 = stats.chisquare(
        np.append(observed[:6], observed[6:].sum()), np.append(expected[:6], counts.size - expected[:6].sum())
    )
    assert chi2.pvalue > 1e-3
    assert counts.mean() == pytest.approx(1.0, abs=4 / np.sqrt(counts.size))
    assert counts.var() == pytest.approx(1.0, abs=4 * np.sqrt(3 / counts.size))
    for pairs in (counts[:4] @ counts[:4].T / 5_000, counts[:, :40].T @ counts[:, :40] / 200):
        off = pairs[~np.eye(len(pairs), dtype=bool)]
        size = 5_000 if len(pairs) == 4 else 200
        np.testing.assert_allclose(off, 1.0, atol=6 * np.sqrt(3 / size))


def test_the_table_of_counts_has_mean_one() -> None:
    upper = 65536 - metrics._POISSON.astype(int)
    assert upper.sum() == 65536
    np.testing.assert_allclose(upper / 65536, stats.poisson.sf(np.arange(8), 1.0), atol=2**-16)
    assert ((2 * np.arange(8) + 1) @ upper) / 65536 - 1 == pytest.approx(1 - 3.1e-5, abs=1e-6)


def test_counts_depend_on_neither_order_nor_selection_nor_blocks() -> None:
    identity = event_identity("toy", [np.arange(200_000)])
    everything = raw_counts(identity, 10, seed=3)
    assert len(list(metrics.bootstrap_counts(identity, np.zeros(200_000, dtype=int), 10, 3))) == 3
    order = np.random.default_rng(0).permutation(200_000)[:20_000]
    np.testing.assert_allclose(raw_counts(identity[order], 10, seed=3), everything[:, order])
    np.testing.assert_allclose(raw_counts(identity[order], 7, seed=3), everything[:7, order])
    assert np.mean(raw_counts(identity, 10, seed=4) == everything) < 0.4


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 12), st.integers(0, 2**63))
def test_counts_of_a_stratum_add_up_to_its_events(strata: list[int], replicas: int, seed: int) -> None:
    stratum = np.array(strata)
    counts = counts_of(event_identity("toy", [np.arange(len(strata))]), stratum, replicas, seed)
    assert counts.shape == (replicas, len(strata))
    assert (counts >= 0).all()
    for s in set(strata):
        np.testing.assert_allclose(counts[:, stratum == s].sum(axis=1), strata.count(s))


@given(st.integers(0, 1_000))
def test_bootstrapped_auc_equals_the_auc_with_multiplied_weights(seed: int) -> None:
    sample = events(40, seed, classes=2)
    score = sample.probabilities[:, 1].round(1)
    is_signal = sample.label == 1
    blocks = list(metrics.bootstrap_counts(sample.identity, sample.process, 6, seed))
    result = metrics.bootstrap_auc(score, is_signal, sample.weight, blocks)
    for value, counts in zip(result, np.concatenate(blocks), strict=True):
        weight = sample.weight * counts
        if min(weight[is_signal].sum(), weight[~is_signal].sum()) <= 0:
            assert np.isnan(value)
        else:
            assert value == pytest.approx(brute_force_auc(score, is_signal, weight), rel=1e-9, abs=1e-9)


def test_intervals_of_the_auc_cover_the_truth() -> None:
    rng = np.random.default_rng(4)
    toys, size, truth = 200, 300, stats.norm.cdf(1 / np.sqrt(2))
    is_signal = np.arange(size) < size // 2
    covered, widths, values = 0, [], []
    for toy in range(toys):
        score = rng.normal(size=size) + is_signal
        # Independent of the score, so that the truth stays; a tenth is negative.
        weight = np.where(rng.random(size) < 0.1, -1.0, 1.0)
        identity = event_identity(f"toy {toy}", [np.arange(size)])
        blocks = metrics.bootstrap_counts(identity, is_signal.astype(int), 400, seed=1)
        low, high = metrics.interval(metrics.bootstrap_auc(score, is_signal, weight, blocks))
        covered += low <= truth <= high
        widths.append((high - low) / 2)
        values.append(metrics.roc_auc(score, is_signal, weight))
    # Binomial(200, 0.68): 136 ± 6.6.
    assert 136 - 26 <= covered <= 136 + 26
    assert np.mean(widths) == pytest.approx(np.std(values), rel=0.2)


def test_interval_holds_the_central_68_percent() -> None:
    assert metrics.interval(np.arange(101.0)) == pytest.approx((16.0, 84.0))
    with pytest.raises(ValueError, match="at least one replica"):
        metrics.interval(np.empty(0))


# All together


def test_evaluate_agrees_with_the_single_functions() -> None:
    sample = events(3_000, 7)
    classes = ["higgs", "top", "diboson"]
    result = metrics.evaluate(sample, classes, "top", replicas=200, seed=1)
    json.dumps(result, allow_nan=False)
    p, label, weight = sample.probabilities, sample.label, sample.weight
    for c, name in enumerate(classes):
        assert result["auc_per_class"][name]["weighted"]["value"] == pytest.approx(
            metrics.roc_auc(p[:, c], label == c, weight)
        )
        assert result["events"][name] == np.count_nonzero(label == c)
        assert result["effective_events"][name] == effective_number(weight[label == c])
        assert result["sum_of_weights"][name] == pytest.approx(weight[label == c].sum())
        assert result["negative_dilution"][name] == metrics.negative_dilution(weight[label == c])
    assert result["auc"] == result["auc_per_class"]["top"]
    assert result["auc"]["unweighted"]["value"] == pytest.approx(sklearn_metrics.roc_auc_score(label == 1, p[:, 1]))
    pair = label != 2
    assert set(result["auc_against"]) == {"higgs", "diboson"}
    assert result["auc_against"]["higgs"]["weighted"]["value"] == pytest.approx(
        metrics.roc_auc(p[pair, 1], label[pair] == 1, weight[pair])
    )
    assert result["log_loss"]["value"] == pytest.approx(metrics.log_loss(p, label, weight))
    assert result["accuracy"]["value"] == pytest.approx(metrics.accuracy(p, label, weight))
    np.testing.assert_allclose(result["confusion"], metrics.confusion_matrix(p, label, weight), atol=1e-12)
    for found, point in zip(result["working_points"], metrics.working_points(p[:, 1], label == 1, weight), strict=True):
        assert (found["target"], found["threshold"]) == (point.target, point.threshold)
        for name in ("signal_efficiency", "background_efficiency", "background_rejection", "purity"):
            assert found[name]["value"] == pytest.approx(getattr(point, name))
            assert found[name]["low"] < found[name]["value"] < found[name]["high"]
    assert result["notes"] == []


def test_intervals_of_evaluate_are_those_of_the_replicas() -> None:
    sample = events(400, 8, classes=2)
    result = metrics.evaluate(sample, ["rest", "higgs"], "higgs", replicas=50, seed=2)
    counts = counts_of(sample.identity, sample.process, 50, 2)
    p, label = sample.probabilities, sample.label
    threshold = metrics.working_points(p[:, 1], label == 1, sample.weight)[1].threshold
    above = p[:, 1] >= threshold

    def check(found: dict[str, float], function: Callable[[np.ndarray], float]) -> None:
        expected = metrics.interval(np.array([function(sample.weight * c) for c in counts]))
        assert (found["low"], found["high"]) == pytest.approx(expected)

    check(result["auc"]["weighted"], lambda w: metrics.roc_auc(p[:, 1], label == 1, w))
    check(result["log_loss"], lambda w: metrics.log_loss(p, label, w))
    check(result["accuracy"], lambda w: metrics.accuracy(p, label, w))
    check(result["working_points"][1]["purity"], lambda w: w[above & (label == 1)].sum() / w[above].sum())
    cell = {"low": result["confusion_low"][0][1], "high": result["confusion_high"][0][1]}
    check(cell, lambda w: metrics.confusion_matrix(p, label, w)[0, 1])


def test_evaluate_does_not_depend_on_the_order_of_events() -> None:
    sample = events(500, 9)
    order = np.random.default_rng(0).permutation(500)
    names = ("probabilities", "label", "weight", "process", "identity")
    shuffled = metrics.Sample(*(getattr(sample, name)[order] for name in names))
    first, second = (metrics.evaluate(s, ["a", "b", "c"], "a", 40, 1) for s in (sample, shuffled))
    assert first["auc"]["weighted"] == pytest.approx(second["auc"]["weighted"])
    assert first["log_loss"] == pytest.approx(second["log_loss"])


def test_what_is_not_defined_is_null_with_a_note() -> None:
    sample = events(300, 10)
    weight = np.where(sample.label == 2, -np.abs(sample.weight), np.abs(sample.weight))
    keep = sample.label != 1
    negative = metrics.Sample(
        sample.probabilities[keep], sample.label[keep], weight[keep], sample.process[keep], sample.identity[keep]
    )
    result = metrics.evaluate(negative, ["a", "b", "c"], "a", 20, 1)
    json.dumps(result, allow_nan=False)
    assert result["auc"]["weighted"]["value"] is None
    assert "rest: the weights sum to -" in result["auc"]["weighted"]["note"]
    assert result["auc"]["unweighted"]["value"] == pytest.approx(
        metrics.roc_auc(negative.probabilities[:, 0], negative.label == 0, np.ones(keep.sum()))
    )
    assert result["auc_per_class"]["b"]["unweighted"] == {
        "value": None,
        "low": None,
        "high": None,
        "note": "b: no events",
    }
    assert "c: the weights sum to -" in result["log_loss"]["note"]
    assert result["accuracy"]["value"] is None
    assert result["confusion"][0][0] is not None
    assert result["confusion"][1] == result["confusion"][2] == [None] * 3
    assert result["working_points"][0]["threshold"] is None
    assert result["negative_dilution"]["c"] is None
    assert [note[0] for note in result["notes"]] == ["b", "c"]


def test_an_interval_with_undefined_replicas_says_so() -> None:
    # Two background events that nearly cancel: about half of the replicas have no positive sum.
    sample = metrics.Sample(
        probabilities=np.array([[0.2, 0.8], [0.4, 0.6], [0.5, 0.5], [0.9, 0.1]]),
        label=np.array([1, 1, 0, 0]),
        weight=np.array([1.0, 1.0, 1.0, -0.9]),
        process=np.array([1, 1, 0, 0]),
        identity=np.arange(4, dtype=np.uint64),
    )
    weighted = metrics.evaluate(sample, ["b", "s"], "s", 100, 1)["auc"]["weighted"]
    assert weighted["value"] == pytest.approx(1.0)
    assert weighted["low"] is weighted["high"] is None
    assert weighted["note"].startswith("not defined in ")


def test_wrong_input_to_evaluate_is_an_error() -> None:
    sample = events(10, 11)
    for arguments, text in (
        ((["a", "b"], "a", 10), "3 columns"),
        ((["a", "b", "c"], "d", 10), "'d' is none"),
        ((["a", "b", "c"], "a", 0), "0 replicas"),
    ):
        with pytest.raises(ValueError, match=text):
            metrics.evaluate(sample, *arguments, seed=1)
    with pytest.raises(ValueError, match="labels from"):
        metrics.Sample(sample.probabilities, sample.label + 1, sample.weight, sample.process, sample.identity)
    with pytest.raises(ValueError, match=r"weight has the shape \(9,\)"):
        metrics.Sample(sample.probabilities, sample.label, sample.weight[1:], sample.process, sample.identity)
    with pytest.raises(ValueError, match="weight: 10 of 10"):
        metrics.Sample(sample.probabilities, sample.label, sample.weight * np.nan, sample.process, sample.identity)
