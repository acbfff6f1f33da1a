"""Calling the functions of a user's `physics.py`: whatever goes wrong in them is said in one sentence."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt

from analysis.errors import UserError, nearest
from analysis.events import Events
from analysis.sources import Source

Function = Callable[[Events], Any]


def call(name: str, function: Function, events: Events, source: Source) -> Any:
    """Call a user's function; whatever it raises becomes one sentence with the place in the user's file.

    Raises:
        UserError: The function failed.
    """
    try:
        with warnings.catch_warnings():
            # A logarithm of zero and its like are reported with file and entry where the values are checked.
            warnings.simplefilter("ignore", RuntimeWarning)
            return function(events)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [f for f in frames if f.filename.endswith("physics.py")] or frames[-1:]
        place = f"{own[-1].filename}, line {own[-1].lineno}"
        first = next(iter(str(error).strip().splitlines()), "")
        raise UserError(
            f"{name}(events) failed at {place}, on {source.path}, entries {source.start} to {source.stop}: "
            f"{type(error).__name__}: {first}"
        ) from error


def call_shift(name: str, function: Function, events: Events, source: Source) -> Events:
    """Shift events by a user's function, which returns what takes the place of some branches or collections.

    Raises:
        UserError: The function failed, or did not return a mapping of names that the events have to one item per event.
    """
    returned = call(name, function, events, source)
    if not isinstance(returned, Mapping) or not returned:
        raise UserError(
            f"{name}(events) returned {type(returned).__name__}, but a mapping of branches or collections to their "
            'shifted values was expected, as in {"Jet": ak.with_field(events.Jet, 1.02 * events.Jet.pt, "pt")}.'
        )
    columns = {}
    for key, value in returned.items():
        if key not in events.fields:
            raise UserError(
                f"{name}(events) shifts {key!r}, but the events have no such branch or collection. "
                f"{nearest(str(key), events.fields)}"
            )
        try:
            columns[key] = ak.Array(value)
        except TypeError as error:
            raise UserError(f"{name}(events): what it returned for {key!r} is no array but {value!r}.") from error
        if len(columns[key]) != len(events):
            raise UserError(
                f"{name}(events) returned {len(columns[key])} items for {key!r}, but there are {len(events)} events."
            )
    return events.shifted(columns)


def call_mask(name: str, function: Function, events: Events, source: Source) -> npt.NDArray[np.bool_]:
    """Evaluate a cut: bool of shape [N]; None counts as failed.

    Raises:
        UserError: The function failed or did not return one bool per event.
    """
    returned = call(name, function, events, source)
    try:
        result = ak.Array(returned)
    except TypeError as error:
        raise UserError(
            f"{name}(events) returned {returned!r} for {len(events)} events of {source.path}; one bool per event "
            "was expected."
        ) from error
    if result.ndim != 1 or len(result) != len(events):
        raise UserError(
            f"{name}(events) returned {ak.without_parameters(result).type} for {len(events)} events of "
            f"{source.path}; one bool per event was expected."
        )
    values = ak.to_numpy(ak.fill_none(result, False))
    if values.dtype != np.bool_:
        raise UserError(
            f"{name}(events) returned values of type {values.dtype} for {source.path}; one bool per event was expected."
        )
    return np.asarray(values, dtype=np.bool_)
