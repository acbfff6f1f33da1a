"""Pruning: what in the store no current analysis reaches, and what may be released.

Reached is what the analyses of the store, as they are configured now, would look at, and what the published results
(`results/<name>`, `results/<name>@<fingerprint>`) stand on, whatever their analysis has become.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.config import EXAMPLES
from analysis.errors import UserError
from workflow import detached
from workflow.execution import shipping
from workflow.lineage import walk
from workflow.plan import forget_files
from workflow.provenance import read_record, user, utc
from workflow.store import LEFT_OVER, STAGE, atomic_write, read_json, results_folder, store_folder

HOUSEKEEPING = ("adopted", "clusters", "code", "jobs", "names", "published", "runs")
"""Folders of the store that hold no outputs."""
BESIDE = {
    **dict.fromkeys(("TrainTrials", "SearchHyperparameters", "TrainCurve"), "pool"),
    "TuneHyperparameters": "search",
    **dict.fromkeys(("LearningCurve", "RankFeatures", "PruneFeatures", "PruneNetworks"), "pool"),
}
"""Steps beside the main job, and the name of the requirement by which they stand on a pool of events."""
FINGERPRINT = re.compile("[0-9a-f]{16}")


@dataclass(frozen=True)
class Output:
    """What one run of one branch or step has left in the store.

    Attributes:
        step: Task family.
        label: Data set or analysis.
        kind: What outputs of other identities have in common with it: step, label and subject.
        folder: Where it is.
        record: Its provenance; None for what a killed run has left.
        files: What there is to delete: its files, apart from those that are reached, and its provenance.
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
        files: Outputs that are reached: columns may be there whose combination has no provenance of its own.
        tasks: The main task of each analysis.
    """

    sources: list[str] = field(default_factory=list)
    gone: dict[str, Path] = field(default_factory=dict)
    records: set[Path] = field(default_factory=set)
    files: set[Path] = field(default_factory=set)
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
        UserError: An analysis or a published result can't be read: what it reaches is not known.
    """
    found = Reach()
    for register in sorted((store_folder() / "names").glob("*.json")):
        owner = _read_register(register, "folder")
        folder = EXAMPLES / Path(owner).name if owner.startswith("examples/") else Path(owner)
        if not (folder / "analysis.yaml").exists():
            found.gone[register.stem] = folder
            continue
        task = report(analysis=folder.name if folder.parent == EXAMPLES else str(folder))
        try:
            for step in walk(task):
                found.records.add(step.record)
                found.files |= _files(step)
        except UserError as error:
            raise UserError(
                f"What the analysis {register.stem!r} in {folder} reaches is not known, so that nothing can be pruned: "
                f"{error} If nobody needs it any more, remove {register}."
            ) from error
        found.tasks[register.stem] = task
        found.sources.append(f"{register.stem} ({folder})")
    for link in published():
        try:
            found.records |= _stood_on(link.resolve())
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{link / 'run.json'} can't be read: what these results stand on is not known, so that nothing can be "
                f"pruned. Make them again, or remove {link} if nobody needs them."
            ) from error
        found.sources.append(str(link))
    found.records |= _beside({record.parent.name for record in found.records})
    for record in found.records:
        found.files |= {record.parent / name.rstrip("/") for name in (read_record(record) or {"files": ()})["files"]}
    return found


def _beside(reached: set[str]) -> set[Path]:
    """Records of the steps beside the main job, and of what they train, whose pool of events is reached.

    The main job does not stand on them, but they are as long in the making, and of use as long as their pool is.

    Args:
        reached: Identities of what is reached.
    """
    found: set[Path] = set()
    for step, below in BESIDE.items():
        for path in sorted((store_folder() / step).glob("*/*/provenance*.json")):
            record = read_record(path)
            if record is not None and not reached.isdisjoint(record["parts"]["requires"].get(below, ())):
                found.add(path)
                reached = reached | {path.parent.name}
    return found


def published() -> list[Path]:
    """Links to results in the store, in all folders where a run has published some: a link may have been renamed."""
    links = {Path(_read_register(path, "link")) for path in (store_folder() / "published").glob("*.json")}
    found = [
        link
        for folder in sorted({results_folder(), *(link.parent for link in links)})
        if folder.is_dir()
        for link in sorted(folder.iterdir())
        if link.is_symlink() and link.is_dir() and link.resolve().is_relative_to(store_folder() / "Report")
    ]
    return [link for link in found if (link / "run.json").exists()]


def unknown() -> list[Path]:
    """Provenance that can't be read or is of an earlier version: what is beside it is left alone."""
    return sorted(path for folder in _folders() for path in _records(folder) if read_record(path) is None)


def unreached(reached: Reach, keep_last: int) -> list[Output]:
    """What is not reached, apart from the outputs of each step and subject that were used last.

    Args:
        reached: What is reached.
        keep_last: How many outputs of each step and subject to leave beside those that are reached.
    """
    used: dict[Path, float] = {}
    for run in store_folder().glob("Report/*/*/run.json"):
        with suppress(OSError, ValueError, KeyError, TypeError):  # then the provenance says when it was used
            for record in _stood_on(run.parent):
                used[record] = max(used.get(record, 0.0), run.stat().st_mtime)
    found = [output for folder in _folders() for output in _outputs(folder, reached, used)]
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
    complete = {name: task for name, task in reached.tasks.items() if name not in incomplete}
    needed = {path for name in incomplete for step in walk(reached.tasks[name]) for path in _files(step)}
    # A combination of columns without provenance of its own has no place to be marked at.
    bare = [step for task in complete.values() for step in walk(task) if read_record(step.record) is None]
    needed |= {path for step in bare for path in _files(step)}
    found = {
        step.record: step
        for task in complete.values()
        for step in walk(task)
        if step.task_family in steps and step.present() and needed.isdisjoint(_files(step))
    }
    return list(found.values()), incomplete


def release(task: Any) -> None:
    """Delete the outputs of a branch or step and say so in all provenance that names one of them."""
    files = _files(task)
    for path in _records(task.folder):
        record = read_record(path)
        if record is not None and files & {path.parent / name.rstrip("/") for name in record["files"]}:
            record["released"] = {"who": user(), "when": utc(time.time())}
            atomic_write(path, json.dumps(record, indent=1))
    for path in files:
        _remove(path)


def leftovers() -> list[Path]:
    """Logs of runs and jobs, copies of code and environments of jobs, which nothing needs when no run is at work.

    The environment that the next run's jobs would have stays.
    """
    clusters = store_folder() / "clusters"
    others = [path for path in clusters.glob("*") if path.name not in ("code", "environments")]
    return [*(store_folder() / "jobs").glob("*"), *others, *shipping.left(), *detached.left()]


def delete(outputs: Iterable[Output]) -> None:
    """Delete outputs, each whole or not at all, what is kept beside them for their sake, and what runs have left."""
    chosen = list(outputs)
    for folder, files in _to_delete(chosen).items():
        # Provenance last: where this ends halfway, what is left is known for what it is.
        for path in sorted(files, key=lambda path: path.name.startswith("provenance")):
            _remove(path)
        for place in (folder, folder.parent, folder.parent.parent):
            if any(place.iterdir()):
                break
            place.rmdir()
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
    """Records of all that a published report stands on, and its own; an earlier version named none."""
    steps = read_json(report / "run.json")["steps"]
    return {report / "provenance.json", *(store_folder() / step["record"] for step in steps if "record" in step)}


def _folders() -> list[Path]:
    """Folders of outputs; others in the store are somebody's own."""
    found = (path for path in store_folder().glob("*/*/*") if FINGERPRINT.fullmatch(path.name) and path.is_dir())
    return sorted(path for path in found if path.parts[-3] not in HOUSEKEEPING)


def _records(folder: Path) -> list[Path]:
    return sorted(folder.glob("provenance*.json"))


def _files(task: Any) -> set[Path]:
    """Paths of the outputs of a branch or step."""
    return {task.path(name.rstrip("/")) for name in task.files()}


def _outputs(folder: Path, reached: Reach, used: dict[Path, float]) -> Iterator[Output]:
    """What in one folder of the store is not reached, record by record."""
    step, label = folder.parts[-3:-1]
    paths = _records(folder)
    records = {path: record for path in paths if (record := read_record(path)) is not None}
    listed = {path: {folder / name.rstrip("/") for name in record["files"]} for path, record in records.items()}
    kept = {file for path, files in listed.items() if path in reached.records for file in files}
    for path, record in records.items():
        if len(records) < len(paths) or path in reached.records:
            continue
        gone = {file for file in listed[path] - reached.files if os.path.lexists(file)}
        # Columns that are reached need this record, unless one that is reached names them too.
        if listed[path] & reached.files <= kept:
            gone.add(path)
        if gone:
            kind = (record["title"], label, record["subject"])
            yield Output(step, label, kind, folder, path, tuple(gone), used.get(path, path.stat().st_mtime))
    now = time.time()
    left = [path for path in folder.iterdir() if path.name.startswith(STAGE) or not paths]
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
        files = {path for output in members for path in output.files}
        staying = [path for path in _records(folder) if path not in files]
        if not staying and any(output.record is not None for output in members):
            files = set(folder.iterdir())
        # A record of columns of which some are reached stays for these alone.
        partly = {output.record for output in members if output.record not in output.files}
        others = [path for path in staying if path not in partly]
        kept = {folder / name.rstrip("/") for path in others for name in (read_record(path) or {"files": ()})["files"]}
        found[folder] = {path for path in files - kept if os.path.lexists(path)}
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
    """Remove what is kept for outputs, files and links that are gone: sources and differences, memories, registers."""
    store = store_folder()
    named: set[str] = set()
    for path in store.glob("*/*/*/provenance*.json"):
        record = read_record(path, {"parts", "code"})
        if record is not None:
            named |= {record["parts"]["code"], *record["parts"]["functions"].values(), str(record["code"].get("diff"))}
    for path in (*(store / "code").glob("*.py"), *(store / "code").glob("*.diff")):
        if path.stem not in named:
            path.unlink(missing_ok=True)
    for path in (store / "code").glob("*.json"):  # modules as they were parsed: whoever misses one parses again
        if time.time() - path.stat().st_mtime > LEFT_OVER:
            path.unlink(missing_ok=True)
    forget_files()
    for path in leftovers():
        with suppress(OSError):  # of another user
            _remove(path)
    beside = {link.parent for link in published()}
    for path in (store / "published").glob("*.json"):
        link = Path(_read_register(path, "link"))
        if not os.path.lexists(link) and link.parent not in beside:
            path.unlink(missing_ok=True)


def _read_register(path: Path, key: str) -> str:
    """What a file of `names` or `published` says.

    Raises:
        UserError: It can't be read.
    """
    try:
        return str(read_json(path)[key])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} can't be read, so that nothing can be pruned. Remove it if nobody needs it."
        ) from error
