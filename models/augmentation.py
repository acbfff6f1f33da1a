"""Symmetries of collisions: events turned about the beam, mirrored along it or across it, and smeared.

Beams that are alike know no azimuth and no direction: an event that is turned or mirrored is as likely as it was. In
training every event is turned and mirrored anew in each step; at evaluation the probabilities of fixed copies are
averaged (Strong, Mach. Learn.: Sci. Technol. 1 (2020) 045006, arXiv 2002.01427). Which features change,
and how, the analysis declares; all others are taken to be invariant.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from models import hashing
from models.settings import Augmentation

_MOVES, _SMEARING = -11, -12  # added to the key of a step; dropout adds the number of a layer, regularisers -1 to -3
_TURN = 2 * math.pi


class Augmenter:
    """Moves the events of a stack whose networks share an augmentation.

    Attributes:
        copies: How many copies of an event are averaged at evaluation; the first one is the event as it is.
    """

    def __init__(self, settings: Augmentation, names: Sequence[str], device: str = "cpu") -> None:
        """Find the features that change.

        Args:
            settings: What is done to which features.
            names: All features, in the order of the columns.
            device: torch's name of the device.

        Raises:
            ValueError: The settings name a feature that there is not.
        """
        for name in settings.features:
            if name not in names:
                raise ValueError(f"training.augmentation names {name!r}; expected one of {', '.join(names)}.")
        self._settings, self.copies = settings, settings.copies
        places = {name: position for position, name in enumerate(names)}

        def mask(chosen: Sequence[str]) -> Tensor:
            return torch.tensor([name in chosen for name in names], device=device)  # (F,)

        seconds = [second for _, second in settings.vectors]
        self.angles = mask(settings.angles)
        self.odd = mask([*settings.angles, *seconds, *settings.signed_angles])
        self.longitudinal = mask(settings.longitudinal)
        self.vectors = mask([name for pair in settings.vectors for name in pair])
        partners, signs = list(range(len(names))), [0.0] * len(names)
        for first, second in settings.vectors:
            partners[places[first]], partners[places[second]] = places[second], places[first]
            signs[places[first]], signs[places[second]] = -1.0, 1.0
        self.partners = torch.tensor(partners, device=device)  # (F,)
        self.signs = torch.tensor(signs, device=device)  # (F,)
        smeared = settings.smearing
        self.smeared = torch.tensor([places[name] for name in smeared], dtype=torch.int64, device=device)  # (s,)
        self.absolute = torch.tensor([own.absolute for own in smeared.values()], device=device)  # (s,)
        self.relative = torch.tensor([own.relative for own in smeared.values()], device=device)  # (s,)

    def draw(self, values: Tensor, present: Tensor, keys: Tensor) -> Tensor:
        """Move each event at random, and smear it.

        Args:
            values: Features in their units, ``[M, B, F]``; absent entries may hold anything.
            present: bool ``[M, B, F]``.
            keys: Of the step, int64 ``[M]``.

        Returns:
            ``[M, B, F]``.
        """
        members, events = values.shape[:2]
        if len(self._settings.smearing):
            own = values.index_select(-1, self.smeared)  # (M, B, s)
            drawn = hashing.normal(hashing.splitmix64(keys + _SMEARING), own[0].numel())  # (M, B · s)
            width = torch.sqrt(self.absolute.square() + (self.relative * own).square())  # (M, B, s)
            values = values.index_copy(-1, self.smeared, own + drawn.view(own.shape).to(own.dtype) * width)
        if not self._settings.moves:
            return values
        bits = hashing.counters(hashing.splitmix64(keys + _MOVES), events).view(members, events, 1)  # (M, B, 1)
        turn = (bits >> 40).bitwise_and_(2**24 - 1).to(values.dtype) * (_TURN / 2**24)  # (M, B, 1)
        signs = [1 - 2 * (bits >> place).bitwise_and_(1).to(values.dtype) for place in (0, 1)]  # (M, B, 1) each
        return self._moved(values, present, turn, signs[0], signs[1])

    def copy(self, values: Tensor, present: Tensor, number: int) -> Tensor:
        """Move all events in one of the fixed ways; arguments and result as `draw`."""
        own = self._settings
        mirrors = [
            (phi, z)
            for z in ((1, -1) if own.reflection_z else (1,))
            for phi in ((1, -1) if own.reflection_phi else (1,))
        ]
        phi, z = mirrors[number % len(mirrors)]
        turn = _TURN * (number // len(mirrors)) / math.ceil(self.copies / len(mirrors))
        one = values.new_ones(1, 1, 1)
        return self._moved(values, present, turn * one, phi * one, z * one)

    def _moved(self, values: Tensor, present: Tensor, turn: Tensor, phi: Tensor, z: Tensor) -> Tensor:
        """Mirror by signs φ → ±φ and z → ±z, then turn; ``[M, B, 1]`` each."""
        own = self._settings
        if own.reflection_phi:
            values = torch.where(self.odd, values * phi, values)  # (M, B, F)
        if own.reflection_z:
            values = torch.where(self.longitudinal, values * z, values)  # (M, B, F)
        if own.rotation and own.angles:
            turned = values + turn  # (M, B, F)
            turned = turned - _TURN * torch.floor((turned + np.pi) / _TURN)  # (M, B, F), in [-π, π)
            values = torch.where(self.angles, turned, values)  # (M, B, F)
        if own.rotation and own.vectors:
            partner = values.index_select(-1, self.partners)  # (M, B, F)
            turned = torch.cos(turn) * values + torch.sin(turn) * self.signs * partner  # (M, B, F)
            both = self.vectors & present & present.index_select(-1, self.partners)  # (M, B, F)
            values = torch.where(both, turned, values)  # (M, B, F)
        return values
