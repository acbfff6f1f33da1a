"""Courses of the learning rate: a factor for each step, from the steps, the epochs and the losses so far.

A schedule is a function of a `Course`. `tests/test_optimisation.py` holds them to `torch.optim.lr_scheduler`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.settings import TrainingSettings

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Course:
    """Some steps of a training after its warm-up.

    Attributes:
        steps: Steps done, ``[S]``.
        total: Number of steps of the training.
        epochs: Epochs done, with the fraction of the present one, ``[S]``.
        losses: Validation losses of the epochs done.
        constants: Of the schedule, by their keys (`models.settings.CONSTANTS`).
    """

    steps: Floats
    total: float
    epochs: Floats
    losses: Sequence[float]
    constants: Mapping[str, Any]


def constant(course: Course) -> Floats:
    """Keep the learning rate."""
    return np.ones(len(course.steps))


def step(course: Course) -> Floats:
    """Times a factor after every so many epochs."""
    falls = np.floor(course.epochs) // course.constants["schedule_every"]
    return _power(course.constants["schedule_factor"], falls)


def multi_step(course: Course) -> Floats:
    """Times a factor after each of some numbers of epochs."""
    falls = np.searchsorted(course.constants["schedule_milestones"], np.floor(course.epochs), side="right")
    return _power(course.constants["schedule_factor"], falls)


def exponential(course: Course) -> Floats:
    """Times a factor after every epoch."""
    return _power(course.constants["schedule_factor"], np.floor(course.epochs))


def cosine(course: Course) -> Floats:
    """Fall from 1 to 0 along half a cosine (Loshchilov and Hutter, arXiv 1608.03983, without restarts)."""
    factors: Floats = 0.5 * (1 + np.cos(np.pi * course.steps / course.total))
    return factors


def warm_restarts(course: Course) -> Floats:
    """Fall along half a cosine again and again (arXiv 1608.03983, equation 5, down to 0), step by step."""
    length, stretch = course.constants["schedule_every"], course.constants["schedule_stretch"]
    starts = [0]
    while starts[-1] + length <= course.epochs.max():
        starts.append(starts[-1] + length)
        length *= stretch
    lengths = course.constants["schedule_every"] * stretch ** np.arange(len(starts), dtype=np.float64)
    period = np.searchsorted(starts, course.epochs, side="right") - 1
    factors: Floats = 0.5 * (1 + np.cos(np.pi * (course.epochs - np.array(starts)[period]) / lengths[period]))
    return factors


def one_cycle(course: Course) -> Floats:
    """Rise from 1/25 to 1 over 30% of the steps and fall to 4·10⁻⁶ (Smith and Topin, arXiv 1708.07120).

    Both ways along half a cosine, with the constants of `torch.optim.lr_scheduler.OneCycleLR`.
    """
    steps, total = course.steps, course.total
    start, end = 1 / 25, 1 / 25 / 1e4
    peak = max(0.3 * total - 1, 0)
    rising = np.clip(steps / max(peak, 1e-9), 0, 1)
    falling = np.clip((steps - peak) / max(total - 1 - peak, 1e-9), 0, 1)
    up = 1 + (start - 1) / 2 * (1 + np.cos(np.pi * rising))
    down = end + (1 - end) / 2 * (1 + np.cos(np.pi * falling))
    return np.where(steps < peak, up, down)


def plateau(course: Course) -> Floats:
    """Times a factor whenever the loss has not become better for some epochs."""
    falls = min(plateaus(course.losses, course.constants), course.constants["schedule_reductions"])
    return np.full(len(course.steps), course.constants["schedule_factor"] ** falls)


SCHEDULES: dict[str, Callable[[Course], Floats]] = {
    "constant": constant,
    "step": step,
    "multi_step": multi_step,
    "exponential": exponential,
    "cosine": cosine,
    "warm_restarts": warm_restarts,
    "one_cycle": one_cycle,
    "plateau": plateau,
}
"""By their names in the configuration: the factors on the learning rate, ``[S]``."""


def factors(settings: TrainingSettings, steps: Floats, past: Floats, losses: Sequence[float]) -> Floats:
    """Factors on the learning rate, the warm-up before the schedule included.

    Args:
        settings: Schedule and warm-up.
        steps: Steps done in all, ``[S]``.
        past: Steps of all epochs before each, and of all, ``[epochs + 1]``.
        losses: Validation losses of the epochs done.

    Returns:
        ``[S]``.
    """
    epochs = np.arange(len(past), dtype=np.float64)
    first = float(np.round(np.interp(settings.warm_up, epochs, past)))  # the first step of the schedule
    after = np.maximum(steps - first, 0)
    course = Course(
        steps=after,
        total=max(float(past[-1]) - first, 1.0),
        epochs=np.maximum(np.interp(steps, past, epochs) - np.interp(first, past, epochs), 0),
        losses=warmed(settings, losses),
        constants=settings.course,
    )
    shares = np.minimum((steps + 1) / (first + 1), 1)
    return SCHEDULES[settings.schedule](course) * shares


def warmed(settings: TrainingSettings, losses: Sequence[float]) -> Sequence[float]:
    """The losses of epochs that have no part in the warm-up."""
    return losses[int(np.ceil(settings.warm_up)) :]


def plateaus(losses: Sequence[float], constants: Mapping[str, Any]) -> int:
    """How often a loss has not become better than its best for ``schedule_patience`` epochs, which count anew then.

    As `torch.optim.lr_scheduler.ReduceLROnPlateau` with a threshold of 0 and one epoch of patience less: it reduces
    in the epoch after its patience.
    """
    best, bad, found = np.inf, 0, 0
    for loss in losses:
        bad = 0 if loss < best else bad + 1
        best = min(best, loss)
        if bad == constants["schedule_patience"]:
            bad, found = 0, found + 1
    return found


def _power(factor: float, exponents: npt.NDArray[Any]) -> Floats:
    powers: Floats = np.power(factor, exponents.astype(np.float64))
    return powers
