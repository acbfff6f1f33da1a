"""Kills change no result, and benchmarks/kill.py would tell; it also tells what they have undone."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uproot
from filelock import SoftFileLease

from benchmarks import kill
from benchmarks.kill import Job, Kill, Loss, Network, Work, kill_jobs, too_much, wait_for_workers
from benchmarks.undisturbed import Reference, ViolationError, check, check_end, check_events, next_step
from models.checkpoint import Checkpoint, Place
from tests.toy import Finished, Law
from workflow.claims import LEASE

KILLS = 3
LONGER = ("--set", "training.epochs=150", "--set", "training.patience=null")
FINGERPRINT = "0123456789abcdef"


DASK = ("--workflow", "dask", "--cluster", "local")


@pytest.mark.slow
def test_kills_change_no_result(finished: Finished, tmp_path: Path) -> None:
    reference = Reference.of(finished.law, finished.seconds)
    law = Law(finished.law.home, tmp_path)
    job = Job(law, ("Report", "--analysis", law.analysis, *DASK), "dask", reference, random.Random(1))
    met = list(kill_jobs(job, KILLS))
    assert sum(each is not None for each in met) == KILLS
    assert met[-1] is None
    assert check_events(law, reference)["ScoreEvents"] == (2000, 2000)


@pytest.mark.slow
def test_kills_undo_no_step_of_a_training_that_keeps_each(finished: Finished, tmp_path: Path) -> None:
    """An interval of 0 s is one step, so that no clock decides."""

    def place(name: str) -> Law:
        """Where nothing but the networks is missing."""
        law = Law(finished.law.home, tmp_path / name)
        shutil.copytree(finished.law.store, law.store, symlinks=True)
        shutil.copytree(finished.law.results, law.results, symlinks=True)
        return law

    undisturbed = place("undisturbed")
    # Long enough that kills meet networks, not workers that only start, also where these take some seconds to start.
    longest = ("--set", "training.epochs=1200", *LONGER[2:])
    command = ("TrainFolds", "--analysis", undisturbed.analysis, *longest)
    started = time.monotonic()
    undisturbed(*command)
    reference = Reference.of(undisturbed, time.monotonic() - started)
    disturbed = (*command, *DASK, "--checkpoint", "0")
    losses: list[Loss] = []
    for seed in range(2, 16):  # on a slow machine kills may meet workers that only start
        job = Job(place(f"killed{seed}"), disturbed, "dask", reference, random.Random(seed), during="TrainFolds")
        losses += [loss for each in job.disturb(2) for loss in each.losses]
        if losses:
            break
    assert losses
    assert all(loss.steps is not None and loss.steps[0] <= 1 for loss in losses)


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


def chunk(law: Law) -> Path:
    """The first chunk of selected events."""
    return sorted(law.store.glob("SelectEvents/*/*/events.parquet"))[0]


def lose_event(law: Law) -> None:
    table = pq.read_table(chunk(law))
    pq.write_table(table.slice(1), chunk(law))
    for path in (law.store / "ComputeFeatures").glob(f"*/{chunk(law).parent.name}/*.parquet"):
        pq.write_table(pq.read_table(path).slice(1), path)
    (friend,) = (
        path
        for path in law.store.glob("ScoreEvents/*/*/friend.root")
        if chunk(law).parent.name in (path.parent / "provenance.json").read_text()
    )
    change_friend(friend, "selected", table["entry"][0].as_py(), False)


def change_friend(path: Path, name: str, entry: int, value: object) -> None:
    with uproot.open(path) as file:
        columns = file["scores"].arrays(library="np")
    columns[name][entry] = value
    with uproot.recreate(path) as file:
        file["scores"] = columns


def count_event_twice(law: Law) -> None:
    pool = next(law.store.glob("PrepareFolds/*/*/pool"))
    for path in pool.glob("*.npy"):
        column = np.load(path)
        np.save(path, np.concatenate([column[:1], column[:-1]]))


def swap_scores(law: Law) -> None:
    path = next(law.store.glob("ScoreEvents/*/*/friend.root"))
    change_friend(path, "score_signal_ensemble", 0, 0.123)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lose_event, "SelectEvents has 1999 events, 1999 different ones, instead of 2000: 1 are lost, 0 are new"),
        (count_event_twice, "events, 1476 different ones, instead of 1477: 1 are lost, 0 are new"),
        (swap_scores, "ScoreEvents: score_signal_ensemble of some events is not that of the undisturbed run"),
    ],
)
def test_events_are_compared_by_their_identities(
    finished: Finished, law: Law, change: Callable[[Law], None], told: str
) -> None:
    reference = Reference.of(finished.law, finished.seconds)
    assert check_events(law, reference)["PrepareFolds"] == (1477, 1477)
    change(law)
    with pytest.raises(ViolationError) as error:
        check_events(law, reference)
    assert told in str(error.value)


def test_events_may_lie_in_other_outputs(finished: Finished, law: Law) -> None:
    moved = chunk(law).parent
    shutil.move(moved, moved.with_name("0" * 16))
    (law.store / "ComputeFeatures").joinpath(*moved.parts[-2:]).rename(
        (law.store / "ComputeFeatures").joinpath(moved.parts[-2], "0" * 16)
    )
    for record in law.store.glob("ScoreEvents/*/*/provenance.json"):
        record.write_text(record.read_text().replace(moved.name, "0" * 16))
    counts = check_events(law, Reference.of(finished.law, finished.seconds))
    assert set(counts.values()) == {(2000, 2000), (1477, 1477)}


FOLDER = Path("TrainFolds", "toy", FINGERPRINT)


@pytest.fixture
def training(tmp_path: Path) -> Job:
    """A job whose network has 10 steps in an epoch; process 1 holds it."""
    for store in (tmp_path / "reference" / "store", tmp_path / "store"):
        (store / FOLDER).mkdir(parents=True)
    record = {"label": "toy", "subject": "fold 1, member 0"}
    (tmp_path / "reference" / "store" / FOLDER / "provenance.json").write_text(json.dumps(record))
    reference = Reference.of(Law(tmp_path / "reference"), 1.0)
    job = Job(Law(tmp_path), (), "dask", reference, random.Random(1))
    job.__dict__["_networks"] = {FOLDER: Network(1, 10, 100)}
    return job


def keep(job: Job, place: Place, steps: int, when: float, ended: bool = False) -> None:
    """Leave a checkpoint."""
    done = np.array([steps], np.float32)
    losses: Any = np.zeros(place.epochs)
    path = job.law.store / FOLDER / ".checkpoint"
    path.write_bytes(Checkpoint(place, 0.0, ended, {"optimiser.steps": done}, losses, losses, losses).to_bytes())
    os.utime(path, (when, when))


def lost(job: Job, monkeypatch: pytest.MonkeyPatch, said: str, holder: int | None = 1) -> Loss | None:
    """What a kill at 100 s undoes of a training that began at 90 s."""
    monkeypatch.setattr(kill, "holder", lambda _: holder)
    head: Any = SimpleNamespace(said=f"folds 1: epoch 9/9\n{said}")
    return job._loss(Work(FOLDER, 1, 90.0, len("folds 1: epoch 9/9\n")), 100.0, head)


def test_what_a_kill_undoes_of_a_training(training: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = "toy fold 1, member 0"
    assert lost(training, monkeypatch, "") == Loss(subject, 10.0, (0, 10))
    assert lost(training, monkeypatch, "folds 0, 2: epoch 5/9\n") == Loss(subject, 10.0, (0, 10))
    assert lost(training, monkeypatch, "folds 1: epoch 9/9\n") == Loss(subject, 10.0, (0, 10))  # said before
    assert lost(training, monkeypatch, "folds 0, 1: epoch 3/9\nfolds 0, 1: epoch 4/9\n") == Loss(
        subject, 10.0, (40, 50)
    )
    keep(training, Place(3, 0, 7), 37, 98.0)
    assert lost(training, monkeypatch, "folds 0, 1: epoch 3/9\n") == Loss(subject, 2.0, (0, 3))
    assert lost(training, monkeypatch, "folds 0, 1: epoch 4/9\n") == Loss(subject, 2.0, (3, 13))
    keep(training, Place(3, 0, 7), 37, 50.0)  # by an earlier process
    assert lost(training, monkeypatch, "") == Loss(subject, 10.0, (0, 3))
    keep(training, Place(4, 0, 7), 47, 101.0)  # before the process ended
    assert lost(training, monkeypatch, "folds 0, 1: epoch 4/9\n") == Loss(subject, 0.0, (0, 0))
    keep(training, Place(9, 0, 0), 90, 95.0, ended=True)
    assert lost(training, monkeypatch, "folds 0, 1: epoch 8/9\n") == Loss(subject, 0.0, (0, 0))
    (training.law.store / FOLDER / ".checkpoint").unlink()
    assert lost(training, monkeypatch, "", holder=None) is None


def test_more_than_an_interval_is_too_much() -> None:
    def met(seconds: float, steps: tuple[int, int] | None) -> Kill:
        return Kill(0.0, "head", "TrainFolds", (Loss("", seconds, steps),))

    kills = [met(2.9, (1, 2)), met(3.1, (1, 2)), met(60.0, None), met(6.9, (0, 1)), met(7.1, (0, 1))]
    assert too_much(kills, 2.0) == [kills[1], kills[4]]


def test_only_a_loss_may_end_a_run(training: Job) -> None:
    head: Any = SimpleNamespace(said="5 workers were lost under it", process=SimpleNamespace(returncode=40))
    training._require_told(head)
    head.said = "error: physics.py"
    with pytest.raises(ViolationError, match="a run that was not killed ended with 40:\nerror: physics"):
        training._require_told(head)


@pytest.mark.parametrize("name", ["Score/toy/0/.lease", "runs/here-1.lease", "TrainFolds/toy/0/.checkpoint"])
def test_what_stays_is_told(pair: tuple[Law, Reference], name: str) -> None:
    law, reference = pair
    job = Job(law, (), "local", reference, random.Random(1))
    left = law.store / name
    left.parent.mkdir(parents=True)
    lease = SoftFileLease(left, lease_duration=LEASE)
    lease.acquire()
    with pytest.raises(ViolationError, match=f"left over: {name}"):
        job._check_end()
    lease.release()
    job._check_end()
