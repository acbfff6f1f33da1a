"""Pruning of networks: against `torch.nn.utils.prune`, with masks that hold, and smaller networks that are the same."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from models.ensemble import Ensemble, load_member, predict, save_member
from models.members import TrainedMember
from models.networks import Classifier
from models.pruning import _course, largest_units, largest_weights, share_after, sizes, take_away, without_units
from models.settings import FeatureInput, InputSettings, ModelSettings, Optimiser, TrainingSettings
from models.training import train
from tests.test_heads import told
from tests.test_training import (
    CONNECTED,
    MODEL,
    REGULARISED,
    RESIDUAL,
    SIGNATURE,
    TABM,
    KilledError,
    Memory,
    assert_equal,
    differ,
    make_events,
    make_plans,
)

SHORT = TrainingSettings(epochs=3, batch_size=100, learning_rate=5e-3, patience=None, negative_weights="signed")
MAGNITUDE = dataclasses.replace(SHORT, pruning="magnitude", fine_tuning=2, fine_tuning_rate=0.2)
GRADUAL = dataclasses.replace(MAGNITUDE, pruning_rounds=3, patience=1)
STRUCTURED = dataclasses.replace(SHORT, pruning="structured", pruning_share=0.6, fine_tuning=2, fine_tuning_rate=0.2)
WIDE = ModelSettings(hidden=(16, 12), dropout=0.1)
EMBEDDED = dataclasses.replace(
    WIDE,
    embedding="periodic",
    inputs=InputSettings("standardise", {"pt1": "angle", "eta2": FeatureInput("category", 3, "embedding")}),
)


def matrices(member: TrainedMember) -> np.ndarray[Any, Any]:
    """All weights of the matrices in one row."""
    classifier = Classifier(member.model, SIGNATURE)
    return classifier.row(member.parameters)[: classifier.decaying]


def modules(seed: int) -> list[nn.Linear]:
    torch.manual_seed(seed)
    return [nn.Linear(6, 17), nn.Linear(17, 9), nn.Linear(9, 2)]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.83])
def test_the_weights_are_those_that_torch_prunes(share: float) -> None:
    layers = modules(1)
    rows = np.concatenate([layer.weight.detach().numpy().ravel() for layer in layers])
    prune.global_unstructured(
        [(layer, "weight") for layer in layers], pruning_method=prune.L1Unstructured, amount=share
    )
    expected = torch.cat([torch.as_tensor(layer.weight_mask).ravel() for layer in layers]).bool().numpy()
    assert np.array_equal(largest_weights(rows, share), expected)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.7])
def test_the_units_are_those_that_torch_prunes(share: float) -> None:
    layers = modules(2)
    parameters = {f"weight{i}": layer.weight.detach().numpy().T.copy() for i, layer in enumerate(layers)}
    widths = [width - round(share * width) for width in (17, 9)]
    kept = largest_units(ModelSettings(hidden=(17, 9)), parameters, widths)
    for layer, units in zip(layers, kept, strict=False):
        prune.ln_structured(layer, "weight", amount=share, n=2, dim=0)  # type: ignore[no-untyped-call]
        assert units.tolist() == torch.as_tensor(layer.weight_mask).any(dim=1).nonzero().ravel().tolist()


def test_shares_of_a_gradual_pruning_rise_to_the_last() -> None:
    shares = [share_after(GRADUAL, number) for number in (1, 2, 3)]
    assert shares == pytest.approx([0.8 * 19 / 27, 0.8 * 26 / 27, 0.8])
    assert share_after(MAGNITUDE, 1) == 0.8


AVERAGED = {"averaging": "ema", "averaging_decay": 0.9, **REGULARISED}


@pytest.mark.parametrize(
    ("optimiser", "change"),
    [
        ("rmsprop", AVERAGED),
        ("sgd", {"clip_norm": None}),
        ("adamw", {"averaging": "swa", "averaging_start": 0.5, "precision": "bf16"}),
    ],
)
def test_masks_hold_while_a_network_is_tuned(optimiser: Optimiser, change: dict[str, Any]) -> None:
    """With momenta, decay, noise, norms and averages: what is gone is zero, and nothing else is."""
    rate = 0.05 if optimiser == "sgd" else 5e-3
    own: dict[str, Any] = {"optimiser": optimiser, "learning_rate": rate, "pruning": "magnitude", "fine_tuning": 2}
    own["weight_decay"] = 0.05
    if optimiser != "adamw":
        own["momentum"] = 0.9
    training = dataclasses.replace(SHORT, **own, **change)
    plan = make_plans(model=MODEL, training=training)[0]
    member = train(make_events(), [plan])[0]
    dense = train(make_events(), [dataclasses.replace(plan, settings=without_pruning(training))])[0]
    left, mask = take_away(dense, plan, 1)
    assert mask is not None
    found, start = matrices(member), matrices(left)
    assert np.count_nonzero(mask) == len(mask) - round(0.8 * len(mask))
    assert not found[mask == 0].any()
    assert np.count_nonzero(found) == np.count_nonzero(mask)
    assert np.any(found[mask == 1] != start[mask == 1])


def without_pruning(training: TrainingSettings) -> TrainingSettings:
    nothing = dict.fromkeys(("pruning_share", "pruning_rounds", "fine_tuning", "fine_tuning_rate"))
    return dataclasses.replace(training, pruning="none", **nothing)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "model",
    [
        MODEL,
        RESIDUAL,
        dataclasses.replace(TABM, normalisation="batch"),
        dataclasses.replace(CONNECTED, hidden=(7, 5, 4)),
        dataclasses.replace(TABM, connections="densely_connected"),
    ],
    ids=["plain", "residual", "tabm", "dense", "tabm-dense"],
)
def test_a_smaller_network_is_the_larger_one_with_units_that_say_nothing(model: ModelSettings) -> None:
    """The units that go are silenced in the larger one: their outgoing weights are zero."""
    events, plan = make_events(), make_plans(model=model, training=STRUCTURED)[0]
    member = train(events, [dataclasses.replace(plan, settings=without_pruning(STRUCTURED))])[0]
    widths = [width - round(0.6 * width) for width in model.hidden]
    kept = largest_units(model, member.parameters, widths)
    cut = without_units(model, member.parameters, kept)
    smaller = dataclasses.replace(member, model=dataclasses.replace(model, hidden=tuple(widths)), parameters=cut)
    silent = {name: value.copy() for name, value in member.parameters.items()}
    inputs = silent["weight0"].shape[0]
    depth = len(model.hidden)
    for layer, units in enumerate(kept):
        gone = np.setdiff1d(np.arange(model.hidden[layer]), units)
        if model.connections == "densely_connected":
            places, layers = gone + inputs + sum(model.hidden[:layer]), range(layer + 1, depth + 1)
        else:
            places, layers = gone, range(layer + 1, layer + 2)
        for later in layers:
            silent[f"weight{later}"][..., places, :] = 0
    same = dataclasses.replace(member, parameters=silent)
    scores = [predict(Ensemble((one,)), events.values, events.present) for one in (smaller, same)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6)
    assert np.abs(scores[0] - predict(Ensemble((member,)), events.values, events.present)).max() > 1e-3
    assert sizes([smaller])["parameters"] < sizes([member])["parameters"]


@pytest.mark.parametrize(
    ("model", "training"),
    [
        (MODEL, GRADUAL),
        (TABM, dataclasses.replace(MAGNITUDE, sampling="balanced", precision="bf16")),
        (EMBEDDED, STRUCTURED),
        (RESIDUAL, dataclasses.replace(STRUCTURED, pruning_rounds=2, averaging="ema")),
        (CONNECTED, dataclasses.replace(STRUCTURED, **REGULARISED)),
        (WIDE, dataclasses.replace(STRUCTURED, fine_tuning=0, window=1000)),
    ],
)
def test_pruned_alone_and_stacked_are_the_same_to_the_last_bit(
    model: ModelSettings, training: TrainingSettings
) -> None:
    """To the last bit, also beside networks that are not pruned, or otherwise."""
    events = told(targets=()) if model is EMBEDDED else make_events()
    plans = make_plans(model=model, training=training)[:2]
    plans[1] = dataclasses.replace(plans[1], settings=without_pruning(training))
    plans.append(dataclasses.replace(plans[0], index=1, settings=dataclasses.replace(training, pruning_share=0.4)))
    stacked = train(events, plans)
    for plan, member in zip(plans, stacked, strict=True):
        assert_equal(train(events, [plan])[0], member)
        assert member.training == plan.settings
        assert member.seed == plan.seed


@pytest.mark.parametrize("training", [MAGNITUDE, GRADUAL, STRUCTURED], ids=["magnitude", "gradual", "structured"])
def test_the_history_is_that_of_all_rounds(training: TrainingSettings) -> None:
    plan = make_plans(model=WIDE, training=training)[0]
    member = train(make_events(), [plan])[0]
    before = train(make_events(), [dataclasses.replace(plan, settings=without_pruning(training))])[0]
    first = len(before.history.validation_loss)
    losses = member.history.validation_loss
    assert losses[:first] == before.history.validation_loss
    assert first < len(losses) <= first + 2 * training.pruned["pruning_rounds"]
    assert losses[member.best_epoch - 1] == min(losses[-2:])
    assert 0 < max(member.history.learning_rate[first:]) <= 0.2 * 5e-3


@pytest.mark.parametrize(
    ("model", "training", "every"),
    [
        (MODEL, GRADUAL, 7),
        (WIDE, dataclasses.replace(STRUCTURED, pruning_rounds=2, averaging="ema", optimiser="nadam"), 5),
    ],
)
def test_a_pruning_that_was_killed_goes_on_to_the_last_bit(
    model: ModelSettings, training: TrainingSettings, every: int
) -> None:
    events, plans = make_events(), make_plans(model=model, training=training)[:2]
    expected = train(events, plans)

    def progress(line: str) -> None:
        if line.startswith("pruned, round 1: epoch 2/"):
            raise KilledError

    kept = Memory(every)
    with pytest.raises(KilledError):
        train(events, plans, checkpoints=kept, progress=progress)
    assert kept.files
    lines: list[str] = []
    for one, other in zip(train(events, plans, checkpoints=kept, progress=lines.append), expected, strict=True):
        assert_equal(one, other)
    assert not any(line.startswith("epoch 1/") for line in lines)


def test_events_outside_a_pruned_member_s_rows_have_no_influence() -> None:
    for training in (GRADUAL, STRUCTURED):
        events, plan = make_events(600), make_plans(600, model=EMBEDDED, training=training)[1]
        outside = ~(plan.training | plan.validation)
        spoilt = dataclasses.replace(
            events,
            values=np.where(outside[:, np.newaxis], np.float32(np.nan), events.values),
            labels=np.where(outside, 1 - events.labels, events.labels),
            weights=np.where(outside, np.inf, events.weights),
        )
        assert_equal(train(events, [plan])[0], train(spoilt, [plan])[0])


def test_pruned_networks_are_saved(tmp_path: Any) -> None:
    """With what they have before and behind their layers: embeddings, and the units of regression targets."""
    events, plans = told(), make_plans(model=EMBEDDED, training=STRUCTURED)[:2]
    members = train(events, plans)
    whole = train(events, [dataclasses.replace(plans[0], settings=without_pruning(STRUCTURED))])[0]
    for name in ("target_mean", "target_scale"):
        assert np.array_equal(members[0].parameters[name], whole.parameters[name])
    for name, value in whole.transform.tables.items():
        assert np.array_equal(members[0].transform.tables[name], value, equal_nan=True)
    for member in members:
        save_member(tmp_path / "network", member)
        assert_equal(load_member(tmp_path / "network"), member)
        assert load_member(tmp_path / "network").model == member.model
    assert [member.model.hidden for member in members] == [(6, 5)] * 2


def test_courses_are_joined_round_by_round() -> None:
    assert _course([(1.0, 2.0), (3.0,)]) == (1.0, 2.0, 3.0)
    assert _course([{"a": {"b": (1.0,)}}, {"a": {"b": (2.0,)}}]) == {"a": {"b": (1.0, 2.0)}}


def test_units_of_what_is_not_known_are_refused() -> None:
    """Where a network has parameters whose shapes follow from its widths in another way."""
    plan = make_plans(model=WIDE, training=STRUCTURED)[0]
    member = train(make_events(300), make_plans(300, model=WIDE, training=without_pruning(SHORT))[:1])[0]
    other = dataclasses.replace(member, parameters=member.parameters | {"absent": np.zeros((2, 4), np.float32)})
    with pytest.raises(ValueError, match=r"leaves absent of a network of type dense in the shape \(2, 4\)"):
        take_away(other, plan, 1)


def test_little_pruning_costs_little() -> None:
    """Tuned networks of which half the weights are gone are nearly as good as before."""
    events = make_events(3000)
    longer = TrainingSettings(epochs=15, batch_size=100, patience=None, negative_weights="signed")
    plan = make_plans(3000, model=ModelSettings(hidden=(32, 32)), training=longer)[0]
    half = dataclasses.replace(longer, pruning="magnitude", pruning_share=0.5)
    before, after = train(events, [plan, dataclasses.replace(plan, settings=half)])
    assert min(after.history.validation_loss[-5:]) < 1.03 * min(before.history.validation_loss)


@pytest.mark.parametrize(
    ("model", "change", "message"),
    [
        ({}, {"pruning_share": 0.5}, "pruning none has no such constant"),
        ({}, {"pruning": "magnitude", "pruning_share": 1.0}, "expected a share above 0 and below 1"),
        ({}, {"pruning": "magnitude", "pruning_rounds": 0}, "expected at least 1"),
        ({}, {"pruning": "magnitude", "pruning_rounds": 2, "fine_tuning": 0}, "expected at least one epoch after"),
        ({}, {"pruning": "magnitude", "snapshots": 2}, "snapshots is 2; expected 0, with a pruning"),
        ({}, {"pruning": "structured", "fine_tuning_rate": 0.0}, "expected a number above 0"),
        (
            {"hidden": (8, 4)},
            {"pruning": "structured", "pruning_share": 0.7},
            r"pruning_share is 0.7; .* not \[2, 1\] of \[8, 4\]",
        ),
        ({"hidden": ()}, {"pruning": "structured"}, "expected at least one layer"),
    ],
)
def test_what_leaves_no_network_is_refused(model: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(make_events(300), make_plans(300, model=ModelSettings(**model), training=TrainingSettings(**change)))


def test_rounds_have_orders_of_their_own() -> None:
    """Fine-tuning does not repeat the batches of the training."""
    events, plan = make_events(), make_plans(model=WIDE, training=MAGNITUDE)[0]
    other = dataclasses.replace(plan, seed=plan.seed + 1)
    assert differ(*train(events, [plan, other]))


def test_a_network_that_sees_some_features_is_that_of_events_without_the_others() -> None:
    """To the last bit: what it does not see counts as absent, whatever stands in the events."""
    events = make_events()
    seen = np.array([True, False, True, False])
    blind = dataclasses.replace(events, present=events.present & seen)
    for model in (MODEL, EMBEDDED):
        plan = make_plans(model=model)[0]
        member = train(events, [dataclasses.replace(plan, features=seen)])[0]
        other = train(blind, [plan])[0]
        assert not differ(member, other)
        assert np.array_equal(member.transform.tables["seen"], other.transform.tables["seen"])
        scores = [predict(Ensemble((member,)), events.values, own.present) for own in (events, blind)]
        assert np.array_equal(scores[0], scores[1])
