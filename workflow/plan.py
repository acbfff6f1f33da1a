"""What a run works on: one analysis with its input files, found in the head process before the graph is built."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from analysis.config import EXAMPLES, Analysis, DataSet, data_folder, load_analysis
from analysis.errors import UserError
from analysis.sources import FileRecord
from workflow.execution.shipping import is_copy
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
        """All input files, data set by data set."""
        found: list[InputFile] = []
        folder = None
        if any(dataset.files for dataset in self.config.data.datasets.values()):
            folder = data_folder(self.config)
        paths = {
            name: _expand(name, dataset, folder) for name, dataset in self.config.data.datasets.items() if dataset.files
        }
        identities = _inspect(
            [(path, self.config.tree_of(name)) for name, expanded in paths.items() for path in expanded]
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
                for number, path in enumerate(paths[name]):
                    identity = identities[path, self.config.tree_of(name)]
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
                    found.append(InputFile(name, number, key, identity.entries, path, identity))
        return tuple(found)

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


def _inspect(places: Sequence[tuple[str, str]]) -> dict[tuple[str, str], FileRecord]:
    """Identify files, each opened once and remembered by path, size and time of modification."""
    memory = store_folder() / "inventory.json"
    known = json.loads(memory.read_text()) if memory.exists() else {}
    result: dict[tuple[str, str], FileRecord] = {}
    unknown: list[tuple[str, str]] = []
    for path, tree in places:
        entry = known.get(f"{path}:{tree}")
        stamp = _stamp(path)
        if entry is not None and stamp is not None and entry["stamp"] == stamp:
            result[path, tree] = FileRecord(**entry["identity"])
        else:
            unknown.append((path, tree))
    if unknown:
        from analysis.events import inspect_file

        found = {}
        with ThreadPoolExecutor(max_workers=8) as pool:
            for place, record in zip(unknown, pool.map(lambda p: inspect_file(*p), unknown), strict=True):
                result[place] = record
                found[f"{place[0]}:{place[1]}"] = {"stamp": _stamp(place[0]), "identity": asdict(record)}
        # Read anew: another run may have added its own files meanwhile.
        known = json.loads(memory.read_text()) if memory.exists() else {}
        atomic_write(memory, json.dumps(known | found))
    return result


def forget_files() -> None:
    """Forget what was remembered of files that are not there any more."""
    memory = store_folder() / "inventory.json"
    if memory.exists():
        known = read_json(memory)
        there = {key: entry for key, entry in known.items() if os.path.exists(key.rpartition(":")[0])}
        if there != known:
            atomic_write(memory, json.dumps(there))


def _stamp(path: str) -> list[int] | None:
    """Size and time of a local file; remote files are asked anew in every run."""
    if "://" in path or not os.path.exists(path):
        return None
    stat = os.stat(path)
    return [stat.st_size, stat.st_mtime_ns]
