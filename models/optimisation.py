"""Learning-rate schedules, gradient clipping and AdamW for a stack of members.

torch's optimisers take one learning rate and one step count per tensor; here each member of a stack has its own, and
one that has finished its epoch early stands still while the others go on. `tests/test_training.py` holds the
arithmetic to `torch.optim`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float64]


def constant(steps: Floats, total: Floats) -> Floats:
    """Keep the learning rate."""
    return np.ones(np.broadcast(steps, total).shape)


def cosine(steps: Floats, total: Floats) -> Floats:
    """Fall from 1 to 0 along half a cosine (Loshchilov and Hutter, arXiv 1608.03983, without restarts)."""
    factors: Floats = 0.5 * (1 + np.cos(np.pi * steps / total))
    return factors


def one_cycle(steps: Floats, total: Floats) -> Floats:
    """Rise from 1/25 to 1 over 30% of the steps and fall to 4·10⁻⁶ (Smith and Topin, arXiv 1708.07120).

    Both ways along half a cosine, with the constants of `torch.optim.lr_scheduler.OneCycleLR`.
    """
    start, end = 1 / 25, 1 / 25 / 1e4
    peak = np.maximum(0.3 * total - 1, 0)
    rising = np.clip(steps / np.maximum(peak, 1e-9), 0, 1)
    falling = np.clip((steps - peak) / np.maximum(total - 1 - peak, 1e-9), 0, 1)
    up = 1 + (start - 1) / 2 * (1 + np.cos(np.pi * rising))
    down = end + (1 - end) / 2 * (1 + np.cos(np.pi * falling))
    return np.where(steps < peak, up, down)


SCHEDULES: dict[str, Callable[[Floats, Floats], Floats]] = {
    "constant": constant,
    "cosine": cosine,
    "one_cycle": one_cycle,
}
"""Factor on the learning rate from the steps done and the total number of steps (arrays of one shape)."""


def clip(gradients: Tensor, largest: Tensor) -> Tensor:
    """Scale down each member's gradient to a largest Euclidean norm (Pascanu et al., arXiv 1211.5063).

    Args:
        gradients: ``[M, P]``.
        largest: The norm above which a row is scaled, ``[M, 1]``; infinite where none is.

    Returns:
        ``[M, P]``.
    """
    norms: Tensor = torch.linalg.vector_norm(gradients, dim=1, keepdim=True)  # (M, 1)
    shares = (largest / (norms + 1e-6)).clamp(max=1.0)  # (M, 1)
    return gradients * shares.to(gradients.dtype)  # (M, P)


class AdamW:
    """AdamW (arXiv 1711.05101, algorithm 2) with a step count, a learning rate and a weight decay for each member.

    On a processor torch's fused kernel goes once through the memory of each member; on other devices, where a kernel
    for each of them would be too small, a dozen operations act on the rows of all.

    Attributes:
        first: Running mean of the gradients, ``[M, P]``.
        second: Running mean of their squares, ``[M, P]``.
        counts: Steps done, float32 ``[M, 1]``.
    """

    BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

    def __init__(self, parameters: Tensor, decaying: int, weight_decay: Tensor) -> None:
        """Start with no steps done.

        Args:
            parameters: ``[M, P]``; read for shape, dtype and device.
            decaying: How many numbers of a row decay, the first ones.
            weight_decay: The strength of the decay, float64 ``[M, 1]``.
        """
        self.first = torch.zeros_like(parameters)
        self.second = torch.zeros_like(parameters)
        self.counts = torch.zeros(len(parameters), 1, device=parameters.device)
        self.decaying, self.weight_decay = decaying, weight_decay

    def step(self, parameters: Tensor, gradients: Tensor, rates: Tensor, active: Tensor) -> None:
        """Take one step in place.

        Args:
            parameters: ``[M, P]``; changed.
            gradients: ``[M, P]``.
            rates: Learning rates, float64 ``[M, 1]``.
            active: 1 where a member takes this step, 0 where it stands still to the last bit, float64 ``[M, 1]``.
        """
        self.counts += active  # (M, 1)
        if parameters.device.type == "cpu":
            self._step_fused(parameters, gradients, rates, active)
        else:
            self._step_rows(parameters, gradients, rates, active)

    def _step_fused(self, parameters: Tensor, gradients: Tensor, rates: Tensor, active: Tensor) -> None:
        """Member by member; arguments as `step`."""
        for part, decays in ((slice(self.decaying), self.weight_decay), (slice(self.decaying, None), 0 * rates)):
            rows = (parameters[:, part], gradients[:, part], self.first[:, part], self.second[:, part])
            for member, ((rate,), (decay,)) in enumerate(zip(rates.tolist(), decays.tolist(), strict=True)):
                if active[member]:
                    own, gradient, first, second = ([row[member]] for row in rows)  # (P,) each
                    torch._fused_adamw_(
                        own,
                        gradient,
                        first,
                        second,
                        [],
                        [self.counts[member]],
                        lr=rate,
                        beta1=self.BETA1,
                        beta2=self.BETA2,
                        weight_decay=decay,
                        eps=self.EPSILON,
                        amsgrad=False,
                        maximize=False,
                    )

    def _step_rows(self, parameters: Tensor, gradients: Tensor, rates: Tensor, active: Tensor) -> None:
        """All members at once, and nothing that the host would have to wait for; arguments as `step`."""
        counts = self.counts.double().clamp(min=1)  # (M, 1)
        # A member that stands still mixes in nothing: x + 0·y is x, without a mask over all parameters.
        share1, share2 = active * (1 - self.BETA1), active * (1 - self.BETA2)  # (M, 1)
        rates = active * rates  # (M, 1)
        sizes = rates / (1 - self.BETA1**counts)  # (M, 1)
        correction = (1 - self.BETA2**counts).rsqrt()  # (M, 1)

        kind = parameters.dtype
        parameters[:, : self.decaying].mul_((1 - rates * self.weight_decay).to(kind))
        self.first.lerp_(gradients, share1.to(kind).expand_as(gradients))
        self.second.mul_((1 - share2).to(kind)).addcmul_(gradients, gradients * share2.to(kind))
        scale = self.second.sqrt().mul_(correction.to(kind)).add_(self.EPSILON)  # (M, P)
        parameters.addcdiv_(self.first * -sizes.to(kind), scale)

    def select(self, keep: Tensor) -> None:
        """Keep only the members at these positions, int64 ``[M']``."""
        self.first, self.second, self.counts = self.first[keep], self.second[keep], self.counts[keep]
        self.weight_decay = self.weight_decay[keep]
