"""What a network sees of what is not there, and the names of all that goes in and comes out.

Features become numbers first (`models.transforms`). An absent value never reaches a network as a number: the network
sees what it learned for that feature, and one presence input for each object tells it which objects are there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.settings import TargetSettings


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


def filled(numbers: Tensor, known: Tensor, absent: Tensor) -> Tensor:
    """Put learned numbers where none are known.

    Args:
        numbers: Transformed, ``[M, B, W]``; anything where a value is absent.
        known: Which of them are known, bool ``[M, B, W]``.
        absent: The learned ones, ``[M, 1, W]``.

    Returns:
        ``[M, B, W]``.
    """
    return torch.where(known, numbers, absent)  # (M, B, W)


def presence(known: Tensor, membership: Tensor) -> Tensor:
    """Tell which objects are there: those that have any of their features.

    Args:
        known: Which features are known, bool ``[M, B, F]``.
        membership: Which feature belongs to which object, 0 or 1, ``[F, O]``.

    Returns:
        0 or 1, ``[M, B, O]``, in the type of the membership.
    """
    return ((known.to(membership.dtype) @ membership) > 0).to(membership.dtype)  # (M, B, O)
