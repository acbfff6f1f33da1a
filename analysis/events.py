"""Reading: ROOT files (TTree or RNTuple, NanoAOD-like or flat) to lazily read awkward arrays, in bounded chunks."""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import awkward as ak
import numpy as np
import numpy.typing as npt
import uproot
from uproot.source.fsspec import FSSpecSource

from analysis.errors import UserError, bad_file, nearest
from analysis.sources import FileRecord, Source

if TYPE_CHECKING:
    from analysis.config import GeneratedSum

_TREES = ("TTree", "TNtuple", "TNtupleD", "ROOT::RNTuple", "ROOT::Experimental::RNTuple")
"""ROOT classes that hold entries."""


def is_remote(path: str) -> bool:
    """Tell a URL from a local path."""
    return "://" in path


def inspect_file(path: str, tree: str) -> FileRecord:
    """Open a file once and record what identifies it.

    Args:
        path: File or root:// URL.
        tree: Name of the tree that will be read.

    Raises:
        UserError: The file is missing or can't be reached, or it is bad (with `damage`): empty, truncated or no ROOT
            file, or the tree is not in it.
    """
    if not is_remote(path):
        _check_header(path)
    try:
        return _inspect(path, tree)
    except UserError as error:
        if is_remote(path) and _TOO_SHORT in str(error.__cause__):
            # The server has answered, and with less than was asked for: its header and size say why.
            with reading(path, "can't be read"):
                _check_header(path)
        raise


def _inspect(path: str, tree: str) -> FileRecord:
    with open_root(path) as file, reading(path, "can't be read"):
        key = tree_key(file, path, tree)
        source = file.file.source
        size = source.num_bytes if is_remote(path) else os.path.getsize(path)
        end = int(file.file.fEND)
        if size < end:
            raise _truncated(path, size, end)
        return FileRecord(
            uuid=str(file.file.uuid), size=int(size), end=end, tree=key, entries=int(file[key].num_entries)
        )


_TOO_SHORT = "expected Chunk of length"
"""What uproot says of bytes that are not there."""


def _check_header(path: str) -> None:
    """Compare a file's header with its length; a file cut in its middle would still open."""
    if is_remote(path):
        with FSSpecSource(path) as source:
            size = int(source.num_bytes)
            head = bytes(source.chunk(0, min(size, 24)).raw_data) if size else b""
    else:
        if not os.path.exists(path):
            raise UserError(f"{path} does not exist. Check data.folder and the data set's files in analysis.yaml.")
        if os.path.isdir(path):
            raise UserError(f"{path} is a folder; a ROOT file was expected.")
        size = os.path.getsize(path)
        with reading(path, "can't be read"), open(path, "rb") as stream:
            head = stream.read(24)
    if size == 0:
        raise bad_file(path, "is empty (0 bytes)", "Copy it again, or take it out of the data set's files.")
    if head[:4] != b"root":
        raise bad_file(path, f"is not a ROOT file: it begins with {head[:4]!r}, but b'root' was expected")
    if len(head) < 24:
        raise _truncated(path, size, 64)
    version = struct.unpack(">i", head[4:8])[0]
    # From version 1,000,000 on, file pointers take eight bytes (TFile's header).
    end = struct.unpack(">q", head[12:20])[0] if version >= 1_000_000 else struct.unpack(">i", head[12:16])[0]
    if size < end:
        raise _truncated(path, size, end)


def _truncated(path: str, size: int, end: int) -> UserError:
    return bad_file(path, f"is truncated: {size} bytes are there, but its header says that it ends at {end}")


def open_root(path: str) -> Any:
    """Open a file with uproot.

    Raises:
        UserError: It can't be opened; with `damage` if it is bad.
    """
    with reading(path, "could not be opened as a ROOT file"):
        return uproot.open(path)


@contextmanager
def reading(path: str, said: str) -> Iterator[None]:
    """Turn what a reader raises into one sentence: the file is bad, or it was out of reach.

    Args:
        path: File or URL.
        said: What went wrong, as what follows the path in a sentence.

    Raises:
        UserError: Whatever was raised; with `damage` if the file is bad.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), "").replace(path, path.rpartition("/")[2])
        said = f"{said}: {first or type(error).__name__}"
        if _out_of_reach(path, error):
            raise UserError(f"{path} {said}") from error
        raise bad_file(path, said) from error


def _out_of_reach(path: str, error: Exception) -> bool:
    """Whether a server, a disk or this machine failed, which says nothing about the file."""
    if isinstance(error, OSError):
        # uproot raises a bare OSError where bytes are missing; over a network these may be lost on the way.
        return is_remote(path) or error.errno is not None or type(error) is not OSError
    libraries = ("aiohttp", "asyncio", "concurrent", "fsspec", "fsspec_xrootd", "XRootD")
    return isinstance(error, (ImportError, MemoryError)) or type(error).__module__.partition(".")[0] in libraries


def tree_key(file: Any, path: str, tree: str, key: str = "data.tree or the data set's `tree`") -> str:
    """Find the key of a tree by its name; a name may itself hold a semicolon, so cycles are cut off from the right."""
    cycles: dict[str, int] = {}
    for stored, classname in file.classnames().items():
        name, _, cycle = stored.rpartition(";")
        if classname in _TREES:
            cycles[name] = max(int(cycle), cycles.get(name, 0))
    if tree not in cycles:
        hint = nearest(tree, cycles) or "There is no tree in it at all."
        raise bad_file(path, f"holds no tree {tree!r}", f"{hint} Correct the key {key}.")
    return f"{tree};{cycles[tree]}"


class Events:
    """A chunk of events whose branches are read when they are touched.

    `events.Muon` or `events["lep_pt_0"]` gives an awkward array over the chunk's events; `len(events)` counts them;
    `events.fields` lists what is there. A declared sentinel has become `None` here, at the door, and is never seen
    again. Asking for what is not there raises a `UserError` that names the file and the nearest branches.
    """

    def __init__(
        self,
        array: Any,
        source: Source,
        kept: npt.NDArray[np.int64] | None = None,
        shifted: Mapping[str, Any] | None = None,
    ) -> None:
        self._array = array
        self._source = source
        self._kept = kept
        self._shifted: Mapping[str, Any] = shifted or {}
        self._columns: dict[str, Any] = dict(self._shifted)

    def __len__(self) -> int:
        return len(self._array) if self._kept is None else len(self._kept)

    @property
    def fields(self) -> list[str]:
        """Names of branches (flat) or collections (NanoAOD)."""
        return list(self._array.fields)

    def at(self, kept: npt.NDArray[np.int64]) -> Events:
        """Keep some of the chunk's events.

        Args:
            kept: int64 positions within this chunk, ascending.
        """
        shifted = {name: column[kept] for name, column in self._shifted.items()}
        kept = kept if self._kept is None else self._kept[kept]
        return Events(self._array, self._source, kept, shifted)

    def shifted(self, columns: Mapping[str, Any]) -> Events:
        """The same events with other values.

        Args:
            columns: What takes the place of branches (flat) or collections (NanoAOD), one item per event; sentinels
                are not looked for in it.
        """
        return Events(self._array, self._source, self._kept, {**self._shifted, **columns})

    def __getitem__(self, name: str) -> Any:
        if name not in self._columns:
            self._columns[name] = self._read(name)
        return self._columns[name]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[name]

    def __getstate__(self) -> Any:
        raise TypeError("Events are read where they are used; pass their Source on instead")

    @property
    def entries(self) -> npt.NDArray[np.int64]:
        """Entry in the file of each event, int64 [N]."""
        positions = np.arange(len(self._array), dtype=np.int64) if self._kept is None else self._kept
        return positions + self._source.start

    def _read(self, name: str) -> Any:
        source = self._source
        if name not in self._array.fields:
            collection, _, inner = name.partition("_")
            if collection in self._array.fields and inner in self._array[collection].fields:
                return self[collection][inner]  # MET_pt, as the branch is called in the file
            grouped = [f"{group}.{inner}" for group in self.fields for inner in self._array[group].fields]
            hint = nearest(name.replace("_", "."), grouped) if collection in self.fields else nearest(name, self.fields)
            raise UserError(f"{source.path}, tree {source.tree!r}: there is no branch {name!r}. {hint}")
        column = self._array[name]
        if self._kept is not None:
            column = column[self._kept]
        for branch, sentinel in source.sentinels.items():
            if branch == name:
                column = ak.mask(column, column != sentinel)
            elif branch.startswith(f"{name}_") and branch.removeprefix(f"{name}_") in column.fields:
                inner = branch.removeprefix(f"{name}_")
                column = ak.with_field(column, ak.mask(column[inner], column[inner] != sentinel), inner)
        return column


def read(source: Source, log: list[Any] | None = None) -> Events:
    """Open one range of entries for lazy reading.

    Args:
        source: File, tree, layout and range.
        log: If given, coffea appends an item with a `.branch` for every branch that is read.

    Raises:
        UserError: The file or the tree can't be read, or a declared sentinel names no branch.
    """
    from coffea.nanoevents import BaseSchema, NanoAODSchema, NanoEventsFactory

    # Event numbers are this project's own business (`identity.columns`): a file may lack run or luminosityBlock.
    tolerant = type("Nano", (NanoAODSchema,), {"error_missing_event_ids": False})
    schema = tolerant if source.layout == "nanoaod" else BaseSchema
    with open_root(source.path) as file:
        key = tree_key(file, source.path, source.tree)
        branches = file[key].keys()
        if source.uuid and str(file.file.uuid) != source.uuid:
            raise UserError(f"{source.path} was rewritten while the run was going on. Start the run again.")
    for branch in source.sentinels:
        if branch not in branches:
            raise UserError(
                f"{source.path}, tree {source.tree!r}: there is no branch {branch!r}, for which data.sentinels "
                f"declares a value. {nearest(branch, branches)}"
            )
    try:
        with warnings.catch_warnings():
            # Files that lack event numbers or some cross references are common; coffea warns about each.
            warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"coffea\.nanoevents")
            events = NanoEventsFactory.from_root(
                {source.path: key},
                mode="virtual",
                schemaclass=schema,
                entry_start=source.start,
                entry_stop=source.stop,
                access_log=log,
            ).events()
    except (KeyError, ValueError, OSError) as error:
        raise UserError(f"{source.path}, tree {source.tree!r}, could not be read: {error}") from error
    return Events(events, source)


def read_generated(path: str, place: GeneratedSum | None, key: str = "data.generated") -> float | None:
    """Read the sum of the weights of all generated events, also of those that a skim left out.

    Args:
        path: File or URL.
        place: A branch of a tree, whose entries are added up, or a histogram, whose bins are (flow bins included).
        key: Of the configuration, for messages.

    Returns:
        The sum; None without a place.

    Raises:
        UserError: Tree, branch, element or histogram is missing, or what is there is no finite number.
    """
    if place is None:
        return None
    with open_root(path) as file, reading(path, "can't be read for its sum of generated weights"):
        if place.histogram is not None:
            names = {
                name.rpartition(";")[0] for name, classname in file.classnames().items() if classname.startswith("TH")
            }
            if place.histogram not in names:
                hint = nearest(place.histogram, names) or "There is no histogram in it at all."
                raise bad_file(path, f"holds no histogram {place.histogram!r}", f"{hint} Correct {key}.")
            values = file[place.histogram].values(flow=True)
        else:
            tree = file[tree_key(file, path, str(place.tree), f"{key}.tree")]
            values = _sums_of(tree, place, f"{path}, tree {place.tree!r}", key)
    where = f"{path}, {place.histogram or f'{place.tree}.{place.branch}'}"
    if values.dtype.kind not in "fiu":
        raise UserError(f"{where} holds {values.dtype}, but one number per entry was expected. Correct {key}.")
    total = float(np.sum(values, dtype=np.float64))
    if not np.isfinite(total):
        raise UserError(f"{where}: the sum of generated weights is {total}; a finite number was expected.")
    return total


def _sums_of(tree: Any, place: GeneratedSum, where: str, key: str) -> npt.NDArray[Any]:
    """What each entry of a tree of sums adds, [entries]; an entry whose sums are multiplied with 0 may lack them."""
    for branch in filter(None, (place.branch, place.times)):
        if branch not in tree.keys():
            raise UserError(f"{where}: there is no branch {branch!r}. {nearest(branch, tree.keys())} Correct {key}.")
    if place.index is None:
        values: npt.NDArray[Any] = tree[place.branch].array(library="np")
        return values if place.times is None else values * tree[place.times].array(library="np")
    entries = tree[place.branch].array()
    if entries.ndim != 2:
        raise UserError(f"{where}, {place.branch}: an entry is no list, so that `index` has no meaning. Correct {key}.")
    factor = np.ones(len(entries)) if place.times is None else tree[place.times].array(library="np")
    short = (ak.to_numpy(ak.num(entries)) <= place.index) & (factor != 0)
    if short.any():
        at = int(np.flatnonzero(short)[0])
        raise UserError(
            f"{where}, {place.branch}: entry {at} has {len(entries[at])} elements, and none of index {place.index}. "
            f"Correct {key}."
        )
    padded = ak.fill_none(ak.pad_none(entries, place.index + 1)[:, place.index], 0)
    return np.asarray(ak.to_numpy(padded) * factor)
