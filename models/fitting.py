"""Fits of the transforms from features to numbers: of several networks at once, each to its own training events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from models.events import Mask, TrainingEvents
from models.quantiles import weighted_quantiles
from models.transforms import LARGEST, Doubles, Group, Layout, Transform

CHUNK = 2048
"""Events whose moments are summed at once: they stay in the processor's cache."""
_NARROW = 1e-4  # of the span: in bins that are narrower still, two runtimes would find themselves at different places
_FINITE = float(np.finfo(np.float32).max)


def fit_transforms(
    layout: Layout, events: TrainingEvents, uses: Sequence[Mask], shared: Sequence[int] | None = None
) -> list[Transform]:
    """Fit the transforms of several networks, each to the present values of its own training events.

    Events count with \\|w\\|, scaled such that each class sums to the same: variances and quantiles need weights of one
    sign. Moments of all features are summed for all networks in one pass, in chunks; what needs quantiles reads its
    features once more, and sorts each once for all networks. Each network sums on its own, so that nothing of its fit
    depends on the others.

    Args:
        layout: What is made of which feature.
        events: The events; absent values, and events that no network uses, may hold anything.
        uses: For each network, which events it trains on, ``[N]``.
        shared: For each feature the first of those whose moments are those of the values of all of them; ``None`` if
            each has its own. What needs more than moments is fitted to each feature alone.

    Returns:
        The transform of each. A feature that is constant to float32 precision has scale 1; one that is never present
        is not ``seen``.

    Raises:
        ValueError: A category holds a number that float32 can't tell from others.
    """
    labels, sizes = events.labels, np.abs(events.weights)
    shares = _shares(events, uses)  # (C,) each
    moments = _moments(events, events.values, events.present, uses, shares)  # (3, F) each
    if shared is not None:
        like = np.equal.outer(np.array(shared), np.array(shared)).astype(np.float64)  # (F, F)
        moments = [own @ like for own in moments]  # (3, F) each
    found: list[dict[str, list[Doubles]]] = [{} for _ in uses]  # by table, the columns of its features
    for group in layout.groups:
        for feature in group.features:
            order = _order(events, feature) if _sorts(layout, group) else None  # (n,)
            for use, share, own_moments, tables in zip(uses, shares, moments, found, strict=True):
                own: Mapping[str, Doubles] = {}
                if group.kind.moments:
                    own = _standardisation(*own_moments[:, feature])
                if order is not None:
                    rows = order[use[order] & (sizes[order] > 0)]  # (n',)
                    x, mass = events.values[rows, feature].astype(np.float64), sizes[rows] * share[labels[rows]]
                    if not len(x):
                        x, mass = np.zeros(1), np.ones(1)
                    if group.kind.fit is not None:
                        own = _fitted(layout, group, x, mass)
                    if layout.bins and group.single:
                        _append(tables, "bins", _bins(group, own, x, mass, layout.bins))
                _append(tables, group.name, own)
    return [
        Transform({"seen": _rounded(total[np.newaxis] > 0)} | {n: _rounded(np.stack(c, 1)) for n, c in tables.items()})
        for (total, _, _), tables in zip(moments, found, strict=True)
    ]


class Moments(NamedTuple):
    """Mean and standard deviation of some columns, float32 ``[T]`` each; 0 and 1 for one that no event has."""

    mean: npt.NDArray[np.float32]
    scale: npt.NDArray[np.float32]


def fit_moments(events: TrainingEvents, columns: npt.NDArray[np.float32], uses: Sequence[Mask]) -> list[Moments]:
    """Fit the standardisation of columns ``[N, T]``, NaN where there is none, as `fit_transforms` does of features."""
    present = np.isfinite(columns)
    found = []
    for sums in _moments(events, columns, present, uses, _shares(events, uses)):
        fits = [_standardisation(*own) for own in sums.T]
        found.append(Moments(*(_rounded(np.concatenate([fit[name] for fit in fits])) for name in ("shift", "scale"))))
    return found


def _shares(events: TrainingEvents, uses: Sequence[Mask]) -> list[Doubles]:
    """For each network what makes the sums of \\|w\\| over its training events 1 in each class, ``[C]``."""
    labels, sizes = events.labels, np.abs(events.weights)
    classes = int(labels.max()) + 1
    sums = [np.bincount(labels[use], weights=sizes[use], minlength=classes) for use in uses]  # (C,) each
    return [1 / np.where(own > 0, own, 1.0) for own in sums]  # (C,) each


def _sorts(layout: Layout, group: Group) -> bool:
    """Whether the fit of a group needs the values in their order."""
    return group.kind.fit is not None or (layout.bins > 0 and group.single)


def _order(events: TrainingEvents, feature: int) -> npt.NDArray[np.int64]:
    """Rows in which a feature is present, by its value; of equal values, the first one first."""
    column = np.asarray(events.values[:, feature])  # (N,)
    known = np.flatnonzero(events.present[:, feature] & np.isfinite(column))  # (n,)
    return known[np.argsort(column[known], kind="stable")]


def _append(tables: dict[str, list[Doubles]], prefix: str, own: Mapping[str, Doubles]) -> None:
    for name, table in own.items():
        tables.setdefault(f"{prefix}.{name}", []).append(table)


def _rounded(table: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """As float32; what is beyond it becomes its largest number, so that nothing is divided by infinity."""
    return np.clip(table.astype(np.float64), -_FINITE, _FINITE).astype(np.float32)


def _fitted(layout: Layout, group: Group, x: Doubles, mass: Doubles) -> dict[str, Doubles]:
    assert group.kind.fit is not None
    try:
        return group.kind.fit(x, mass)
    except ValueError as error:
        raise ValueError(f"{layout.names[group.features[0]]}: {error}") from None


def _bins(group: Group, own: Mapping[str, Doubles], x: Doubles, mass: Doubles, count: int) -> dict[str, Doubles]:
    """Bins of a feature's numbers, with equal sums of weights in each: see `models.embeddings.piecewise_linear`."""
    tables = {name: torch.from_numpy(_rounded(table)).view(1, -1, 1) for name, table in own.items()}
    quantiles = _rounded(weighted_quantiles(x, mass, np.linspace(0, 1, count + 1)))  # (bins + 1,)
    edges = np.unique(group.kind.apply(torch.from_numpy(quantiles).view(1, -1, 1), tables).double().numpy())
    span = edges[-1] - edges[0]
    edges = edges[np.append(True, np.diff(edges) > _NARROW * span)]
    if len(edges) == 1:
        edges = np.append(edges, edges + 1)
    # Equal edges leave bins over, whose components are 0.
    widths = np.diff(edges)
    start, rise, top = np.zeros(count), np.zeros(count), np.zeros(count)
    start[: len(widths)], rise[: len(widths)], top[: len(widths)] = edges[:-1], 1 / widths, 1.0
    top[len(widths) - 1] = LARGEST
    return {"start": start, "rise": rise, "top": top}


def _moments(
    events: TrainingEvents,
    columns: npt.NDArray[np.float32],
    present: npt.NDArray[np.bool_],
    uses: Sequence[Mask],
    shares: Sequence[Doubles],
) -> list[Doubles]:
    """Sums of w, w·x and w·x² of each network over columns ``[N, F]``, where they are present: ``[3, F]`` each."""
    features = columns.shape[1]
    moments = [torch.zeros(3 * features, dtype=torch.float64) for _ in uses]
    for start in range(0, len(events.labels), CHUNK):
        chunk = slice(start, start + CHUNK)
        values, weights, labels = columns[chunk], events.weights[chunk], events.labels[chunk]
        known = present[chunk] & np.isfinite(values)  # (n, F)
        there, x = torch.from_numpy(known).double(), torch.from_numpy(np.where(known, values, 0)).double()
        powers = torch.cat([there, x, x.square()], dim=1)  # (n, 3·F)
        for sums, use, share in zip(moments, uses, shares, strict=True):
            mass = np.where(use[chunk], np.abs(weights), 0.0) * share[labels]  # (n,)
            sums.addmv_(powers.T, torch.from_numpy(mass))  # (3·F,)
    return [total.view(3, features).numpy() for total in moments]


def _standardisation(total: float, first: float, second: float) -> dict[str, Doubles]:
    """Mean and standard deviation from sums of w, w·x and w·x²."""
    divisor = total if total > 0 else 1.0
    mean = first / divisor
    spread = float(np.sqrt(max(second / divisor - mean * mean, 0.0)))
    scale = spread if spread > 1e-6 * abs(mean) else 1.0
    return {"shift": np.array([mean]), "scale": np.array([scale])}
