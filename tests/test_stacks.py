"""Which networks train as one stack, and that none of them can tell."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from models import training
from models.events import TrainingEvents
from models.members import MemberPlan, TrainedMember
from models.networks import Classifier
from models.settings import ModelSettings, TrainingSettings
from models.stack import Kind, Stack
from models.training import train
from tests.test_replay import Kept
from tests.test_training import assert_equal, differ, make_events, make_plans

MODEL = ModelSettings(hidden=(17, 9), dropout=0.2, normalisation="batch")
BASE = TrainingSettings(epochs=5, batch_size=100, learning_rate=5e-3, patience=None, negative_weights="signed")
SCALARS: list[dict[str, Any]] = [
    {},
    {"learning_rate": 0.02},
    {"weight_decay": 3.0},
    {"weight_decay": 0.0},
    {"clip_norm": None},
    {"clip_norm": 0.01},
    {"dropout": 0.0},
    {"dropout": 0.55},
    {"epochs": 2},
    {"epochs": 8},
    {"epochs": 9, "learning_rate": 0.05, "patience": 1},
    {"schedule": "cosine"},
    {"schedule": "constant"},
    {"seed": 99},
    {"seed": 5, "learning_rate": 1e-3, "weight_decay": 0.01, "clip_norm": 2.0, "dropout": 0.1, "schedule": "constant"},
    {"initialisation": "orthogonal"},
    {"initialisation": "he_normal"},
    {"initialisation": "constant", "initial_constant": -0.05},
    {"label_smoothing": 0.1},
    {"label_noise": 0.3},
    {"input_noise": 0.2},
    {"weight_noise": 0.05},
    {"l1": 0.01},
    {"l2": 0.1},
    {"max_norm": 0.5},
    {"stop_gap": 1e-3, "learning_rate": 0.03},
    {"stop_generalisation": 0.5, "learning_rate": 0.06},
]
KINDS: list[dict[str, Any]] = [
    {},
    {"batch_size": 64},
    {"hidden": (16, 9)},
    {"hidden": (17,)},
    {"activation": "relu"},
    {"hidden": (9, 9), "connections": "residual"},
    {"connections": "densely_connected"},
    {"loss": "focal"},
    {"loss": "binary_cross_entropy"},
    {"normalisation": "layer"},
    {"type": "tabm", "submodels": 2},
    {"type": "tabm", "submodels": 3},
    {"sampling": "weighted"},
    {"sampling": "balanced"},
    {"precision": "bf16"},
    {"window": 1000},
]


def varied(plan: MemberPlan, change: Mapping[str, Any]) -> MemberPlan:
    """A plan with other settings, of the model, the training or its own."""

    def own(kind: type) -> dict[str, Any]:
        return {name: value for name, value in change.items() if name in {f.name for f in dataclasses.fields(kind)}}

    return dataclasses.replace(
        plan,
        model=dataclasses.replace(plan.model, **own(ModelSettings)),
        settings=dataclasses.replace(plan.settings, **own(TrainingSettings)),
        seed=change.get("seed", plan.seed),
    )


class Counted(Stack):
    """A stack that is noted, with its members."""

    made: list[list[int]] = []

    def __init__(
        self, classifier: Classifier, events: TrainingEvents, plans: Mapping[int, MemberPlan], *more: Any
    ) -> None:
        super().__init__(classifier, events, plans, *more)
        self.made.append(list(plans))


@pytest.fixture
def stacks(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The places of the members of each stack that has trained, in the order of the stacks."""
    made: list[list[int]] = []
    monkeypatch.setattr(Counted, "made", made)
    monkeypatch.setattr(training, "Stack", Counted)
    return made


def assert_alone(events: TrainingEvents, plans: list[MemberPlan], trained: list[TrainedMember]) -> None:
    """Each member is what it becomes when it trains alone."""
    for plan, member in zip(plans, trained, strict=True):
        assert (member.fold, member.index, member.seed) == (plan.fold, plan.index, plan.seed)
        assert (member.model, member.training) == (plan.model, plan.settings)
        assert_equal(train(events, [plan])[0], member)


@pytest.mark.parametrize(
    "common",
    [
        {},
        {"normalisation": "none", "precision": "bf16"},
        {"loss": "focal", "sampling": "weighted"},
        {"loss": "binary_cross_entropy", "connections": "densely_connected"},
        {"type": "tabm", "submodels": 3, "hidden": (11, 11), "connections": "residual", "precision": "bf16"},
        {"sampling": "weighted"},
        {"sampling": "balanced", "window": 1000},
        {"type": "tabm", "submodels": 2, "normalisation": "layer", "window": 1000},
    ],
    ids=lambda common: "-".join(map(str, common.values())) or "plain",
)
def test_members_of_any_scalar_setting_are_one_stack(common: dict[str, Any], stacks: list[list[int]]) -> None:
    """To the last bit those that train alone."""
    events, start = make_events(1200), make_plans(1200, model=MODEL, training=BASE)
    plans = [varied(start[number % 5], {**common, **change}) for number, change in enumerate(SCALARS)]
    trained = train(events, plans)
    assert stacks == [list(range(len(SCALARS)))]
    assert len({Kind.of(plan) for plan in plans}) == 1
    assert len({len(member.history.validation_loss) for member in trained}) >= 3  # they leave at different epochs
    assert len(trained[10].history.validation_loss) < 9  # the patient one before its last
    assert_alone(events, plans, trained)


@pytest.mark.parametrize("change", SCALARS[1:], ids=str)
def test_each_scalar_setting_matters(change: dict[str, Any]) -> None:
    """Two members that differ in it alone end apart: in a stack nobody gets the settings of another."""
    events, plan = make_events(1200), make_plans(1200, model=MODEL, training=BASE)[2]
    one, other = train(events, [plan, varied(plan, change)])
    assert differ(one, other)


def test_places_in_a_stack_do_not_matter() -> None:
    """Any order, any company."""
    events, start = make_events(1200), make_plans(1200, model=MODEL, training=BASE)
    plans = [varied(start[number % 5], change) for number, change in enumerate(SCALARS)]
    expected = train(events, plans)
    random = np.random.default_rng(3)
    for size in (len(plans), 4, 2):
        order = random.permutation(len(plans))[:size]
        for position, member in zip(order, train(events, [plans[position] for position in order]), strict=True):
            assert_equal(member, expected[position])


def test_members_of_different_kinds_are_stacks_of_their_own(stacks: list[list[int]]) -> None:
    """In one call; results come in the order of the plans."""
    events, start = make_events(1200), make_plans(1200, model=MODEL, training=BASE)
    changes = [*KINDS, *reversed(KINDS)]
    plans = [varied(start[number % 5], change) for number, change in enumerate(changes)]
    trained = train(events, plans)
    last = len(changes) - 1
    assert stacks == [[number, last - number] for number in range(len(KINDS))]
    assert_alone(events, plans, trained)


@pytest.mark.parametrize("change", [*SCALARS[1:], *KINDS[1:]], ids=str)
def test_kinds(change: dict[str, Any]) -> None:
    """Scalar settings are no part of a kind, all others are."""
    plan = make_plans(model=MODEL, training=BASE)[0]
    assert (Kind.of(plan) == Kind.of(varied(plan, change))) == (change in SCALARS)
    assert Kind.of(plan) == Kind.of(dataclasses.replace(plan, fold=4, index=7))


@pytest.mark.parametrize("last", [1, 14, 33, 47])
def test_members_of_any_setting_go_on_after_a_kill(last: int, stacks: list[list[int]]) -> None:
    """Those that had ended, those that stood at one step and those whose stack had not begun."""
    events, start = make_events(1200), make_plans(1200, model=MODEL, training=BASE)
    chosen = [SCALARS[8], KINDS[1], SCALARS[10], KINDS[10], SCALARS[4]]
    plans = [varied(start[number], change) for number, change in enumerate(chosen)]
    expected = train(events, plans)
    kept = Kept(last)
    with pytest.raises(KeyboardInterrupt):
        train(events, plans, checkpoints=kept)
    assert 0 in kept.files
    assert 3 not in kept.files
    stacks.clear()
    for one, other in zip(train(events, plans, checkpoints=kept), expected, strict=True):
        assert_equal(one, other)
    assert sorted(order for stack in stacks for order in stack) == list(range(5))
