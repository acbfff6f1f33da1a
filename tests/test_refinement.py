"""Negative weights learned away, and the closure test that judges it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import kstest

from analysis.closure import FEWEST as FEWEST_IN_BIN
from analysis.closure import _bins, closure, compare, crossed
from analysis.metrics import bootstrap_counts
from analysis.pool import Pool
from models.ensemble import load_member, save_member
from models.events import TrainingEvents
from models.members import MemberPlan, TrainedMember
from models.preprocessing import Signature
from models.refinement import FEWEST, FOLDS, Unkept, refine
from models.settings import ModelSettings, TrainingSettings
from models.training import train
from models.weighting import own_weights
from tests.test_training import Memory, assert_equal, make_events, make_plans

MODEL = ModelSettings(hidden=(16,), dropout=0.0)
REWEIGHTED = TrainingSettings(epochs=2, batch_size=100, patience=None, negative_weights="reweighted")
Doubles = npt.NDArray[np.float64]


def plans_of(count: int = 1500, members: int = 1, **change: Any) -> list[MemberPlan]:
    return make_plans(count, model=MODEL, members=members, training=dataclasses.replace(REWEIGHTED, **change))


def signs(x: Doubles) -> Doubles:
    """The true probability of a positive weight."""
    return np.asarray(1 - 0.4 / (1 + np.exp(-3 * x)))


def with_signs(count: int, seed: int = 1) -> TrainingEvents:
    """Class 1 has negative weights where the first feature is large, class 0 has none."""
    random = np.random.default_rng(seed)
    values = random.normal(0, 1, (count, 2)).astype(np.float32)
    labels = random.integers(0, 2, count)
    positive = random.random(count) < np.where(labels == 1, signs(values[:, 0].astype(float)), 1.0)
    weights = np.where(positive, 1.0, -1.0) * random.uniform(0.5, 1.5, count)
    identity = np.sort(random.integers(0, 2**64, count, dtype=np.uint64))
    signature = Signature(("x", "y"), ("event", "event"), ("clean", "mixed"))
    return TrainingEvents(signature, values, np.ones((count, 2), dtype=np.bool_), labels, weights, identity)


class Recorder:
    """Trains nested networks, and keeps what they were asked to do."""

    def __init__(self) -> None:
        self.events: list[TrainingEvents] = []
        self.plans: list[MemberPlan] = []

    def __call__(self, events: TrainingEvents, plans: Any) -> list[TrainedMember]:
        self.events.append(events)
        self.plans += plans
        return train(events, plans)


class TestNesting:
    def test_networks_that_give_ratios_have_not_met_the_event(self) -> None:
        events, recorder, outer = make_events(), Recorder(), plans_of()[:2]
        found = refine(events, outer, recorder, "cpu")
        assert len(recorder.plans) == 2 * 2 * FOLDS  # of two networks and two classes
        assert recorder.events[0].signature.classes == ("negative", "positive")
        assert np.array_equal(recorder.events[0].labels, events.weights > 0)
        for order, plan in enumerate(outer):
            inner = recorder.plans[order * 2 * FOLDS : (order + 1) * 2 * FOLDS]
            for label in range(2):
                own = inner[label * FOLDS : (label + 1) * FOLDS]
                given = np.zeros(len(events.labels), dtype=int)
                for nested in own:
                    met = nested.training | nested.validation
                    assert not (nested.training & nested.validation).any()
                    assert not (met & ~(plan.training & (events.labels == label))).any()
                    given += plan.training & (events.labels == label) & ~met
                assert (given[plan.training & (events.labels == label)] == 1).all()
            ratios = found[order].ratios
            assert ratios is not None
            assert np.array_equal(np.isfinite(ratios), plan.training | plan.validation)
            assert (np.abs(ratios[plan.training]) <= 1).all()

    def test_members_of_a_fold_share_their_nested_networks(self) -> None:
        recorder = Recorder()
        plans = plans_of(members=2)[:3]
        plain = dataclasses.replace(plans[0], settings=TrainingSettings(negative_weights="signed"))
        found = [own.ratios for own in refine(make_events(), [*plans, plain], recorder, "cpu")]
        assert len(recorder.plans) == 2 * 2 * FOLDS
        assert found[0] is found[1]
        assert found[2] is not found[0]
        assert found[3] is None

    def test_they_learn_posteriors_of_the_sign(self) -> None:
        """Whatever the network itself is trained on."""
        recorder = Recorder()
        change = {"loss": "focal", "label_smoothing": 0.1, "label_noise": 0.1, "sampling": "balanced"}
        change |= {"balance": "processes", "flatten": ("met",), "shares": {"signal": 0.5, "background": 0.5}}
        refine(make_events(), plans_of(**change)[:1], recorder, "cpu")
        own = recorder.plans[0].settings
        plain = dataclasses.replace(REWEIGHTED, negative_weights="signed", balance="none", diagnostics=False)
        assert own == plain

    def test_without_negative_weights_nothing_is_refined(self) -> None:
        events, recorder = make_events(), Recorder()
        events = dataclasses.replace(events, weights=np.abs(events.weights))
        assert refine(events, plans_of()[:1], recorder, "cpu")[0].ratios is None
        assert not recorder.plans
        signed = plans_of(negative_weights="signed")[:1]
        assert_equal(
            train(events, plans_of()[:1])[0], dataclasses.replace(train(events, signed)[0], training=REWEIGHTED)
        )

    def test_a_class_with_few_negative_weights_gets_one_mean_sign(self) -> None:
        """Nothing is trained for it, and its sum of weights stays."""
        events, recorder, plan = make_events(), Recorder(), plans_of()[0]
        own, few = events.labels == 1, np.cumsum((events.weights < 0) & (events.labels == 1) & plan.training) < FEWEST
        events = dataclasses.replace(events, weights=np.where(own & ~few, np.abs(events.weights), events.weights))
        assert 0 < (events.weights[own & plan.training] < 0).sum() < FEWEST
        refined = refine(events, [plan], recorder, "cpu")[0]
        assert refined.ratios is not None
        assert len(recorder.plans) == FOLDS
        assert not any(nested.training[own].any() for nested in recorder.plans)
        assert len(set(refined.ratios[own & (plan.training | plan.validation)])) == 1
        weights = own_weights(events, refined)
        assert weights.min() == 0
        assert weights[own & plan.training].sum() == pytest.approx(events.weights[own & plan.training].sum(), rel=1e-6)

    def test_a_process_that_is_asked_to_end_does_not_wait_for_them(self) -> None:
        class Ended(Memory):
            def saved(self) -> None:
                raise KeyboardInterrupt

        memory = Ended(1)
        with pytest.raises(KeyboardInterrupt):
            train(make_events(), plans_of()[:1], checkpoints=memory)
        assert not memory.files
        assert Unkept(memory).load(0) is None


def test_ratios_are_learned_and_weights_keep_the_density() -> None:
    """Of what is known to be true; the closure then holds, and fails for weights that lost their signs."""
    count = 30_000
    events = with_signs(count)
    plan = plans_of(count, epochs=8, learning_rate=0.01, weight_decay=0.0)[0]
    found = refine(events, [plan], train, "cpu")[0].ratios
    assert found is not None
    mixed = (plan.training | plan.validation) & (events.labels == 1)
    truth = 2 * signs(events.values[mixed, 0].astype(float)) - 1
    assert np.abs(found[mixed] - truth).mean() < 0.08
    assert (found[(plan.training | plan.validation) & (events.labels == 0)] == 1).all()
    use = plan.training & (events.labels == 1)
    bins = np.digitize(events.values[use, 0], [-1.5, -0.75, 0, 0.75, 1.5])
    signed = events.weights[use]
    assert compare(bins, signed, np.abs(signed) * found[use])[2] > 1e-3
    assert compare(bins, signed, np.abs(signed))[2] < 1e-20


def test_they_travel_in_the_network_s_file(tmp_path: Path) -> None:
    member = train(make_events(), plans_of()[:1])[0]
    save_member(tmp_path / "network", member)
    assert member.ratios is not None
    assert np.array_equal(load_member(tmp_path / "network", ratios=True).ratios, member.ratios, equal_nan=True)
    read = load_member(tmp_path / "network")
    assert read.ratios is None
    assert read.training == member.training


class TestClosure:
    def test_covariance_is_that_of_the_paired_bootstrap(self) -> None:
        """χ² against replicas that draw the events themselves."""
        random = np.random.default_rng(1)
        bins = random.integers(0, 4, 5000)
        first = random.choice([-1.0, 1.0], 5000, p=[0.1, 0.9])
        second = np.abs(first) * (0.8 + 0.02 * random.normal(size=5000))
        shapes = []
        for block in bootstrap_counts(np.arange(5000, dtype=np.uint64), np.zeros(5000, dtype=np.int64), 2000, 1):
            for counts in block:
                own = [np.bincount(bins, weights=counts * w) for w in (first, second)]
                shapes.append(own[0] / own[0].sum() - own[1] / own[1].sum())
        covariance = np.cov(np.array(shapes).T)
        own = [np.bincount(bins, weights=w) for w in (first, second)]
        difference = own[0] / own[0].sum() - own[1] / own[1].sum()
        expected = difference @ np.linalg.pinv(covariance, rcond=1e-6) @ difference
        chi2, ndf, _ = compare(bins, first, second)
        assert ndf == 3
        assert chi2 == pytest.approx(expected, rel=0.15)

    def test_p_values_are_uniform_where_the_ratio_is_true(self) -> None:
        random = np.random.default_rng(2)
        p_values = []
        for _ in range(300):
            x = random.random(2000)
            bins = (5 * x).astype(np.int64)
            signed = np.where(random.random(2000) < 0.95 - 0.3 * x, 1.0, -1.0)
            p_values.append(compare(bins, signed, 2 * (0.95 - 0.3 * x) - 1)[2])
        assert kstest(p_values, "uniform").pvalue > 1e-3

    def test_few_negative_weights_raise_no_false_alarms(self) -> None:
        """Of a ratio that is true, with some 40 events of negative weight among 1,500, and a rare value."""
        random = np.random.default_rng(4)
        p_values, before = [], []
        for _ in range(200):
            values = np.where(random.random(1500) < 0.02, 5.0, random.random(1500)).astype(np.float32)
            present = random.random(1500) < 0.6
            share = np.where(present, 0.02, 0.035)
            signed = np.where(random.random(1500) < share, -1.0, 1.0)
            bins = _bins(values, present, signed < 0)
            assert np.bincount(bins, weights=signed < 0).min() >= FEWEST_IN_BIN
            p_values.append(compare(bins, signed, 1 - 2 * share)[2])
            wide = np.where(present, np.minimum(10 * values, 10), 11).astype(np.int64)
            before.append(compare(wide, signed, 1 - 2 * share)[2])
        assert np.mean(np.array(p_values) < 0.01) < 0.05
        assert np.mean(np.array(p_values) < 0.05) < 0.12
        assert np.mean(np.array(before) < 0.01) > 0.05  # what joining bins is for

    def test_equal_weights_can_not_differ(self) -> None:
        weights = np.array([1.0, 2.0, 3.0])
        assert compare(np.array([0, 1, 1]), weights, 2 * weights) == (0.0, 0, 1.0)

    def test_an_event_has_the_ratio_of_a_network_that_trains_on_it(self) -> None:
        folds = np.arange(10, dtype=np.int16) % 5
        for stops in (1, 0):  # rotating, standard
            uses = [(folds != f) & (folds != (f + stops) % 5) for f in range(5)]
            ratios = [np.where(use, np.float32(f), np.float32(np.nan)) for f, use in enumerate(uses)]
            found = crossed(ratios, uses, folds)
            assert found.tolist() == [(fold - 1 - stops) % 5 for fold in folds]
            without = crossed([None, *ratios[1:]], uses, folds)
            assert without.tolist() == [(fold - 1 - stops) % 5 or 1 for fold in folds]

    def test_of_a_pool(self) -> None:
        events = with_signs(4000)
        pool = Pool(
            features=("x", "y"),
            objects=("event", "event"),
            dropped=(),
            classes=events.signature.classes,
            processes=("a", "b"),
            values=events.values,
            present=events.present,
            labels=events.labels,
            weights=events.weights,
            identity=events.identity,
            folds=np.zeros(4000, dtype=np.int16),
            process=events.labels.astype(np.int16),
            extra=np.empty((4000, 0), dtype=np.float32),
            extra_names=(),
            statistics=[],
        )
        truth = np.where(events.labels == 1, 2 * signs(events.values[:, 0].astype(float)) - 1, 1.0)
        found = closure(pool, truth)
        assert found["clean"]["features"] == {}
        assert found["clean"]["smallest"] is None
        assert found["clean"]["sum"] == pytest.approx(1)
        mixed, own = found["mixed"], events.labels == 1
        assert set(mixed["features"]) == {"x", "y"}
        assert mixed["clipped"] == 0
        size = np.abs(events.weights[own])
        assert mixed["negative"] == pytest.approx(size[events.weights[own] < 0].sum() / size.sum())
        assert mixed["smallest"]["p_value"] > 1e-3
        assert closure(pool, np.ones(4000))["mixed"]["smallest"] == {
            "feature": "x",
            "p_value": pytest.approx(0, abs=1e-9),
        }
        assert closure(pool, np.where(own, -1.0, 1.0) * 0.5)["mixed"]["clipped"] == 1
