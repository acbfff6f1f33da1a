"""What is recorded of layers: against torch's own slopes and gradients, and without a trace in the networks."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch.nn import functional

from models.checkpoint import Checkpoint, Place
from models.diagnostics import FLAT, FLAT_BEYOND
from models.networks import ACTIVATIONS, Classifier
from models.settings import Activation, ModelSettings
from models.stack import Stack
from models.training import _validation_sums, train
from tests.test_training import MODEL, SIGNATURE, TABM, TRAINING, differ, make_events, make_plans


@pytest.mark.parametrize("name", get_args(Activation))
def test_units_are_flat_where_their_slope_is_small(name: Activation) -> None:
    units = torch.linspace(-12, 12, 48_001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(ACTIVATIONS[name](units).sum(), units)
    low, high = FLAT_BEYOND[name]
    flat = (units <= low) | (units >= high)
    # Leaky units have just this slope; those that fall first have none at their lowest point, which is not counted.
    lowest = (units > -3) & (units < 0) if name in ("silu", "gelu", "mish") else torch.zeros_like(flat)
    near = ((units - low).abs() < 1e-3) | ((units - high).abs() < 1e-3) | lowest
    assert torch.equal(flat[~near], (slope.abs() <= FLAT * (1 + 1e-6))[~near])


@pytest.mark.parametrize(
    "model", [MODEL, TABM, dataclasses.replace(MODEL, normalisation="batch")], ids=["dense", "tabm", "batch"]
)
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_dead_units_and_saturation_over_the_validation_events(model: ModelSettings, activation: Activation) -> None:
    """Against the counts that a plain pass over the validation events gives, for each member by itself."""
    events, model = make_events(700), dataclasses.replace(model, activation=activation)
    plans = dict(enumerate(make_plans(700, model=model)[:2]))
    with torch.no_grad():
        stack = Stack(Classifier(model, SIGNATURE), events, plans, "cpu")
        stack.parameters.mul_(4.0)  # enough for ends and dead units
        views = stack.classifier.views(stack.parameters)
        for name in ("bias0", "bias1"):
            views[name][..., :3] -= 1e4
        _validation_sums(stack)
        assert stack.diagnostics is not None
        steps, sizes = torch.ones(2, dtype=torch.float64), torch.tensor([s.events[1] for s in stack.states]).double()
        found = stack.diagnostics.conclude(steps, sizes)
        for member, plan in plans.items():
            rows = np.flatnonzero(plan.validation & (events.weights != 0))
            seen: dict[str, torch.Tensor] = {}
            stack.classifier.network.watch = seen.__setitem__
            own = {name: view[member : member + 1] for name, view in views.items()}
            statistics = {name: table[member : member + 1] for name, table in stack.statistics.items()}
            values, present = (torch.from_numpy(x[rows])[None] for x in (events.values, events.present))
            stack.classifier.logits(own, statistics, values, present)
            stack.classifier.network.watch = None
            for layer, units in seen.items():
                each = units.view(stack.classifier.network.submodels, len(rows), -1)  # type: ignore[attr-defined]
                flat = (each <= 0) if activation == "relu" else (each.abs() >= 2.9932)
                assert found["saturation"][layer][member] == pytest.approx(flat.double().mean().item(), abs=1e-12)
                assert found["dead"][layer][member] == pytest.approx(flat.all(dim=1).double().mean().item(), abs=1e-12)
            assert found["dead"]["layer 1"][member] > 0
            assert 0 < found["saturation"]["layer 2"][member] < 1


def test_gradient_norms_are_torch_s() -> None:
    """Root mean square over the steps of an epoch, by layer, before penalties and clipping."""
    events = make_events()
    training = dataclasses.replace(TRAINING, epochs=1, learning_rate=1e-12, weight_decay=0.0, l2=0.5, clip_norm=1e-3)
    plan = make_plans(model=dataclasses.replace(MODEL, dropout=0.0), training=training)[0]
    found = train(events, [plan])[0].history.diagnostics["gradient_norm"]
    assert set(found) == {"inputs", "layer 1", "layer 2", "output"}
    with torch.no_grad():
        stack = Stack(Classifier(plan.model, SIGNATURE), events, {0: plan}, "cpu")
        window = next(iter(stack.windows.training(0)))
        steps = stack.begin(Place(0, 0, 0), window)
    squares = dict.fromkeys(found, 0.0)
    for step in range(steps):
        values, present, labels, weights = window.table.gather(stack.batches[step])
        weights = (weights * stack.factors.gather(1, labels)).float()
        leaf = stack.parameters.clone().requires_grad_()
        views = stack.classifier.views(leaf)
        logits = stack.classifier.logits(views, stack.statistics, values, present)
        each = functional.cross_entropy(logits[0, 0], labels[0], reduction="none")
        slopes = torch.autograd.grad((each * weights[0]).sum() / training.batch_size, list(views.values()))  # type: ignore[operator]
        own = dict(zip(views, slopes, strict=True))
        for layer in stack.classifier.layers:
            squares[layer.name] += sum(float(own[name].double().square().sum()) for name in layer.parameters)
    for layer, total in squares.items():
        assert found[layer] == pytest.approx((np.sqrt(total / steps),), rel=1e-4)


@pytest.mark.parametrize("model", [MODEL, TABM], ids=["dense", "tabm"])
@pytest.mark.parametrize("change", [{}, {"precision": "bf16"}, {"window": 1000}, {"averaging": "ema"}], ids=str)
def test_they_change_no_bit(model: ModelSettings, change: dict[str, Any]) -> None:
    events, training = make_events(), dataclasses.replace(TRAINING, epochs=2, **change)
    found, quiet = (
        train(events, make_plans(model=model, training=dataclasses.replace(training, diagnostics=on))[:2])
        for on in (True, False)
    )
    for one, other in zip(found, quiet, strict=True):
        assert not differ(one, other)
        assert other.history.diagnostics == {}
        assert dataclasses.replace(one.history, diagnostics={}) == other.history
        for own in one.history.diagnostics.values():
            assert all(len(course) == 2 and np.isfinite(course).all() for course in own.values())


def test_checkpoints_hold_them() -> None:
    course = {"gradient_norm": {"layer 1": np.array([0.5, 0.25]), "output": np.array([1.0, 2.0])}}
    losses = np.array([1.0, 0.5])
    saved = Checkpoint(Place(2, 0, 0), 0.0, False, {}, losses, losses, losses, course)
    found = Checkpoint.from_bytes(saved.to_bytes())
    assert {q: {n: x.tolist() for n, x in own.items()} for q, own in found.diagnostics.items()} == {
        "gradient_norm": {"layer 1": [0.5, 0.25], "output": [1.0, 2.0]}
    }
    assert found.validation_loss.tolist() == [1.0, 0.5]
