"""The graph as a user runs it: `law run` in a process of its own, on small analyses, with a store of its own."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator

import jsonschema
import numpy as np
import psutil
import pytest
import uproot

from tests.toy import ROOT, Law, OnTerminal, ran


def test_a_finished_run_leaves_what_the_readme_promises(law: Law) -> None:
    done = law("Report", "--analysis", law.analysis)
    result = law.results / "toy"
    assert result.is_symlink()
    for name in ("report.html", "ensemble.onnx", "run.json", "summary.json", "workspace.json"):
        assert (result / name).is_file(), name
    assert sorted(p.name for p in (result / "scores").iterdir()) == [
        "background_0.root", "background_1.root", "signal_0.root", "signal_1.root",
    ]  # fmt: skip
    summary = json.loads((result / "summary.json").read_text())
    jsonschema.validate(summary, json.loads((ROOT / "docs" / "summary.schema.json").read_text()))
    assert summary["yields"]["signal"]["yield"] == pytest.approx(100, rel=0.02)  # times the factors' mean
    assert str(result / "report.html") in done.stdout
    # Both processes are normalised to a sum before the selection, which the cutflow begins with.
    page = (result / "report.html").read_text()
    flow = page[page.index("Expected events, without weight factors") :]
    numbers = re.findall(r">\s*([\d,.]+)\s*<", flow[: flow.index("</table>")])
    assert "1,000" in numbers
    assert "out of fold" in done.stdout.lower() or "out-of-fold" in done.stdout.lower()


def test_overrides_do_not_replace_the_reference(law: Law) -> None:
    reference = (law.results / "toy").resolve()
    done = law("Report", "--analysis", law.analysis, "--set", "training.epochs=2", "--set", "model.hidden=[6]")
    assert (law.results / "toy").resolve() == reference
    experiments = [p for p in law.results.iterdir() if p.name.startswith("toy@")]
    assert len(experiments) == 1
    assert str(experiments[0]) in done.stdout
    assert ran(done)["TrainFolds"] == 3


def test_dask_and_local_processes_give_the_same_summary(law: Law) -> None:
    expected = (law.results / "toy" / "summary.json").read_bytes()
    shutil.rmtree(law.store)
    done = law("Report", "--analysis", law.analysis, "--workflow", "dask")
    assert ran(done)["TrainFolds"] == 3
    assert (law.results / "toy" / "summary.json").read_bytes() == expected


@pytest.mark.parametrize("threads", ["1", "2"])
def test_threads_of_the_shell_change_no_bit(law: Law, monkeypatch: pytest.MonkeyPatch, threads: str) -> None:
    """Of all numbers in the summary."""
    (evaluation,) = (law.store / "EvaluateEnsemble").glob("*/*/evaluation.json")
    expected = evaluation.read_bytes()
    shutil.rmtree(law.store / "EvaluateEnsemble")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", threads)
    law("EvaluateEnsemble", "--analysis", law.analysis)
    assert evaluation.read_bytes() == expected


def test_status_shows_the_graph(law: Law) -> None:
    shown = law("Report", "--analysis", law.analysis, "--print-status", "-1").stdout
    for family in ("ListInputs", "SelectEvents", "ComputeFeatures", "PrepareFolds", "TrainFolds", "ExportEnsemble",
                   "ScoreEvents", "EvaluateEnsemble", "PlotResults", "WriteStatistics"):  # fmt: skip
        assert family in shown
    assert "absent" not in shown


def test_provenance_is_a_tree(law: Law) -> None:
    lines = law("Report", "--analysis", law.analysis, "--print-provenance").stdout.splitlines()
    assert lines[0].startswith("Report: ")
    assert any(line.startswith("├─ ExportEnsemble: ") for line in lines)
    (training,) = [line for line in lines if "TrainFolds: " in line]
    assert "3 of 3 branches" in training
    assert float(re.findall(r"([\d.]+) CPU-s", training)[0]) > 0
    assert sum("PrepareFolds (above)" in line for line in lines) >= 2
    assert not any("no record" in line for line in lines)


def break_branch(law: Law) -> str:
    """Name a branch that is not there."""
    physics = law.home / "toy" / "physics.py"
    physics.write_text(physics.read_text().replace("events.pt1 > 0", "events.pt_1 > 0"))
    return "Did you mean 'pt1'"


def break_file(law: Law) -> str:
    """Cut a file in its middle."""
    path = law.home / "toy" / "data" / "signal_0.root"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return "signal_0.root is truncated"


def break_key(law: Law) -> str:
    """Misspell a key."""
    path = law.home / "toy" / "analysis.yaml"
    path.write_text(path.read_text().replace("batch_size", "batchsize"))
    return "unknown key training.batchsize. Did you mean 'batch_size'?"


def break_selection(law: Law) -> str:
    """Leave no event."""
    physics = law.home / "toy" / "physics.py"
    physics.write_text(physics.read_text().replace("events.pt1 > 0", "events.pt1 < 0"))
    return "No event is left"


def break_function(law: Law) -> str:
    """Let a function raise."""
    physics = law.home / "toy" / "physics.py"
    physics.write_text(physics.read_text().replace("return 2 * values", "return values / 'two'"))
    return "mass(events) failed at"


def break_from_within(law: Law) -> str:
    """Let a feature change another one's helper while it runs, as an editor would."""
    physics = law.home / "toy" / "physics.py"
    edit = "p.write_text(p.read_text().replace('return 2 *', 'return 3 *'))"
    text = physics.read_text().replace("def ratio(events):", f"def ratio(events):\n    p = Path(__file__)\n    {edit}")
    physics.write_text("from pathlib import Path\n" + text)
    configuration = law.home / "toy" / "analysis.yaml"
    configuration.write_text(configuration.read_text().replace("both: [mass]", "both: [mass, ratio]"))
    return "its code changed while the run was going on"


@pytest.mark.parametrize(
    "mistake", [break_branch, break_file, break_key, break_selection, break_function, break_from_within]
)
def test_a_mistake_is_one_message_and_loses_nothing(law: Law, mistake: Callable[[Law], str]) -> None:
    before = {p for p in law.store.rglob("*") if p.is_file()}
    expected = mistake(law)
    done = law("TrainFolds", "--analysis", law.analysis, ok=False)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr + done.stdout
    assert done.stderr.count(expected) == 1, done.stderr
    assert before - {law.store / "names" / "toy.json"} <= {p for p in law.store.rglob("*") if p.is_file()}
    assert not list(law.store.rglob(".stage-*"))


def test_debug_shows_the_traceback_of_a_mistake(law: Law) -> None:
    expected = break_key(law)
    shown = law("ListInputs", "--analysis", law.analysis, "--debug", ok=False)
    assert "Traceback" in shown.stderr
    assert expected in shown.stderr


@pytest.fixture
def training(law: Law) -> Iterator[OnTerminal]:
    """A run in the middle of a training that would take for ever."""
    endless = ("--set", "training.epochs=100000", "--set", "training.patience=null")
    head = OnTerminal(law, "TrainFolds", "--analysis", law.analysis, *endless)
    try:
        head.wait_until(lambda said: "epoch" in said)
        yield head
    finally:
        head.close()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_an_interrupted_run_leaves_no_worker_behind(training: OnTerminal, number: int, code: int) -> None:
    workers = psutil.Process(training.process.pid).children(recursive=True)
    assert len(workers) >= 2
    training.process.send_signal(number)
    assert training.process.wait(timeout=60) == code
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive
    training.wait_for_silence()
    assert "Traceback" not in training.said
    assert ("interrupted: what is complete stays" in training.said) == (number != signal.SIGKILL)


def test_a_training_that_was_killed_goes_on_where_it_stood(law: Law) -> None:
    """And ends with the same bits; the checkpoints are gone then."""
    longer = ("--set", "training.epochs=60", "--set", "training.patience=null")
    arguments = ("TrainFolds", "--analysis", law.analysis, *longer, "--checkpoint", "0")
    before = set(law.store.glob("TrainFolds/*/*/network.safetensors"))
    head = law.start(*arguments)
    while not (kept := list(law.store.glob("TrainFolds/*/*/.checkpoint"))):
        assert head.poll() is None
        time.sleep(0.01)
    head.kill()
    head.communicate()
    kept = list(law.store.glob("TrainFolds/*/*/.checkpoint"))
    said = law(*arguments).stderr
    assert len(re.findall(r"goes on in epoch \d+", said)) == len(kept)
    assert not list(law.store.glob("TrainFolds/*/*/.checkpoint"))
    networks = set(law.store.glob("TrainFolds/*/*/network.safetensors")) - before
    found = {path: path.read_bytes() for path in networks}
    assert len(found) == 3
    for path in found:
        path.unlink()
    law(*arguments)
    assert {path: path.read_bytes() for path in found} == found


def test_a_killed_worker_is_said(training: OnTerminal) -> None:
    busiest = max(psutil.Process(training.process.pid).children(), key=lambda p: sum(p.cpu_times()[:2]))
    busiest.kill()
    assert training.process.wait(timeout=60) == 40
    training.wait_for_silence()
    assert training.said.count("A worker process was killed") == 1
    assert "TrainFolds (toy fold" in training.said
    assert "Traceback" not in training.said


def test_two_folders_with_one_name_are_an_error(law: Law) -> None:
    law("ListInputs", "--analysis", law.analysis)
    shutil.copytree(law.home / "toy", law.home / "other")
    done = law("ListInputs", "--analysis", str(law.home / "other"), ok=False)
    assert done.returncode != 0
    assert done.stderr.count("the name 'toy' belongs to the analysis in") == 1


def test_friends_align_with_their_files(law: Law) -> None:
    with uproot.open(law.results / "toy" / "scores" / "signal_1.root") as file:
        scores = file["scores"].arrays(library="np")
    assert len(scores["fold"]) == 500
    assert scores["selected"].all()
    total = scores["score_signal_routed"] + scores["score_background_routed"]
    np.testing.assert_allclose(total, 1, atol=1e-6)
