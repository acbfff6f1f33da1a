"""Prune: what nobody reaches is listed and goes whole; what is released is made again when something needs it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from analysis.errors import UserError
from tests.toy import Law, ran
from workflow import lineage, pruning
from workflow.store import LEFT_OVER
from workflow.tasks import ComputeFeatures, PrepareFolds, Prune, Report, ScoreEvents, SelectEvents

NOTHING = "All outputs are reached: there is nothing to prune."
INTERMEDIATE = ("SelectEvents", "ComputeFeatures", "PrepareFolds")


def edit(law: Law, old: str, new: str) -> None:
    """Change the configuration."""
    path = law.home / "toy" / "analysis.yaml"
    assert path.read_text().count(old) == 1
    path.write_text(path.read_text().replace(old, new))


def know(law: Law, *overrides: str) -> Any:
    """The main task of the analysis as it is configured now; it is in the register of the store from then on."""
    task = Report(analysis=law.analysis, set=overrides)
    assert task.plan
    return task


@pytest.fixture
def prune(here: Law, capsys: pytest.CaptureFixture[str]) -> Any:
    """`law run Prune` within this process: `prune(yes=True)` returns the lines."""
    assert here

    def run(**parameters: Any) -> list[str]:
        capsys.readouterr()
        Prune(**parameters).run()
        return capsys.readouterr().out.splitlines()

    return run


def files(law: Law) -> set[Path]:
    """All outputs and provenance in the store."""
    aside = {law.store / name for name in pruning.HOUSEKEEPING} | {law.store}
    return {p for p in law.store.rglob("*") if p.parent not in aside and (p.is_symlink() or not p.is_dir())}


def contents(law: Law) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in files(law) if path.is_file()}


def steps(paths: set[Path], law: Law) -> set[str]:
    return {path.relative_to(law.store).parts[0] for path in paths}


def unpublish(law: Law, name: str = "toy") -> None:
    (law.results / name).unlink()


def test_an_experiment_goes_with_its_link(law: Law) -> None:
    law("Report", "--analysis", law.analysis)
    reference = files(law)
    law("Report", "--analysis", law.analysis, "--set", "title=An experiment")
    (link,) = law.results.glob("toy@*")
    outputs = files(law) - reference
    assert steps(outputs, law) == {"Report"}
    told = law("Prune", "--yes").stdout
    assert NOTHING in told
    assert f"Reached: toy ({law.analysis}); {law.results / 'toy'}; {link}" in told
    size = f"{sum(path.lstat().st_size for path in outputs) / 1e6:.1f} MB"
    os.utime(link / "run.json", (0, 1e9))
    link.unlink()
    for arguments in ((), ("--keep-last", "1", "--yes")):
        told = law("Prune", *arguments).stdout
        assert ("Report  toy  1 output  " in told) == (not arguments)
        assert (NOTHING in told) == bool(arguments)
    assert files(law) == reference | outputs
    told = law("Prune").stdout
    assert "last used 2001-09-09T01:46:40Z" in told
    assert f"Not reached: 1 output, {size}. Add --yes to delete them." in told
    told = law("Prune", "--yes").stdout
    assert f"Deleted: 1 output, {size}." in told
    assert files(law) == reference
    assert sorted(path.name for path in (law.store / "Report" / "toy").iterdir()) == [
        (law.results / "toy").resolve().name
    ]
    assert ran(law("Report", "--analysis", law.analysis)) == {}


def test_published_results_outlive_an_edited_configuration(here: Law, prune: Any) -> None:
    edit(here, "epochs: 3", "epochs: 4")
    know(here)
    before = files(here)
    assert NOTHING in prune(yes=True)
    assert files(here) == before
    for name in ("report.html", "ensemble.onnx", "plots/roc.png", "scores/signal_1.root"):
        assert (here.results / "toy" / name).is_file(), name

    unpublish(here)
    (here.store / "code" / "0123.py").write_text("nobody names it\n")
    (here.store / "code" / "notes").mkdir()
    told = prune()
    assert [line.split()[0] for line in told[:6]] == [
        "EvaluateEnsemble", "ExportEnsemble", "PlotResults", "Report", "ScoreEvents", "ScoreEvents",
    ]  # fmt: skip
    assert files(here) == before
    told = prune(yes=True)
    after = files(here)
    assert steps(after, here) == {"ListInputs", *INTERMEDIATE}
    gone = before - after
    assert not steps(gone, here) & steps(after, here)
    assert not [path for path in here.store.rglob("*") if steps({path}, here) <= steps(gone, here)]
    named = json.dumps([json.loads(path.read_text())["parts"] for path in here.store.rglob("provenance*.json")])
    assert all(path.stem in named for path in (here.store / "code").glob("*.py"))
    assert (here.store / "code" / "notes").is_dir()
    assert NOTHING in prune(yes=True)


def test_a_renamed_link_is_a_published_result_still(here: Law, prune: Any) -> None:
    edit(here, "epochs: 3", "epochs: 4")
    know(here)
    (here.results / "toy").rename(here.results / "thesis")
    assert NOTHING in prune(yes=True)
    assert (here.results / "thesis" / "scores" / "signal_1.root").is_file()

    elsewhere = here.home / "elsewhere"  # $EVENTFOLD_RESULTS of another day
    here.results.rename(elsewhere)
    pruning.note_publication(elsewhere / "toy")
    assert NOTHING in prune(yes=True)
    (elsewhere / "thesis").unlink()
    assert any(line.startswith("Deleted: ") for line in prune(yes=True))
    assert not list((here.store / "published").iterdir())


def test_what_a_link_was_replaced_by_is_left_alone(here: Law, prune: Any) -> None:
    know(here)
    copy = here.results / "copy"
    shutil.copytree(here.results / "toy", copy)
    unpublish(here)
    (here.results / "toy").symlink_to(copy)
    (here.results / "broken").symlink_to(here.store / "Report" / "toy" / "0123456789abcdef")
    (here.results / "loop").symlink_to(here.results / "loop")
    pruning.note_publication(here.results / "toy")
    before = files(here)
    assert NOTHING in prune(yes=True)  # the analysis reaches all
    assert files(here) == before
    assert (copy / "report.html").is_file()


def columns(law: Law) -> set[str]:
    return {path.name.split("-")[0] for path in (law.store / "ComputeFeatures").rglob("*.parquet")}


def test_columns_that_another_combination_shares_survive(here: Law, prune: Any) -> None:
    edit(here, "  both: [mass]\n", "")
    task = know(here)
    unpublish(here)
    prune(yes=True)
    assert columns(here) == {"pt1", "pt2", "generator_correction"}
    assert NOTHING in prune(yes=True)
    assert all(step.present() for step in lineage.walk(task) if step.task_family in ("SelectEvents", "ComputeFeatures"))
    # What is known of how they were made stays with them.
    features = [step for step in lineage.walk(task) if step.title == "ComputeFeatures (features)"]
    assert all(lineage.records_of(step) for step in features)


def test_columns_of_a_combination_that_was_never_made_survive(here: Law, prune: Any) -> None:
    edit(here, "both: [mass]", "both: [mass, ratio]")
    know(here)
    unpublish(here)
    prune(yes=True)
    assert columns(here) == {"pt1", "pt2", "mass", "generator_correction"}


def test_a_combination_without_provenance_of_its_own_stands_on_that_of_its_columns(here: Law) -> None:
    edit(here, "  both: [mass]\n", "")
    step = ComputeFeatures(analysis=here.analysis, group="features").as_branch(0)
    assert step.present()
    assert not step.record.exists()
    (record,) = lineage.records_of(step)
    assert len(record["files"]) == 3
    (line,) = (line for line in lineage.tree(step) if line.startswith("ComputeFeatures"))
    assert "no record" not in line
    (step.folder / record["files"][0]).unlink()
    step.path(step.files()[0]).unlink(missing_ok=True)
    assert lineage.records_of(step) == []


def break_key(law: Law) -> str:
    edit(law, "epochs: 3", "epoch: 3")
    return r"What the analysis 'toy' in .* reaches is not known.*unknown key training\.epoch"


def break_data(law: Law) -> str:
    shutil.rmtree(law.home / "toy" / "data")
    return "reaches is not known.*toy/data does not exist"


def break_register(law: Law) -> str:
    (law.store / "names" / "other.json").write_text("{")
    return r"other\.json can't be read"


def break_publication(law: Law) -> str:
    (law.results / "toy").resolve().joinpath("run.json").write_text("{")
    return r"toy/run\.json can't be read: what these results stand on is not known"


@pytest.mark.parametrize("mistake", [break_key, break_data, break_register, break_publication])
def test_nothing_is_deleted_while_it_is_not_known_what_is_reached(here: Law, prune: Any, mistake: Any) -> None:
    (here.store / "names").mkdir()
    (here.store / "names" / "toy.json").write_text(json.dumps({"folder": here.analysis}))
    before = files(here)
    with pytest.raises(UserError, match=mistake(here)):
        prune(yes=True)
    assert files(here) == before


def test_of_an_analysis_that_is_gone_published_results_stay(here: Law, prune: Any) -> None:
    know(here)
    before = files(here)
    shutil.rmtree(here.home / "toy")
    told = prune(yes=True)
    assert f"The analysis toy is gone ({here.analysis}): nothing of it is reached but published results." in told
    assert files(here) == before
    unpublish(here)
    prune(yes=True)
    assert files(here) == set()
    assert {path.name for path in here.store.iterdir()} <= {*pruning.HOUSEKEEPING, "inventory.json"}
    assert {path.suffix for path in (here.store / "code").iterdir()} <= {".json"}  # modules as they were parsed


def test_nothing_is_deleted_while_a_run_is_at_work(here: Law, prune: Any) -> None:
    edit(here, "epochs: 3", "epochs: 4")
    know(here)
    unpublish(here)
    before = files(here)
    script = "from workflow import claims\nclaims.announce()\nprint('at work', flush=True)\ninput()\n"
    run = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert run.stdout is not None
        run.stdout.readline()
        for parameters in ({}, {"release": ("SelectEvents",)}):
            with pytest.raises(UserError, match=rf"Nothing was deleted: a run is at work .*-{run.pid}\)"):
                prune(yes=True, **parameters)
        assert any(line.startswith("Not reached: ") for line in prune())
    finally:
        run.kill()
        run.communicate()
    assert files(here) == before
    assert any(line.startswith("Deleted: ") for line in prune(yes=True))


def age(path: Path) -> Path:
    """Make a file or folder more than a day old."""
    os.utime(path, (time.time() - LEFT_OVER - 60,) * 2)
    return path


def test_leftovers_of_killed_runs_go_and_foreign_files_stay(here: Law, prune: Any) -> None:
    know(here)
    before = files(here)
    folder = next((here.store / "SelectEvents" / "signal").iterdir())
    for name in (".stage-old", ".stage-new"):
        (folder / name).mkdir()
        (folder / name / "events.parquet").write_bytes(b"half")
    age(folder / ".stage-old")
    bare = here.store / "SelectEvents" / "signal" / "0123456789abcdef"
    bare.mkdir()
    (bare / ".lease").touch()
    age(bare / ".lease")
    (here.store / "mine" / "thesis" / "plots").mkdir(parents=True)
    foreign = [here.store / "mine/thesis/plots/a.png", here.store / "mine/thesis/b.txt", here.store / "c.txt"]
    foreign.append(here.store / "SelectEvents" / "notes.txt")
    for path in foreign:
        path.write_text("mine")
        age(path)
    told = prune()
    assert told[0].startswith("SelectEvents  signal  2 outputs  4 B  last used ")
    prune(yes=True)
    assert files(here) == before | {folder / ".stage-new" / "events.parquet", *foreign} - {here.store / "c.txt"}
    assert (here.store / "c.txt").exists()
    assert not bare.exists()
    assert NOTHING in prune(yes=True)


def test_what_an_earlier_version_made_or_nobody_can_read_is_left_alone(here: Law, prune: Any) -> None:
    edit(here, "epochs: 3", "epochs: 4")
    know(here)
    unpublish(here)
    (network, broken, empty) = sorted((here.store / "TrainFolds").rglob("provenance.json"))
    content = json.loads(network.read_text())
    for key in ("files", "record", "label", "step", "adopted"):
        del content[key]
    network.write_text(json.dumps(content))
    broken.write_text('{"files": ')
    empty.write_text("[]")
    run = next((here.store / "Report").rglob("run.json"))
    report = json.loads(run.read_text())
    report["steps"] = [{key: step[key] for key in ("step", "label", "fingerprint")} for step in report["steps"]]
    run.write_text(json.dumps(report))
    told = prune(yes=True)
    assert any(line.startswith("Left alone, as provenance can't be read or is of an earlier version: 3 outputs, such")
               for line in told)  # fmt: skip
    assert any(line.startswith("Deleted: ") for line in told)
    for record in (network, broken, empty):
        assert (record.parent / "network.safetensors").exists()
    assert not (here.store / "Report").exists()
    assert (here.store / "code" / f"{content['parts']['code']}.py").exists()


def test_what_cannot_be_deleted_is_one_message(here: Law, prune: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    edit(here, "epochs: 3", "epochs: 4")
    know(here)
    unpublish(here)
    monkeypatch.setattr(pruning, "_remove", refuse)
    with pytest.raises(UserError, match=r"Not all could be deleted: .*Permission denied"):
        prune(yes=True)


def test_what_runs_have_left_goes_though_all_outputs_are_reached(here: Law, prune: Any) -> None:
    log = here.store / "jobs" / "TrainFolds" / "0123456789abcdef" / "1.log"
    log.parent.mkdir(parents=True)
    log.write_text("ten bytes.")
    told = prune()
    assert NOTHING in told
    assert "Not reached: 0 outputs, 0 B; logs, copies of code and environments of jobs, 10 B. " in " ".join(told)
    assert log.exists()
    assert any(line.startswith("Deleted: 0 outputs") for line in prune(yes=True))
    assert not log.exists()
    assert prune(yes=True)[-1] == NOTHING


def test_an_empty_store_has_nothing_to_prune(tmp_path: Path) -> None:
    told = Law(tmp_path)("Prune", "--yes").stdout
    assert told.splitlines() == ["Reached: nothing", NOTHING]


def test_only_intermediate_steps_are_released(law: Law) -> None:
    done = law("Prune", "--release", "SelectedEvents,TrainFolds", "--yes", ok=False)
    assert done.returncode != 0
    assert done.stderr.count("--release SelectedEvents: no such step can be released. Did you mean 'SelectEvents") == 1
    assert "Traceback" not in done.stderr


def test_released_outputs_are_made_again_when_something_needs_them(law: Law) -> None:
    law("ListInputs", "--analysis", law.analysis)  # the store knows the analysis
    before = contents(law)
    told = law("Prune", "--release", ",".join(INTERMEDIATE)).stdout
    assert "To be released: 25 outputs, " in told
    assert contents(law) == before
    told = law("Prune", "--release", ",".join(INTERMEDIATE), "--yes").stdout
    assert "Released: 25 outputs, " in told
    gone = before.keys() - files(law)
    assert steps(gone, law) == set(INTERMEDIATE)
    assert not [path for path in gone if path.name.startswith("provenance")]
    assert "nothing would run" in law("Report", "--analysis", law.analysis, "--why").stdout
    assert "There is nothing to release." in law("Prune", "--release", "SelectEvents").stdout
    assert NOTHING in law("Prune", "--yes").stdout

    experiment = ("TrainFolds", "--analysis", law.analysis, "--set", "training.epochs=2")
    why = law(*experiment, "--why").stdout
    assert why.count("its output was released and is needed again") == 4
    counts = ran(law(*experiment))
    assert counts.pop("TrainFolds") == 3
    assert counts == {"SelectEvents": 8, "ComputeFeatures (features)": 8, "ComputeFeatures (factors)": 8}
    again = {path: path.read_bytes() for path in gone if path.suffix in (".npy", ".parquet")}
    assert again == {path: before[path] for path in again}
    others = {path for path in before if path.name == "friend.root" or path.suffix in (".onnx", ".safetensors")}
    assert {path: path.read_bytes() for path in others} == {path: before[path] for path in others}
    assert not [path for path in law.store.rglob("provenance*.json") if "released" in json.loads(path.read_text())]
    assert "nothing would run" in law("Report", "--analysis", law.analysis, "--why").stdout


def test_of_an_analysis_that_is_not_complete_nothing_is_released(here: Law, prune: Any) -> None:
    edit(here, "epochs: 3", "epochs: 4")
    know(here)
    before = files(here)
    told = prune(release=INTERMEDIATE, yes=True)
    assert "The analysis toy is not complete: what it reaches is left alone." in told
    assert "There is nothing to release." in told
    assert files(here) == before


def test_columns_without_provenance_of_their_own_are_not_released(here: Law, prune: Any) -> None:
    task = know(here)
    folder = next((here.store / "ComputeFeatures" / "signal").iterdir())
    names = {path.name for path in folder.glob("*.parquet")}
    for path in folder.glob("provenance-*.json"):
        path.unlink()
    told = prune(release=("ComputeFeatures",), yes=True)
    assert told[-1].startswith("Released: 14 outputs, ")
    assert {path.name for path in folder.glob("*.parquet")} == names
    assert len(list((here.store / "ComputeFeatures").rglob("*.parquet"))) == len(names)
    assert task.complete()


def test_all_combinations_of_released_columns_count_as_released(here: Law) -> None:
    step = ComputeFeatures(analysis=here.analysis, group="features").as_branch(0)
    other = json.loads(step.record.read_text())
    other["files"] = other["files"][:1]
    beside = step.record.with_name("provenance-0123456789abcdef.json")
    beside.write_text(json.dumps(other))
    factors = ComputeFeatures(analysis=here.analysis, group="factors").as_branch(0)
    pruning.release(step)
    assert (step.present(), step.released(), step.standing()) == (False, True, True)
    assert json.loads(beside.read_text())["released"].keys() == {"who", "when"}
    assert (factors.present(), factors.released()) == (True, False)


def test_all_branches_get_back_what_was_released(here: Law, prune: Any) -> None:
    know(here)
    prune(release=("ComputeFeatures",), yes=True)
    assert not ScoreEvents(analysis=here.analysis, set=("training.epochs=2",)).complete()
    step = ComputeFeatures(analysis=here.analysis, set=("training.epochs=2",), group="features")
    assert [branch.complete() for branch in step.get_branch_tasks().values()] == [False] * 8


def test_a_released_output_is_complete_until_something_needs_it(here: Law, prune: Any) -> None:
    task = know(here)
    prune(release=("SelectEvents", "PrepareFolds"), yes=True)
    pool, events = PrepareFolds.req(task), SelectEvents(analysis=here.analysis, branch=0)
    assert task.complete()
    assert pool.complete()
    assert events.complete()
    pool.want_requirements()
    assert pool.complete()
    assert not events.complete()
    assert events.reasons() == ["its output was released and is needed again"]
