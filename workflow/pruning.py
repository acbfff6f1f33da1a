"""Pruning: what in the store no current analysis reaches, and what may be released.

Reached is what the analyses of the store, as they are configured now, would look at, and what the published results
(`results/<name>`, `results/<name>@<fingerprint>`) stand on, whatever their analysis has become.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.config import EXAMPLES
from analysis.errors import UserError
from workflow.lineage import walk
from workflow.provenance import utc
from workflow.store import LEFT_OVER, STAGE, atomic_write, read_json, store_folder

HOUSEKEEPING = ("adopted", "code", "names", "published", "runs")
"""Folders of the store that hold no outputs."""


@dataclass(frozen=True)
class Output:
    """What one run of one branch or step has left in the store.

    Attributes:
        step: Task family.
        label: Data set or analysis.
        kind: What outputs of other identities have in common with it: step, label and subject.
        folder: Where it is.
        record: Its provenance; None for what a killed run has left.
        files: Its files, or all that is in the folder if it is the only one there.
        used: When it was last used, in seconds of the system's clock.
    """

    step: str
    label: str
    kind: tuple[str, str, str]
    folder: Path
    record: Path | None
    files: tuple[Path, ...]
    used: float


@dataclass
class Reach:
    """What current analyses reach.

    Attributes:
        sources: Analyses and published results, as a user knows them.
        gone: Analyses whose folder is gone, with it.
        records: Provenance of what is reached, whether it has been made or not.
        tasks: The main task of each analysis.
    """

    sources: list[str] = field(default_factory=list)
    gone: dict[str, Path] = field(default_factory=dict)
    records: set[Path] = field(default_factory=set)
    tasks: dict[str, Any] = field(default_factory=dict)


def note_publication(link: Path) -> None:
    """Remember where results were published, so that they count as reached."""
    name = hashlib.sha256(str(link).encode()).hexdigest()[:16]
    path = store_folder() / "published" / f"{name}.json"
    if not path.exists():
        atomic_write(path, json.dumps({"link": str(link)}))


def reach(report: Any) -> Reach:
    """Find what current analyses and published results reach.

    Args:
        report: The task family of the main job.

    Raises:
        UserError: An analysis can't be read: what it reaches is not known.
    """
    found = Reach()
    for register in sorted((store_folder() / "names").glob("*.json")):
        owner = str(read_json(register)["folder"])
        folder = EXAMPLES / Path(owner).name if owner.startswith("examples/") else Path(owner)
        if not (folder / "analysis.yaml").exists():
            found.gone[register.stem] = folder
            continue
        task = report(analysis=folder.name if folder.parent == EXAMPLES else str(folder))
        try:
            found.records |= {step.record for step in walk(task)}
        except UserError as error:
            raise UserError(
                f"What the analysis {register.stem!r} in {folder} reaches is not known, so that nothing can be pruned: "
                f"{error} If nobody needs it any more, remove {register}."
            ) from error
        found.tasks[register.stem] = task
        found.sources.append(f"{register.stem} ({folder})")
    for register in sorted((store_folder() / "published").glob("*.json")):
        link = Path(read_json(register)["link"])
        target = link.resolve()
        if (target / "run.json").exists() and target.is_relative_to(store_folder()):
            found.records |= _stood_on(target)
            found.sources.append(str(link))
    return found


def unreached(reached: Reach, keep_last: int) -> list[Output]:
    """What is not reached, apart from the outputs of each step and subject that were used last.

    Args:
        reached: What is reached.
        keep_last: How many outputs of each step and subject to leave beside those that are reached.
    """
    used: dict[Path, float] = {}
    for run in store_folder().glob("Report/*/*/run.json"):
        for record in _stood_on(run.parent):
            used[record] = max(used.get(record, 0.0), run.stat().st_mtime)
    found = []
    for folder in sorted(path for path in store_folder().glob("*/*/*") if path.parts[-3] not in HOUSEKEEPING):
        found += [o for o in _outputs(folder, used) if o.record is None or o.record not in reached.records]
    found.sort(key=lambda output: -output.used)
    seen: dict[tuple[str, str, str], int] = {}
    chosen = []
    for output in found:
        seen[output.kind] = seen.get(output.kind, 0) + 1
        if output.record is None or seen[output.kind] > keep_last:
            chosen.append(output)
    return sorted(chosen, key=lambda output: (output.step, output.label))


def releasable(reached: Reach, steps: Sequence[str]) -> tuple[list[Any], list[str]]:
    """Intermediate outputs of some steps which nothing needs, as all that stands on them is complete.

    Args:
        reached: What is reached.
        steps: Task families.

    Returns:
        The branches and steps, and the names of analyses that are not complete, whose outputs are left alone.
    """
    incomplete = [name for name, task in reached.tasks.items() if not task.complete()]
    needed = {step.record for name in incomplete for step in walk(reached.tasks[name])}
    found = {
        step.record: step
        for name, task in reached.tasks.items()
        if name not in incomplete
        for step in walk(task)
        if step.task_family in steps and step.record not in needed and step.present()
    }
    return list(found.values()), incomplete


def release(task: Any) -> None:
    """Delete the outputs of a branch or step and say so in their record."""
    record = read_json(task.record)
    record["released"] = {"who": getpass.getuser(), "when": utc(time.time())}
    atomic_write(task.record, json.dumps(record, indent=1))
    for name in task.files():
        _remove(task.path(name.rstrip("/")))


def delete(outputs: Iterable[Output]) -> None:
    """Delete outputs, each whole or not at all, and what is kept beside them for their sake."""
    chosen = list(outputs)
    for folder, files in _to_delete(chosen).items():
        for path in files:
            _remove(path)
        if not any(folder.iterdir()):
            folder.rmdir()
    _tidy()


def size(outputs: Iterable[Output]) -> int:
    """Bytes that deleting outputs would free."""
    return sum(size_of(path) for files in _to_delete(list(outputs)).values() for path in files)


def size_of(path: Path) -> int:
    """Bytes of a file or of all in a folder; links are not followed."""
    if path.is_dir() and not path.is_symlink():
        return sum(inner.lstat().st_size for inner in path.rglob("*") if inner.is_symlink() or inner.is_file())
    return path.lstat().st_size


def _stood_on(report: Path) -> set[Path]:
    """Records of all that a published report stands on, and its own."""
    steps = read_json(report / "run.json")["steps"]
    return {report / "provenance.json", *(store_folder() / step["record"] for step in steps)}


def _outputs(folder: Path, used: dict[Path, float]) -> Iterator[Output]:
    """What is in one folder of the store, record by record."""
    step, label = folder.parts[-3:-1]
    records = sorted(folder.glob("provenance*.json"))
    for path in records:
        record = read_json(path)
        files = tuple(folder / name.rstrip("/") for name in record["files"])
        kind = (record["title"], label, record["subject"])
        yield Output(step, label, kind, folder, path, files, used.get(path, path.stat().st_mtime))
    now = time.time()
    left = [path for path in folder.iterdir() if path.name.startswith(STAGE) or not records]
    old = tuple(path for path in left if now - path.lstat().st_mtime > LEFT_OVER)
    if old:
        yield Output(step, label, (step, label, ""), folder, None, old, max(path.lstat().st_mtime for path in old))


def _to_delete(outputs: list[Output]) -> dict[Path, set[Path]]:
    """Files to delete, by folder: all of it, unless another record stays there; then what that one does not list."""
    chosen: dict[Path, list[Output]] = {}
    for output in outputs:
        chosen.setdefault(output.folder, []).append(output)
    found = {}
    for folder, members in chosen.items():
        gone = {output.record for output in members}
        staying = [path for path in folder.glob("provenance*.json") if path not in gone]
        if staying or None in gone:
            kept = {folder / name.rstrip("/") for path in staying for name in read_json(path)["files"]}
            files = {path for output in members for path in output.files} - kept
            files |= {path for path in gone if path is not None}
        else:
            files = set(folder.iterdir())
        found[folder] = {path for path in files if os.path.lexists(path)}
    return found


def _remove(path: Path) -> None:
    """Remove a file, or a folder by way of another name, so that no half of it is taken for the whole."""
    if path.is_dir() and not path.is_symlink():
        aside = path.with_name(f"{STAGE}{uuid.uuid4().hex[:12]}")
        path.rename(aside)
        shutil.rmtree(aside)
    else:
        path.unlink(missing_ok=True)


def _tidy() -> None:
    """Remove sources and differences that no record names any more, and names of folders that are gone."""
    store = store_folder()
    named: set[str] = set()
    for path in store.glob("*/*/*/provenance*.json"):
        record = read_json(path)
        named |= {record["parts"]["code"], *record["parts"]["functions"].values(), str(record["code"]["diff"])}
    for path in (store / "code").glob("*"):
        if path.stem not in named:
            path.unlink(missing_ok=True)
    for path in (store / "published").glob("*.json"):
        if not os.path.lexists(read_json(path)["link"]):
            path.unlink(missing_ok=True)
