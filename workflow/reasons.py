"""Why a step would run: what is different from the nearest earlier run of the same subject."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import luigi

from workflow.lineage import is_workflow, members
from workflow.provenance import read_record

MISSING = object()
FOLLOWS = "what it stands on is made anew"
COMPARED = frozenset({"title", "subject", "started", "parts"})
"""What a record has to say to be compared with; those of earlier versions do too."""
NAMED = 3
"""How many branches a line names before it counts the rest."""


def source_file(store: Path, code: str) -> Path:
    """Where the normalised source behind a hash is kept, for differences to be shown later."""
    return store / "code" / f"{code}.py"


def earlier_runs(folder: Path, title: str, subject: str) -> list[tuple[Path, dict[str, Any]]]:
    """Provenance of all earlier runs of one subject of a step, oldest first, with the paths where it stands.

    Args:
        folder: `store/<Step>/<label>`.
        title: The step, as lines of progress call it.
        subject: What was worked on: a file, a range of its entries, a fold; empty where a label has one subject.
    """
    return _records(folder).get((title, subject), [])


@cache
def _records(folder: Path) -> dict[tuple[str, str], list[tuple[Path, dict[str, Any]]]]:
    """All provenance below a label, by step and subject; read once per run."""
    read = ((path, read_record(path, COMPARED)) for path in folder.glob("*/provenance*.json"))
    records = sorted(
        ((path, record) for path, record in read if record is not None), key=lambda pair: str(pair[1]["started"])
    )
    found: dict[tuple[str, str], list[tuple[Path, dict[str, Any]]]] = {}
    for path, record in records:
        found.setdefault((record["title"], record["subject"]), []).append((path, record))
    return found


def explain(parts: Mapping[str, Any], earlier: Sequence[dict[str, Any]], store: Path) -> list[str]:
    """Say what differs between a step's identity and the nearest earlier one.

    Args:
        parts: What the step's identity is made of now.
        earlier: Provenance of earlier runs of the same subject, oldest first.
        store: The store, for the sources behind hashes.

    Returns:
        One line per difference; empty if only what the step stands on differs.
    """
    if not earlier:
        return ["never ran"]
    nearest = min(reversed(earlier), key=lambda record: len(list(differences(record["parts"], parts, store))))
    return list(differences(nearest["parts"], parts, store))


def why(task: Any) -> Iterator[str]:
    """One line for each step that would run, what it stands on first; branches with one reason share a line.

    Args:
        task: The step that was asked for.
    """
    yield from gather(
        (step.title, f"{step.label} {step.subject}".strip(), "; ".join(step.reasons()) or FOLLOWS)
        for step in _incomplete(task, set())
    )


def gather(items: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    """Lines of what is said of steps, given as title, place and text; places with one text share a line."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for title, place, reason in items:
        grouped.setdefault((title, reason), []).append(place)
    for (title, reason), places in grouped.items():
        more = f" and {len(places) - NAMED} more" if len(places) > NAMED else ""
        yield f"{title} ({'; '.join(places[:NAMED])}{more}): {reason}"


def _incomplete(task: Any, seen: set[str]) -> Iterator[Any]:
    """Steps and branches that are not complete, what they stand on first, each once."""
    if task.task_id in seen or task.complete():
        return
    seen.add(task.task_id)
    for required in luigi.task.flatten(task.requires()):
        yield from _incomplete(required, seen)
    if is_workflow(task):
        for branch in members(task):
            yield from _incomplete(branch, seen)
    else:
        yield task


def differences(old: Mapping[str, Any], new: Mapping[str, Any], store: Path) -> Iterator[str]:
    """Say what differs between two identities, apart from what they require."""
    for key, before, after in _changed(old["settings"], new["settings"], ""):
        yield f"{key} {_step(before, after)}"
    for name, before, after in _changed(old["functions"], new["functions"], ""):
        if before is MISSING or after is MISSING:
            yield f"function {name} is {'new' if before is MISSING else 'gone'}"
        else:
            yield f"function {name} changed{_diff(store, str(before), str(after))}"
    if old["code"] != new["code"]:
        yield f"the code of the step changed{_diff(store, old['code'], new['code'])}"
    for name, before, after in _changed(old["libraries"], new["libraries"], ""):
        yield f"{name} {_short(before)} → {_short(after)}"
    if old["format"] != new["format"]:
        yield f"format of the store {old['format']} → {new['format']}"
    for name, before, after in _changed(old["labels"], new["labels"], ""):
        if before is not MISSING and after is not MISSING:
            yield f"label of {name} changed"
    if old["outside"] != new["outside"]:
        yield "its input was rewritten" if "uuid" in (new["outside"] or {}) else "what it reads besides changed"


def _changed(old: Any, new: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    """Leaves of two JSON trees that differ, by their dotted keys."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in [*old, *(n for n in new if n not in old)]:
            yield from _changed(old.get(name, MISSING), new.get(name, MISSING), f"{key}.{name}" if key else name)
    elif old is MISSING or new is MISSING or old != new:
        yield key, old, new


def _step(before: Any, after: Any) -> str:
    """From one value to another; of lists, what came and what went."""
    if isinstance(before, list) and isinstance(after, list) and before and after:
        came, went = [v for v in after if v not in before], [v for v in before if v not in after]
        if came or went:
            return " ".join([*(f"+{_short(v)}" for v in came), *(f"−{_short(v)}" for v in went)])
    return f"{_short(before)} → {_short(after)}"


def _short(value: Any) -> str:
    if value is MISSING:
        return "(nothing)"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _diff(store: Path, old: str, new: str) -> str:
    """The difference of two sources, if both are still known and it is short enough to read."""
    before, after = source_file(store, old), source_file(store, new)
    if not (before.exists() and after.exists()):
        return ""
    lines = list(
        difflib.unified_diff(before.read_text().splitlines(), after.read_text().splitlines(), n=0, lineterm="")
    )
    shown = [line for line in lines[2:] if not line.startswith("@@")]
    return ":" + "".join(f"\n      {line}" for line in shown) if 0 < len(shown) <= 12 else ""
