"""Every model and training setting, with its default: standard library only, so that the schema can read it.

Each class checks its own values, so that a wrong one is refused wherever it comes from (a YAML file, a saved
network, a call in Python). Types and unknown keys are checked where the configuration is parsed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

Activation = Literal["relu", "leaky_relu", "elu", "selu", "silu", "gelu", "mish", "tanh", "sigmoid", "linear"]
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
    normalisation: Normalisation = "none"
    dropout: float = 0.2
    submodels: int = 32

    def __post_init__(self) -> None:
        # Width 1 would turn matrix products into matrix-vector products, whose rounding depends on the stack.
        _require(all(width >= 2 for width in self.hidden), "hidden", self.hidden, "widths of at least 2")
        _require(0 <= self.dropout <= 0.99, "dropout", self.dropout, "a share between 0 and 0.99")
        _require(self.submodels >= 1, "submodels", self.submodels, "at least 1")


@dataclass(frozen=True)
class TrainingSettings:
    """How the networks are trained: AdamW (Loshchilov and Hutter, arXiv 1711.05101) on weighted cross-entropy.

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
        _require(self.window is None or self.window >= 1000, "window", self.window, "at least 1000 events, or null")
        _require(self.members >= 1, "members", self.members, "at least 1")


def _require(condition: bool, name: str, found: object, expected: str) -> None:
    """Raise a ``ValueError`` that names the setting, unless the condition holds."""
    if not condition:
        raise ValueError(f"{name} is {found!r}; expected {expected}.")
