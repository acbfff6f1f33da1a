"""Adopting: outputs of earlier code, declared by somebody to be valid for the code as it is now.

Where code changed in a way that can't change what it makes, such as a renamed variable, its outputs have another
identity all the same. `--adopt "reason"` lists those of which nothing but code differs; with `--yes` it notes for each,
under `store/adopted/<identity>.json`, at which address it stands. What stands on it keeps its own address then.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from analysis.errors import UserError
from workflow.lineage import walk
from workflow.provenance import KEYS, read_record, user, utc
from workflow.reasons import differences, earlier_runs, gather
from workflow.store import atomic_write, read_json, store_folder

CODE = ("code", "functions")
"""The parts of an identity that may differ."""

_found: dict[str, str] = {}
"""Addresses of what `--adopt` has found in this process."""


@dataclass(frozen=True)
class Adoption:
    """An output that differs by nothing but code.

    Attributes:
        title: The step.
        place: Label and subject.
        identity: What its identity would be now.
        address: Under which identity it stands.
        outputs: Where it stands.
        differences: How the code differs, line by line.
    """

    title: str
    place: str
    identity: str
    address: str
    outputs: tuple[Path, ...]
    differences: tuple[str, ...]


def resolve(identity: str) -> str:
    """The address of an identity: itself, unless an earlier output was adopted for it."""
    if identity in _found:
        return _found[identity]
    if identity in _declared(store_folder()):
        return str(_declaration(identity)["address"])
    return identity


def adopted(identity: str) -> dict[str, Any] | None:
    """Who adopted an output for an identity, when and why; None if nobody did."""
    if identity not in _declared(store_folder()):
        return None
    record = _declaration(identity)
    return {key: record[key] for key in ("identity", "who", "when", "why")}


def adopt(task: Any, why: str, *, declare: bool) -> Iterator[str]:
    """List the outputs that differ by nothing but code, and declare them valid if asked.

    Args:
        task: The step that was asked for; all that it stands on is looked at.
        why: The reason.
        declare: Write it down.

    Yields:
        Lines to print.

    Raises:
        UserError: The reason is blank, or the store can't be written.
    """
    if not why.strip():
        raise UserError('--adopt needs a reason, as in --adopt "renamed a variable": it is kept in the provenance.')
    found = list(_candidates(task))
    if not found:
        yield "Nothing to adopt: no earlier output differs from what would be made now by code alone."
        return
    yield from gather((each.title, each.place, "; ".join(each.differences)) for each in found)
    outputs = f"{len(found)} output{'s' if len(found) > 1 else ''}"
    if declare:
        for each in found:
            _declare(each, why)
        yield f'{outputs} adopted for the code as it is now: "{why}"'
    else:
        yield f'{outputs} would differ by nothing but code. Add --yes to declare them valid for it: "{why}"'
    left = sum(not step.complete() for step in walk(task))
    if left:
        yield f"{left} other steps or branches would still run; --why says which."


def _candidates(task: Any) -> Iterator[Adoption]:
    """Missing outputs that an earlier run has made with other code; what a step stands on comes before it.

    An output that is found takes effect in this process at once, so that what stands on it is compared with it.
    """
    for step in walk(task):
        for piece, parts in step.pieces(step.parts).items():
            identity = step.identity_of(parts)
            if resolve(identity) != identity or all(path.exists() for path in step.paths_of(piece, identity)):
                continue
            runs = earlier_runs(step.label_folder, step.title, step.subject)
            known = [record for _, record in runs if record.keys() >= KEYS]
            earlier = [old for record in known if (old := step.pieces(record["parts"]).get(piece))]
            if any(step.identity_of(old) == identity for old in earlier):
                continue  # it was made and removed since
            for old in reversed(earlier):
                address = resolve(step.identity_of(old))
                outputs = tuple(step.paths_of(piece, address))
                if _only_code(old, parts) and all(output.exists() for output in outputs):
                    _found[identity] = address
                    step.keep_sources()
                    lines = tuple(differences(old, parts, store_folder()))
                    yield Adoption(
                        step.title, f"{step.label} {step.subject}".strip(), identity, address, outputs, lines
                    )
                    break


def _only_code(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether two identities differ in code, and in nothing else."""
    return (
        old.keys() == new.keys()
        and old["functions"].keys() == new["functions"].keys()
        and all(old[key] == new[key] for key in new if key not in CODE)
    )


def _declare(adoption: Adoption, why: str) -> None:
    """Write an adoption down: in all provenance of the outputs, and last where it is looked up."""
    note = {
        "identity": adoption.identity,
        "who": f"{user()}@{socket.gethostname()}",
        "when": utc(time.time()),
        "why": why,
    }
    content = {**note, "address": adoption.address, "step": adoption.title, "place": adoption.place}
    names = {output.name for output in adoption.outputs}
    try:
        for path in sorted(adoption.outputs[0].parent.glob("provenance*.json")):
            record = read_record(path)
            if record is not None and names & {name.rstrip("/") for name in record["files"]}:
                record["adopted"] = [*record.get("adopted", []), note]
                atomic_write(path, json.dumps(record, indent=1))
        atomic_write(_file(adoption.identity), json.dumps({**content, "differences": adoption.differences}, indent=1))
    except OSError as error:
        raise UserError(f"{adoption.title} ({adoption.place}) can't be adopted: {error}") from error


def _declaration(identity: str) -> dict[str, Any]:
    """What was written down of an adoption."""
    path = _file(identity)
    try:
        content: dict[str, Any] = read_json(path)
        return {key: content[key] for key in ("identity", "who", "when", "why", "address")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} can't be read: which output was adopted is not known. Remove it to have the output made anew."
        ) from error


def _file(identity: str) -> Path:
    return store_folder() / "adopted" / f"{identity}.json"


@cache
def _declared(store: Path) -> frozenset[str]:
    """Identities for which an output was adopted, as they were when this process first asked."""
    return frozenset(path.stem for path in (store / "adopted").glob("*.json"))
