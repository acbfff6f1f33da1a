"""What is made anew when something changes, and what stays: `law run` on a finished toy analysis."""

from __future__ import annotations

import json
from pathlib import Path

import uproot

from tests.test_edits import redone
from tests.toy import Law, ran, write_events


def outputs(law: Law, family: str) -> dict[Path, int]:
    """Files that a step has written, with the times of their modification."""
    return {p: p.stat().st_mtime_ns for p in (law.store / family).rglob("*") if p.is_file() and p.suffix != ".json"}


def write_no_events(path: Path) -> None:
    """A file with the branches of the others and no entries."""
    with uproot.recreate(path) as file:
        file.mktree("events", dict.fromkeys(("pt1", "pt2", "x", "truth"), "float64") | {"event": "int64"})


def entries_of(friend: Path) -> int:
    """Entries of a file of scores."""
    with uproot.open(friend) as file:
        return int(file["scores"].num_entries)


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
    single = dict.fromkeys(("ExportEnsemble", "EvaluateEnsemble", "WriteStatistics", "PlotResults", "Report"), 1)
    assert redone(law) == {"TrainFolds": 1, "ScoreEvents": 4, **single}
    counts = ran(law("ScoreEvents", "--analysis", law.analysis))
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
    """So is a file without entries among them, of which the summary speaks."""
    networks = outputs(law, "TrainFolds")
    write_events(law.home / "toy" / "data" / "other_0.root", 300, 2.0, seed=5, recorded=True)
    write_no_events(law.home / "toy" / "data" / "other_1.root")
    path = law.home / "toy" / "analysis.yaml"
    text = path.read_text().replace(
        "    signal: {files", "    other: {files: [other_*.root], collision: true}\n    signal: {files"
    )
    path.write_text(text.replace("classes:\n  signal", "  other: {data: [other]}\nclasses:\n  signal"))
    counts = ran(law("Report", "--analysis", law.analysis))
    assert counts == {"ListInputs": 2, "SelectEvents": 1, "ComputeFeatures (features)": 1, "ScoreEvents": 2}
    assert outputs(law, "TrainFolds") == networks
    summary = json.loads((law.results / "toy" / "summary.json").read_text())
    assert summary["yields"]["other"]["class"] is None
    assert summary["yields"]["other"]["yield"] == summary["yields"]["other"]["entries"] == 300
    assert any("other_1.root has no entries" in warning for warning in summary["warnings"])
    assert entries_of(law.results / "toy" / "scores" / "other_1.root") == 0


def test_a_file_without_entries_among_those_of_a_training_is_scored(law: Law) -> None:
    before = outputs(law, "ScoreEvents")
    write_no_events(law.home / "toy" / "data" / "signal_9.root")
    counts = ran(law("ScoreEvents", "--analysis", law.analysis))
    assert counts == {"ListInputs": 1, "TrainFolds": 3, "ScoreEvents": 5}
    made = outputs(law, "ScoreEvents").items() - before.items()
    assert sorted(entries_of(path) for path, _ in made) == [0, 500, 500, 500, 500]


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
