"""From features to what the first layer sees: standardisation, absent values and presence inputs.

An absent value never reaches a network as a number: the network sees a value that it learned for that feature, and
one presence input for each object tells it which objects are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.settings import TargetSettings

CLIP = 3.0
"""Where the smooth clip of standardised values levels off."""
CHUNK = 2048
"""Events whose moments are summed at once: they stay in the processor's cache."""
LARGEST = 1e6
"""Beyond this a standardised value is level with the clip, and its square would leave float32's range in the end."""


@dataclass(frozen=True)
class Target:
    """A regression target: its name, and what is learned of it."""

    name: str
    settings: TargetSettings

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of its outputs."""
        return self.settings.outputs(self.name)

    @property
    def size(self) -> int:
        """How many outputs it has."""
        return max(1, len(self.settings.levels))


@dataclass(frozen=True)
class Signature:
    """What goes into a network and what comes out.

    Attributes:
        features: Names of the features, in the order of the columns.
        feature_objects: The object that each feature belongs to, e.g. ``lepton2``.
        classes: Names of the classes, in the order of the labels and of the outputs.
        targets: Regression targets; their outputs follow those of the classes.

    Raises:
        ValueError: If the names do not fit each other.
    """

    features: tuple[str, ...]
    feature_objects: tuple[str, ...]
    classes: tuple[str, ...]
    targets: tuple[Target, ...] = ()

    def __post_init__(self) -> None:
        if len(self.features) != len(self.feature_objects) or not self.features:
            raise ValueError(
                f"{len(self.features)} features with {len(self.feature_objects)} objects; expected one object for "
                "each feature and at least one feature."
            )
        if len(set(self.features)) != len(self.features):
            raise ValueError("Two features have the same name.")
        if len(set(self.classes)) != len(self.classes) or len(self.classes) < 2:
            raise ValueError(f"Classes are {self.classes}; expected at least two different names.")
        if len(set(self.predicted)) != len(self.predicted):
            raise ValueError(f"Outputs of targets are {self.predicted}; expected different names.")

    @property
    def predicted(self) -> tuple[str, ...]:
        """Names of the outputs of all targets."""
        return tuple(name for target in self.targets for name in target.outputs)

    @property
    def objects(self) -> tuple[str, ...]:
        """The objects in the order of their first feature: the order of the presence inputs."""
        return tuple(dict.fromkeys(self.feature_objects))

    def membership(self) -> npt.NDArray[np.bool_]:
        """Return which feature belongs to which object, bool ``[features, objects]``."""
        return np.array([[owner == name for name in self.objects] for owner in self.feature_objects])


@dataclass(frozen=True)
class Standardisation:
    """Shift and scale of each feature.

    Attributes:
        mean: float32 ``[F]``, in the feature's unit.
        scale: float32 ``[F]``, in the feature's unit, above 0; infinite for a feature that no event of the fit has.
    """

    mean: npt.NDArray[np.float32]
    scale: npt.NDArray[np.float32]


def fit_standardisation(
    values: npt.NDArray[np.float32],
    present: npt.NDArray[np.bool_],
    weights: npt.NDArray[np.float64],
    labels: npt.NDArray[np.int64],
) -> Standardisation:
    """Fit the standardisation of one network to all events: see `fit_standardisations`."""
    return fit_standardisations(values, present, weights, labels, [np.ones(len(labels), dtype=np.bool_)])[0]


def fit_standardisations(
    values: npt.NDArray[np.float32],
    present: npt.NDArray[np.bool_],
    weights: npt.NDArray[np.float64],
    labels: npt.NDArray[np.int64],
    uses: Sequence[npt.NDArray[np.bool_]],
) -> list[Standardisation]:
    """Fit the weighted mean and standard deviation of each feature over its present values, for several networks.

    Events count with \\|w\\|, scaled such that each class sums to the same: a variance needs weights of one sign. The
    events are read once for all networks, in chunks; each network sums on its own, so that nothing of its fit depends
    on the others.

    Args:
        values: Features ``[N, F]``; absent entries, and those of events that no network uses, may hold anything.
        present: Which values are there, ``[N, F]``.
        weights: Physics weights ``[N]``, signed.
        labels: Class of each event, ``[N]``.
        uses: For each network, which events it trains on, ``[N]``.

    Returns:
        The statistics of each. A feature that is constant to float32 precision has scale 1; one that is never present
        has mean 0 and an infinite scale, and counts as absent wherever the network meets it: its weights have learned
        nothing.
    """
    features = values.shape[1]
    classes = int(labels.max()) + 1
    sizes = [np.bincount(labels[use], weights=np.abs(weights[use]), minlength=classes) for use in uses]  # (C,) each
    shares = [1 / np.where(size > 0, size, 1.0) for size in sizes]  # (C,) each
    moments = [torch.zeros(3 * features, dtype=torch.float64) for _ in uses]
    for start in range(0, len(labels), CHUNK):
        chunk = slice(start, start + CHUNK)
        known = present[chunk] & np.isfinite(values[chunk])  # (n, F)
        there, x = torch.from_numpy(known).double(), torch.from_numpy(np.where(known, values[chunk], 0)).double()
        powers = torch.cat([there, x, x.square()], dim=1)  # (n, 3·F)
        for sums, use, share in zip(moments, uses, shares, strict=True):
            mass = np.where(use[chunk], np.abs(weights[chunk]), 0.0) * share[labels[chunk]]  # (n,)
            sums.addmv_(powers.T, torch.from_numpy(mass))  # (3·F,)
    return [_standardisation(*total.view(3, features).numpy()) for total in moments]


def _standardisation(
    total: npt.NDArray[np.float64], first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]
) -> Standardisation:
    """Shift and scale from sums of w, w·x and w·x², ``[F]`` each."""
    divisor = np.where(total > 0, total, 1.0)
    mean = first / divisor
    spread = np.sqrt(np.maximum(second / divisor - mean**2, 0.0))
    scale = np.where(spread > 1e-6 * np.abs(mean), spread, 1.0)
    scale[total == 0] = np.inf
    return Standardisation(mean.astype(np.float32), scale.astype(np.float32))


def encode(
    values: Tensor, present: Tensor, statistics: tuple[Tensor, Tensor], absent: Tensor, membership: Tensor
) -> Tensor:
    """Turn features into network inputs, for a stack of M networks.

    A standardised value z becomes z / √(1 + (z/3)²), the smooth clip of Holzmüller, Grinsztajn and Steinwart (arXiv
    2407.04491, RealMLP): order and resolution of ordinary values stay, and the long tails of momenta and masses cannot
    dominate a layer.

    Args:
        values: ``[M, B, F]``, or ``[1, B, F]`` where all networks see the same events. Absent entries may hold
            anything, NaN and infinities included.
        present: bool, like ``values``.
        statistics: Mean and scale of the standardisation, ``[M, 1, F]`` each.
        absent: The learned replacements of absent values, after standardisation and clip, ``[M, 1, F]``.
        membership: Which feature belongs to which object, 0 or 1, ``[F, O]``.

    Returns:
        ``[M, B, F + O]``: the standardised values, smoothly clipped, or the learned ones; then 1 for each object
        that has any of its features.
    """
    mean, scale = statistics
    present = present & torch.isfinite(scale)  # (M, B, F)
    scaled = ((values - mean) / scale).clamp(-LARGEST, LARGEST)  # (M, B, F)
    # Products, a root and a quotient: IEEE 754 rounds each in one way, here as in onnxruntime.
    clipped = scaled / torch.sqrt(1 + scaled * scaled * (1 / CLIP**2))  # (M, B, F)
    filled = torch.where(present, clipped, absent)  # (M, B, F)
    there = ((present.to(membership.dtype) @ membership) > 0).to(filled.dtype)  # (M, B, O)
    return torch.cat([filled, there], dim=-1)  # (M, B, F + O)
