"""Which events make the batches of an epoch, and what each counts: `training.sampling`.

All follows from hashes of a member's key and the events' identities, on the device: nothing depends on the order of the
events, on the device or on who else is in the stack.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models import hashing
from models.events import Counts, Table, Window, drawn
from models.settings import Sampling

_DRAWS, _KEPT = 5, 6  # streams of random numbers
Shares = npt.NDArray[np.float64]
_LAST = torch.iinfo(torch.int64).max


def batches(
    window: Window,
    sampling: Sampling,
    size: int,
    keys: Tensor,
    factors: Tensor,
    *,
    shares: Sequence[int] = (),
    kept: Shares | None = None,
) -> Tensor:
    """Choose the events of each member's batches.

    Args:
        window: The events; with one group of rows, or one for each class if ``sampling`` is ``balanced`` or some are
            ``kept``.
        sampling: How they are chosen.
        size: Events of a batch.
        keys: Keys of this epoch and window, int64 ``[M]``.
        factors: Of the classes, which balance their weights in a plain epoch, float64 ``[M, C]``.
        shares: Of ``balanced``: events of each class in a batch.
        kept: Of ``plain``: the share of each class's events that is drawn, ``[M, C]``; ``None`` for all.

    Returns:
        Rows of the window's table, int64 ``[S, M, size]``; a member with fewer steps than S has rows below zero.
    """
    count = window.counts.sum(axis=1)  # (M,)
    rows = window.groups[0]  # (M, L)
    if kept is not None:
        rows, count = _kept(window, keys, kept)  # (M, L), (M,)
    steps = -(-count // size)  # (M,)
    if sampling == "plain":
        draws = _shuffled(window.table, rows, count, count, keys)  # (M, T)
        return _cut(draws, int(steps.max()), size)  # (S, M, size)
    if sampling == "weighted":
        return _cut(_weighted(window, count, keys, factors), int(steps.max()), size)  # (S, M, size)
    parts = [
        _cut(_shuffled(window.table, rows, own, steps * share, keys), int(steps.max()), share)
        for rows, own, share in zip(window.groups, window.counts.T, shares, strict=True)
    ]
    return torch.cat(parts, dim=2)  # (S, M, size)


def shares(size: int, wanted: Sequence[float]) -> list[int]:
    """Events of each class in a balanced batch: at least one, and else as near as whole numbers come.

    Args:
        size: Events of the batch, at least one for each class.
        wanted: The share of each class; they sum to one.
    """
    exact = [size * share for share in wanted]
    found = [max(1, int(number + 1e-9)) for number in exact]
    while sum(found) != size:
        step = 1 if sum(found) < size else -1
        open_ = [label for label in range(len(found)) if step > 0 or found[label] > 1]
        found[max(open_, key=lambda label: (step * (exact[label] - found[label]), -label))] += step
    return found


def loss_factors(
    window: Window,
    sampling: Sampling,
    size: int,
    factors: Tensor,
    *,
    shares: Sequence[int] = (),
    kept: Shares | None = None,
) -> Tensor:
    """Find what each drawn event counts, such that those drawn from a window stand for all of its events.

    Args:
        window: As for `batches`.
        sampling: As for `batches`.
        size: Events of a batch.
        factors: Of the classes, which balance their weights in a plain epoch, float64 ``[M, C]``.
        shares: As for `batches`.
        kept: As for `batches`.

    Returns:
        float64 ``[M, C]``, to be multiplied by an event's weight, or by its sign if ``sampling`` is ``weighted``.
    """
    count = window.counts.sum(axis=1)  # (M,)
    if sampling == "weighted":
        means = balanced_sizes(window, factors).sum(dim=1) / torch.from_numpy(count).to(factors).clamp(min=1)  # (M,)
        return means.unsqueeze(1).expand_as(factors)  # (M, C)
    if sampling == "balanced":
        steps = -(-count // size)  # (M,)
        draws = np.outer(steps, shares)  # (M, C)
        return factors * torch.from_numpy(window.counts / np.maximum(draws, 1)).to(factors)  # (M, C)
    if kept is not None:
        draws = drawn(window.counts, kept)  # (M, C)
        return factors * torch.from_numpy(window.counts / np.maximum(draws, 1)).to(factors)  # (M, C)
    return factors


def _kept(window: Window, keys: Tensor, shares: Shares) -> tuple[Tensor, Counts]:
    """Draw a share of each class's rows: rows int64 ``[M, L]`` with padding in between, and how many are none."""
    draws = drawn(window.counts, shares)  # (M, C)
    choices = hashing.splitmix64(keys + _KEPT)  # (M,)
    parts = [
        _shuffled(window.table, rows, own, most, choices)
        for rows, own, most in zip(window.groups, window.counts.T, draws.T, strict=True)
    ]
    return torch.cat(parts, dim=1), draws.sum(axis=1)


def _shuffled(table: Table, rows: Tensor, counts: Counts, draws: Counts, keys: Tensor) -> Tensor:
    """Draw each member's rows in a random order, all of them before any comes again, and then in a new order.

    Args:
        table: The events.
        rows: ``[M, L]``.
        counts: How many of them are no padding, ``[M]``.
        draws: How many to draw, ``[M]``; none where there are no rows.
        keys: ``[M]``.

    Returns:
        int64 ``[M, T]``, T the largest number of draws.
    """
    least = np.maximum(counts, 1)  # (M,)
    draws = np.where(counts > 0, draws, 0)  # (M,)
    passes = max(1, int((-(-draws // least)).max()))  # Q
    numbers = torch.arange(passes, device=rows.device)  # (Q,)
    mixed = hashing.splitmix64(keys.unsqueeze(1) + (numbers << 32)).unsqueeze(2)  # (M, Q, 1)
    padding = rows < 0  # (M, L)
    identity = table.identity[torch.where(padding, ~rows, rows)]  # (M, L)
    hashes = hashing.splitmix64(identity.unsqueeze(1) ^ mixed)  # (M, Q, L)
    hashes.masked_fill_(padding.unsqueeze(1), _LAST)  # padding goes last
    order = _order(hashes).flatten(1)  # (M, Q·L)
    place = torch.arange(max(1, int(draws.max())), device=rows.device).unsqueeze(0)  # (1, T)
    if passes == 1:
        order = order[:, : place.shape[1]]  # (M, T)
    else:
        own = torch.from_numpy(least).to(rows.device).unsqueeze(1)  # (M, 1)
        order = order.gather(1, (place // own).clamp(max=passes - 1) * rows.shape[1] + place % own)  # (M, T)
    beyond = place >= torch.from_numpy(draws).to(rows.device).unsqueeze(1)  # (M, T)
    return torch.where(beyond, _filler(rows), rows.gather(1, order))  # (M, T)


def _order(hashes: Tensor) -> Tensor:
    """Places of the hashes ``[..., L]`` in ascending order along the last axis; on a processor numpy is faster."""
    if hashes.device.type == "cpu":
        return torch.from_numpy(np.argsort(hashes.numpy(), axis=-1))
    return hashes.argsort(dim=-1)


def _weighted(window: Window, counts: Counts, keys: Tensor, factors: Tensor) -> Tensor:
    """Draw rows with probabilities proportional to the sizes of their balanced weights: int64 ``[M, T]``."""
    rows = window.groups[0]  # (M, L)
    sums = balanced_sizes(window, factors).cumsum(dim=1)  # (M, L)
    numbers = torch.arange(int(counts.max()), device=rows.device)  # (T,)
    bits = hashing.counters(keys + _DRAWS, len(numbers))  # (M, T)
    uniform = (bits >> 11).bitwise_and_(2**53 - 1).to(torch.float64) * 2.0**-53  # (M, T)
    places = torch.searchsorted(sums, uniform * sums[:, -1:], right=True)  # (M, T)
    own = torch.from_numpy(counts).to(rows.device).unsqueeze(1)  # (M, 1)
    drawn = rows.gather(1, places.minimum(own - 1).clamp(min=0))  # (M, T)
    return torch.where(numbers >= own, _filler(rows), drawn)  # (M, T)


def balanced_sizes(window: Window, factors: Tensor) -> Tensor:
    """Sizes of the balanced weights of the rows to train on, float64 ``[M, L]``, zero where they pad."""
    _, _, labels, weights = window.table.gather(window.groups[0])  # (M, L) each
    return weights.abs() * factors.gather(1, labels)


def _cut(rows: Tensor, steps: int, size: int) -> Tensor:
    """Cut rows ``[M, T]`` into batches ``[S, M, size]``; what is missing is padded."""
    missing = steps * size - rows.shape[1]
    if missing > 0:
        rows = torch.cat([rows, _filler(rows).expand(-1, missing)], dim=1)  # (M, S·size)
    return rows[:, : steps * size].reshape(len(rows), steps, size).transpose(0, 1)  # (S, M, size)


def _filler(rows: Tensor) -> Tensor:
    """What pads each member: its first row, as one without weight; int64 ``[M, 1]``."""
    return torch.minimum(rows[:, :1], ~rows[:, :1])
