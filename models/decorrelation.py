"""DisCo: a score that is independent of a spectator, such as a mass, by a penalty on their distance correlation.

Kasieczka and Shih, arXiv 2001.05310. The distance correlation (Székely, Rizzo and Bakirov, arXiv 0803.4101) is zero if
and only if two variables are independent; it counts events with non-negative weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CHUNK = 256
"""Events of which validation takes the distance correlation together, on every device."""
_SMALLEST = 1e-12  # what dCov² of the score with itself is taken to be at least: scores that are all the same


def squared_distance_correlation(scores: Tensor, spectator: Tensor, weights: Tensor) -> Tensor:
    """dCorr² = dCov²(s, m) / √(dCov²(s, s) dCov²(m, m)) of weighted events.

    With weights v that sum to one, dCov²(s, m) = Σ_ij v_i v_j A_ij B_ij, where A are the distances |s_i - s_j| less
    their weighted means over rows and columns, plus that over all, and B those of m likewise. It takes memory for some
    six matrices of N² numbers.

    Args:
        scores: ``[..., N]``.
        spectator: Finite, ``[..., N]``, in any unit.
        weights: At least zero; events of weight zero do not enter, ``[..., N]``.

    Returns:
        ``[...]``, between 0 and 1; 0 where all scores or all values are the same, or without events.
    """
    tiny = torch.finfo(scores.dtype).tiny
    shares = weights / weights.sum(dim=-1, keepdim=True).clamp(min=tiny)  # (..., N)
    pairs = shares.unsqueeze(-1) * shares.unsqueeze(-2)  # (..., N, N)
    far = _distances(spectator)  # (..., N, N)
    mean = _total(far * pairs)[..., None, None]  # (..., 1, 1)
    ours = _centred(_distances(scores), shares)  # (..., N, N)
    theirs = _centred(far / torch.where(mean > 0, mean, 1.0), shares)  # (..., N, N); the unit is gone
    both, own, other = (_total(pairs * a * b) for a, b in ((ours, theirs), (ours, ours), (theirs, theirs)))
    return both.clamp(min=0) / torch.sqrt(own.clamp(min=_SMALLEST) * other.clamp(min=_SMALLEST))  # (...)


class Decorrelation:
    """The penalties of a stack: Σ over spectators of λ dCorr²(score, spectator) over the background events.

    Events count with the sizes of their training weights; those that lack the spectator do not enter.
    """

    def __init__(
        self, columns: Sequence[int], strengths: Sequence[Sequence[float]], signal: int, device: str | torch.device
    ) -> None:
        """Lay out the strengths.

        Args:
            columns: The column of each spectator among the extra ones of the events.
            strengths: λ by member and spectator.
            signal: Position of the signal class.
            device: torch's name of the device.
        """
        self.columns, self.signal = tuple(columns), signal
        self.strengths = torch.tensor(strengths, dtype=torch.float64, device=device)  # (M, S)

    def __call__(self, scores: Tensor, extra: Tensor, labels: Tensor, weights: Tensor, chunk: int) -> Tensor:
        """The penalty of each member, times the number of its events, so that it may join a sum over them.

        Args:
            scores: Of the signal, ``[M, B]``.
            extra: Extra columns of the events, NaN where there is none, ``[M, B, E]``.
            labels: ``[M, B]``.
            weights: ``[M, B]``, zero where a row pads the batch.
            chunk: Events that are taken together; divides B.

        Returns:
            ``[M]``.
        """
        background = (weights * (labels != self.signal)).abs()  # (M, B)
        counts = self._cut((weights != 0).to(scores.dtype), chunk).sum(dim=-1)  # (M, B / chunk)
        own = self._cut(scores, chunk)  # (M, B / chunk, chunk)
        total = torch.zeros_like(scores[:, 0])  # (M,)
        for number, column in enumerate(self.columns):
            there = torch.isfinite(extra[..., column])  # (M, B)
            spectator = torch.where(there, extra[..., column], 0.0).to(scores.dtype)  # (M, B)
            shares = self._cut(background * there, chunk)  # (M, B / chunk, chunk)
            found = squared_distance_correlation(own, self._cut(spectator, chunk), shares)  # (M, B / chunk)
            total = total + self.strengths[:, number].to(scores.dtype) * (found * counts).sum(dim=-1)  # (M,)
        return total

    @staticmethod
    def _cut(column: Tensor, chunk: int) -> Tensor:
        return column.reshape(len(column), -1, chunk)

    def select(self, keep: Tensor) -> None:
        """Keep only the members at these positions, int64 ``[M']``."""
        self.strengths = self.strengths[keep]


def _distances(values: Tensor) -> Tensor:
    return (values.unsqueeze(-1) - values.unsqueeze(-2)).abs()  # (..., N, N)


def _total(matrices: Tensor) -> Tensor:
    """Sum over rows, then over them all, in an order that knows of no other matrix: ``[...]``."""
    return matrices.sum(dim=-1).sum(dim=-1)  # (...)


def _centred(distances: Tensor, shares: Tensor) -> Tensor:
    """Distances less their weighted means over rows and columns, plus that over all: ``[..., N, N]``."""
    rows = (distances * shares.unsqueeze(-2)).sum(dim=-1)  # (..., N)
    whole = (rows * shares).sum(dim=-1)  # (...)
    return distances - rows.unsqueeze(-1) - rows.unsqueeze(-2) + whole[..., None, None]
