"""Kills `law run Report` with SIGKILL at random moments, and compares all that is complete with an undisturbed run.

The next run goes on from what a kill has left, and is killed as well, until one ends before its kill; then the store
is removed, so that kills fall on all steps. The first violation ends the script and keeps the store. See
benchmarks/README.md.
"""
# ruff: noqa: T201

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import awkward as ak
import psutil
import uproot

from tests.toy import Law, toy
from workflow.costs import Cost
from workflow.execution import logs

OUTPUTS = ("*/*/*/*",)
"""Where the store has outputs, <Step>/<label>/<fingerprint>/<name>: files, links and folders."""

BESIDE = ("*.json", "code/*.py", "names/*")
"""What it keeps beside them; not how the tree differed from its commit, which may change meanwhile."""

MEASURED = {"started", "cost", "costs", "code", *(field.name for field in fields(Cost))}
"""Keys of `provenance.json` and `run.json` that differ from run to run: when, at what cost, from which commit."""

GRACE = 30.0
"""Seconds within which all workers of a killed run must be gone; one that is just starting has imports to do."""


class ViolationError(Exception):
    """What no kill may bring about."""


@dataclass(frozen=True)
class Reference:
    """What an undisturbed run has left.

    Attributes:
        store: Its store.
        results: Links in the folder of results, by name, and where they point.
        summaries: `summary.json` as it is found by way of each link.
        steps: Task families in the order in which they ended.
        seconds: How long the run took.
    """

    store: Path
    results: dict[str, str]
    summaries: dict[str, bytes]
    steps: tuple[str, ...]
    seconds: float

    @staticmethod
    def of(law: Law, seconds: float) -> Reference:
        """Look at a store in which one run has ended."""
        ended: dict[str, int] = {}
        for name in entries(law.store, OUTPUTS):
            step = name.split("/")[0]
            ended[step] = max(ended.get(step, 0), (law.store / name).lstat().st_mtime_ns)
        steps = tuple(sorted(ended, key=lambda step: ended[step]))
        return Reference(law.store, links(law.results), read_summaries(law.results), steps, seconds)


@dataclass(frozen=True)
class Kill:
    """What one kill met.

    Attributes:
        step: The step that was at work on outputs and has left a `.stage-*`; without one, the first step in the order
            of the undisturbed run of which an output is missing; empty if none is.
        writing: Whether there was such a `.stage-*`.
        outputs: How many outputs were complete, and compared.
        outlived: Seconds until the last worker was gone.
    """

    step: str
    writing: bool
    outputs: int
    outlived: float


def kill_runs(
    law: Law, analysis: str, reference: Reference, fractions: Iterator[float], kills: int
) -> Iterator[Kill | None]:
    """Start runs and kill them, and let the run after the last kill end.

    Args:
        law: Where runs have their store.
        analysis: The analysis.
        reference: What the undisturbed run has left.
        fractions: How long each run lives, in units of the time that the undisturbed one took.
        kills: Number of kills.

    Yields:
        What each kill met; None whenever a run has ended and everything is as it is without kills.

    Raises:
        ViolationError: An output is complete but wrong, a worker outlived its head, or a run that went on failed.
    """
    done = 0
    while done < kills:
        before = stages(law.store)
        outlived = run(law, analysis, next(fractions) * reference.seconds)
        if outlived is not None:
            done += 1
            waiting = next_step(law.store, reference)
            at_work = sorted(stage.relative_to(law.store).parts[0] for stage in stages(law.store) - before)
            yield Kill(at_work[0] if at_work else waiting, bool(at_work), check(law, reference), outlived)
            if waiting and done < kills:
                continue
            run(law, analysis)
        check_end(law, reference)
        yield None
        for folder in (law.store, law.results):
            shutil.rmtree(folder)


def run(law: Law, analysis: str, limit: float | None = None) -> float | None:
    """Run the graph, and kill its head process if it takes longer than `limit` seconds.

    Returns:
        Seconds for which workers outlived the head; None if the run ended by itself.

    Raises:
        ViolationError: The run failed, or workers outlive the head by more than `GRACE`.
    """
    head = law.start("Report", "--analysis", analysis)
    try:
        out, error = head.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        head.kill()
        head.wait()
        outlived = wait_for_workers(law.store)
        out, error = head.communicate()
        if head.returncode == -signal.SIGKILL:
            return outlived
    if head.returncode != 0:
        raise ViolationError(f"a run that was not killed ended with {head.returncode}:\n{error}{out}")
    return None


def wait_for_workers(store: Path) -> float:
    """Wait until no process works on a store.

    Returns:
        Seconds that this took.

    Raises:
        ViolationError: Some are still there after `GRACE`; they are killed.
    """
    started = time.monotonic()
    while workers := workers_on(store):
        if time.monotonic() - started > GRACE:
            for worker in workers:
                with suppress(psutil.NoSuchProcess):
                    worker.kill()
            told = ", ".join(f"{worker.info['name']} ({worker.pid})" for worker in workers)
            raise ViolationError(f"{GRACE:.0f} s after a run was killed its processes are still there: {told}")
        time.sleep(0.02)
    return time.monotonic() - started


def workers_on(store: Path) -> list[psutil.Process]:
    """Processes that a run with this store has started, whoever their parent is by now."""
    return [
        process
        for process in psutil.process_iter(["name", "environ"])
        if (process.info["environ"] or {}).get("EVENTFOLD_STORE") == str(store)
    ]


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
    if missing := set(entries(reference.store, OUTPUTS)) - set(entries(law.store, OUTPUTS)):
        raise ViolationError(f"a run has ended without {', '.join(sorted(missing))}")
    if read_summaries(law.results) != reference.summaries:
        raise ViolationError("a run has ended without summary.json in the folder of results")


def next_step(store: Path, reference: Reference) -> str:
    """The first step of which an output is missing; empty if none is."""
    missing = set(entries(reference.store, OUTPUTS)) - set(entries(store, OUTPUTS))
    waiting = {name.split("/")[0] for name in missing}
    return next((step for step in reference.steps if step in waiting), "")


def entries(store: Path, patterns: tuple[str, ...]) -> list[str]:
    """What is in a store under its final names, which don't begin with a dot, relative to the store; no logs."""
    found = (path.relative_to(store) for pattern in patterns for path in store.glob(pattern) if path.name != logs.NAME)
    return sorted(str(path) for path in found if not any(part.startswith(".") for part in path.parts))


def stages(store: Path) -> set[Path]:
    """Folders in which outputs are made before they are moved into place."""
    return set(store.glob("*/*/*/.stage-*"))


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
            return a.classnames() == b.classnames() and all(same_arrays(a[k].arrays(), b[k].arrays()) for k in a.keys())
    if found.suffix == ".parquet":
        return same_arrays(ak.from_parquet(found), ak.from_parquet(expected))
    if found.name == "run.json" or found.name.startswith("provenance"):
        return bool(unmeasured(json.loads(found.read_text())) == unmeasured(json.loads(expected.read_text())))
    if found.name == "report.html":
        page, wanted = (path.read_text().rstrip() for path in (found, expected))
        mark = '<h2 id="cost">'
        return page.endswith("</html>") and page.split(mark)[0] == wanted.split(mark)[0]
    return False


def same_arrays(found: Any, expected: Any) -> bool:
    """Whether two awkward arrays are equal, with their types and with NaN at the same places."""
    return bool(ak.array_equal(found, expected, equal_nan=True))


def unmeasured(record: dict[str, Any]) -> dict[str, Any]:
    """A record of a run, or of its steps, without what was measured."""
    kept = {key: value for key, value in record.items() if key not in MEASURED}
    return kept | {"steps": [unmeasured(step) for step in record.get("steps", ())]}


def table(found: list[Kill], steps: tuple[str, ...]) -> str:
    """Kills by the step that they met."""
    lines = [f"{'step':24}{'kills':>8}{'while writing':>16}"]
    for step in (*steps, ""):
        kills = [kill for kill in found if kill.step == step]
        lines.append(f"{step or '(all complete)':24}{len(kills):8}{sum(kill.writing for kill in kills):16}")
    return "\n".join(lines)


def main() -> None:
    """Kill, compare, and print a table."""
    parser = argparse.ArgumentParser(description="SIGKILL at random moments leaves nothing that is complete but wrong")
    parser.add_argument("--kills", type=int, default=50, help="number of kills; default: 50")
    parser.add_argument("--seed", type=int, help="of the moments; by default drawn and printed")
    parser.add_argument("--analysis", help="an example or an analysis folder; by default the toy analysis of the tests")
    chosen = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if chosen.seed is None else chosen.seed
    moments = random.Random(seed)
    home = Path(tempfile.mkdtemp(prefix="eventfold-kill-")).resolve()
    analysis = chosen.analysis or str(toy(home / "toy"))
    found: list[Kill] = []
    ends = 0
    try:
        started = time.monotonic()
        run(Law(home), analysis)
        reference = Reference.of(Law(home), time.monotonic() - started)
        fractions = (moments.random() for _ in itertools.count())
        for kill in kill_runs(Law(home, home / "killed"), analysis, reference, fractions, chosen.kills):
            if kill is None:
                ends += 1
            else:
                found.append(kill)
                told = f"{kill.step or 'all complete'}, {kill.outputs} outputs compared"
                print(f"kill {len(found)} of {chosen.kills}: {told}", file=sys.stderr, flush=True)
    except ViolationError as error:
        raise SystemExit(f"violation after {len(found)} kills (seed {seed}, kept in {home}): {error}") from None
    shutil.rmtree(home)
    print(table(found, reference.steps))
    total, outlived = sum(kill.outputs for kill in found), max((kill.outlived for kill in found), default=0.0)
    print(f"{len(found)} kills, {total} complete outputs: none wrong; {ends} runs to the end: one summary.json;")
    print(f"all workers gone within {outlived:.2f} s; undisturbed {reference.seconds:.1f} s, seed {seed}")


if __name__ == "__main__":
    main()
