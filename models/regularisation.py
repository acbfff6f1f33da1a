"""What keeps networks from learning their training events by heart, beside dropout and weight decay.

Penalties, noise and the largest norm act on the rows of all members at once; each has strengths of its own, and one of
zero changes no bit. The noise follows from the keys of a step (`models.hashing`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from models import hashing
from models.losses import columns
from models.settings import TrainingSettings

INPUT_NOISE, LABEL_NOISE, WEIGHT_NOISE = -1, -2, -3
"""What is added to the key of a step for each kind of noise; dropout adds the number of a layer."""
_TINY = 1e-300


class Regularisers:
    """Those of a stack; each is ``None`` if no member has it.

    Attributes:
        l1: Strength of the penalty λ Σ|w|, float64 ``[M, 1]``.
        l2: Strength of the penalty λ/2 Σw², float64 ``[M, 1]``.
        inputs: Standard deviation of the noise on standardised inputs, float64 ``[M, 1]``.
        labels: Share of the labels that are drawn anew, float64 ``[M, 1]``.
        weights: Standard deviation of the noise on weight matrices, float64 ``[M, 1]``.
        norms: Largest norm of the weights into a unit, float64 ``[M, 1]``, infinite where there is none.
    """

    def __init__(self, settings: Sequence[TrainingSettings], device: str | torch.device) -> None:
        """Lay out the strengths of the members with these settings on a device."""
        self.l1 = columns([own.l1 for own in settings], device)
        self.l2 = columns([own.l2 for own in settings], device)
        self.inputs = columns([own.input_noise for own in settings], device)
        self.labels = columns([own.label_noise for own in settings], device)
        self.weights = columns([own.weight_noise for own in settings], device)
        norms = [math.inf if own.max_norm is None else own.max_norm for own in settings]
        self.norms = None if min(norms) == math.inf else columns(norms, device)

    def select(self, keep: Tensor) -> None:
        """Keep only the members at these positions, int64 ``[M']``."""
        for name, value in vars(self).items():
            setattr(self, name, None if value is None else value[keep])

    def noisy_inputs(self, inputs: Tensor, known: Tensor, keys: Tensor) -> Tensor:
        """Add noise to the standardised values that are there, and to nothing that stands for an absent one.

        Args:
            inputs: Of the first layer, ``[M, B, F + O]``, the values first.
            known: Which values are there, bool ``[M, B, F]``.
            keys: Of the step, int64 ``[M]``.

        Returns:
            ``[M, B, F + O]``.
        """
        if self.inputs is None:
            return inputs
        drawn = hashing.normal(hashing.splitmix64(keys + INPUT_NOISE), known[0].numel()).view(known.shape)
        noise = drawn.to(inputs.dtype) * self.inputs.unsqueeze(2).to(inputs.dtype) * known  # (M, B, F)
        return inputs + functional.pad(noise, (0, inputs.shape[2] - noise.shape[2]))  # (M, B, F + O)

    def noisy_labels(self, labels: Tensor, classes: int, keys: Tensor) -> Tensor:
        """Draw some labels anew, int64 ``[M, B]``, each of the classes being as likely; keys of the step, ``[M]``."""
        if self.labels is None:
            return labels
        bits = hashing.counters(hashing.splitmix64(keys + LABEL_NOISE), labels.shape[1])  # (M, B)
        uniform = (bits >> 11).bitwise_and_(2**53 - 1).to(torch.float64) * 2.0**-53  # (M, B)
        # Below the share, the number is as good as one that is uniform between zero and the share.
        drawn = (uniform / self.labels.clamp(min=_TINY) * classes).clamp(max=classes - 1).to(torch.int64)  # (M, B)
        return torch.where(uniform < self.labels, drawn, labels)  # (M, B)

    def noisy_weights(self, parameters: Tensor, decaying: int, keys: Tensor, kept: Tensor | None = None) -> Tensor:
        """Add noise to the matrices, the first numbers of rows ``[M, P]``, which stay as they are.

        Args:
            parameters: ``[M, P]``.
            decaying: How many numbers of a row belong to matrices.
            keys: Of the step, int64 ``[M]``.
            kept: 0 for weights that are pruned and get none, else 1, ``[M, D]``; ``None`` if none is pruned.

        Returns:
            ``[M, P]``.
        """
        if self.weights is None:
            return parameters
        drawn = hashing.normal(hashing.splitmix64(keys + WEIGHT_NOISE), decaying)  # (M, D)
        drawn = drawn if kept is None else drawn * kept  # (M, D)
        matrices = parameters[:, :decaying] + drawn * self.weights.to(drawn.dtype)  # (M, D)
        return torch.cat([matrices, parameters[:, decaying:]], dim=1)  # (M, P)

    def penalise(self, gradients: Tensor, matrices: Tensor) -> None:
        """Add the slopes of the penalties by the matrices ``[M, D]`` to their gradients ``[M, D]``."""
        if self.l1 is not None:
            gradients += matrices.sign() * self.l1.to(matrices.dtype)  # (M, D)
        if self.l2 is not None:
            gradients += matrices * self.l2.to(matrices.dtype)  # (M, D)

    def limit(self, matrices: Iterable[Tensor], active: Tensor) -> None:
        """Scale down the weights into each unit to the largest norm.

        Args:
            matrices: ``[M, H, H']`` or ``[M, K, H, H']``; changed.
            active: 1 where a member takes a step, 0 where it stands still to the last bit, float64 ``[M, 1]``.
        """
        if self.norms is None:
            return
        for matrix in matrices:
            own = (-1, *[1] * (matrix.dim() - 1))  # (M, 1, 1) or (M, 1, 1, 1)
            norms = torch.linalg.vector_norm(matrix, dim=-2, keepdim=True)  # (M, 1, H') or (M, K, 1, H')
            shares = (self.norms.view(own).to(matrix.dtype) / norms).clamp(max=1.0)
            matrix.mul_(torch.where(active.view(own) > 0, shares, 1.0))
