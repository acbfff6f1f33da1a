"""Physics weights: signed, normalised per process, and kept apart from what a network trains with.

Training weights are derived from these inside the trainer (`models/training.py`), from each network's own training
events only: physics weights within a class, equal sums over classes, mean one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt

from analysis.errors import UserError

FB_PER_PB = 1000.0
"""A luminosity of 1 fb⁻¹ holds 1,000 events of a cross section of 1 pb."""


@dataclass(frozen=True)
class _Sums:
    """Sums that are added up field by field."""

    def __add__(self, other: Self) -> Self:
        pairs = zip(astuple(self), astuple(other), strict=True)
        return type(self)(*(mine + theirs for mine, theirs in pairs))


@dataclass(frozen=True)
class Totals(_Sums):
    """Sums over the entries of a process before any selection.

    Attributes:
        entries: Number of entries.
        sum_of_weights: Σw of the generator weights of these entries.
        generated: Σw of all generated events, also of those that a skim left out; equals `sum_of_weights` if the
            file says nothing else.
        test: Σw of the generator weights of the entries in the test bucket.
    """

    entries: int = 0
    sum_of_weights: float = 0.0
    generated: float = 0.0
    test: float = 0.0


@dataclass(frozen=True)
class VariedSums(_Sums):
    """Sums of generator weights over the entries of a process before any selection, as they are and varied.

    Attributes:
        nominal: Σw over all of them.
        nominal_test: Σw over those in the test bucket.
        varied: Σw of varied weights over all of them.
        varied_test: The same over those in the test bucket.
    """

    nominal: float = 0.0
    nominal_test: float = 0.0
    varied: float = 0.0
    varied_test: float = 0.0

    def factor(
        self, process: str, *, test: bool, keeps_norm: bool, generated: tuple[float, float] | None = None
    ) -> float:
        """What varied weights are multiplied with, so that they have the right sum where nominal ones have theirs.

        Args:
            process: Name of the process, for messages.
            test: Whether it is for test events, which nominal weights scale to all events, or for all of them.
            keeps_norm: Whether the yield before any selection is the nominal one, or changes by varied / nominal.
            generated: Σw of all generated events, nominal and varied, where a skim has left some out and both are
                known; by default their ratio is that of the entries.

        Raises:
            UserError: Weights sum to zero or below, so that no factor exists.
        """
        nominal, varied = (self.nominal_test, self.varied_test) if test else (self.nominal, self.varied)
        if not test and not keeps_norm:
            return 1.0
        if min(nominal, varied, self.varied, self.nominal, *(generated or ())) <= 0:
            declared = "" if generated is None else ", and of all generated events to {:g} and {:g}".format(*generated)
            raise UserError(
                f"Process {process!r}: before any selection its weights sum to {self.nominal:g}, varied to "
                f"{self.varied:g}, those of test events to {self.varied_test:g}{declared}; sums above 0 are needed. "
                "Take the process out of the nuisance's `processes`, or correct the function."
            )
        # Of a part to all of it, as that of nominal weights; then to the nominal yield.
        part = (nominal / self.nominal) / (varied / self.varied)
        before, after = generated or (self.nominal, self.varied)
        return part * (before / after if keeps_norm else 1.0)


@dataclass(frozen=True)
class Normalisation:
    """How the generator weights of a process become physics weights.

    Attributes:
        target: Sum of weights before the selection: L·σ in events for `cross_section` (w = L·σ·w_gen / Σw_gen), N for
            `sum_to`, None for `as_is`.
    """

    target: float | None

    def factor(self, process: str, totals: Totals) -> float:
        """The factor from generator weight to physics weight.

        Args:
            process: Name of the process, for messages.
            totals: Sums over all files of the process.

        Raises:
            UserError: The generator weights sum to zero or below, so that no factor exists.
        """
        if self.target is None:
            return 1.0
        if totals.generated <= 0:
            raise UserError(
                f"Process {process!r}: the generator weights of its {totals.entries} entries sum to "
                f"{totals.generated:g}, so that they can't be scaled to {self.target:g} events. Check "
                "weights.generator and data.generated, or use normalisation: as_is."
            )
        return self.target / totals.generated

    def total(self, process: str, totals: Totals) -> float:
        """Expected events before the selection; arguments and errors as those of `factor`."""
        return self.factor(process, totals) * totals.generated


def scale_of_test(totals: Totals) -> float | None:
    """Factor that scales held-out test events up to the whole process: Σw_all / Σw_test, before selection.

    None where it is not defined: without test events, or if their weights sum to zero or below.
    """
    return totals.sum_of_weights / totals.test if totals.test > 0 else None


def scale_of_rest(totals: Totals) -> float | None:
    """The same for the events that are not held out: Σw_all / (Σw_all − Σw_test)."""
    rest = totals.sum_of_weights - totals.test
    return totals.sum_of_weights / rest if rest > 0 else None


def collect_totals(
    chunks: Iterable[tuple[str, Mapping[str, Totals]]],
    generated: Iterable[tuple[str, float | None]],
    declared: Mapping[str, float],
    owners: Mapping[str, str],
) -> dict[str, Totals]:
    """Add up the sums of all chunks, and put the declared sums of generated events in place of the counted ones.

    Args:
        chunks: Data set of each chunk, with the sums of the processes in it.
        generated: Data set of each file, with the sum that the file itself declares, or None.
        declared: Data sets whose sum of all generated weights is a number in the configuration.
        owners: The process of each data set that declares a sum, in its files or as a number; it holds no other.

    Returns:
        Sums per process. A data set without any entry counts by what it declares.
    """
    result: dict[str, Totals] = {}
    for dataset, totals in chunks:
        for process, counted in totals.items():
            own = replace(counted, generated=0.0) if dataset in owners else counted
            result[process] = result.get(process, Totals()) + own
    sums = [(dataset, value) for dataset, value in generated if value is not None and dataset not in declared]
    for dataset, value in (*sums, *declared.items()):
        process = owners[dataset]
        result[process] = result.get(process, Totals()) + Totals(generated=value)
    return result


def effective_number(w: npt.NDArray[np.float64]) -> float:
    """Return n_eff = (Σw)²/Σw² of weights [N]: as many events of equal weight have the same relative error.

    Zero where there is no event or every weight is zero.
    """
    square = float(np.square(w).sum())
    return float(w.sum()) ** 2 / square if square > 0 else 0.0
