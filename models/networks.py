"""Networks as stacks: every parameter has a leading member axis, and one batched product serves all members.

A network type is a class that names its parameters and computes its logits; `NETWORKS` lists them by their name in
the configuration. `Classifier` puts the preprocessing in front and keeps all parameters of a member in one flat row,
so that clipping, optimiser, best snapshots and stopping act on one ``[M, P]`` tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from models import hashing
from models.preprocessing import Signature, Standardisation, encode
from models.settings import ModelSettings


def _linear(hidden: Tensor) -> Tensor:
    return hidden


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "leaky_relu": functional.leaky_relu,
    "elu": functional.elu,
    "selu": functional.selu,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "mish": functional.mish,
    "tanh": functional.tanh,
    "sigmoid": functional.sigmoid,
    "linear": _linear,
}
_SATURATING = ("tanh", "sigmoid", "linear")


@dataclass(frozen=True)
class Parameter:
    """One parameter tensor of one member.

    Attributes:
        name: Its name, unique within the network.
        shape: Its shape without the member axis.
        bound: Initial values are uniform in [-bound, bound].
        decays: Whether weight decay acts on it.
    """

    name: str
    shape: tuple[int, ...]
    bound: float = 0.0
    decays: bool = False


@dataclass(frozen=True)
class Dropout:
    """Dropout whose masks follow from one key per member and step, not from a generator's state.

    Attributes:
        keys: int64 ``[M]``.
        rate: Share of units set to zero.
    """

    keys: Tensor
    rate: float

    def __call__(self, hidden: Tensor, layer: int) -> Tensor:
        """Drop units of one layer's output ``[M, B, H]``."""
        if self.rate == 0:
            return hidden
        streams = hashing.splitmix64(self.keys + layer)  # (M,)
        mask = hashing.keep_mask(streams, hidden.shape[1], hidden.shape[2], self.rate)  # (M, B, H)
        return hidden * mask.to(hidden.dtype)


class Network(Protocol):
    """What a network type must offer."""

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The parameters of one member."""

    def logits(self, parameters: Mapping[str, Tensor], inputs: Tensor, dropout: Dropout | None) -> Tensor:
        """Return ``[M, B, outputs]`` from parameters ``[M, ...]`` and inputs ``[M, B, inputs]``."""


class Dense:
    """Fully connected layers with one activation, and dropout after each of them."""

    def __init__(self, settings: ModelSettings, inputs: int, outputs: int) -> None:
        self.activation = ACTIVATIONS[settings.activation]
        self.depth = len(settings.hidden)
        widths = (inputs, *settings.hidden, outputs)
        parameters: list[Parameter] = []
        for layer, (before, after) in enumerate(pairwise(widths)):
            bound = initial_bound("linear" if layer == self.depth else settings.activation, before, after)
            parameters.append(Parameter(f"weight{layer}", (before, after), bound, decays=True))
            parameters.append(Parameter(f"bias{layer}", (1, after)))
        self.parameters = tuple(parameters)

    def logits(self, parameters: Mapping[str, Tensor], inputs: Tensor, dropout: Dropout | None) -> Tensor:
        """Return the logits ``[M, B, outputs]``."""
        hidden = inputs  # (M, B, inputs)
        for layer in range(self.depth):
            weight, bias = parameters[f"weight{layer}"], parameters[f"bias{layer}"]  # (M, H, H'), (M, 1, H')
            hidden = self.activation(torch.baddbmm(bias, hidden, weight))  # (M, B, H')
            if dropout is not None:
                hidden = dropout(hidden, layer)  # (M, B, H')
        last = self.depth
        return torch.baddbmm(parameters[f"bias{last}"], hidden, parameters[f"weight{last}"])  # (M, B, outputs)


NETWORKS: dict[str, Callable[[ModelSettings, int, int], Network]] = {"dense": Dense}


def initial_bound(activation: str, inputs: int, outputs: int) -> float:
    """Return the bound of the uniform distribution that a weight matrix starts from.

    He et al. (arXiv 1502.01852, eq. 10: variance 2 / inputs) before rectifiers and their smooth relatives, LeCun
    (variance 1 / inputs) before SELU, which Klambauer et al. (arXiv 1706.02515) require, and Glorot and Bengio
    (AISTATS 2010, eq. 16: variance 2 / (inputs + outputs)) before saturating functions and the output.

    Args:
        activation: Name of the activation that follows.
        inputs: Width before the matrix.
        outputs: Width after it.
    """
    if activation in _SATURATING:
        return math.sqrt(6 / (inputs + outputs))
    return math.sqrt(3 / inputs) if activation == "selu" else math.sqrt(6 / inputs)


class Classifier:
    """Preprocessing and network of a stack of members, as functions of one parameter row per member."""

    def __init__(self, settings: ModelSettings, signature: Signature) -> None:
        """Lay out the parameters.

        Args:
            settings: What the network is.
            signature: Features, objects and classes.
        """
        features, objects = len(signature.features), len(signature.objects)
        self.settings = settings
        self.network = NETWORKS[settings.type](settings, features + objects, len(signature.classes))
        # Absent values start from 0, the mean of the present ones.
        self.parameters = (Parameter("absent", (1, features)), *self.network.parameters)
        self.membership = torch.from_numpy(signature.membership().astype(np.float32))  # (F, O)

    @property
    def size(self) -> int:
        """The number of parameters of one member."""
        return sum(math.prod(parameter.shape) for parameter in self.parameters)

    def initial(self, streams: Sequence[int]) -> Tensor:
        """Draw initial parameters.

        Args:
            streams: One key per member; its parameters follow from it alone.

        Returns:
            float32 ``[M, P]`` on the CPU.
        """
        rows = []
        for stream in streams:
            parts = []
            for position, parameter in enumerate(self.parameters):
                draws = hashing.uniform(hashing.key(stream, position), math.prod(parameter.shape))
                parts.append((2 * draws - 1) * parameter.bound)
            rows.append(torch.cat(parts).to(torch.float32))
        return torch.stack(rows)  # (M, P)

    def decays(self) -> Tensor:
        """Return where weight decay acts: float32 ``[P]`` of 0 and 1."""
        parts = [torch.full((math.prod(p.shape),), float(p.decays)) for p in self.parameters]
        return torch.cat(parts)

    def views(self, rows: Tensor) -> dict[str, Tensor]:
        """Cut parameter rows ``[M, P]`` into named views ``[M, ...]`` that share their memory."""
        views, start = {}, 0
        for parameter in self.parameters:
            stop = start + math.prod(parameter.shape)
            views[parameter.name] = rows[:, start:stop].view(-1, *parameter.shape)  # (M, ...)
            start = stop
        return views

    def logits(
        self,
        views: Mapping[str, Tensor],
        statistics: tuple[Tensor, Tensor],
        values: Tensor,
        present: Tensor,
        dropout: Dropout | None = None,
        *,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Compute the logits of all members.

        Args:
            views: Parameters by name, ``[M, ...]``.
            statistics: Mean and scale of the standardisation, ``[M, 1, F]`` each.
            values: Features ``[M, B, F]``, or ``[1, B, F]`` for the same events in all networks.
            present: bool, like ``values``.
            dropout: This step's dropout; ``None`` to evaluate.
            dtype: Type in which the network behind the preprocessing computes; ``None`` for that of the parameters.

        Returns:
            ``[M, B, classes]``.
        """
        membership = self.membership.to(statistics[0])  # (F, O)
        inputs = encode(values, present, statistics, views["absent"], membership)  # (M, B, F + O)
        if dtype is None:
            return self.network.logits(views, inputs, dropout)  # (M, B, classes)
        rounded = {name: view.to(dtype) for name, view in views.items()}  # (M, ...) each
        return self.network.logits(rounded, inputs.to(dtype), dropout).to(inputs.dtype)  # (M, B, classes)


def stack_statistics(fits: Sequence[Standardisation]) -> tuple[Tensor, Tensor]:
    """Stack the standardisations of M members into means and scales, float32 ``[M, 1, F]`` each."""
    mean = torch.from_numpy(np.stack([fit.mean for fit in fits])).unsqueeze(1)
    scale = torch.from_numpy(np.stack([fit.scale for fit in fits])).unsqueeze(1)
    return mean, scale
