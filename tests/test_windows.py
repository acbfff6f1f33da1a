"""`training.window`: events that are read part by part while networks train."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats

from models.checkpoint import Place
from models.events import PARTS, Mask, TrainingEvents, Window, Windows
from models.members import MemberPlan
from models.networks import Classifier
from models.schedules import factors
from models.settings import ModelSettings, Sampling
from models.stack import Stack
from models.training import train
from tests.test_training import MODEL, TRAINING, assert_equal, differ, make_events, make_plans

WINDOWED = dataclasses.replace(TRAINING, window=1000)
LINEAR = ModelSettings(hidden=())
Rows = npt.NDArray[np.int64]


def windows_of(
    events: TrainingEvents, size: int | None, uses: Sequence[Mask] | None = None, *, by_class: bool = False
) -> Windows:
    """Windows of members that train and stop on the same events, by default on all."""
    uses = [np.ones(len(events.labels), dtype=np.bool_)] if uses is None else uses
    return Windows(events, uses, uses, size=size, by_class=by_class, rows=64, device="cpu")


def numbered(count: int) -> TrainingEvents:
    """Events whose first feature is their number."""
    events = make_events(count)
    events.values[:, 0] = np.arange(count)
    return events


def chosen(window: Window, rows: torch.Tensor) -> list[list[int]]:
    """Numbers of the events in each member's rows."""
    return [window.table.values[own[own >= 0], 0].to(torch.int64).tolist() for own in rows]


class TestEpochs:
    @pytest.mark.parametrize(("count", "size"), [(5000, 1000), (5003, 1001), (1001, 1000), (9999, 3333), (1500, 1499)])
    def test_each_event_is_met_once(self, count: int, size: int) -> None:
        events = numbered(count)
        uses = [np.arange(count) % 5 != 0, np.random.default_rng(1).random(count) < 0.3]
        windows = windows_of(events, size, uses)
        assert windows.whole is None
        for visit in (windows.training(0), windows.training(7), windows.validation()):
            met: list[list[int]] = [[], []]
            stopped: list[list[int]] = [[], []]
            for window in visit:
                for numbers, rows in ((met, window.groups[0]), (stopped, window.validation)):
                    for member, own in enumerate(chosen(window, rows)):
                        numbers[member] += own
                labels = window.table.labels[window.groups[0][0][: window.counts[0, 0]]]
                there = chosen(window, window.groups[0])[0]
                assert np.array_equal(labels.numpy(), events.labels[there])  # columns belong together
            for own, use in zip([*met, *stopped], [*uses, *uses], strict=True):
                assert sorted(own) == np.flatnonzero(use).tolist()

    def test_each_training_event_is_drawn_once(self) -> None:
        """Through the stack: the batches of all windows together."""
        events, settings = numbered(4100), WINDOWED
        plans = make_plans(4100, training=settings)[:2]
        stack = Stack(Classifier(MODEL, events.signature), events, dict(enumerate(plans)), "cpu")
        for epoch in (0, 3):
            met: list[list[int]] = [[], []]
            for number, window in enumerate(stack.windows.training(epoch)):
                steps = stack.begin(Place(epoch, number, 0), window)
                for member in range(2):
                    rows = stack.batches[:steps, member].reshape(-1)
                    assert stack.active[:steps, member].sum() * 100 >= (rows >= 0).sum()
                    met[member] += window.table.values[rows[rows >= 0], 0].to(torch.int64).tolist()
            for numbers, plan in zip(met, plans, strict=True):
                assert sorted(numbers) == np.flatnonzero(plan.training & (events.weights != 0)).tolist()

    def test_groups_are_the_classes(self) -> None:
        events = numbered(3000)
        uses = [np.arange(3000) % 3 != 0, np.arange(3000) % 7 != 0]
        for window in windows_of(events, 1000, uses, by_class=True).training(2):
            assert len(window.groups) == 2
            for label, rows in enumerate(window.groups):
                for member, numbers in enumerate(chosen(window, rows)):
                    assert len(numbers) == window.counts[member, label]
                    assert uses[member][numbers].all()
                    assert (events.labels[numbers] == label).all()

    def test_an_epoch_goes_on_from_a_window(self) -> None:
        events = numbered(5000)
        numbers = [chosen(window, window.groups[0]) for window in windows_of(events, 1000).training(4)]
        again = [chosen(window, window.groups[0]) for window in windows_of(events, 1000).training(4, 2)]
        assert numbers[2:] == again

    def test_rates_and_random_numbers_go_on_from_window_to_window(self) -> None:
        """The schedule runs over the steps of all windows, and no two steps share their masks of dropout."""
        events, settings = make_events(4100), dataclasses.replace(WINDOWED, epochs=3, schedule="one_cycle")
        plans = make_plans(4100, training=settings)[2:4]  # of different numbers of events
        stack = Stack(Classifier(MODEL, events.signature), events, dict(enumerate(plans)), "cpu")
        rates: list[list[float]] = [[], []]
        times: list[int] = []
        ends: list[list[float]] = [[], []]
        for epoch in range(3):
            for number, window in enumerate(stack.windows.training(epoch)):
                steps = stack.begin(Place(epoch, number, 0), window)
                times += (int(stack.time) + np.arange(steps)).tolist()
                for member in range(2):
                    own = stack.active[:steps, member, 0] == 1
                    rates[member] += stack.rates[:steps, member, 0][own].tolist()
            stack.record(epoch, torch.ones(2, dtype=torch.float64))
            for member in range(2):
                ends[member].append(rates[member][-1])
        assert len(set(times)) == len(times)
        assert len(rates[0]) != len(rates[1])
        for member, found in enumerate(rates):
            steps, past = np.arange(float(len(found))), np.linspace(0, len(found), 4)
            expected = settings.learning_rate * factors(settings, steps, past, [])
            assert found == pytest.approx(expected, rel=1e-12)
            assert stack.states[member].learning_rate == ends[member]

    def test_steps_are_those_of_the_windows(self) -> None:
        events = numbered(5000)
        windows = windows_of(events, 1000, [np.arange(5000) % 5 != 0, np.arange(5000) < 700])
        for epoch in range(3):
            found = [-(-window.counts[:, 0] // 64) for window in windows.training(epoch)]
            assert np.array_equal(windows.steps(epoch, 64), found)


class TestComposition:
    def test_it_depends_on_the_epoch_alone(self) -> None:
        """Not on what is trained, on labels, weights or values, nor on what was read before."""
        events, others = make_events(5000), make_events(5000, seed=2)
        windows = windows_of(events, 1000)
        more = windows_of(others, 1000, [np.arange(5000) < 2500, np.arange(5000) > 1000], by_class=True)
        orders = [windows.order(epoch) for epoch in range(5)]
        for window in windows.training(3):
            del window
        assert [more.order(epoch) for epoch in reversed(range(5))] == orders[::-1]
        assert len({str(order) for order in orders}) == 5

    def test_windows_join_parts_of_all_data(self) -> None:
        windows = windows_of(make_events(5000), 1000)
        parts = sorted(part for window in windows.order(1) for part in window)
        assert parts == list(range(5 * PARTS))
        assert [len(window) for window in windows.order(1)] == [PARTS] * 5
        # Neighbours in the data are no more often in one window than other parts: 7 in 39 of 39 pairs, in 100 epochs.
        orders = [own for epoch in range(100) for own in windows.order(epoch)]
        near = sum(part + 1 in own for own in orders for part in own)
        assert stats.binomtest(near, 3900, 7 / 39).pvalue > 1e-4

    def test_any_two_parts_meet(self) -> None:
        windows = windows_of(make_events(4000), 1000)
        count = 4 * PARTS
        met = np.eye(count, dtype=np.int64)
        epochs = 0
        while not met.all():
            for own in windows.order(epochs):
                met[np.ix_(own, own)] += 1
            epochs += 1
            assert epochs <= 60  # each two meet with p = 7/31: of 496 pairs 0.0001 are left in the mean
        for epoch in range(epochs, 400):
            for own in windows.order(epoch):
                met[np.ix_(own, own)] += 1
        pairs = met[np.triu_indices(count, 1)]
        assert pairs.mean() == pytest.approx(400 * 7 / 31)
        assert pairs.min() > 400 * 7 / 31 - 5 * np.sqrt(400 * 7 / 31 * 24 / 31)
        assert pairs.max() < 400 * 7 / 31 + 5 * np.sqrt(400 * 7 / 31 * 24 / 31)

    def test_batches_are_random_samples_of_their_window(self) -> None:
        """Labels in runs of fifty events, so that an order that is left as it is would show."""
        count, longer = 12_000, dataclasses.replace(WINDOWED, epochs=6)
        events = dataclasses.replace(make_events(count), labels=np.arange(count) // 50 % 2)
        plan = dataclasses.replace(make_plans(count, training=longer)[0], training=np.ones(count, dtype=np.bool_))
        stack = Stack(Classifier(MODEL, events.signature), events, {0: plan}, "cpu")
        scores, first, places = [], [], []
        for epoch in range(6):
            for number, window in enumerate(stack.windows.training(epoch)):
                steps = stack.begin(Place(epoch, number, 0), window)
                batches = stack.batches[: steps - 1, 0, :100]  # full ones
                labels = window.table.labels[batches].numpy()
                population = window.table.labels[window.groups[0][0, : window.counts[0, 0]]].numpy()
                size, share = len(population), population.mean()
                variance = 100 * share * (1 - share) * (size - 100) / (size - 1)  # without replacement
                scores += ((labels.sum(axis=1) - 100 * share) ** 2 / variance).tolist()
                first.append(labels[:, :50].sum())
                places.append(batches.numpy())
        assert len(scores) > 400
        # Batches of one window share its events: their scores are a little less than independent.
        assert np.mean(scores) == pytest.approx(1, abs=5 * np.sqrt(2 / len(scores)))
        assert np.mean(first) / np.mean([50 * len(rows) for rows in places]) == pytest.approx(0.5, abs=0.02)
        flat = np.concatenate([rows.reshape(-1) for rows in places])
        order = np.concatenate([np.arange(rows.size) for rows in places])
        assert abs(np.corrcoef(flat, order)[0, 1]) < 5 / np.sqrt(len(flat))


class TestMemory:
    def test_two_buffers_are_all_there_is(self) -> None:
        events = make_events(20_000)
        windows = windows_of(events, 1000)
        tables = set()
        for epoch in range(3):
            for window in (*windows.training(epoch), *windows.validation()):
                tables.add(id(window.table))
                for tensor, column in zip(vars(window.table).values(), events.columns(), strict=True):
                    assert tensor.shape[0] <= 1000
                    assert tensor.shape[1:] == column.shape[1:]
                assert window.counts.sum() <= 1000
        assert len(tables) == 2

    @pytest.mark.parametrize(
        ("count", "size"),
        [
            (10_000, 1000),
            (10_007, 1000),
            (10_010, 1001),
        ],
    )
    def test_no_buffer_is_larger_than_a_window(self, count: int, size: int) -> None:
        windows = windows_of(make_events(count), size)
        assert next(iter(windows.training(0))).table.labels.shape[0] <= size
        assert max(int(window.counts.sum()) for epoch in range(10) for window in windows.training(epoch)) <= size

    PROGRAM = """
import resource, sys
import numpy as np
from models.events import TrainingEvents
from models.members import MemberPlan
from models.preprocessing import Signature
from models.settings import ModelSettings, TrainingSettings
from models.training import train

folder, window, room = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
names = tuple(f"f{i}" for i in range(100))


def events(count):
    rng = np.random.default_rng(1)
    return TrainingEvents(
        Signature(names, names, ("s", "b")),
        np.load(folder + "/values.npy", mmap_mode="c")[:count],
        np.load(folder + "/present.npy", mmap_mode="c")[:count],
        rng.integers(0, 2, count),
        np.ones(count),
        np.sort(rng.integers(0, 2**64, count, dtype=np.uint64)),
    )


def run(data, window):
    count = len(data.labels)
    settings = TrainingSettings(epochs=1, batch_size=2000, window=window)
    training = np.arange(count) % 10 == 0
    plan = MemberPlan(0, 0, training, np.arange(count) % 10 == 1, ModelSettings(hidden=()), settings, 1)
    return train(data, [plan])[0]


def data():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmData"))


run(events(20_000), 2000)  # what libraries and threads need once
large = events(500_000)
resource.setrlimit(resource.RLIMIT_DATA, (data() + room, resource.RLIM_INFINITY))
print(run(large, window).events)
"""

    @pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
    def test_a_file_that_does_not_fit_into_memory(self, tmp_path: Path) -> None:
        """200 MB of values in 100 MB, all else included; the limit leaves out the map of the file."""
        for name, kind in (("values", np.float32), ("present", np.bool_)):
            np.lib.format.open_memmap(tmp_path / f"{name}.npy", mode="w+", dtype=kind, shape=(500_000, 100)).flush()

        def run(window: int) -> subprocess.CompletedProcess[str]:
            program = [sys.executable, "-c", self.PROGRAM, str(tmp_path), str(window), str(100_000_000)]
            return subprocess.run(program, capture_output=True, text=True, check=False)

        small, large = run(20_000), run(400_000)
        assert small.stdout == "(50000, 50000)\n", small.stderr
        assert large.returncode != 0  # the limit is one
        assert "memory" in large.stderr.lower()


class TestReading:
    def slow(self, monkeypatch: pytest.MonkeyPatch, seed: int) -> list[int]:
        """Let the reading thread take pauses, between columns too; returns what it has read."""
        random, threads, copy = np.random.default_rng(seed), [], Windows._copy

        def delayed(own: Windows, table: Any, ranges: Sequence[tuple[int, int]]) -> None:
            threads.append(threading.get_ident())
            time.sleep(random.choice([0, 0.01]))
            for tensor in vars(table).values():
                tensor.zero_()  # nothing of the window before it may be needed any more
            time.sleep(random.choice([0, 0.01]))
            copy(own, table, ranges)
            time.sleep(random.choice([0, 0.02]))

        monkeypatch.setattr(Windows, "_copy", delayed)
        return threads

    @pytest.mark.parametrize("how", get_args(Sampling))
    def test_the_result_does_not_depend_on_when_it_is_read(
        self, how: Sampling, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        events = make_events(3000)
        plans = make_plans(3000, training=dataclasses.replace(WINDOWED, sampling=how, epochs=3))[:2]
        expected = train(events, plans)
        for seed in range(2):
            with monkeypatch.context() as patch:
                threads = self.slow(patch, seed)
                found = train(events, plans)
            assert len(threads) == 3 * (3 + 3)  # three windows to train on and to validate, in three epochs
            assert threading.get_ident() not in threads
            for one, other in zip(found, expected, strict=True):
                assert_equal(one, other)

    def test_it_reads_the_next_window_while_the_network_trains(self) -> None:
        """The next window is complete while this one is still in use, the one after it is not begun."""
        windows, read, go_on = windows_of(make_events(5000), 1000), [], threading.Event()
        copy = windows._copy

        def noted(table: Any, ranges: Sequence[tuple[int, int]]) -> None:
            copy(table, ranges)
            read.append(id(table))
            go_on.set()

        windows._copy = noted  # type: ignore[method-assign]
        for number, window in enumerate(windows.training(0)):
            ahead = min(number + 2, 5)
            while len(read) < ahead:
                assert go_on.wait(10)
                go_on.clear()
            time.sleep(0.01)
            assert len(read) == ahead
            assert read[number] == id(window.table)

    @pytest.mark.parametrize("after", [0, 1, 2, 4, 7])
    def test_an_error_surfaces(self, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """At the first window, at the last one, in validation, in a later epoch."""
        events = make_events(3000)
        plans = make_plans(3000, training=WINDOWED)[:2]
        copy = Windows._copy
        done: list[None] = []

        def failing(own: Windows, table: Any, ranges: Sequence[tuple[int, int]]) -> None:
            if len(done) == after:
                raise OSError("the disk is gone")
            done.append(None)
            copy(own, table, ranges)

        monkeypatch.setattr(Windows, "_copy", failing)
        before = threading.active_count()
        with pytest.raises(OSError, match="the disk is gone"):
            train(events, plans)
        assert len(done) == after
        assert threading.active_count() == before

    def test_a_column_that_fails_surfaces(self) -> None:
        """An array that cannot be read: the error is its own."""

        class Failing(np.ndarray[Any, np.dtype[np.float32]]):
            def __getitem__(self, key: Any) -> Any:
                if threading.current_thread() is not threading.main_thread():
                    raise OSError("the disk is gone")
                return super().__getitem__(key)

        events = make_events(3000)
        failing = dataclasses.replace(events, values=events.values.view(Failing))
        with pytest.raises(OSError, match="the disk is gone"):
            train(failing, make_plans(3000, training=WINDOWED)[:1])

    def test_a_training_that_ends_early_leaves_no_thread(self) -> None:
        events, before = make_events(3000), threading.active_count()

        def stop(line: str) -> None:
            raise KeyError(line)

        with pytest.raises(KeyError):
            train(events, make_plans(3000, training=WINDOWED)[:1], progress=stop)
        visit = windows_of(events, 1000).training(0)
        next(visit)
        visit.close()  # type: ignore[attr-defined]
        assert threading.active_count() == before


class TestResults:
    @pytest.mark.parametrize("how", get_args(Sampling))
    @pytest.mark.parametrize("window", [1500, 1501, 10**9])
    def test_a_window_that_holds_all_events_is_none(self, how: Sampling, window: int) -> None:
        events = make_events()
        plans, others = (
            make_plans(training=dataclasses.replace(TRAINING, sampling=how, window=size))[:2] for size in (None, window)
        )
        for one, other in zip(train(events, plans), train(events, others), strict=True):
            assert_equal(one, other)

    def test_a_smaller_window_is_one(self) -> None:
        events = make_events()
        plans, others = (make_plans(training=dataclasses.replace(TRAINING, window=size))[:1] for size in (None, 1499))
        assert differ(train(events, plans)[0], train(events, others)[0])

    @pytest.mark.parametrize("how", get_args(Sampling))
    def test_it_learns_the_same(self, how: Sampling) -> None:
        """The best validation losses agree within a per cent, in the mean of some networks."""
        events = make_events(8000)
        settings = dataclasses.replace(TRAINING, epochs=12, sampling=how)
        losses = []
        for window in (None, 1000):
            plans = make_plans(8000, model=MODEL, training=dataclasses.replace(settings, window=window))
            losses.append(np.mean([min(member.history.validation_loss) for member in train(events, plans)]))
        assert losses[0] < 0.6  # ln 2 for one that has learned nothing
        assert losses[1] == pytest.approx(losses[0], rel=0.01)

    def test_losses_are_those_of_all_events(self) -> None:
        """Of a network that stands still, with windows and without."""
        events = make_events(3000)
        still = dataclasses.replace(TRAINING, epochs=2, learning_rate=1e-30)
        plans, others = (
            make_plans(3000, model=LINEAR, training=dataclasses.replace(still, window=window))[:2]
            for window in (None, 1000)
        )
        for one, other in zip(train(events, plans), train(events, others), strict=True):
            assert other.history.training_loss == pytest.approx(one.history.training_loss, rel=1e-5)
            assert other.history.validation_loss == pytest.approx(one.history.validation_loss, rel=1e-5)
            assert other.events == one.events


class TestUnevenMembers:
    """Windows in which a member has nothing to train or to stop on, or no event of a class."""

    COUNT = 4000

    def plan(self, training: Mask, validation: Mask, **changes: Any) -> MemberPlan:
        settings = dataclasses.replace(WINDOWED, epochs=6, **changes)
        return MemberPlan(0, 0, training, validation, MODEL, settings, 1)

    def other(self, plan: MemberPlan, share: int) -> MemberPlan:
        """A member with events in each window."""
        use = np.arange(self.COUNT) % share == 0
        return dataclasses.replace(plan, index=1, training=~use, validation=use)

    @pytest.mark.parametrize("how", get_args(Sampling))
    def test_some_windows_have_nothing_to_stop_on(self, how: Sampling) -> None:
        events, numbers = make_events(self.COUNT), np.arange(self.COUNT)
        plan = self.plan(numbers % 4 != 0, (numbers < 200) & (numbers % 4 == 0), sampling=how)
        alone = train(events, [plan])[0]
        assert_equal(train(events, [plan, self.other(plan, 3)])[0], alone)

    @pytest.mark.parametrize("how", get_args(Sampling))
    def test_some_windows_have_nothing_to_train_on(self, how: Sampling) -> None:
        events, numbers = make_events(self.COUNT), np.arange(self.COUNT)
        plan = self.plan(numbers < 100, numbers % 4 == 0, sampling=how)
        alone = train(events, [plan])[0]
        assert_equal(train(events, [plan, self.other(plan, 3)])[0], alone)
        assert_equal(train(events, [plan, self.other(plan, 50)])[0], alone)

    def test_what_pads_them_has_no_influence(self) -> None:
        """Events that nobody uses may hold anything."""
        events, numbers = make_events(self.COUNT), np.arange(self.COUNT)
        unused = numbers % 5 == 0  # the first event of each part is one
        first = self.plan((numbers < 500) & ~unused, ~unused)
        second = dataclasses.replace(first, index=1, training=(numbers >= 500) & ~unused)
        plans = [first, second]
        expected = train(events, plans)
        events.values[unused] = np.nan
        events.present[unused] = True
        events.weights[unused] = np.inf
        for one, other in zip(train(events, plans), expected, strict=True):
            assert_equal(one, other)

    def test_a_rare_class_is_not_in_each_window(self) -> None:
        """Balanced all the same: over an epoch each class counts the same."""
        numbers = np.arange(self.COUNT)
        events = make_events(self.COUNT)
        rare = (numbers < 60).astype(np.int64)
        events = dataclasses.replace(events, labels=rare, weights=np.abs(events.weights) + 0.1)
        plan = self.plan(numbers % 4 != 0, numbers % 4 == 0, sampling="balanced")
        assert_equal(train(events, [plan, self.other(plan, 3)])[0], train(events, [plan])[0])
