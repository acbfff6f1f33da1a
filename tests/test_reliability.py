"""Reliability of scores against a direct calculation, and events that a score must not have met."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from analysis.leakage import leaks, shared_events
from analysis.metrics import Sample
from analysis.pool import Pool
from analysis.reliability import reliability
from analysis.splitting import event_identity

BOOTSTRAP = {"replicas": 40, "seed": 1}


def sample(count: int = 20_000, power: float = 1.0, seed: int = 1) -> Sample:
    """Events whose label is drawn by a probability, and whose score is that probability to some power."""
    rng = np.random.default_rng(seed)
    truth = rng.random(count)
    label = (rng.random(count) < truth).astype(np.int64)
    score = truth**power
    return Sample(
        np.stack([1 - score, score], axis=1),
        label,
        np.ones(count),
        label,
        event_identity("toy", [np.arange(count, dtype=np.int64)]),
    )


def test_reliability_is_that_of_scikit_learn() -> None:
    events = sample(power=1.5)
    found = reliability(events, 1, balanced=False, **BOOTSTRAP)
    score = events.probabilities[:, 1]
    observed, predicted = calibration_curve(events.label, score, n_bins=10)
    np.testing.assert_allclose(found["predicted"], predicted)
    np.testing.assert_allclose([bin_["value"] for bin_ in found["observed"]], observed)
    share = np.histogram(score, found["edges"])[0] / len(score)
    np.testing.assert_allclose(found["share"], share)
    assert found["error"]["value"] == pytest.approx(np.sum(share * np.abs(observed - predicted)))
    assert all(bin_["low"] < bin_["value"] < bin_["high"] for bin_ in found["observed"])


def test_a_probability_has_no_calibration_error_but_that_of_statistics() -> None:
    right, wrong = (reliability(sample(power=p), 1, balanced=False, **BOOTSTRAP)["error"] for p in (1.0, 2.0))
    assert right["value"] < 0.015
    assert wrong["low"] > 0.1


def test_classes_count_alike_where_networks_are_trained_so() -> None:
    """Twice the background by weight: the posterior under equal classes is the one to compare with."""
    events = sample()
    heavy = replace(events, weight=np.where(events.label == 0, 2.0, 1.0))
    found = reliability(heavy, 1, balanced=True, **BOOTSTRAP)
    assert found["error"]["value"] < 0.02  # the classes of the sample are about equal
    assert reliability(heavy, 1, balanced=False, **BOOTSTRAP)["error"]["value"] > 0.1


def test_negative_weights_and_empty_bins() -> None:
    events = sample(400)
    probabilities = 0.35 + 0.3 * events.probabilities
    weight = np.where(np.arange(400) % 7 == 0, -1.0, 1.0)
    found = reliability(replace(events, probabilities=probabilities, weight=weight), 1, balanced=True, **BOOTSTRAP)
    assert [n > 0 for n in found["entries"]] == [p is not None for p in found["predicted"]]
    assert sum(share or 0.0 for share in found["share"]) == pytest.approx(1.0)
    assert found["observed"][0]["value"] is None
    assert found["error"]["value"] is not None


def test_without_a_positive_sum_nothing_is_defined() -> None:
    events = sample(100)
    found = reliability(replace(events, weight=-events.weight), 1, balanced=True, **BOOTSTRAP)
    assert found["error"]["value"] is None
    assert found["predicted"] == [None] * 10


# Events that a score must not have met


def pool(identity: Any, folds: Any) -> Any:
    return Pool(
        **dict.fromkeys(("features", "objects", "dropped", "classes", "processes", "extra_names", "statistics"), ()),
        **{name: np.zeros(0) for name in ("values", "present", "labels", "weights", "process", "extra")},
        identity=identity,
        folds=folds,
    )


@pytest.mark.parametrize("scheme", ["rotating", "standard"])
def test_folds_share_no_event(scheme: Any) -> None:
    identity = event_identity("toy", [np.arange(100, dtype=np.int64)])
    shared = shared_events(pool(identity[:80], np.arange(80) % 5), identity[80:], 5, scheme)
    assert shared["test"] == 0
    stopping = 16 if scheme == "standard" else 0  # a network stops on the fold that it is judged on
    expected = {"training_stopping": 0, "training_judged": 0, "stopping_judged": stopping}
    assert shared["networks"] == [expected] * 5
    assert leaks(shared, scheme) == []


def test_an_event_in_two_roles_is_found() -> None:
    identity = event_identity("toy", [np.arange(100, dtype=np.int64)])
    folds = np.arange(80) % 5
    twice = identity[:80].copy()
    twice[0] = twice[1]  # the same event in folds 0 and 1
    assert leaks(shared_events(pool(twice, folds), identity[80:], 5, "rotating"), "rotating") == [
        "network 0: 1 events are stopping and judged events",
        "network 1: 1 events are training and judged events",
        "network 4: 1 events are training and stopping events",
    ]
    shared = shared_events(pool(identity[:80], folds), identity[78:], 5, "rotating")
    assert leaks(shared, "rotating") == ["2 held-out test events are in the training pool"]
