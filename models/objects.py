"""What the layers of a network see of an event's objects: `model.missing`.

By default the values of all objects stand side by side. As sets, objects become tokens of one width: like objects, such
as the leptons, share the parameters that make a token of their values, and enter as the sum or mean of the tokens of
those that are there. The layers cannot tell what values an absent object might have had: it has no token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from models.activations import ACTIVATIONS
from models.initialisation import Parameter, matrix_start
from models.linear import linear
from models.preprocessing import Signature
from models.settings import ModelSettings, alike

_NOT_THERE = 1e-30
"""What the presence of an object counts in attention where it is 0: nothing, but its logarithm has a slope."""


class Front(Protocol):
    """What stands between the preprocessing and the layers.

    Attributes:
        parameters: Of one member.
        width: How many numbers the layers see of an event.
        shared: For each feature the first of those that are standardised together with it; ``None`` if each is alone.
    """

    parameters: tuple[Parameter, ...]
    width: int
    shared: tuple[int, ...] | None

    def __call__(self, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Turn inputs of values and presence inputs ``[M, B, E + O]`` into what the layers see, ``[M, B, width]``."""


class SideBySide:
    """All values, those that stand for absent ones among them, and the presence inputs."""

    parameters: tuple[Parameter, ...] = ()

    def __init__(self, settings: ModelSettings, signature: Signature, inputs: int, device: str) -> None:  # noqa: ARG002
        """Count what the layers see; arguments as `Sets`."""
        objects = len(signature.objects)
        self.unseen = 0 if settings.indicator else objects
        self.width = inputs + objects - self.unseen
        self.shared: tuple[int, ...] | None = None

    def __call__(self, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:  # noqa: ARG002 - inputs have them
        """Leave out the presence inputs if the network is not to see them."""
        return inputs[..., : -self.unseen].contiguous() if self.unseen else inputs


@dataclass(frozen=True)
class Kind:
    """Objects that share parameters.

    Attributes:
        objects: Their names.
        rows: The features of all of them, and the row of the shared matrix that each has: one for like features, whose
            names are equal without the objects'.
    """

    objects: tuple[str, ...]
    rows: Mapping[int, int]

    @property
    def size(self) -> int:
        """How many rows there are."""
        return len(set(self.rows.values()))

    @staticmethod
    def of(objects: tuple[str, ...], signature: Signature) -> Kind:
        """Find the features of some objects that are alike."""
        rows: dict[int, int] = {}
        numbers: dict[str, int] = {}
        for feature, (name, owner) in enumerate(zip(signature.features, signature.feature_objects, strict=True)):
            if owner in objects:
                rows[feature] = numbers.setdefault(name.replace(owner, "", 1), len(numbers))
        return Kind(objects, rows)


class Sets:
    """Objects as tokens that are pooled over like ones (Zaheer et al., arXiv 1703.06114, theorem 2: ρ(Σ φ(x))).

    The token of an object is φ(x) = f(x W + b), with W and b of its kind and the activation f of the layers, which are
    ρ. With ``deep_sets`` only objects that are like others are tokens, and the values of the others stand beside their
    sums. With ``attention`` all objects are, and before f a token t becomes t + A(t), where A is the multi-head
    self-attention of Vaswani et al. (arXiv 1706.03762, eq. 1 and section 3.2.2) over the objects that are there.

    Like features are standardised together. A feature that one of like objects lacks adds nothing to its token; a value
    that is absent while its object is there is learned.

    Attributes:
        kinds: The objects of each kind.
        places: For each token and feature the row of the kind's matrix, the last one for features of other objects:
            int64 ``[O', F]``.
        tokens: The place of each token among the objects, int64 ``[O']``.
        beside: Features that stand beside the tokens, int64 ``[F']``.
        itself: Which token is which, bool ``[O', O']``.
    """

    def __init__(self, settings: ModelSettings, signature: Signature, inputs: int, device: str) -> None:  # noqa: ARG002
        """Find the kinds of objects, and lay out the parameters.

        Args:
            settings: What the network is.
            signature: Features and objects.
            inputs: How many inputs come of the values; for sets one of each feature, as the settings see to.
            device: torch's name of the device.

        Raises:
            ValueError: With ``deep_sets`` no object is like another.
        """
        own = settings.absence
        self.heads: int = own.get("attention_heads", 0)
        self.size: int = own["object_width"]
        self.mean, self.indicator = own["pooling"] == "mean", settings.indicator
        self.activation = ACTIVATIONS[settings.activation]
        groups = alike(signature.objects, own["like_objects"])
        self.kinds = [Kind.of(group, signature) for group in groups if self.heads or len(group) > 1]
        if not self.kinds:
            raise ValueError("No object is like another; expected like ones for missing: deep_sets.")

        def numbers(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int64, device=device)

        self.objects, features = len(signature.objects), len(signature.features)
        places, tokens = [], []
        for kind in self.kinds:
            for name in kind.objects:
                mine = [owner == name for owner in signature.feature_objects]
                places.append(numbers([kind.rows[f] if mine[f] else kind.size for f in range(features)]))
                tokens.append(signature.objects.index(name))
        self.places, self.tokens = torch.stack(places), numbers(tokens)  # (O', F), (O',)
        self.beside = numbers([f for f in range(features) if not any(f in kind.rows for kind in self.kinds)])  # (F',)
        self.itself = torch.eye(len(tokens), dtype=torch.bool, device=device)  # (O', O')
        self.shared: tuple[int, ...] | None = self._shared(features)
        self.width = len(self.kinds) * self.size + len(self.beside) + (self.objects if self.indicator else 0)
        self.parameters = tuple(self._parameters(settings))

    def _shared(self, features: int) -> tuple[int, ...]:
        """For each feature the first that is like it."""
        first: dict[tuple[int, int], int] = {}
        for number, kind in enumerate(self.kinds):
            for feature, row in kind.rows.items():
                first.setdefault((number, row), feature)
        like = {f: first[n, row] for n, kind in enumerate(self.kinds) for f, row in kind.rows.items()}
        return tuple(like.get(feature, feature) for feature in range(features))

    def _parameters(self, settings: ModelSettings) -> list[Parameter]:
        size, found = self.size, []
        for number, kind in enumerate(self.kinds):
            start = matrix_start(settings, settings.activation, kind.size, size)
            found += [Parameter(f"token_weight{number}", (kind.size, size), start, decays=True)]
            found += [Parameter(f"token_bias{number}", (1, size))]
        if self.heads:
            start = matrix_start(settings, "linear", size, size)
            for name, width in (("attention", 3 * size), ("mixing", size)):
                found += [Parameter(f"{name}_weight", (size, width), start, decays=True)]
                found += [Parameter(f"{name}_bias", (1, width))]
        return found

    def __call__(self, parameters: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Pool the tokens of each kind, and put beside them what is no token."""
        values = inputs[..., : -self.objects].contiguous()  # (M, B, F)
        there = inputs[..., -self.objects :].contiguous()  # (M, B, O)
        present = there.index_select(2, self.tokens)  # (M, B, O')
        tokens = self.embedded(parameters, values)  # (M, B, O', D)
        if self.heads:
            tokens = tokens + self.attention(parameters, tokens, present)  # (M, B, O', D)
        pooled = self.pooled(self.activation(tokens), present)  # (M, B, kinds·D)
        parts = [pooled, values.index_select(2, self.beside), *([there] if self.indicator else [])]
        return torch.cat(parts, dim=2)  # (M, B, width)

    def embedded(self, parameters: Mapping[str, Tensor], values: Tensor) -> Tensor:
        """Tokens ``[M, B, O', D]`` of values ``[M, B, F]``, by one product with a matrix of blocks."""
        blocks: list[Tensor] = []
        biases: list[Tensor] = []
        for number, kind in enumerate(self.kinds):
            own = functional.pad(parameters[f"token_weight{number}"], (0, 0, 0, 1))  # (M, rows + 1, D)
            for _ in kind.objects:
                blocks.append(own.index_select(1, self.places[len(blocks)]))  # (M, F, D)
                biases.append(parameters[f"token_bias{number}"])  # (M, 1, D)
        tokens = linear(torch.cat(biases, dim=2), values, torch.cat(blocks, dim=2))  # (M, B, O'·D)
        return tokens.view(*values.shape[:2], -1, self.size)

    def attention(self, parameters: Mapping[str, Tensor], tokens: Tensor, present: Tensor) -> Tensor:
        """What each token ``[M, B, O', D]`` takes from those that are there, ``[M, B, O']``, and from itself."""
        members, events, count, size = tokens.shape
        rows = tokens.flatten(1, 2)  # (M, B·O', D)
        asked = linear(parameters["attention_bias"], rows, parameters["attention_weight"])  # (M, B·O', 3·D)
        asked = asked.view(members * events, count, 3, self.heads, size // self.heads)
        query, key, value = asked.permute(2, 0, 3, 1, 4).unbind(0)  # (M·B, heads, O', D / heads) each
        # A token that is not there attends to itself alone, lest there be nothing: its result is left out. One that is
        # there in part, on a path of `models.importance`, is attended to in part.
        there = present.clamp(min=_NOT_THERE).log().view(members * events, 1, 1, count)  # (M·B, 1, 1, O')
        seen = there.masked_fill(self.itself, 0.0)  # (M·B, 1, O', O')
        taken = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)  # (M·B, heads, O', d)
        taken = taken.transpose(1, 2).reshape(rows.shape)  # (M, B·O', D)
        return linear(parameters["mixing_bias"], taken, parameters["mixing_weight"]).view(tokens.shape)

    def pooled(self, tokens: Tensor, present: Tensor) -> Tensor:
        """Sums or means over the like objects that are there, ``[M, B, kinds·D]``."""
        own = [token * there.unsqueeze(2) for token, there in zip(tokens.unbind(2), present.unbind(2), strict=True)]
        found, start = [], 0
        for kind in self.kinds:
            part = slice(start, start + len(kind.objects))
            total = reduce(torch.add, own[part])  # (M, B, D)
            if self.mean:
                total = total / present[..., part].sum(dim=2, keepdim=True).clamp(min=1)  # (M, B, D)
            found.append(total)
            start = part.stop
        return torch.cat(found, dim=2)  # (M, B, kinds·D)


FRONTS: dict[str, Callable[[ModelSettings, Signature, int, str], Front]] = {
    "learned": SideBySide,
    "default": SideBySide,
    "separate": SideBySide,
    "deep_sets": Sets,
    "attention": Sets,
}
