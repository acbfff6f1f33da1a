"""What a run works on: one analysis with its input files, found in the head process before the graph is built."""

from __future__ import annotations

import glob
import json
import multiprocessing
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

from analysis.config import EXAMPLES, Analysis, DataSet, GeneratedSum, data_folder, load_analysis
from analysis.errors import UserError
from analysis.sources import FileRecord
from workflow.execution.executor import say
from workflow.execution.shipping import is_copy
from workflow.identity import canonical
from workflow.store import atomic_write, read_json, store_folder
from workflow.tracing import defined_names, user_function, user_label


@dataclass(frozen=True)
class InputFile:
    """One file of a data set.

    Attributes:
        dataset: Name of the data set.
        number: Position within the data set.
        key: File key: the base name, made unique within the data set.
        entries: Number of entries.
        path: Where it is; None for simulated files, whose place follows from their task.
        identity: What identifies it; None for simulated files, which their task identifies.
    """

    dataset: str
    number: int
    key: str
    entries: int
    path: str | None
    identity: FileRecord | None


@dataclass(frozen=True)
class SkippedFile:
    """A bad file that `data.on_bad_file: skip` leaves out, so that the graph is that of an analysis without it.

    Attributes:
        dataset: Name of the data set.
        key: File key.
        reason: What is wrong with it, as what follows its name in a sentence.
    """

    dataset: str
    key: str
    reason: str


@dataclass(frozen=True)
class Place:
    """Where the events of a file are.

    Attributes:
        path: File or URL.
        tree: Name of the tree.
        generated: Where the file keeps its sum of generated weights.
    """

    path: str
    tree: str
    generated: GeneratedSum | None = None


@dataclass(frozen=True)
class EntryRange:
    """A chunk: a bounded range of entries of one file."""

    file: InputFile
    start: int
    stop: int


class Plan:
    """An analysis as one run sees it: configuration, input files and chunks stay as they were when it began.

    Attributes:
        analysis: Its folder.
        config: Its configuration.
        branches: Branches of the graph that were built (`workflow.base.branch_of`).
    """

    def __init__(self, analysis: Analysis) -> None:
        self.analysis = analysis
        self.config = analysis.config
        self.branches: dict[Any, Any] = {}
        analysis.check_functions(defined_names(analysis.physics_path))

    @cached_property
    def files(self) -> tuple[InputFile, ...]:
        """All input files that are read, data set by data set."""
        return self._found[0]

    @cached_property
    def skipped(self) -> tuple[SkippedFile, ...]:
        """Bad files that are left out, data set by data set."""
        return self._found[1]

    @cached_property
    def _found(self) -> tuple[tuple[InputFile, ...], tuple[SkippedFile, ...]]:
        found: list[InputFile] = []
        skipped: list[SkippedFile] = []
        folder = None
        if any(dataset.files for dataset in self.config.data.datasets.values()):
            folder = data_folder(self.config)
        paths = {
            name: _expand(name, dataset, folder) for name, dataset in self.config.data.datasets.items() if dataset.files
        }
        places = {name: [self._place(name, path) for path in expanded] for name, expanded in paths.items()}
        known = _inspect(
            [place for expanded in places.values() for place in expanded],
            skip=self.config.data.on_bad_file == "skip",
        )
        for name, dataset in self.config.data.datasets.items():
            if dataset.simulate is not None:
                per_part = self.events_per_part(name)
                found += [
                    InputFile(name, part, f"{name}_{part}.root", per_part, None, None)
                    for part in range(dataset.simulate.parts)
                ]
            else:
                keys: set[str] = set()
                bad = [place for place in places[name] if isinstance(known[place], str)]
                if bad:
                    self._check_skipping(name, bad[0], str(known[bad[0]]), left=len(places[name]) - len(bad))
                for number, place in enumerate(places[name]):
                    path, identity = place.path, known[place]
                    base = path.rsplit("/", 1)[-1]
                    key, copy = base, 1
                    while key in keys:
                        copy += 1
                        key = f"{Path(base).stem}~{copy}{Path(base).suffix}"
                    keys.add(key)
                    if copy > 1 and not self.config.identity.columns:
                        raise UserError(
                            f"Data set {name!r} has two files called {base}. Without identity.columns an event is "
                            "known by its file's base name and entry: rename one of them."
                        )
                    if isinstance(identity, str):
                        skipped.append(SkippedFile(name, key, identity))
                        _tell(
                            f"skipped ({len(bad)} of {len(places[name])} files of data set {name}): {path} {identity}"
                        )
                    else:
                        found.append(InputFile(name, number, key, identity.entries, path, identity))
        return tuple(found), tuple(skipped)

    def _place(self, dataset: str, path: str) -> Place:
        generated = self.config.generated_of(dataset)
        return Place(path, self.config.tree_of(dataset), generated if isinstance(generated, GeneratedSum) else None)

    def _check_skipping(self, dataset: str, first: Place, reason: str, left: int) -> None:
        """Refuse to skip what a data set can't do without.

        Raises:
            UserError: No file is left, or the sum of generated weights is declared for all files together.
        """
        said = f"Data set {dataset!r}: {first.path} {reason}."
        if not left:
            raise UserError(f"{said} None of its files is good, so that there is nothing to go on with.")
        if isinstance(self.config.generated_of(dataset), (int, float)):
            raise UserError(
                f"{said} It can't be skipped: key data.datasets.{dataset}.generated is a number, which counts this "
                "file's events too. Copy the file again, or take it out of `files` and correct the number."
            )

    @cached_property
    def simulated(self) -> tuple[InputFile, ...]:
        """The files that a task makes."""
        return tuple(file for file in self.files if file.path is None)

    @cached_property
    def chunks(self) -> tuple[EntryRange, ...]:
        """All files cut into ranges of at most `data.chunk` entries; files without entries have none."""
        size = self.config.data.chunk
        return tuple(
            EntryRange(file, start, min(start + size, file.entries))
            for file in self.files
            for start in range(0, file.entries, size)
        )

    def files_of(self, datasets: Iterable[str]) -> list[int]:
        """Branch numbers of the files of some data sets."""
        wanted = set(datasets)
        return [i for i, file in enumerate(self.files) if file.dataset in wanted]

    def chunks_of(self, datasets: Iterable[str]) -> list[int]:
        """Branch numbers of the chunks of some data sets."""
        wanted = set(datasets)
        return [i for i, chunk in enumerate(self.chunks) if chunk.file.dataset in wanted]

    def chunks_of_file(self, file: InputFile) -> list[int]:
        """Branch numbers of the chunks of one file."""
        return list(self._chunks_by_file.get((file.dataset, file.number), ()))

    def file_number(self, file: InputFile) -> int:
        """Branch number of a file."""
        return self._file_numbers[file.dataset, file.number]

    def simulated_number(self, file: InputFile) -> int:
        """Branch number of a simulated file among the simulated ones."""
        return self._simulated_numbers[file.dataset, file.number]

    # Looked up for every branch of a graph, so that searching would take the square of their number.

    @cached_property
    def _file_numbers(self) -> dict[tuple[str, int], int]:
        return {(file.dataset, file.number): i for i, file in enumerate(self.files)}

    @cached_property
    def _simulated_numbers(self) -> dict[tuple[str, int], int]:
        return {(file.dataset, file.number): i for i, file in enumerate(self.simulated)}

    @cached_property
    def _chunks_by_file(self) -> dict[tuple[str, int], list[int]]:
        found: dict[tuple[str, int], list[int]] = {}
        for i, chunk in enumerate(self.chunks):
            found.setdefault((chunk.file.dataset, chunk.file.number), []).append(i)
        return found

    def events_per_part(self, dataset: str) -> int:
        """Events in each part of a simulated data set."""
        simulate = self.config.data.datasets[dataset].simulate
        if simulate is None:
            raise ValueError(f"data set {dataset!r} is not simulated")
        return max(1, round(simulate.events * self.config.data.simulation.scale / simulate.parts))

    @cache  # noqa: B019 -- one plan lives as long as its process
    def function_code(self, name: str) -> str:
        """Hash of a user's function, as it was when first asked."""
        return user_function(self.analysis.physics_path, name)

    @cache  # noqa: B019 -- as above
    def label_code(self, name: str) -> str:
        """Hash of what plots show of a user's function."""
        return user_label(self.analysis.physics_path, name)


@cache
def open_plan(analysis: str, overrides: tuple[str, ...]) -> Plan:
    """Read an analysis once per process.

    Raises:
        UserError: The configuration or an input file has a mistake, or the name belongs to another folder.
    """
    plan = Plan(load_analysis(analysis, overrides))
    _claim_name(plan.config.name, plan.analysis.folder)
    return plan


def _claim_name(name: str, folder: Path) -> None:
    """Names are addresses of results: two folders with one name are an error."""
    if is_copy(folder):  # its original has claimed the name
        return
    register = store_folder() / "names" / f"{name}.json"
    mine = f"examples/{folder.name}" if folder.parent == EXAMPLES else str(folder)
    if register.exists():
        owner = json.loads(register.read_text())["folder"]
        other = EXAMPLES / Path(owner).name if owner.startswith("examples/") else Path(owner)
        if owner != mine and (other / "analysis.yaml").exists():
            raise UserError(
                f"{folder / 'analysis.yaml'}: the name {name!r} belongs to the analysis in {other}. Results are found "
                "by their name: give this analysis another `name`."
            )
        if owner == mine:
            return
    try:
        atomic_write(register, json.dumps({"folder": mine}))
    except OSError as error:
        raise UserError(
            f"The store {store_folder()} can't be written: {error.strerror}. Set EVENTFOLD_STORE to a folder that can."
        ) from error


def _expand(name: str, dataset: DataSet, folder: Path | None) -> list[str]:
    """Paths of a data set's files, globs expanded and sorted."""
    paths: list[str] = []
    for pattern in dataset.files or ():
        text = os.path.expanduser(os.path.expandvars(pattern))
        if "://" in text:
            paths.append(text)
            continue
        full = text if os.path.isabs(text) or folder is None else str(folder / text)
        matches = sorted(glob.glob(full)) if glob.has_magic(full) else [full]
        if not matches:
            raise UserError(f"Data set {name!r}: no file matches {full}. Correct its `files` in analysis.yaml.")
        paths += [os.path.abspath(match) for match in matches]
    twice = sorted({p for p in paths if paths.count(p) > 1})
    if twice:
        raise UserError(f"Data set {name!r} lists {twice[0]} more than once. Take one of them out of its `files`.")
    return paths


def _inspect(places: Sequence[Place], *, skip: bool) -> dict[Place, FileRecord | str]:
    """Identify files, each opened once and remembered by path, size and time of modification.

    Args:
        places: The files.
        skip: Read each file in full too, once; where it is bad, what is wrong with it stands in place of its identity.

    Raises:
        UserError: A file is missing or can't be reached, or it is bad and not to be skipped.
    """
    memory = store_folder() / "inventory.json"
    known = json.loads(memory.read_text()) if memory.exists() else {}
    result: dict[Place, FileRecord | str] = {}
    unknown: list[Place] = []
    for place in places:
        remembered = _remembered(known.get(_key(place)), place, skip=skip)
        if remembered is None:
            unknown.append(place)
        else:
            result[place] = remembered
    if unknown:
        before = {_key(place): known.get(_key(place), {}) for place in unknown}
        found: dict[str, dict[str, Any]] = {}
        try:
            with ThreadPoolExecutor(max_workers=8) as pool:
                for place, entry in zip(unknown, pool.map(partial(_look, skip=skip), unknown), strict=True):
                    faults = _faults_kept(before[_key(place)], entry) | found.get(_key(place), {}).get("faults", {})
                    found[_key(place)] = entry | {"faults": faults | entry["faults"]}
                unread = [p for p in dict.fromkeys(unknown) if skip and _sum_key(p) not in found[_key(p)]["faults"]]
                if unread:
                    _tell(f"reading {len(unread)} of {len(places)} input files in full, since data.on_bad_file is skip")
                for place, fault in zip(unread, pool.map(_read_in_full, unread), strict=True):
                    found[_key(place)]["faults"][_sum_key(place)] = fault
        finally:
            # What was read in full is not read again, even if another file could not be reached.
            # The memory is read anew: another run may have added its own files meanwhile.
            known = json.loads(memory.read_text()) if memory.exists() else {}
            atomic_write(memory, json.dumps(known | found))
        for place in unknown:
            entry = found[_key(place)]
            fault = entry["faults"].get(_sum_key(place)) if skip else None
            result[place] = fault or FileRecord(**entry["identity"])
    return result


def _remembered(entry: Mapping[str, Any] | None, place: Place, *, skip: bool) -> FileRecord | str | None:
    """What is known of a file that has not changed; None if it has to be looked at."""
    stamp = _stamp(place.path)
    if entry is None or stamp is None or entry["stamp"][:2] != stamp[:2]:
        return None
    if skip:
        if _sum_key(place) not in entry.get("faults", {}):
            return None
        fault = entry["faults"][_sum_key(place)]
        if fault is not None:
            # A good copy may have size and time of its original, which the bad one had too.
            return str(fault) if entry["stamp"] == stamp else None
    return FileRecord(**entry["identity"]) if entry["identity"] else None


def _look(place: Place, *, skip: bool) -> dict[str, Any]:
    """Identify a file: an entry of the memory, with what is wrong with the file if that shows at once and is no error.

    Raises:
        UserError: The file is missing or can't be reached, or it is bad and not to be skipped.
    """
    from analysis.events import inspect_file

    stamp = _stamp(place.path)
    try:
        identity = asdict(inspect_file(place.path, place.tree))
    except UserError as error:
        if not (skip and error.damage):
            raise
        return {"stamp": stamp, "identity": None, "faults": {_sum_key(place): error.damage}}
    return {"stamp": stamp, "identity": identity, "faults": {}}


def _faults_kept(before: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """What is still known of a file that was looked at again, by where its sum of generated weights stands."""
    if (
        entry["identity"] is None
        or before.get("stamp", "") != entry["stamp"]
        or before["identity"] != entry["identity"]
    ):
        return {}
    # Of a file on a server there is no time: what was whole and is the same by UUID and size is whole, but what was bad
    # may have been mended.
    return {key: fault for key, fault in before.get("faults", {}).items() if entry["stamp"] or fault is None}


def _read_in_full(place: Place) -> str | None:
    """What is wrong with a file, if anything.

    Raises:
        UserError: It can't be reached.
    """
    from analysis.damage import check_file

    try:
        check_file(place.path, place.tree, place.generated)
    except UserError as error:
        if not error.damage:
            raise
        return error.damage
    return None


def _key(place: Place) -> str:
    """By what a file is remembered."""
    return f"{place.path}:{place.tree}"


def _sum_key(place: Place) -> str:
    """By what it is remembered whether a file is bad: one may lack its sum of generated weights alone."""
    return json.dumps(canonical(place.generated))


def _tell(text: str) -> None:
    """Say something of the input files once: workers find the same."""
    if multiprocessing.parent_process() is None:
        say(f"{text}\n")


def forget_files() -> None:
    """Forget what was remembered of files that are not there any more."""
    memory = store_folder() / "inventory.json"
    if memory.exists():
        known = read_json(memory)
        there = {key: entry for key, entry in known.items() if os.path.exists(key.rpartition(":")[0])}
        if there != known:
            atomic_write(memory, json.dumps(there))


def _stamp(path: str) -> list[int] | None:
    """Size, time of modification and time of the last change of a local file; remote files are asked anew every run."""
    if "://" in path or not os.path.exists(path):
        return None
    stat = os.stat(path)
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
