"""Quantiles of weighted events, and the normal distribution's quantiles of values between them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

SMALLEST = 1e-7
"""The least probability in either tail: normal quantiles are within ±5.2, as scikit-learn's."""


def weighted_quantiles(
    values: npt.NDArray[np.float64], weights: npt.NDArray[np.float64], shares: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Find quantiles of weighted values; with equal weights those of ``numpy.quantile``.

    Each value stands in the middle of its weight; the first one is the quantile of 0, the last one that of 1.

    Args:
        values: Ascending, ``[n]``, n > 0.
        weights: Above 0, ``[n]``.
        shares: Between 0 and 1, ``[Q]``.

    Returns:
        ``[Q]``.
    """
    middles = np.cumsum(weights) - weights / 2  # (n,)
    length = middles[-1] - middles[0]
    places = (middles - middles[0]) / length if length > 0 else np.zeros_like(middles)  # (n,)
    return np.interp(shares, places, values)


def at_quantile(values: Tensor, knots: Tensor) -> Tensor:
    """Map values to the normal quantiles of their places among knots, as scikit-learn's `QuantileTransformer` does.

    Between knots the probability rises in a straight line. A value at which several knots lie stands in the middle of
    its jump, also at either end, which is what others reach by noise in the fit.

    Args:
        values: ``[M, B, f]``.
        knots: Quantiles at equal steps of probability, ascending, ``[M, Q, f]``; Q + 1 is a power of two.

    Returns:
        ``[M, B, f]``, within ±5.2.
    """
    last = knots.shape[1] - 1
    below = _count(values, knots, strictly=True)  # (M, B, f)
    upto = _count(values, knots, strictly=False)  # (M, B, f)
    left = (upto - 1).clamp(0, last - 1)  # (M, B, f)
    low, high = torch.gather(knots, 1, left), torch.gather(knots, 1, left + 1)  # (M, B, f) each
    width = high - low
    jump, middle = upto > below, (below + upto - 1).to(knots.dtype) / 2  # (M, B, f) each
    # From both ends, as small probabilities have more digits than those near 1.
    from_low = torch.where(jump, middle, left.to(knots.dtype) + (values - low) / width) / last
    from_high = torch.where(jump, last - middle, (last - 1 - left).to(knots.dtype) + (high - values) / width) / last
    tail = normal_quantile(torch.minimum(from_low, from_high).clamp(SMALLEST, 0.5))  # (M, B, f)
    return torch.where(from_low < from_high, tail, -tail)  # (M, B, f)


def normal_quantile(share: Tensor) -> Tensor:
    """The normal distribution's quantile of shares from 1e-10 to 0.5, to seven digits.

    Wichura, algorithm AS 241, Applied Statistics 37 (1988) 477, routine PPND7: products, a root and a logarithm, so
    that any runtime can compute it.
    """
    q = share - 0.5
    r = 0.180625 - q * q
    above = ((59.109374720 * r + 159.29113202) * r + 50.434271938) * r + 3.3871327179
    below = ((67.187563600 * r + 78.757757664) * r + 17.895169469) * r + 1.0
    s = torch.sqrt(-torch.log(share)) - 1.6
    outside = ((0.17023821103 * s + 1.3067284816) * s + 2.7568153900) * s + 1.4234372777
    outside = outside / ((0.12021132975 * s + 0.73700164250) * s + 1.0)
    return torch.where(q >= -0.425, q * above / below, -outside)


def _count(values: Tensor, knots: Tensor, strictly: bool) -> Tensor:
    """How many knots are below values, or not above them: halving, int64 ``[M, B, f]``."""
    count = torch.zeros(values.shape, dtype=torch.int64, device=values.device)  # (M, B, f)
    step = (knots.shape[1] + 1) // 2
    while step > 0:
        knot = torch.gather(knots, 1, count + (step - 1))  # (M, B, f)
        count = count + step * ((knot < values) if strictly else (knot <= values)).to(torch.int64)
        step //= 2
    return count
