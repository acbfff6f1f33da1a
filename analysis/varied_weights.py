"""Weights that a function varies: their sums from before the selection, by which they are normalised."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.errors import UserError
from analysis.events import read
from analysis.features import compute
from analysis.functions import Function
from analysis.selection import known_of
from analysis.sources import SelectionSettings, Source


@dataclass(frozen=True)
class VariedSums:
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

    def __add__(self, other: VariedSums) -> VariedSums:
        return VariedSums(
            self.nominal + other.nominal,
            self.nominal_test + other.nominal_test,
            self.varied + other.varied,
            self.varied_test + other.varied_test,
        )

    def factor(self, process: str, *, test: bool, keeps_norm: bool) -> float:
        """What varied weights are multiplied with, so that they have the right sum where nominal ones have theirs.

        Args:
            process: Name of the process, for messages.
            test: Whether it is for test events, which nominal weights scale to all events, or for all of them.
            keeps_norm: Whether the yield before any selection is the nominal one, or changes by varied / nominal.

        Raises:
            UserError: Weights sum to zero or below, so that no factor exists.
        """
        nominal, varied = (self.nominal_test, self.varied_test) if test else (self.nominal, self.varied)
        if not test and not keeps_norm:
            return 1.0
        if min(nominal, varied, self.varied, self.nominal) <= 0:
            raise UserError(
                f"Process {process!r}: before any selection its weights sum to {self.nominal:g}, varied to "
                f"{self.varied:g}, those of test events to {self.varied_test:g}; sums above 0 are needed. Take the "
                "process out of the nuisance's `processes`, or correct the function."
            )
        return nominal / varied * (1.0 if keeps_norm else self.varied / self.nominal)


def sums_of_variation(
    source: Source, settings: SelectionSettings, name: str, function: Function
) -> dict[str, VariedSums]:
    """Sums of weights, as they are and varied, over the entries of one chunk before any selection, per process.

    Args:
        source: The range of entries.
        settings: Processes, generator weight and test bucket; no cut is looked at.
        name: The function's name.
        function: From events to what the weight of each is multiplied with.

    Raises:
        UserError: The function fails, or does not return one finite number per event.
    """
    events = read(source)
    known = known_of(events, source, settings)
    factor = compute((name,), {name: function}, events, source)[name]
    if np.ma.is_masked(factor):
        entry = events.entries[int(np.flatnonzero(np.ma.getmaskarray(factor))[0])]
        raise UserError(
            f"{name}(events) is None in {source.path}, first at entry {entry}; a variation of weights needs a number "
            "in every event: 1 where it changes nothing."
        )
    varied = known.weight * np.ma.getdata(factor).astype(np.float64)
    everything = np.ones(len(events), dtype=np.bool_)
    return {
        process: VariedSums(
            *(float(np.sum(w[own & part])) for w in (known.weight, varied) for part in (everything, known.test))
        )
        for i, process in enumerate(settings.processes)
        for own in [known.process == i]
    }
