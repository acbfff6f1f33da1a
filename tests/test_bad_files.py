"""Bad input files: each ends the run, or is skipped as if the analysis had never listed it (`data.on_bad_file`)."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import uproot

import analysis.damage
import analysis.events
from analysis.config import Data, DataSet, GeneratedSum, load_analysis
from analysis.damage import check_file
from analysis.errors import UserError
from tests.test_edits import redone
from tests.toy import ROOT, Law, ran, replace, toy, write_events
from workflow.plan import Plan, SkippedFile
from workflow.tasks.report import warnings_of_skipped

Damage = Callable[[Path], None]


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def overwrite(path: Path) -> None:
    path.write_bytes(b"<html>404 Not Found</html>")


def rename_tree(path: Path) -> None:
    with uproot.recreate(path) as file:
        file["other"] = {"x": np.zeros(3)}


def first_piece(path: Path, name: str = "x", tree: str = "events") -> tuple[int, int]:
    """Where the last compressed bytes of a branch or field are in a file."""
    with uproot.open(path) as file:
        found = file[tree]
        if hasattr(found, "page_link_list"):
            number = found.keys().index(name)
            locator = found.page_link_list[-1][number].pages[-1].locator
            return int(locator.offset), int(locator.num_bytes)
        branch = found[name]
        last = branch.num_baskets - 1
        start, size = int(branch.member("fBasketSeek")[last]), int(branch.basket_compressed_bytes(last))
        return start + 100, size - 100  # what goes before is the basket's key


def corrupt(path: Path) -> None:
    """Flip bytes within a compressed basket: UUID, length, tree and entries stay."""
    start, size = first_piece(path)
    content = bytearray(path.read_bytes())
    for position in range(start + size // 2, start + size // 2 + 8):
        content[position] ^= 0x5A
    path.write_bytes(content)


DAMAGES: dict[str, tuple[Damage, str]] = {
    "truncated": (truncate, "is truncated: "),
    "empty": (empty, "is empty (0 bytes)"),
    "garbage": (overwrite, "is not a ROOT file: it begins with b'<htm', but b'root' was expected"),
    "tree": (rename_tree, "holds no tree 'events'"),
    "corrupt": (corrupt, "is damaged in field 'x', cluster 0: "),
}


@pytest.fixture
def make_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """Open a toy analysis of two signal and two background files, in whatever state they are."""
    toy(tmp_path / "toy")
    monkeypatch.setenv("EVENTFOLD_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("TOY_DATA", str(tmp_path / "toy" / "data"))

    def make(*overrides: str, on_bad_file: str = "skip") -> Plan:
        return Plan(load_analysis(str(tmp_path / "toy"), (f"data.on_bad_file={on_bad_file}", *overrides)))

    return make


@pytest.fixture
def signal(tmp_path: Path) -> Path:
    """The file that goes bad, the first of its data set."""
    return tmp_path / "toy" / "data" / "signal_0.root"


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_bad_file_is_skipped_with_its_reason(make_plan: Callable[..., Plan], signal: Path, kind: str) -> None:
    damage, said = DAMAGES[kind]
    damage(signal)
    plan = make_plan()
    assert [file.key for file in plan.files] == ["signal_1.root", "background_0.root", "background_1.root"]
    assert {chunk.file.key for chunk in plan.chunks} == {file.key for file in plan.files}
    assert [(file.dataset, file.key) for file in plan.skipped] == [("signal", "signal_0.root")]
    assert plan.skipped[0].reason.startswith(said)
    assert str(signal.parent) not in plan.skipped[0].reason


@pytest.mark.parametrize("kind", [kind for kind in DAMAGES if kind != "corrupt"])
def test_by_default_a_bad_file_stops_the_run(make_plan: Callable[..., Plan], signal: Path, kind: str) -> None:
    damage, said = DAMAGES[kind]
    damage(signal)
    assert Data(format="flat", tree="events", datasets={"a": DataSet(files=("b",))}).on_bad_file == "stop"
    make_plan().files  # noqa: B018 -- what is remembered of a skipped file must not let it pass here
    with pytest.raises(UserError) as raised:
        make_plan(on_bad_file="stop").files  # noqa: B018
    assert str(raised.value).startswith(f"{signal} {said}")
    assert "set data.on_bad_file to skip" in str(raised.value)


def test_what_is_no_damage_of_a_file_is_never_skipped(make_plan: Callable[..., Plan], signal: Path) -> None:
    """A file that is not there, or a folder, is a mistake of the configuration or of a disk."""
    with pytest.raises(UserError, match=r"signal_7\.root does not exist"):
        make_plan("data.datasets.signal.files=[signal_0.root, signal_7.root]").files  # noqa: B018
    signal.unlink()
    signal.mkdir()
    with pytest.raises(UserError, match=r"signal_0\.root is a folder"):
        make_plan().files  # noqa: B018


@pytest.mark.parametrize(
    ("error", "damage"),
    [
        (OSError(5, "Input/output error"), False),
        (PermissionError(13, "Permission denied"), False),
        (TimeoutError("too slow"), False),
        (MemoryError(), False),
        (OSError("expected Chunk of length 8"), True),
        (ValueError("computed checksum differs"), True),
    ],
)
def test_a_disk_that_fails_is_no_bad_file(error: Exception, damage: bool) -> None:
    def read(path: str) -> UserError:
        with pytest.raises(UserError) as raised, analysis.events.reading(path, "can't be read"):
            raise error
        return raised.value

    assert bool(read("/data/a.root").damage) == damage
    assert bool(read("root://host//a.root").damage) == (damage and not isinstance(error, OSError))


def test_all_files_bad_is_an_error(make_plan: Callable[..., Plan], signal: Path) -> None:
    truncate(signal)
    overwrite(signal.with_name("signal_1.root"))
    with pytest.raises(UserError) as raised:
        make_plan().files  # noqa: B018
    assert str(raised.value).startswith(f"Data set 'signal': {signal} is truncated")
    assert "None of its files is good" in str(raised.value)


def test_a_declared_sum_of_weights_forbids_skipping(make_plan: Callable[..., Plan], signal: Path) -> None:
    """The number counts the events of the bad file too: yields would come out too low."""
    declared = "data.datasets.signal.generated=1000.0"
    assert make_plan(declared).skipped == ()
    truncate(signal)
    with pytest.raises(UserError, match=r"generated is a number, which counts this file's events too"):
        make_plan(declared).files  # noqa: B018


def test_a_file_is_read_in_full_once(
    make_plan: Callable[..., Plan], signal: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read: list[str] = []

    def check(path: str, tree: str, generated: GeneratedSum | None) -> None:
        read.append(Path(path).name)
        check_file(path, tree, generated)

    monkeypatch.setattr(analysis.damage, "check_file", check)
    names = ["background_0.root", "background_1.root", "signal_0.root", "signal_1.root"]
    make_plan(on_bad_file="stop").files  # noqa: B018
    assert read == []
    corrupt(signal)
    for _ in range(2):
        capsys.readouterr()
        assert [file.key for file in make_plan().skipped] == ["signal_0.root"]
        said = capsys.readouterr().err
        assert said.count(f"skipped (1 of 2 files of data set signal): {signal} is damaged in field 'x'") == 1
        assert sorted(read) == names
    assert "in full" not in said

    # Another sum of generated weights is a further question to the file; the answer to the first stays.
    with pytest.raises(UserError, match="None of its files is good"):
        make_plan("data.generated={tree: Runs, branch: sumw}").files  # noqa: B018
    read.clear()
    make_plan(on_bad_file="stop").files  # noqa: B018
    assert [file.key for file in make_plan().skipped] == ["signal_0.root"]
    assert read == []

    # What was read before an error is not read again, and a missing file is said before any is.
    for path in signal.parent.iterdir():
        path.touch()
    with pytest.raises(UserError, match=r"signal_7\.root does not exist"):
        make_plan("data.datasets.signal.files=[signal_0.root, signal_7.root]").files  # noqa: B018
    assert read == []

    def fail(path: str, _tree: str, _generated: GeneratedSum | None) -> None:
        if path.endswith("background_1.root"):
            raise UserError("the server is gone")

    monkeypatch.setattr(analysis.damage, "check_file", fail)
    with pytest.raises(UserError, match="the server is gone"):
        make_plan().files  # noqa: B018
    monkeypatch.setattr(analysis.damage, "check_file", check)
    assert len(make_plan().files) == 4
    assert read == ["background_1.root"]


def test_a_mended_file_is_noticed(make_plan: Callable[..., Plan], signal: Path) -> None:
    """Also where the good copy has the time of its original, as the bad one had."""
    good = shutil.copy2(signal, signal.with_suffix(".good"))
    before = signal.stat()
    corrupt(signal)
    os.utime(signal, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert len(make_plan().skipped) == 1
    shutil.copy2(good, signal)
    assert (signal.stat().st_size, signal.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    plan = make_plan()
    assert plan.skipped == ()
    assert len(plan.files) == 4


def test_a_remote_file_that_was_whole_is_not_read_again(
    make_plan: Callable[..., Plan], signal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inspect, url = analysis.events.inspect_file, "root://host//signal.root"
    read: list[str] = []
    bad = [True]

    def check(path: str, _tree: str, _generated: GeneratedSum | None) -> None:
        read.append(path)
        if path == url and bad[0]:
            raise analysis.events.bad_file(path, "is damaged")

    monkeypatch.setattr(analysis.damage, "check_file", check)
    monkeypatch.setattr(
        analysis.events, "inspect_file", lambda path, tree: inspect(str(signal) if path == url else path, tree)
    )
    files = f"data.datasets.signal.files=['{url}', signal_1.root]"
    assert [file.reason for file in make_plan(files).skipped] == ["is damaged"]
    bad[0] = False
    for expected in ([url], []):
        read.clear()
        assert make_plan(files).skipped == ()
        assert read == expected


@pytest.mark.parametrize("kind", ["TTree", "RNTuple"])
def test_every_basket_and_page_is_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "events.root"
    rng = np.random.default_rng(1)
    columns = {name: rng.integers(0, 100, 3000) for name in ("x", "y", "z")}
    with uproot.recreate(path) as file:
        if kind == "TTree":
            file.mktree("events", {name: values.dtype for name, values in columns.items()})
        else:
            file.mkrntuple("events", {name: values[:0] for name, values in columns.items()})
        for start in range(0, 3000, 1000):
            file["events"].extend({name: values[start : start + 1000] for name, values in columns.items()})
    check_file(str(path), "events")
    corrupt(path)
    where = "branch 'x', entries 2000 to 3000" if kind == "TTree" else "field 'x', cluster 3"
    with pytest.raises(UserError) as raised:
        check_file(str(path), "events")
    assert raised.value.damage.startswith(f"is damaged in {where}: Error -3 while decompressing")


@pytest.mark.data
def test_pages_are_compared_with_their_checksums(data_folder: Path, tmp_path: Path) -> None:
    """ROOT's own pages: also where they are not compressed, or what is damaged decompresses all the same."""
    name = "Run2012BC_DoubleMuParked_Muons_1000evts_rntuple_v1-0-0-0.root"
    path = tmp_path / "events.root"
    shutil.copy(data_folder / "nanoaod" / name, path)
    path.chmod(0o644)
    check_file(str(path), "Events")
    with uproot.open(path) as file:
        page = file["Events"].page_link_list[0][-1].pages[0].locator
    content = bytearray(path.read_bytes())
    content[page.offset + page.num_bytes] ^= 1  # of the checksum itself
    path.write_bytes(content)
    with pytest.raises(UserError, match="the checksum of a page differs"):
        check_file(str(path), "Events")


@pytest.mark.data
def test_real_files_are_whole(data_folder: Path) -> None:
    checked = 0
    for path in sorted(data_folder.rglob("*.root")):
        with uproot.open(path) as file:
            trees = {
                key.rpartition(";")[0] for key, kind in file.classnames().items() if kind in ("TTree", "ROOT::RNTuple")
            }
        for tree in trees:
            check_file(str(path), tree)
            checked += 1
    assert checked


def test_warnings_name_the_files_and_what_is_missing(make_plan: Callable[..., Plan]) -> None:
    config = make_plan().config
    skipped = [SkippedFile("signal", f"{i}.root", "is empty (0 bytes)") for i in range(7)]
    (only,) = warnings_of_skipped(config, skipped, {"signal": 3})
    assert only.startswith(
        "7 of 10 files of data set signal are bad and were skipped: 0.root is empty (0 bytes); 1.root"
    )
    assert only.endswith("4.root is empty (0 bytes); and 2 more, which summary.json names.")

    as_is = make_plan("processes.signal={data: [signal]}").config
    assert "Weights of signal are used as they are" in list(warnings_of_skipped(as_is, skipped[:1], {"signal": 3}))[1]
    more = (
        "{signal: {files: [signal_1.root]}, background: {files: [background_0.root]}, d: {files: [x], collision: true}}"
    )
    data = make_plan(f"data.datasets={more}", "processes.d={data: [d]}").config
    said = list(warnings_of_skipped(data, [SkippedFile("d", "a.root", "is empty (0 bytes)")], {"d": 1}))
    assert said[1] == "The luminosity of d is lower by that of the skipped files."


# As a user runs it


def with_sums(folder: Path) -> None:
    """Give each file of the toy analysis its sum of generated weights, and normalise signal by its cross section."""
    for path in (folder / "data").glob("*.root"):
        total = 1000.0 + 100 * int(path.stem[-1])
        with uproot.update(path) as file:
            file["Runs"] = {"sumw": np.array([total])}
    configuration = folder / "analysis.yaml"
    replace(configuration, "  chunk: 400\n", "  chunk: 200\n  generated: {tree: Runs, branch: sumw}\n")
    replace(configuration, "{sum_to: 100.0}", "cross_section, cross_section: 0.001")
    replace(configuration, "weights: {", "weights: {luminosity: 100.0, ")


def numbers(result: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The summary, and the scores of each file."""
    summary = json.loads((result / "summary.json").read_text())
    jsonschema.validate(summary, json.loads((ROOT / "docs" / "summary.schema.json").read_text()))
    scores = {}
    for path in sorted((result / "scores").iterdir()):
        scores[path.name] = scores_of(path)
    return summary, scores


def scores_of(path: Path) -> dict[str, Any]:
    """The columns of a file of scores."""
    with uproot.open(path) as file:
        columns: dict[str, Any] = file["scores"].arrays(library="np")
    return columns


def made(law: Law, step: str = "[A-Z]*") -> set[Path]:
    """Where the outputs of a step, or of all, are in the store: an address says what they stand on."""
    return {path.relative_to(law.store) for path in law.store.glob(f"{step}/*/*")}


def assert_same(one: tuple[Any, Any], other: tuple[Any, Any]) -> None:
    """Number for number, apart from what is said of skipped files."""
    own = ("fingerprint", "skipped", "warnings")
    first, second = ({k: v for k, v in summary.items() if k not in own} for summary, _ in (one, other))
    assert first == second
    assert one[1].keys() == other[1].keys()
    for name, columns in one[1].items():
        assert_equal(columns, other[1][name])


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Column for column."""
    assert one.keys() == other.keys()
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name])


def test_skipping_a_file_is_never_to_have_listed_it(tmp_path: Path) -> None:
    law, apart, stopping = Law(tmp_path), Law(tmp_path, Path("apart")), Law(tmp_path, Path("stopping"))
    folder = toy(tmp_path / "toy")
    write_events(folder / "data" / "signal_2.root", 500, 5.0, seed=3)
    with_sums(folder)
    third = folder / "data" / "signal_2.root"
    good = third.read_bytes()
    corrupt(third)
    configuration = folder / "analysis.yaml"

    stopped = stopping("ComputeFeatures", "--analysis", law.analysis, ok=False)
    assert stopped.returncode != 0
    assert "Traceback" not in stopped.stderr
    assert f": {third} is damaged in field 'x'" in stopped.stderr
    assert "set data.on_bad_file to skip" in stopped.stderr

    replace(configuration, "  format: flat\n", "  format: flat\n  on_bad_file: skip\n")
    done = law("Report", "--analysis", law.analysis)
    assert done.stderr.count(f"skipped (1 of 3 files of data set signal): {third} is damaged in field 'x'") == 1
    skipped = numbers(law.results / "toy")
    assert sorted(skipped[1]) == ["background_0.root", "background_1.root", "signal_0.root", "signal_1.root"]
    (entry,) = skipped[0]["skipped"]
    assert (entry["dataset"], entry["file"]) == ("signal", "signal_2.root")
    warning = f"1 of 3 files of data set signal are bad and were skipped: signal_2.root {entry['reason']}."
    assert warning in skipped[0]["warnings"]
    page = (law.results / "toy" / "report.html").read_text()
    assert "signal_2.root is damaged in field" in page

    # The same without the file: here, where only the report says so; and from nothing, in a store of its own.
    third.unlink()
    before = made(law) - made(law, "Report")
    counts = ran(law("Report", "--analysis", law.analysis))
    assert counts == {}
    without = numbers(law.results / "toy")
    assert without[0]["skipped"] == []
    assert without[0]["fingerprint"] != skipped[0]["fingerprint"]
    assert_same(skipped, without)
    assert made(law) - made(law, "Report") == before
    apart("WriteStatistics", "--analysis", law.analysis)
    others = ("ExportEnsemble", "EvaluateEnsemble", "PlotResults")
    assert made(apart) == before - {folder for step in others for folder in made(law, step)}
    (statistics,) = made(apart, "WriteStatistics")
    for name in ("histograms.json", "workspace.json"):
        assert (apart.store / statistics / name).read_bytes() == (law.store / statistics / name).read_bytes()
    for folder in made(apart, "ScoreEvents"):
        assert_equal(*(scores_of(place.store / folder / "friend.root") for place in (apart, law)))

    # Mended, with the UUID and the length that it had all along: its branches alone are read, and what follows.
    third.write_bytes(good)
    counts = ran(law("ScoreEvents", "--analysis", law.analysis))
    assert counts == {
        "ListInputs": 1,
        "SelectEvents": 3,
        "ComputeFeatures (features)": 3,
        "ComputeFeatures (factors)": 3,
        "TrainFolds": 3,
        "ScoreEvents": 5,
    }
    following = ("ExportEnsemble", "EvaluateEnsemble", "WriteStatistics", "PlotResults", "Report")
    assert redone(law) == dict.fromkeys(following, 1)  # neither of the two reports is this one

    # Bad again: what was made without it still stands.
    corrupt(third)
    assert ran(law("Report", "--analysis", law.analysis)) == {}
    assert numbers(law.results / "toy")[0] == skipped[0]
