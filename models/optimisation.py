"""Optimisers, gradient clipping and averages of weights for a stack of members.

torch's optimisers take one learning rate and one step count per tensor; here each member of a stack has its own, and
one that has finished its epoch early stands still while the others go on. On a processor torch's kernels go through
the memory of each member in turn; on other devices, where a kernel for each of them would be too small, a few
operations act on the rows of all, and nothing waits for the host. `tests/test_optimisation.py` holds the arithmetic to
`torch.optim`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.optim.nadam import nadam
from torch.optim.rmsprop import rmsprop
from torch.optim.swa_utils import get_swa_avg_fn


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


class Optimiser(ABC):
    """What all optimisers have: a state, and constants of each member.

    Attributes:
        state: Rows by name, of the type of the parameters: ``steps``, those done, float32 ``[M, 1]``; further ones
            ``[M, P]`` or ``[M, 1]``.
        constants: By name, float64 ``[M, 1]``.
        decaying: How many numbers of a row decay, the first ones.
    """

    ROWS: ClassVar[tuple[str, ...]] = ()
    """Names of rows of the state that have the size of the parameters; they begin with zeros."""

    def __init__(self, parameters: Tensor, decaying: int, constants: Mapping[str, Tensor]) -> None:
        """Start with no steps done.

        Args:
            parameters: ``[M, P]``; read for shape, dtype and device.
            decaying: How many numbers of a row decay, the first ones.
            constants: Those of `models.settings.CONSTANTS`, float64 ``[M, 1]`` each; without ``weight_decay`` nothing
                decays.
        """
        none = torch.zeros(len(parameters), 1, dtype=torch.float64, device=parameters.device)  # (M, 1)
        self.state = {name: torch.zeros_like(parameters) for name in self.ROWS}
        self.state["steps"] = none.to(torch.float32)
        self.constants = {"weight_decay": none, **constants}
        self.decaying = decaying

    def step(self, parameters: Tensor, gradients: Tensor, rates: Tensor, active: Tensor) -> None:
        """Take one step in place.

        Args:
            parameters: ``[M, P]``; changed.
            gradients: ``[M, P]``.
            rates: Learning rates, float64 ``[M, 1]``.
            active: 1 where a member takes this step, 0 where it stands still to the last bit, float64 ``[M, 1]``.
        """
        self.state["steps"] += active  # (M, 1)
        if _each(parameters):
            self._step_each(parameters, gradients, rates, active)
        else:
            self._step_rows(parameters, gradients, rates, active)

    def _step_each(self, parameters: Tensor, gradients: Tensor, rates: Tensor, active: Tensor) -> None:
        """Member by member; arguments as `step`."""
        constants = {name: column.flatten().tolist() for name, column in self.constants.items()}
        for member, ((rate,), (moves,)) in enumerate(zip(rates.tolist(), active.tolist(), strict=True)):
            if moves:
                own = {name: numbers[member] for name, numbers in constants.items()}
                state = {name: rows[member] for name, rows in self.state.items()}  # (P,) or (1,) each
                self._move(parameters[member], gradients[member], state, rate, own)

    def _step_rows(self, parameters: Tensor, gradients: Tensor, rates: Tensor, active: Tensor) -> None:
        """All members at once, and nothing that the host would have to wait for; arguments as `step`."""
        # A member that stands still mixes in nothing: x + 0·y is x, without a mask over all parameters.
        rates = active * rates  # (M, 1)
        keeps = (1 - rates * self.constants["weight_decay"]).to(parameters.dtype)  # (M, 1)
        parameters[:, : self.decaying].mul_(keeps)
        self._move_all(parameters, gradients, rates, active)

    @abstractmethod
    def _move(
        self, row: Tensor, gradient: Tensor, state: Mapping[str, Tensor], rate: float, own: Mapping[str, float]
    ) -> None:
        """Move one member, which also decays.

        Args:
            row: Its parameters ``[P]``; changed.
            gradient: ``[P]``.
            state: Its rows of the state, ``[P]`` or ``[1]``; changed, but for the steps, which count this one.
            rate: Its learning rate.
            own: Its constants.
        """

    @abstractmethod
    def _move_all(self, parameters: Tensor, gradients: Tensor, rates: Tensor, active: Tensor) -> None:
        """Move all members, which have decayed; arguments as `step`, with rates of 0 for those that stand still."""

    def _decay(self, row: Tensor, rate: float, own: Mapping[str, float]) -> None:
        """Let one member's weights decay, where a kernel of torch's does not do so itself."""
        if own["weight_decay"]:
            row[: self.decaying].mul_(1 - rate * own["weight_decay"])

    def select(self, keep: Tensor) -> None:
        """Keep only the members at these positions, int64 ``[M']``."""
        self.state = {name: rows[keep] for name, rows in self.state.items()}
        self.constants = {name: column[keep] for name, column in self.constants.items()}


class SGD(Optimiser):
    """Stochastic gradient descent, v ← μ v + g, p ← p - η v; with Nesterov's momentum p ← p - η (g + μ v)."""

    ROWS = ("velocity",)

    def _move(
        self, row: Tensor, gradient: Tensor, state: Mapping[str, Tensor], rate: float, own: Mapping[str, float]
    ) -> None:
        self._decay(row, rate, own)
        torch._fused_sgd_(
            [row],
            [gradient],
            [state["velocity"]] if own["momentum"] else [],
            lr=rate,
            momentum=own["momentum"],
            nesterov=bool(own["nesterov"]),
            weight_decay=0.0,
            dampening=0.0,
            maximize=False,
            is_first_step=False,  # the velocity begins with zeros
        )

    def _move_all(self, parameters: Tensor, gradients: Tensor, rates: Tensor, active: Tensor) -> None:
        kind, momentum, nesterov = parameters.dtype, self.constants["momentum"], self.constants["nesterov"]
        velocity = _kept(self.state["velocity"], momentum, active).add_(gradients * active.to(kind))  # (M, P)
        ahead = torch.where(nesterov > 0, momentum, 1.0)  # (M, 1)
        along = velocity * ahead.to(kind) + gradients * nesterov.to(kind)  # (M, P)
        parameters.addcmul_(along, -rates.to(kind))


class Adagrad(Optimiser):
    """Adagrad: s ← s + g², p ← p - η g / (√s + ε)."""

    ROWS = ("squares",)

    def _move(
        self, row: Tensor, gradient: Tensor, state: Mapping[str, Tensor], rate: float, own: Mapping[str, float]
    ) -> None:
        self._decay(row, rate, own)
        torch._fused_adagrad_(
            [row],
            [gradient],
            [state["squares"]],
            [state["steps"]],
            lr=rate,
            lr_decay=0.0,
            weight_decay=0.0,
            eps=own["epsilon"],
            maximize=False,
        )

    def _move_all(self, parameters: Tensor, gradients: Tensor, rates: Tensor, active: Tensor) -> None:
        kind = parameters.dtype
        squares = self.state["squares"].addcmul_(gradients, gradients * active.to(kind))  # (M, P)
        parameters.addcdiv_(gradients * -rates.to(kind), squares.sqrt().add_(self.constants["epsilon"].to(kind)))


class RMSprop(Optimiser):
    """RMSprop: s ← α s + (1 - α) g², v ← μ v + g / (√s + ε), p ← p - η v."""

    ROWS = ("squares", "velocity")

    def _move(
        self, row: Tensor, gradient: Tensor, state: Mapping[str, Tensor], rate: float, own: Mapping[str, float]
    ) -> None:
        self._decay(row, rate, own)
        rmsprop(
            [row],
            [gradient],
            [state["squares"]],
            [],
            [state["velocity"]] if own["momentum"] else [],
            [state["steps"].clone()],  # torch counts for itself
            foreach=False,
            lr=rate,
            alpha=own["alpha"],
            eps=own["epsilon"],
            weight_decay=0.0,
            momentum=own["momentum"],
            centered=False,
        )

    def _move_all(self, parameters: Tensor, gradients: Tensor, rates: Tensor, active: Tensor) -> None:
        kind = parameters.dtype
        scale = _squares(self.state["squares"], gradients, self.constants["alpha"], active).sqrt()  # (M, P)
        scale.add_(self.constants["epsilon"].to(kind))
        velocity = _kept(self.state["velocity"], self.constants["momentum"], active)  # (M, P)
        velocity.addcdiv_(gradients * active.to(kind), scale)
        parameters.addcmul_(velocity, -rates.to(kind))


class AdamW(Optimiser):
    """AdamW (algorithm 2 of its paper); Adam, where nothing decays."""

    ROWS = ("first", "second")

    def _move(
        self, row: Tensor, gradient: Tensor, state: Mapping[str, Tensor], rate: float, own: Mapping[str, float]
    ) -> None:
        for part, decay in ((slice(self.decaying), own["weight_decay"]), (slice(self.decaying, None), 0.0)):
            torch._fused_adamw_(
                [row[part]],
                [gradient[part]],
                [state["first"][part]],
                [state["second"][part]],
                [],
                [state["steps"]],
                lr=rate,
                beta1=own["beta1"],
                beta2=own["beta2"],
                weight_decay=decay,
                eps=own["epsilon"],
                amsgrad=False,
                maximize=False,
            )

    def _move_all(self, parameters: Tensor, gradients: Tensor, rates: Tensor, active: Tensor) -> None:
        kind, beta1, beta2 = parameters.dtype, self.constants["beta1"], self.constants["beta2"]
        steps = self.state["steps"].double().clamp(min=1)  # (M, 1)
        sizes = rates / (1 - beta1**steps)  # (M, 1)
        correction = (1 - beta2**steps).rsqrt()  # (M, 1)
        first = _mixed(self.state["first"], gradients, beta1, active)  # (M, P)
        scale = _squares(self.state["second"], gradients, beta2, active).sqrt().mul_(correction.to(kind))  # (M, P)
        parameters.addcdiv_(first * -sizes.to(kind), scale.add_(self.constants["epsilon"].to(kind)))


class NAdam(Optimiser):
    """NAdam: Adam whose mean of gradients looks ahead, with a momentum μ_t = β1 (1 - ½ 0.96^(t ψ)) that grows.

    The state's ``product`` is that of all μ so far, ``[M, 1]``.
    """

    ROWS = ("first", "second")

    def __init__(self, parameters: Tensor, decaying: int, constants: Mapping[str, Tensor]) -> None:
        super().__init__(parameters, decaying, constants)
        self.state["product"] = torch.ones_like(self.state["steps"])  # (M, 1)

    def _move(
        self, row: Tensor, gradient: Tensor, state: Mapping[str, Tensor], rate: float, own: Mapping[str, float]
    ) -> None:
        self._decay(row, rate, own)
        nadam(
            [row],
            [gradient],
            [state["first"]],
            [state["second"]],
            [state["product"]],
            [state["steps"] - 1],  # torch counts for itself
            foreach=False,
            lr=rate,
            beta1=own["beta1"],
            beta2=own["beta2"],
            weight_decay=0.0,
            momentum_decay=own["momentum_decay"],
            eps=own["epsilon"],
        )

    def _move_all(self, parameters: Tensor, gradients: Tensor, rates: Tensor, active: Tensor) -> None:
        kind, beta1, beta2 = parameters.dtype, self.constants["beta1"], self.constants["beta2"]
        steps, growth = self.state["steps"].double().clamp(min=1), self.constants["momentum_decay"]  # (M, 1) each
        now, after = (beta1 * (1 - 0.5 * 0.96 ** (count * growth)) for count in (steps, steps + 1))  # (M, 1) each
        product = _kept(self.state["product"], now, active).double()  # (M, 1)
        first = _mixed(self.state["first"], gradients, beta1, active)  # (M, P)
        second = _squares(self.state["second"], gradients, beta2, active)  # (M, P)
        scale = (second / (1 - beta2**steps).to(kind)).sqrt_().add_(self.constants["epsilon"].to(kind))  # (M, P)
        # The product is 1 before a member's first step, which it may have to wait for.
        own = rates * (1 - now) / (1 - product).clamp(min=1e-9)  # (M, 1)
        mean = rates * after / (1 - product * after)  # (M, 1)
        parameters.addcdiv_(gradients * -own.to(kind), scale)
        parameters.addcdiv_(first * -mean.to(kind), scale)


OPTIMISERS: dict[str, Callable[[Tensor, int, Mapping[str, Tensor]], Optimiser]] = {
    "sgd": SGD,
    "adagrad": Adagrad,
    "rmsprop": RMSprop,
    "adam": AdamW,
    "adamw": AdamW,
    "nadam": NAdam,
}
"""By their names in the configuration."""


def _each(parameters: Tensor) -> bool:
    """Whether members take their turns: on a processor."""
    return parameters.device.type == "cpu"


def _kept(rows: Tensor, share: Tensor, active: Tensor) -> Tensor:
    """Scale rows in place by a share ``[M, 1]``, where members are active."""
    return rows.mul_(torch.where(active > 0, share, 1.0).to(rows.dtype))


def _mixed(rows: Tensor, gradients: Tensor, keep: Tensor, active: Tensor) -> Tensor:
    """Move means of gradients ``[M, P]`` in place; they keep a share ``[M, 1]``."""
    return rows.lerp_(gradients, (active * (1 - keep)).to(rows.dtype).expand_as(rows))


def _squares(rows: Tensor, gradients: Tensor, keep: Tensor, active: Tensor) -> Tensor:
    """Move means of squared gradients ``[M, P]`` in place; they keep a share ``[M, 1]``."""
    share = active * (1 - keep)  # (M, 1)
    return rows.mul_((1 - share).to(rows.dtype)).addcmul_(gradients, gradients * share.to(rows.dtype))


class Averaging:
    """An average of each member's parameters, those included that it moves without gradients.

    Attributes:
        state: ``average``, ``[M, P]``, and ``count`` of what has entered it, float32 ``[M, 1]``.
        constant: What rules it, float64 ``[M, 1]``.
    """

    def __init__(self, parameters: Tensor, constant: Tensor) -> None:
        """Start with nothing.

        Args:
            parameters: ``[M, P]``; read for shape, dtype and device.
            constant: float64 ``[M, 1]``.
        """
        count = torch.zeros(len(parameters), 1, device=parameters.device)  # (M, 1)
        self.state = {"average": torch.zeros_like(parameters), "count": count}
        self.constant = constant

    def step(self, parameters: Tensor, active: Tensor) -> None:
        """Note parameters ``[M, P]`` after a step of the active members, float64 ``[M, 1]``."""

    def end_epoch(self, parameters: Tensor, epoch: int) -> None:
        """Note parameters ``[M, P]`` at the end of an epoch, counted from 0."""

    def evaluated(self, parameters: Tensor) -> Tensor:
        """The average; the parameters themselves of members that have none yet: ``[M, P]``."""
        return torch.where(self.state["count"] > 0, self.state["average"], parameters)

    def select(self, keep: Tensor) -> None:
        """Keep only the members at these positions, int64 ``[M']``."""
        self.state = {name: rows[keep] for name, rows in self.state.items()}
        self.constant = self.constant[keep]


class ExponentialAverage(Averaging):
    """An exponential moving average over the steps, which keeps a constant share; the first step begins it.

    As torch's `get_ema_multi_avg_fn`, for each member.
    """

    def step(self, parameters: Tensor, active: Tensor) -> None:
        """Mix in the parameters of those that moved."""
        average, count = self.state["average"], self.state["count"]
        shares = active * torch.where(count > 0, 1 - self.constant, 1.0)  # (M, 1)
        if _each(parameters):
            # Over the rows of all, the last numbers of the last member would be rounded in another way.
            for row, own, (share,) in zip(average, parameters, shares.tolist(), strict=True):
                row.lerp_(own, share)  # (P,)
        else:
            average.lerp_(parameters, shares.to(average.dtype).expand_as(average))
        count += active


class StochasticAverage(Averaging):
    """Stochastic weight averaging: the mean over the ends of all epochs from one on."""

    def end_epoch(self, parameters: Tensor, epoch: int) -> None:
        """Add the parameters of those whose average has begun."""
        average, count = self.state["average"], self.state["count"]
        due = self.constant <= epoch  # (M, 1)
        moved: Tensor = get_swa_avg_fn()(average, parameters, count)  # type: ignore[no-untyped-call]  # (M, P)
        average.copy_(torch.where(due, moved, average))
        count += due


AVERAGES: dict[str, Callable[[Tensor, Tensor], Averaging]] = {"ema": ExponentialAverage, "swa": StochasticAverage}
"""By their names in the configuration, but for ``none``."""
