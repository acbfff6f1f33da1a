"""What tells how well the layers of a network learn, for each epoch: gradients, dead units and saturation.

Gradient norm: the Euclidean norm of the gradient of a batch's loss by the parameters of a layer, before penalties and
clipping; the root of its mean square over the steps of the epoch.

A unit is *flat* for an event where the slope of its activation is no more than `FLAT`, since what it sees lies beyond
one of the points of `FLAT_BEYOND`: it passes no gradient on. (Smooth activations that fall before they rise have no
slope at their lowest point either; that is not counted.) Over all validation events, at the end of an epoch and
without dropout:

- dead: the share of units that are flat for every event. For rectifiers these are the units that are never active.
- saturation: the share of pairs of unit and event that are flat. For sigmoid and tanh it is the usual meaning, outputs
  within 0.01 (0.005) of an end; for rectifiers it is the share of zeros (of ``leaky_relu``, of negative values), of
  which half is as it should be. ``linear`` has none.

Nothing here changes a bit of a network. Sums stay on the device until an epoch ends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from models.networks import Classifier

FLAT = 0.01
"""The slope of an activation up to which a unit counts as flat."""

FLAT_BEYOND: dict[str, tuple[float, float]] = {
    "relu": (0.0, math.inf),
    "leaky_relu": (0.0, math.inf),
    "elu": (math.log(FLAT), math.inf),
    "selu": (-5.1694, math.inf),
    "silu": (-6.2613, math.inf),
    "gelu": (-3.0674, math.inf),
    "mish": (-6.2639, math.inf),
    "tanh": (-2.9932, 2.9932),
    "sigmoid": (-4.5849, 4.5849),
    "linear": (-math.inf, math.inf),
}
"""By activation: what its units see where they are flat, up to the first number and from the second one on."""


class Diagnostics:
    """Those of a stack.

    Attributes:
        squares: Squared gradients of the epoch so far, summed over its steps, float32 ``[M, T]``.
        flat: For each layer whose units were watched, how many events each unit is flat for, float32 ``[M, K·H]``.
        real: Which rows of the batch that is validated are events, bool ``[M, B]``.
    """

    def __init__(self, classifier: Classifier, parameters: Tensor) -> None:
        """Begin with nothing.

        Args:
            classifier: The networks.
            parameters: Those that are trained, ``[M, T]``; read for shape, type and device.
        """
        self.squares = torch.zeros_like(parameters)  # (M, T)
        self.flat: dict[str, Tensor] = {}
        self.real = torch.ones(len(parameters), 1, dtype=torch.bool, device=parameters.device)  # (M, 1)
        self._spans = _spans(classifier)
        self._low, self._high = FLAT_BEYOND[classifier.settings.activation]

    def add(self, gradients: Tensor) -> None:
        """Note the gradients of a step, ``[M, T]``."""
        self.squares += gradients * gradients  # two operations: each rounds in one way wherever a number stands

    def watch(self, layer: str, units: Tensor) -> None:
        """Note what the units of a layer see, ``[M, K·B, H]``, before their activation."""
        flat = units <= self._low  # (M, K·B, H)
        if self._high < math.inf:
            flat |= units >= self._high
        members, width = len(units), units.shape[-1]
        pairs = flat.to(torch.float32).view(members, -1, self.real.shape[1], width)  # (M, K, B, H)
        # Sums of ones are exact in any order.
        counts = (self.real[:, None, None, :].to(pairs.dtype) @ pairs).flatten(1)  # (M, K·H)
        self.flat[layer] = self.flat[layer] + counts if layer in self.flat else counts

    def select(self, keep: Tensor) -> None:
        """Keep only the members at these positions, int64 ``[M']``."""
        self.squares, self.real = self.squares[keep], self.real[keep]

    def conclude(self, steps: Tensor, events: Tensor) -> dict[str, dict[str, list[float]]]:
        """What an epoch has shown, by quantity and layer, for each member; begins the next epoch.

        Args:
            steps: That each member has taken, float64 ``[M]``.
            events: On which each is validated, float64 ``[M]``.
        """
        found: dict[str, dict[str, Tensor]] = {"gradient_norm": {}, "dead": {}, "saturation": {}}  # (M,) each
        for layer, spans in self._spans.items():
            sums = [self.squares[:, start:stop].sum(dim=1, dtype=torch.float64) for start, stop in spans]
            found["gradient_norm"][layer] = torch.sqrt(torch.stack(sums).sum(dim=0) / steps.clamp(min=1))
        for layer, flat in self.flat.items():
            counts = flat.to(torch.float64)  # (M, K·H)
            found["dead"][layer] = (counts == events.unsqueeze(1)).to(torch.float64).mean(dim=1)
            found["saturation"][layer] = counts.sum(dim=1) / (events * counts.shape[1])
        self.squares.zero_()
        self.flat.clear()
        return _on_host(found)


def _spans(classifier: Classifier) -> dict[str, list[tuple[int, int]]]:
    """Where in a row the trained parameters of each layer stand, by layers that have any."""
    places, start = {}, 0
    for parameter in classifier.parameters:
        if parameter.trained:
            places[parameter.name] = (start, start + parameter.size)
            start += parameter.size
    spans = {layer.name: [places[name] for name in layer.parameters if name in places] for layer in classifier.layers}
    return {name: own for name, own in spans.items() if own}


def _on_host(found: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, list[float]]]:
    """The numbers of all quantities and layers, read from the device at once."""
    columns = [(quantity, layer, column) for quantity, own in found.items() for layer, column in own.items()]
    numbers = torch.stack([column for _, _, column in columns]).tolist()
    result: dict[str, dict[str, list[float]]] = {}
    for (quantity, layer, _), own in zip(columns, numbers, strict=True):
        result.setdefault(quantity, {})[layer] = own
    return result
