"""What features are worth to networks: scores without what a feature says, and what each contributes to a score.

Three ways: the values of a feature are permuted among events (`permuted`); the gradient of a score is integrated along
a path from an event that says nothing (`integrated_gradients`); networks are trained in which the feature counts as
absent (`without`). Features are taken one by one and by the object that they belong to (`groups`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models import hashing
from models.ensemble import Ensemble, combine, predict
from models.events import TrainingEvents
from models.losses import class_factors
from models.members import MemberPlan, TrainedMember
from models.preprocessing import Signature, filled
from models.threads import single_threaded

BLOCK = 4096
"""Events whose gradients are taken at once."""
NODES = 48
"""Points of a path at which gradients are taken."""
_PERMUTATION = 8  # stream of random numbers

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Group:
    """Features that are taken together.

    Attributes:
        kind: ``feature`` for one of them, ``object`` for all of an object.
        name: Of the feature or the object.
        columns: Their places in the signature.
    """

    kind: Literal["feature", "object"]
    name: str
    columns: tuple[int, ...]


def groups(signature: Signature) -> tuple[Group, ...]:
    """Each feature, then each object with all its features."""
    owners = signature.feature_objects
    features = [Group("feature", name, (column,)) for column, name in enumerate(signature.features)]
    objects = [
        Group("object", name, tuple(column for column, owner in enumerate(owners) if owner == name))
        for name in signature.objects
    ]
    return (*features, *objects)


def out_of_fold(ensemble: Ensemble, values: Floats, present: Bools, folds: npt.NDArray[np.int64]) -> Floats:
    """Scores of each event by the networks that left its fold out, means over them.

    Args:
        ensemble: The networks.
        values: ``[N, F]``.
        present: ``[N, F]``.
        folds: Of the events, ``[N]``.

    Returns:
        float32 ``[N, C]``.
    """
    classes = len(ensemble.signature.classes)
    scores = np.empty((len(values), classes), dtype=np.float32)
    for fold in np.unique(folds):
        rows = folds == fold
        own = of_fold(ensemble, fold)
        scores[rows] = _routed(own, values[rows], present[rows], folds[rows])[:, :classes]
    return scores


def of_fold(ensemble: Ensemble, fold: int) -> Ensemble:
    """The networks that left a fold out.

    Raises:
        ValueError: There is none.
    """
    return Ensemble(tuple(member for member in ensemble.members if member.fold == fold), ensemble.combination)


def _routed(own: Ensemble, values: Floats, present: Bools, folds: npt.NDArray[np.int64]) -> Floats:
    predictions, classes = predict(own, values, present), len(own.signature.classes)
    return combine(predictions, own.folds, folds, own.combination, own.shares, classes)[0]


def permuted(
    values: Floats,
    present: Bools,
    columns: Sequence[int],
    *,
    identity: npt.NDArray[np.uint64],
    folds: npt.NDArray[np.int64],
    key: tuple[int, ...],
) -> tuple[Floats, Bools]:
    """Exchange some features among the events of each fold; values and presence go together.

    Which event gets which follows from hashes of their identities. All events are as likely, whatever their weights.

    Args:
        values: ``[N, F]``; left unchanged.
        present: ``[N, F]``; left unchanged.
        columns: The features, which stay together.
        identity: Hashes of the events' identities, ``[N]``.
        folds: Of the events, ``[N]``.
        key: Numbers such as a seed and that of the repetition.

    Returns:
        Values and presence, ``[N, F]`` each.
    """
    values, present = values.copy(), present.copy()
    own = hashing.key(*key, _PERMUTATION, *columns)
    mixed = hashing.splitmix64(hashing.splitmix64(torch.from_numpy(identity.view(np.int64))) ^ own).numpy()
    chosen = np.array(columns)
    for fold in np.unique(folds):
        rows = np.flatnonzero(folds == fold)
        donors = rows[np.argsort(mixed[rows], kind="stable")]
        for column in (values, present):
            column[rows[:, np.newaxis], chosen] = column[donors[:, np.newaxis], chosen]
    return values, present


@dataclass(frozen=True)
class Attributions:
    """What the features of a network contribute to its score of each event.

    Attributes:
        features: float64 ``[N, F]``, in nats.
        presence: float64 ``[N, O]``: of the inputs that say which objects are there.
        change: float64 ``[N]``: the log-odds of each event less those of the baseline, which the others sum up to.
    """

    features: Doubles
    presence: Doubles
    change: Doubles

    def of(self, group: Group, signature: Signature) -> Doubles:
        """What the features of a group contribute together, those of an object with its presence: ``[N]``."""
        total: Doubles = self.features[:, group.columns].sum(axis=1)
        if group.kind == "object":
            total = total + self.presence[:, signature.objects.index(group.name)]
        return total

    @property
    def gap(self) -> float:
        """The largest difference between the sum of all contributions and the change."""
        sums = self.features.sum(axis=1) + self.presence.sum(axis=1)
        return float(np.abs(sums - self.change).max(initial=0.0))


def integrated_gradients(
    member: TrainedMember, values: Floats, present: Bools, *, always: Bools, signal: int, nodes: int = NODES
) -> Attributions:
    """Integrated gradients of the log-odds ln p/(1 - p) of a class: Sundararajan, Taly and Yan, arXiv 1703.01365.

    The path is a straight line in the numbers that come of the features, before any embedding, and in what says which
    objects are there. It begins at an event in which the numbers of what is always there are 0 (the mean of what is
    standardised, no direction of an angle, no category), and all else is absent: where a network has learned what
    absence means, that is the baseline. A feature has the sum over its numbers. The integral is Gauss and Legendre's,
    in double precision. Events are taken as they are, also where a score is a mean over copies (`Augmentation`).

    Args:
        member: The network.
        values: ``[N, F]``; absent entries may hold anything.
        present: ``[N, F]``.
        always: Which features are present in every event, bool ``[F]``.
        signal: The class.
        nodes: Points of the path.

    Raises:
        ValueError: If the member has a network for each pattern of present objects.
    """
    if member.others:
        raise ValueError("missing is 'separate', where no path leads from one pattern to another; permute features.")
    classifier, *parts, _ = Ensemble((member,)).stacked()
    views, tables = ({name: tensor.double() for name, tensor in part.items()} for part in parts)
    width, owners = classifier.layout.width, classifier.layout.owners.numpy()
    places, weights = np.polynomial.legendre.leggauss(nodes)

    def log_odds(inputs: Tensor) -> Tensor:
        outputs = classifier.outputs(views, tables, inputs[..., :width], inputs[..., width:])  # (1, K, B, outputs)
        p = classifier.meant(outputs)[0, :, signal]  # (B,)
        return torch.log(p) - torch.log1p(-p)

    there = torch.from_numpy(always).view(1, 1, -1)  # (1, 1, F)
    with single_threaded():
        numbers, objects = classifier.encoded(views, tables, torch.zeros(1, 1, len(always)).double(), there)
        known = classifier.layout.known(there, tables)[1]  # (1, 1, W)
        start = torch.cat([filled(torch.zeros_like(numbers), known, views["absent"]), objects], dim=-1)  # (1, 1, W + O)
        found, changes = [], []
        for first in range(0, len(values), BLOCK):
            part = slice(first, first + BLOCK)
            clean = np.where(present[part], values[part], np.float32(0))
            block = (torch.from_numpy(clean).double().unsqueeze(0), torch.from_numpy(present[part]).unsqueeze(0))
            end = torch.cat(classifier.encoded(views, tables, *block), dim=-1)  # (1, B, W + O)
            slopes = torch.zeros_like(end)
            for place, weight in zip(places, weights, strict=True):
                point = (start + (place + 1) / 2 * (end - start)).requires_grad_()
                with torch.enable_grad():
                    (slope,) = torch.autograd.grad(log_odds(point).sum(), point)
                slopes += weight / 2 * slope
            found.append(((end - start) * slopes)[0].numpy())
            changes.append((log_odds(end) - log_odds(start)).numpy())
    total = np.concatenate(found) if found else np.empty((0, start.shape[2]))  # (N, W + O)
    features = np.zeros((len(total), len(always)))
    np.add.at(features.T, owners, total[:, :width].T)
    return Attributions(features, total[:, width:], np.concatenate(changes) if changes else np.empty(0))


def without(plans: Sequence[MemberPlan], signature: Signature, columns: Sequence[int]) -> list[MemberPlan]:
    """The same networks, to be trained without some features: these count as absent in all events.

    All shapes stay what they were, so that the networks of all features train as one stack. An object of which all
    features are left out counts as absent too: its presence input, which is 1 where any feature of it is there, is 0.
    """
    seen = np.ones(len(signature.features), dtype=np.bool_)
    seen[list(columns)] = False
    return [replace(plan, features=seen if plan.features is None else plan.features & seen) for plan in plans]


def ranked(
    ensemble: Ensemble, events: TrainingEvents, rows: Bools, *, signal: int, gradients: bool, repeats: int, seed: int
) -> list[int]:
    """Rank features by what they are worth to some networks, on events on which these stopped.

    Nothing but these events and the networks has any influence, so that a choice by it is nested in the networks' own
    training and stopping folds.

    Args:
        ensemble: The networks, of one fold.
        events: All events.
        rows: Those to judge on, bool ``[N]``.
        signal: The class whose log-odds count, for integrated gradients.
        gradients: Rank by mean sizes of integrated gradients, not by the rise of the balanced loss after a permutation.
        repeats: Of each permutation.
        seed: Of the permutations.

    Returns:
        Columns from the most important on.
    """
    rows = rows & (events.weights != 0)
    values, present, labels = events.values[rows], events.present[rows], events.labels[rows]
    weights = events.weights[rows]
    weights = weights * class_factors(weights, labels, len(events.signature.classes))[labels]  # (n,)
    columns = range(values.shape[1])
    if gradients:
        always = np.asarray(present.all(axis=0))  # (F,)
        found = [
            np.abs(integrated_gradients(m, values, present, always=always, signal=signal).features)
            for m in ensemble.members
        ]
        worth = (weights @ np.mean(found, axis=0)).tolist()
        return sorted(columns, key=lambda column: (-worth[column], column))

    folds = np.zeros(len(labels), dtype=np.int64)

    def loss(own: Floats, there: Bools) -> float:
        p = predict(ensemble, own, there).mean(axis=0, dtype=np.float64)[np.arange(len(labels)), labels]
        return float(-(weights * np.log(np.maximum(p, np.finfo(np.float32).eps))).mean())

    def after(column: int) -> float:
        exchanged = (
            permuted(values, present, (column,), identity=events.identity[rows], folds=folds, key=(seed, repeat))
            for repeat in range(repeats)
        )
        return float(np.mean([loss(*each) for each in exchanged]))

    losses = [after(column) for column in columns]
    return sorted(columns, key=lambda column: (-losses[column], column))
