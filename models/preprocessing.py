"""From features to what the first layer sees: standardisation, absent values and presence inputs.

An absent value never reaches a network as a number: the network sees a value that it learned for that feature, and
one presence input for each object tells it which objects are there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

CLIP = 3.0
"""Where the smooth clip of standardised values levels off."""
LARGEST = 1e6
"""Beyond this a standardised value is level with the clip, and its square would leave float32's range in the end."""


@dataclass(frozen=True)
class Signature:
    """What goes into a network and what comes out.

    Attributes:
        features: Names of the features, in the order of the columns.
        feature_objects: The object that each feature belongs to, e.g. ``lepton2``.
        classes: Names of the classes, in the order of the labels and of the outputs.

    Raises:
        ValueError: If the names do not fit each other.
    """

    features: tuple[str, ...]
    feature_objects: tuple[str, ...]
    classes: tuple[str, ...]

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
    """Fit the weighted mean and standard deviation of each feature over its present values.

    Events count with \\|w\\|, scaled such that each class sums to the same: a variance needs weights of one sign.

    Args:
        values: Features ``[N, F]``; absent entries may hold anything.
        present: Which values are there, ``[N, F]``.
        weights: Physics weights ``[N]``, signed.
        labels: Class of each event, ``[N]``.

    Returns:
        The statistics. A feature that is constant to float32 precision has scale 1; one that is never present has mean
        0 and an infinite scale, and counts as absent wherever the network meets it: its weights have learned nothing.
    """
    sizes = np.abs(weights)
    sums = np.bincount(labels, weights=sizes)
    balanced = sizes / np.where(sums > 0, sums, 1.0)[labels]  # (N,)
    mass = np.where(present, balanced[:, np.newaxis], 0.0)  # (N, F)
    known = np.where(present, values, 0).astype(np.float64)  # (N, F)
    total = mass.sum(axis=0)  # (F,)
    divisor = np.where(total > 0, total, 1.0)  # (F,)
    mean = (mass * known).sum(axis=0) / divisor  # (F,)
    variance = (mass * (known - mean) ** 2).sum(axis=0) / divisor  # (F,)
    spread = np.sqrt(variance)
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
    standardised = scaled / torch.sqrt(1 + (scaled / CLIP) ** 2)  # (M, B, F)
    filled = torch.where(present, standardised, absent)  # (M, B, F)
    there = ((present.to(membership.dtype) @ membership) > 0).to(filled.dtype)  # (M, B, O)
    return torch.cat([filled, there], dim=-1)  # (M, B, F + O)
