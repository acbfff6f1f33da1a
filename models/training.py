"""Training: all folds and members as one stack, in one loop.

`train` reads from top to bottom. In the shape comments M is the number of members still training, B the events of a
batch, F the features, C the classes, P the parameters of one member and N the events. Members share the events and
the arithmetic, nothing else: each has its own training and validation events, class weights, standardisation, initial
weights, batch order, dropout, learning rate and end. What a member becomes does not depend on who else is in the
stack, to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from models import hashing
from models.checkpoint import Checkpoint, Checkpoints
from models.losses import class_factors, cross_entropy
from models.networks import Classifier, Dropout, stack_statistics
from models.optimisation import SCHEDULES, AdamW, clip
from models.preprocessing import Signature, Standardisation, fit_standardisation
from models.settings import ModelSettings, TrainingSettings

ROWS = 64
"""Batches are padded to a multiple of this many rows.

Vectorised kernels treat the last few numbers of a tensor apart, and round them differently; with whole vectors per
member no member is the last one, and its numbers do not depend on its place in the stack.
"""
VALIDATION_ROWS = 1024
_INITIAL, _ORDER, _DROPOUT = 1, 2, 3  # streams of random numbers


class TrainingDiverged(RuntimeError):  # noqa: N818 - the name says what happened
    """A network's loss is no longer finite.

    Attributes:
        fold: The fold that the network leaves out.
        member: Its index within the fold.
        epoch: The epoch, counted from 1.
    """

    def __init__(self, fold: int, member: int, epoch: int) -> None:
        super().__init__(
            f"Training of fold {fold}, member {member} diverged in epoch {epoch}: the loss is not finite. "
            "Lower training.learning_rate, set training.clip_norm, or look for extreme weights and feature values."
        )
        self.fold, self.member, self.epoch = fold, member, epoch

    def __reduce__(self) -> tuple[type[TrainingDiverged], tuple[int, int, int]]:
        """Pickle by the three numbers, so that the error travels between processes."""
        return type(self), (self.fold, self.member, self.epoch)


@dataclass(frozen=True)
class TrainingEvents:
    """The events that all members choose from.

    Attributes:
        signature: Names of features, objects and classes.
        values: float32 ``[N, F]``, in the features' units; absent entries may hold anything.
        present: bool ``[N, F]``.
        labels: int64 ``[N]``: positions in ``signature.classes``.
        weights: float64 ``[N]``: physics weights, signed.
        identity: uint64 ``[N]``: a hash of each event's identity, from which the batch order follows.
    """

    signature: Signature
    values: npt.NDArray[np.float32]
    present: npt.NDArray[np.bool_]
    labels: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float64]
    identity: npt.NDArray[np.uint64]


@dataclass(frozen=True)
class MemberPlan:
    """One network to train.

    Attributes:
        fold: The fold that it leaves out.
        index: Its number within the fold.
        training: Rows of the events that it trains on, int64.
        validation: Rows of the events that it stops on, int64.
    """

    fold: int
    index: int
    training: npt.NDArray[np.int64]
    validation: npt.NDArray[np.int64]


@dataclass(frozen=True)
class History:
    """One number per epoch.

    Attributes:
        training_loss: Class-balanced cross-entropy in nats, dropout on, while the parameters move.
        validation_loss: Class-balanced cross-entropy in nats at the end of the epoch.
        learning_rate: At the end of the epoch.
    """

    training_loss: tuple[float, ...]
    validation_loss: tuple[float, ...]
    learning_rate: tuple[float, ...]


@dataclass(frozen=True)
class TrainedMember:
    """One trained network and what it needs to be understood.

    Attributes:
        fold: The fold that it left out.
        index: Its number within the fold.
        seed: The seed of the training.
        signature: Features, objects and classes.
        model: What the network is.
        training: How it was trained.
        standardisation: Fitted on its training events.
        parameters: float32 tensors by name, those of the best epoch.
        history: Losses and learning rate per epoch.
        precision: ``fp32`` or ``bf16``: what ``training.precision`` meant on the device.
        best_epoch: The epoch whose parameters were kept, counted from 1.
        events: Number of training and of validation events of non-zero weight.
    """

    fold: int
    index: int
    seed: int
    signature: Signature
    model: ModelSettings
    training: TrainingSettings
    standardisation: Standardisation
    parameters: dict[str, npt.NDArray[np.float32]]
    history: History
    precision: str
    best_epoch: int
    events: tuple[int, int]


def train(
    events: TrainingEvents,
    members: Sequence[MemberPlan],
    model: ModelSettings,
    training: TrainingSettings,
    seed: int,
    *,
    progress: Callable[[str], None] | None = None,
    checkpoints: Checkpoints | None = None,
    device: str = "cpu",
) -> list[TrainedMember]:
    """Train all members as one stack; those that stand at different epochs go on in stacks of their own.

    Args:
        events: The events; only those that a member names have any influence on it.
        members: The networks to train.
        model: What a network is.
        training: How it is trained; ``training.members`` is the caller's business, who writes the plans.
        seed: Seed of initial weights, batch order and dropout.
        progress: Is called with one line of text after every epoch.
        checkpoints: Where to go on from, and where to keep what has been reached; they change no bit of the result.
        device: torch's name of the device.

    Returns:
        The trained networks, in the order of the plans.

    Raises:
        ValueError: If an input has a wrong shape or a value that is not finite, or if a member has a class whose
            weights sum to zero or below among its training or its validation events.
        TrainingDiverged: If a loss becomes infinite or NaN.
    """
    _check(events, members)
    saved = {order: checkpoints.load(order) if checkpoints is not None else None for order in range(len(members))}
    starts: dict[int, list[int]] = {}
    for order, checkpoint in saved.items():
        starts.setdefault(0 if checkpoint is None else checkpoint.epochs, []).append(order)
    trained: dict[int, TrainedMember] = {}
    with single_threaded(), torch.no_grad():
        classifier, table = Classifier(model, events.signature), _Table.load(events, device)
        for start, orders in sorted(starts.items()):
            plans = {order: members[order] for order in orders}
            stack = _Stack(classifier, events, plans, training, seed=seed, device=device)
            trained |= stack.restore([saved[order] for order in orders])
            if stack.states:
                trained |= _train_together(stack, table, start, progress, checkpoints)
    return [trained[order] for order in range(len(members))]


def _train_together(
    stack: _Stack,
    table: _Table,
    start: int,
    progress: Callable[[str], None] | None,
    checkpoints: Checkpoints | None,
) -> dict[int, TrainedMember]:
    """The loop: train a stack from one epoch on until the last of its members has ended."""
    classifier, training = stack.classifier, stack.training
    trained: dict[int, TrainedMember] = {}
    members = len(stack.states)
    for epoch in range(start, training.epochs):
        batches = stack.batches(table, epoch)  # (S, M, B)
        rates, active = stack.schedule(epoch)  # (S, M, 1), (S, M, 1)
        total = torch.zeros_like(stack.divisors)  # (M,)
        for step, rows in enumerate(batches):
            values, present, labels = table.values[rows], table.present[rows], table.labels[rows]
            weights = table.balanced(rows, stack.training_factors)  # (M, B)
            keys = hashing.splitmix64(stack.keys + (epoch * 2**32 + step))  # (M,)
            dropout = Dropout(keys, classifier.settings.dropout)
            views = classifier.views(stack.parameters)  # (M, ...) each
            for view in views.values():
                view.requires_grad_()
            with torch.enable_grad():
                logits = classifier.logits(
                    views, stack.statistics, values, present, dropout, dtype=stack.dtype
                )  # (M, B, C)
                sums = cross_entropy(logits, labels, weights)  # (M,)
                losses = sums / stack.divisors  # (M,)
                slopes = torch.autograd.grad(losses.sum(), list(views.values()))  # (M, ...) each
            gradients = torch.cat([slope.flatten(1) for slope in slopes], dim=1)  # (M, P)
            if training.clip_norm is not None:
                gradients = clip(gradients, training.clip_norm)  # (M, P)
            stack.optimiser.step(stack.parameters, gradients, rates[step], active[step])
            total += sums.detach()
        stack.record(epoch, total, stack.validate(table))
        ended = stack.ended(epoch)
        for position in ended:
            trained[stack.states[position].order] = stack.result(position)
        if progress is not None:
            progress(stack.line(epoch, members, len(trained)))
        if len(trained) == members:
            break
        if checkpoints is not None:
            chosen = range(len(stack.states)) if checkpoints.due() else ended
            for position in chosen:
                order = stack.states[position].order
                checkpoints.save(order, stack.checkpoint(position, epoch + 1, position in ended))
        stack.drop(ended)
    return trained


def precision_on(device: str, precision: str) -> str:
    """The precision that a setting means on a device (contract: it follows from the class of the device alone)."""
    if precision == "auto":
        return "bf16" if torch.device(device).type == "cuda" else "fp32"
    return precision


@contextmanager
def single_threaded() -> Iterator[None]:
    """Let torch compute with one thread: sums then have one order, and processes side by side do not fight."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class _Table:
    """The events on the device, and one more of weight zero, row N, which pads batches."""

    values: Tensor  # (N + 1, F), 0 where absent
    present: Tensor  # (N + 1, F)
    labels: Tensor  # (N + 1,)
    weights: Tensor  # (N + 1,) float64
    identity: Tensor  # (N + 1,) int64

    @classmethod
    def load(cls, events: TrainingEvents, device: str) -> _Table:
        """Copy the events to the device."""
        values = np.where(events.present, events.values, np.float32(0))
        columns = (values, events.present, events.labels, events.weights, events.identity.view(np.int64))
        return cls(*(torch.from_numpy(np.concatenate([c, np.zeros_like(c[:1])])).to(device) for c in columns))

    def balanced(self, rows: Tensor, factors: Tensor) -> Tensor:
        """Return physics weights times class factors: float32 ``[M, B]`` from rows ``[M, B]``, factors ``[M, C]``."""
        return (self.weights[rows] * torch.gather(factors, 1, self.labels[rows])).to(torch.float32)


@dataclass
class _State:
    """What the host keeps of one member."""

    plan: MemberPlan
    order: int  # its place among the plans
    standardisation: Standardisation
    training: npt.NDArray[np.int64]  # rows of non-zero weight, in the order of their identities
    validation: npt.NDArray[np.int64]  # likewise
    factors: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]  # of the classes, training and validation
    steps: int  # per epoch
    training_loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)

    @property
    def best(self) -> int:
        """The epoch of the smallest validation loss (of equals, the first), counted from 0."""
        return int(np.argmin(self.validation_loss))

    @classmethod
    def of(cls, events: TrainingEvents, plan: MemberPlan, order: int, batch_size: int) -> _State:
        """Choose a member's events and fit what depends on them."""
        classes = len(events.signature.classes)
        rows, factors = [], []
        for name, chosen in (("training", plan.training), ("validation", plan.validation)):
            used = chosen[events.weights[chosen] != 0]
            # Sums over events then do not depend on the order of the rows, that is, of the input files.
            used = used[np.argsort(events.identity[used], kind="stable")]
            try:
                factors.append(class_factors(events.weights[used], events.labels[used], classes))
            except ValueError as error:
                raise ValueError(f"Fold {plan.fold}, member {plan.index}, {name} events: {error}") from None
            rows.append(used)
        fit = fit_standardisation(
            *(column[rows[0]] for column in (events.values, events.present, events.weights, events.labels))
        )
        return cls(plan, order, fit, rows[0], rows[1], (factors[0], factors[1]), -(-len(rows[0]) // batch_size))


class _Stack:
    """The members that are still training."""

    def __init__(
        self,
        classifier: Classifier,
        events: TrainingEvents,
        members: Mapping[int, MemberPlan],
        training: TrainingSettings,
        *,
        seed: int,
        device: str,
    ) -> None:
        self.classifier, self.signature, self.training, self.seed = classifier, events.signature, training, seed
        self.precision = precision_on(device, training.precision)
        self.dtype = torch.bfloat16 if self.precision == "bf16" else None
        self.states = [_State.of(events, plan, order, training.batch_size) for order, plan in members.items()]
        streams = [hashing.key(seed, plan.fold, plan.index) for plan in members.values()]
        self.parameters = classifier.initial([hashing.key(s, _INITIAL) for s in streams]).to(device)  # (M, P)
        self.best = self.parameters.clone()  # (M, P)
        self.optimiser = AdamW(self.parameters, classifier.decays(), training.weight_decay)
        self.order_keys = torch.tensor([hashing.key(s, _ORDER) for s in streams], device=device)  # (M,)
        self.keys = torch.tensor([hashing.key(s, _DROPOUT) for s in streams], device=device)  # (M,)
        mean, scale = stack_statistics([state.standardisation for state in self.states])  # (M, 1, F) each
        self.statistics = (mean.to(device), scale.to(device))
        empty = len(events.labels)  # the row that pads
        self.training_rows = _padded([s.training for s in self.states], empty).to(device)  # (M, L)
        self.validation_rows = _padded([s.validation for s in self.states], empty).to(device)  # (M, L')
        factors = np.array([state.factors for state in self.states])  # (M, 2, C)
        self.training_factors = torch.from_numpy(factors[:, 0]).to(device)  # (M, C) float64
        self.validation_factors = torch.from_numpy(factors[:, 1]).to(device)  # (M, C) float64
        full = [min(training.batch_size, len(state.training)) for state in self.states]
        # A smaller last batch is divided by the size of a full one: each event counts the same.
        self.divisors = torch.tensor(full, dtype=torch.float64, device=device)  # (M,)

    def restore(self, saved: Sequence[Checkpoint | None]) -> dict[int, TrainedMember]:
        """Go on where members stood at the end of one epoch; those that had ended leave the stack with their result."""
        for position, checkpoint in enumerate(saved):
            if checkpoint is None:
                continue
            state = self.states[position]
            state.training_loss = checkpoint.training_loss.tolist()
            state.validation_loss = checkpoint.validation_loss.tolist()
            state.learning_rate = checkpoint.learning_rate.tolist()
            self.optimiser.counts[position] = checkpoint.steps
            for tensor, row in (
                (self.parameters, checkpoint.parameters),
                (self.best, checkpoint.best),
                (self.optimiser.first, checkpoint.first),
                (self.optimiser.second, checkpoint.second),
            ):
                tensor[position] = torch.from_numpy(row.copy())  # (P,)
        ended = [position for position, checkpoint in enumerate(saved) if checkpoint is not None and checkpoint.ended]
        results = {self.states[position].order: self.result(position) for position in ended}
        self.drop(ended)
        return results

    def checkpoint(self, position: int, epochs: int, ended: bool) -> Checkpoint:
        """Where a member stands."""
        state = self.states[position]
        rows = (self.parameters, self.best, self.optimiser.first, self.optimiser.second)
        parameters, best, first, second = (row[position].cpu().numpy().copy() for row in rows)  # (P,) each
        return Checkpoint(
            epochs=epochs,
            ended=ended,
            steps=float(self.optimiser.counts[position]),
            parameters=parameters,
            best=best,
            first=first,
            second=second,
            training_loss=np.array(state.training_loss),
            validation_loss=np.array(state.validation_loss),
            learning_rate=np.array(state.learning_rate),
        )

    def batches(self, table: _Table, epoch: int) -> Tensor:
        """Shuffle each member's training rows and cut them into batches, ``[S, M, B]``."""
        empty, size = len(table.labels) - 1, self.training.batch_size
        steps = max(state.steps for state in self.states)
        keys = hashing.splitmix64(self.order_keys + epoch).unsqueeze(1)  # (M, 1)
        hashes = hashing.splitmix64(table.identity[self.training_rows] ^ keys)  # (M, L)
        hashes[self.training_rows == empty] = torch.iinfo(torch.int64).max  # padding goes last
        rows = self.training_rows.gather(1, hashes.argsort(dim=1, stable=True))  # (M, L)
        rows = functional.pad(rows, (0, max(0, steps * size - rows.shape[1])), value=empty)[:, : steps * size]
        rows = rows.reshape(-1, steps, size)  # (M, S, batch size)
        rows = functional.pad(rows, (0, -size % ROWS), value=empty)  # (M, S, B)
        return rows.transpose(0, 1).contiguous()  # (S, M, B)

    def schedule(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Return learning rates and whether a member takes the step, float64 ``[S, M, 1]`` each."""
        own = np.array([state.steps for state in self.states])  # (M,)
        steps = np.arange(own.max())[:, np.newaxis]  # (S, 1)
        factors = SCHEDULES[self.training.schedule](epoch * own + steps, self.training.epochs * own)  # (S, M)
        for position, state in enumerate(self.states):
            state.learning_rate.append(self.training.learning_rate * float(factors[state.steps - 1, position]))
        device = self.parameters.device
        rates = torch.from_numpy(self.training.learning_rate * factors).unsqueeze(-1).to(device)  # (S, M, 1)
        active = torch.from_numpy((steps < own).astype(np.float64)).unsqueeze(-1).to(device)  # (S, M, 1)
        return rates, active

    def validate(self, table: _Table) -> Tensor:
        """Return the class-balanced validation loss of each member, float64 ``[M]``."""
        views = self.classifier.views(self.parameters)  # (M, ...) each
        total = torch.zeros_like(self.divisors)  # (M,)
        for rows in torch.split(self.validation_rows, VALIDATION_ROWS, dim=1):  # (M, B)
            values, present, labels = table.values[rows], table.present[rows], table.labels[rows]
            weights = table.balanced(rows, self.validation_factors)  # (M, B)
            logits = self.classifier.logits(views, self.statistics, values, present)  # (M, B, C)
            total += cross_entropy(logits, labels, weights)
        return total

    def record(self, epoch: int, training_sums: Tensor, validation_sums: Tensor) -> None:
        """Note the losses of an epoch, and keep the parameters of members that have never been better."""
        improved = []
        for state, on_training, on_validation in zip(
            self.states, training_sums.tolist(), validation_sums.tolist(), strict=True
        ):
            state.training_loss.append(on_training / len(state.training))
            state.validation_loss.append(on_validation / len(state.validation))
            if not (math.isfinite(on_training) and math.isfinite(on_validation)):
                raise TrainingDiverged(state.plan.fold, state.plan.index, epoch + 1)
            improved.append(state.best == epoch)
        better = torch.tensor(improved, device=self.best.device).unsqueeze(1)  # (M, 1)
        self.best = torch.where(better, self.parameters, self.best)  # (M, P)

    def ended(self, epoch: int) -> list[int]:
        """Return the positions of the members whose training ends with this epoch."""
        patience = self.training.patience
        if epoch + 1 == self.training.epochs:
            return list(range(len(self.states)))
        if patience is None:
            return []
        return [position for position, state in enumerate(self.states) if epoch - state.best >= patience]

    def drop(self, ended: list[int]) -> None:
        """Take members out of the stack; those that stay keep every bit."""
        if not ended:
            return
        stay = [position for position in range(len(self.states)) if position not in ended]
        self.states = [self.states[position] for position in stay]
        keep = torch.tensor(stay, dtype=torch.int64, device=self.parameters.device)  # (M',)
        self.parameters, self.best = self.parameters[keep], self.best[keep]
        self.order_keys, self.keys = self.order_keys[keep], self.keys[keep]
        self.statistics = (self.statistics[0][keep], self.statistics[1][keep])
        self.training_rows, self.validation_rows = self.training_rows[keep], self.validation_rows[keep]
        self.training_factors = self.training_factors[keep]
        self.validation_factors = self.validation_factors[keep]
        self.divisors = self.divisors[keep]
        self.optimiser.select(keep)

    def result(self, position: int) -> TrainedMember:
        """Return a member with the parameters of its best epoch."""
        state = self.states[position]
        views = self.classifier.views(self.best[position : position + 1])
        return TrainedMember(
            fold=state.plan.fold,
            index=state.plan.index,
            seed=self.seed,
            signature=self.signature,
            model=self.classifier.settings,
            training=self.training,
            standardisation=state.standardisation,
            parameters={name: view[0].cpu().numpy().copy() for name, view in views.items()},
            precision=self.precision,
            history=History(tuple(state.training_loss), tuple(state.validation_loss), tuple(state.learning_rate)),
            best_epoch=state.best + 1,
            events=(len(state.training), len(state.validation)),
        )

    def line(self, epoch: int, members: int, ended: int) -> str:
        """Say in one line how far the training is."""
        mean = float(np.mean([state.validation_loss[-1] for state in self.states]))
        return (
            f"epoch {epoch + 1}/{self.training.epochs}: validation loss {mean:.4f} (mean of {len(self.states)}), "
            f"{ended} of {members} networks done"
        )


def _padded(rows: Sequence[npt.NDArray[np.int64]], filler: int) -> Tensor:
    """Stack row numbers ``[n_m]`` into int64 ``[M, L]``, L a multiple of `VALIDATION_ROWS`."""
    length = -(-max(len(chosen) for chosen in rows) // VALIDATION_ROWS) * VALIDATION_ROWS
    stacked = np.full((len(rows), length), filler, dtype=np.int64)
    for position, chosen in enumerate(rows):
        stacked[position, : len(chosen)] = chosen
    return torch.from_numpy(stacked)


def _check(events: TrainingEvents, members: Sequence[MemberPlan]) -> None:
    """Refuse shapes that do not fit and numbers that are not finite."""
    count, features, classes = len(events.labels), len(events.signature.features), len(events.signature.classes)
    if not members:
        raise ValueError("There is no network to train; expected at least one member.")
    columns: dict[str, tuple[npt.NDArray[Any], tuple[int, ...], type]] = {
        "values": (events.values, (count, features), np.float32),
        "present": (events.present, (count, features), np.bool_),
        "labels": (events.labels, (count,), np.int64),
        "weights": (events.weights, (count,), np.float64),
        "identity": (events.identity, (count,), np.uint64),
    }
    for name, (column, shape, kind) in columns.items():
        if column.shape != shape or column.dtype != kind:
            raise ValueError(
                f"{name} has shape {column.shape} and type {column.dtype}; expected {shape} and {np.dtype(kind)}."
            )
    rows = np.unique(np.concatenate([r for plan in members for r in (plan.training, plan.validation)]))
    if not np.isfinite(events.weights[rows]).all():
        raise ValueError("An event weight is not finite.")
    if ((events.labels[rows] < 0) | (events.labels[rows] >= classes)).any():
        raise ValueError(f"A label is not one of the {classes} classes.")
    wrong = (events.present[rows] & ~np.isfinite(events.values[rows])).any(axis=0)
    if wrong.any():
        names = ", ".join(name for name, bad in zip(events.signature.features, wrong, strict=True) if bad)
        raise ValueError(f"A value that is present is not finite, in: {names}.")
