"""What an undisturbed run has left, and how the store of another one differs from it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import uproot

from tests.toy import Law
from workflow.costs import Cost
from workflow.execution import logs

OUTPUTS = ("[A-Z]*/*/*/*",)
"""Where the store has outputs, <Step>/<label>/<fingerprint>/<name>: files, links and folders."""

BESIDE = ("*.json", "code/*.py", "names/*")
"""What it keeps beside them; not how the tree differed from its commit, which may change meanwhile."""

MEASURED = {"started", "cost", "costs", "code", *(field.name for field in fields(Cost))}
"""Keys of `provenance.json` and `run.json` that differ from run to run: when, at what cost, from which commit."""


class ViolationError(Exception):
    """What no kill may bring about."""


@dataclass(frozen=True)
class Reference:
    """What an undisturbed run has left.

    Attributes:
        store: Its store.
        results: Links in the folder of results, by name, and where they point.
        summaries: `summary.json` as it is found by way of each link.
        steps: Task families in the order in which they ended, and the seconds from the end of the one before.
        seconds: How long the run took.
    """

    store: Path
    results: dict[str, str]
    summaries: dict[str, bytes]
    steps: dict[str, float]
    seconds: float

    @staticmethod
    def of(law: Law, seconds: float) -> Reference:
        """Look at a store in which one run has ended."""
        ended: dict[str, int] = {}
        for name in entries(law.store, OUTPUTS):
            step = name.split("/")[0]
            ended[step] = max(ended.get(step, 0), (law.store / name).lstat().st_mtime_ns)
        order = sorted(ended, key=lambda step: ended[step])
        ends = [ended[step] / 1e9 for step in order]
        begins = [ends[-1] - seconds, *ends[:-1]]
        steps = {step: max(end - begin, 0.0) for step, begin, end in zip(order, begins, ends, strict=True)}
        return Reference(law.store, links(law.results), read_summaries(law.results), steps, seconds)

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """All outputs, relative to the store."""
        return tuple(entries(self.store, OUTPUTS))

    @cached_property
    def events(self) -> dict[str, dict[str, npt.NDArray[Any]]]:
        """The events of each step, as `events` finds them."""
        return events(self.store)

    def left(self, store: Path) -> float:
        """Seconds of this run that another store still has before it, as far as outputs tell."""
        there = set(entries(store, OUTPUTS))
        seconds = 0.0
        for step, took in self.steps.items():
            names = [name for name in self.outputs if name.split("/")[0] == step]
            seconds += took * sum(name not in there for name in names) / len(names)
        return seconds


def check(law: Law, reference: Reference) -> int:
    """Compare all that is in the store, and where results point, with what the undisturbed run has left.

    Returns:
        Number of outputs.

    Raises:
        ViolationError: Something differs, or the undisturbed run has nothing of that name.
    """
    outputs = entries(law.store, OUTPUTS)
    for name in (*outputs, *entries(law.store, BESIDE)):
        if told := difference(law.store / name, reference.store / name):
            raise ViolationError(f"{name} is complete but wrong: {told}")
    for name, target in links(law.results).items():
        if target != reference.results.get(name):
            raise ViolationError(f"results/{name} points at {target} instead of {reference.results.get(name)}")
    if not read_summaries(law.results).items() <= reference.summaries.items():
        raise ViolationError("summary.json in the folder of results is not the one of the undisturbed run")
    return len(outputs)


def check_end(law: Law, reference: Reference) -> None:
    """Compare as `check` does; at the end of a run nothing may be missing.

    Raises:
        ViolationError: Something is missing or differs.
    """
    check(law, reference)
    if missing := set(reference.outputs) - set(entries(law.store, OUTPUTS)):
        raise ViolationError(f"a run has ended without {', '.join(sorted(missing))}")
    if read_summaries(law.results) != reference.summaries:
        raise ViolationError("a run has ended without summary.json in the folder of results")


def check_events(law: Law, reference: Reference) -> dict[str, tuple[int, int]]:
    """Compare the events of each step with those of the undisturbed run: by their identities, wherever they lie.

    Returns:
        For each step, how many events there are, and how many different ones.

    Raises:
        ViolationError: One is missing, is there more often, or has got other values.
    """
    found = events(law.store)
    if found.keys() != reference.events.keys():
        raise ViolationError(f"events of {sorted(found)} instead of {sorted(reference.events)}")
    counts = {}
    for step, columns in found.items():
        expected = reference.events[step]
        ours, theirs = columns["identity"], expected["identity"]
        if not np.array_equal(ours, theirs):
            lost, new = (len(np.setdiff1d(a, b)) for a, b in ((theirs, ours), (ours, theirs)))
            raise ViolationError(
                f"{step} has {len(ours)} events, {len(np.unique(ours))} different ones, instead of {len(theirs)}: "
                f"{lost} are lost, {new} are new"
            )
        for name, column in columns.items():
            if not np.array_equal(column, expected[name], equal_nan=column.dtype.kind == "f"):
                raise ViolationError(f"{step}: {name} of some events is not that of the undisturbed run")
        counts[step] = len(ours), len(np.unique(ours))
    return counts


def events(store: Path) -> dict[str, dict[str, npt.NDArray[Any]]]:
    """What a store holds of each event: columns by name, in the order of the identities.

    Returns:
        For each step that holds events: `identity`, uint64 ``[N]``, and its own columns, ``[N]`` each.
    """
    selected = {path.parent.name: read_columns(path) for path in store.glob("SelectEvents/*/*/events.parquet")}
    features = [
        # Rows of a chunk's features are those of its events, under the same fingerprint.
        {"identity": selected[path.parent.name]["identity"], **read_columns(path)}
        for path in store.glob("ComputeFeatures/*/*/*.parquet")
    ]
    pools = [
        {path.stem: np.load(path) for path in pool.glob("*.npy") if path.stem in ("identity", "weights", "folds")}
        for pool in store.glob("PrepareFolds/*/*/pool")
    ]
    scores = [friend_of(path, selected) for path in store.glob("ScoreEvents/*/*/friend.root")]
    found = {"SelectEvents": list(selected.values()), "PrepareFolds": pools, "ScoreEvents": scores}
    for columns in features:
        (name,) = columns.keys() - {"identity"}
        found.setdefault(f"ComputeFeatures {name}", []).append(columns)
    return {step: by_identity(parts) for step, parts in found.items() if parts}


def read_columns(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The columns of a parquet file; NaN or empty text where there is nothing."""
    table = pq.read_table(path).to_pydict()
    numbers = {name: np.array(column, np.uint64) for name, column in table.items() if name == "identity"}
    others = {name: column for name, column in table.items() if name not in numbers}
    return numbers | {name: filled(column) for name, column in others.items()}


def filled(column: list[Any]) -> npt.NDArray[Any]:
    """A column as an array, with NaN or empty text where there is nothing."""
    absent: Any = "" if any(isinstance(value, str) for value in column) else np.nan
    return np.array([absent if value is None else value for value in column])


def friend_of(path: Path, selected: dict[str, dict[str, npt.NDArray[Any]]]) -> dict[str, npt.NDArray[Any]]:
    """The scores of a file's selected events, and their identities: by the entry, which both sides know."""
    record = json.loads((path.parent / "provenance.json").read_text())
    chunks = [selected[fingerprint] for fingerprint in record["parts"]["requires"]["events"]]
    with uproot.open(path) as file:
        scores = file["scores"].arrays(library="np")
    entries_of = np.concatenate([chunk["entry"] for chunk in chunks]).astype(np.int64)
    if int(scores["selected"].sum()) != len(entries_of):
        raise ViolationError(f"{path} has {scores['selected'].sum()} selected events instead of {len(entries_of)}")
    identity = np.concatenate([chunk["identity"] for chunk in chunks])
    return {"identity": identity, **{name: column[entries_of] for name, column in scores.items()}}


def by_identity(parts: list[dict[str, npt.NDArray[Any]]]) -> dict[str, npt.NDArray[Any]]:
    """Columns of several outputs as one, in the order of the identities."""
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(joined["identity"], kind="stable")
    return {name: column[order] for name, column in joined.items()}


def next_step(store: Path, reference: Reference) -> str:
    """The first step of which an output is missing; empty if none is."""
    missing = set(reference.outputs) - set(entries(store, OUTPUTS))
    waiting = {name.split("/")[0] for name in missing}
    return next((step for step in reference.steps if step in waiting), "")


def entries(store: Path, patterns: tuple[str, ...]) -> list[str]:
    """What is in a store under its final names, which don't begin with a dot, relative to the store; no logs."""
    found = (path.relative_to(store) for pattern in patterns for path in store.glob(pattern) if path.name != logs.NAME)
    return sorted(str(path) for path in found if not any(part.startswith(".") for part in path.parts))


def links(results: Path) -> dict[str, str]:
    """Links in the folder of results, by name, and where they point."""
    found = results.iterdir() if results.is_dir() else ()
    return {path.name: str(path.readlink()) for path in found if not path.name.startswith(".")}


def read_summaries(results: Path) -> dict[str, bytes]:
    """`summary.json` by way of each link in the folder of results; empty where there is none."""
    paths = {name: results / name / "summary.json" for name in links(results)}
    return {name: path.read_bytes() if path.is_file() else b"" for name, path in paths.items()}


def difference(found: Path, expected: Path) -> str:
    """How the content of a file, link or folder differs from what is expected; empty if it doesn't."""
    if not os.path.lexists(expected):
        return "the undisturbed run has no such output"
    if not os.path.lexists(found):
        return "it is missing"
    if found.is_symlink() and expected.is_symlink():
        there, wanted = found.readlink(), expected.readlink()
        return "" if there == wanted else f"it points at {there} instead of {wanted}"
    if found.is_dir() and expected.is_dir():
        for name in sorted({path.name for folder in (found, expected) for path in folder.iterdir()}):
            if told := difference(found / name, expected / name):
                return f"{name}: {told}"
        return ""
    if any(path.is_symlink() or not path.is_file() for path in (found, expected)):
        return "it is of another kind"
    if found.read_bytes() == expected.read_bytes():
        return ""
    try:
        same = same_content(found, expected)
    except Exception as error:  # whatever a library raises for a file that is broken
        return f"it can't be read: {type(error).__name__}: {error}"
    return "" if same else f"{found.stat().st_size} bytes differ from the expected {expected.stat().st_size}"


def same_content(found: Path, expected: Path) -> bool:
    """Compare files whose bytes may differ although they say the same."""
    if found.suffix == ".root":  # a UUID and the time of writing
        with uproot.open(found) as a, uproot.open(expected) as b:
            return a.classnames() == b.classnames() and all(
                same_object(a[name], b[name]) for name, kind in a.classnames().items() if kind != "TDirectory"
            )
    if found.suffix == ".parquet":
        return same_arrays(ak.from_parquet(found), ak.from_parquet(expected))
    if found.name == "run.json" or found.name.startswith("provenance"):
        return bool(unmeasured(json.loads(found.read_text())) == unmeasured(json.loads(expected.read_text())))
    if found.name == "report.html":
        page, wanted = (path.read_text().rstrip() for path in (found, expected))
        mark = '<h2 id="cost">'
        return page.endswith("</html>") and page.split(mark)[0] == wanted.split(mark)[0]
    return False


def same_object(found: Any, expected: Any) -> bool:
    """Whether two histograms, or two trees, hold the same."""
    if hasattr(found, "arrays"):
        return same_arrays(found.arrays(), expected.arrays())
    return all(
        np.array_equal(read(found), read(expected))
        for read in (lambda h: h.axis().edges(), lambda h: h.values(), lambda h: h.variances())
    )


def same_arrays(found: Any, expected: Any) -> bool:
    """Whether two awkward arrays are equal, with their types and with NaN at the same places."""
    return bool(ak.array_equal(found, expected, equal_nan=True))


def unmeasured(record: dict[str, Any]) -> dict[str, Any]:
    """A record of a run, or of its steps, without what was measured."""
    kept = {key: value for key, value in record.items() if key not in MEASURED}
    return kept | {"steps": [unmeasured(step) for step in record.get("steps", ())]}
