"""How the probabilities of several networks become one score: written once, for friend trees, plots and ONNX alike.

With probabilities p_mc of network m for class c and N networks, by their names in the configuration:

- ``mean``: p_c = Σ_m p_mc / N.
- ``logits``: p_c ∝ exp(Σ_m ln p_mc / N), divided by the sum over classes. Logits say ln p up to a constant for each
  event, so that for networks that end in one softmax this is the softmax of the mean of their logits.
- ``median``: the median over m of each class by itself (of an even number the mean of the two in the middle), divided
  by the sum over classes. Where all of these are zero, it is the mean.
- ``weighted``: p_c = Σ_m a_m p_mc, a_m ∝ exp(-L_m) with Σ_m a_m = 1. L_m is the validation loss of the network's own
  stopping fold in nats, at the epoch whose parameters it has: for the cross-entropy exp(-L) is the (geometric) mean of
  the probabilities that it gives to true classes. It is defined for losses below zero too.

Networks are added one after the other, so that an event's score depends on neither its neighbours nor a kernel.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce

import torch
from torch import Tensor

from models.settings import Combination

_LINEAR: dict[Combination, Combination] = {"mean": "mean", "logits": "mean", "weighted": "weighted"}
_LEAST = 1e-30  # a probability whose logarithm stands for that of all smaller ones, well within float32


def predicted(
    predictions: Tensor, classes: int, how: Combination, shares: Tensor, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Combine probabilities as `combined` does, and the outputs of regression targets beside them.

    These are no probabilities: the median of each is taken as it is, and ``logits`` means their mean.

    Args:
        predictions: Of N networks, ``[N, ..., C + R]``.
        classes: How many of them are probabilities, the first ones.
        how: The way.
        shares: Weight of each network in ``weighted``, in any unit, ``[N]``.
        dtype: In which to compute.

    Returns:
        ``[..., C + R]`` of that type.
    """
    scores = combined(predictions[..., :classes], how, shares, dtype)  # (..., C)
    if predictions.shape[-1] == classes:
        return scores
    rest = predictions[..., classes:]  # (N, ..., R)
    outputs = _median(rest, dtype) if how == "median" else combined(rest, _LINEAR[how], shares, dtype)  # (..., R)
    return torch.cat([scores, outputs], dim=-1)


def combined(probabilities: Tensor, how: Combination, shares: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Combine networks.

    Args:
        probabilities: Of N networks, ``[N, ..., C]``.
        how: The way.
        shares: Weight of each network in ``weighted``, in any unit, ``[N]``.
        dtype: In which to compute.

    Returns:
        ``[..., C]`` of that type; over the classes it sums to one.
    """
    own = [probabilities[m] for m in range(len(probabilities))]  # (..., C) each
    if how == "logits":
        return torch.softmax(_sum(p.to(dtype).clamp(min=_LEAST).log() for p in own) / len(own), dim=-1)
    if how == "median":
        middle = _median(probabilities, dtype)  # (..., C)
        total = middle.sum(dim=-1, keepdim=True)  # (..., 1)
        mean = _sum(p.to(dtype) for p in own) / len(own)  # (..., C)
        return torch.where(total > 0, middle / total.clamp(min=_LEAST), mean)
    if how == "weighted":
        whole = (shares / shares.sum()).to(dtype)  # (N,)
        return _sum(p.to(dtype) * whole[m] for m, p in enumerate(own))
    return _sum(p.to(dtype) for p in own) / len(own)


def spread(probabilities: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """The standard deviation over networks ``[N, ..., C]``, with N - 1 in its denominator; 0 for a single one.

    It is what training anew would change, by other events and other random numbers: a variance of the training, and
    no uncertainty of the events.
    """
    count = len(probabilities)
    own = [probabilities[m].to(dtype) for m in range(count)]  # (..., C) each
    mean = _sum(own) / count  # (..., C)
    return torch.sqrt(_sum((p - mean) * (p - mean) for p in own) / max(count - 1, 1))


def _median(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    ordered, count = numbers.sort(dim=0).values, len(numbers)  # (N, ..., C)
    return (ordered[(count - 1) // 2].to(dtype) + ordered[count // 2].to(dtype)) / 2  # (..., C)


def _sum(terms: Iterable[Tensor]) -> Tensor:
    return reduce(torch.add, terms)
