"""Pruning: networks with fewer weights or fewer units, and the fine-tuning that goes on from them.

A network is trained to its end first. Each round then takes something away from its best epoch and trains what is left
as a network of its own (`Round`): with a mask where single weights are gone, in smaller matrices where whole units are.
What is taken away follows from the network's own weights, and so from its own training and stopping folds. Which of
them is `torch.nn.utils.prune`'s choice; the tests hold it to that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from models import hashing
from models.checkpoint import Checkpoint
from models.members import History, MemberPlan, Start, TrainedMember
from models.networks import Classifier
from models.settings import CONSTANTS, ModelSettings, TrainingSettings, pruned_widths

_FINE_TUNING = 7  # stream of random numbers

Floats = npt.NDArray[np.float32]
Places = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Round:
    """The training of a network, or one of its fine-tunings.

    Attributes:
        asked: The network as it was asked for.
        plan: What trains now: settings, widths and start of this round.
    """

    asked: MemberPlan
    plan: MemberPlan

    @property
    def number(self) -> int:
        """Rounds of pruning behind it; 0 in the training itself."""
        return 0 if self.plan.start is None else len(self.plan.start.earlier)

    @staticmethod
    def of(plan: MemberPlan, saved: Checkpoint | None) -> Round:
        """Where a network stands: at the beginning, or in the round in which it was kept."""
        if saved is None or not saved.earlier:
            return Round(plan, plan)
        start = Start(saved.rows["parameters"], saved.rows.get("kept"), saved.earlier)
        return Round(plan, _fine_tuned(plan, len(saved.earlier), start))

    def after(self, member: TrainedMember) -> Round | TrainedMember:
        """What follows: the next round, or the network that has come of the last one."""
        earlier = () if self.plan.start is None else self.plan.start.earlier
        if self.number == _rounds(self.asked.settings):
            return _joined(self.asked, member, earlier)
        left, kept = take_away(member, self.asked, self.number + 1)
        if self.asked.settings.pruned["fine_tuning"] == 0:
            return replace(left, training=self.asked.settings)
        row = Classifier(left.model, left.signature).row(left.parameters)
        start = Start(row, kept, (*earlier, member.history))
        return Round(self.asked, _fine_tuned(self.asked, self.number + 1, start))


def take_away(member: TrainedMember, asked: MemberPlan, number: int) -> tuple[TrainedMember, Floats | None]:
    """Prune a network for the n-th time.

    Args:
        member: What the round before has left.
        asked: The network as it was asked for.
        number: Counted from 1.

    Returns:
        The network without what is gone, and 1 for each number of its matrices that may change, else 0, float32
        ``[D]``; ``None`` if all may.
    """
    share = share_after(asked.settings, number)
    if asked.settings.pruning == "structured":
        widths = widths_after(asked, number)
        kept = largest_units(member.model, member.parameters, widths)
        left = replace(
            member,
            model=replace(member.model, hidden=widths),
            parameters=without_units(member.model, member.parameters, kept),
        )
        _check_shapes(left)
        return left, None
    classifier = Classifier(member.model, member.signature)
    row = classifier.row(member.parameters)  # (P,)
    mask = largest_weights(row[: classifier.decaying], share)  # (D,)
    row[: classifier.decaying][~mask] = 0
    return replace(member, parameters=_named(classifier, row)), mask.astype(np.float32)


def _check_shapes(member: TrainedMember) -> None:
    """Refuse a network of a type whose parameters `without_units` does not know.

    Raises:
        ValueError: One of them has another shape than in a network of these widths.
    """
    for parameter in Classifier(member.model, member.signature).parameters:
        found = member.parameters[parameter.name].shape
        if found != parameter.shape:
            raise ValueError(
                f"training.pruning is 'structured', which leaves {parameter.name} of a network of type "
                f"{member.model.type} in the shape {found}; expected {parameter.shape}. Take 'magnitude'."
            )


def share_after(settings: TrainingSettings, number: int) -> float:
    """The share that is gone after the n-th round: Zhu and Gupta, arXiv 1710.01878, equation 1, from 0 on."""
    share: float = settings.pruned["pruning_share"]
    return share * (1 - (1 - number / _rounds(settings)) ** 3)


def widths_after(plan: MemberPlan, number: int) -> tuple[int, ...]:
    """Widths of the hidden layers after the n-th round of a structured pruning."""
    return pruned_widths(plan.model.hidden, share_after(plan.settings, number))


def largest_weights(weights: Floats, share: float) -> npt.NDArray[np.bool_]:
    """All but the smallest weights, as `torch.nn.utils.prune.global_unstructured` with `L1Unstructured`.

    Args:
        weights: ``[D]``.
        share: How many are gone.

    Returns:
        bool ``[D]``.
    """
    order = np.argsort(np.abs(weights), kind="stable")
    kept = np.ones(len(weights), dtype=np.bool_)
    kept[order[: round(share * len(weights))]] = False
    return kept


def largest_units(model: ModelSettings, parameters: Mapping[str, Floats], widths: Sequence[int]) -> list[Places]:
    """The units of each hidden layer with the largest Euclidean norms of weights into them, in their order.

    As `torch.nn.utils.prune.ln_structured` with n = 2 for each layer. With residual connections unit j of all layers is
    one place of their sum: the norm is that over all layers.

    Args:
        model: The network.
        parameters: By name.
        widths: How many units are left of each layer.
    """
    sizes = [np.square(parameters[f"weight{layer}"], dtype=np.float64).sum(axis=0) for layer in range(len(widths))]
    if model.connections == "residual":
        sizes = [np.sum(sizes, axis=0)] * len(widths)
    return [np.sort(np.argsort(-own, kind="stable")[:width]) for own, width in zip(sizes, widths, strict=True)]


def without_units(model: ModelSettings, parameters: Mapping[str, Floats], kept: Sequence[Places]) -> dict[str, Floats]:
    """The parameters of a network with some units of its hidden layers only.

    Args:
        model: The network.
        parameters: By name.
        kept: The units of each hidden layer that stay.
    """
    depth = len(kept)
    inputs = np.arange(parameters["weight0"].shape[-2])
    ends = np.cumsum([len(inputs), *model.hidden])
    smaller = dict(parameters)
    for layer in range(depth + 1):
        if model.connections == "densely_connected":
            own = [units + end for units, end in zip(kept[:layer], ends, strict=False)]
            seen = np.concatenate([inputs, *own])
        else:
            seen = inputs if layer == 0 else kept[layer - 1]
        smaller[f"weight{layer}"] = np.take(smaller[f"weight{layer}"], seen, axis=-2)
        if f"input{layer}" in smaller:
            smaller[f"input{layer}"] = np.take(smaller[f"input{layer}"], seen, axis=-1)
        for name in ("weight", "output", "bias", "gain", "shift", "mean", "variance"):
            if layer < depth and f"{name}{layer}" in smaller:
                smaller[f"{name}{layer}"] = np.take(smaller[f"{name}{layer}"], kept[layer], axis=-1)
    return {name: np.ascontiguousarray(value) for name, value in smaller.items()}


def sizes(members: Sequence[TrainedMember]) -> dict[str, int]:
    """Numbers of parameters of some networks in all: ``parameters``, and of these ``non_zero``."""
    values = [value for member in members for value in member.parameters.values()]
    return {
        "parameters": sum(value.size for value in values),
        "non_zero": sum(int(np.count_nonzero(value)) for value in values),
    }


def _rounds(settings: TrainingSettings) -> int:
    """How often a network is pruned."""
    return int(settings.pruned.get("pruning_rounds", 0))


def _fine_tuned(asked: MemberPlan, number: int, start: Start) -> MemberPlan:
    """The plan of the fine-tuning after the n-th round."""
    own = asked.settings.pruned
    nothing: dict[str, Any] = dict.fromkeys(
        name for key in ("schedule", "pruning") for names in CONSTANTS[key].values() for name in names
    )
    settings = replace(
        asked.settings,
        **nothing,
        pruning="none",
        epochs=own["fine_tuning"],
        learning_rate=asked.settings.learning_rate * own["fine_tuning_rate"],
        schedule="cosine",
        warm_up=0.0,
    )
    model = asked.model
    if asked.settings.pruning == "structured":
        model = replace(model, hidden=widths_after(asked, number))
    seed = hashing.key(asked.seed, _FINE_TUNING, number)
    return replace(asked, model=model, settings=settings, seed=seed, start=start)


def _joined(asked: MemberPlan, member: TrainedMember, earlier: Sequence[History]) -> TrainedMember:
    """The network that has come of all rounds, with the courses of all."""
    if not earlier:
        return member
    every = (*earlier, member.history)
    courses = {own.name: _course([getattr(history, own.name) for history in every]) for own in fields(History)}
    past = sum(len(history.validation_loss) for history in earlier)
    return replace(
        member,
        seed=asked.seed,
        training=asked.settings,
        history=History(**courses),
        best_epoch=past + member.best_epoch,
    )


def _course(parts: Sequence[Any]) -> Any:
    """Numbers per epoch of one round after another; each for itself where they are told by name."""
    if isinstance(parts[0], Mapping):
        return {name: _course([part[name] for part in parts]) for name in parts[0]}
    return tuple(chain.from_iterable(parts))


def _named(classifier: Classifier, row: Floats) -> dict[str, Floats]:
    """Cut one member's row ``[P]`` into its parameters."""
    views = classifier.views(torch.from_numpy(row).unsqueeze(0))
    return {name: view[0].numpy().copy() for name, view in views.items()}
