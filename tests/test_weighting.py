"""Training weights: negative ones, equal sums, flat distributions, and parts of the classes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.checkpoint import Place
from models.events import TrainingEvents
from models.fitting import fit_transforms
from models.members import MemberPlan
from models.networks import Classifier
from models.sampling import shares
from models.settings import ModelSettings, TrainingSettings
from models.stack import Stack
from models.training import train
from models.transforms import stack_transforms
from models.weighting import WeightsError, column, has_own_weights, kept, own_weights
from tests.test_heads import told
from tests.test_training import (
    KilledError,
    Memory,
    assert_equal,
    assert_recordable,
    differ,
    killed_after,
    make_events,
    make_plans,
)

MODEL = ModelSettings(hidden=(6,), dropout=0.0)
SHORT = TrainingSettings(epochs=2, batch_size=100, patience=None, negative_weights="signed")
BESIDE: dict[str, Any] = {"decorrelation": {"spectator": 0.5}, "loss": "kullback_leibler", "loss_weight": 2.0}
WEIGHTS: list[dict[str, Any]] = [
    {"negative_weights": "absolute"},
    {"negative_weights": "ignore"},
    {"negative_weights": "reweighted"},
    {"balance": "processes"},
    {"balance": "none"},
    {"flatten": ("met",), "flatten_bins": 4},
    {"flatten": ("mass", "pt2"), "flatten_bins": 2, "balance": "processes", "negative_weights": "absolute"},
    {"down_sampling": {"background": 0.5}},
    {"down_sampling": {"background": 0.5, "signal": 0.7}, "redraw": False},
    {"sampling": "balanced", "shares": {"signal": 0.2, "background": 0.8}},
    {"sampling": "weighted", "negative_weights": "reweighted"},
    {"window": 1000, "negative_weights": "absolute", "down_sampling": {"signal": 0.4}},
]


def with_processes(count: int = 1500, seed: int = 1) -> TrainingEvents:
    """Two processes in each class, and a mass that some events lack."""
    events, random = make_events(count, seed), np.random.default_rng(seed + 1)
    mass = random.exponential(50, count).astype(np.float32)
    mass[random.random(count) < 0.1] = np.nan
    processes = 2 * events.labels + (random.random(count) < 0.3)
    return dataclasses.replace(
        events,
        processes=processes,
        process_names=("a", "b", "c", "d"),
        extra=mass[:, np.newaxis],
        extra_names=("mass",),
    )


def plan_with(count: int = 1500, **change: Any) -> MemberPlan:
    return make_plans(count, model=MODEL, training=dataclasses.replace(SHORT, **change))[0]


def sums(weights: npt.NDArray[np.float64], groups: npt.NDArray[np.int64], use: npt.NDArray[np.bool_]) -> Any:
    return np.bincount(groups[use], weights=weights[use])


class TestWeights:
    def test_none_of_its_own_without_a_choice(self) -> None:
        assert not has_own_weights(plan_with())
        assert not has_own_weights(plan_with(balance="none", sampling="balanced"))
        assert not has_own_weights(plan_with(negative_weights="reweighted"))  # as long as none is known to be negative

    def test_of_wrong_sign(self) -> None:
        events = with_processes()
        used = plan_with().training | plan_with().validation
        inside = np.where(used, events.weights, 0.0)
        assert np.array_equal(own_weights(events, plan_with(negative_weights="absolute")), np.abs(inside))
        assert np.array_equal(own_weights(events, plan_with(negative_weights="ignore")), np.clip(inside, 0, None))
        ratios = np.linspace(-0.5, 1, 1500, dtype=np.float32)
        plan = plan_with(negative_weights="reweighted")
        found = own_weights(events, dataclasses.replace(plan, ratios=ratios))
        assert found == pytest.approx(np.abs(inside) * np.clip(ratios, 0, None), rel=1e-12)
        assert np.count_nonzero(found[ratios < 0]) == 0
        with pytest.raises(ValueError, match="expected a plan with ratios"):
            own_weights(events, plan)
        assert np.array_equal(own_weights(dataclasses.replace(events, weights=abs(events.weights)), plan), abs(inside))

    def test_processes_of_a_class_sum_to_the_same(self) -> None:
        """In training and in stopping, and classes to what they did."""
        events, plan = with_processes(), plan_with(balance="processes")
        found = own_weights(events, plan)
        for use in (plan.training, plan.validation):
            each = sums(found, events.processes, use)  # type: ignore[arg-type]
            assert each[::2] == pytest.approx(each[1::2], rel=1e-9)
            before = sums(events.weights, events.labels, use)
            assert sums(found, events.labels, use) == pytest.approx(before, rel=1e-9)

    def test_a_process_whose_weights_sum_to_less_than_nothing(self) -> None:
        events = with_processes()
        weights = np.where(events.processes == 3, -np.abs(events.weights), events.weights)
        with pytest.raises(WeightsError, match="Fold 0, member 0: the weights of process d sum to -"):
            own_weights(dataclasses.replace(events, weights=weights), plan_with(balance="processes"))

    @pytest.mark.parametrize("balance", ["classes", "processes"])
    @pytest.mark.parametrize("names", [("mass",), ("met",), ("mass", "met")])
    def test_flat(self, names: tuple[str, ...], balance: str) -> None:
        """Against numpy's histograms, over the central 98% of the training events."""
        events = with_processes(20_000)
        plan = plan_with(20_000, flatten=names, flatten_bins=3, balance=balance, negative_weights="absolute")
        found = own_weights(events, plan)
        all_columns = {"mass": column(events, "mass"), "met": events.values[:, 0].astype(float)}
        columns = [all_columns[name] for name in names]
        known = np.all(np.isfinite(columns), axis=0)
        fitted = plan.training & (events.weights != 0)
        edges = [np.linspace(*np.quantile(x[fitted & known], [0.01, 0.99]), 4) for x in columns]
        groups = events.labels if balance == "classes" else events.processes
        assert groups is not None
        for group in range(2 if balance == "classes" else 4):
            use = fitted & known & (groups == group)
            inside = [np.clip(x[use], e[0], np.nextafter(e[-1], 0)) for x, e in zip(columns, edges, strict=True)]
            weights = np.abs(events.weights[use])
            filled, first, second = (
                np.histogramdd(np.array(inside).T, edges, weights=w)[0] for w in (found[use], weights, weights**2)
            )
            full = first**2 >= 10 * second
            assert full.sum() > 5 * len(names) - 4
            assert filled[full] == pytest.approx(np.full(full.sum(), filled[full].mean()), rel=1e-6)
            assert (filled[~full] <= filled[full].mean()).all()

    def test_who_lacks_a_variable_keeps_the_share(self) -> None:
        events, plan = with_processes(20_000), plan_with(20_000, flatten=("mass",), negative_weights="absolute")
        found, absent = own_weights(events, plan), ~np.isfinite(column(events, "mass"))
        inside = np.where(plan.training | plan.validation, np.abs(events.weights), 0.0)
        assert np.array_equal(found[absent], inside[absent])
        for label in range(2):
            use = plan.training & ~absent & (events.labels == label)
            assert found[use].sum() == pytest.approx(inside[use].sum(), rel=0.05)  # but for bins that hold few events

    def test_bins_with_few_events_take_the_largest_factor(self) -> None:
        """And those in which negative weights prevail; empty ones ask for nothing."""
        count = 6000
        events = make_events(count)
        values = np.zeros((count, 4), dtype=np.float32)
        random = np.random.default_rng(3)
        values[:, 0] = random.choice([0.5, 1.5, 2.5, 4.5], count, p=[0.6, 0.35, 0.03, 0.02])
        weights = np.where(values[:, 0] == 2.5, -1.0, 1.0)
        events = dataclasses.replace(events, values=values, present=values > -1, weights=weights)
        plan = plan_with(count, flatten=("met",), flatten_bins=4)
        found = own_weights(events, plan) / events.weights
        use = (plan.training | plan.validation) & (events.labels == 0)
        each = {place: set(found[use & (values[:, 0] == place)].round(9)) for place in (0.5, 1.5, 2.5, 4.5)}
        assert all(len(factors) == 1 for factors in each.values())
        assert min(each[1.5]) > min(each[0.5])
        assert each[2.5] == each[4.5]
        assert each[2.5] == max(each.values(), key=max)

    def test_what_can_not_be_flat(self) -> None:
        events = with_processes(300)
        for change, message in (
            ({"flatten": ("met",), "flatten_bins": 900}, "no bin of class signal holds 10 effective training events"),
            ({"flatten": ("other",)}, "flatten names 'other', which is neither"),
        ):
            with pytest.raises(WeightsError, match=message):
                own_weights(events, plan_with(300, **change))
        constant = dataclasses.replace(events, extra=np.ones((300, 1), dtype=np.float32))
        with pytest.raises(WeightsError, match="mass is 1 for nearly all training events"):
            own_weights(constant, plan_with(300, flatten=("mass",)))

    def test_factors_make_classes_sum_alike_or_by_nature(self) -> None:
        events = with_processes()
        for change in ({}, {"balance": "none"}, {"negative_weights": "absolute", "flatten": ("met",)}):
            plan = plan_with(**change)
            stack = Stack(Classifier(MODEL, events.signature), events, {0: plan}, "cpu")
            weights = own_weights(events, plan) if has_own_weights(plan) else events.weights
            total = sums(weights * stack.training_factors[0].numpy()[events.labels], events.labels, plan.training)
            count = stack.states[0].events[0]
            assert total.sum() == pytest.approx(count, rel=1e-9)
            by_nature = sums(events.weights, events.labels, plan.training)
            expected = by_nature / by_nature.sum() if plan.settings.balance == "none" else np.full(2, 0.5)
            assert total / count == pytest.approx(expected, rel=1e-9)


class TestTraining:
    events = with_processes()

    @pytest.mark.parametrize("change", WEIGHTS, ids=str)
    def test_events_outside_have_no_influence_and_stacks_none(self, change: dict[str, Any]) -> None:
        """A spoilt copy alone gives what the true events give in a stack: the garbage test."""
        events = self.events
        plans = make_plans(model=MODEL, training=dataclasses.replace(SHORT, **change))[:3]
        stacked = train(events, plans)
        outside = ~(plans[1].training | plans[1].validation)
        spoilt = dataclasses.replace(
            events,
            values=np.where(outside[:, np.newaxis], np.float32(np.nan), events.values),
            present=events.present | outside[:, np.newaxis],
            labels=np.where(outside, 1 - events.labels, events.labels),
            weights=np.where(outside, np.inf, events.weights),
            processes=np.where(outside, 77, events.processes),
            extra=np.where(outside[:, np.newaxis], np.float32(-1e30), events.extra),
        )
        assert_equal(train(spoilt, [plans[1]])[0], stacked[1])
        assert differ(stacked[1], train(events, [dataclasses.replace(plans[1], settings=SHORT)])[0])

    @pytest.mark.parametrize("change", [WEIGHTS[2], WEIGHTS[7]], ids=str)
    def test_killed_and_gone_on(self, change: dict[str, Any]) -> None:
        plans = make_plans(model=MODEL, training=dataclasses.replace(SHORT, **change))[:2]
        expected, memory = train(self.events, plans), Memory(3)
        with pytest.raises(KilledError):
            train(self.events, plans, checkpoints=memory, progress=killed_after(2))
        for left, right in zip(train(self.events, plans, checkpoints=memory), expected, strict=True):
            assert_equal(left, right)


class TestBesideTargets:
    @pytest.mark.parametrize("sampling", ["plain", "weighted"])
    def test_targets_and_decorrelation_count_the_weights_of_the_training(self, sampling: Any) -> None:
        """With |w|, all that is learned is what events of weights |w| teach."""
        events, plan = told(soft=True), plan_with(negative_weights="absolute", sampling=sampling, **BESIDE)
        signed = dataclasses.replace(plan, settings=dataclasses.replace(plan.settings, negative_weights="signed"))
        alike = dataclasses.replace(events, weights=np.abs(events.weights))
        found = train(events, [plan])[0]
        assert_equal(found, train(alike, [signed])[0])
        assert differ(found, train(events, [signed])[0])

    def test_nested_networks_learn_signs_alone(self) -> None:
        """Neither a target nor a soft label nor a spectator moves the ratios."""
        events, plan = told(soft=True), plan_with(negative_weights="reweighted", **BESIDE)
        alone = plan_with(negative_weights="reweighted")
        ratios = [train(own, [p])[0].ratios for own, p in ((events, plan), (make_events(), alone))]
        assert ratios[0] is not None
        assert ratios[1] is not None
        assert np.isfinite(ratios[0]).sum() > 500
        assert np.array_equal(ratios[0], ratios[1], equal_nan=True)


class TestDownSampling:
    def test_fixed_keeps_the_share_of_a_class_for_all_members(self) -> None:
        events = make_events()
        plan = plan_with(down_sampling={"background": 0.3}, redraw=False)
        chosen = kept(events, plan)
        used = plan.training & (events.weights != 0)
        for label, share in ((0, 1.0), (1, 0.3)):
            own = events.labels == label
            assert (chosen & own).sum() == np.ceil(share * (used & own).sum())
        assert not (chosen & ~plan.training).any()
        assert np.array_equal(chosen, kept(events, dataclasses.replace(plan, index=4)))
        assert not np.array_equal(chosen, kept(events, dataclasses.replace(plan, seed=4)))

    def test_drawn_anew_it_counts_for_what_is_left_out(self) -> None:
        """Each epoch has other events, of which so many as the share says; their number times what each counts is
        that of all."""
        events, plan = make_events(), plan_with(down_sampling={"background": 0.3})
        stack = Stack(Classifier(MODEL, events.signature), events, {0: plan}, "cpu")
        window = stack.windows.whole
        assert window is not None
        counts = window.counts[0]
        epochs = []
        for epoch in range(2):
            steps = stack.begin(Place(epoch, 0, 0), window)
            rows = stack.batches[:steps].flatten()
            rows = rows[rows >= 0].numpy()
            assert len(set(rows)) == len(rows)
            drawn = np.bincount(events.labels[rows])
            assert drawn.tolist() == [counts[0], np.ceil(0.3 * counts[1])]
            factors = (stack.factors / stack.training_factors)[0].numpy()
            assert factors * drawn == pytest.approx(counts)
            epochs.append(set(rows[events.labels[rows] == 1]))
        share = len(epochs[0] & epochs[1]) / len(epochs[0])
        assert 0.15 < share < 0.45
        assert steps == -(-drawn.sum() // 100)
        assert stack.divisors[0].item() == pytest.approx(100 * counts.sum() / drawn.sum())

    def test_a_share_of_one_is_the_plain_order_of_other_batches(self) -> None:
        events = make_events()
        losses = [
            train(events, [plan_with(epochs=4, **change)])[0].history.validation_loss[-1]
            for change in ({}, {"down_sampling": {"signal": 1.0}})
        ]
        assert losses[0] == pytest.approx(losses[1], rel=0.05)


class TestRefused:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"shares": {"a": 0.5, "b": 0.5}}, "sampling plain has no such constant"),
            ({"sampling": "balanced", "shares": {"a": 0.5, "b": 0.6}}, "expected shares above 0 that sum to 1"),
            ({"sampling": "weighted", "down_sampling": {"a": 0.5}}, "sampling weighted has no such constant"),
            ({"down_sampling": {"a": 0.0}}, "expected shares above 0, at most 1"),
            ({"redraw": False}, "expected a down_sampling with it"),
            ({"flatten": ("a", "a")}, "one or two different features"),
            ({"flatten": ("a", "b", "c")}, "one or two different features"),
            ({"flatten_bins": 1}, "from 2 to 1000"),
            ({"negative_weights": "clipped"}, "expected one of signed, absolute, ignore, reweighted"),
            ({"balance": "all"}, "expected one of classes, processes, none"),
        ],
    )
    def test_settings(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            TrainingSettings(**change)

    def test_classes(self) -> None:
        classes = ("signal", "background")
        with pytest.raises(ValueError, match="down_sampling is 'other'; expected names of classes: signal, background"):
            TrainingSettings(down_sampling={"other": 0.5}).check_classes(classes)
        with pytest.raises(ValueError, match="expected a share of each class"):
            TrainingSettings(sampling="balanced", shares={"signal": 1.0}).check_classes(classes)


def test_priors_are_said() -> None:
    assert TrainingSettings().prior == "equal for all classes"
    assert TrainingSettings(balance="none").prior == "shares of the physics weights of the training events"
    text = TrainingSettings(balance="processes", flatten=("mass",), negative_weights="absolute").prior
    assert text == (
        "equal for all classes, and for all processes of a class; each process flat in mass; within a class, sizes of "
        "the physics weights"
    )


@pytest.mark.parametrize("change", [own for own in WEIGHTS if own.get("negative_weights") != "reweighted"], ids=str)
def test_a_step_can_be_recorded(change: dict[str, Any]) -> None:
    if not {"flatten", "window"} & set(change) and change.get("balance") != "processes":
        bounded = dataclasses.replace(MODEL, logit_bound=5.0, dropout=0.2)
        assert_recordable(bounded, dataclasses.replace(SHORT, **change))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=6), st.integers(0, 200))
def test_shares_of_a_batch(wanted: list[float], more: int) -> None:
    """Whole numbers, at least one, that sum to the batch and are as near as that allows."""
    size = len(wanted) + more
    exact = np.array(wanted) / sum(wanted) * size
    found = np.array(shares(size, [share / sum(wanted) for share in wanted]))
    assert found.sum() == size
    assert found.min() >= 1
    assert (found[exact >= len(wanted) + 1] > 0).all()
    if exact.min() >= 1:
        assert np.abs(found - exact).max() < 1


def test_balanced_batches_hold_the_shares_and_classes_count_the_same() -> None:
    events, plan = make_events(), plan_with(sampling="balanced", shares={"signal": 0.2, "background": 0.8})
    stack = Stack(Classifier(MODEL, events.signature), events, {0: plan}, "cpu")
    assert stack.windows.whole is not None
    steps = stack.begin(Place(0, 0, 0), stack.windows.whole)
    for rows in stack.batches[:steps, 0]:
        assert np.bincount(events.labels[rows[rows >= 0].numpy()]).tolist() == [20, 80]
    drawn = steps * np.array([20, 80])
    factors = (stack.factors / stack.training_factors)[0].numpy()
    assert factors * drawn == pytest.approx(stack.windows.whole.counts[0])


def test_bounded_logits() -> None:
    """b tanh(z / b), of the same network, for the classes; regression targets have no bound."""
    events = told(64)
    free = Classifier(MODEL, events.signature)
    bound = Classifier(dataclasses.replace(MODEL, logit_bound=0.5), events.signature)
    rows = 4 * free.initial([1, 2])
    values, present = (torch.from_numpy(x).unsqueeze(0) for x in (np.nan_to_num(events.values), events.present))
    use = np.ones(64, dtype=np.bool_)
    statistics = stack_transforms(fit_transforms(free.layout, events, [use, use]))
    one, other = (own.logits(own.views(rows), statistics, values, present).numpy() for own in (free, bound))
    assert np.abs(one[..., :2]).max() > 1
    assert other[..., :2] == pytest.approx(0.5 * np.tanh(one[..., :2] / 0.5), rel=1e-5)
    assert np.array_equal(other[..., 2:], one[..., 2:])


@pytest.mark.parametrize("bound", [0.0, -1.0, float("inf")])
def test_bounds_that_are_none(bound: float) -> None:
    with pytest.raises(ValueError, match="expected a number above 0, or null"):
        ModelSettings(logit_bound=bound)


def test_the_loss_of_negative_weights_falls_without_end_unless_logits_are_bounded() -> None:
    """Where negative weights of a class prevail, signed cross-entropy grows logits for ever."""
    events = make_events(600)
    lonely = events.values[:, 0] > 2.0
    weights = np.where(lonely & (events.labels == 0), -50 * np.abs(events.weights), np.abs(events.weights))
    weights[(events.labels == 0) & ~lonely] *= 50
    events = dataclasses.replace(events, weights=weights)
    largest = []
    for limit in (None, 3.0):
        plan = make_plans(600, model=dataclasses.replace(MODEL, logit_bound=limit), training=SHORT)[0]
        longer = dataclasses.replace(SHORT, epochs=60, schedule="constant", learning_rate=0.02)
        plan = dataclasses.replace(plan, settings=longer)
        member = train(events, [plan])[0]
        largest.append(max(-np.array(member.history.training_loss)))
    assert largest[1] < largest[0]
