"""Features: functions from events to option-typed float arrays, each belonging to one object."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from analysis.columns import to_option
from analysis.errors import UserError
from analysis.events import Events
from analysis.functions import Function, call
from analysis.sources import Source

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def feature(label: str = "", unit: str = "") -> Callable[[Decorated], Decorated]:
    """Give a feature function the label and the unit that plots show.

    Args:
        label: Axis label, plain or with ``$math$``; the function's name by default.
        unit: Unit of the values, such as ``"GeV"``; empty for dimensionless ones.
    """

    def attach(function: Decorated) -> Decorated:
        function.label = label or function.__name__  # type: ignore[attr-defined]
        function.unit = unit  # type: ignore[attr-defined]
        return function

    return attach


def branch(name: str, label: str = "", unit: str = "") -> Function:
    """Make a feature function out of a branch that is a feature as it stands.

    Args:
        name: The branch. A declared sentinel has become ``None`` before the function sees it.
        label: Axis label; the branch name by default.
        unit: Unit of the branch.
    """

    @feature(label=label or name, unit=unit)
    def read(events: Events) -> Any:
        return events[name]

    return read


def compute(
    names: Sequence[str], functions: Mapping[str, Function], events: Events, source: Source
) -> dict[str, np.ma.MaskedArray[Any, Any]]:
    """Compute features of the selected events of one chunk.

    Args:
        names: Functions to call.
        functions: The user's functions by name.
        events: The selected events.
        source: Where they are, for messages.

    Returns:
        Masked float32 arrays of shape [N]; masked where the object is absent.

    Raises:
        UserError: A function fails, returns something else than one number or None per event, or a value that is
            not finite.
    """
    columns = {}
    for name in names:
        result = call(name, functions[name], events, source)
        try:
            column = to_option(result, len(events))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"Feature {name}(events) {error} ({source.path}, entries {source.start} to {source.stop}). Correct the "
                "function in physics.py."
            ) from error
        bad = np.flatnonzero(~np.isfinite(np.ma.getdata(column)) & ~np.ma.getmaskarray(column))
        if len(bad):
            raise UserError(
                f"Feature {name}: {len(bad)} of {len(events)} values are infinite or NaN, the first "
                f"({np.ma.getdata(column)[bad[0]]}) at entry {events.entries[bad[0]]} of {source.path}. "
                "What is not there is None (ak.mask), not NaN; declare a sentinel of the "
                "file under data.sentinels."
            )
        columns[name] = column
    return columns
