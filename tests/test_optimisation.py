"""Optimisers, schedules and averages: against torch's own, for each member of a stack, and through a whole training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from models.checkpoint import Checkpoint
from models.ensemble import load_member, save_member
from models.members import TrainedMember
from models.optimisation import AVERAGES, OPTIMISERS, clip
from models.schedules import factors, plateaus
from models.settings import CONSTANTS, FeatureInput, ModelSettings, Optimiser, Schedule, TrainingSettings
from models.stack import Kind, State
from models.training import train
from tests.test_replay import Kept
from tests.test_training import (
    KilledError,
    Memory,
    assert_equal,
    differ,
    killed_after,
    make_events,
    make_plans,
)

MODEL = ModelSettings(hidden=(17, 9), dropout=0.2, normalisation="batch")
BASE = TrainingSettings(epochs=5, batch_size=100, learning_rate=5e-3, patience=None, negative_weights="signed")
PATHS = ["_step_each", "_step_rows"]  # the way of a processor and that of other devices


def sgd(parameters: Any, rate: float, own: dict[str, float]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=rate, momentum=own["momentum"], nesterov=bool(own["nesterov"]))


def adagrad(parameters: Any, rate: float, own: dict[str, float]) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(parameters, lr=rate, eps=own["epsilon"])


def rms_prop(parameters: Any, rate: float, own: dict[str, float]) -> torch.optim.Optimizer:
    momentum = own["momentum"]
    return torch.optim.RMSprop(parameters, lr=rate, alpha=own["alpha"], eps=own["epsilon"], momentum=momentum)


def adam(parameters: Any, rate: float, own: dict[str, float]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=rate, betas=(own["beta1"], own["beta2"]), eps=own["epsilon"])


def adamw(parameters: Any, rate: float, own: dict[str, float]) -> torch.optim.Optimizer:
    betas = (own["beta1"], own["beta2"])
    return torch.optim.AdamW(parameters, lr=rate, betas=betas, eps=own["epsilon"], weight_decay=0.0)


def n_adam(parameters: Any, rate: float, own: dict[str, float]) -> torch.optim.Optimizer:
    betas = (own["beta1"], own["beta2"])
    return torch.optim.NAdam(parameters, lr=rate, betas=betas, eps=own["epsilon"], momentum_decay=own["momentum_decay"])


TORCH: dict[str, Callable[[Any, float, dict[str, float]], torch.optim.Optimizer]] = {
    "sgd": sgd,
    "adagrad": adagrad,
    "rmsprop": rms_prop,
    "adam": adam,
    "adamw": adamw,
    "nadam": n_adam,
}
OTHERS: dict[str, list[dict[str, Any]]] = {
    "sgd": [
        {"momentum": 0.9},
        {"momentum": 0.7, "nesterov": True},
        {"momentum": 0.7, "nesterov": True, "weight_decay": 0.4},
        {},
    ],
    "adagrad": [{"epsilon": 0.1}, {"weight_decay": 0.4}, {}],
    "rmsprop": [{"alpha": 0.6}, {"epsilon": 0.1}, {"momentum": 0.8}, {"momentum": 0.5, "weight_decay": 0.4}, {}],
    "adam": [{"beta1": 0.5}, {"beta2": 0.7}, {"epsilon": 0.1}, {}],
    "adamw": [{"beta1": 0.5}, {"beta2": 0.7}, {"epsilon": 0.1}, {"weight_decay": 0.4}, {}],
    "nadam": [
        {"beta1": 0.5},
        {"beta2": 0.7},
        {"epsilon": 0.1},
        {"momentum_decay": 0.3},
        {"weight_decay": 0.4},
        {},
    ],
}
"""Constants of the members of one stack."""


class TestOptimisers:
    @pytest.mark.parametrize("path", PATHS)
    @pytest.mark.parametrize("name", get_args(Optimiser))
    @pytest.mark.parametrize("kind", [torch.float32, torch.float64])
    def test_against_torch_with_a_rate_a_pause_and_constants_for_each_member(
        self, kind: torch.dtype, name: Optimiser, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Weights decay by the formula; torch's own decay, but for AdamW's, is another thing."""
        monkeypatch.setattr(OPTIMISERS[name], "_step_each", getattr(OPTIMISERS[name], path))
        constants = [TrainingSettings(optimiser=name, **own).constants for own in OTHERS[name]]
        members, size, decaying = len(constants), 21, 12
        generator = torch.Generator().manual_seed(2)
        start = torch.randn(members, size, generator=generator, dtype=kind)
        rates = torch.linspace(0.01, 0.05, members, dtype=torch.float64).unsqueeze(1)
        columns = {key: torch.tensor([[own[key]] for own in constants], dtype=torch.float64) for key in constants[0]}
        found = start.clone()
        stacked = OPTIMISERS[name](found, decaying, columns)
        plain = []
        for row, (rate,), own in zip(start, rates.tolist(), constants, strict=True):
            parameter = nn.Parameter(row.clone())
            plain.append((parameter, TORCH[name]([parameter], rate, own), rate * own.get("weight_decay", 0.0)))
        for step in range(40):
            gradients = torch.randn(members, size, generator=generator, dtype=kind) * (1 + step % 5)
            # The first one pauses from time to time, the second even at first.
            active = torch.ones(members, 1, dtype=torch.float64)
            active[0], active[1] = float(step % 3 != 2), float(step > 1)
            before = {key: rows.clone() for key, rows in {"parameters": found, **stacked.state}.items()}
            stacked.step(found, gradients, rates, active)
            for key, rows in {"parameters": found, **stacked.state}.items():
                for member in range(members):
                    same = torch.equal(rows[member], before[key][member])
                    assert same or active[member], (key, member)
            for member, (parameter, optimiser, decay) in enumerate(plain):
                if active[member]:
                    with torch.no_grad():
                        parameter[:decaying] *= 1 - decay
                    parameter.grad = gradients[member].clone()
                    optimiser.step()
        tolerance = 1e-4 if kind == torch.float32 else 1e-6  # products of momenta and counts are float32
        for member, (parameter, _, _) in enumerate(plain):
            assert torch.allclose(found[member], parameter.detach(), rtol=tolerance, atol=tolerance / 10), member
            assert (found[member] - start[member]).abs().max() > 0.02

    @pytest.mark.parametrize("name", get_args(Optimiser))
    def test_both_ways_agree(self, name: Optimiser) -> None:
        """To what rounding of float32 allows, and the state in full."""
        constants = [TrainingSettings(optimiser=name, **own).constants for own in OTHERS[name]]
        columns = {key: torch.tensor([[own[key]] for own in constants], dtype=torch.float64) for key in constants[0]}
        generator = torch.Generator().manual_seed(5)
        each = torch.randn(len(constants), 50, generator=generator)
        rows, active = each.clone(), torch.ones(len(constants), 1, dtype=torch.float64)
        one, other = OPTIMISERS[name](each, 30, columns), OPTIMISERS[name](rows, 30, columns)
        for _ in range(20):
            gradients = torch.randn(len(constants), 50, generator=generator)
            one.step(each, gradients, 0.01 * active, active)
            other.state["steps"] += active
            other._step_rows(rows, gradients, 0.01 * active, active)
        assert torch.allclose(each, rows, rtol=1e-4, atol=1e-6)
        moving = [member for member, own in enumerate(constants) if own.get("momentum", 1.0) > 0]
        for key in one.state:  # without momentum torch needs no velocity
            chosen = moving if key == "velocity" else slice(None)
            assert torch.allclose(one.state[key][chosen], other.state[key][chosen], rtol=1e-4, atol=1e-6), key

    def test_clip_against_torch(self) -> None:
        gradients = torch.randn(4, 50, generator=torch.Generator().manual_seed(1)) * torch.logspace(-2, 2, 4)[:, None]
        clipped = clip(gradients, torch.ones(4, 1, dtype=torch.float64))
        assert torch.equal(clip(gradients, torch.full((4, 1), torch.inf)), gradients)
        for row, found in zip(gradients, clipped, strict=True):
            parameter = nn.Parameter(torch.zeros(50))
            parameter.grad = row.clone()
            nn.utils.clip_grad_norm_([parameter], 1.0)
            assert torch.allclose(found, parameter.grad, rtol=1e-6)


def rates_of(
    make: Callable[[torch.optim.Optimizer], Any], count: int, of_steps: int = 1, first: float = 1.0
) -> npt.NDArray[np.float64]:
    """Learning rates of so many steps by a schedule of torch's, which is called after every so many."""
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=first)
    scheduler = make(optimiser)
    rates = []
    for step in range(count):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        if (step + 1) % of_steps == 0:
            scheduler.step()
    return np.array(rates)


def found_factors(settings: TrainingSettings, of_steps: int, losses: list[float] | None = None) -> Any:
    """Factors of all steps of a training with so many steps in each epoch."""
    past = np.arange(settings.epochs + 1, dtype=np.float64) * of_steps
    return factors(settings, np.arange(past[-1]), past, losses or [])


class TestSchedules:
    @pytest.mark.parametrize("total", [10, 11, 100, 997])
    def test_by_steps_against_torch(self, total: int) -> None:
        for name, make in (
            ("one_cycle", lambda o: lr_scheduler.OneCycleLR(o, 1.0, total_steps=total)),
            ("cosine", lambda o: lr_scheduler.CosineAnnealingLR(o, total)),
            ("constant", lambda o: lr_scheduler.ConstantLR(o, 1.0)),
        ):
            found = found_factors(dataclasses.replace(BASE, epochs=1, schedule=name), total)
            assert found == pytest.approx(rates_of(make, total), rel=1e-9, abs=1e-12), name

    @pytest.mark.parametrize("of_steps", [1, 2, 7])
    def test_by_epochs_against_torch(self, of_steps: int) -> None:
        cases: list[tuple[dict[str, Any], Callable[[torch.optim.Optimizer], Any]]] = [
            ({"schedule": "step"}, lambda o: lr_scheduler.StepLR(o, 10)),
            (
                {"schedule": "step", "schedule_every": 3, "schedule_factor": 0.4},
                lambda o: lr_scheduler.StepLR(o, 3, 0.4),
            ),
            (
                {"schedule": "multi_step", "schedule_milestones": (2, 3, 11)},
                lambda o: lr_scheduler.MultiStepLR(o, [2, 3, 11]),
            ),
            ({"schedule": "exponential", "schedule_factor": 0.8}, lambda o: lr_scheduler.ExponentialLR(o, 0.8)),
        ]
        for own, make in cases:
            found = found_factors(TrainingSettings(epochs=25, **own), of_steps)
            assert found == pytest.approx(rates_of(make, 25 * of_steps, of_steps), rel=1e-9), own

    @pytest.mark.parametrize("of_steps", [1, 4])
    @pytest.mark.parametrize(("every", "stretch"), [(1, 1), (5, 1), (3, 2), (2, 3)])
    def test_warm_restarts_against_torch(self, every: int, stretch: int, of_steps: int) -> None:
        settings = TrainingSettings(epochs=30, schedule="warm_restarts", schedule_every=every, schedule_stretch=stretch)
        optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler = lr_scheduler.CosineAnnealingWarmRestarts(optimiser, every, stretch)
        expected = []
        for step in range(30 * of_steps):
            scheduler.step(step / of_steps)  # type: ignore[arg-type]
            expected.append(optimiser.param_groups[0]["lr"])
        assert found_factors(settings, of_steps) == pytest.approx(np.array(expected), abs=1e-9)

    @pytest.mark.parametrize("seed", range(10))
    @pytest.mark.parametrize("patience", [1, 2, 4])
    def test_plateau_against_torch(self, seed: int, patience: int) -> None:
        """For losses of which some are equal."""
        random = np.random.default_rng(seed)
        losses = np.round(np.exp(-np.arange(60) / 10) + random.normal(0, 0.2, 60), 1).tolist()
        own = {"schedule_patience": patience, "schedule_factor": 0.5, "schedule_reductions": 1000}
        settings = TrainingSettings(epochs=60, patience=None, schedule="plateau", **own)  # type: ignore[arg-type]
        optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler = lr_scheduler.ReduceLROnPlateau(optimiser, factor=0.5, patience=patience - 1, threshold=0, eps=0)
        falls = []
        for done, loss in enumerate(losses):
            found = found_factors(settings, 3, losses[:done])
            assert np.array_equal(found, np.full(180, optimiser.param_groups[0]["lr"]))
            falls.append(plateaus(losses[:done], own))
            scheduler.step(loss)
        assert falls[-1] > 2
        few = dataclasses.replace(settings, schedule_reductions=2)
        assert found_factors(few, 3, losses)[0] == 0.25

    @pytest.mark.parametrize("name", get_args(Schedule))
    @pytest.mark.parametrize(("warm_up", "first"), [(2, 12), (0.5, 3), (1.25, 8)])
    def test_a_warm_up_goes_before_any(self, name: Schedule, warm_up: float, first: int) -> None:
        """A straight line to the first factor of a schedule, which then is that of a shorter training."""
        given: dict[str, Any] = {"schedule_milestones": (3, 5)} if name == "multi_step" else {}
        settings = TrainingSettings(epochs=20, schedule=name, warm_up=warm_up, **given)
        found = found_factors(settings, 6)
        line = rates_of(lambda o: lr_scheduler.LinearLR(o, 1 / (first + 1), total_iters=first), first)
        assert found[:first] == pytest.approx(line * found[first], rel=1e-9)
        if warm_up == 2:
            shorter = found_factors(dataclasses.replace(settings, epochs=18, warm_up=0), 6)
            assert found[first:] == pytest.approx(shorter, rel=1e-9, abs=1e-12)
        assert found[first] == pytest.approx(1 / 25 if name == "one_cycle" else 1.0)

    def test_plateaus_count_from_the_end_of_the_warm_up(self) -> None:
        settings = TrainingSettings(epochs=20, schedule="plateau", schedule_patience=2, warm_up=1.5)
        rising = [1.0, 2.0, 3.0, 4.0, 5.0]
        assert [found_factors(settings, 2, rising[:done])[-1] for done in range(6)] == pytest.approx([1] * 5 + [0.1])

    @pytest.mark.parametrize("name", get_args(Schedule))
    @pytest.mark.parametrize("total", [1, 2, 3])
    @pytest.mark.parametrize("warm_up", [0, 0.6])
    def test_of_few_steps(self, name: Schedule, total: int, warm_up: float) -> None:
        given: dict[str, Any] = {"schedule_milestones": (1,)} if name == "multi_step" else {}
        found = found_factors(TrainingSettings(epochs=1, schedule=name, warm_up=warm_up, **given), total)
        assert np.isfinite(found).all()
        assert found[0] > 0


class TestAverages:
    @pytest.mark.parametrize("name", AVERAGES)
    @pytest.mark.parametrize("other", [False, True])
    def test_against_torch(self, name: str, other: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        """With a constant and a pause for each member, and the way of other devices."""
        if other:  # where tensors are not those of a processor
            monkeypatch.setattr("models.optimisation._each", lambda _: False)
        constants = [0.9, 0.3] if name == "ema" else [2.0, 5.0]
        generator = torch.Generator().manual_seed(1)
        parameters = torch.randn(2, 23, generator=generator)
        average = AVERAGES[name](parameters, torch.tensor(constants, dtype=torch.float64).unsqueeze(1))
        assert torch.equal(average.evaluated(parameters), parameters)
        models = [nn.Linear(23, 1, bias=False) for _ in constants]
        rule = get_ema_multi_avg_fn if name == "ema" else lambda _: None
        plain = [AveragedModel(model, multi_avg_fn=rule(own)) for model, own in zip(models, constants, strict=True)]
        for epoch in range(9):
            for step in range(4):
                active = torch.tensor([[1.0], [float(step % 2)]], dtype=torch.float64)
                parameters += active * torch.randn(2, 23, generator=generator)
                average.step(parameters, active)
                for member, model in enumerate(models):
                    model.weight.data = parameters[member : member + 1].clone()
                    if name == "ema" and active[member]:
                        plain[member].update_parameters(model)
            average.end_epoch(parameters, epoch)
            for member, model in enumerate(models):
                if name == "swa" and epoch >= constants[member]:
                    plain[member].update_parameters(model)
                begun = name == "ema" or epoch >= constants[member]
                expected = plain[member].module.weight[0] if begun else parameters[member]
                assert torch.allclose(average.evaluated(parameters)[member], expected, rtol=1e-5, atol=1e-6)


def with_choices(change: dict[str, Any]) -> TrainingSettings:
    return dataclasses.replace(BASE, **change)


COMMON: list[tuple[dict[str, Any], list[dict[str, Any]]]] = [
    *(({"optimiser": name}, own) for name, own in OTHERS.items()),
    (
        {"optimiser": "sgd", "averaging": "ema"},
        [{}, {"averaging_decay": 0.5}, {"momentum": 0.9, "epochs": 3}, {"averaging_decay": 0.9, "learning_rate": 0.1}],
    ),
    (
        {"averaging": "swa"},
        [{}, {"averaging_start": 0.2}, {"epochs": 3}, {"averaging_start": 0.5, "patience": 1, "learning_rate": 0.1}],
    ),
    (
        {},
        [
            {"schedule": "step", "schedule_every": 2},
            {"schedule": "step", "schedule_every": 1, "schedule_factor": 0.5},
            {"schedule": "multi_step", "schedule_milestones": (1, 3)},
            {"schedule": "exponential"},
            {"schedule": "warm_restarts", "schedule_every": 1, "schedule_stretch": 2},
            {"schedule": "plateau", "schedule_patience": 1, "learning_rate": 0.05, "epochs": 9},
            {"schedule": "plateau", "schedule_patience": 1, "learning_rate": 0.05, "schedule_reductions": 0},
            {"warm_up": 1.5},
            {"warm_up": 2, "schedule": "cosine"},
            {},
        ],
    ),
    ({"batch_size": "all"}, [{}, {"learning_rate": 0.1}, {"sampling": "plain", "epochs": 9}]),
    ({"batch_size": "all", "sampling": "weighted", "precision": "bf16"}, [{}, {"learning_rate": 0.1}]),
    ({"batch_size": 1, "epochs": 2, "optimiser": "sgd"}, [{}, {"momentum": 0.5}]),
    (
        {"optimiser": "nadam", "averaging": "ema", "window": 1000, "sampling": "balanced", "precision": "bf16"},
        [{}, {"schedule": "plateau", "schedule_patience": 1}, {"warm_up": 1, "averaging_decay": 0.8}],
    ),
]
"""What the members of a stack share, and in what they differ."""


@pytest.mark.parametrize(("common", "changes"), COMMON, ids=lambda value: str(value)[:60])
class TestMembers:
    def test_alone_and_stacked_are_the_same_to_the_last_bit(
        self, common: dict[str, Any], changes: list[dict[str, Any]]
    ) -> None:
        """And differ from each other: nobody gets the constants of another."""
        count = 300 if common.get("batch_size") == 1 else 1200
        events, start = make_events(count), make_plans(count, folds=3, model=MODEL)[2]
        plans = [dataclasses.replace(start, settings=with_choices({**common, **own})) for own in changes]
        assert len({Kind.of(plan) for plan in plans}) == 1
        trained = train(events, plans)
        for plan, member in zip(plans, trained, strict=True):
            assert_equal(train(events, [plan])[0], member)
        for position, member in enumerate(trained):
            assert all(differ(member, other) for other in trained[:position])

    def test_they_go_on_after_a_kill(self, common: dict[str, Any], changes: list[dict[str, Any]]) -> None:
        """From a step in the middle of an epoch and from the end of one, through checkpoints as files."""
        count = 300 if common.get("batch_size") == 1 else 1200
        events, start = make_events(count), make_plans(count, folds=3, model=MODEL)[2]
        plans = [dataclasses.replace(start, settings=with_choices({**common, **own})) for own in changes]
        expected = train(events, plans)
        for every in (1, 5):
            kept = Memory(every)
            for end in (1, 2):
                with pytest.raises(KilledError):
                    train(events, plans, checkpoints=kept, progress=killed_after(end))
            assert kept.files or common.get("batch_size") == "all"
            for one, other in zip(train(events, plans, checkpoints=kept), expected, strict=True):
                assert_equal(one, other)

    def test_events_outside_a_member_s_rows_have_no_influence(
        self, common: dict[str, Any], changes: list[dict[str, Any]]
    ) -> None:
        """What stands there is garbage."""
        count = 300 if common.get("batch_size") == 1 else 1200
        events, start = make_events(count), make_plans(count, folds=3, model=MODEL)[1]
        plans = [dataclasses.replace(start, settings=with_choices({**common, **own})) for own in changes]
        outside = np.flatnonzero(~(start.training | start.validation))
        values, present, labels = events.values.copy(), events.present.copy(), events.labels.copy()
        weights = events.weights.copy()
        values[outside], present[outside], labels[outside] = np.nan, True, 1 - labels[outside]
        weights[outside] = np.inf
        spoilt = dataclasses.replace(events, values=values, present=present, labels=labels, weights=weights)
        for one, other in zip(train(events, plans), train(spoilt, plans), strict=True):
            assert_equal(one, other)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"momentum": 0.9, "nesterov": True}, True),
        ({"schedule": "plateau", "schedule_patience": 2, "warm_up": 1}, True),
        ({"averaging_decay": 0.9}, True),
        ({"optimiser": "rmsprop"}, False),
        ({"averaging": "swa"}, False),
        ({"batch_size": "all"}, False),
    ],
)
def test_kinds(change: dict[str, Any], same: bool) -> None:
    """Constants and schedules are no part of a kind; optimisers and averages are."""
    base = dataclasses.replace(BASE, optimiser="sgd", averaging="ema")
    plan = make_plans(training=base)[0]
    other = dataclasses.replace(plan, settings=dataclasses.replace(base, **change))
    assert (Kind.of(plan) == Kind.of(other)) == same


@pytest.mark.parametrize("count", [0, 1, 2, 15, 16, 17, 900, 1000, 123457])
def test_a_batch_of_all_holds_all(count: int) -> None:
    plan = make_plans(200_000, training=dataclasses.replace(BASE, batch_size="all"))[0]
    size = Kind.of(dataclasses.replace(plan, training=np.arange(200_000) < count)).batch_size
    assert max(count, 1) <= size <= max(1, count * 9 / 8)


def test_all_events_make_one_step_of_an_epoch_by_the_gradient_of_the_mean_loss() -> None:
    """One step of plain descent: a finite difference of the loss along it agrees with what the step changed."""
    events = make_events(900)
    settings = dataclasses.replace(
        BASE, batch_size="all", optimiser="sgd", schedule="constant", clip_norm=None, epochs=2, learning_rate=1e-3
    )
    model = ModelSettings(hidden=(8,), activation="tanh", dropout=0.0)
    plan = make_plans(900, folds=3, model=model, training=settings)[0]
    one = train(events, [dataclasses.replace(plan, validation=plan.training)])[0]
    losses = [*one.history.training_loss, one.history.validation_loss[1]]
    assert losses[1] == pytest.approx(one.history.validation_loss[0], rel=1e-5)  # between its two steps
    assert losses[0] > losses[1] > losses[2]
    many = dataclasses.replace(settings, batch_size=int((plan.training & (events.weights != 0)).sum()))
    other = train(events, [dataclasses.replace(plan, validation=plan.training, settings=many)])[0]
    for name, value in one.parameters.items():
        assert value == pytest.approx(other.parameters[name], rel=1e-4, abs=1e-6)


class TestEnds:
    def state(self, losses: list[float], **own: Any) -> State:
        """A member with such validation losses."""
        plan = make_plans(
            training=TrainingSettings(**{"negative_weights": "signed", "epochs": 100, "patience": None, **own})
        )[0]
        past = np.arange(plan.settings.epochs + 1)
        none: Any = None
        return State(plan, 0, none, (1, 1), none, past, validation_loss=losses)

    def ends(self, losses: list[float], **own: Any) -> int:
        """The epoch with which it ends, counted from 1; 0 if it does not."""
        for epoch in range(len(losses)):
            if self.state(losses[: epoch + 1], **own).ends(epoch):
                return epoch + 1
        return 0

    def test_a_plateau_after_the_last_reduction(self) -> None:
        rising = [1.0] * 50
        own = {"schedule": "plateau", "schedule_patience": 3}
        assert self.ends(rising, **own, schedule_reductions=2) == 10  # the first loss, then three times three
        assert self.ends(rising, **own, schedule_reductions=0) == 4
        assert self.ends(rising, **own, schedule_reductions=2, warm_up=5) == 15
        assert self.ends([-float(n) for n in range(50)], **own) == 0
        assert self.ends(rising, **own, patience=4) == 5

    def test_patience_waits_for_the_average_over_epochs(self) -> None:
        rising = [1.0] * 90
        assert self.ends(rising, patience=3) == 4
        assert self.ends(rising, patience=3, averaging="ema") == 4
        assert self.ends(rising, patience=3, averaging="swa", averaging_start=0.5) == 54

    @pytest.mark.parametrize("reductions", [0, 2])
    def test_each_member_of_a_training_at_its_own_epoch(self, reductions: int) -> None:
        settings = dataclasses.replace(
            BASE,
            epochs=40,
            learning_rate=0.05,
            schedule="plateau",
            schedule_patience=1,
            schedule_factor=0.5,
            schedule_reductions=reductions,
        )
        trained = train(make_events(), make_plans(model=MODEL, training=settings))
        lengths = {len(member.history.validation_loss) for member in trained}
        assert len(lengths) > 1
        assert max(lengths) < 40
        for member in trained:
            losses, rates = member.history.validation_loss, member.history.learning_rate
            expected = [0.05 * 0.5 ** plateaus(losses[:done], settings.course) for done in range(len(losses))]
            assert list(rates) == pytest.approx(expected)
            assert plateaus(losses, settings.course) == reductions + 1
            assert plateaus(losses[:-1], settings.course) == reductions


def test_the_average_is_what_is_validated_and_kept() -> None:
    """Over the ends of the last epochs, found again from trainings that end earlier."""
    events, plan = make_events(), make_plans(model=MODEL)[0]
    settings = dataclasses.replace(BASE, schedule="constant", epochs=6)
    averaged = dataclasses.replace(settings, averaging="swa", averaging_start=0.5)

    def trained(own: TrainingSettings, kept: Kept | None = None) -> TrainedMember:
        return train(events, [dataclasses.replace(plan, settings=own)], checkpoints=kept)[0]

    kept: list[Checkpoint] = []

    class All(Kept):
        def save(self, order: int, checkpoint: Checkpoint) -> None:
            kept.append(checkpoint)
            super().save(order, checkpoint)

    found, raw = trained(averaged, All(10**6)), trained(settings)
    assert found.history.training_loss == raw.history.training_loss  # the average changes nothing of the training
    assert found.history.validation_loss[:4] == raw.history.validation_loss[:4]  # the first average is of one epoch
    assert found.history.validation_loss[4:] != raw.history.validation_loss[4:]
    # The last checkpoints of the epochs; until an epoch ends the parameters stay.
    ends = [one.rows["parameters"] for one, after in pairwise(kept) if one.place.epochs < after.place.epochs]
    last = kept[-1].rows
    assert last["averaging.average"] == pytest.approx(np.mean(ends[-3:], axis=0), rel=1e-5, abs=1e-6)
    assert last["averaging.count"] == 3
    assert found.best_epoch == 6, "choose settings with which the average is the best"
    assert np.array_equal(last["best"], last["averaging.average"])


@pytest.mark.parametrize("averaging", ["ema", "swa"])
def test_averages_smooth_a_restless_training(averaging: Any) -> None:
    """With a large learning rate their validation losses are lower and change less."""
    events = make_events(3000)
    settings = dataclasses.replace(BASE, epochs=12, learning_rate=0.05, schedule="constant", batch_size=50)
    own = dataclasses.replace(
        settings,
        averaging=averaging,
        averaging_decay=0.98 if averaging == "ema" else None,
        averaging_start=0.25 if averaging == "swa" else None,
    )
    losses = []
    for chosen in (settings, own):
        trained = train(
            events, make_plans(3000, model=dataclasses.replace(MODEL, normalisation="none"), training=chosen)
        )
        losses.append(np.array([member.history.validation_loss[6:] for member in trained]))
    raw, smooth = losses
    assert smooth.mean() < raw.mean()
    assert np.abs(np.diff(smooth)).mean() < 0.5 * np.abs(np.diff(raw)).mean()


@pytest.mark.parametrize("name", get_args(Optimiser))
def test_each_optimiser_learns(name: Optimiser) -> None:
    rate = {"sgd": 0.1, "adagrad": 0.05}.get(name, 5e-3)
    settings = dataclasses.replace(BASE, optimiser=name, learning_rate=rate, epochs=10)
    for member in train(make_events(3000), make_plans(3000, folds=3, model=MODEL, training=settings)):
        assert min(member.history.validation_loss) < 0.6  # ln 2 is 0.69, the first epoch's about 0.7


class TestSettings:
    def test_defaults_are_those_of_the_choice(self) -> None:
        assert TrainingSettings().constants == {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.1}
        assert TrainingSettings(beta1=0.5).constants["beta1"] == 0.5
        assert TrainingSettings(optimiser="sgd").constants["weight_decay"] == 0
        assert TrainingSettings(schedule="step", schedule_every=2).course == {
            "schedule_every": 2,
            "schedule_factor": 0.1,
        }
        assert TrainingSettings(averaging="ema").average == {"averaging_decay": 0.999}
        assert TrainingSettings().average == {}

    @pytest.mark.parametrize("key", CONSTANTS)
    def test_constants_of_another_choice_are_refused(self, key: str) -> None:
        values: dict[str, Any] = {"schedule_milestones": (1,)}
        names = {name for own in CONSTANTS[key].values() for name in own}
        owners = dict.fromkeys(("initialisation", "embedding", "missing"), ModelSettings) | {"kind": FeatureInput}
        settings: Any = owners.get(key, TrainingSettings)
        if key == "encoding":
            settings = partial(FeatureInput, kind="category")
        for choice, own in CONSTANTS[key].items():
            for name in names - own.keys():
                with pytest.raises(
                    ValueError, match=f"^{name} is .*, but {key} {choice} has no such constant"
                ) as found:
                    settings(**{key: choice, name: values.get(name, 1)})
                assert all(known in str(found.value) for known in own)

    def test_the_nearest_name_is_given(self) -> None:
        with pytest.raises(ValueError, match=r"it has beta1, .*momentum is one of sgd, rmsprop\. Did you mean mom"):
            TrainingSettings(optimiser="nadam", momentum=0.9)
        with pytest.raises(ValueError, match="optimiser is 'adan'; expected one of sgd, adagrad"):
            TrainingSettings(optimiser="adan")  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("name", "given"),
        [
            ("momentum", {"optimiser": "sgd", "momentum": 1.0}),
            ("momentum", {"optimiser": "sgd", "momentum": math.nan}),
            ("nesterov", {"optimiser": "sgd", "nesterov": True}),
            ("nesterov", {"optimiser": "sgd", "nesterov": True, "momentum": 0.0}),
            ("alpha", {"optimiser": "rmsprop", "alpha": -0.1}),
            ("beta1", {"beta1": 1.0}),
            ("beta2", {"beta2": 1.5}),
            ("epsilon", {"epsilon": 0.0}),
            ("momentum_decay", {"optimiser": "nadam", "momentum_decay": -1.0}),
            ("schedule_every", {"schedule": "step", "schedule_every": 0}),
            ("schedule_factor", {"schedule": "exponential", "schedule_factor": 1.0}),
            ("schedule_milestones", {"schedule": "multi_step"}),
            ("schedule_milestones", {"schedule": "multi_step", "schedule_milestones": (3, 3)}),
            ("schedule_milestones", {"schedule": "multi_step", "schedule_milestones": (0, 3)}),
            ("schedule_stretch", {"schedule": "warm_restarts", "schedule_stretch": 0}),
            ("schedule_patience", {"schedule": "plateau", "schedule_patience": 0}),
            ("schedule_patience", {"schedule": "plateau", "schedule_patience": 10}),
            ("schedule_patience", {"schedule": "plateau", "patience": 3}),
            ("schedule_reductions", {"schedule": "plateau", "schedule_reductions": -1}),
            ("warm_up", {"warm_up": -1}),
            ("warm_up", {"warm_up": 30}),
            ("averaging_decay", {"averaging": "ema", "averaging_decay": 1.0}),
            ("averaging_start", {"averaging": "swa", "averaging_start": 1.0}),
            ("batch_size", {"batch_size": "many"}),
            ("batch_size", {"batch_size": "all", "sampling": "balanced"}),
            ("batch_size", {"batch_size": "all", "window": 1000}),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, name: str, given: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=f"^{name} is .*; expected "):
            TrainingSettings(**given)

    def test_a_network_s_file_keeps_them(self, tmp_path: Path) -> None:
        settings = dataclasses.replace(
            BASE,
            epochs=2,
            batch_size="all",
            schedule="multi_step",
            schedule_milestones=(1,),
            averaging="swa",
            beta1=0.8,
        )
        member = train(make_events(), make_plans(model=MODEL, training=settings)[:1])[0]
        save_member(tmp_path / "network", member)
        assert load_member(tmp_path / "network").training == settings
