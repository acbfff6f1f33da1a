"""`training.sampling`: which events make an epoch, in which order, and what each counts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from models import hashing, losses, sampling, training
from models.checkpoint import Place
from models.events import Mask, TrainingEvents, Window, Windows
from models.losses import class_factors
from models.members import MemberPlan
from models.networks import Classifier
from models.preprocessing import Signature
from models.settings import ModelSettings, Sampling, TrainingSettings
from models.stack import Stack
from tests.test_training import make_events, make_plans

Rows = npt.NDArray[np.int64]
SIZES = st.lists(st.integers(1, 120), min_size=1, max_size=4)


def tell(labels: Sequence[int], weights: Sequence[float] | None = None) -> TrainingEvents:
    """Events with these labels; the first feature is the number of the event."""
    count, names = len(labels), tuple(f"class{label}" for label in range(max(2, *labels, 1) + 1))
    random = np.random.default_rng(count)
    return TrainingEvents(
        Signature(("number",), ("event",), names[: max(2, max(labels) + 1)]),
        np.arange(count, dtype=np.float32)[:, np.newaxis],
        np.ones((count, 1), dtype=np.bool_),
        np.array(labels, dtype=np.int64),
        np.ones(count) if weights is None else np.array(weights, dtype=np.float64),
        np.sort(random.integers(0, 2**64, count, dtype=np.uint64)),
    )


def window_of(events: TrainingEvents, uses: Sequence[Mask], *, by_class: bool = False) -> Window:
    """All events in memory, with the rows of each member; stopping is no part of it."""
    windows = Windows(events, uses, uses, size=None, by_class=by_class, rows=64, device="cpu")
    assert windows.whole is not None
    return windows.whole


def keys_of(members: int, epoch: int = 0) -> Tensor:
    """A key for each member."""
    return torch.tensor([hashing.key(7, member, epoch) for member in range(members)])


def draw(
    events: TrainingEvents, uses: Sequence[Mask], how: Sampling, size: int, keys: Tensor | None = None
) -> npt.NDArray[np.int64]:
    """The batches ``[S, M, size]`` of one epoch, with factors of 1."""
    window = window_of(events, uses, by_class=how == "balanced")
    factors = torch.ones(len(uses), len(events.signature.classes), dtype=torch.float64)
    keys = keys_of(len(uses)) if keys is None else keys
    shares = equal_shares(size, events) if how == "balanced" else ()
    return sampling.batches(window, how, size, keys, factors, shares=shares).numpy()


def equal_shares(size: int, events: TrainingEvents) -> list[int]:
    """Events of each class in a balanced batch."""
    classes = len(events.signature.classes)
    return sampling.shares(size, [1 / classes] * classes)


def balanced_factors(events: TrainingEvents, size: int) -> npt.NDArray[np.float64]:
    """What each drawn event of a class counts in balanced batches of all events, ``[C]``."""
    classes = len(events.signature.classes)
    plain = class_factors(events.weights, events.labels, classes)
    window = window_of(events, [np.ones(len(events.labels), dtype=np.bool_)], by_class=True)
    counts, own = equal_shares(size, events), torch.from_numpy(plain)[None]
    factors: npt.NDArray[np.float64] = sampling.loss_factors(window, "balanced", size, own, shares=counts)[0].numpy()
    return factors


def some(count: int, sizes: Sequence[int], seed: int = 1) -> list[Mask]:
    """For each member, so many of `count` events at random."""
    random = np.random.default_rng(seed)
    masks = np.zeros((len(sizes), count), dtype=np.bool_)
    for mask, size in zip(masks, sizes, strict=True):
        mask[random.permutation(count)[:size]] = True
    return list(masks)


class TestPadding:
    def test_a_row_below_zero_is_an_event_without_weight(self) -> None:
        events = tell([0, 1, 1, 0], [1.0, 2.0, -3.0, 4.0])
        table = window_of(events, [np.ones(4, dtype=np.bool_)]).table
        rows = torch.tensor([[0, ~0, 2], [~2, 3, ~3]])
        values, present, labels, weights = table.gather(rows)
        assert values[..., 0].tolist() == [[0, 0, 2], [2, 3, 3]]
        assert torch.equal(present[..., 0], rows >= 0)
        assert labels.tolist() == [[0, 0, 1], [0, 0, 0]]  # a class that there is, whatever stands in the event
        assert weights.tolist() == [[1, 0, -3], [0, 4, 0]]
        assert weights.dtype == torch.float64

    @pytest.mark.parametrize("how", get_args(Sampling))
    def test_a_member_with_fewer_steps_pads_with_an_event_of_its_own(self, how: Sampling) -> None:
        events = tell([0, 1] * 100)
        few = np.zeros(200, dtype=np.bool_)
        few[30:145] = True
        uses = [np.ones(200, dtype=np.bool_), few]
        batches = draw(events, uses, how, 20)
        assert batches.shape == (10, 2, 20)
        assert (batches[:, 0] >= 0).all()
        real = batches[:, 1] >= 0
        expected = 120 if how == "balanced" else 115  # the last batch of a balanced epoch is full, too
        assert real.reshape(-1).tolist() == [True] * expected + [False] * (200 - expected)
        padding = batches[:, 1][~real]
        assert few[~padding].all()


class TestPlain:
    @settings(max_examples=60, deadline=None)
    @given(SIZES, st.integers(1, 150), st.integers(0, 1000))
    def test_an_epoch_meets_each_event_once(self, sizes: list[int], size: int, seed: int) -> None:
        uses = some(120, sizes, seed)
        batches = draw(tell([0, 1] * 60), uses, "plain", size, keys_of(len(sizes), seed))
        assert batches.shape == (-(-max(sizes) // size), len(sizes), size)
        for member, use in enumerate(uses):
            rows = batches[:, member].reshape(-1)
            assert (rows >= 0).tolist() == [True] * use.sum() + [False] * (len(rows) - use.sum())
            assert sorted(rows[rows >= 0]) == np.flatnonzero(use).tolist()

    def test_orders_are_random(self) -> None:
        """Each event stands at each place equally often, whatever stood there before."""
        members = 3000
        rows = draw(tell([0, 1] * 5), [np.ones(10, dtype=np.bool_)] * members, "plain", 10)[0]  # (M, 10)
        counts = np.array([np.bincount(rows[:, place], minlength=10) for place in range(10)])
        assert stats.chi2.sf(((counts - members / 10) ** 2 / (members / 10)).sum(), 81) > 1e-4
        neighbours = np.array([np.bincount(rows[:, 1][rows[:, 0] == first], minlength=10) for first in range(10)])
        others = neighbours[~np.eye(10, dtype=np.bool_)]
        assert stats.chi2.sf(((others - members / 90) ** 2 / (members / 90)).sum(), 89) > 1e-4


class TestIndependence:
    @settings(max_examples=40, deadline=None)
    @given(SIZES, st.integers(1, 30), st.integers(0, 1000), st.sampled_from(["plain", "weighted"]))
    def test_of_other_members_and_their_numbers_of_events(
        self, sizes: list[int], size: int, seed: int, how: Sampling
    ) -> None:
        random = np.random.default_rng(seed)
        events = tell([0, 1] * 60, random.normal(1, 1, 120).tolist())
        self.assert_independent(events, some(120, sizes, seed), how, size)

    @pytest.mark.parametrize(
        "sizes",
        [
            [90, 100, 80],
            [20, 120, 60],
        ],
    )
    def test_of_other_members_in_balanced_batches(self, sizes: list[int]) -> None:
        self.assert_independent(tell([0, 1, 0] * 40), some(120, sizes), "balanced", 10)

    @staticmethod
    def assert_independent(events: TrainingEvents, uses: Sequence[Mask], how: Sampling, size: int) -> None:
        keys = keys_of(len(uses))
        together = draw(events, uses, how, size, keys)
        for member in range(len(uses)):
            alone = draw(events, uses[member : member + 1], how, size, keys[member : member + 1])[:, 0]
            found = together[: len(alone), member]
            assert np.array_equal(found >= 0, alone >= 0)
            assert np.array_equal(found[found >= 0], alone[alone >= 0])
            assert (together[len(alone) :, member] < 0).all()

    @pytest.mark.parametrize("how", get_args(Sampling))
    def test_of_the_numbers_of_the_rows(self, how: Sampling) -> None:
        """Events that nobody trains on change no order: it follows from identities."""
        events = tell([0, 1, 1] * 50)
        use = some(150, [90])[0]
        rows = np.flatnonzero(use)
        columns = {name: getattr(events, name)[rows] for name in ("values", "present", "labels", "weights", "identity")}
        fewer = dataclasses.replace(events, **columns)
        batches = draw(events, [use], how, 16)
        found = draw(fewer, [np.ones(90, dtype=np.bool_)], how, 16)
        assert np.array_equal(batches >= 0, found >= 0)
        assert np.array_equal(batches[batches >= 0], rows[found[found >= 0]])

    @pytest.mark.parametrize("how", get_args(Sampling))
    def test_the_order_differs_by_epoch_member_fold_and_seed(self, how: Sampling) -> None:
        """Of plans that train on the same events."""
        events, plan = (
            make_events(),
            make_plans(training=TrainingSettings(sampling=how, batch_size=100, negative_weights="signed"))[0],
        )
        others = [
            dataclasses.replace(plan, index=8),
            dataclasses.replace(plan, fold=8),
            dataclasses.replace(plan, seed=8),
        ]
        plans = [plan, *others]
        first, second = begin(events, plans, 0), begin(events, plans, 1)
        orders = [rows for batches in (first, second) for rows in np.moveaxis(batches, 1, 0)]  # [S, B] each
        assert len(orders) == 8
        for number, order in enumerate(orders):
            for other in orders[:number]:
                # Two random orders of about a thousand events agree in one place or two.
                assert (order == other).mean() < 0.02
        assert np.array_equal(begin(events, plans[2:3], 1)[:, 0], second[:, 2])
        assert np.array_equal(begin(events, plans, 0), first)


def begin(events: TrainingEvents, plans: Sequence[MemberPlan], epoch: int) -> Rows:
    """The batches ``[S, M, size]`` that a stack trains on in an epoch."""
    stack = stack_of(events, plans)
    assert stack.windows.whole is not None
    steps = stack.begin(Place(epoch, 0, 0), stack.windows.whole)
    return stack.batches[:steps, :, : stack.batch_size].numpy().copy()


def stack_of(events: TrainingEvents, plans: Sequence[MemberPlan]) -> Stack:
    return Stack(Classifier(plans[0].model, events.signature), events, dict(enumerate(plans)), "cpu")


class TestBalanced:
    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.integers(1, 60), min_size=2, max_size=4), st.integers(4, 40), st.integers(0, 1000))
    def test_batches_have_the_shares_and_events_come_equally_often(
        self, counts: list[int], size: int, seed: int
    ) -> None:
        labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
        batches = draw(tell(labels.tolist()), [labels >= 0], "balanced", size, keys_of(1, seed))[:, 0]
        assert batches.shape == (-(-sum(counts) // size), size)
        assert (batches >= 0).all()
        shares = sampling.shares(size, [1 / len(counts)] * len(counts))
        assert sum(shares) == size
        assert max(shares) - min(shares) <= 1
        for rows in batches:
            assert np.bincount(labels[rows], minlength=len(counts)).tolist() == shares
        times = np.bincount(batches.reshape(-1), minlength=len(labels))
        for label in range(len(counts)):
            assert np.ptp(times[labels == label]) <= 1

    def test_each_pass_over_a_rare_class_has_an_order_of_its_own(self) -> None:
        labels = np.array([0] * 990 + [1] * 30)
        batches = draw(tell(labels.tolist()), [labels >= 0], "balanced", 60)[:, 0]
        rare = batches[labels[batches] == 1]
        passes = rare[: len(rare) // 30 * 30].reshape(-1, 30)
        assert len(passes) == 17
        for rows in passes:
            assert sorted(rows) == np.flatnonzero(labels == 1).tolist()
        assert len({tuple(rows) for rows in passes}) == 17
        assert max((one == other).sum() for one, other in pairwise(passes)) < 8  # Poisson with mean 1

    @settings(max_examples=40, deadline=None)
    @given(
        st.sampled_from([(3, (1, 1)), (3, (1, 2)), (1, (8, 1)), (2, (1, 2, 4)), (2, (2, 1, 1))]),
        st.integers(1, 5),
        st.integers(0, 1000),
    )
    def test_classes_count_the_same_where_all_events_come_equally_often(
        self, plan: tuple[int, tuple[int, ...]], scale: int, seed: int
    ) -> None:
        """Epochs of so many steps that are whole passes over each class."""
        steps, passes = plan
        classes, share = len(passes), 8 * scale
        counts = np.array([steps * share // number for number in passes])
        labels = np.repeat(np.arange(classes), counts)
        random = np.random.default_rng(seed)
        weights = random.uniform(0.5, 2, len(labels)) * np.where(random.random(len(labels)) < 0.1, -0.1, 1.0)
        weights[np.unique(labels, return_index=True)[1]] = 3.0  # no class may sum to less than zero
        weights *= 10.0 ** random.integers(-3, 3, classes)[labels]
        events = tell(labels.tolist(), weights.tolist())
        rows = draw(events, [labels >= 0], "balanced", share * classes, keys_of(1, seed)).reshape(-1)
        assert len(rows) == steps * share * classes
        assert np.bincount(rows).tolist() == np.repeat(passes, counts).tolist()
        factors = balanced_factors(events, share * classes)
        sums = np.bincount(labels[rows], weights=weights[rows] * factors[labels[rows]])
        assert sums == pytest.approx(np.full(classes, len(labels) / classes), rel=1e-9)

    def test_classes_of_unequal_shares_count_the_same(self) -> None:
        """Where a batch is no multiple of the number of classes: in the mean over which events come once more."""
        random = np.random.default_rng(2)
        labels = np.repeat([0, 1, 2], [60, 20, 11])
        weights = random.normal(1, 1, 91) * np.array([0.1, 1, 30])[labels]
        shares = sampling.shares(7, [1 / 3] * 3)
        assert shares == [3, 2, 2]
        factors = balanced_factors(tell(labels.tolist(), weights.tolist()), 7)
        means = np.bincount(labels, weights=weights) / np.bincount(labels)
        assert 13 * np.array(shares) * means * factors == pytest.approx(np.full(3, 91 / 3), rel=1e-12)


class TestWeighted:
    MEMBERS = 400

    def events(self) -> tuple[TrainingEvents, list[Mask], npt.NDArray[np.float64]]:
        """Events of both signs, some of zero weight; even members train on one half, odd ones on another."""
        random = np.random.default_rng(4)
        weights = random.normal(0.5, 1, 90)
        weights[random.random(90) < 0.2] = 0.0
        events = tell([0, 1, 2] * 30, weights.tolist())
        half = np.arange(90) < 50
        return events, [half, ~half] * (self.MEMBERS // 2), np.array([0.5, 1.0, 3.0])

    def test_frequencies_are_proportional_to_the_sizes_of_the_weights(self) -> None:
        events, uses, factors = self.events()
        window = window_of(events, uses)
        all_factors = torch.from_numpy(factors).expand(self.MEMBERS, 3)
        batches = sampling.batches(window, "weighted", 10, keys_of(self.MEMBERS), all_factors).numpy()
        for parity in range(2):
            rows = batches[:, parity::2].reshape(-1)
            rows = rows[rows >= 0]
            use = uses[parity]
            assert len(rows) == use.sum() * self.MEMBERS / 2  # an epoch has as many events as there are
            assert use[rows].all()
            assert (events.weights[rows] != 0).all()
            sizes = np.where(use, np.abs(events.weights) * factors[events.labels], 0.0)
            expected = sizes / sizes.sum() * len(rows)
            found = np.bincount(rows, minlength=90)
            assert stats.chisquare(found[expected > 0], expected[expected > 0]).pvalue > 1e-4
            assert found.std() > 3 * np.sqrt(found.mean())  # the same test would refuse equal frequencies

    def test_draws_are_independent(self) -> None:
        """Of those that follow each other; an event may come again at once."""
        events = tell([0, 1])
        batches = draw(events, [np.ones(2, dtype=np.bool_)] * 4000, "weighted", 2)[0]  # (M, 2)
        table = np.bincount(2 * batches[:, 0] + batches[:, 1], minlength=4)
        assert stats.chisquare(table).pvalue > 1e-4

    @settings(max_examples=50, deadline=None)
    @given(
        st.lists(st.sampled_from([0.0, 1e-300, 1e-12, 1.0, -1.0, 1e12, -1e200]), min_size=1, max_size=40).filter(any),
        st.integers(0, 10**6),
    )
    def test_no_event_without_weight_is_drawn(self, weights: list[float], seed: int) -> None:
        events = tell([0, 1] * 20, (weights + [1.0] * 40)[:40])
        use = np.arange(40) < len(weights)
        rows = draw(events, [use], "weighted", 8, keys_of(1, seed))
        assert (events.weights[rows[rows >= 0]] != 0).all()
        assert (rows[rows >= 0] < len(weights)).all()

    @pytest.mark.parametrize("bits", [0, -1])
    def test_nor_with_the_smallest_and_the_largest_random_number(
        self, bits: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where the first and the last events of a member have no weight."""
        events = tell([0, 1] * 20, [0.0, 0.0, *[0.3] * 36, 0.0, 0.0])
        monkeypatch.setattr(hashing, "splitmix64", lambda counters: torch.full_like(counters, bits))
        rows = draw(events, [np.ones(40, dtype=np.bool_)], "weighted", 8, torch.zeros(1, dtype=torch.int64))
        assert set(rows.reshape(-1)) == {2 if bits == 0 else 37}


class Losses:
    """What a training gives to its loss, in training alone."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.labels: list[Tensor] = []
        self.weights: list[Tensor] = []
        plain = losses.Losses.__call__

        def note(own: losses.Losses, logits: Tensor, labels: Tensor, weights: Tensor, soft: Tensor | None) -> Any:
            self.labels.append(labels)
            self.weights.append(weights.detach().double())
            return plain(own, logits, labels, weights, soft)

        monkeypatch.setattr(losses.Losses, "__call__", note)

    def epochs(self, count: int, member: int, classes: int) -> npt.NDArray[np.float64]:
        """Sums of weights in each epoch and of each class ``[E, C]``."""
        steps = len(self.labels) // count
        sums = np.zeros((count, classes))
        for step, (labels, weights) in enumerate(zip(self.labels, self.weights, strict=True)):
            sums[step // steps] += np.bincount(labels[member], weights[member], classes)
        return sums


class TestLoss:
    """Weights in the loss, summed over an epoch: whatever is drawn, each class counts N / C in the mean."""

    @pytest.mark.parametrize("window", [None, 1000])
    @pytest.mark.parametrize("how", get_args(Sampling))
    def test_classes_count_the_same(self, how: Sampling, window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
        events, epochs = make_events(1500), 60
        settings = TrainingSettings(
            negative_weights="signed",
            epochs=epochs,
            batch_size=100,
            patience=None,
            learning_rate=1e-6,
            sampling=how,
            window=window,
        )
        plans = make_plans(1500, model=ModelSettings(hidden=()), training=settings)[:2]
        noted = Losses(monkeypatch)
        trained = training.train(events, plans)
        for member, own in enumerate(trained):
            sums = noted.epochs(epochs, member, 2)  # (E, C)
            expected = own.events[0] / 2
            if how == "plain":
                assert sums == pytest.approx(np.full((epochs, 2), expected), rel=1e-5)
                continue
            error = sums.std(axis=0, ddof=1) / np.sqrt(epochs)
            assert (np.abs(sums.mean(axis=0) - expected) < 4 * error + 0.01 * expected).all()
            assert (error < 0.02 * expected).all()  # precise enough to tell

    def test_a_class_that_is_not_in_each_window_counts_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Ten events of a class among eight windows."""
        numbers = np.arange(8000)
        events = make_events(8000)
        rare = (numbers % 800 == 7).astype(np.int64)
        events = dataclasses.replace(events, labels=rare, weights=np.ones(8000))
        settings = TrainingSettings(
            negative_weights="signed",
            epochs=20,
            batch_size=100,
            patience=None,
            learning_rate=1e-6,
            sampling="balanced",
            window=1000,
        )
        every = np.ones(8000, dtype=np.bool_)
        noted = Losses(monkeypatch)
        training.train(events, [MemberPlan(0, 0, every, every, ModelSettings(hidden=()), settings, 1)])
        sums = noted.epochs(20, 0, 2).mean(axis=0)
        assert sums[0] == pytest.approx(sums[1], rel=0.1)

    def test_weighted_events_count_alike_with_their_sign(self, monkeypatch: pytest.MonkeyPatch) -> None:
        events = make_events(1500)
        settings = TrainingSettings(epochs=1, batch_size=100, sampling="weighted", negative_weights="signed")
        noted = Losses(monkeypatch)
        training.train(events, make_plans(1500, model=ModelSettings(hidden=()), training=settings)[:1])
        weights = torch.cat(noted.weights, dim=1)[0]
        sizes = np.unique(weights.abs().numpy())
        assert len(sizes) == 2  # padding has none
        assert sizes[0] == 0
        assert 0.05 < (weights < 0).double().mean().item() < 0.15  # a tenth of the events has a negative weight

    def test_a_balanced_batch_with_fewer_events_than_classes_is_refused(self) -> None:
        settings = TrainingSettings(epochs=1, batch_size=1, sampling="balanced", negative_weights="signed")
        with pytest.raises(ValueError, match="batch_size"):
            training.train(make_events(), make_plans(training=settings)[:1])
