"""From features to numbers: a transform that is fitted on a network's own training events, and then frozen.

`KINDS` lists by name what can be made of a feature; `Layout` says which numbers come of which, and applies the
transforms of a stack of networks, which `models.fitting` fits. What is made of absent values and of the numbers comes
after: `models.preprocessing`, `models.embeddings`.

In the shape comments f is the number of features of one kind, Q that of the quantiles and W that of all numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.quantiles import at_quantile, weighted_quantiles
from models.settings import FeatureInput, ModelSettings, NumberInput, chosen

CLIP = 3.0
"""Where the smooth clip of standardised values levels off."""
LARGEST = 1e6
"""Beyond this a standardised value is level with the clip, and its square would leave float32's range in the end."""
QUANTILES = 255
"""Quantiles that `quantile_normal` keeps of a feature: one less than a power of two, for halving."""
WHOLE = 2**24
"""From here on float32 can't tell all whole numbers apart."""
_TURN = 2 * np.pi

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Tables = Mapping[str, Tensor]


@dataclass(frozen=True)
class Transform:
    """What one network's fit has found.

    Attributes:
        tables: float32, by the names of kind and quantity: ``[1, f]`` or ``[Q, f]`` for the features of a kind.
            ``seen``, ``[1, F]``, is 1 for each feature that the fit has met, else 0.
    """

    tables: dict[str, Floats]

    def only(self, seen: npt.NDArray[np.bool_]) -> Transform:
        """The transform of a network that sees some features, bool ``[F]``: the others count as never met."""
        return Transform({**self.tables, "seen": np.where(seen, self.tables["seen"], np.float32(0))})


Fit = Callable[[Doubles, Doubles], dict[str, Doubles]]
"""Returns tables for one feature from its sorted values and their weights, float64 ``[n]`` each, n > 0."""


@dataclass(frozen=True)
class Kind:
    """What can be made of a feature.

    Attributes:
        apply: Returns ``[M, B, f · width]`` from features ``[M, B, f]`` and tables ``[M, 1, f]`` or ``[M, Q, f]``.
        fit: From the values in their order; ``None`` if nothing else than moments is to be known.
        moments: Whether mean and standard deviation are the fit.
        width: Numbers that come of each feature, in blocks of f.
    """

    apply: Callable[[Tensor, Tables], Tensor]
    fit: Fit | None = None
    moments: bool = False
    width: int = 1


def smooth_clip(scaled: Tensor) -> Tensor:
    """Bound numbers, and hardly change small ones.

    z becomes z / √(1 + (z/3)²), the smooth clip of Holzmüller, Grinsztajn and Steinwart (arXiv 2407.04491, RealMLP):
    order and resolution of ordinary values stay, and the long tails of momenta and masses cannot dominate a layer.
    """
    # Products, a root and a quotient: IEEE 754 rounds each in one way, here as in onnxruntime.
    return scaled / torch.sqrt(1 + scaled * scaled * (1 / CLIP**2))


def _scaled(values: Tensor, tables: Tables) -> Tensor:
    return ((values - tables["shift"]) / tables["scale"]).clamp(-LARGEST, LARGEST)  # (M, B, f)


def _clipped(values: Tensor, tables: Tables) -> Tensor:
    return smooth_clip(_scaled(values, tables))  # (M, B, f)


def _fit_robust(x: Doubles, mass: Doubles) -> dict[str, Doubles]:
    """Median and interquartile range; where that is 0, half the range (RealMLP, arXiv 2407.04491)."""
    low, median, high = weighted_quantiles(x, mass, np.array([0.25, 0.5, 0.75]))
    spread = high - low if high > low else (x[-1] - x[0]) / 2
    return _named(shift=median, scale=spread if spread > 0 else 1.0)


def _fit_range(x: Doubles, _: Doubles) -> dict[str, Doubles]:
    return _named(shift=x[0], scale=x[-1] - x[0] if x[-1] > x[0] else 1.0)


def _fit_log(x: Doubles, mass: Doubles) -> dict[str, Doubles]:
    """The median size is the unit; mean and standard deviation of the logarithms."""
    sizes = np.abs(x)
    order = np.argsort(sizes, kind="stable")
    unit = float(weighted_quantiles(sizes[order], mass[order], np.array([0.5]))[0])
    unit = float(np.float32(unit)) or 1.0
    logs = np.sign(x) * np.log1p(sizes / unit)
    mean = np.average(logs, weights=mass)
    spread = np.sqrt(np.average((logs - mean) ** 2, weights=mass))
    return _named(unit=unit, shift=mean, scale=spread if spread > 1e-6 * abs(mean) else 1.0)


def _log(values: Tensor, tables: Tables) -> Tensor:
    sizes = (values.abs() / tables["unit"]).clamp(max=torch.finfo(torch.float32).max / 2)  # (M, B, f)
    return _clipped(values.sign() * torch.log(1 + sizes), tables)  # (M, B, f)


def _fit_quantiles(x: Doubles, mass: Doubles) -> dict[str, Doubles]:
    return _named(knots=weighted_quantiles(x, mass, np.linspace(0, 1, QUANTILES)))


def _quantile_normal(values: Tensor, tables: Tables) -> Tensor:
    return at_quantile(values, tables["knots"])  # (M, B, f)


def _angle(values: Tensor, _: Tables) -> Tensor:
    # Into one turn first: libraries differ in how they take the sine of large numbers.
    turned = (values - _TURN * torch.round(values / _TURN)).clamp(-np.pi, np.pi)  # (M, B, f)
    return torch.cat([torch.sin(turned), torch.cos(turned)], dim=-1)  # (M, B, 2·f)


def _category(values: Tensor, tables: Tables) -> Tensor:
    own = (values == tables["values"].transpose(1, 2)).to(tables["values"].dtype)  # (M, B, K) of one feature
    # Without any in training, the weights of unknown values have learned nothing, and are left out.
    unknown = (1 - own.sum(dim=-1, keepdim=True)) * tables["unknown"]  # (M, B, 1)
    return torch.cat([own, unknown], dim=-1)  # (M, B, K + 1)


def _fit_category(asked: FeatureInput, x: Doubles, mass: Doubles) -> dict[str, Doubles]:
    """The categories with the largest sums of weights, or those declared, in ascending order; then NaN."""
    worst = x[np.abs(x).argmax()]
    if abs(worst) >= WHOLE:
        raise ValueError(
            f"a category is {worst:.0f}; expected numbers below 2^24 = {WHOLE}, beyond which float32 does not tell "
            "whole numbers apart. Number the categories anew in physics.py."
        )
    values, members = np.unique(x, return_inverse=True)
    if asked.values is not None:
        told = np.array(asked.values, dtype=np.float32).astype(np.float64)
    else:
        sums = np.bincount(members, weights=mass)
        heaviest = np.sort(values[np.argsort(-sums, kind="stable")[: asked.count]])
        told = np.append(heaviest, np.full(asked.count - len(heaviest), np.nan))
    return _named(values=told, unknown=not np.isin(values, told).all())


def _named(**tables: npt.ArrayLike) -> dict[str, Doubles]:
    """Tables of one feature, float64 ``[1]`` or ``[Q]``."""
    return {name: np.atleast_1d(np.asarray(table, dtype=np.float64)) for name, table in tables.items()}


KINDS: dict[str, Kind] = {
    "standardise": Kind(_clipped, moments=True),
    "z_score": Kind(_scaled, moments=True),
    "robust": Kind(_clipped, _fit_robust),
    "quantile_normal": Kind(_quantile_normal, _fit_quantiles),
    "min_max": Kind(_scaled, _fit_range),
    "log": Kind(_log, _fit_log),
    "angle": Kind(_angle, width=2),
}


@dataclass(frozen=True)
class Group:
    """Features that become numbers in one way.

    Attributes:
        name: Of the kind, of a category also that of the feature; the first part of its tables' names.
        kind: See `Kind`.
        features: Their positions.
        category: What is asked for of a category; ``None`` for other kinds.
    """

    name: str
    kind: Kind
    features: tuple[int, ...]
    category: FeatureInput | None = None

    @property
    def width(self) -> int:
        """How many numbers come of them."""
        return self.kind.width * len(self.features)

    @property
    def single(self) -> bool:
        """Whether each of its features becomes one number."""
        return self.name in get_args(NumberInput)


class Layout:
    """Which numbers come of which features: first those that are single numbers, then angles, then categories.

    Attributes:
        names: The features.
        groups: The features by what is made of them, in the order of the numbers.
        owners: The feature of each number, int64 ``[W]``.
        measured: How many of the numbers, the first ones, are measured: all but those of categories.
        single: How many of the numbers, the first ones, are the only one of their feature.
        categories: The groups that are a category each.
        bins: How many bins there are of each single number; 0 for none.
        order: The features in the order of the groups, int64 ``[F]``; ``None`` if they are in order.
    """

    def __init__(self, names: Sequence[str], settings: ModelSettings, device: str = "cpu") -> None:
        """Lay out the numbers.

        Args:
            names: The features.
            settings: What the network is.
            device: torch's name of the device on which `numbers` will be called.

        Raises:
            ValueError: The settings name a feature that there is not.
        """
        for name in settings.inputs.features:
            if name not in names:
                raise ValueError(f"model.inputs.features names {name!r}; expected one of {', '.join(names)}.")
        asked = [settings.inputs.of(name) for name in names]
        groups = []
        for name, kind in KINDS.items():
            features = tuple(position for position, own in enumerate(asked) if own.kind == name)
            if features:
                groups.append(Group(name, kind, features))
        for position, own in enumerate(asked):
            if own.kind == "category":
                kind = Kind(_category, partial(_fit_category, own), width=own.count + 1)
                groups.append(Group(f"category.{names[position]}", kind, (position,), own))
        self.names, self.groups = tuple(names), tuple(groups)
        self.categories = tuple(group for group in groups if group.category is not None)
        self.single = sum(group.width for group in groups if group.single)
        self.measured = sum(group.width for group in groups if group.category is None)
        self.bins = int(chosen(settings, "embedding").get("embedding_bins", 0))
        order = [position for group in groups for position in group.features]
        owners = [np.tile(g.features, g.kind.width) for g in groups]
        identity = order == list(range(len(names)))
        self.order = None if identity else torch.tensor(order, device=device)  # (F,)
        self.owners = torch.from_numpy(np.concatenate(owners).astype(np.int64)).to(device)  # (W,)
        self._same = identity and len(self.owners) == len(names)

    @property
    def width(self) -> int:
        """How many numbers there are."""
        return len(self.owners)

    def numbers(self, values: Tensor, tables: Tables) -> Tensor:
        """Apply the transforms of a stack of M networks.

        Args:
            values: Features ``[M, B, F]``, or ``[1, B, F]`` for the same events in all networks; absent entries may
                hold anything, NaN and infinities included.
            tables: Of `stack_transforms`.

        Returns:
            ``[M, B, W]``; anything where a value is absent.
        """
        values = values.expand(max(map(len, tables.values())), -1, -1)  # (M, B, F)
        if self.order is not None:
            values = values.index_select(-1, self.order)  # (M, B, F)
        pieces, start = [], 0
        for group in self.groups:
            stop = start + len(group.features)
            pieces.append(group.kind.apply(values[..., start:stop], tables_of(group, tables)))  # (M, B, f · width)
            start = stop
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)  # (M, B, W)

    def known(self, present: Tensor, tables: Tables) -> tuple[Tensor, Tensor]:
        """Which features ``[M, B, F]`` and which numbers ``[M, B, W]`` of events are there, and were in training.

        Both are ``[1, B, …]`` where events and the table of what was there are the same for all networks. Weights of a
        feature that no event of the fit had have learned nothing: it counts as absent everywhere.
        """
        known = present & (tables["seen"] > 0)  # (M, B, F)
        return known, known if self._same else known.index_select(-1, self.owners)


def tables_of(group: Group, tables: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tables of a group by their own names."""
    prefix = f"{group.name}."
    return {name.removeprefix(prefix): table for name, table in tables.items() if name.startswith(prefix)}


def stack_transforms(transforms: Iterable[Transform]) -> dict[str, Tensor]:
    """Stack the tables of M networks, float32 ``[M, 1, f]`` or ``[M, Q, f]`` each."""
    tables: dict[str, list[Tensor]] = {}
    for transform in transforms:
        for name, table in transform.tables.items():
            tables.setdefault(name, []).append(torch.from_numpy(table))
    return {name: torch.stack(rows) for name, rows in tables.items()}
