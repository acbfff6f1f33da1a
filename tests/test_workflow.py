"""The graph as a user runs it: `law run` in a process of its own, on small analyses, with a store of its own."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import psutil
import pytest
import uproot

from tests.toy import Law, ran, replace, write_events

ROOT = Path(__file__).resolve().parent.parent


def outputs(law: Law, family: str) -> dict[Path, int]:
    """Files that a step has written, with the times of their modification."""
    return {p: p.stat().st_mtime_ns for p in (law.store / family).rglob("*") if p.is_file() and p.suffix != ".json"}


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


def test_a_second_run_does_nothing_but_print_the_table(law: Law) -> None:
    before = {family.name: outputs(law, family.name) for family in law.store.iterdir() if family.is_dir()}
    first = law("Report", "--analysis", law.analysis)
    assert ran(first) == {}
    assert "AUC" in first.stdout
    assert before == {f.name: outputs(law, f.name) for f in law.store.iterdir() if f.is_dir() and f.name != "names"} | (
        {"names": before["names"]} if "names" in before else {}
    )


def test_removing_a_fold_redoes_it_and_what_follows(law: Law) -> None:
    networks = sorted(outputs(law, "TrainFolds"))
    before = {p: p.read_bytes() for p in networks}
    selected = outputs(law, "SelectEvents")
    friends = outputs(law, "ScoreEvents")
    networks[1].unlink()
    counts = ran(law("Report", "--analysis", law.analysis))
    assert counts == {"TrainFolds": 1, "ScoreEvents": 4}
    assert outputs(law, "SelectEvents") == selected
    assert all(outputs(law, "ScoreEvents")[p] > time for p, time in friends.items())
    assert {p: p.read_bytes() for p in networks} == before  # bit-identical, alone or stacked


def test_a_new_file_is_read_alone(law: Law) -> None:
    selected = outputs(law, "SelectEvents")
    write_events(law.home / "toy" / "data" / "signal_2.root", 300, 5.0, seed=3)
    counts = ran(law("TrainFolds", "--analysis", law.analysis))
    assert counts == {
        "ListInputs": 1,
        "SelectEvents": 1,
        "ComputeFeatures (features)": 1,
        "ComputeFeatures (factors)": 1,
        "TrainFolds": 3,
    }
    assert selected.items() <= outputs(law, "SelectEvents").items()


def test_a_new_feature_computes_alone(law: Law) -> None:
    columns = outputs(law, "ComputeFeatures")
    path = law.home / "toy" / "analysis.yaml"
    path.write_text(path.read_text().replace("both: [mass]", "both: [mass, ratio]"))
    counts = ran(law("TrainFolds", "--analysis", law.analysis))
    assert counts == {"ComputeFeatures (features)": 8, "TrainFolds": 3}
    new = outputs(law, "ComputeFeatures")
    assert columns.items() <= new.items()
    assert {p.name.split("-")[0] for p in new.keys() - columns.keys()} == {"ratio"}


def test_a_helper_of_a_feature_is_part_of_its_identity_and_a_comment_is_not(law: Law) -> None:
    physics = law.home / "toy" / "physics.py"
    original = physics.read_text()
    physics.write_text(original.replace("def mass(events):", 'def mass(events):\n    """The mass."""\n    # a remark'))
    assert ran(law("Report", "--analysis", law.analysis)) == {}
    columns = outputs(law, "ComputeFeatures")
    physics.write_text(original.replace("2 * values", "3 * values"))
    law("PrepareFolds", "--analysis", law.analysis)
    assert {p.name.split("-")[0] for p in outputs(law, "ComputeFeatures").keys() - columns.keys()} == {"mass"}


def test_collision_data_are_scored_without_retraining(law: Law) -> None:
    networks = outputs(law, "TrainFolds")
    write_events(law.home / "toy" / "data" / "other_0.root", 300, 2.0, seed=5, recorded=True)
    path = law.home / "toy" / "analysis.yaml"
    text = path.read_text().replace(
        "    signal: {files", "    other: {files: [other_*.root], collision: true}\n    signal: {files"
    )
    path.write_text(text.replace("classes:\n  signal", "  other: {data: [other]}\nclasses:\n  signal"))
    counts = ran(law("Report", "--analysis", law.analysis))
    assert counts == {"ListInputs": 1, "SelectEvents": 1, "ComputeFeatures (features)": 1, "ScoreEvents": 1}
    assert outputs(law, "TrainFolds") == networks
    summary = json.loads((law.results / "toy" / "summary.json").read_text())
    assert summary["yields"]["other"]["class"] is None
    assert summary["yields"]["other"]["yield"] == summary["yields"]["other"]["entries"] == 300


def test_why_says_what_changed(law: Law) -> None:
    def lines(*arguments: str) -> list[str]:
        done = law("Report", "--analysis", law.analysis, "--why", *arguments)
        assert ran(done) == {}
        return [line for line in done.stdout.splitlines() if line]

    assert lines() == ["Report is complete: nothing would run."]
    told = lines("--set", "training.learning_rate=0.003", "--set", "data.chunk=400")
    assert "TrainFolds (toy fold 0, member 0; toy fold 1, member 0; toy fold 2, member 0): " in told[0]
    assert told[0].endswith("training.learning_rate 0.002 → 0.003")
    assert told[1] == "ExportEnsemble (toy): what it stands on is made anew"
    assert not any("PrepareFolds" in line for line in told)

    configuration = law.home / "toy" / "analysis.yaml"
    configuration.write_text(configuration.read_text().replace("both: [mass]", "both: [mass, ratio]"))
    first = lines()[0]
    assert first.startswith("ComputeFeatures (features) (signal signal_0.root from 0; signal signal_0.root from 400; ")
    assert first.endswith("and 5 more): names +ratio; function ratio is new")

    physics = law.home / "toy" / "physics.py"
    physics.write_text(physics.read_text().replace("2 * values", "3 * values"))
    law("ComputeFeatures", "--analysis", law.analysis)
    physics.write_text(physics.read_text().replace("3 * values", "4 * values"))
    text = "\n".join(lines())
    assert "function mass changed" in text

    physics.write_text(physics.read_text().replace("4 * values", "3 * values"))
    (removed, *_) = sorted(outputs(law, "SelectEvents"))
    removed.unlink()
    assert "its output events.parquet was removed" in lines()[0]
    write_events(law.home / "toy" / "data" / "signal_0.root", 500, 5.0, seed=1)
    assert any(line.startswith("ListInputs (signal signal_0.root): its input was rewritten") for line in lines())
    write_events(law.home / "toy" / "data" / "signal_5.root", 100, 5.0, seed=9)
    assert any(line == "ListInputs (signal signal_5.root): never ran" for line in lines())


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
    expected = (law.results / "toy" / "summary.json").read_bytes()
    for step in ("EvaluateEnsemble", "Report"):
        shutil.rmtree(law.store / step)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", threads)
    law("Report", "--analysis", law.analysis)
    assert (law.store / "EvaluateEnsemble").is_dir()
    assert (law.results / "toy" / "summary.json").read_bytes() == expected


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
def training(law: Law) -> Iterator[subprocess.Popen[str]]:
    """A run in the middle of a training that would take for ever."""
    endless = ("--set", "training.epochs=100000", "--set", "training.patience=null")
    head = law.start("TrainFolds", "--analysis", law.analysis, *endless)
    assert head.stderr is not None
    for line in head.stderr:
        if "epoch" in line:
            break
    yield head
    head.kill()
    head.wait()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_an_interrupted_run_leaves_no_worker_behind(training: subprocess.Popen[str], number: int, code: int) -> None:
    workers = psutil.Process(training.pid).children(recursive=True)
    assert len(workers) >= 2
    training.send_signal(number)
    _, said = training.communicate(timeout=60)
    assert training.returncode == code
    assert "Traceback" not in said
    assert ("interrupted: what is complete stays" in said) == (number != signal.SIGKILL)
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive


def test_a_training_that_was_killed_goes_on_where_it_stood(law: Law) -> None:
    """And ends with the same bits; the checkpoints are gone then."""
    longer = ("--set", "training.epochs=60", "--set", "training.patience=null")
    arguments = ("TrainFolds", "--analysis", law.analysis, *longer, "--checkpoint", "0")
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
    found = {path: path.read_bytes() for path in law.store.glob("TrainFolds/*/*/network.safetensors")}
    assert len(found) == 6
    for path in found:
        path.unlink()
    law(*arguments)
    law("TrainFolds", "--analysis", law.analysis)
    assert {path: path.read_bytes() for path in found} == found


def test_a_killed_worker_is_said(training: subprocess.Popen[str]) -> None:
    busiest = max(psutil.Process(training.pid).children(), key=lambda p: sum(p.cpu_times()[:2]))
    busiest.kill()
    _, said = training.communicate(timeout=60)
    assert training.returncode == 40
    assert said.count("A worker process was killed") == 1
    assert "TrainFolds (toy fold" in said
    assert "Traceback" not in said


def test_two_folders_with_one_name_are_an_error(law: Law) -> None:
    law("ListInputs", "--analysis", law.analysis)
    shutil.copytree(law.home / "toy", law.home / "other")
    done = law("ListInputs", "--analysis", str(law.home / "other"), ok=False)
    assert done.returncode != 0
    assert done.stderr.count("the name 'toy' belongs to the analysis in") == 1


def test_a_file_without_entries_among_good_ones_is_said(law: Law) -> None:
    with uproot.recreate(law.home / "toy" / "data" / "signal_9.root") as file:
        file.mktree("events", dict.fromkeys(("pt1", "pt2", "x", "truth"), "float64") | {"event": "int64"})
    law("Report", "--analysis", law.analysis)
    summary = json.loads((law.results / "toy" / "summary.json").read_text())
    assert any("signal_9.root has no entries" in warning for warning in summary["warnings"])
    with uproot.open(law.results / "toy" / "scores" / "signal_9.root") as file:
        assert file["scores"].num_entries == 0


def test_friends_align_with_their_files(law: Law) -> None:
    with uproot.open(law.results / "toy" / "scores" / "signal_1.root") as file:
        scores = file["scores"].arrays(library="np")
    assert len(scores["fold"]) == 500
    assert scores["selected"].all()
    total = scores["score_signal_routed"] + scores["score_background_routed"]
    np.testing.assert_allclose(total, 1, atol=1e-6)


def summary_of(law: Law, analysis: str, *arguments: str) -> dict[str, Any]:
    """Run an example and read its summary."""
    folder = law.home / analysis
    law("Report", "--analysis", str(folder) if folder.exists() else analysis, *arguments)
    (link,) = law.results.glob(f"{analysis}*")
    content: dict[str, Any] = json.loads((link / "summary.json").read_text())
    jsonschema.validate(content, json.loads((ROOT / "docs" / "summary.schema.json").read_text()))
    return content


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Law:
    """The embedded example with a fifth of its events, in a folder where it can be edited."""
    law = Law(tmp_path_factory.mktemp("example"))
    shutil.copytree(ROOT / "analysis" / "examples" / "hww", law.home / "hww")
    replace(law.home / "hww" / "analysis.yaml", "simulation: {scale: 1.0,", "simulation: {scale: 0.2,")
    return law


@pytest.mark.slow
def test_the_embedded_example_separates_its_backgrounds(example: Law) -> None:
    summary = summary_of(example, "hww")
    for background, auc in summary["metrics"]["out_of_fold"]["auc_against"].items():
        assert 0.6 < auc["weighted"]["value"] < 0.98, background
    assert 0.2 < summary["missing"]["lepton2"] < 0.9
    assert summary["onnx"]["largest_difference"] < 1e-5


def plain(text: str) -> list[str]:
    """Lines of output without what differs from run to run and from machine to machine."""
    for pattern, sign in {
        r"\b[0-9a-f]{16}\b": "FINGERPRINT",
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ": "TIME",
        r"[\d.]+ CPU-s, \d+ MB, \S+, (?:\w{10}|no commit)(?: \+ changes)?": "COST",
        r"adopted by \S+ at": "adopted by SOMEBODY at",
        r"[\d.]+ [kM]B\b": "SIZE",
        r"(?<=[ (])/\S*/": "/",
    }.items():
        text = re.sub(pattern, sign, text)
    return [re.sub(r" +", " ", line).rstrip() for line in text.splitlines()]


@pytest.mark.slow
def test_the_readme_shows_what_is_printed(example: Law) -> None:
    """Every console block of the README, in its order, with the edits of which it speaks in between."""
    law, folder = example, example.home / "hww"
    edits = {
        "--adopt": (
            "physics.py",
            "    return _delta_phi(_lepton(events, 0), _lepton(events, 1))\n",
            "    first, second = _lepton(events, 0), _lepton(events, 1)\n    return _delta_phi(first, second)\n",
        ),
        "Prune": ("analysis.yaml", "#ff7f00", "#ff8c00"),
    }
    law("Report", "--analysis", str(folder))
    blocks = re.findall(r"^```console\n\$ law run (.*?)\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert [command.split()[-1] for command, _ in blocks] == [
        "training.learning_rate=0.003",
        "--yes",
        "--print-provenance",
        "Prune",
    ]
    for command, expected in blocks:
        arguments = shlex.split(command)
        for word in {*arguments} & edits.keys():
            name, *change = edits[word]
            replace(folder / name, *change)
        if arguments[0] == "Prune":
            law("Report", "--analysis", str(folder))
            printed = plain(law("Prune").stdout)
        else:
            printed = plain(law(*arguments, "--analysis", str(folder)).stdout)
        if "…" not in expected.splitlines():
            assert printed == plain(expected)
        for part in plain(expected):
            assert part == "…" or part in printed


# Floors of the first release; docs/performance.md has what was reached.
FLOORS = {"higgsml": (0.920, 0.875), "atlas_hww": (0.850, 0.840), "cms_tutorial": (0.885, 0.885)}


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("analysis", FLOORS)
def test_public_events_reach_the_floor_out_of_fold(analysis: str, data_folder: Path, tmp_path: Path) -> None:
    assert data_folder.is_dir()
    summary = summary_of(Law(tmp_path), analysis)
    auc = summary["metrics"]["out_of_fold"]["auc"]
    assert summary["scheme"] == "rotating"
    assert summary["folds"] == 5
    weighted, unweighted = FLOORS[analysis]
    assert auc["weighted"]["value"] >= weighted
    assert auc["unweighted"]["value"] >= unweighted
