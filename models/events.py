"""The events that networks train on: in memory all at once, or in windows that are read while networks train.

A window joins parts of the data. Parts are ranges of the events in the order of their identities, which are hashes:
each is a random sample of all events. Every epoch puts the parts into a new order and joins `PARTS` of them to a
window, in which each network shuffles its own events. An event is met once per epoch, each time among others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models import hashing
from models.preprocessing import Signature

PARTS = 8
"""Parts that are joined to a window."""
_PARTS_STREAM = 4

Mask = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]


def drawn(count: npt.ArrayLike, share: npt.ArrayLike) -> Counts:
    """So many events are a share of a number of them: rounded up."""
    numbers: Counts = np.ceil(np.asarray(count) * np.asarray(share) - 1e-9).astype(np.int64)
    return numbers


@dataclass(frozen=True)
class TrainingEvents:
    """The events that all networks choose from; arrays may be maps of files that are larger than memory.

    Attributes:
        signature: Names of features, objects and classes.
        values: float32 ``[N, F]``, in the features' units; absent entries may hold anything.
        present: bool ``[N, F]``.
        labels: int64 ``[N]``: positions in ``signature.classes``.
        weights: float64 ``[N]``: physics weights, signed.
        identity: uint64 ``[N]``, ascending: a hash of each event's identity, from which the batch order follows.
        extra: float32 ``[N, E]``, NaN where there is none: what only losses and weights know of an event.
        extra_names: Of these columns.
        soft_labels: For each class the column of its probability; ``None`` for one class at most, which has the rest.
            Empty: labels are hard.
        signal: Position of the signal class, which decorrelation needs.
        processes: int64 ``[N]``: the process of each event, where its training weight depends on it.
        process_names: The names that ``processes`` count, for messages.
    """

    signature: Signature
    values: npt.NDArray[np.float32]
    present: npt.NDArray[np.bool_]
    labels: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float64]
    identity: npt.NDArray[np.uint64]
    extra: npt.NDArray[np.float32] | None = None
    extra_names: tuple[str, ...] = ()
    soft_labels: tuple[str | None, ...] = ()
    signal: int | None = None
    processes: npt.NDArray[np.int64] | None = None
    process_names: tuple[str, ...] = ()

    def further(self, names: Sequence[str]) -> npt.NDArray[np.float32]:
        """Some of the extra columns, ``[N, len(names)]``."""
        if self.extra is None or not names:
            return np.empty((len(self.labels), 0), dtype=np.float32)
        return self.extra[:, [self.extra_names.index(name) for name in names]]

    def columns(self) -> tuple[npt.NDArray[Any], ...]:
        """The arrays in the order of `Table`'s fields; of equal identities, each but the first gets one of its own."""
        again = np.flatnonzero(self.identity[1:] == self.identity[:-1]) + 1
        identity = self.identity
        if len(again):
            identity = identity.copy()
            for row in again:
                identity[row] = np.uint64(hashing.key(int(identity[row - 1]), 1) % 2**64)
        extra = self.further(()) if self.extra is None else self.extra
        return self.values, self.present, self.labels, self.weights, identity.view(np.int64), extra


@dataclass(frozen=True)
class Table:
    """Events on the device. Rows below zero pad batches: row ``~r`` stands for event r with no weight."""

    values: Tensor  # (n, F); absent entries hold anything
    present: Tensor  # (n, F)
    labels: Tensor  # (n,)
    weights: Tensor  # (n,) float64, or (M, n) where each member has its own
    identity: Tensor  # (n,) int64
    extra: Tensor  # (n, E); NaN where there is none

    def gather(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return values and presence ``[M, B, F]``, labels and weights ``[M, B]`` of rows ``[M, B]``."""
        places = torch.where(rows < 0, ~rows, rows).flatten()  # (M·B,)
        values, present, labels = (
            column.index_select(0, places).view(*rows.shape, *column.shape[1:])
            for column in (self.values, self.present, self.labels)
        )
        if self.weights.dim() == 1:
            weights = self.weights.index_select(0, places).view(rows.shape)
        else:
            weights = self.weights.gather(1, places.view(rows.shape))
        real = rows >= 0  # (M, B)
        # What pads may be an event that no network uses, with anything in it.
        return values, present & real.unsqueeze(-1), labels * real, torch.where(real, weights, 0.0)

    def gather_extra(self, rows: Tensor) -> Tensor:
        """Return the extra columns ``[M, B, E]`` of rows ``[M, B]``, NaN where they pad."""
        places = torch.where(rows < 0, ~rows, rows).flatten()  # (M·B,)
        extra = self.extra.index_select(0, places).view(*rows.shape, -1)  # (M, B, E)
        return torch.where((rows < 0).unsqueeze(-1), math.nan, extra)

    def select(self, keep: Tensor) -> Table:
        """Keep only the weights of the members at these positions, int64 ``[M']``."""
        return self if self.weights.dim() == 1 else replace(self, weights=self.weights[keep])


@dataclass(frozen=True)
class Window:
    """Events in memory, and which of them each member trains and stops on.

    Attributes:
        table: The events.
        groups: Rows to train on, int64 ``[M, L]``, one tensor, or one for each class.
        counts: Number of rows in each group, ``[M, G]``.
        validation: Rows to stop on, int64 ``[M, L']``.
    """

    table: Table
    groups: tuple[Tensor, ...]
    counts: Counts
    validation: Tensor

    def select(self, keep: Tensor) -> Window:
        """Keep only the members at these positions, int64 ``[M']``."""
        groups = tuple(group[keep] for group in self.groups)
        return Window(self.table.select(keep), groups, self.counts[keep.cpu().numpy()], self.validation[keep])


class Windows:
    """All events as one window, or window after window, read by a thread of its own into one of two buffers."""

    def __init__(
        self,
        events: TrainingEvents,
        training: Sequence[Mask],
        validation: Sequence[Mask],
        *,
        size: int | None,
        by_class: bool,
        rows: int,
        device: str,
        weights: npt.NDArray[np.float64] | None = None,
        shares: npt.NDArray[np.float64] | None = None,
    ) -> None:
        """Lay out the parts.

        Args:
            events: The events.
            training: For each member, which events it trains on, ``[N]``.
            validation: For each member, which events it stops on, ``[N]``.
            size: Events in a window; ``None`` for all.
            by_class: Whether to group the rows to train on by class.
            rows: Lists of rows to stop on are padded to a multiple of so many.
            device: torch's name of the device.
            weights: Weights of the events for each member, ``[M, N]``; ``None`` for those of the events.
            shares: The share of each class's events that an epoch holds, ``[M, C]``; ``None`` for all.
        """
        self._events, self._columns, self._weights = events, events.columns(), weights
        self._training, self._validation = list(training), list(validation)
        self._by_class, self._rows, self._device = by_class, rows, torch.device(device)
        count = len(events.labels)
        self.whole: Window | None = None
        if size is None or size >= count:
            edges = np.array([0, count])
            table = Table(*(torch.from_numpy(column).to(device) for column in self._columns))
            if weights is not None:
                table = replace(table, weights=torch.from_numpy(weights).to(device))
            self.whole = self._window(table, [(0, count)])
        else:
            edges = np.linspace(0, count, -(-count // (size // PARTS)) + 1).astype(np.int64)
            self._longest = int(np.diff(edges).max()) * PARTS
            self._slots = [self._empty(), self._empty()]
            cuda = self._device.type == "cuda"
            self._side = torch.cuda.Stream(self._device) if cuda else None  # type: ignore[no-untyped-call]
        self._parts = list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))
        self._shares = np.ones((len(training), 1)) if shares is None else shares  # (M, G)
        self._counts = np.array([self._count(use) for use in training])  # (M, p, G)

    def select(self, keep: Tensor) -> None:
        """Keep only the members at these positions, int64 ``[M']``."""
        positions = keep.tolist()
        self._training = [self._training[position] for position in positions]
        self._validation = [self._validation[position] for position in positions]
        self._counts, self._shares = self._counts[positions], self._shares[positions]
        if self._weights is not None:
            self._weights = self._weights[positions]
        if self.whole is not None:
            self.whole = self.whole.select(keep)
        else:
            self._slots = [slot.select(keep) for slot in self._slots]

    def order(self, epoch: int) -> list[list[int]]:
        """The parts of each window of an epoch; they follow from the epoch alone."""
        parts = sorted(range(len(self._parts)), key=lambda part: hashing.key(_PARTS_STREAM, epoch, part))
        return [sorted(own.tolist()) for own in np.array_split(parts, -(-len(parts) // PARTS))]

    def steps(self, epoch: int, batch_size: int) -> Counts:
        """The number of each member's batches in each window of an epoch, ``[W, M]``."""
        own = np.array([self._counts[:, parts].sum(axis=1) for parts in self.order(epoch)])  # (W, M, G)
        steps: Counts = -(-drawn(own, self._shares).sum(axis=2) // batch_size)
        return steps

    @property
    def drawn(self) -> Counts:
        """How many events of each member an epoch in one window holds, ``[M]``."""
        numbers: Counts = drawn(self._counts.sum(axis=1), self._shares).sum(axis=1)
        return numbers

    def training(self, epoch: int, start: int = 0) -> Iterator[Window]:
        """The windows of an epoch, from one of them on."""
        return self._read(self.order(epoch)[start:])

    def validation(self) -> Iterator[Window]:
        """All events once, in windows."""
        return self._read([list(range(len(self._parts)))[i : i + PARTS] for i in range(0, len(self._parts), PARTS)])

    def _read(self, order: Sequence[Sequence[int]]) -> Iterator[Window]:
        if self.whole is not None:
            yield self.whole
            return
        with ThreadPoolExecutor(1) as thread:
            coming: Future[Window] = thread.submit(self._fill, 0, order[0], self._free())
            for number in range(len(order)):
                window = coming.result()
                if self._side is not None:
                    for tensor in (*window.groups, window.validation):
                        tensor.record_stream(torch.cuda.current_stream(self._device))
                if number + 1 < len(order):
                    coming = thread.submit(self._fill, (number + 1) % 2, order[number + 1], self._free())
                yield window

    def _free(self) -> torch.cuda.Event | None:
        """When the device will have done what was asked of it until now: then it needs a buffer no longer."""
        return None if self._side is None else torch.cuda.current_stream(self._device).record_event()

    def _fill(self, slot: int, parts: Sequence[int], free: torch.cuda.Event | None) -> Window:
        """Read parts into a buffer."""
        ranges = [self._parts[part] for part in parts]
        if self._side is None:
            self._copy(self._slots[slot], ranges)
            return self._window(self._slots[slot], ranges)
        with torch.cuda.stream(self._side):
            if free is not None:
                self._side.wait_event(free)
            self._copy(self._slots[slot], ranges)
            window = self._window(self._slots[slot], ranges)
            self._side.synchronize()
            return window

    def _copy(self, table: Table, ranges: Sequence[tuple[int, int]]) -> None:
        for name, column in zip(vars(table), self._columns, strict=True):
            tensor, source, place = getattr(table, name), column, 0
            if name == "weights" and self._weights is not None:
                tensor, source = tensor.T, self._weights.T  # (n, M), (N, M)
            for a, b in ranges:
                tensor[place : place + b - a].copy_(torch.from_numpy(source[a:b]))
                place += b - a

    def _empty(self) -> Table:
        """A buffer for the largest window."""
        columns = (torch.from_numpy(column[:1]) for column in self._columns)
        table = Table(*(c.new_zeros((self._longest, *c.shape[1:]), device=self._device) for c in columns))
        if self._weights is None:
            return table
        return replace(table, weights=table.weights.expand(len(self._weights), -1).clone())

    def _count(self, use: Mask) -> Counts:
        """How many events of a member each part holds, of each class if shares of them are drawn: ``[p, G]``."""
        if self._shares.shape[1] == 1:
            return np.array([[np.count_nonzero(use[a:b])] for a, b in self._parts])
        labels, classes = self._events.labels, self._shares.shape[1]
        return np.array([np.bincount(labels[a:b][use[a:b]], minlength=classes) for a, b in self._parts])

    def _window(self, table: Table, ranges: Sequence[tuple[int, int]]) -> Window:
        """List each member's rows in a table that holds some ranges of the events."""

        def chosen(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
            return np.concatenate([column[a:b] for a, b in ranges])

        uses = [chosen(use) for use in self._training]
        groups = [[np.flatnonzero(use) for use in uses]]
        if self._by_class:
            labels = chosen(self._events.labels)
            classes = range(len(self._events.signature.classes))
            groups = [[np.flatnonzero(use & (labels == label)) for use in uses] for label in classes]
        stops = [np.flatnonzero(chosen(use)) for use in self._validation]
        return Window(
            table=table,
            groups=tuple(self._padded(group, 1) for group in groups),
            counts=np.array([[len(rows) for rows in group] for group in groups]).T,
            validation=self._padded(stops, self._rows),
        )

    def _padded(self, rows: Sequence[npt.NDArray[np.int64]], multiple: int) -> Tensor:
        """Stack row numbers ``[n_m]`` into int64 ``[M, L]``, L a multiple of some number and not zero."""
        length = max(1, -(-max(len(chosen) for chosen in rows) // multiple)) * multiple
        stacked = np.empty((len(rows), length), dtype=np.int64)
        for position, chosen in enumerate(rows):
            stacked[position, : len(chosen)] = chosen
            stacked[position, len(chosen) :] = ~(chosen[0] if len(chosen) else 0)
        return torch.from_numpy(stacked).to(self._device)
