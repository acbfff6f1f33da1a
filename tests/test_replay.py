"""Steps that a GPU replays: with a device that notes what it is asked for, on a machine without one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models import training
from models.checkpoint import Checkpoint
from models.events import Table
from models.replay import SEVERAL, Replay
from models.settings import ModelSettings, TrainingSettings
from models.stack import Stack
from models.training import train
from tests.test_training import REGULARISED, assert_equal, make_events, make_plans

WARM = 3  # steps that torch asks for before a recording


class Graph:
    """A recording: replays what was called while it was made."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []
        self.replays = 0

    def pool(self) -> int:
        return id(self)

    def replay(self) -> None:
        self.replays += 1
        for call in self.calls:
            call()


class Stream:
    """A stream that notes who waits for whom."""

    def __init__(self, device: Device, name: str) -> None:
        self.device, self.name = device, name

    def wait_stream(self, other: Stream) -> None:
        self.device.log.append(f"{self.name} waits for {other.name}")


class Device:
    """Stands in for torch.cuda: runs steps, or records them without running them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        self.graphs: list[Graph] = []
        self.recording: Graph | None = None
        self.stream = self.main = Stream(self, "main")
        patch.setattr(torch.cuda, "CUDAGraph", self.new_graph)
        patch.setattr(torch.cuda, "graph", self.record)
        patch.setattr(torch.cuda, "Stream", lambda _: Stream(self, "side"))
        patch.setattr(torch.cuda, "current_stream", lambda _: self.stream)
        patch.setattr(torch.cuda, "stream", self.within)

    def new_graph(self) -> Graph:
        self.graphs.append(Graph())
        return self.graphs[-1]

    @contextmanager
    def record(self, graph: Graph, **_: object) -> Iterator[None]:
        assert self.recording is None
        assert not graph.calls
        self.recording = graph
        yield
        self.recording = None

    @contextmanager
    def within(self, stream: Stream) -> Iterator[None]:
        before, self.stream = self.stream, stream
        yield
        self.stream = before

    def call(self, step: Callable[[], None]) -> None:
        """A step as the host asks for it."""
        if self.recording is not None:
            self.recording.calls.append(step)
            return
        self.log.append(f"step in {self.stream.name}")
        step()


def counted(device: Device) -> tuple[Replay, list[None]]:
    """A replay on the device, and its steps that have run."""
    ran: list[None] = []
    return Replay(partial(device.call, lambda: ran.append(None)), "cuda"), ran


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), "meta"])
def test_elsewhere_a_call_takes_one_step(device: str | torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cuda, "CUDAGraph")
    ran: list[None] = []
    steps = Replay(lambda: ran.append(None), device)
    for number in range(40):
        assert steps.advance(100 - number) == 1
        assert len(ran) == number + 1


@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda")])
def test_it_warms_up_records_once_and_replays(device: str | torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Device(monkeypatch)
    ran: list[None] = []
    steps = Replay(partial(fake.call, lambda: ran.append(None)), device)
    for number in range(WARM):
        assert steps.advance(1000) == 1
        assert len(ran) == number + 1
    assert fake.log == ["side waits for main", "step in side", "main waits for side"] * WARM
    assert not fake.graphs
    for number in range(4):
        assert steps.advance(1000) == SEVERAL
        assert len(ran) == WARM + SEVERAL * (number + 1)
    assert steps.advance(SEVERAL) == SEVERAL
    assert [len(graph.calls) for graph in fake.graphs] == [SEVERAL]
    assert fake.graphs[0].replays == 5
    before = len(ran)
    for most in (SEVERAL - 1, 1, 2):
        assert steps.advance(most) == 1
    assert len(ran) == before + 3
    assert steps.advance(SEVERAL + 1) == SEVERAL
    assert [len(graph.calls) for graph in fake.graphs] == [SEVERAL, 1]
    assert [graph.replays for graph in fake.graphs] == [6, 3]
    assert len(fake.log) == 3 * WARM  # the host has asked for no step outside a recording


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 100), min_size=1, max_size=8))
def test_never_more_steps_than_asked(windows: list[int]) -> None:
    """Windows of so many steps each, one after another."""
    with pytest.MonkeyPatch.context() as patch:
        device = Device(patch)
        steps, ran = counted(device)
        for window in windows:
            left, before = window, len(ran)
            while left:
                taken = steps.advance(left)
                assert 1 <= taken <= left
                left -= taken
                assert len(ran) - before == window - left
        lengths = [len(graph.calls) for graph in device.graphs]
        assert len(set(lengths)) == len(lengths)
        assert set(lengths) <= {1, SEVERAL}


def test_most_steps_of_a_long_window_are_replayed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(monkeypatch)
    steps, ran = counted(device)
    calls, left = 0, 1000
    while left:
        left -= steps.advance(left)
        calls += 1
    assert len(ran) == 1000
    assert calls < 1000 / SEVERAL + WARM + SEVERAL


MODEL = ModelSettings(hidden=(17, 9), normalisation="batch")
TRAINING = TrainingSettings(epochs=3, batch_size=10, learning_rate=5e-3, negative_weights="signed")


class Recorded:
    """Trains on the processor with a recording device: a replay needs the tensors that were there at the recording."""

    STACK = ("parameters", "batches", "rates", "active", "factors", "step", "time", "keys", "running")
    OTHERS = ("divisors", "largest")

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.device = Device(patch)
        patch.setattr(training, "Replay", self.replay)

    def replay(self, step: Any, _: object) -> Replay:
        stack, table = step.args

        def checked(places: dict[str, int]) -> None:
            assert self.places(stack, table) == places
            step()

        def call() -> None:
            self.device.call(partial(checked, self.places(stack, table)))

        return Replay(call, "cuda")

    def places(self, stack: Stack, table: Table) -> dict[str, int]:
        """Where the tensors are that a step reads and changes."""
        tensors: dict[str, Tensor | None] = {name: getattr(stack, name) for name in (*self.STACK, *self.OTHERS)}
        tensors |= stack.statistics
        tensors |= stack.optimiser.state
        tensors |= stack.optimiser.constants
        if stack.average is not None:
            tensors |= {**stack.average.state, "constant": stack.average.constant}
        for owner in (stack.losses, stack.regularisers):
            tensors |= {key: value for key, value in vars(owner).items() if isinstance(value, Tensor)}
        tensors |= {name: getattr(table, name) for name in ("values", "present", "labels", "weights")}
        return {name: tensor.data_ptr() for name, tensor in tensors.items() if tensor is not None}


@pytest.mark.parametrize(
    "training",
    [
        TRAINING,
        dataclasses.replace(TRAINING, epochs=6, patience=1, learning_rate=0.05),
        dataclasses.replace(TRAINING, sampling="weighted", window=1000),
        dataclasses.replace(TRAINING, sampling="balanced", window=1000, clip_norm=None),
        dataclasses.replace(TRAINING, optimiser="nadam", averaging="ema", epochs=6, patience=1, learning_rate=0.05),
        dataclasses.replace(TRAINING, optimiser="sgd", momentum=0.9, averaging="swa", averaging_start=0.3),
        dataclasses.replace(TRAINING, **REGULARISED, loss="focal", stop_gap=0.05),
    ],
    ids=[
        "plain",
        "patient",
        "weighted in windows",
        "balanced in windows",
        "nadam and ema",
        "sgd and swa",
        "regularised",
    ],
)
def test_a_training_by_replays_is_the_same(training: TrainingSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several steps at a call, members that leave, and no tensor moves between a recording and its replays."""
    events, plans = make_events(3000), make_plans(3000, model=MODEL, training=training)
    expected = train(events, plans)
    with monkeypatch.context() as patch:
        recorded = Recorded(patch)
        found = train(events, plans)
    assert any(graph.replays > 5 and len(graph.calls) == SEVERAL for graph in recorded.device.graphs)
    for one, other in zip(found, expected, strict=True):
        assert_equal(one, other)


class Kept:
    """Checkpoints after each call of the engine's; the process ends with one of them."""

    def __init__(self, last: int) -> None:
        self.files: dict[int, Checkpoint] = {}
        self.last = last

    def load(self, order: int) -> Checkpoint | None:
        return self.files.get(order)

    def due(self) -> bool:
        return True

    def save(self, order: int, checkpoint: Checkpoint) -> None:
        self.files[order] = checkpoint

    def saved(self) -> None:
        self.last -= 1
        if self.last == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("last", [2, 5, 9, 13])
def test_it_goes_on_within_what_would_have_been_one_replay(last: int, monkeypatch: pytest.MonkeyPatch) -> None:
    events, plans = make_events(2500), make_plans(2500, model=MODEL, training=TRAINING)[:2]
    expected = train(events, plans)
    kept = Kept(last)
    with monkeypatch.context() as patch:
        Recorded(patch)
        with pytest.raises(KeyboardInterrupt):
            train(events, plans, checkpoints=kept)
        assert kept.files[0].place.step > 0
        found = train(events, plans, checkpoints=kept)
    for one, other in zip(found, expected, strict=True):
        assert_equal(one, other)
