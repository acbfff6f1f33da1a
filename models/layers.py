"""What a network says of its own layers: from it follow its drawing and what is recorded of each layer.

A network type lists its layers in the order in which events pass them; nothing else has to know the type.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """One layer of one network.

    Attributes:
        name: Unique within the network.
        width: How many numbers it gives for each event.
        parameters: Names of its parameters.
        steps: What happens in it, one after the other, in a word or two each.
        sees: Names of the layers whose outputs it reads.
        adds: The layer whose output is added to what it gives; empty for none.
        copies: How many submodels have it side by side; counts of parameters include all of them.
    """

    name: str
    width: int
    parameters: tuple[str, ...] = ()
    steps: tuple[str, ...] = ()
    sees: tuple[str, ...] = ()
    adds: str = ""
    copies: int = 1
