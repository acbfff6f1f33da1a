"""Selection: which entries of a chunk the analysis keeps, with a cutflow per process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt

from analysis.errors import UserError
from analysis.events import Events, read
from analysis.functions import Function, call_mask, call_shift
from analysis.sources import SelectionSettings, Source
from analysis.splitting import event_identity, is_test, key_of
from analysis.weights import Totals


@dataclass(frozen=True)
class Cutflow:
    """Entries and weights of one process that remain after each cut.

    Attributes:
        entries: Number after each step; the first step, `all`, is before any cut.
        sum_of_weights: Σw after each step: of generator weights as a chunk counts them, of physics weights once scaled.
    """

    entries: dict[str, int] = field(default_factory=dict)
    sum_of_weights: dict[str, float] = field(default_factory=dict)

    def __add__(self, other: Cutflow) -> Cutflow:
        steps = [*self.entries, *(s for s in other.entries if s not in self.entries)]
        return Cutflow(
            {s: self.entries.get(s, 0) + other.entries.get(s, 0) for s in steps},
            {s: self.sum_of_weights.get(s, 0.0) + other.sum_of_weights.get(s, 0.0) for s in steps},
        )

    def scaled(self, factor: float) -> Cutflow:
        """The same with all weights times a factor."""
        return Cutflow(self.entries, {step: factor * value for step, value in self.sum_of_weights.items()})


@dataclass(frozen=True)
class Selected:
    """What is kept of a chunk.

    Attributes:
        columns: Per selected event: `entry` (int64, in the file), `identity` (uint64 hash), `process` (str),
            `generator_weight` (float64), `is_test` (bool), `training` (bool: passes the training cuts too),
            `category` (str, empty outside all).
        cutflow: Per process.
        totals: Per process, before selection; `generated` counts this chunk's entries alone.
    """

    columns: dict[str, npt.NDArray[Any]]
    cutflow: dict[str, Cutflow]
    totals: dict[str, Totals]


def select(source: Source, settings: SelectionSettings, functions: Mapping[str, Function]) -> Selected:
    """Select the events of one chunk.

    Args:
        source: The range of entries.
        settings: What to select and record.
        functions: The user's functions by name.

    Raises:
        UserError: A branch is missing, a function fails, a weight is not finite, an entry belongs to no process or
            to several, or an event to several categories.
    """
    events = read(source)
    known = known_of(events, source, settings)
    process, weight, test = known.process, known.weight, known.test
    if settings.shift:
        events = call_shift(settings.shift, functions[settings.shift], events, source)

    steps = {"all": np.ones(len(events), dtype=np.bool_)}
    for cut in settings.cuts:
        passed = call_mask(cut, functions[cut], events, source)
        steps[cut] = steps[list(steps)[-1]] & passed
    kept = np.flatnonzero(steps[list(steps)[-1]])
    chosen = events.at(kept)

    training = np.ones(len(kept), dtype=np.bool_)
    for cut in settings.training_cuts:
        training &= call_mask(cut, functions[cut], chosen, source)

    names = list(settings.processes)
    columns = {
        "entry": events.entries[kept],
        "identity": known.identity[kept],
        "process": np.asarray(names, dtype=object)[process[kept]],
        "generator_weight": weight[kept],
        "is_test": test[kept],
        "training": training,
        "category": _categories(chosen, source, settings, functions),
    }
    return Selected(
        columns=columns,
        cutflow={
            name: Cutflow(
                {step: int(np.sum(mask[process == i])) for step, mask in steps.items()},
                {step: float(np.sum(weight[(process == i) & mask])) for step, mask in steps.items()},
            )
            for i, name in enumerate(names)
        },
        totals={
            name: Totals(
                entries=int(np.sum(process == i)),
                sum_of_weights=float(np.sum(weight[process == i])),
                generated=float(np.sum(weight[process == i])),
                test=float(np.sum(weight[(process == i) & test])),
            )
            for i, name in enumerate(names)
        },
    )


@dataclass(frozen=True)
class Known:
    """What is known of all entries of a chunk before any cut, [N] each; no shift changes it."""

    identity: npt.NDArray[np.uint64]
    process: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float64]
    test: npt.NDArray[np.bool_]


def known_of(events: Events, source: Source, settings: SelectionSettings) -> Known:
    """Read what is known of all entries of a chunk.

    Raises:
        UserError: As `select`.
    """
    identity = _identity(events, source, settings)
    return Known(
        identity=identity,
        process=_processes(events, source, settings),
        weight=_generator_weight(events, source, settings),
        test=is_test(identity, settings.test_fraction, settings.test_salt),
    )


def _identity(events: Events, source: Source, settings: SelectionSettings) -> npt.NDArray[np.uint64]:
    if not settings.identity:
        file_key = np.full(len(events), key_of(settings.file_key), dtype=np.int64)
        return event_identity(settings.sample, [file_key, events.entries])
    columns = []
    for name in settings.identity:
        values = _plain(events, source, name, "identity.columns")
        if values.dtype.kind not in "iu":
            raise UserError(
                f"{source.path}, tree {source.tree!r}: identity column {name!r} holds {values.dtype}, but an integer "
                "was expected. Correct identity.columns."
            )
        # uint64 event numbers keep their bits.
        columns.append(values.astype(np.uint64).view(np.int64) if values.dtype.kind == "u" else values.astype(np.int64))
    return event_identity(settings.sample, columns)


def _processes(events: Events, source: Source, settings: SelectionSettings) -> npt.NDArray[np.int64]:
    """Index of the one process that each entry belongs to."""
    matches = np.zeros((len(settings.processes), len(events)), dtype=np.bool_)
    for i, conditions in enumerate(settings.processes.values()):
        matches[i] = True
        for branch, value in conditions.items():
            matches[i] &= _plain(events, source, branch, "`where`") == value
    count = matches.sum(axis=0)
    if np.any(count != 1):
        entry = int(np.flatnonzero(count != 1)[0])
        found = [name for i, name in enumerate(settings.processes) if matches[i, entry]]
        branches = dict.fromkeys(branch for conditions in settings.processes.values() for branch in conditions)
        values = ", ".join(f"{b} = {_plain(events, source, b, '`where`')[entry]}" for b in branches)
        raise UserError(
            f"{source.path}, entry {source.start + entry} ({values}): belongs to {' and '.join(found) or 'no process'}"
            f", but exactly one of {', '.join(settings.processes)} was expected. Correct `where` of these processes."
        )
    return np.asarray(np.argmax(matches, axis=0), dtype=np.int64)


def _generator_weight(events: Events, source: Source, settings: SelectionSettings) -> npt.NDArray[np.float64]:
    if settings.generator is None:
        return np.ones(len(events), dtype=np.float64)
    weight = _plain(events, source, settings.generator, "weights.generator").astype(np.float64)
    if not np.all(np.isfinite(weight)):
        entry = int(np.flatnonzero(~np.isfinite(weight))[0])
        raise UserError(
            f"{source.path}, tree {source.tree!r}, entry {source.start + entry}: the generator weight "
            f"{settings.generator} is {weight[entry]}; a finite number was expected."
        )
    return np.asarray(weight, dtype=np.float64)


def _plain(events: Events, source: Source, branch: str, key: str) -> npt.NDArray[Any]:
    """Read a branch that the configuration names under a key, with one number for every event."""
    try:
        column = ak.Array(events[branch])
    except UserError as error:
        raise UserError(f"{error} Correct {key}.") from error
    values = ak.to_numpy(column) if column.ndim == 1 and not column.fields else None
    if values is None or values.dtype.kind not in "biuf":
        found = ak.without_parameters(column).type.content
        raise UserError(
            f"{source.path}, tree {source.tree!r}: branch {branch!r} holds {found}, but one number per event was "
            f"expected. Correct {key}."
        )
    if np.ma.is_masked(values):
        entry = int(np.flatnonzero(np.ma.getmaskarray(values))[0])
        raise UserError(
            f"{source.path}, tree {source.tree!r}, entry {source.start + entry}: branch {branch!r} of {key} is absent; "
            "it needs a value in every event. Take it out of data.sentinels, or correct the key."
        )
    return np.asarray(values)


def _categories(
    events: Events, source: Source, settings: SelectionSettings, functions: Mapping[str, Function]
) -> npt.NDArray[np.object_]:
    category = np.full(len(events), "", dtype=object)
    for name, function in settings.categories.items():
        mask = call_mask(function, functions[function], events, source)
        twice = np.flatnonzero(mask & (category != ""))
        if len(twice):
            raise UserError(
                f"{source.path}: an event is in two categories, {category[twice[0]]!r} and {name!r}; categories are "
                "disjoint. Correct selection.categories."
            )
        category[mask] = name
    return category
