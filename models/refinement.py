"""Negative weights learned away: the mean sign of the weights at an event, by networks nested in the training events.

A class whose weights have both signs gets networks of the same kind, trained with |w| on the sign of w: their
probability p of a positive weight gives the mean sign 2p - 1, and |w| max(0, 2p - 1) has the density of the signed
weights (Nachman and Noll, arXiv 2505.03724; arXiv 2510.16217). The training events are cut into `FOLDS` by their
identities; network j trains on all but two of them, stops on the next one and gives ratios to fold j, which is new to
it. The stopping events, which none of them has met, get the mean over all. A class with fewer than `FEWEST` negative
weights gets one mean sign, that of all its training events.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from models import hashing
from models.checkpoint import Checkpoint, Checkpoints
from models.ensemble import Ensemble, predict
from models.events import Mask, TrainingEvents
from models.members import MemberPlan, TrainedMember
from models.settings import TrainingSettings

FOLDS = 5
"""Folds of the training events of a network."""
FEWEST = 30
"""Training events of negative weight in a class, below which nothing is learned of where they lie."""
_CUT, _SEED = 9, 10  # streams of random numbers
_SIGNS = ("negative", "positive")

Ratios = npt.NDArray[np.float32]
Train = Callable[[TrainingEvents, Sequence[MemberPlan]], list[TrainedMember]]


@dataclass(frozen=True)
class _Nested:
    """The nested networks of one class of a network.

    Attributes:
        plans: One for each fold of the class's training events; none with few negative weights.
        parts: The events of each fold, ``[N]``.
        stopping: The class's stopping events, ``[N]``.
        mean: Σw / Σ|w| of the class's training events.
    """

    plans: list[MemberPlan]
    parts: list[Mask]
    stopping: Mask
    mean: float


def refine(events: TrainingEvents, plans: Sequence[MemberPlan], train: Train, device: str) -> list[MemberPlan]:
    """Learn the mean sign of the weights at each event, for all networks whose weights are to be refined.

    Args:
        events: The events.
        plans: The networks.
        train: Trains the nested ones.
        device: torch's name of the device.

    Returns:
        The plans with their ``ratios``, from -1 to 1: 2p - 1. Networks of one fold, seed and setting share theirs.
    """
    leaders = _leaders(events, plans)
    if all(order is None for order in leaders):
        return list(plans)
    nested = {order: _nested(events, plans[order]) for order in dict.fromkeys(leaders) if order is not None}
    inner = [plan for own in nested.values() for part in own for plan in part.plans]
    signs = replace(
        events,
        signature=replace(events.signature, classes=_SIGNS, targets=()),
        labels=(events.weights > 0).astype(np.int64),
        weights=np.abs(events.weights),
        extra=None,
        extra_names=(),
        soft_labels=(),
        signal=None,
        processes=None,
    )
    try:
        trained = iter(train(signs, inner) if inner else [])
    except ValueError as error:
        raise ValueError(f"negative_weights: reweighted: of the networks that learn the signs, {error}") from None
    ratios: dict[int, Ratios] = {}
    for order, own in nested.items():
        ratios[order] = np.full(len(events.labels), np.nan, dtype=np.float32)
        for part in own:
            _fill(ratios[order], events, part, [next(trained) for _ in part.plans], device)
    return [
        plan if order is None else replace(plan, ratios=ratios[order])
        for plan, order in zip(plans, leaders, strict=True)
    ]


class Unkept:
    """Checkpoints of nested networks: none, but a process that is asked to end does so."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints

    def load(self, order: int) -> Checkpoint | None:
        """They begin anew."""

    def due(self) -> bool:
        """Whether the networks to come would be kept now."""
        return self._checkpoints.due()

    def save(self, order: int, checkpoint: Checkpoint) -> None:
        """Keep nothing."""

    def saved(self) -> None:
        """End here if that was asked for."""
        self._checkpoints.saved()


def _leaders(events: TrainingEvents, plans: Sequence[MemberPlan]) -> list[int | None]:
    """For each plan the first one that has the same nested networks; ``None`` where nothing is to be refined."""
    negative, leaders = events.weights < 0, list[int | None]()
    for order, plan in enumerate(plans):
        asked = plan.settings.negative_weights == "reweighted"
        if not asked or not (negative & (plan.training | plan.validation)).any():
            leaders.append(None)
            continue
        same = (leader for leader in dict.fromkeys(leaders) if leader is not None and _alike(plans[leader], plan))
        leaders.append(next(same, order))
    return leaders


def _alike(one: MemberPlan, other: MemberPlan) -> bool:
    kinds = [(plan.fold, plan.seed, plan.model, _settings(plan.settings)) for plan in (one, other)]
    masks = ((one.training, other.training), (one.validation, other.validation))
    return kinds[0] == kinds[1] and all(np.array_equal(*pair) for pair in masks)


def _settings(settings: TrainingSettings) -> TrainingSettings:
    """How nested networks train: like the network itself, but for posteriors of the sign as it is distributed."""
    return replace(
        settings,
        loss="cross_entropy",
        focal_gamma=None,
        loss_weight=1.0,
        decorrelation={},
        label_smoothing=0.0,
        label_noise=0.0,
        sampling="plain",
        shares=None,
        down_sampling=None,
        redraw=None,
        balance="none",
        flatten=(),
        negative_weights="signed",
        pruning="none",
        pruning_share=None,
        pruning_rounds=None,
        fine_tuning=None,
        fine_tuning_rate=None,
        snapshots=0,
        diagnostics=False,
    )


def _nested(events: TrainingEvents, plan: MemberPlan) -> list[_Nested]:
    """The nested networks of each class."""
    settings, found = _settings(plan.settings), []
    keys = torch.from_numpy(np.asarray(events.identity).view(np.int64))  # (N,)
    hashes = hashing.splitmix64(keys ^ hashing.key(plan.seed, _CUT)).numpy().view(np.uint64)  # (N,)
    folds = hashes % np.uint64(FOLDS)  # (N,)
    for label in range(len(events.signature.classes)):
        own = plan.training & (events.labels == label)  # (N,)
        weights = events.weights[own]  # (n,)
        few = (weights < 0).sum() < FEWEST
        mean = float(weights.sum() / max(np.abs(weights).sum(), 1e-300))
        parts = [own & (folds == fold) for fold in range(FOLDS)]
        inner = [
            MemberPlan(
                fold=plan.fold,
                index=fold,
                training=own & ~parts[fold] & ~parts[(fold + 1) % FOLDS],
                validation=parts[(fold + 1) % FOLDS],
                model=plan.model,
                settings=settings,
                seed=hashing.key(plan.seed, _SEED, label),
            )
            for fold in range(0 if few else FOLDS)
        ]
        found.append(_Nested(inner, parts, plan.validation & (events.labels == label), mean))
    return found


def _fill(
    ratios: Ratios, events: TrainingEvents, nested: _Nested, networks: Sequence[TrainedMember], device: str
) -> None:
    """Write the ratios of a class's events."""

    def ratio(network: TrainedMember, rows: Mask) -> npt.NDArray[np.float64]:
        found = predict(Ensemble((network,)), events.values[rows], events.present[rows], device)  # (1, n, 2)
        return 2 * found[0, :, 1].astype(np.float64) - 1

    if not networks:
        ratios[np.logical_or.reduce([*nested.parts, nested.stopping])] = nested.mean
        return
    for network, part in zip(networks, nested.parts, strict=True):
        ratios[part] = ratio(network, part)
    ratios[nested.stopping] = np.mean([ratio(network, nested.stopping) for network in networks], axis=0)
