"""Fixed stand-ins of absent values: `model.missing: default`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from models.events import Mask, TrainingEvents
from models.fitting import fit_moments
from models.settings import ModelSettings
from models.transforms import Layout, Transform, stack_transforms


def stand_in(
    layout: Layout, settings: ModelSettings, events: TrainingEvents, use: Mask, fit: Transform
) -> npt.NDArray[np.float32]:
    """Find what stands for the absent values of each feature in one network.

    Args:
        layout: What is made of which feature.
        settings: What the network is, with ``missing: default``.
        events: The events.
        use: Which of them it trains on, ``[N]``.
        fit: Its transform.

    Returns:
        float32 ``[W]``, as a value that is there: the numbers of a constant, or of the mean or median of the present
        values. Events count with |w|, scaled such that each class sums to the same, as in the transform. For a feature
        that none of them has they are 0.
    """
    chosen = settings.absence["missing_value"]
    if chosen == "mean":
        found = fit_moments(events, np.where(events.present, events.values, np.float32(np.nan)), [use])[0].mean  # (F,)
    elif chosen == "median":
        found = _medians(events, use)  # (F,)
    else:
        found = np.full(events.values.shape[1], chosen, dtype=np.float32)  # (F,)
    tables, values = stack_transforms([fit]), torch.from_numpy(found).view(1, 1, -1)  # (1, 1, F)
    _, known = layout.known(torch.ones_like(values, dtype=torch.bool), tables)  # (1, 1, W)
    numbers = layout.numbers(values, tables)  # (1, 1, W)
    return torch.where(known, numbers, 0.0)[0, 0].numpy()


def _medians(events: TrainingEvents, use: Mask) -> npt.NDArray[np.float32]:
    """The weighted median of each feature's present values, ``[F]``."""
    rows = np.flatnonzero(use)
    sizes, labels = np.abs(events.weights[rows]), events.labels[rows]  # (n,) each
    sums = np.bincount(labels, weights=sizes)
    shares = sizes / np.where(sums > 0, sums, 1.0)[labels]  # (n,)
    columns = zip(events.values.T, events.present.T, strict=True)
    return np.array([_median(column[rows], there[rows], shares) for column, there in columns])


def _median(
    column: npt.NDArray[np.float32], there: npt.NDArray[np.bool_], shares: npt.NDArray[np.float64]
) -> np.float32:
    """The smallest value with at least half of the weight at or below it; 0 without any."""
    own, counts = column[there], shares[there]
    if not len(own):
        return np.float32(0)
    order = np.argsort(own, kind="stable")
    below = np.cumsum(counts[order])
    return np.float32(own[order][np.searchsorted(below, below[-1] / 2)])
