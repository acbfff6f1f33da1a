"""The training loop: what a network depends on, and what it must not depend on."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models import hashing
from models.checkpoint import Checkpoint, Place
from models.dropout import Dropout
from models.ensemble import Ensemble, predict
from models.events import Table, TrainingEvents
from models.fitting import fit_transforms
from models.losses import class_factors, cross_entropy
from models.members import MemberPlan, Start, TrainedMember, TrainingDiverged
from models.networks import Classifier, Step
from models.preprocessing import Signature
from models.replay import Replay
from models.settings import (
    Activation,
    Averaging,
    Loss,
    ModelSettings,
    Normalisation,
    Optimiser,
    Precision,
    Sampling,
    TrainingSettings,
)
from models.stack import Stack, precision_on
from models.threads import single_threaded
from models.training import _take_step, best_device, gpu_name, train
from models.transforms import Layout, stack_transforms

SIGNATURE = Signature(("met", "pt1", "pt2", "eta2"), ("event", "event", "l2", "l2"), ("signal", "background"))
MODEL = ModelSettings(hidden=(17, 9), dropout=0.2)  # widths that fill no vector register
TABM = ModelSettings(type="tabm", hidden=(17, 9), submodels=3)
TRAINING = TrainingSettings(epochs=4, batch_size=100, learning_rate=5e-3, patience=None, negative_weights="signed")
RESIDUAL = ModelSettings(hidden=(9, 9, 9), connections="residual", initialisation="orthogonal")
CONNECTED = ModelSettings(hidden=(17, 9), connections="densely_connected", normalisation="batch")
REGULARISED: dict[str, Any] = {
    "label_smoothing": 0.05,
    "label_noise": 0.1,
    "input_noise": 0.1,
    "weight_noise": 0.02,
    "l1": 1e-3,
    "l2": 1e-2,
    "max_norm": 1.0,
}
LONGER = dataclasses.replace(TRAINING, epochs=10)
PATIENT = dataclasses.replace(TRAINING, epochs=9, patience=2, learning_rate=0.05)
STOPPED = dataclasses.replace(PATIENT, patience=None, stop_generalisation=10.0)


def make_events(count: int = 1500, seed: int = 1) -> TrainingEvents:
    """Two overlapping classes, an object that is often absent, weights of both signs and some of zero."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, count)
    values = random.normal(labels[:, np.newaxis] * np.array([1.0, 0.3, 0.8, 0.0]), 1.0, (count, 4)).astype(np.float32)
    present = np.ones((count, 4), dtype=np.bool_)
    present[:, 2:] = random.random((count, 1)) < 0.4 + 0.2 * labels[:, np.newaxis]
    weights = np.where(random.random(count) < 0.1, -1.0, 1.0) * random.uniform(0.5, 2, count)
    weights *= np.array([0.01, 20.0])[labels]
    weights[random.random(count) < 0.05] = 0.0
    identity = np.sort(random.integers(0, 2**64, count, dtype=np.uint64))
    return TrainingEvents(SIGNATURE, values, present, labels, weights, identity)


def make_plans(
    count: int = 1500,
    folds: int = 5,
    members: int = 1,
    *,
    model: ModelSettings = MODEL,
    training: TrainingSettings = TRAINING,
    seed: int = 3,
) -> list[MemberPlan]:
    """Rotating folds of different sizes."""
    fold = np.minimum(np.arange(count) % (folds + 1), folds - 1)  # the last one is twice as large
    return [
        MemberPlan(f, index, (fold != f) & (fold != (f + 1) % folds), fold == (f + 1) % folds, model, training, seed)
        for f in range(folds)
        for index in range(members)
    ]


def standardisation(
    events: TrainingEvents, rows: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Mean and scale of each feature over some events, float32 ``[F]``."""
    use = np.zeros(len(events.labels), dtype=np.bool_)
    use[rows] = True
    fit = fit_transforms(Layout(SIGNATURE.features, MODEL), events, [use])[0]
    return fit.tables["standardise.shift"][0], fit.tables["standardise.scale"][0]


def garbage_outside(events: TrainingEvents, plan: MemberPlan) -> TrainingEvents:
    """The same events, but garbage in all that a plan neither trains nor stops on."""
    outside = np.flatnonzero(~(plan.training | plan.validation))
    assert len(outside) > 50
    values, present, labels = events.values.copy(), events.present.copy(), events.labels.copy()
    weights = events.weights.copy()
    values[outside], present[outside], labels[outside] = np.nan, True, 1 - labels[outside]
    weights[outside] = np.inf
    return TrainingEvents(SIGNATURE, values, present, labels, weights, events.identity)


def assert_equal(left: TrainedMember, right: TrainedMember) -> None:
    """Two networks are the same to the last bit."""
    assert (left.fold, left.index, left.best_epoch) == (right.fold, right.index, right.best_epoch)
    assert left.history == right.history
    assert left.parameters.keys() == right.parameters.keys()
    for name, value in left.parameters.items():
        assert np.array_equal(value, right.parameters[name]), name
    assert left.snapshots.keys() == right.snapshots.keys()
    for epoch, parameters in left.snapshots.items():
        assert all(np.array_equal(value, right.snapshots[epoch][name]) for name, value in parameters.items()), epoch
    assert left.transform.tables.keys() == right.transform.tables.keys()
    for name, table in left.transform.tables.items():
        assert np.array_equal(table, right.transform.tables[name], equal_nan=True), name


def differ(left: TrainedMember, right: TrainedMember) -> bool:
    """Two networks differ in their parameters."""
    return any(not np.array_equal(value, right.parameters[name]) for name, value in left.parameters.items())


@pytest.mark.parametrize(
    ("model", "training"),
    [
        (MODEL, TRAINING),
        (ModelSettings(hidden=(33, 5, 3), activation="mish"), TRAINING),
        (ModelSettings(hidden=(64, 64), activation="relu", dropout=0.0), dataclasses.replace(TRAINING, batch_size=64)),
        (ModelSettings(hidden=()), dataclasses.replace(TRAINING, clip_norm=None, schedule="cosine")),
        (MODEL, dataclasses.replace(TRAINING, epochs=15, learning_rate=0.05, schedule="constant", patience=2)),
        (MODEL, dataclasses.replace(TRAINING, precision="bf16")),
        (ModelSettings(hidden=(64, 64)), dataclasses.replace(TRAINING, precision="bf16", epochs=3)),
        (dataclasses.replace(MODEL, normalisation="batch"), PATIENT),
        (dataclasses.replace(MODEL, normalisation="batch"), dataclasses.replace(TRAINING, precision="bf16")),
        (dataclasses.replace(MODEL, normalisation="layer"), TRAINING),
        (TABM, TRAINING),
        (dataclasses.replace(TABM, normalisation="batch"), dataclasses.replace(TRAINING, precision="bf16")),
        (MODEL, dataclasses.replace(TRAINING, sampling="weighted")),
        (MODEL, dataclasses.replace(TRAINING, sampling="balanced")),
        (MODEL, dataclasses.replace(TRAINING, window=1000)),
        (MODEL, dataclasses.replace(TRAINING, window=1000, sampling="weighted")),
        (TABM, dataclasses.replace(PATIENT, window=1000, sampling="balanced")),
        (RESIDUAL, dataclasses.replace(TRAINING, **REGULARISED)),
        (CONNECTED, dataclasses.replace(TRAINING, **REGULARISED, loss="focal")),
        (dataclasses.replace(TABM, connections="densely_connected"), dataclasses.replace(TRAINING, **REGULARISED)),
        (CONNECTED, dataclasses.replace(TRAINING, **REGULARISED, loss="binary_cross_entropy", precision="bf16")),
        (RESIDUAL, dataclasses.replace(TRAINING, **REGULARISED, sampling="weighted", window=1000, stop_gap=0.02)),
        (MODEL, dataclasses.replace(PATIENT, snapshots=3)),
    ],
)
def test_alone_and_stacked_are_the_same_to_the_last_bit(model: ModelSettings, training: TrainingSettings) -> None:
    events, plans = make_events(), make_plans(members=2, model=model, training=training)
    stacked = train(events, plans)
    for position in (0, 3, 8, 9):
        assert_equal(train(events, [plans[position]])[0], stacked[position])
    for trained, position in zip(train(events, plans[5:2:-1]), (5, 4, 3), strict=True):
        assert_equal(trained, stacked[position])
    if training.patience is not None:  # members must have left the stack at different epochs
        assert len({len(member.history.validation_loss) for member in stacked}) > 1


def test_bf16_learns_as_well_and_says_so() -> None:
    """It rounds, so that parameters differ; what it reaches differs by less than a per cent."""
    events, longer = make_events(3000), dataclasses.replace(TRAINING, epochs=20)
    exact, rounded = (
        train(events, make_plans(3000, training=dataclasses.replace(longer, precision=precision)))
        for precision in ("auto", "bf16")
    )
    assert [member.precision for member in (exact[0], rounded[0])] == ["fp32", "bf16"]
    assert all(differ(one, other) for one, other in zip(exact, rounded, strict=True))
    losses = [np.mean([min(m.history.validation_loss) for m in members]) for members in (exact, rounded)]
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    assert all(value.dtype == np.float32 for value in rounded[0].parameters.values())


@pytest.mark.parametrize(("device", "expected"), [("cpu", "fp32"), ("cuda", "bf16"), ("cuda:1", "bf16")])
def test_precision_follows_from_the_class_of_the_device(device: str, expected: str) -> None:
    assert precision_on(device, "auto") == expected
    assert [precision_on(device, chosen) for chosen in ("fp32", "bf16")] == ["fp32", "bf16"]


@pytest.mark.parametrize(
    "model",
    [ModelSettings(hidden=(17, 9), activation=activation) for activation in get_args(Activation)]
    + [dataclasses.replace(MODEL, normalisation=kind) for kind in ("batch", "layer")]
    + [dataclasses.replace(TABM, normalisation=kind) for kind in get_args(Normalisation)],
    ids=lambda model: f"{model.type}-{model.activation}-{model.normalisation}",
)
def test_gradients_of_one_step_alone_and_stacked(model: ModelSettings) -> None:
    """In double precision, of each member's loss by its own parameters."""
    events = make_events(200)
    classifier = Classifier(model, SIGNATURE)
    fit = fit_transforms(classifier.layout, events, [np.ones(200, dtype=np.bool_)])
    tables = {name: table.double() for name, table in stack_transforms(fit).items()}  # (1, 1, F) each
    rows = torch.from_numpy(np.random.default_rng(3).integers(0, 200, (4, 64)))  # (M, B)
    parameters = classifier.initial([11, 12, 13, 14]).double()  # (M, P)
    keys = torch.arange(4)
    real = torch.arange(64) < torch.tensor([[64], [63], [50], [64]])  # (M, B)

    def gradients(members: list[int]) -> torch.Tensor:
        own = parameters[members].requires_grad_()  # (M', P)
        values, present, labels, weights = (
            torch.from_numpy(column)[rows[members]]
            for column in (np.nan_to_num(events.values), events.present, events.labels, events.weights)
        )
        statistics = {name: table.expand(len(members), -1, -1) for name, table in tables.items()}
        dropout = Dropout([model.dropout] * len(members), model.hidden, torch.float64, "cpu")
        step = Step(keys[members], dropout, real[members])
        logits = classifier.logits(classifier.views(own), statistics, values.double(), present, step)
        sums = cross_entropy(logits, labels, weights * real[members])
        (slopes,) = torch.autograd.grad(sums.sum(), own)
        return slopes

    stacked = gradients([0, 1, 2, 3])
    assert stacked.abs().max() > 1e-3
    for member in range(4):
        torch.testing.assert_close(gradients([member])[0], stacked[member], rtol=0, atol=1e-10)


class Memory:
    """Checkpoints as files in memory, after every so many steps."""

    def __init__(self, every: int = 1, files: dict[int, bytes] | None = None) -> None:
        self.files = {} if files is None else files
        self.every, self.asked = every, 0

    def load(self, order: int) -> Checkpoint | None:
        return Checkpoint.from_bytes(self.files[order]) if order in self.files else None

    def due(self) -> bool:
        self.asked += 1
        return self.asked % self.every == 0

    def save(self, order: int, checkpoint: Checkpoint) -> None:
        self.files[order] = checkpoint.to_bytes()

    def saved(self) -> None:
        pass


class KilledError(Exception):
    """The end of a process."""


def killed_after(epoch: int) -> Callable[[str], None]:
    """Progress that ends the process when so many epochs are done."""

    def progress(line: str) -> None:
        if line.startswith(f"epoch {epoch}/"):
            raise KilledError

    return progress


@pytest.mark.parametrize(
    ("model", "training", "every"),
    [
        (MODEL, PATIENT, 1),
        (MODEL, PATIENT, 7),
        (MODEL, dataclasses.replace(PATIENT, sampling="weighted", precision="bf16"), 11),
        (dataclasses.replace(MODEL, normalisation="batch"), dataclasses.replace(PATIENT, window=1000), 5),
        (TABM, dataclasses.replace(PATIENT, sampling="balanced"), 23),
        (CONNECTED, dataclasses.replace(STOPPED, **REGULARISED, loss="focal"), 6),
        (MODEL, dataclasses.replace(PATIENT, snapshots=2), 7),
    ],
)
@pytest.mark.parametrize("epoch", [2, 3, 4])
def test_a_training_that_was_killed_goes_on_to_the_last_bit(
    epoch: int, model: ModelSettings, training: TrainingSettings, every: int
) -> None:
    """Killed some steps after its last checkpoint, once and once more; some members end early."""
    events, plans = make_events(), make_plans(model=model, training=training, seed=7)
    expected = train(events, plans)
    assert len({len(member.history.validation_loss) for member in expected}) > 1
    kept = Memory(every)
    for end in (epoch, epoch + 1):
        with pytest.raises(KilledError):
            train(events, plans, checkpoints=kept, progress=killed_after(end))
    assert kept.files
    lines: list[str] = []
    found = train(events, plans, checkpoints=kept, progress=lines.append)
    assert not any(line.startswith("epoch 1/") for line in lines)
    for one, other in zip(found, expected, strict=True):
        assert_equal(one, other)


def test_members_that_stand_at_different_epochs_go_on_apart() -> None:
    events, plans = make_events(), make_plans()
    expected = train(events, plans)
    kept = Memory()
    for chosen, end in (([0, 3], 2), ([1], 3)):
        part, subset = Memory(), [plans[order] for order in chosen]
        with pytest.raises(KilledError):
            train(events, subset, checkpoints=part, progress=killed_after(end))
        kept.files |= {order: part.files[position] for position, order in enumerate(chosen)}
    for one, other in zip(train(events, plans, checkpoints=kept), expected, strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize("content", [b"", b"abc", b"\0" * 100])
def test_what_is_no_checkpoint_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="no checkpoint"):
        Checkpoint.from_bytes(content)


def test_a_run_repeats_itself_and_members_differ() -> None:
    events, plans = make_events(), make_plans(folds=3, members=2)
    first = train(events, plans)
    for left, right in zip(first, train(events, plans), strict=True):
        assert_equal(left, right)
    assert differ(first[0], first[1])
    assert differ(first[0], train(events, make_plans(folds=3, seed=4)[:1])[0])


@pytest.mark.parametrize(
    "training",
    [
        TRAINING,
        dataclasses.replace(TRAINING, schedule="constant", patience=1),
        dataclasses.replace(TRAINING, clip_norm=None),
        dataclasses.replace(TRAINING, sampling="weighted"),
        dataclasses.replace(TRAINING, sampling="balanced"),
        dataclasses.replace(TRAINING, window=1000),
        dataclasses.replace(TRAINING, stop_gap=0.01, stop_generalisation=1.0),
        dataclasses.replace(TRAINING, snapshots=2),
        dataclasses.replace(TRAINING, pruning="magnitude", pruning_rounds=2, fine_tuning=1),
        dataclasses.replace(TRAINING, pruning="structured", fine_tuning=1),
        *(dataclasses.replace(TRAINING, loss=loss) for loss in get_args(Loss)),
        *(dataclasses.replace(TRAINING, **{name: value}) for name, value in REGULARISED.items()),
    ],
)
def test_events_outside_a_member_s_rows_have_no_influence(training: TrainingSettings) -> None:
    events, plans = (
        make_events(),
        make_plans(model=dataclasses.replace(MODEL, normalisation="batch"), training=training),
    )
    assert_equal(
        train(events, [plans[1]])[0],
        train(garbage_outside(events, plans[1]), [plans[1]])[0],
    )


def test_a_change_inside_a_member_s_rows_has_influence() -> None:
    events, plans = make_events(), make_plans()
    before = train(events, [plans[1]])[0]
    row = np.flatnonzero(plans[1].training & (events.weights != 0))[0]
    events.values[row, 0] += 1
    assert differ(before, train(events, [plans[1]])[0])


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -999.0])
@pytest.mark.parametrize(
    ("model", "training"),
    [
        (MODEL, TRAINING),
        (RESIDUAL, TRAINING),
        (CONNECTED, TRAINING),
        *((MODEL, dataclasses.replace(TRAINING, loss=loss)) for loss in get_args(Loss)),
        *((MODEL, dataclasses.replace(TRAINING, **{name: value})) for name, value in REGULARISED.items()),
    ],
)
def test_what_stands_in_an_absent_value_has_no_influence(
    model: ModelSettings, training: TrainingSettings, garbage: float
) -> None:
    events, plans = make_events(), make_plans(model=model, training=training)[:2]
    spoilt = dataclasses.replace(events, values=np.where(events.present, events.values, np.float32(garbage)))
    for left, right in zip(train(events, plans), train(spoilt, plans), strict=True):
        assert_equal(left, right)


def test_events_of_zero_weight_have_no_influence() -> None:
    events, plans = make_events(), make_plans()
    used = events.weights != 0
    without = dataclasses.replace(plans[0], training=plans[0].training & used, validation=plans[0].validation & used)
    assert without.training.sum() < plans[0].training.sum()
    trained = train(events, [plans[0]])[0]
    assert_equal(trained, train(events, [without])[0])
    assert trained.events == (without.training.sum(), without.validation.sum())


def test_two_epochs_against_a_plain_torch_loop() -> None:
    """The same training, written with torch's layers, loss, clipping, optimiser and schedule."""
    model = ModelSettings(hidden=(12, 6), activation="gelu", dropout=0.0)
    training = TrainingSettings(
        epochs=2, batch_size=90, learning_rate=3e-3, weight_decay=0.05, patience=None, negative_weights="signed"
    )
    events, plan = make_events(), make_plans(model=model, training=training, seed=9)[2]
    trained = train(events, [plan])[0]

    rows = np.flatnonzero(plan.training & (events.weights != 0))
    weights = events.weights * class_factors(events.weights[rows], events.labels[rows], 2)[events.labels]
    mean, scale = standardisation(events, rows)
    stream = hashing.key(9, plan.fold, plan.index)
    start = Classifier(model, SIGNATURE)
    views = start.views(start.initial([hashing.key(stream, 1)]))

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.absent = nn.Parameter(views["absent"][0, 0].clone())
            self.weights = nn.ParameterList(views[f"weight{i}"][0].clone() for i in range(3))
            self.biases = nn.ParameterList(views[f"bias{i}"][0, 0].clone() for i in range(3))

        def forward(self, chosen: npt.NDArray[np.int64]) -> torch.Tensor:
            there = torch.from_numpy(events.present[chosen])
            scaled = torch.from_numpy((events.values[chosen] - mean) / scale)
            scaled = scaled / torch.sqrt(1 + (scaled / 3) ** 2)
            objects = torch.stack([there[:, 0], there[:, 2]], dim=1).float()
            hidden = torch.cat([torch.where(there, scaled, self.absent), objects], dim=1)
            for i in range(2):
                hidden = functional.gelu(hidden @ self.weights[i] + self.biases[i])
            logits: torch.Tensor = hidden @ self.weights[2] + self.biases[2]
            return logits

    network = Plain()
    optimiser = torch.optim.AdamW(
        [
            {"params": list(network.weights), "weight_decay": 0.05},
            {"params": [network.absent, *network.biases], "weight_decay": 0.0},
        ],
        lr=3e-3,
    )
    steps = -(-len(rows) // 90)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 3e-3, total_steps=2 * steps, cycle_momentum=False, pct_start=0.3
    )
    for epoch in range(2):
        key = hashing.splitmix64(hashing.splitmix64(torch.tensor([hashing.key(stream, 2) + epoch])))
        order = hashing.splitmix64(torch.from_numpy(events.identity[rows].view(np.int64)) ^ key).numpy()
        total = 0.0
        for step in range(steps):
            chosen = rows[np.argsort(order)][step * 90 : (step + 1) * 90]
            losses = functional.cross_entropy(
                network(chosen), torch.from_numpy(events.labels[chosen]), reduction="none"
            )
            loss = (losses * torch.from_numpy(weights[chosen]).float()).sum() / 90
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            scheduler.step()
            total += loss.item() * 90
        assert trained.history.training_loss[epoch] == pytest.approx(total / len(rows), rel=1e-5)
    if trained.best_epoch == 2:
        for i in range(3):
            assert trained.parameters[f"weight{i}"] == pytest.approx(
                network.weights[i].detach().numpy(), rel=1e-3, abs=1e-5
            )
    else:
        pytest.fail("choose settings with which the second epoch is the better one")


def test_the_best_epoch_is_restored_and_the_validation_loss_is_what_it_says() -> None:
    training = dataclasses.replace(TRAINING, epochs=40, learning_rate=0.02, schedule="constant", patience=5)
    events, plans = make_events(600), make_plans(600, folds=3, training=training)
    for member, plan in zip(train(events, plans), plans, strict=True):
        losses = member.history.validation_loss
        assert member.best_epoch == int(np.argmin(losses)) + 1
        assert len(losses) == member.best_epoch + 5 < 40
        assert len(member.history.training_loss) == len(member.history.learning_rate) == len(losses)
        rows = np.flatnonzero(plan.validation)
        probabilities = predict(Ensemble((member,)), events.values[rows], events.present[rows])[0].astype(np.float64)
        chosen = np.log(probabilities[np.arange(len(rows)), events.labels[rows]])
        weights = events.weights[rows]
        per_class = [
            (weights * chosen)[events.labels[rows] == c].sum() / weights[events.labels[rows] == c].sum()
            for c in range(2)
        ]
        assert min(losses) == pytest.approx(-np.mean(per_class), rel=1e-4)


@pytest.mark.parametrize(
    ("model", "training"),
    [
        (MODEL, LONGER),
        (dataclasses.replace(MODEL, normalisation="batch"), LONGER),
        (dataclasses.replace(MODEL, normalisation="layer"), LONGER),
        (TABM, LONGER),
        (RESIDUAL, LONGER),
        (CONNECTED, LONGER),
        (MODEL, dataclasses.replace(LONGER, loss="focal")),
        (MODEL, dataclasses.replace(LONGER, loss="binary_cross_entropy")),
        (MODEL, dataclasses.replace(LONGER, **REGULARISED)),
        (MODEL, dataclasses.replace(LONGER, sampling="weighted")),
        (MODEL, dataclasses.replace(LONGER, sampling="balanced")),
        (MODEL, dataclasses.replace(LONGER, window=1000)),
    ],
)
def test_it_learns(model: ModelSettings, training: TrainingSettings) -> None:
    events, plans = make_events(4000), make_plans(4000, model=model, training=training)
    trained = train(events, plans[:1])
    held_out = ~(plans[0].training | plans[0].validation)
    scores = predict(Ensemble(tuple(trained)), events.values[held_out], events.present[held_out])[0, :, 1]
    # The optimal classifier of these Gaussians separates them with an AUC of about 0.83.
    assert 0.76 < roc_auc_score(events.labels[held_out], scores) < 0.88


def test_initial_validation_loss_of_an_untrained_network_is_near_ln_2() -> None:
    training = dataclasses.replace(TRAINING, epochs=1, learning_rate=1e-9)
    member = train(make_events(), make_plans(training=training)[:1])[0]
    assert member.history.validation_loss[0] == pytest.approx(np.log(2), abs=0.4)


def test_divergence_names_the_network() -> None:
    training = dataclasses.replace(TRAINING, learning_rate=1e30, clip_norm=None, schedule="constant")
    model = ModelSettings(hidden=(8,), activation="linear")
    with pytest.raises(TrainingDiverged, match="fold 0, member 0 diverged in epoch") as caught:
        train(make_events(), make_plans(model=model, training=training)[:2])
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.fold, again.member, again.epoch, str(again)) == (0, 0, caught.value.epoch, str(caught.value))


def test_a_class_without_positive_weight_is_an_error_that_names_the_network() -> None:
    events, plans = make_events(), make_plans()
    weights = np.where(events.labels == 1, -np.abs(events.weights), events.weights)
    with pytest.raises(ValueError, match="Fold 0, member 0, training events: the weights of class 1 sum to -"):
        train(dataclasses.replace(events, weights=weights), plans)
    empty = dataclasses.replace(plans[0], validation=np.zeros_like(plans[0].validation))
    with pytest.raises(ValueError, match="validation events: the weights of class 0 sum to 0 over 0 events"):
        train(events, [empty])


def test_inputs_that_are_not_finite_or_do_not_fit_are_refused() -> None:
    events, plans = make_events(), make_plans()
    values = events.values.copy()
    values[plans[0].training & events.present[:, 1], 1] = np.inf
    with pytest.raises(ValueError, match="present is not finite, in: pt1"):
        train(dataclasses.replace(events, values=values), plans)
    with pytest.raises(ValueError, match="weight is not finite"):
        train(dataclasses.replace(events, weights=np.full(1500, np.nan)), plans)
    with pytest.raises(ValueError, match="not one of the 2 classes"):
        train(dataclasses.replace(events, labels=events.labels + 1), plans)
    with pytest.raises(ValueError, match=r"values has shape \(1500, 3\) .*; expected \(1500, 4\)"):
        train(dataclasses.replace(events, values=events.values[:, :3]), plans)
    with pytest.raises(ValueError, match=r"identity has .* type int64; .* uint64"):
        train(dataclasses.replace(events, identity=events.labels), plans)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no network to train"):
        train(events, [])
    short = dataclasses.replace(plans[0], training=plans[0].training[1:])
    with pytest.raises(ValueError, match=r"training of fold 0, member 0 has shape \(1499,\)"):
        train(events, [short])
    with pytest.raises(ValueError, match="not in the order of their identities"):
        train(dataclasses.replace(events, identity=events.identity[::-1].copy()), plans)


def test_progress_and_threads() -> None:
    threads = torch.get_num_threads()
    seen: list[tuple[str, int]] = []

    def note(line: str) -> None:
        seen.append((line, torch.get_num_threads()))

    try:
        torch.set_num_threads(2)
        train(make_events(), make_plans()[:2], progress=note)
        assert torch.get_num_threads() == 2
        with pytest.raises(KeyError), single_threaded():
            raise KeyError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert [count for _, count in seen] == [1] * 4
    assert seen[0][0].startswith("epoch 1/4: validation loss 0.")
    assert seen[-1][0].endswith("2 of 2 networks done")


def test_standardisation_comes_from_the_training_events_alone() -> None:
    events, plan = make_events(), make_plans()[1]
    trained = train(events, [plan])[0]
    rows = plan.training
    mean, scale = standardisation(events, rows)
    assert trained.transform.tables["standardise.shift"][0] == pytest.approx(mean, rel=1e-6)
    assert trained.transform.tables["standardise.scale"][0] == pytest.approx(scale, rel=1e-6)


@pytest.mark.parametrize("there", [False, True])
def test_it_trains_on_a_gpu_where_there_is_one(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GPU 1")
    assert (best_device(), gpu_name()) == (("cuda", "GPU 1") if there else ("cpu", None))


@pytest.mark.parametrize(
    ("epochs", "window", "recordings"),
    [((4, 4), None, 1), ((4, 4), 1000, 2), ((2, 4), None, 2)],
    ids=["one table", "two buffers", "one member leaves"],
)
def test_recorded_steps_serve_all_epochs_until_a_member_leaves(
    epochs: tuple[int, int], window: int | None, recordings: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[Replay] = []

    class Noted(Replay):
        def advance(self, most: int) -> int:
            if self not in used:
                used.append(self)
            return super().advance(most)

    monkeypatch.setattr("models.training.Replay", Noted)
    plans = [
        dataclasses.replace(plan, settings=dataclasses.replace(TRAINING, epochs=count, window=window))
        for plan, count in zip(make_plans()[:2], epochs, strict=True)
    ]
    train(make_events(), plans)
    assert len(used) == recordings


class Inputs(TorchDispatchMode):
    """Notes the types of devices from which operations take tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.devices: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves = tree_leaves((args, kwargs))
        self.devices |= {leaf.device.type for leaf in leaves if isinstance(leaf, torch.Tensor)}
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("model", [MODEL, TABM], ids=["dense", "tabm"])
@pytest.mark.parametrize("normalisation", get_args(Normalisation))
@pytest.mark.parametrize("sampling", get_args(Sampling))
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("change", [{}, *({"loss": loss, **REGULARISED} for loss in get_args(Loss))], ids=str)
def test_a_step_can_be_recorded(
    model: ModelSettings,
    normalisation: Normalisation,
    sampling: Sampling,
    precision: Precision,
    change: dict[str, Any],
) -> None:
    training = dataclasses.replace(TRAINING, sampling=sampling, precision=precision, **change)
    assert_recordable(dataclasses.replace(model, dropout=0.2, normalisation=normalisation), training)


@pytest.mark.parametrize("optimiser", get_args(Optimiser))
@pytest.mark.parametrize("averaging", get_args(Averaging))
def test_a_step_of_each_optimiser_and_average_can_be_recorded(optimiser: Optimiser, averaging: Averaging) -> None:
    assert_recordable(MODEL, dataclasses.replace(TRAINING, optimiser=optimiser, averaging=averaging))


def test_a_step_with_a_mask_can_be_recorded() -> None:
    """And with one that holds noise off the weights that are gone."""
    for change in ({}, {"weight_noise": 0.1}):
        assert_recordable(MODEL, dataclasses.replace(TRAINING, **change), pruned=True)


def assert_recordable(
    model: ModelSettings, training: TrainingSettings, events: TrainingEvents | None = None, *, pruned: bool = False
) -> None:
    """Tensors of the device "meta" have no numbers: to ask for one, or for a shape that depends on one, is an error.

    As on a GPU, no operation may take a tensor of the processor, and all that a step leaves behind must stay where it
    was.
    """

    def moved(owner: Any) -> None:
        for name, value in vars(owner).items():
            if isinstance(value, torch.Tensor):
                setattr(owner, name, value.to("meta"))
            elif name in ("state", "constants"):
                setattr(owner, name, {key: rows.to("meta") for key, rows in value.items()})

    def held(owner: Any) -> dict[str, Any]:
        return {**vars(owner), **vars(owner).get("state", {})}

    events = events or make_events()
    plans = dict(enumerate(make_plans(model=model, training=training)[:2]))
    if pruned:
        classifier = Classifier(model, SIGNATURE)
        row, kept = np.zeros(classifier.size, np.float32), np.ones(classifier.decaying, np.float32)
        plans[0] = dataclasses.replace(plans[0], start=Start(row, kept, ()))
    with torch.no_grad():
        classifier = Classifier(model, events.signature, augmentation=training.augmentation)
        stack = Stack(classifier, events, plans, "cpu")
        window = next(iter(stack.windows.training(0)))
        stack.begin(Place(0, 0, 0), window)
        assert stack.dropout is not None
        owners = [stack, stack.optimiser, stack.losses, stack.regularisers]
        owners += [own for own in (stack.average, stack.diagnostics) if own is not None]
        if stack.heads is not None and stack.heads.regression is not None:
            owners += [stack.heads.regression, stack.heads.decorrelation]
            stack.heads.regression.levels = tuple(levels.to("meta") for levels in stack.heads.regression.levels)
        others = [stack.classifier, stack.classifier.layout, stack.classifier.front, stack.dropout]
        others += [] if stack.classifier.augmenter is None else [stack.classifier.augmenter]
        for owner in (*owners, *others):
            moved(owner)
        stack.dropout.banks = {width: bank.to("meta") for width, bank in stack.dropout.banks.items()}
        stack.statistics = {name: table.to("meta") for name, table in stack.statistics.items()}
        table = Table(*(column.to("meta") for column in vars(window.table).values()))
        before = [held(owner) for owner in owners]
        with Inputs() as inputs:
            _take_step(stack, table)
    assert inputs.devices == {"meta"}
    for owner, values in zip(owners, before, strict=True):
        assert all(value is values[name] for name, value in held(owner).items())
