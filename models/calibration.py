"""Calibration: the temperature by which the logits of a network are divided (Guo et al., arXiv 1706.04599)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.events import TrainingEvents
from models.losses import class_factors, probabilities
from models.members import MemberPlan, TrainedMember
from models.networks import Classifier
from models.transforms import stack_transforms
from models.weighting import own_weights

LARGEST = 5.0
"""Temperatures lie between its inverse and this."""
BLOCK = 1024
"""Events whose logits are computed at once."""


def temperature(events: TrainingEvents, plan: MemberPlan, member: TrainedMember) -> float:
    """Find the temperature T of the smallest cross-entropy -Σ w ln p(z/T) on the events that a network stopped on.

    Args:
        events: The events.
        plan: What the network was trained by; weights w are those of its validation loss.
        member: The network.

    Returns:
        T, between 1/5 and 5.
    """
    from scipy.optimize import minimize_scalar  # training on a GPU without it needs torch and numpy alone

    own = own_weights(events, plan)  # (N,)
    whole, rows = plan.balanced[1] & (own != 0), np.flatnonzero(plan.validation & (own != 0))
    classes, balance = len(events.signature.classes), plan.settings.balance
    factors = class_factors(own[whole], events.labels[whole], classes, balance)  # (C,)
    labels = torch.from_numpy(events.labels[rows])  # (n,)
    weights = torch.from_numpy(own[rows] * factors[events.labels[rows]])  # (n,)
    logits = _logits(events, member, rows).double()  # (K, n, C)

    def loss(power: float) -> float:
        own = probabilities(logits / math.exp(power), member.training.loss).mean(dim=0)  # (n, C)
        chosen = own.gather(1, labels.unsqueeze(1)).squeeze(1).clamp(min=1e-300)  # (n,)
        return float(-(weights * chosen.log()).sum())

    edge = math.log(LARGEST)
    # With weights below zero there may be several minima: between which points of a grid the deepest one is.
    grid = np.linspace(-edge, edge, 33)
    best = int(np.argmin([loss(power) for power in grid]))
    bounds = (grid[max(best - 1, 0)], grid[min(best + 1, 32)])
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-5})
    return math.exp(found.x)


def _logits(events: TrainingEvents, member: TrainedMember, rows: npt.NDArray[np.intp]) -> Tensor:
    """Logits ``[K, n, C]`` of some events; blocks are padded, as their shape decides how products are summed."""
    classifier = Classifier(member.model, member.signature, "cpu", member.training.loss)
    views = {name: torch.from_numpy(value).unsqueeze(0) for name, value in member.parameters.items()}
    tables, blocks = stack_transforms([member.transform]), []
    for start in range(0, len(rows), BLOCK):
        own = rows[start : start + BLOCK]
        block = np.resize(own, BLOCK)
        present = events.present[block]  # (B, F)
        values = np.where(present, events.values[block], np.float32(0))  # (B, F)
        inputs = (torch.from_numpy(values).unsqueeze(0), torch.from_numpy(present).unsqueeze(0))  # (1, B, F) each
        logits = classifier.of_classes(classifier.logits(views, tables, *inputs))  # (1, K, B, C)
        blocks.append(logits[0, :, : len(own)])  # (K, b, C)
    return torch.cat(blocks, dim=1)
