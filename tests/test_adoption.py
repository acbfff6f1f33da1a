"""--adopt: outputs of earlier code, declared valid for the code as it is now, and never silently."""

from __future__ import annotations

import getpass
import json
from pathlib import Path
from typing import Any

import pytest

from analysis.errors import UserError
from tests.toy import Law, ran
from workflow import adoption
from workflow.tasks import SelectEvents


def reorder(law: Law) -> None:
    """Change the code of a cut and of a feature's helper, and nothing that they make."""
    edit(law, "physics.py", "events.pt1 > 0", "0 < events.pt1")
    edit(law, "physics.py", "2 * values", "values * 2")


def edit(law: Law, name: str, old: str, new: str) -> None:
    path = law.home / "toy" / name
    assert path.read_text().count(old) == 1
    path.write_text(path.read_text().replace(old, new))


def state(law: Law) -> dict[Path, int]:
    """All files of the store and times of their modification, apart from what no output or address depends on."""
    aside = {law.store / "code", law.store / "names", law.store / "published"}
    files = [p for p in law.store.rglob("*") if p.is_file() and p.name not in ("run.json", "inventory.json")]
    return {p: p.stat().st_mtime_ns for p in files if not aside & set(p.parents)}


def lineage(law: Law) -> dict[str, str]:
    """The lines of --print-provenance, by step."""
    told = law("Report", "--analysis", law.analysis, "--print-provenance").stdout.splitlines()
    lines = (line.lstrip("│├└─ ") for line in told)
    return {step: text for step, found, text in (line.partition(": ") for line in lines) if found}


def test_outputs_of_changed_code_are_listed_adopted_and_found(law: Law) -> None:
    original = (law.home / "toy" / "physics.py").read_text()
    reorder(law)
    before = state(law)

    listed = law("Report", "--analysis", law.analysis, "--adopt", "put in order").stdout
    assert (
        '16 outputs would differ by nothing but code. Add --yes to declare them valid for it: "put in order"' in listed
    )
    assert "SelectEvents (signal signal_0.root from 0; " in listed
    assert "-    return events.pt1 > 0\n      +    return 0 < events.pt1" in listed
    assert "would still run" not in listed
    assert state(law) == before
    assert not (law.store / "adopted").exists()
    why = law("Report", "--analysis", law.analysis, "--why").stdout
    assert "function positive changed" in why
    assert "TrainFolds" in why

    told = law("Report", "--analysis", law.analysis, "--adopt", "put in order", "--yes").stdout
    assert '16 outputs adopted for the code as it is now: "put in order"' in told
    notes = [json.loads(path.read_text()) for path in (law.store / "adopted").glob("*.json")]
    assert sorted({(note["step"], note["differences"][0].split(":")[0]) for note in notes}) == [
        ("ComputeFeatures (features)", "function mass changed"),
        ("SelectEvents", "function positive changed"),
    ]
    done = law("Report", "--analysis", law.analysis)
    assert ran(done) == {}
    assert "AUC" in done.stdout
    after = {path: time for path, time in state(law).items() if "adopted" not in path.parts}
    changed = {path.name.split("-")[0].split(".")[0] for path in before if after[path] != before[path]}
    assert (after.keys(), changed) == (before.keys(), {"provenance"})

    steps = lineage(law)
    for step in ("SelectEvents", "ComputeFeatures (features)"):
        assert f"adopted by {getpass.getuser()}@" in steps[step], step
        assert steps[step].endswith(': "put in order"')
    assert not [s for s, text in steps.items() if "adopted" in text and not s.startswith(("SelectEv", "ComputeF"))]
    assert "adopted" not in steps["ComputeFeatures (factors)"]

    # What is removed is made anew where it was, and is adopted still.
    columns = sorted((law.store / "ComputeFeatures").rglob("mass-*.parquet"))
    events = sorted((law.store / "SelectEvents").rglob("events.parquet"))
    columns[0].unlink()
    events[-1].unlink()
    done = law("ComputeFeatures", "--analysis", law.analysis)
    assert ran(done) == {"SelectEvents": 1, "ComputeFeatures (features)": 2}
    assert sorted((law.store / "ComputeFeatures").rglob("mass-*.parquet")) == columns
    assert sorted((law.store / "SelectEvents").rglob("events.parquet")) == events
    assert "put in order" in json.dumps(json.loads((events[-1].parent / "provenance.json").read_text())["adopted"])

    (law.home / "toy" / "physics.py").write_text(original)
    why = law("Report", "--analysis", law.analysis, "--why").stdout
    assert why == "Report is complete: nothing would run.\n"


def test_a_changed_setting_or_input_is_nothing_to_adopt(law: Law) -> None:
    reorder(law)
    changed = ("--set", "folds.test_fraction=0.3", "--set", "data.sentinels={pt2: -8}")
    told = law("Report", "--analysis", law.analysis, *changed, "--adopt", "no matter", "--yes").stdout
    assert told == "Nothing to adopt: no earlier output differs from what would be made now by code alone.\n"
    assert not (law.store / "adopted").exists()


def test_a_changed_label_is_nothing_to_adopt(law: Law) -> None:
    edit(law, "physics.py", "second pT", "the second pT")
    told = law("Report", "--analysis", law.analysis, "--adopt", "no matter", "--yes").stdout
    assert "Nothing to adopt" in told


def test_an_adoption_is_noted_with_every_combination_of_columns(law: Law) -> None:
    more = ("--set", "features={first: [pt1], second: [pt2], both: [mass, ratio]}")
    law("ComputeFeatures", "--analysis", law.analysis, *more)
    edit(law, "physics.py", "2 * values", "values * 2")
    law("Report", "--analysis", law.analysis, "--adopt", "turned round", "--yes")
    (with_mass,) = {frozenset(notes(path)) for path in records(law, "mass-")}
    assert with_mass == {"turned round"}
    assert not [path for path in records(law, "generator_correction-") if notes(path)]


def records(law: Law, column: str) -> list[Path]:
    """Provenance of columns of one function."""
    found = (law.store / "ComputeFeatures").rglob("provenance-*.json")
    return [path for path in found if column in str(json.loads(path.read_text())["files"])]


def notes(record: Path) -> list[str]:
    """Why the outputs of a record were adopted."""
    return [note["why"] for note in json.loads(record.read_text())["adopted"]]


def test_outputs_whose_provenance_is_old_or_broken_are_not_adopted(law: Law) -> None:
    old, broken, empty, *others = sorted((law.store / "SelectEvents").rglob("provenance.json"))
    content = json.loads(old.read_text())
    old.write_text(json.dumps({key: content[key] for key in ("fingerprint", "title", "subject", "parts", "started")}))
    broken.write_text("{")
    empty.write_text("[]")
    edit(law, "physics.py", "events.pt1 > 0", "0 < events.pt1")
    told = law("SelectEvents", "--analysis", law.analysis, "--adopt", "put in order", "--yes").stdout
    assert f"{len(others)} outputs adopted" in told
    assert "3 other steps or branches would still run" in told
    why = law("SelectEvents", "--analysis", law.analysis, "--why").stdout
    assert why.count("SelectEvents (") == 2  # what can't be read never ran, what is old has changed
    assert "function positive changed" in why
    assert "never ran" in why
    assert lineage(law)["SelectEvents"].startswith(f"{len(others)} of 8 branches")


@pytest.mark.parametrize(
    "reason",
    [" ", ""],
)
def test_a_blank_reason_does_nothing(law: Law, reason: str) -> None:
    edit(law, "physics.py", "events.pt1 > 0", "0 < events.pt1")
    before = state(law)
    done = law("SelectEvents", "--analysis", law.analysis, "--adopt", reason, "--yes", ok=False)
    assert state(law) == before
    assert done.returncode != 0
    assert "reason" in done.stderr


def test_who_adopted_what_and_when_is_read_from_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENTFOLD_STORE", str(tmp_path))
    note = {"identity": "new", "address": "old", "who": "a@b", "when": "now", "why": "same"}
    (tmp_path / "adopted").mkdir()
    (tmp_path / "adopted" / "new.json").write_text(json.dumps(note))
    (tmp_path / "adopted" / "broken.json").write_text("{")
    assert (adoption.resolve("new"), adoption.resolve("other")) == ("old", "other")
    assert adoption.adopted("new") == {key: note[key] for key in ("identity", "who", "when", "why")}
    assert adoption.adopted("other") is None
    with pytest.raises(UserError, match=r"broken\.json can't be read: which output was adopted is not known"):
        adoption.resolve("broken")


def test_adopting_in_a_store_that_cannot_be_written_is_one_message(here: Law, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied", "provenance.json")

    edit(here, "physics.py", "events.pt1 > 0", "0 < events.pt1")
    monkeypatch.setattr(adoption, "atomic_write", refuse)
    monkeypatch.setattr(adoption, "_found", {})
    task = SelectEvents(analysis=here.analysis, branch=0)
    with pytest.raises(UserError, match=r"SelectEvents \(signal signal_0.root from 0\) can't be adopted: "):
        list(adoption.adopt(task, "put in order", declare=True))
