"""Tables of selected events: the column stores of many chunks put together, with physics weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from analysis.columns import read_columns
from analysis.errors import UserError
from analysis.weights import FB_PER_PB, Normalisation, Totals

if TYPE_CHECKING:
    from analysis.config import Configuration


@dataclass(frozen=True)
class Chunk:
    """The column stores of one chunk of one file.

    Attributes:
        dataset: Data set that the chunk belongs to.
        file_key: Key of its file: orders duplicates independently of the order of files.
        events: Column store of the selection.
        columns: Column store of each feature, spectator and weight factor.
    """

    dataset: str
    file_key: str
    events: Path
    columns: Mapping[str, Path]


@dataclass(frozen=True)
class EventTable:
    """Selected events, ordered by their identity hash, whatever the order of files and chunks.

    Cutting files otherwise changes sums of weights in their last bits, and nothing else.

    Attributes:
        processes: Names that `process` counts.
        process: Index of each event's process, int16 [N].
        label: Index of each event's class, int16 [N]; -1 for processes in no class.
        weight: Signed physics weight, float64 [N]; without weight factors it sums to the process's normalisation over
            all events, before any selection.
        identity: Identity hash, uint64 [N].
        is_test: Held-out test events, bool [N].
        training: Passes the training cuts too, bool [N].
        category: Name of the category or an empty string, object [N].
        chunk: Index of the chunk that the event came from, int32 [N].
        entry: Entry in its file, int64 [N].
        columns: Features and spectators, masked float32 [N].
    """

    processes: tuple[str, ...]
    process: npt.NDArray[np.int16]
    label: npt.NDArray[np.int16]
    weight: npt.NDArray[np.float64]
    identity: npt.NDArray[np.uint64]
    is_test: npt.NDArray[np.bool_]
    training: npt.NDArray[np.bool_]
    category: npt.NDArray[np.object_]
    chunk: npt.NDArray[np.int32]
    entry: npt.NDArray[np.int64]
    columns: Mapping[str, np.ma.MaskedArray[Any, Any]]

    def __len__(self) -> int:
        return len(self.process)

    def matrix(self, names: Sequence[str]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
        """Columns side by side: values (0 where absent) and presence, [N, F] each."""
        columns = [self.columns[name] for name in names]
        values = np.stack([np.ma.filled(column, 0) for column in columns], axis=1)
        present = np.stack([~np.ma.getmaskarray(column) for column in columns], axis=1)
        return np.ascontiguousarray(values, dtype=np.float32), np.ascontiguousarray(present)

    def take(self, rows: npt.NDArray[Any]) -> EventTable:
        """The table of some rows (bool mask or positions)."""
        return EventTable(
            self.processes,
            self.process[rows],
            self.label[rows],
            self.weight[rows],
            self.identity[rows],
            self.is_test[rows],
            self.training[rows],
            self.category[rows],
            self.chunk[rows],
            self.entry[rows],
            {name: column[rows] for name, column in self.columns.items()},
        )


@dataclass(frozen=True)
class TableSettings:
    """What a table needs to know of the analysis.

    Attributes:
        processes: Processes to keep, in plotting order.
        labels: Class index of each of them; -1 for none.
        normalisations: Normalisation of each of them.
        collision: Data sets of collision data: no weight factors there.
        columns: Features and spectators to read.
        truth: What is known of simulated events alone; absent where a chunk has no such column.
        factors: Weight factors to multiply on.
        duplicates: What to do about events that occur twice in a process or in a data set.
    """

    processes: tuple[str, ...]
    labels: tuple[int, ...]
    normalisations: Mapping[str, Normalisation]
    collision: frozenset[str]
    columns: tuple[str, ...]
    factors: tuple[str, ...]
    duplicates: Literal["error", "drop", "keep"]
    truth: tuple[str, ...] = ()

    @staticmethod
    def of(
        config: Configuration, processes: Sequence[str], columns: Sequence[str], truth: Sequence[str] = ()
    ) -> TableSettings:
        """The settings of a table of some processes and columns of an analysis."""
        return TableSettings(
            processes=tuple(processes),
            labels=tuple(config.class_of(p) for p in processes),
            normalisations={p: _normalisation(config, p) for p in processes},
            collision=frozenset(d for p in processes if config.is_collision(p) for d in config.processes[p].data),
            columns=tuple(columns),
            factors=config.weights.factors,
            duplicates=config.identity.duplicates,
            truth=tuple(name for name in truth if name not in columns),
        )


def _normalisation(config: Configuration, name: str) -> Normalisation:
    process = config.processes[name]
    if process.normalisation == "as_is":
        return Normalisation(None)
    if process.normalisation == "cross_section":
        if process.picobarn is None or config.weights.luminosity is None:
            raise ValueError(f"process {name!r} has no cross section or luminosity")
        return Normalisation(process.picobarn * FB_PER_PB * config.weights.luminosity)
    return Normalisation(process.normalisation.sum_to)


def load_table(chunks: Sequence[Chunk], totals: Mapping[str, Totals], settings: TableSettings) -> EventTable:
    """Read chunks and give every event its physics weight.

    Args:
        chunks: Column stores.
        totals: Sums over *all* files of each process, from before any selection.
        settings: What to read.

    Raises:
        UserError: Duplicate identities where they are an error, a weight factor that is absent, or weights that
            can't be normalised.
    """
    index = {name: i for i, name in enumerate(settings.processes)}
    factor = np.array([settings.normalisations[p].factor(p, totals.get(p, Totals())) for p in settings.processes])
    datasets = sorted({chunk.dataset for chunk in chunks})
    parts: list[dict[str, Any]] = []
    for number, chunk in enumerate(chunks):
        events = read_columns(chunk.events)
        process = np.array([index.get(str(p), -1) for p in events["process"]], dtype=np.int16)
        part: dict[str, Any] = {name: events[name] for name in ("identity", "is_test", "training", "category", "entry")}
        part["process"] = process
        weight = events["generator_weight"] * factor[process] if len(process) else np.zeros(0)
        if chunk.dataset not in settings.collision:
            for name in settings.factors:
                weight = weight * _factor(chunk, name)
        part["weight"] = weight
        part["chunk"] = np.full(len(process), number, dtype=np.int32)
        part["dataset"] = np.full(len(process), datasets.index(chunk.dataset), dtype=np.int32)
        part["file"] = np.full(len(process), chunk.file_key, dtype=object)
        for name in settings.columns:
            part[f"column:{name}"] = np.ma.asarray(read_columns(chunk.columns[name])[name])
        for name in settings.truth:
            part[f"column:{name}"] = _truth(chunk, name, len(process))
        kept = process >= 0
        parts.append({name: values[kept] for name, values in part.items()})
    names = (*settings.columns, *settings.truth)
    joined = _join(parts, names)
    order = np.lexsort((joined["entry"], joined["file"].astype(str), joined["process"], joined["identity"]))
    joined = {name: values[order] for name, values in joined.items()}
    kept = _unique(joined, settings)
    labels = np.array(settings.labels, dtype=np.int16)
    return EventTable(
        processes=settings.processes,
        process=joined["process"][kept],
        label=labels[joined["process"][kept]],
        weight=joined["weight"][kept],
        identity=joined["identity"][kept],
        is_test=joined["is_test"][kept],
        training=joined["training"][kept],
        category=joined["category"][kept],
        chunk=joined["chunk"][kept],
        entry=joined["entry"][kept],
        columns={name: joined[f"column:{name}"][kept] for name in names},
    )


def _factor(chunk: Chunk, name: str) -> npt.NDArray[np.float64]:
    values = read_columns(chunk.columns[name])[name]
    if np.ma.is_masked(values):
        raise UserError(f"Weight factor {name} is None for some events of data set {chunk.dataset!r}; give 1 instead.")
    return np.asarray(values, dtype=np.float64)


def _truth(chunk: Chunk, name: str, count: int) -> np.ma.MaskedArray[Any, Any]:
    """A column that only simulated events have."""
    if name not in chunk.columns:
        return np.ma.MaskedArray(np.zeros(count, dtype=np.float32), mask=True)
    column: np.ma.MaskedArray[Any, Any] = np.ma.asarray(read_columns(chunk.columns[name])[name])
    return column


def _join(parts: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> dict[str, Any]:
    """Concatenate chunks; no chunks at all give empty columns of the right types."""
    empty: dict[str, Any] = {
        "identity": np.zeros(0, np.uint64),
        "is_test": np.zeros(0, np.bool_),
        "training": np.zeros(0, np.bool_),
        "category": np.zeros(0, object),
        "entry": np.zeros(0, np.int64),
        "process": np.zeros(0, np.int16),
        "weight": np.zeros(0, np.float64),
        "chunk": np.zeros(0, np.int32),
        "dataset": np.zeros(0, np.int32),
        "file": np.zeros(0, object),
    }
    empty |= {f"column:{name}": np.ma.zeros(0, dtype=np.float32) for name in columns}
    joined: dict[str, Any] = {}
    for name, first in empty.items():
        concatenate = np.ma.concatenate if name.startswith("column:") else np.concatenate
        joined[name] = concatenate([first, *(part[name] for part in parts)])
    return joined


def _unique(joined: Mapping[str, Any], settings: TableSettings) -> npt.NDArray[np.bool_]:
    """Rows to keep: an event may occur once in a process and once in a data set; the first in order is kept.

    Shifted twins share a sample, and so their identities, but neither process nor data set.
    """
    again = np.zeros(len(joined["identity"]), dtype=np.bool_)
    for group in ("process", "dataset"):
        order = np.lexsort((np.arange(len(again)), joined[group], joined["identity"]))
        identity, owner = joined["identity"][order], joined[group][order]
        again[order[1:]] |= (identity[1:] == identity[:-1]) & (owner[1:] == owner[:-1])
    if settings.duplicates == "error" and np.any(again):
        row = int(np.flatnonzero(again)[0])
        same = np.flatnonzero(joined["identity"] == joined["identity"][row])
        first, second = (f"entry {joined['entry'][r]} of {joined['file'][r]}" for r in same[:2])
        process = settings.processes[joined["process"][row]]
        raise UserError(
            f"Process {process!r}: {int(np.sum(again))} events occur more than once, the first as {first} and "
            f"{second}. Set identity.duplicates to drop (keep the first) or keep (count all), or name further columns "
            "under identity.columns."
        )
    if settings.duplicates == "drop":
        return ~again
    return np.ones(len(again), dtype=np.bool_)
