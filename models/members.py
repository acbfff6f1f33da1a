"""Networks before and after their training: what to train, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from models.preprocessing import Signature
from models.settings import ModelSettings, TrainingSettings
from models.transforms import Transform


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
class Part:
    """What the network of some patterns of present objects is a part of.

    Attributes:
        number: Which network of its member it is.
        training: Which events the member trains on, over which the classes are balanced, bool ``[N]``.
        validation: Which events it stops on, likewise.
    """

    number: int
    training: npt.NDArray[np.bool_]
    validation: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class History:
    """One number per epoch.

    Attributes:
        training_loss: Class-balanced loss in nats, with dropout and noise, but without smoothing or noise of labels.
        validation_loss: Class-balanced loss in nats at the end of the epoch, without penalties.
        learning_rate: At the end of the epoch.
        diagnostics: By quantity and layer (`models.diagnostics`); empty if they were not recorded.
    """

    training_loss: tuple[float, ...]
    validation_loss: tuple[float, ...]
    learning_rate: tuple[float, ...]
    diagnostics: dict[str, dict[str, tuple[float, ...]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Start:
    """Where a network goes on from after a round of pruning, in place of random weights.

    Attributes:
        parameters: In the order of a row (`models.networks.Classifier`), float32 ``[P]``.
        kept: 1 for each number of the weight matrices, which come first in a row, that may change, 0 for one that stays
            zero: float32 ``[D]``; ``None`` if all may.
        earlier: Courses of the training and of the fine-tunings before.
    """

    parameters: npt.NDArray[np.float32]
    kept: npt.NDArray[np.float32] | None
    earlier: tuple[History, ...]


@dataclass(frozen=True)
class MemberPlan:
    """One network to train.

    Attributes:
        fold: The fold that it leaves out.
        index: Its number within the fold.
        training: Which events it trains on, bool ``[N]``.
        validation: Which events it stops on, bool ``[N]``.
        model: What it is.
        settings: How it is trained; ``members`` is the caller's business, who writes the plans.
        seed: Seed of initial weights, batch order and dropout.
        features: Which features it sees, bool ``[F]``; the others count as absent in all events. ``None`` for all.
        start: Where it goes on from; ``None`` for initial weights.
        part: With ``missing: separate``, which of its networks it is; ``None`` for a plan of all of them.
        ratios: With ``negative_weights: reweighted``, the mean sign of the weights at each event that it trains or
            stops on, NaN for the others, float32 ``[N]``; ``None`` if none of those weights is negative, or as long as
            nothing is learned (`models.refinement`).
    """

    fold: int
    index: int
    training: npt.NDArray[np.bool_]
    validation: npt.NDArray[np.bool_]
    model: ModelSettings
    settings: TrainingSettings
    seed: int
    features: npt.NDArray[np.bool_] | None = None
    start: Start | None = None
    part: Part | None = None
    ratios: npt.NDArray[np.float32] | None = None

    @property
    def stream(self) -> tuple[int, ...]:
        """The words from which its random numbers follow."""
        return (self.seed, self.fold, self.index, *(() if self.part is None else (self.part.number,)))

    @property
    def balanced(self) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """The training and validation events over which weights are balanced, bool ``[N]`` each."""
        whole = self if self.part is None else self.part
        return whole.training, whole.validation


@dataclass(frozen=True)
class Patterns:
    """Which network of a member has which patterns.

    Attributes:
        objects: The objects that make a pattern.
        known: Patterns that its training events have, the most frequent first: for each object whether it is there.
        groups: The network of each, counted from the one with most training events.
    """

    objects: tuple[str, ...]
    known: tuple[tuple[bool, ...], ...]
    groups: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many networks there are."""
        return max(self.groups) + 1


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
        transform: Of features to numbers, fitted on its training events.
        parameters: float32 tensors by name, those of the best epoch.
        history: Losses and learning rate per epoch.
        precision: ``fp32`` or ``bf16``: what ``training.precision`` meant on the device.
        best_epoch: The epoch whose parameters it has, counted from 1: that of the least validation loss, unless it is a
            snapshot.
        events: Number of training and of validation events of non-zero weight.
        snapshots: Parameters of further epochs, by the epoch, counted from 1.
        snapshot: Whether it is one of those itself.
        ratios: Those of its plan.
        temperature: By which the logits are divided before they become probabilities.
        patterns: With ``missing: separate``, which network has which patterns of present objects.
        others: Likewise, the networks of the other patterns; this one has the most frequent ones.
    """

    fold: int
    index: int
    seed: int
    signature: Signature
    model: ModelSettings
    training: TrainingSettings
    transform: Transform
    parameters: dict[str, npt.NDArray[np.float32]]
    history: History
    precision: str
    best_epoch: int
    events: tuple[int, int]
    snapshots: dict[int, dict[str, npt.NDArray[np.float32]]] = field(default_factory=dict)
    snapshot: bool = False
    ratios: npt.NDArray[np.float32] | None = None
    temperature: float = 1.0
    patterns: Patterns | None = None
    others: tuple[TrainedMember, ...] = ()

    @property
    def networks(self) -> tuple[TrainedMember, ...]:
        """All networks of this training: that of the best epoch, and each of the snapshots as one of its own."""
        first = replace(self, snapshots={})
        further = [
            replace(first, parameters=parameters, best_epoch=epoch, snapshot=True)
            for epoch, parameters in self.snapshots.items()
        ]
        return (first, *further)

    @property
    def validation_loss(self) -> float:
        """Of the epoch whose parameters it has."""
        return self.history.validation_loss[self.best_epoch - 1]

    @property
    def parts(self) -> tuple[TrainedMember, ...]:
        """This network and those of the other patterns."""
        return (self, *self.others)
