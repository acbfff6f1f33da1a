"""First values of the weight matrices: `model.initialisation`.

The functions of `torch.nn.init` draw from a generator, whose numbers would depend on what was drawn before. Here they
are hashes of a key; `tests/test_networks.py` holds their spreads to those of torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models import hashing
from models.settings import ModelSettings, chosen

_AUTO = {"selu": "lecun_uniform", "tanh": "glorot_uniform", "sigmoid": "glorot_uniform", "linear": "glorot_uniform"}


@dataclass(frozen=True)
class Start:
    """The distribution of a parameter's first values.

    Attributes:
        kind: ``uniform``: in [centre - scale, centre + scale]; ``normal``: of mean ``centre`` and standard deviation
            ``scale``; ``signs``: -1 or 1; ``orthogonal``: a matrix whose columns or rows, whichever are fewer, are
            orthogonal to each other and ``scale`` long.
        scale: See ``kind``.
        centre: See ``kind``.
    """

    kind: Literal["uniform", "normal", "signs", "orthogonal"] = "uniform"
    scale: float = 0.0
    centre: float = 0.0

    def draw(self, shape: tuple[int, ...], stream: int) -> Tensor:
        """Draw the values of one parameter, float64 ``[size]``, from the key of a stream."""
        size = math.prod(shape)
        if self.kind in ("normal", "orthogonal"):
            normal = hashing.normal(torch.tensor([stream]), size)[0].double()  # (size,)
            if self.kind == "orthogonal":
                return _orthogonal(normal.view(shape)).flatten() * self.scale
            return self.centre + normal * self.scale
        draws = 2 * hashing.uniform(stream, size) - 1
        return draws.sign() if self.kind == "signs" else self.centre + draws * self.scale


@dataclass(frozen=True)
class Parameter:
    """One parameter tensor of one member.

    Attributes:
        name: Its name, unique within the network.
        shape: Its shape without the member axis.
        start: The distribution of its first values.
        decays: Whether weight decay acts on it.
        trained: Whether it follows gradients; otherwise the network changes it as it sees events.
        exact: Whether it stays in its own type where the network computes in another one.
    """

    name: str
    shape: tuple[int, ...]
    start: Start = Start()
    decays: bool = False
    trained: bool = True
    exact: bool = False

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


def matrix_start(settings: ModelSettings, activation: str, inputs: int, outputs: int) -> Start:
    """Find the distribution that a weight matrix starts from.

    ``auto`` is ``he_uniform`` before rectifiers and their smooth relatives, ``lecun_uniform`` before SELU, which
    Klambauer et al. (arXiv 1706.02515) require, and ``glorot_uniform`` before saturating functions and the output.

    Variances are 2 / (inputs + outputs) for Glorot and Bengio (AISTATS 2010, PMLR 9:249, eq. 16), 2 / inputs for He et
    al. (arXiv 1502.01852, eq. 10) and 1 / inputs for LeCun et al. (Efficient BackProp, 1998, eq. 16). Orthogonal
    matrices (Saxe et al., arXiv 1312.6120) are scaled by √2 before rectifiers and their relatives.

    Args:
        settings: What the network is.
        activation: Name of the activation that follows.
        inputs: Width before the matrix.
        outputs: Width after it.
    """
    asked = settings.initialisation
    name = _AUTO.get(activation, "he_uniform") if asked == "auto" else asked
    if name == "orthogonal":
        return Start("orthogonal", 1.0 if activation in _AUTO else math.sqrt(2))
    if name in ("zeros", "constant"):
        return Start(centre=chosen(settings, "initialisation").get("initial_constant", 0.0))
    family, _, kind = name.partition("_")
    above, below = {"glorot": (2, inputs + outputs), "he": (2, inputs), "lecun": (1, inputs)}[family]
    if kind == "normal":
        return Start("normal", math.sqrt(above / below))
    return Start("uniform", math.sqrt(3 * above / below))


def _orthogonal(normal: Tensor) -> Tensor:
    """Orthogonal factors of random matrices ``[..., inputs, outputs]``, as `torch.nn.init.orthogonal_` takes them."""
    wide = normal.shape[-2] < normal.shape[-1]
    factor, triangle = torch.linalg.qr(normal.mT if wide else normal)
    factor = factor * triangle.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)  # else it would not be uniform
    result: Tensor = factor.mT if wide else factor
    return result
