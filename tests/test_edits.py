"""One edit at a time, of physics, inputs or code: what depends on it is made anew, and going back finds all outputs."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import uproot

from tests.toy import Finished, Law, replace, write_events

ROOT = Path(__file__).resolve().parent.parent

LIST, SELECT, FOLDS, TRAIN, EXPORT = "ListInputs", "SelectEvents", "PrepareFolds", "TrainFolds", "ExportEnsemble"
FEATURES, FACTORS = "ComputeFeatures (features)", "ComputeFeatures (factors)"
SCORE, EVALUATE, STATISTICS, PLOT, REPORT = (
    "ScoreEvents",
    "EvaluateEnsemble",
    "WriteStatistics",
    "PlotResults",
    "Report",
)
AFTER_TRAINING = {EXPORT, SCORE, EVALUATE, STATISTICS, PLOT, REPORT}
AFTER_FEATURES = {FOLDS, TRAIN, *AFTER_TRAINING}
AFTER_SELECTION = {FEATURES, FACTORS, *AFTER_FEATURES}
NOTHING: set[str] = set()


@pytest.fixture(scope="module")
def sandbox(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Law:
    """A copy of the finished toy analysis and of the project, in which files can be edited."""
    home = tmp_path_factory.mktemp("edits") / "home"
    shutil.copytree(finished.law.home, home, symlinks=True)
    shutil.rmtree(home / "store" / "names")
    project = home / "project"
    for room in ("analysis", "models", "workflow"):
        shutil.copytree(ROOT / room, project / room, ignore=shutil.ignore_patterns("__pycache__"))
    return Law(home, project=project)


def redone(law: Law, step: str = "Report", *arguments: str) -> dict[str, int]:
    """Branches of each step that would run, as `--why` says."""
    counts = {}
    for line in law(step, "--analysis", law.analysis, "--why", *arguments).stdout.splitlines():
        found = re.match(r"(\w+(?: \(\w+\))?) \((.*?)\): ", line)
        if found:
            more = re.search(r" and (\d+) more$", found[2])
            counts[found[1]] = counts.get(found[1], 0) + len(found[2].split("; ")) + (int(more[1]) if more else 0)
    return counts


def edited(path: str, old: str, new: str) -> Callable[[Law], None]:
    """Edit a file of the analysis (`toy/…`) or of the project."""
    return lambda law: replace((law.home if path.startswith("toy") else law.home / "project") / path, old, new)


def copied(law: Law) -> None:
    """Put a copy of a file in its place, with another time of modification."""
    path = law.home / "toy" / "data" / "signal_0.root"
    shutil.copyfile(path, path.with_name("copy"))
    path.with_name("copy").replace(path)


def rewritten(shift: float) -> Callable[[Law], None]:
    """Write a file anew, with the content that it had (shift 5) or with another."""
    return lambda law: write_events(law.home / "toy" / "data" / "signal_0.root", 500, shift, seed=1)


def added(law: Law) -> None:
    """Add a data set that no class holds."""
    write_events(law.home / "toy" / "data" / "other_0.root", 300, 2.0, seed=5)
    path = law.home / "toy" / "analysis.yaml"
    replace(path, "    signal: {files", "    other: {files: [other_*.root]}\n    signal: {files")
    replace(path, "classes:\n  signal", "  other: {data: [other], normalisation: {sum_to: 10.0}}\nclasses:\n  signal")


# What is edited, which steps follow, and how many branches of some of them.
EDITS: dict[str, tuple[Callable[[Law], None], set[str], dict[str, int]]] = {
    "a feature": (
        edited("toy/physics.py", "return events.pt2", "return 1.5 * events.pt2"),
        {FEATURES, *AFTER_FEATURES},
        {FEATURES: 8, FOLDS: 1, TRAIN: 3, SCORE: 4},
    ),
    "a helper of a feature": (
        edited("toy/physics.py", "return 2 * values", "return 3 * values"),
        {FEATURES, *AFTER_FEATURES},
        {FEATURES: 8},
    ),
    "a comment in a feature": (
        edited("toy/physics.py", "    return events.pt2", '    """Of the second."""\n    return events.pt2  # GeV'),
        NOTHING,
        {},
    ),
    "a feature that is not used": (
        edited("toy/physics.py", "return events.x / ", "return 2 * events.x / "),
        NOTHING,
        {},
    ),
    "a label": (edited("toy/physics.py", "second pT", "sub-leading pT"), {PLOT, REPORT}, {PLOT: 1}),
    "a cut": (
        edited("toy/physics.py", "return events.pt1 > 0", "return events.pt1 > 1"),
        {SELECT, *AFTER_SELECTION},
        {SELECT: 8, FEATURES: 8, FACTORS: 8},
    ),
    "a weight factor": (
        edited("toy/physics.py", "1 + 0.1 * events.truth", "1 + 0.2 * events.truth"),
        {FACTORS, *AFTER_FEATURES},
        {FACTORS: 8},
    ),
    "an input, copied": (copied, NOTHING, {}),
    "an input, rewritten with the same content": (
        rewritten(5.0),
        {LIST, SELECT, *AFTER_SELECTION},
        {LIST: 1, SELECT: 2, FEATURES: 2, FACTORS: 2, FOLDS: 1, TRAIN: 3, SCORE: 4},
    ),
    "an input, rewritten with other content": (
        rewritten(4.0),
        {LIST, SELECT, *AFTER_SELECTION},
        {LIST: 1, SELECT: 2, FEATURES: 2, FACTORS: 2, FOLDS: 1, TRAIN: 3, SCORE: 4},
    ),
    "a data set that no class holds, added": (
        added,
        {LIST, SELECT, FEATURES, FACTORS, SCORE, EVALUATE, STATISTICS, PLOT, REPORT},
        {LIST: 1, SELECT: 1, FEATURES: 1, FACTORS: 1, SCORE: 1},
    ),
    "the model": (
        edited("models/losses.py", "import torch\n", "import torch\n\nSTRENGTH = 1.0\n"),
        {TRAIN, *AFTER_TRAINING},
        {TRAIN: 3, SCORE: 4},
    ),
    "a comment in the model": (
        edited("models/losses.py", "import torch\n", "import torch  # for tensors\n"),
        NOTHING,
        {},
    ),
    "a plot": (
        edited("analysis/plots.py", "\n\ndef make_plots(", "\n\nSCALE = 1.0\n\n\ndef make_plots("),
        {PLOT, REPORT},
        {PLOT: 1},
    ),
    "the report's page": (
        edited("analysis/templates/report.html.j2", "</body>", "<!-- end --></body>"),
        {REPORT},
        {REPORT: 1},
    ),
    "a metric": (
        edited("analysis/metrics.py", "\nEFFICIENCIES = ", "\nONE = 1\nEFFICIENCIES = "),
        {EVALUATE, STATISTICS, PLOT, REPORT},
        {},
    ),
    "the code of a step": (
        edited("workflow/tasks/statistics.py", "channel.name: channel.clipped", "channel.name: dict(channel.clipped)"),
        {STATISTICS, REPORT},
        {STATISTICS: 1},
    ),
    "how messages are worded": (edited("analysis/errors.py", "Valid names", "Valid words"), NOTHING, {}),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_makes_anew_what_depends_on_it(sandbox: Law, name: str) -> None:
    edit, steps, branches = EDITS[name]
    folders = (sandbox.home / "toy", sandbox.home / "project")
    before = {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}
    try:
        edit(sandbox)
        found = redone(sandbox)
    finally:
        for folder in folders:
            for path in folder.rglob("*"):
                if path.is_file() and path not in before:
                    path.unlink()
        for path, content in before.items():
            if path.read_bytes() != content:
                path.write_bytes(content)
    assert set(found) == steps
    assert {step: found[step] for step in branches} == branches
    if LIST in steps:
        # Back to where the outputs are, though times of modification differ. What other edits left would show in the
        # tests that follow, up to the last one, as nothing is made anew.
        assert redone(sandbox) == {}


def test_a_simulated_file_that_was_deleted_is_made_again_and_orphans_nothing(tmp_path: Path) -> None:
    """ROOT draws a new UUID at every write: what follows is made again under its old address."""
    law = Law(tmp_path)
    scale = "data.simulation.scale=0.002"
    arguments = ("SelectEvents", "--analysis", "hww", "--set", scale, "--branches", "0,1,14")
    law(*arguments)
    (first, *others) = sorted((law.store / "SimulateEvents").glob("*/*/events.root"))
    before = {path for path in law.store.rglob("*") if path.is_file()}
    events = {path: path.read_bytes() for path in (law.store / "SelectEvents").glob("*/*/*.parquet")}
    with uproot.open(first) as file:
        uuid = file.file.uuid
    first.unlink()
    lines = law(*arguments, "--why").stdout.splitlines()
    part = f"{first.parent.parent.name} part "
    assert [line.split(": ")[1] for line in lines] == [
        "its output events.root was removed",
        *["what it stands on is made anew"] * 2,
    ]
    assert all(line.split("(")[1].startswith(first.parent.parent.name) for line in lines)
    assert part in lines[0]
    law(*arguments)
    with uproot.open(first) as file:
        assert file.file.uuid != uuid
    assert {path for path in law.store.rglob("*") if path.is_file()} == before
    assert {path: path.read_bytes() for path in events} == events
    assert len(others) == 2


def test_files_that_change_places_show_where_their_names_count(sandbox: Law) -> None:
    """A file is known by what it is; but the report's links are by name, as is the order in which duplicates drop."""
    data = sandbox.home / "toy" / "data"
    one, two, aside = data / "signal_0.root", data / "signal_1.root", data / "aside"

    def swap() -> None:
        for old, new in ((one, aside), (two, one), (aside, two)):
            old.rename(new)

    dropping = ("--set", "identity.duplicates=drop")
    sandbox("PrepareFolds", "--analysis", sandbox.analysis, *dropping)
    assert redone(sandbox, "PrepareFolds", *dropping) == {}
    swap()
    try:
        assert redone(sandbox) == {REPORT: 1}
        assert redone(sandbox, "PrepareFolds", *dropping) == {FOLDS: 1}
    finally:
        swap()
    assert redone(sandbox) == {}
