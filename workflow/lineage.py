"""What a result stands on: the provenance of every step, as a tree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import luigi

from workflow.costs import Cost
from workflow.provenance import read_record


def walk(task: Any, seen: set[str] | None = None) -> Iterator[Any]:
    """Every step and branch that a task stands on, and the task itself; each once, after all that it stands on.

    Args:
        task: A step, a branch, or a workflow, which stands for its branches.
        seen: Tasks that are left out, by `task_id`; those that are met are added.
    """
    seen = set() if seen is None else seen
    if task.task_id in seen:
        return
    seen.add(task.task_id)
    if is_workflow(task):
        for branch in members(task):
            yield from walk(branch, seen)
        return
    for required in luigi.task.flatten(task.requires()):
        yield from walk(required, seen)
    yield task


def recorded(task: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Every step and branch that a task stands on, itself included, with what its provenance says."""
    for step in walk(task):
        for record in records_of(step):
            yield step, record


def records_of(step: Any) -> list[dict[str, Any]]:
    """Provenance of a step's outputs: its own, or that of runs for other combinations which made them all."""
    own = read_record(step.record)
    if own is not None:
        return [own]
    if not step.present():
        return []
    beside = [read_record(path) for path in sorted(step.folder.glob("provenance*.json"))]
    return [record for record in beside if record and not set(record["files"]).isdisjoint(step.files())]


def tree(task: Any) -> Iterator[str]:
    """Lines of a tree: each step with when, where, at what cost and by what code it was made.

    Branches of a step share a line; a step that has been shown stands as one word from then on.
    """
    seen: set[str] = set()

    def visit(title: str, steps: list[Any], prefix: str, branch: str) -> Iterator[str]:
        first = title not in seen
        seen.add(title)
        yield f"{prefix}{branch}{title}" + (f": {_summary(steps)}" if first else " (above)")
        if not first:
            return
        below: dict[str, list[Any]] = {}
        for step in steps:
            for required in luigi.task.flatten(step.requires()):
                below.setdefault(required.title, []).extend(members(required))
        inner = prefix + {"": "", "├─ ": "│  ", "└─ ": "   "}[branch]
        for number, (name, found) in enumerate(below.items()):
            unique = list({member.task_id: member for member in found}.values())
            yield from visit(name, unique, inner, "└─ " if number == len(below) - 1 else "├─ ")

    yield from visit(task.title, members(task), "", "")


def members(task: Any) -> list[Any]:
    """The branches of a workflow, or a step itself."""
    return list(task.get_branch_tasks().values()) if is_workflow(task) else [task]


def is_workflow(task: Any) -> bool:
    """Whether a task stands for all branches of a workflow."""
    return bool(getattr(task, "is_workflow", lambda: False)())


def _summary(steps: list[Any]) -> str:
    """How the outputs of some branches were made, in one line."""
    found = [of_step for step in steps if (of_step := records_of(step))]
    if not found:
        return "no record"
    records = list({record["record"]: record for of_step in found for record in of_step}.values())
    parts = [f"{len(found)} of {len(steps)} branches"] if len(steps) > 1 else [str(records[0]["fingerprint"])]
    parts.append(max(str(r["started"]) for r in records))
    cost = sum((Cost.of(record) for record in records), Cost())
    parts.append(f"{cost.cpu_seconds:.1f} CPU-s")
    parts.append(f"{cost.peak_memory_mb:.0f} MB")
    parts.append(" ".join(sorted({str(r["host"]) for r in records})))
    commits = {(str(r["code"]["commit"] or "no commit")[:10], bool(r["code"]["dirty"])) for r in records}
    parts.append(" ".join(sorted(commit + (" + changes" if dirty else "") for commit, dirty in commits)))
    notes = {(n["who"], n["when"], n["why"]) for r in records for n in r.get("adopted", ())}
    parts += [f'adopted by {who} at {when}: "{why}"' for who, when, why in sorted(notes)]
    return ", ".join(parts)
