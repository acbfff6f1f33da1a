"""Killed runs leave nothing that is complete but wrong, and benchmarks/kill.py would tell."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uproot

from benchmarks.kill import Reference, ViolationError, check, check_end, kill_runs, next_step, wait_for_workers
from tests.toy import Finished, Law

FRACTIONS = (0.2, 0.35, 0.5)
FINGERPRINT = "0123456789abcdef"


@pytest.mark.slow
def test_killed_runs_leave_nothing_that_is_complete_but_wrong(finished: Finished, tmp_path: Path) -> None:
    reference = Reference.of(finished.law, finished.seconds)
    law = Law(finished.law.home, tmp_path)
    met = list(kill_runs(law, law.analysis, reference, itertools.cycle(FRACTIONS), kills=len(FRACTIONS)))
    assert sum(kill is not None for kill in met) == len(FRACTIONS)
    assert met[-1] is None
    assert any(kill.outputs for kill in met if kill is not None)


def at(store: Path, name: str) -> Path:
    """An output, `<Step>/<name>`, in a store of one label and fingerprint."""
    step, _, rest = name.partition("/")
    return store / step / "toy" / FINGERPRINT / rest


def small_store(folder: Path) -> Law:
    """A store with outputs of all kinds, as if a run had made them; what is measured holds the folder's name."""
    law = Law(folder)
    for step in ("Select", "Score", "Plot", "Report"):
        at(law.store, step).mkdir(parents=True)
        record = {"title": step, "parts": {"code": "abc"}, "started": folder.name, "code": {"commit": folder.name}}
        at(law.store, f"{step}/provenance.json").write_text(json.dumps(record))
    pq.write_table(pa.table({"met": pa.array([1.0, math.nan, None])}), at(law.store, "Select/events.parquet"))
    write_friend(law, 0.5)
    at(law.store, "Plot/plots").mkdir()
    for name in ("roc.json", "roc.png"):
        at(law.store, f"Plot/plots/{name}").write_text(name)
    at(law.store, "Report/plots").symlink_to(f"../../../Plot/toy/{FINGERPRINT}/plots")
    at(law.store, "Report/summary.json").write_text('{"auc": 0.9}')
    at(law.store, "Report/run.json").write_text(json.dumps({"steps": [{"step": "Plot", "started": folder.name}]}))
    page = f'<html><h1>toy</h1>\n<h2 id="cost">What it cost</h2> {folder.name}</html>\n'
    at(law.store, "Report/report.html").write_text(page)
    law.results.mkdir()
    (law.results / "toy").symlink_to(f"../store/Report/toy/{FINGERPRINT}")
    return law


def write_friend(law: Law, score: float) -> None:
    """Write a file of one tree; its UUID is new whenever it is written."""
    with uproot.recreate(at(law.store, "Score/friend.root")) as file:
        file["scores"] = {"score": np.full(3, score, np.float32)}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Law, Reference]:
    """Two stores that differ as those of two runs may."""
    reference = Reference.of(small_store(tmp_path / "reference"), 1.0)
    return small_store(tmp_path / "other"), reference


def test_what_two_runs_may_differ_in_is_no_violation(pair: tuple[Law, Reference]) -> None:
    law, reference = pair
    events = at(law.store, "Select/events.parquet")
    pq.write_table(pq.read_table(events), events, compression="none")
    for name in ("Select/events.parquet", "Score/friend.root", "Report/run.json", "Report/report.html"):
        assert at(law.store, name).read_bytes() != at(reference.store, name).read_bytes(), name
    check_end(law, reference)
    assert next_step(law.store, reference) == ""


def test_what_is_missing_or_half_written_aside_is_a_violation_only_at_the_end(pair: tuple[Law, Reference]) -> None:
    law, reference = pair
    outputs = check(law, reference)
    at(law.store, "Score/friend.root").unlink()
    at(law.store, "Score/.stage-0123456789ab").mkdir()
    at(law.store, "Score/.stage-0123456789ab/friend.root").write_bytes(b"half")
    at(law.store, "Score/.provenance.json.01234567").write_text("{")
    assert check(law, reference) == outputs - 1
    assert next_step(law.store, reference) == "Score"
    with pytest.raises(ViolationError, match=rf"ended without Score/toy/{FINGERPRINT}/friend\.root"):
        check_end(law, reference)


def truncate(law: Law, name: str) -> None:
    path = at(law.store, name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def point(link: Path, target: str) -> None:
    link.unlink()
    link.symlink_to(target)


def lose_nan(law: Law) -> None:
    pq.write_table(pa.table({"met": pa.array([1.0, None, None])}), at(law.store, "Select/events.parquet"))


def point_aside(law: Law) -> None:
    point(at(law.store, "Report/plots"), f"../../../Plot/toy/{FINGERPRINT}/.stage-0123456789ab/plots")


def publish_another_step(law: Law) -> None:
    point(law.results / "toy", f"../store/Score/toy/{FINGERPRINT}")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda law: truncate(law, "Select/events.parquet"), "events.parquet is complete but wrong: it can't be read"),
        (lambda law: truncate(law, "Score/friend.root"), "friend.root is complete but wrong: it can't be read"),
        (
            lambda law: truncate(law, "Select/provenance.json"),
            "provenance.json is complete but wrong: it can",
        ),
        (lambda law: truncate(law, "Report/summary.json"), "summary.json is complete but wrong: 6 bytes differ"),
        (lambda law: truncate(law, "Report/report.html"), "report.html is complete but wrong: "),
        (lambda law: write_friend(law, 0.6), "friend.root is complete but wrong: "),
        (lose_nan, "events.parquet is complete but wrong: "),
        (lambda law: at(law.store, "Report/run.json").write_text("{}"), "run.json is complete but wrong: "),
        (
            lambda law: at(law.store, "Plot/plots/roc.png").unlink(),
            "plots is complete but wrong: roc.png: it is",
        ),
        (lambda law: at(law.store, "Score/new").touch(), "new is complete but wrong: the undisturbed run has no such"),
        (point_aside, "plots is complete but wrong: it points at"),
        (publish_another_step, "results/toy points at"),
        (lambda law: at(law.store, "Report/summary.json").unlink(), "summary.json in the folder of results is not"),
    ],
)
def test_what_is_wrong_is_told(pair: tuple[Law, Reference], change: Callable[[Law], object], told: str) -> None:
    law, reference = pair
    check(law, reference)
    change(law)
    with pytest.raises(ViolationError) as error:
        check(law, reference)
    assert told in str(error.value)


def test_a_worker_that_stays_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.kill.GRACE", 0.1)
    wait_for_workers(tmp_path)
    worker = subprocess.Popen(["sleep", "600"], env={**os.environ, "EVENTFOLD_STORE": str(tmp_path)})
    try:
        with pytest.raises(ViolationError, match=rf"its processes are still there: sleep \({worker.pid}\)"):
            wait_for_workers(tmp_path)
        assert worker.wait(timeout=10) < 0
    finally:
        worker.kill()
        worker.wait()
