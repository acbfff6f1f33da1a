"""Every model and training setting, with its default: standard library only, so that the schema can read it.

Each class checks its own values, so that a wrong one is refused wherever it comes from (a YAML file, a saved
network, a call in Python). Types and unknown keys are checked where the configuration is parsed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

Activation = Literal["relu", "leaky_relu", "elu", "selu", "silu", "gelu", "mish", "tanh", "sigmoid", "linear"]
Initialisation = Literal[
    "auto",
    "glorot_uniform",
    "glorot_normal",
    "he_uniform",
    "he_normal",
    "lecun_uniform",
    "lecun_normal",
    "orthogonal",
    "zeros",
    "constant",
]
Loss = Literal["cross_entropy", "binary_cross_entropy", "focal"]
Connections = Literal["plain", "residual", "densely_connected"]
Schedule = Literal["constant", "cosine", "one_cycle"]
Precision = Literal["auto", "fp32", "bf16"]
NetworkType = Literal["dense", "tabm"]
Normalisation = Literal["none", "batch", "layer"]
Sampling = Literal["plain", "weighted", "balanced"]


@dataclass(frozen=True)
class ModelSettings:
    """What a network is.

    Attributes:
        type: ``dense``, fully connected layers; ``tabm``, several such networks that share their matrices and differ in
            scales, biases and last layers (Gorishniy, Kotelnikov and Babenko, arXiv 2410.24210).
        hidden: Widths of the hidden layers; an empty tuple gives logistic regression.
        activation: The non-linearity after each hidden layer.
        initialisation: What the weight matrices start from; ``auto`` chooses by the activation that follows
            (`models.initialisation`).
        initial_constant: Where all weights start with ``constant``.
        connections: Between layers: ``plain``; ``residual``, what a hidden layer but the first sees is added to what it
            gives; ``densely_connected``, each layer sees the inputs and what all layers before it give.
        normalisation: Before each of them: ``none``; ``batch`` (Ioffe and Szegedy, arXiv 1502.03167), by the mean and
            variance of each unit over the events of a batch, in evaluation by their running means; ``layer`` (Ba, Kiros
            and Hinton, arXiv 1607.06450), by those over the units of each event.
        dropout: Share of hidden units that are set to zero in each training step (Srivastava et al. 2014).
        submodels: Of ``tabm``, how many networks share the matrices.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    type: NetworkType = "dense"
    hidden: tuple[int, ...] = (128, 128, 128)
    activation: Activation = "silu"
    initialisation: Initialisation = "auto"
    initial_constant: float = 0.1
    connections: Connections = "plain"
    normalisation: Normalisation = "none"
    dropout: float = 0.2
    submodels: int = 32

    def __post_init__(self) -> None:
        # Width 1 would turn matrix products into matrix-vector products, whose rounding depends on the stack.
        _require(all(width >= 2 for width in self.hidden), "hidden", self.hidden, "widths of at least 2")
        _require(0 <= self.dropout <= 0.99, "dropout", self.dropout, "a share between 0 and 0.99")
        _require(self.submodels >= 1, "submodels", self.submodels, "at least 1")
        _require(math.isfinite(self.initial_constant), "initial_constant", self.initial_constant, "a finite number")
        _belongs(self, "initial_constant", "initialisation", "constant")
        if self.connections == "residual":
            same = len(self.hidden) >= 2 and len(set(self.hidden)) == 1
            _require(same, "hidden", self.hidden, "two or more layers of one width, as connections is 'residual'")
        if self.connections == "densely_connected":
            some = "at least one layer, as connections is 'densely_connected'"
            _require(len(self.hidden) > 0, "hidden", self.hidden, some)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know of a choice that is allowed, but hardly wanted."""
        if self.initialisation not in ("zeros", "constant"):
            return ()
        return (
            f"model.initialisation is {self.initialisation}: all units of a layer start alike, get the same "
            "gradients and stay alike, so that a layer learns no more than one unit (the symmetry problem). Choose "
            "auto, or one that is random.",
        )


@dataclass(frozen=True)
class TrainingSettings:
    """How the networks are trained: AdamW (Loshchilov and Hutter, arXiv 1711.05101) on a weighted loss.

    Attributes:
        epochs: Largest number of passes over the training events.
        batch_size: Events per step.
        learning_rate: Peak learning rate.
        weight_decay: Decoupled decay of the weight matrices; biases and learned absent values are left alone.
        schedule: Course of the learning rate over the epochs: ``constant``, ``cosine`` (half a period, down to
            zero) or ``one_cycle`` (arXiv 1708.07120: up over the first 30% of the steps, then down).
        patience: Stop after this many epochs without a better validation loss; ``None`` never stops. Either
            way the network of the best epoch is kept.
        clip_norm: Largest Euclidean norm of a network's gradient; ``None`` does not clip.
        loss: ``cross_entropy``; ``binary_cross_entropy``, with one logit for each class that tells it from the others;
            ``focal`` (Lin et al., arXiv 1708.02002), which counts events less the better they are learned.
        focal_gamma: Of ``focal``: the power of 1 - p that multiplies the loss; 0 gives ``cross_entropy``.
        label_smoothing: Share of each label that is spread over all classes (Szegedy et al., arXiv 1512.00567).
        label_noise: Share of the labels that each step draws anew from all classes.
        input_noise: Standard deviation of Gaussian noise on the standardised inputs of each step.
        weight_noise: Standard deviation of Gaussian noise on the weight matrices of each step.
        l1: Strength λ of the penalty λ Σ|w| on the weight matrices, in the loss.
        l2: Strength λ of the penalty λ/2 Σw² on the weight matrices, in the loss; ``weight_decay`` is none.
        max_norm: Largest Euclidean norm of the weights into a unit, after each step; ``None`` for none.
        stop_gap: Stop after the first epoch whose validation loss is more than so many nats above its training loss;
            ``None`` never stops.
        stop_generalisation: Stop after the first epoch whose validation loss is more than so many per cent above the
            best one (Prechelt 1998, criterion GL); ``None`` never stops.
        precision: Of matrix products and hidden layers in training and validation: ``fp32``; ``bf16``, with parameters,
            optimiser and losses in fp32; ``auto``, bf16 on a GPU and fp32 on a processor. Scores are always computed
            in fp32.
        sampling: Which events make an epoch: ``plain``, each training event once, its weight in the loss; ``weighted``,
            as many as there are training events, drawn with probabilities proportional to the sizes of their balanced
            weights, which then count alike, with their sign; ``balanced``, as many, with an equal number of each class
            in every batch, so that those of a rare class come again, and weights in the loss.
        window: Events in memory at a time; ``None`` for all. With more events than that, each epoch reads them in
            windows, which join parts of the data at random, the next one while the network trains on the one before.
        members: Networks per fold; they differ in initial weights, batch order and dropout.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    epochs: int = 30
    batch_size: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    schedule: Schedule = "one_cycle"
    patience: int | None = 10
    clip_norm: float | None = 1.0
    loss: Loss = "cross_entropy"
    focal_gamma: float = 2.0
    label_smoothing: float = 0.0
    label_noise: float = 0.0
    input_noise: float = 0.0
    weight_noise: float = 0.0
    l1: float = 0.0
    l2: float = 0.0
    max_norm: float | None = None
    stop_gap: float | None = None
    stop_generalisation: float | None = None
    precision: Precision = "auto"
    sampling: Sampling = "plain"
    window: int | None = None
    members: int = 1

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, "epochs", self.epochs, "at least 1")
        _require(self.batch_size >= 1, "batch_size", self.batch_size, "at least 1")
        _require(self.learning_rate > 0, "learning_rate", self.learning_rate, "a number above 0")
        _require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "a number of at least 0")
        _require(self.patience is None or self.patience >= 1, "patience", self.patience, "at least 1, or null")
        _require(self.clip_norm is None or self.clip_norm > 0, "clip_norm", self.clip_norm, "above 0, or null")
        _belongs(self, "focal_gamma", "loss", "focal")
        for name in ("label_smoothing", "label_noise"):
            share = getattr(self, name)
            _require(0 <= share < 1, name, share, "a share of at least 0 and below 1")
        for name in ("focal_gamma", "input_noise", "weight_noise", "l1", "l2"):
            value = getattr(self, name)
            _require(0 <= value < math.inf, name, value, "a number of at least 0")
        for name in ("max_norm", "stop_gap", "stop_generalisation"):
            limit = getattr(self, name)
            _require(limit is None or 0 < limit < math.inf, name, limit, "a number above 0, or null")
        _require(self.window is None or self.window >= 1000, "window", self.window, "at least 1000 events, or null")
        _require(self.members >= 1, "members", self.members, "at least 1")


def _require(condition: bool, name: str, found: object, expected: str) -> None:
    """Raise a ``ValueError`` that names the setting, unless the condition holds."""
    if not condition:
        raise ValueError(f"{name} is {found!r}; expected {expected}.")


def _belongs(settings: ModelSettings | TrainingSettings, name: str, owner: str, choice: str) -> None:
    """Raise a ``ValueError`` if a setting has another value than its default, but its owner is not what reads it."""
    default = next(field.default for field in fields(settings) if field.name == name)
    found = getattr(settings, name)
    expected = f"{default!r}, its default, unless {owner} is {choice!r}"
    _require(found == default or getattr(settings, owner) == choice, name, found, expected)
