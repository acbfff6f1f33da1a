"""Regression heads: numbers of each event that the networks learn beside its class, one or several outputs each.

A target is standardised by the weighted mean and standard deviation over a network's own training events that have it.
Both are parameters of the network that are not trained, so that they travel wherever it goes, and its outputs are in
the target's unit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from models.fitting import Moments
from models.preprocessing import Target
from models.settings import RegressionLoss

MEAN, SCALE = "target_mean", "target_scale"
"""Names of the parameters that hold the standardisation of each output, ``(1, R)``."""


def regression_losses(loss: RegressionLoss, found: Tensor, goals: Tensor, levels: Tensor) -> Tensor:
    """The loss of each event.

    With d = found - goal it is d² (``mean_squared``), |d| (``mean_absolute``), ln cosh d (``log_cosh``), or the mean
    over quantiles τ of max(-τ d, (1 - τ) d) (``quantile``: Koenker and Bassett, Econometrica 46 (1978) 33).

    Args:
        loss: Which it is.
        found: The standardised outputs, ``[M, K, B, Q]``.
        goals: The standardised target, ``[M, 1, B, 1]``.
        levels: The quantiles τ, ``[Q]``.

    Returns:
        ``[M, K, B]``.
    """
    apart = found - goals  # (M, K, B, Q)
    if loss == "mean_squared":
        return apart.square().squeeze(-1)
    if loss == "mean_absolute":
        return apart.abs().squeeze(-1)
    if loss == "log_cosh":
        size = apart.abs()  # (M, K, B, 1)
        return (size + functional.softplus(-2 * size) - math.log(2)).squeeze(-1)
    levels = levels.to(found.dtype)  # (Q,)
    return torch.maximum(-levels * apart, (1 - levels) * apart).mean(dim=-1)


def in_units(outputs: Tensor, targets: Sequence[Target], views: Mapping[str, Tensor]) -> Tensor:
    """Turn standardised outputs into the targets' units, quantiles in rising order.

    Where quantiles cross, sorting brings them nearer to the true ones (Chernozhukov, Fernández-Val and Galichon, arXiv
    0704.3649).

    Args:
        outputs: ``[M, K, B, R]``.
        targets: The targets.
        views: Parameters of the networks by name, ``[M, ...]``.

    Returns:
        Means over the submodels, ``[M, B, R]``.
    """
    sorted_outputs, start = [], 0
    for target in targets:
        columns = list(outputs[..., start : start + target.size].unbind(dim=-1))  # (M, K, B) each
        for last in range(len(columns) - 1, 0, -1):
            for place in range(last):
                lower, upper = columns[place], columns[place + 1]
                columns[place], columns[place + 1] = torch.minimum(lower, upper), torch.maximum(lower, upper)
        sorted_outputs += columns
        start += target.size
    means = torch.stack(sorted_outputs, dim=-1).mean(dim=1)  # (M, B, R)
    return means * views[SCALE] + views[MEAN]


@dataclass
class Regression:
    """The regression heads of a stack.

    Attributes:
        targets: What is learned.
        columns: The column of each target among the extra ones of the events.
        levels: The quantiles of each, float64 ``[Q]``.
        mean: Of the standardisation, ``[M, T]``.
        scale: Likewise.
        training: Factors that make the mean weight of a member's training events with a target one, and hold the
            target's own weight, float64 ``[M, T]``.
        validation: Likewise, of its validation events.
    """

    targets: tuple[Target, ...]
    columns: tuple[int, ...]
    levels: tuple[Tensor, ...]
    mean: Tensor
    scale: Tensor
    training: Tensor
    validation: Tensor

    def __call__(self, outputs: Tensor, extra: Tensor, weights: Tensor, factors: Tensor) -> Tensor:
        """Sum the weighted losses over the events of each member that have a target, averaged over its submodels.

        Args:
            outputs: Standardised, ``[M, K, B, R]``.
            extra: Extra columns of the events, NaN where there is none, ``[M, B, E]``.
            weights: ``[M, B]``.
            factors: `training` or `validation`.

        Returns:
            ``[M]``.
        """
        total, start = torch.zeros_like(weights[:, 0]), 0
        for number, (target, column, levels) in enumerate(zip(self.targets, self.columns, self.levels, strict=True)):
            found = outputs[..., start : start + target.size].contiguous()  # (M, K, B, Q)
            start += target.size
            there = torch.isfinite(extra[..., column])  # (M, B)
            mean, scale = self.mean[:, number : number + 1], self.scale[:, number : number + 1]  # (M, 1) each
            goals = (torch.where(there, extra[..., column], mean) - mean) / scale  # (M, B)
            counted = weights * there * factors[:, number : number + 1].to(weights.dtype)  # (M, B)
            goal = goals[:, None, :, None].to(found.dtype)  # (M, 1, B, 1)
            losses = regression_losses(target.settings.loss, found, goal, levels)  # (M, K, B)
            total = total + (losses * counted.unsqueeze(1)).sum(dim=2).mean(dim=1)  # (M,)
        return total

    def select(self, keep: Tensor) -> None:
        """Keep only the members at these positions, int64 ``[M']``."""
        for name in ("mean", "scale", "training", "validation"):
            setattr(self, name, getattr(self, name)[keep])


def target_factors(
    targets: Sequence[Target], goals: npt.NDArray[np.float32], weights: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Find what multiplies the balanced weights of the events that have a target.

    Args:
        targets: The targets.
        goals: Their values, NaN where there is none, ``[N, T]``.
        weights: Balanced weights, whose mean is one, ``[N]``.

    Returns:
        float64 ``[T]``: the target's weight, times the number of events over the sum of weights of those that have it.

    Raises:
        ValueError: A target whose weights sum to zero or below.
    """
    factors = []
    for target, column in zip(targets, goals.T, strict=True):
        there = np.isfinite(column)
        total = float(weights[there].sum())
        if not total > 0:
            raise ValueError(
                f"the weights of the {np.count_nonzero(there)} events that have the target {target.name!r} sum to "
                f"{total:.6g}; expected a sum above zero."
            )
        factors.append(target.settings.weight * len(weights) / total)
    return np.array(factors)


def per_output(targets: Sequence[Target], fit: Moments) -> tuple[Tensor, Tensor]:
    """Mean and scale of each output, float32 ``[R]``, from those of each target."""
    sizes = torch.tensor([target.size for target in targets])
    mean, scale = (torch.from_numpy(column).repeat_interleave(sizes) for column in (fit.mean, fit.scale))
    return mean, scale
