"""Checkpoints: where a network's training stood after a step, so that a run that was killed goes on there.

All else follows from the seed, the epoch and the step (`models.hashing`): a training that goes on ends with the same
bits as one that was left alone. Checkpoints are safetensors: reading one executes nothing.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from models.members import History

FORMAT = 5
"""Version of the format; a checkpoint of another version is not gone on from."""

_ROW = "rows."  # begins the names of rows in the file
_DIAGNOSTIC = "diagnostics."  # likewise of diagnostics, with the quantity and the layer behind it

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


class Place(NamedTuple):
    """How far a training is."""

    epochs: int
    """Epochs done."""
    window: int
    """Windows of the next epoch done."""
    step: int
    """Steps done in the window after them."""


@dataclass(frozen=True)
class Checkpoint:
    """One network after a step.

    Attributes:
        place: How far its training is.
        running: Training loss of the next epoch so far, summed over events.
        ended: Whether its training has ended, with its best epoch behind it.
        rows: By name, float32 ``[P]``, ``[T]`` or ``[1]``: ``parameters``; ``best``, those of the best epoch so far;
            ``optimiser.NAME`` and ``averaging.NAME``, the states of the optimiser and of the average;
            ``snapshots.NUMBER``; ``diagnostics.squares``; ``kept``, float32 ``[D]``,
            0 for weights that have been pruned, where some have.
        training_loss: Per epoch, float64 ``[epochs]``.
        validation_loss: Likewise.
        learning_rate: Likewise.
        diagnostics: Likewise, by quantity and layer.
        earlier: Courses of the rounds before this one, where the network is pruned (`models.pruning`).
    """

    place: Place
    running: float
    ended: bool
    rows: dict[str, Floats]
    training_loss: Doubles
    validation_loss: Doubles
    learning_rate: Doubles
    diagnostics: dict[str, dict[str, Doubles]] = field(default_factory=dict)
    earlier: tuple[History, ...] = ()

    @property
    def steps(self) -> int:
        """Steps of the optimiser done in all."""
        return int(self.rows["optimiser.steps"][0])

    def to_bytes(self) -> bytes:
        """The checkpoint as one file."""
        from safetensors.numpy import save

        arrays = {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        arrays |= {_ROW + name: row for name, row in self.rows.items()}
        for quantity, layers in self.diagnostics.items():
            arrays |= {f"{_DIAGNOSTIC}{quantity}.{layer}": column for layer, column in layers.items()}
        earlier = json.dumps([dataclasses.asdict(history) for history in self.earlier]).encode()
        arrays["earlier"] = np.frombuffer(earlier, dtype=np.uint8)
        numbers = [*self.place, self.running, self.ended]
        return save({**arrays, "state": np.array([FORMAT, *numbers], dtype=np.float64)})

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
            version, *numbers = arrays.pop("state")
        except (SafetensorError, KeyError, ValueError) as error:
            raise ValueError(f"no checkpoint: {error}") from error
        if version != FORMAT:
            raise ValueError(f"a checkpoint of version {version:g}; expected {FORMAT}")
        epochs, window, step, running, ended = numbers
        diagnostics: dict[str, dict[str, Doubles]] = {}
        for name in sorted(name for name in arrays if name.startswith(_DIAGNOSTIC)):
            quantity, layer = name.removeprefix(_DIAGNOSTIC).split(".", 1)
            diagnostics.setdefault(quantity, {})[layer] = arrays.pop(name)
        earlier = json.loads(arrays.pop("earlier").tobytes())
        return Checkpoint(
            place=Place(int(epochs), int(window), int(step)),
            running=float(running),
            ended=bool(ended),
            rows={name.removeprefix(_ROW): row for name, row in arrays.items() if name.startswith(_ROW)},
            diagnostics=diagnostics,
            **{name: array for name, array in arrays.items() if not name.startswith(_ROW)},
            earlier=tuple(History(**{name: _course(own) for name, own in each.items()}) for each in earlier),
        )


def _course(own: Any) -> Any:
    """Numbers per epoch as `History` holds them, from JSON."""
    return {name: _course(each) for name, each in own.items()} if isinstance(own, dict) else tuple(own)


class Checkpoints(Protocol):
    """Where checkpoints are kept; networks are counted as the caller of the training counts them.

    With ``missing: separate``, the further networks of plan o of n are o + n, o + 2 n and so on.
    """

    def load(self, order: int) -> Checkpoint | None:
        """Where a network stood; None to begin anew."""

    def due(self) -> bool:
        """Whether it is time for the next ones; asked after every step."""

    def save(self, order: int, checkpoint: Checkpoint) -> None:
        """Keep where a network stands, in place of what was kept before."""

    def saved(self) -> None:
        """All that were due have been kept; may raise to end the training there."""
