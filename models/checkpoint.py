"""Checkpoints: where a network's training stood at the end of an epoch, so that a run that was killed goes on there.

All else follows from the seed and the epoch (`models.hashing`): a training that goes on ends with the same bits as one
that was left alone. Checkpoints are safetensors: reading one executes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

FORMAT = 1
"""Version of the format; a checkpoint of another version is not gone on from."""

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Checkpoint:
    """One network at the end of an epoch.

    Attributes:
        epochs: Epochs done.
        ended: Whether its training has ended, with its best epoch behind it.
        steps: Steps of the optimiser done.
        parameters: float32 ``[P]``.
        best: Those of the best epoch so far, float32 ``[P]``.
        first: Running mean of the gradients, float32 ``[P]``.
        second: Running mean of their squares, float32 ``[P]``.
        training_loss: Per epoch, float64 ``[epochs]``.
        validation_loss: Likewise.
        learning_rate: Likewise.
    """

    epochs: int
    ended: bool
    steps: float
    parameters: Floats
    best: Floats
    first: Floats
    second: Floats
    training_loss: Doubles
    validation_loss: Doubles
    learning_rate: Doubles

    def to_bytes(self) -> bytes:
        """The checkpoint as one file."""
        from safetensors.numpy import save

        arrays = {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        return save({**arrays, "state": np.array([FORMAT, self.epochs, self.ended, self.steps], dtype=np.float64)})

    @staticmethod
    def from_bytes(content: bytes) -> Checkpoint:
        """Read what `to_bytes` has made.

        Raises:
            ValueError: It is no checkpoint of this version.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        try:
            arrays = load(content)
            version, epochs, ended, steps = arrays.pop("state")
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"no checkpoint: {error}") from error
        if version != FORMAT:
            raise ValueError(f"a checkpoint of version {version:g}; expected {FORMAT}")
        return Checkpoint(int(epochs), bool(ended), float(steps), **arrays)


class Checkpoints(Protocol):
    """Where checkpoints are kept; networks are counted as the caller of the training counts them."""

    def load(self, order: int) -> Checkpoint | None:
        """Where a network stood; None to begin anew."""

    def due(self) -> bool:
        """Whether it is time for the next ones; asked once at the end of every epoch."""

    def save(self, order: int, checkpoint: Checkpoint) -> None:
        """Keep where a network stands, in place of what was kept before."""
