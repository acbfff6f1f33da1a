"""The activations by their names in the configuration: torch's own."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional


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
