"""What the networks of a stack learn beside hard labels: regression targets, soft labels, a score without a spectator.

All of it is told by extra columns of the events, which the networks never see. A stack without any has no heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.decorrelation import CHUNK, Decorrelation
from models.events import Mask, Table, TrainingEvents
from models.fitting import Moments, fit_moments
from models.losses import probabilities
from models.members import MemberPlan
from models.regression import MEAN, SCALE, Regression, per_output, target_factors
from models.settings import Loss

Factors = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]
"""Of the classes, for training and for validation events, ``[C]`` each."""


class Told(NamedTuple):
    """What the extra columns say of a batch."""

    extra: Tensor  # (M, B, E)
    labels: Tensor  # (M, B)
    soft: Tensor | None  # (M, 1, B, C)


@dataclass
class Heads:
    """Those of a stack.

    Attributes:
        loss: Of the classes.
        classes: Number of classes C.
        soft_labels: For each class the extra column of its probability, -1 for the one that has the rest; empty
            without soft labels.
        fits: The standardisation of the targets, one for each member.
        regression: ``None`` without targets.
        decorrelation: ``None`` without spectators.
    """

    loss: Loss
    classes: int
    soft_labels: tuple[int, ...]
    fits: list[Moments]
    regression: Regression | None
    decorrelation: Decorrelation | None

    @staticmethod
    def of(
        events: TrainingEvents,
        plans: Sequence[MemberPlan],
        weights: Sequence[npt.NDArray[np.float64]],
        uses: Sequence[tuple[Mask, Mask]],
        factors: Sequence[Factors],
        *,
        device: torch.device,
    ) -> Heads | None:
        """Fit the heads of some members; ``None`` if they learn hard labels alone.

        Args:
            events: The events.
            plans: The networks.
            weights: Of the events for each, before the classes are balanced, ``[N]`` each.
            uses: Which events each trains and stops on, ``[N]`` each.
            factors: What balances the weights of the classes in either.
            device: The device.

        Raises:
            ValueError: A target that no event of a network has, or soft labels with noise.
        """
        decorrelated = plans[0].settings.decorrelated
        if not (events.signature.targets or events.soft_labels or decorrelated):
            return None
        if events.soft_labels and any(plan.settings.label_noise for plan in plans):
            raise ValueError("label_noise draws hard labels anew; expected 0 with soft labels.")
        regression = None
        fits: list[Moments] = []
        if events.signature.targets:
            fits, regression = _regression(events, plans, weights, uses, factors, device=device)
        decorrelation = None
        if decorrelated:
            assert events.signal is not None, "`train` has checked it"
            strengths = [[plan.settings.decorrelation[name] for name in decorrelated] for plan in plans]
            columns = [events.extra_names.index(name) for name in decorrelated]
            decorrelation = Decorrelation(columns, strengths, events.signal, device)
        return Heads(
            loss=plans[0].settings.loss,
            classes=len(events.signature.classes),
            soft_labels=tuple(-1 if name is None else events.extra_names.index(name) for name in events.soft_labels),
            fits=fits,
            regression=regression,
            decorrelation=decorrelation,
        )

    def keep_units(self, views: Mapping[str, Tensor], events: TrainingEvents) -> None:
        """Write the standardisation of the targets into the parameters ``[M, ...]`` of the networks."""
        for position, fit in enumerate(self.fits):
            mean, scale = per_output(events.signature.targets, fit)  # (R,) each
            views[MEAN][position, 0], views[SCALE][position, 0] = mean, scale

    def told(self, table: Table, rows: Tensor, labels: Tensor) -> Told:
        """Read what is said of rows ``[M, B]`` with labels ``[M, B]``."""
        extra = table.gather_extra(rows)  # (M, B, E)
        if not self.soft_labels:
            return Told(extra, labels, None)
        named = [extra[..., column] for column in self.soft_labels if column >= 0]  # (M, B) each
        rest = 1 - torch.stack(named).sum(dim=0)  # (M, B)
        shares = torch.stack([rest if column < 0 else extra[..., column] for column in self.soft_labels], dim=-1)
        hard = labels.unsqueeze(-1) == torch.arange(self.classes, device=labels.device)  # (M, B, C)
        soft = torch.where(torch.isfinite(rest).unsqueeze(-1), shares.clamp(0, 1), hard.to(shares.dtype))  # (M, B, C)
        return Told(extra, labels, (soft / soft.sum(dim=-1, keepdim=True)).unsqueeze(1))

    def added(self, outputs: Tensor, logits: Tensor, told: Told, weights: Tensor, *, training: bool) -> Tensor | None:
        """Sum, over the events of each member, what is minimised beside the loss of the classes.

        Args:
            outputs: Of the networks, ``[M, K, B, C + R]``.
            logits: Those of the classes, ``[M, K, B, C]``.
            told: What is said of the events.
            weights: Their balanced weights, ``[M, B]``.
            training: Whether they are training events.

        Returns:
            ``[M]``; ``None`` if there is nothing.
        """
        total = None
        if self.regression is not None:
            factors = self.regression.training if training else self.regression.validation  # (M, T)
            total = self.regression(outputs[..., self.classes :], told.extra, weights, factors)  # (M,)
        if self.decorrelation is not None:
            scores = probabilities(logits, self.loss)[..., self.decorrelation.signal].mean(dim=1)  # (M, B)
            chunk = scores.shape[1] if training else CHUNK
            penalty = self.decorrelation(scores, told.extra, told.labels, weights, chunk)  # (M,)
            total = penalty if total is None else total + penalty
        return total

    def select(self, keep: Tensor) -> None:
        """Keep only the members at these positions, int64 ``[M']``."""
        self.fits = [self.fits[position] for position in keep.tolist()] if self.fits else []
        for part in (self.regression, self.decorrelation):
            if part is not None:
                part.select(keep)


def _regression(
    events: TrainingEvents,
    plans: Sequence[MemberPlan],
    weights: Sequence[npt.NDArray[np.float64]],
    uses: Sequence[tuple[Mask, Mask]],
    factors: Sequence[Factors],
    *,
    device: torch.device,
) -> tuple[list[Moments], Regression]:
    """Fit the standardisation of the targets of each member, and what balances their weights."""
    targets = events.signature.targets
    columns = [target.settings.function for target in targets]
    goals = events.further(columns)  # (N, T)
    own = [use for use, _ in uses]
    fits = fit_moments(events, goals, own)
    balance: tuple[list[npt.NDArray[np.float64]], ...] = ([], [])
    for plan, unbalanced, both, balancing in zip(plans, weights, uses, factors, strict=True):
        for found, name, use, factor in zip(balance, ("training", "validation"), both, balancing, strict=True):
            balanced = unbalanced[use] * factor[events.labels[use]]
            try:
                found.append(target_factors(targets, goals[use], balanced))
            except ValueError as error:
                raise ValueError(f"Fold {plan.fold}, member {plan.index}, {name} events: {error}") from None
    mean, scale = (torch.from_numpy(np.stack([getattr(fit, name) for fit in fits])) for name in ("mean", "scale"))
    training, validation = (torch.from_numpy(np.stack(found)).to(device) for found in balance)
    places = tuple(events.extra_names.index(name) for name in columns)
    levels = tuple(torch.tensor(t.settings.levels, dtype=torch.float64, device=device) for t in targets)
    return fits, Regression(targets, places, levels, mean.to(device), scale.to(device), training, validation)
