"""Weights that a function varies: their sums from before the selection, by which they are normalised."""

from __future__ import annotations

import numpy as np

from analysis.errors import UserError
from analysis.events import read
from analysis.features import compute
from analysis.functions import Function
from analysis.selection import known_of
from analysis.sources import SelectionSettings, Source
from analysis.weights import VariedSums


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
