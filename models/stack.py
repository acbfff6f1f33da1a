"""The state of networks that train together: what `models.training` reads and changes, member by member."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models import hashing, sampling
from models.absent import stand_in
from models.checkpoint import Checkpoint, Place
from models.diagnostics import Diagnostics
from models.dropout import Dropout
from models.events import Counts, Mask, TrainingEvents, Window, Windows
from models.fitting import fit_transforms
from models.heads import Heads
from models.losses import Losses, class_factors
from models.members import History, MemberPlan, Start, TrainedMember, TrainingDiverged
from models.networks import Classifier
from models.optimisation import AVERAGES, OPTIMISERS
from models.regularisation import Regularisers
from models.schedules import factors, plateaus, warmed
from models.settings import Loss, TrainingSettings
from models.transforms import Transform, stack_transforms
from models.weighting import has_own_weights, own_weights

ROWS = 64
"""Batches are padded to a multiple of this many rows.

Vectorised kernels treat the last few numbers of a tensor apart, and round them differently; with whole vectors per
member no member is the last one, and its numbers do not depend on its place in the stack.
"""
VALIDATION_ROWS = {"cpu": 1024, "cuda": 16384}
"""Events of a network that are validated at once, by class of device."""
_INITIAL, _ORDER, _DROPOUT = 1, 2, 3  # streams of random numbers
_ALONE: dict[str, Any] = dict.fromkeys(("pattern_objects", "pattern_events", "pattern_class_events"))
"""Constants of the network that change no shape."""


@dataclass(frozen=True)
class Kind:
    """What members must share to train as one stack: all that shapes and meaning of tensors follow from."""

    network: object
    loss: Loss
    batch_size: int
    precision: str
    sampling: str
    window: int | None
    optimiser: str
    averaging: str
    augmentation: object
    decorrelated: tuple[str, ...]
    snapshots: int
    diagnostics: bool
    shares: tuple[tuple[str, float], ...]
    draws: bool
    weighs: bool

    @classmethod
    def of(cls, plan: MemberPlan) -> Kind:
        """The kind of a network; each of a stack has its own start, rates, constants, noise, lengths and seed."""
        own = plan.settings
        size = _whole(int(plan.training.sum())) if own.batch_size == "all" else own.batch_size
        alone = _ALONE | ({"missing_value": 0.0} if plan.model.missing == "default" else {})
        return cls(
            network=replace(plan.model, dropout=0.0, initialisation="auto", initial_constant=None, **alone),
            loss=own.loss,
            batch_size=size,
            precision=own.precision,
            sampling=own.sampling,
            window=own.window,
            optimiser=own.optimiser,
            averaging=own.averaging,
            augmentation=own.augmentation,
            decorrelated=own.decorrelated,
            snapshots=own.snapshots,
            diagnostics=own.diagnostics,
            shares=tuple(sorted((own.shares or {}).items())),
            draws=_draws(own),
            weighs=has_own_weights(plan),
        )


def _draws(settings: TrainingSettings) -> bool:
    """Whether each epoch draws a part of the training events anew."""
    return settings.down_sampling is not None and settings.redraw is not False


def _whole(count: int) -> int:
    """The size of a batch that holds all events of a network, with up to an eighth of padding.

    It follows from the network's own events, and those of similar numbers share it, so that folds train together.
    """
    grain = 1 << max(count.bit_length() - 4, 0)
    return max(-(-count // grain) * grain, 1)


@dataclass
class State:
    """What the host keeps of one member."""

    plan: MemberPlan
    order: int  # its place among all plans
    transform: Transform
    events: tuple[int, int]  # to train and to stop on, of non-zero weight
    factors: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]  # of the classes, training and validation
    past: Counts  # steps before each of its epochs, and of all, [epochs + 1]
    absent: npt.NDArray[np.float32] | None = None  # what stands for absent values if that is not learned, [W]
    training_loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    learning_rate: list[float] = field(default_factory=list)
    diagnostics: dict[str, dict[str, list[float]]] = field(default_factory=dict)  # by quantity and layer

    @property
    def best(self) -> int:
        """The epoch of the smallest validation loss (of equals, the first), counted from 0."""
        return int(np.argmin(self.validation_loss))

    @property
    def gap(self) -> float:
        """The last validation loss less the last training loss, in nats."""
        return self.validation_loss[-1] - self.training_loss[-1]

    @property
    def generalisation(self) -> float:
        """Prechelt's generalisation loss, in per cent: 100 (last / best - 1) of the validation losses.

        Early Stopping - But When? (Lecture Notes in Computer Science 1524, 1998), equation of GL in section 2.1. It is
        made for losses above zero; weights below zero may lead elsewhere, where nothing is lost.
        """
        best = self.validation_loss[self.best]
        return 100 * (self.validation_loss[-1] / best - 1) if best > 0 else 0.0

    def rates(self, steps: Counts) -> npt.NDArray[np.float64]:
        """Learning rates at some of its steps, counted from the first of its training."""
        settings = self.plan.settings
        courses = factors(settings, steps.astype(np.float64), self.past.astype(np.float64), self.validation_loss)
        return settings.learning_rate * courses

    def ends(self, epoch: int) -> bool:
        """Whether its training ends with this epoch."""
        settings = self.plan.settings
        return (
            epoch + 1 == settings.epochs
            or (settings.patience is not None and epoch - max(self.best, self.averages_from) >= settings.patience)
            or self.settled
            or (settings.stop_gap is not None and self.gap > settings.stop_gap)
            or (settings.stop_generalisation is not None and self.generalisation > settings.stop_generalisation)
        )

    @property
    def settled(self) -> bool:
        """Whether the learning rate would have to fall more often than it may."""
        settings = self.plan.settings
        if settings.schedule != "plateau":
            return False
        losses = warmed(settings, self.validation_loss)
        most: int = settings.course["schedule_reductions"]
        return plateaus(losses, settings.course) > most

    @property
    def averages_from(self) -> int:
        """The first epoch whose end enters an average over epochs, counted from 0."""
        settings = self.plan.settings
        return int(settings.average.get("averaging_start", 0.0) * settings.epochs + 1e-9)


class Stack:
    """The members that are still training.

    Attributes:
        classifier: The network.
        dtype: Type in which it computes; ``None`` for that of the parameters.
        windows: The events.
        states: What the host keeps, one for each member.
        parameters: ``[M, P]``.
        statistics: Tables of the transforms, ``[M, 1, f]`` or ``[M, Q, f]`` each.
        optimiser: Acts on those that are trained, the first T of each row.
        shares: Events of each class in a balanced batch.
        portions: The share of each class's events that an epoch draws, ``[M, C]``; ``None`` for all.
        average: Of the parameters, validated and kept in their place; ``None`` without one.
        largest: Largest norms of gradients, float64 ``[M, 1]``; ``None`` if no member has any.
        kept: 0 for weights that have been pruned, else 1, float32 ``[M, D]``; ``None`` if no member has lost any.
        dropout: Drops units; ``None`` if no member drops any.
        losses: The loss of the classes.
        heads: What is learned beside hard labels; ``None`` for nothing.
        regularisers: Penalties, noise and the largest norm of weights.
        divisors: Events of a full batch, float64 ``[M]``.
        batches: Rows of the window's table, ``[S, M, B]``.
        rates: Learning rates, float64 ``[S, M, 1]``.
        active: 1 where a member takes a step, else 0, float64 ``[S, M, 1]``.
        factors: Of the classes in the window, float64 ``[M, C]``.
        step: The next step in the window, int64 ``[1]``.
        time: Its number among all steps, from which its random numbers follow, int64 ``[1]``.
        keys: Keys of dropout, int64 ``[M]``.
        running: Training losses of the epoch so far, summed over events, float64 ``[M]``.
        snapshots: Parameters of earlier epochs, the last ones at the end, ``[S, M, P]``; ``None`` without any.
        diagnostics: Of layers; ``None`` if they are not recorded.
    """

    def __init__(
        self,
        classifier: Classifier,
        events: TrainingEvents,
        plans: Mapping[int, MemberPlan],
        device: str,
    ) -> None:
        """Begin with initial weights.

        Args:
            classifier: The network.
            events: The events.
            plans: The members by their place among all plans; of one kind.
            device: torch's name of the device.
        """
        one = next(iter(plans.values()))
        first, self.batch_size = one.settings, Kind.of(one).batch_size
        self.classifier, self.signature, self.device = classifier, events.signature, torch.device(device)
        self.sampling = first.sampling
        classes = len(events.signature.classes)
        if self.sampling == "balanced" and self.batch_size < classes:
            raise ValueError(
                f"batch_size is {self.batch_size}; expected at least {classes}, one event of each class in a balanced "
                "batch."
            )
        self.precision = precision_on(device, first.precision)
        self.dtype = torch.bfloat16 if self.precision == "bf16" else None
        self._choose(events.signature.classes, [plan.settings for plan in plans.values()])
        weights = None
        if has_own_weights(one):
            weights = np.array([own_weights(events, plan) for plan in plans.values()])
        used = [events.weights != 0] * len(plans) if weights is None else list(weights != 0)  # (N,) each
        training = [plan.training & use for plan, use in zip(plans.values(), used, strict=True)]
        validation = [plan.validation & use for plan, use in zip(plans.values(), used, strict=True)]
        self.validation_rows = VALIDATION_ROWS.get(self.device.type, VALIDATION_ROWS["cpu"])
        self.windows = Windows(
            events,
            training,
            validation,
            size=first.window,
            by_class=self.sampling == "balanced" or self.portions is not None,
            rows=self.validation_rows,
            device=device,
            weights=weights,
            shares=self.portions,
        )
        each = [events.weights] * len(plans) if weights is None else list(weights)  # (N,) each
        self.states = self._states(events, plans, each, training, validation)
        uses, balance = list(zip(training, validation, strict=True)), [state.factors for state in self.states]
        self.heads = Heads.of(events, list(plans.values()), each, uses, balance, device=self.device)
        self._lay_out(plans, events)

    def _choose(self, classes: Sequence[str], settings: Sequence[TrainingSettings]) -> None:
        """Find how many events of each class make a batch, and which share of them an epoch."""
        for own in settings:
            own.check_classes(classes)
        self.shares: tuple[int, ...] = ()
        self.portions: npt.NDArray[np.float64] | None = None
        if self.sampling == "balanced":
            wanted = settings[0].shares or dict.fromkeys(classes, 1 / len(classes))
            self.shares = tuple(sampling.shares(self.batch_size, [wanted[name] for name in classes]))
        if _draws(settings[0]):
            parts = [own.down_sampling or {} for own in settings]
            self.portions = np.array([[part.get(name, 1.0) for name in classes] for part in parts])

    def _states(
        self,
        events: TrainingEvents,
        plans: Mapping[int, MemberPlan],
        weights: Sequence[npt.NDArray[np.float64]],
        training: Sequence[Mask],
        validation: Sequence[Mask],
    ) -> list[State]:
        """Fit what depends on each member's events."""
        classes = len(events.signature.classes)
        fits = fit_transforms(self.classifier.layout, events, training, self.classifier.front.shared)
        epochs = range(max(plan.settings.epochs for plan in plans.values()))
        steps = [self.windows.steps(epoch, self.batch_size).sum(axis=0) for epoch in epochs]  # (M,) each
        past = np.cumsum([np.zeros_like(steps[0]), *steps], axis=0)  # (E + 1, M)
        states = []
        for position, (order, plan) in enumerate(plans.items()):
            balance = []
            for name, whole in zip(("training", "validation"), plan.balanced, strict=True):
                use = whole & (weights[position] != 0)  # (N,)
                labels = events.labels[use]
                try:
                    balance.append(class_factors(weights[position][use], labels, classes, plan.settings.balance))
                except ValueError as error:
                    raise ValueError(f"Fold {plan.fold}, member {plan.index}, {name} events: {error}") from None
            sizes = (int(training[position].sum()), int(validation[position].sum()))
            own = past[: plan.settings.epochs + 1, position]  # (epochs + 1,)
            fit = fits[position] if plan.features is None else fits[position].only(plan.features)
            absent = None
            if plan.model.missing == "default":
                absent = stand_in(self.classifier.layout, plan.model, events, training[position], fit)
            states.append(State(plan, order, fit, sizes, (balance[0], balance[1]), own, absent))
        return states

    def _lay_out(self, plans: Mapping[int, MemberPlan], events: TrainingEvents) -> None:
        """Put what belongs to each member on the device."""

        def column(numbers: Sequence[float]) -> Tensor:
            return torch.tensor(numbers, dtype=torch.float64, device=self.device)  # (M,)

        settings = [plan.settings for plan in plans.values()]
        streams = [hashing.key(*plan.stream) for plan in plans.values()]
        begun = [Classifier(plan.model, self.signature) for plan in plans.values()]  # each in its own way
        initial = [one.initial([hashing.key(s, _INITIAL)]) for one, s in zip(begun, streams, strict=True)]
        begins = [plan.start for plan in plans.values()]
        initial = [
            row if start is None else torch.from_numpy(start.parameters).unsqueeze(0)
            for row, start in zip(initial, begins, strict=True)
        ]  # (1, P) each
        self.parameters = torch.cat(initial).to(self.device)  # (M, P)
        if self.heads is not None:
            self.heads.keep_units(self.classifier.views(self.parameters), events)
        self.kept = self._masks(begins)
        absent = [state.absent for state in self.states if state.absent is not None]
        if absent:
            fixed = torch.from_numpy(np.stack(absent)).unsqueeze(1)  # (M, 1, W)
            self.classifier.views(self.parameters)["absent"].copy_(fixed)
        self.best = self.parameters.clone()  # (M, P)
        constants = [own.constants for own in settings]
        columns = {name: column([own[name] for own in constants]).unsqueeze(1) for name in constants[0]}  # (M, 1) each
        trained = self.parameters[:, : self.classifier.trained]  # (M, T)
        self.optimiser = OPTIMISERS[settings[0].optimiser](trained, self.classifier.decaying, columns)
        self.average = None
        if settings[0].averaging != "none":
            decays = [own.average.get("averaging_decay") for own in settings]
            starts = [float(state.averages_from) for state in self.states]
            rules = column([start if decay is None else decay for decay, start in zip(decays, starts, strict=True)])
            self.average = AVERAGES[settings[0].averaging](self.parameters, rules.unsqueeze(1))
        count = settings[0].snapshots
        self.snapshots = self.parameters.repeat(count, 1, 1) if count else None  # (S, M, P)
        self.diagnostics = Diagnostics(self.classifier, trained) if settings[0].diagnostics else None
        self.order_keys = torch.tensor([hashing.key(s, _ORDER) for s in streams], device=self.device)  # (M,)
        self.keys = torch.tensor([hashing.key(s, _DROPOUT) for s in streams], device=self.device)  # (M,)
        tables = stack_transforms(state.transform for state in self.states)  # (M, 1 or Q, f) each
        self.statistics = {name: table.to(self.device) for name, table in tables.items()}
        factors = np.array([state.factors for state in self.states])  # (M, 2, C)
        self.training_factors = torch.from_numpy(factors[:, 0]).to(self.device)  # (M, C)
        self.validation_factors = torch.from_numpy(factors[:, 1]).to(self.device)  # (M, C)
        self.losses = Losses(settings[0].loss, settings, self.device)
        self.regularisers = Regularisers(settings, self.device)
        clips = [math.inf if own.clip_norm is None else own.clip_norm for own in settings]
        self.largest = None if min(clips) == math.inf else column(clips).unsqueeze(1)  # (M, 1)
        drops = [plan.model.dropout for plan in plans.values()]
        kind = self.parameters.dtype if self.dtype is None else self.dtype
        widths = self.classifier.settings.hidden
        self.dropout = Dropout(drops, widths, kind, str(self.device)) if any(drops) else None
        self.divisors = column(self._sizes())
        self.running = torch.zeros_like(self.divisors)  # (M,)
        self.step = torch.zeros(1, dtype=torch.int64, device=self.device)
        self.time = torch.zeros_like(self.step)
        self._make_room()

    def _sizes(self) -> list[float]:
        """What sums over batches are divided by; a smaller last one by the size of a full one: events count alike."""
        if self.sampling == "balanced":
            return [self.batch_size] * len(self.states)
        # Drawn events count for those that are left out, so that a batch of them stands for more than its size.
        whole = [state.events[0] for state in self.states]
        drawn = self.windows.drawn.tolist()
        return [min(self.batch_size, own) * count / own for own, count in zip(drawn, whole, strict=True)]

    def _masks(self, begins: Sequence[Start | None]) -> Tensor | None:
        """What `kept` is with these starts."""
        if not any(start is not None and start.kept is not None for start in begins):
            return None
        whole = np.ones(self.classifier.decaying, dtype=np.float32)  # (D,)
        masks = [whole if start is None or start.kept is None else start.kept for start in begins]
        return torch.from_numpy(np.stack(masks)).to(self.device)  # (M, D)

    def _make_room(self) -> None:
        """Allocate what a window fills, for the longest one: a recorded step needs its tensors to stay in place."""
        epochs = range(max(state.plan.settings.epochs for state in self.states))
        longest = max(int(self.windows.steps(epoch, self.batch_size).max()) for epoch in epochs)
        padded = -(-self.batch_size // ROWS) * ROWS
        members = len(self.states)
        self.batches = torch.zeros(longest, members, padded, dtype=torch.int64, device=self.device)  # (S, M, B)
        self.rates = torch.zeros(longest, members, 1, dtype=torch.float64, device=self.device)  # (S, M, 1)
        self.active = torch.zeros_like(self.rates)  # (S, M, 1)
        self.factors = self.training_factors.clone()  # (M, C)

    def restore(self, saved: Sequence[Checkpoint | None]) -> dict[int, TrainedMember]:
        """Go on where members stood after one step; those that had ended leave the stack with their result."""
        for position, checkpoint in enumerate(saved):
            if checkpoint is None:
                continue
            state = self.states[position]
            state.training_loss = checkpoint.training_loss.tolist()
            state.validation_loss = checkpoint.validation_loss.tolist()
            state.learning_rate = checkpoint.learning_rate.tolist()
            state.diagnostics = {
                quantity: {layer: column.tolist() for layer, column in own.items()}
                for quantity, own in checkpoint.diagnostics.items()
            }
            self.running[position] = checkpoint.running
            for name, rows in self._rows().items():
                rows[position] = torch.from_numpy(checkpoint.rows[name].copy())  # (P,), (T,) or (1,)
        ended = [position for position, checkpoint in enumerate(saved) if checkpoint is not None and checkpoint.ended]
        results = {self.states[position].order: self.result(position) for position in ended}
        self.leave(ended)
        return results

    def checkpoint(self, position: int, place: Place, ended: bool) -> Checkpoint:
        """Where a member stands."""
        state = self.states[position]
        rows = {name: rows[position].cpu().numpy().copy() for name, rows in self._rows().items()}
        start = state.plan.start
        if start is not None and start.kept is not None:
            rows["kept"] = start.kept
        return Checkpoint(
            place=place,
            running=float(self.running[position]),
            ended=ended,
            rows=rows,
            training_loss=np.array(state.training_loss),
            validation_loss=np.array(state.validation_loss),
            learning_rate=np.array(state.learning_rate),
            diagnostics={
                quantity: {layer: np.array(column) for layer, column in own.items()}
                for quantity, own in state.diagnostics.items()
            },
            earlier=() if start is None else start.earlier,
        )

    def _rows(self) -> dict[str, Tensor]:
        """Whatever steps change of the members, by name: float32 ``[M, P]``, ``[M, T]`` or ``[M, 1]``."""
        rows = {"parameters": self.parameters, "best": self.best}
        rows |= {f"optimiser.{name}": own for name, own in self.optimiser.state.items()}
        if self.average is not None:
            rows |= {f"averaging.{name}": own for name, own in self.average.state.items()}
        if self.snapshots is not None:
            rows |= {f"snapshots.{number}": own for number, own in enumerate(self.snapshots)}
        if self.diagnostics is not None:
            rows["diagnostics.squares"] = self.diagnostics.squares
        return rows

    def evaluated(self) -> Tensor:
        """The parameters that are validated and kept, ``[M, P]``: their average where there is one."""
        return self.parameters if self.average is None else self.average.evaluated(self.parameters)

    def begin(self, place: Place, window: Window) -> int:
        """Shuffle each member's events of a window into batches; returns the number of steps.

        Args:
            place: The step to begin with.
            window: The events.
        """
        epoch, number, step = place
        keys = hashing.splitmix64(self.order_keys + (epoch + (number << 32)))  # (M,)
        how = (self.sampling, self.batch_size)
        chosen: dict[str, Any] = {"shares": self.shares, "kept": self.portions}
        drawn = sampling.batches(window, *how, keys, self.training_factors, **chosen)
        steps, _, size = drawn.shape
        filler = drawn[:1, :, :1].minimum(~drawn[:1, :, :1])  # (1, M, 1)
        self.batches[:steps, :, :size] = drawn
        self.batches[:steps, :, size:] = filler
        self._schedule(epoch, number)
        self.factors.copy_(sampling.loss_factors(window, *how, self.training_factors, **chosen))
        self.step.fill_(step)
        self.time.fill_((number << 50) + (epoch << 32) + step)
        return steps

    def _schedule(self, epoch: int, number: int) -> None:
        """Write the learning rates of a window, and who takes which step."""
        own = self.windows.steps(epoch, self.batch_size)  # (W, M)
        past = np.array([state.past[epoch] for state in self.states]) + own[:number].sum(axis=0)  # (M,)
        steps = np.arange(own[number].max())[:, np.newaxis]  # (S, 1)
        rates = np.empty((len(steps), len(self.states)))  # (S, M)
        for position, state in enumerate(self.states):
            rates[:, position] = state.rates(past[position] + steps[:, 0])  # (S,)
        active = (steps < own[number]).astype(np.float64)  # (S, M)
        self.rates[: len(steps)] = torch.from_numpy(rates).unsqueeze(-1)
        self.active[: len(steps)] = torch.from_numpy(active).unsqueeze(-1)

    def record(self, epoch: int, validation_sums: Tensor) -> None:
        """Note the losses of an epoch, and keep the parameters of members that have never been better."""
        improved = []
        sums = (self.running.tolist(), validation_sums.tolist())
        for state, on_training, on_validation in zip(self.states, *sums, strict=True):
            if not (math.isfinite(on_training) and math.isfinite(on_validation)):
                raise TrainingDiverged(state.plan.fold, state.plan.index, epoch + 1)
            # Before the loss, from which the next rates may follow.
            state.learning_rate.append(float(state.rates(state.past[epoch + 1 : epoch + 2] - 1)[0]))
            state.training_loss.append(on_training / state.events[0])
            state.validation_loss.append(on_validation / state.events[1])
            improved.append(state.best == epoch)
        better = torch.tensor(improved, device=self.device).unsqueeze(1)  # (M, 1)
        self.best = torch.where(better, self.evaluated(), self.best)  # (M, P)
        self._keep_snapshots(epoch)
        self._diagnose(epoch)
        self.running.zero_()

    def _keep_snapshots(self, epoch: int) -> None:
        """Keep the parameters of members at whose end of an epoch a snapshot is due, in place of their oldest one."""
        if self.snapshots is None:
            return
        due = [epoch + 1 in state.plan.settings.snapshot_epochs for state in self.states]
        moved = torch.cat([self.snapshots[1:], self.evaluated().unsqueeze(0)])  # (S, M, P)
        self.snapshots = torch.where(torch.tensor(due, device=self.device).unsqueeze(1), moved, self.snapshots)

    def _diagnose(self, epoch: int) -> None:
        """Note what the layers of each member have shown in an epoch."""
        if self.diagnostics is None:
            return
        steps = torch.tensor([float(s.past[epoch + 1] - s.past[epoch]) for s in self.states]).to(self.divisors)
        events = torch.tensor([float(s.events[1]) for s in self.states]).to(self.divisors)
        for quantity, layers in self.diagnostics.conclude(steps, events).items():
            for layer, numbers in layers.items():
                for state, number in zip(self.states, numbers, strict=True):
                    state.diagnostics.setdefault(quantity, {}).setdefault(layer, []).append(number)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Let the diagnostics see what the units of the networks see."""
        network = self.classifier.network
        network.watch = None if self.diagnostics is None else self.diagnostics.watch
        try:
            yield
        finally:
            network.watch = None

    def ended(self, epoch: int) -> list[int]:
        """Return the positions of the members whose training ends with this epoch."""
        return [position for position, state in enumerate(self.states) if state.ends(epoch)]

    def leave(self, ended: list[int]) -> None:
        """Take members out of the stack; those that stay keep every bit."""
        stay = [position for position in range(len(self.states)) if position not in ended]
        if not ended or not stay:
            self.states = [self.states[position] for position in stay]
            return
        self.states = [self.states[position] for position in stay]
        keep = torch.tensor(stay, dtype=torch.int64, device=self.device)  # (M',)
        for name in (
            "parameters",
            "best",
            "order_keys",
            "keys",
            "training_factors",
            "validation_factors",
            "divisors",
            "running",
            "largest",
            "kept",
        ):
            tensor = getattr(self, name)  # (M, ...)
            setattr(self, name, None if tensor is None else tensor[keep])
        self.statistics = {name: table[keep] for name, table in self.statistics.items()}
        if self.snapshots is not None:
            self.snapshots = self.snapshots[:, keep]
        if self.diagnostics is not None:
            self.diagnostics.select(keep)
        if self.dropout is not None:
            self.dropout.select(keep)
        self.optimiser.select(keep)
        if self.average is not None:
            self.average.select(keep)
        self.losses.select(keep)
        if self.heads is not None:
            self.heads.select(keep)
        self.regularisers.select(keep)
        self.windows.select(keep)
        self.portions = None if self.portions is None else self.portions[stay]
        self._make_room()

    def result(self, position: int) -> TrainedMember:
        """Return a member with the parameters of its best epoch."""
        state = self.states[position]
        return TrainedMember(
            fold=state.plan.fold,
            index=state.plan.index,
            seed=state.plan.seed,
            signature=self.signature,
            model=state.plan.model,
            training=state.plan.settings,
            transform=state.transform,
            parameters=self._named(self.best[position]),
            precision=self.precision,
            history=History(
                tuple(state.training_loss),
                tuple(state.validation_loss),
                tuple(state.learning_rate),
                {name: {layer: tuple(own) for layer, own in each.items()} for name, each in state.diagnostics.items()},
            ),
            best_epoch=state.best + 1,
            events=state.events,
            snapshots=self._snapshots_of(position),
            ratios=state.plan.ratios,
        )

    def _snapshots_of(self, position: int) -> dict[int, dict[str, npt.NDArray[np.float32]]]:
        """The snapshots of a member by the epoch, without one of its best epoch."""
        if self.snapshots is None:
            return {}
        state = self.states[position]
        taken = [epoch for epoch in state.plan.settings.snapshot_epochs if epoch <= len(state.validation_loss)]
        kept = taken[-len(self.snapshots) :]
        rows = self.snapshots[len(self.snapshots) - len(kept) :, position]  # (S', P)
        return {e: self._named(row) for e, row in zip(kept, rows, strict=True) if e != state.best + 1}

    def _named(self, row: Tensor) -> dict[str, npt.NDArray[np.float32]]:
        """Parameters ``[P]`` by name."""
        views = self.classifier.views(row.unsqueeze(0))  # (1, ...) each
        return {name: view[0].cpu().numpy().copy() for name, view in views.items()}

    def line(self, epoch: int, members: int, ended: int) -> str:
        """Say in one line how far the training is."""
        mean = float(np.mean([state.validation_loss[-1] for state in self.states]))
        epochs = max(state.plan.settings.epochs for state in self.states)
        return (
            f"epoch {epoch + 1}/{epochs}: validation loss {mean:.4f} (mean of {len(self.states)}), "
            f"{ended} of {members} networks done"
        )


def precision_on(device: str, precision: str) -> str:
    """The precision that a setting means on a device (contract: it follows from the class of the device alone)."""
    if precision == "auto":
        return "bf16" if torch.device(device).type == "cuda" else "fp32"
    return precision
