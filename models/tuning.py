"""Trials of a study: networks with settings that are on trial, trained together, the poor ones not to the end.

A trial is one set of model and training settings; its networks are those that the analysis would train with them, fold
by fold, to the last bit. What is compared is the class-balanced validation loss, each network's best so far, in the
mean over the folds: what early stopping sees. Who proposes the settings: `models.search`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from models.checkpoint import Checkpoint, Checkpoints
from models.events import TrainingEvents
from models.members import MemberPlan, TrainedMember, TrainingDiverged
from models.settings import ModelSettings, TrainingSettings, TuningSettings

Limits = tuple[tuple[int, float], ...]
"""Epochs, rising, and the largest loss with which a trial goes on after each."""
State = Literal["finished", "stopped", "diverged"]
MEDIAN_FROM = 0.25
"""Share of a trial's epochs before `median` looks at it: at first, losses say more of learning rates than of ends."""


@dataclass(frozen=True)
class Trial:
    """What is on trial.

    Attributes:
        model: What a network is.
        training: How it is trained.
        limits: When the trial is stopped.
    """

    model: ModelSettings
    training: TrainingSettings
    limits: Limits = ()


@dataclass(frozen=True)
class Fold:
    """The events of one of a trial's networks.

    Attributes:
        number: The fold that it leaves out.
        training: Which events it trains on, bool ``[N]``.
        validation: Which events it stops on, bool ``[N]``.
    """

    number: int
    training: npt.NDArray[np.bool_]
    validation: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Attributes:
        state: Whether it was trained to its end, stopped at one of its limits, or its loss became infinite.
        loss: Mean over the networks of their best validation loss, in nats; None if it diverged.
        folds: That of each network.
        curve: The mean after each epoch; networks that have ended keep theirs.
        networks: Those of a finished trial, fold by fold.
    """

    state: State
    loss: float | None
    folds: tuple[float, ...]
    curve: tuple[float, ...]
    networks: tuple[TrainedMember, ...] = ()

    def summary(self) -> dict[str, Any]:
        """All but the networks, JSON-ready."""
        return {"state": self.state, "loss": self.loss, "folds": list(self.folds), "curve": list(self.curve)}


def train_trials(
    events: TrainingEvents,
    trials: Sequence[Trial],
    folds: Sequence[Fold],
    seed: int,
    *,
    progress: Callable[[str], None] | None = None,
    checkpoints: Checkpoints | None = None,
    device: str = "cpu",
) -> list[Outcome]:
    """Train the networks of some trials, as one stack those that have a shape in common.

    Args:
        events: The events of the pool.
        trials: The trials.
        folds: The networks of each.
        seed: That of the analysis.
        progress: Is called with a line of text after every epoch.
        checkpoints: Where to go on from, network f of trial t at place t · folds + f.
        device: torch's name of the device.

    Returns:
        What came of each; it does not depend on which trials are trained together, to the last bit.
    """
    from models.training import train

    plans = [
        MemberPlan(fold.number, 0, fold.training, fold.validation, trial.model, trial.training, seed)
        for trial in trials
        for fold in folds
    ]
    try:
        networks = train(
            events,
            plans,
            progress=progress,
            checkpoints=checkpoints,
            stop=_Referee([trial.limits for trial in trials], len(folds)),
            device=device,
        )
    except TrainingDiverged:
        if len(trials) == 1:
            return [Outcome("diverged", None, (), ())]
        # Whose it was shows in halves, down to one; what the others become does not depend on it.
        found, half = [], len(trials) // 2
        for start, stop in ((0, half), (half, len(trials))):
            kept = None if checkpoints is None else _Part(checkpoints, start * len(folds))
            own = trials[start:stop]
            found += train_trials(events, own, folds, seed, progress=progress, checkpoints=kept, device=device)
        return found
    width = len(folds)
    return [_outcome(trial, networks[t * width : (t + 1) * width]) for t, trial in enumerate(trials)]


def limits_of(
    tuning: TuningSettings, epochs: int, finished: Sequence[Sequence[float]], stopped: Sequence[Sequence[float]]
) -> Limits:
    """When a trial is to be stopped, from the curves of those before it.

    Args:
        tuning: The rule.
        epochs: Epochs of the trial.
        finished: Curves of trials that were trained to their end.
        stopped: Curves of trials that were not.
    """
    if tuning.pruner == "median":
        if len(finished) < tuning.constants["pruner_trials"]:
            return ()
        first = max(1, round(epochs * MEDIAN_FROM))
        return tuple((e, float(np.median([_at(curve, e) for curve in finished]))) for e in range(first, epochs))
    if tuning.pruner == "halving":
        factor = tuning.constants["pruner_factor"]
        rungs = sorted({-(-epochs // factor**2), -(-epochs // factor)} - {epochs})
        limits = []
        for epoch in rungs:
            reached = [*finished, *(curve for curve in stopped if len(curve) >= epoch)]
            losses = sorted(_at(curve, epoch) for curve in reached)
            if losses:
                # Of these and the trial itself, one of so many goes on.
                limits.append((epoch, losses[max((len(losses) + 1) // factor - 1, 0)]))
        return tuple(limits)
    return ()


def spread(trials: Sequence[tuple[ModelSettings, TrainingSettings]], slots: int) -> list[list[int]]:
    """Divide trials among processes: those that share shapes together, and to each about as much work.

    Args:
        trials: Their settings.
        slots: The number of processes.

    Returns:
        The positions of the trials of each process that has any.
    """
    from models.stack import Kind

    nobody = np.zeros(1, dtype=np.bool_)
    kinds = [repr(Kind.of(MemberPlan(0, 0, nobody, nobody, *settings, 0))) for settings in trials]
    order = sorted(range(len(trials)), key=lambda i: (kinds[i], i))
    work = np.cumsum([_work(*trials[i]) for i in order])  # (T,)
    middles = work - [_work(*trials[i]) / 2 for i in order]  # (T,)
    places = np.minimum((middles / work[-1] * slots).astype(int), slots - 1)  # (T,)
    groups = [[i for i, place in zip(order, places, strict=True) if place == slot] for slot in range(slots)]
    return [group for group in groups if group]


def _work(model: ModelSettings, training: TrainingSettings) -> float:
    """A measure of the time that a trial takes, good enough to share work out."""
    widths = (32, *model.hidden, 2)
    size = sum(a * b for a, b in pairwise(widths)) * (model.submodels if model.type == "tabm" else 1)
    batch = 4096 if training.batch_size == "all" else training.batch_size
    return training.epochs * (size + 20_000 * (1 + 256 / batch))


def _at(curve: Sequence[float], epoch: int) -> float:
    """The loss after an epoch; after the last one, it stays."""
    return curve[min(epoch, len(curve)) - 1]


def _best(histories: Sequence[Sequence[float]]) -> npt.NDArray[np.float64]:
    """Mean over networks of their best loss so far, after each epoch, ``[E]``."""
    epochs = max(len(history) for history in histories)
    best = [np.minimum.accumulate([*history, *[np.inf] * (epochs - len(history))]) for history in histories]
    mean: npt.NDArray[np.float64] = np.mean(best, axis=0)  # (E,)
    return mean


def _outcome(trial: Trial, networks: Sequence[TrainedMember]) -> Outcome:
    """What the histories say, up to the first limit that is not held."""
    histories = [network.history.validation_loss for network in networks]
    curve = _best(histories)  # (E,)
    for epoch, limit in trial.limits:
        # Without this epoch, all networks have ended before it by themselves.
        if epoch <= len(curve) and curve[epoch - 1] > limit:
            cut = curve[:epoch]
            return Outcome("stopped", float(cut[-1]), _minima(histories, epoch), tuple(cut.tolist()))
    return Outcome("finished", float(curve[-1]), _minima(histories, len(curve)), tuple(curve.tolist()), tuple(networks))


def _minima(histories: Sequence[Sequence[float]], epochs: int) -> tuple[float, ...]:
    return tuple(min(history[:epochs]) for history in histories)


class _Referee:
    """Ends trials whose loss, once all of their networks have come so far, is above a limit.

    Networks of one trial may be in several stacks, one after the other: then the last of these alone is shortened. What
    comes of a trial follows from the histories all the same (`_outcome`).
    """

    def __init__(self, limits: Sequence[Limits], folds: int) -> None:
        self._limits, self._folds = limits, folds
        self._losses: dict[int, Sequence[float]] = {}

    def __call__(self, epoch: int, losses: Mapping[int, Sequence[float]]) -> set[int]:
        self._losses |= losses
        return {order for order in losses if self._poor(order // self._folds, epoch)}

    def _poor(self, trial: int, epoch: int) -> bool:
        limit = dict(self._limits[trial]).get(epoch)
        if limit is None:
            return False
        first = trial * self._folds
        histories = [self._losses.get(order, ()) for order in range(first, first + self._folds)]
        return all(histories) and bool(_best([history[:epoch] for history in histories])[-1] > limit)


class _Part:
    """The checkpoints of some of the networks, counted from one of them on."""

    def __init__(self, checkpoints: Checkpoints, first: int) -> None:
        self._all, self._first = checkpoints, first

    def load(self, order: int) -> Checkpoint | None:
        return self._all.load(self._first + order)

    def due(self) -> bool:
        return self._all.due()

    def save(self, order: int, checkpoint: Checkpoint) -> None:
        self._all.save(self._first + order, checkpoint)

    def saved(self) -> None:
        self._all.saved()
